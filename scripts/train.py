"""Train from a config, in Python: what `functrain train CONFIG [key=value ...]` does, to copy and change.

python scripts/train.py configs/digits_mlp.toml train.epochs=5
"""

import sys
from pathlib import Path

from functrain import config, runs
from functrain.experiment import Experiment
from functrain.train.stop import Stop


def main(path: str, *overrides: str) -> int:
    """Read the config, apply the overrides, train into runs/NAME."""
    experiment = config.parse(Experiment, config.read(path, overrides))
    runs.use_compilation_cache()
    with Stop() as stop:
        return runs.train(experiment, Path("runs") / Path(path).stem, stop=stop)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
