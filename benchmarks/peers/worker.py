"""A peer's process: python -m peers.worker PEER FILE; a line of JSON for its start, and one for each round.

Asked for n steps by a line "n" on standard input, it answers with the seconds they took.
"""

import importlib
import json
import os
import sys

from peers import MODULES
from peers.given import now, read


def main() -> None:
    """Build, compare, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the frameworks print is no answer
    name, path = sys.argv[1:]
    module = importlib.import_module(f"peers.{MODULES[name]}")
    given, began = read(path), now()
    runner = module.build(given, name)
    loss = runner.after(given.checked)
    print(json.dumps({"loss": loss, "first_s": round(float((now() - began)[0]), 2)}), file=answers)
    for line in sys.stdin:
        wall, cpu = runner.run(int(line))
        print(json.dumps({"wall": float(wall), "cpu": None if cpu is None else float(cpu)}), file=answers)


if __name__ == "__main__":
    main()
