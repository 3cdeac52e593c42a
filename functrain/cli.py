"""The `functrain` command. Thin: it reads arguments and calls; whatever is heavy is imported when it is needed.

Exit status: 0 done; 1 `inspect --overfit` did not get there; 2 a mistake in what was given, told in one line;
75 stopped by SIGTERM and 130 by Ctrl-C, each with a checkpoint.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

from functrain.version import __version__

_START = time.perf_counter()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = _Parser(prog="functrain", description="Training by pure functions, in JAX.")
    top.add_argument("--version", action="version", version=f"functrain {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    override = "a key of the config, such as optimizer.peak_lr=3e-4"

    train = commands.add_parser("train", help="train a model, or go on with a run")
    train.add_argument("arguments", nargs="*", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    train.add_argument("--resume", metavar="RUN", type=Path, help="go on with this run directory, in place of CONFIG")
    train.add_argument("--out", metavar="DIR", type=Path, help="the run directory; else runs/NAME, numbered")

    evaluate = commands.add_parser("eval", help="metrics of a trained model on a split, as a line of JSON")
    evaluate.add_argument("run", metavar="RUN", type=Path)
    evaluate.add_argument("--split", default="test", help="train, validation or test (default: test)")
    evaluate.add_argument("--step", type=int, help="a checkpoint's step (default: the best)")

    predict = commands.add_parser("predict", help="a trained model's predictions, a line of JSON for each example")
    predict.add_argument("run", metavar="RUN", type=Path)
    predict.add_argument("input", metavar="INPUT", help=".npy, .npz, .csv or .jsonl; - reads JSON lines")
    predict.add_argument("--step", type=int, help="a checkpoint's step (default: the best)")

    inspect = commands.add_parser("inspect", help="everything but running: parameters, FLOPs, memory")
    inspect.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    inspect.add_argument("--overfit", action="store_true", help="drive one batch to zero loss; status 1 if it will not")

    compare = commands.add_parser("compare", help="runs side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    compare.add_argument("--figure", metavar="PNG", type=Path, help="draw their curves into this file")

    commands.add_parser("schema", help="the JSON schema of a config, for editors")
    commands.add_parser("list", help="every model, task, source, optimizer ... and config, with a line each")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # `train CONFIG --out DIR key=value`: positional arguments may stand on both sides of an option.
    given, rest = parser().parse_known_args(arguments)
    if rest:
        stray = [a for a in rest if a.startswith("-") or "arguments" not in given]
        if stray:
            parser().error(f"unknown argument: {stray[0]}")
        given.arguments += rest
    from functrain.config import ConfigError  # pydantic: a tenth of a second that --help need not wait for

    warnings.showwarning = lambda message, *_, **__: print(f"functrain: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries, to their developers
    try:
        return _COMMANDS[given.command](given)
    except ConfigError as error:
        print("functrain: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error)), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `functrain predict ... | head`
        sys.stderr.close()
        return 0


def _config_and_overrides(arguments: list[str]) -> tuple[Path, list[str]]:
    from functrain.config import ConfigError

    configs = [a for a in arguments if "=" not in a]
    if len(configs) != 1:
        found = ", ".join(configs) if configs else "none"
        raise ConfigError(f"expected one config file, and key=value for all else; found {found}")
    return Path(configs[0]), [a for a in arguments if "=" in a]


def _train(given) -> int:
    from functrain.config import ConfigError, parse, read
    from functrain.train.stop import Stop

    with Stop() as stop:  # from here on, a signal is acted on between two steps
        if given.resume is not None:
            if given.out is not None or any("=" not in a for a in given.arguments):
                raise ConfigError("--resume RUN takes neither CONFIG nor --out; the run has its own")
            from functrain import runs

            runs.use_compilation_cache()
            imported = time.perf_counter() - _START
            return runs.resume(given.resume, given.arguments, stop=stop, imported=imported)
        path, overrides = _config_and_overrides(given.arguments)
        source = read(path, overrides)
        from functrain import runs
        from functrain.experiment import Experiment

        imported = time.perf_counter() - _START
        runs.use_compilation_cache()
        config = parse(Experiment, source)
        out = given.out or _unused(Path("runs") / path.stem)
        return runs.train(config, out, stop=stop, imported=imported)


def _unused(out: Path) -> Path:
    """The name itself, or the first of name-2, name-3 ... that does not exist."""
    candidates = [out, *(out.with_name(f"{out.name}-{i}") for i in range(2, 10_000))]
    return next(c for c in candidates if not c.exists())


def _evaluate(given) -> int:
    from functrain import runs, trained

    runs.use_compilation_cache()
    print(json.dumps(trained.evaluate(given.run, given.split, given.step)))
    return 0


def _predict(given) -> int:
    from functrain import runs, trained
    from functrain.config import ConfigError

    runs.use_compilation_cache()
    model = trained.load(given.run, given.step)
    shape = getattr(model.config.model, "inputs", None)
    if shape is None:
        raise ConfigError(f"{given.run}: its model does not say what one example looks like")
    for row in model.rows(trained.read_inputs(given.input, shape)):
        print(json.dumps(row))
    return 0


def _inspect(given) -> int:
    from functrain import report, runs
    from functrain.config import parse, read
    from functrain.experiment import Experiment, build

    path, overrides = _config_and_overrides(given.arguments)
    runs.use_compilation_cache()
    built = build(parse(Experiment, read(path, overrides)))
    return 0 if report.inspect(runs.make_console(), built, try_overfit=given.overfit) else 1


def _compare(given) -> int:
    from functrain import report, runs

    report.compare(runs.make_console(), given.runs, given.figure)
    return 0


def _schema(_given) -> int:
    from functrain.config import json_schema
    from functrain.experiment import Experiment

    print(json.dumps(json_schema(Experiment), indent=2))
    return 0


def _list(_given) -> int:
    from functrain import report, runs

    report.list_parts(runs.make_console())
    return 0


_COMMANDS = {
    "train": _train,
    "eval": _evaluate,
    "predict": _predict,
    "inspect": _inspect,
    "compare": _compare,
    "schema": _schema,
    "list": _list,
}


if __name__ == "__main__":
    sys.exit(main())
