"""The `functrain` command. Thin: it reads arguments and calls; whatever is heavy is imported when it is needed.

Exit status: 0 done; 1 `inspect --overfit` did not get there, `check` found a derivative wrong, or `data check` found a
file missing or another than it should be; 2 a mistake in what was given, told in one line; 75 stopped by SIGTERM and
130 by Ctrl-C, each with a checkpoint, or with what came of a download.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

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

    sample = commands.add_parser(
        "sample",
        help="text from a trained language model, as it is made",
        description="Goes on from a prompt; without one, from a newline, or from the vocabulary's first token where it "
        "has none. When the model's block is full it goes on with the last half of what it saw; a model that remembers "
        "nothing sees the last block at each token. The text goes to stdout, how fast it came to stderr.",
    )
    sample.add_argument("run", metavar="RUN", type=Path)
    prompt = sample.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", default="", help="what to go on from")
    prompt.add_argument("--file", metavar="PROMPTS.txt", type=Path, help="a prompt in each line, one after another")
    sample.add_argument("--tokens", type=int, default=200, help="how many after each prompt (default: 200)")
    sample.add_argument("--number", type=int, default=1, help="how many texts of each prompt (default: 1)")
    sample.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    sample.add_argument("--temperature", type=float, help="below 1 the likely grow likelier; 0 takes the likeliest")
    sample.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    sample.add_argument("--top-p", type=float, metavar="P", help="only the likeliest whose probabilities add up to P")
    sample.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as likely as the likeliest")
    sample.add_argument("--repetition-penalty", type=float, metavar="F", help="above 1: what it saw grows less likely")
    sample.add_argument("--beams", type=int, metavar="N", help="the likeliest text, by beam search, not a drawn one")
    sample.add_argument("--step", type=int, help="a checkpoint's step (default: the best)")

    recommend = commands.add_parser("recommend", help="the items that a trained model ranks highest for users, as JSON")
    recommend.add_argument("run", metavar="RUN", type=Path)
    recommend.add_argument("users", metavar="USER", nargs="+", help="ids as the data has them")
    recommend.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    recommend.add_argument("--again", action="store_true", help="items too that the user has in the data")
    recommend.add_argument("--step", type=int, help="a checkpoint's step (default: the best)")

    export = commands.add_parser("export", help="a trained model's weights as a safetensors file, or for Hugging Face")
    export.add_argument("run", metavar="RUN", type=Path)
    export.add_argument("file", metavar="FILE.safetensors", type=Path, help="for huggingface and peft, a folder")
    layouts = ("functrain", "torchvision", "huggingface", "adapter", "peft")
    export.add_argument("--layout", choices=layouts, default="functrain", help="whose names (default: functrain)")
    export.add_argument("--step", type=int, help="a checkpoint's step (default: the best)")
    export.add_argument("--member", type=int, default=0, help="of a run of several seeds (default: 0, the first)")

    inspect = commands.add_parser("inspect", help="everything but running: parameters, FLOPs, memory")
    inspect.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    inspect.add_argument("--overfit", action="store_true", help="drive one batch to zero loss; status 1 if it will not")
    inspect.add_argument("--figure", metavar="PNG", type=Path, help="draw the learning rate over the run")
    inspect.add_argument("--examples", metavar="PNG", type=Path, help="draw images as they are and as augmented")

    rate = commands.add_parser("find-rate", help="the loss while the learning rate rises, and a rate to train at")
    rate.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    rate.add_argument("--from", dest="lowest", metavar="RATE", type=float, default=1e-6, help="(default: 1e-6)")
    rate.add_argument("--to", dest="highest", metavar="RATE", type=float, default=1.0, help="(default: 1)")
    rate.add_argument("--steps", type=int, default=200, help="how many steps it takes (default: 200)")
    rate.add_argument("--figure", metavar="PNG", type=Path, help="draw the loss against the rate into this file")

    precision = commands.add_parser("precision", help="what low precision does to the gradient, and which part of it")
    precision.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    precision.add_argument("--batches", type=int, default=2, metavar="N", help="on how many batches (default: 2)")
    precision.add_argument("--steps", type=int, default=0, metavar="N", help="after N steps of training (default: 0)")
    precision.add_argument("--figure", metavar="PNG", type=Path, help="draw the errors into this file")

    gradients = commands.add_parser("check", help="is the gradient of the loss its derivative? status 1 if not")
    gradients.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    gradients.add_argument("--directions", type=int, default=3, metavar="N", help="in each array (default: 3)")
    gradients.add_argument("--examples", type=int, default=8, metavar="N", help="of the first batch (default: 8)")

    trace = commands.add_parser(
        "trace", help="every value in the loss and its gradient: a table, and a page to look at"
    )
    trace.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    trace.add_argument("--page", metavar="HTML", type=Path, help="draw the graph as a page; scopes fold on a click")
    trace.add_argument("--svg", metavar="SVG", type=Path, help="draw the graph as a picture")
    trace.add_argument("--examples", type=int, default=0, metavar="N", help="of the batch, the first N (default: all)")
    trace.add_argument("--steps", type=int, default=0, metavar="N", help="after N steps of training (default: 0)")

    curvature = commands.add_parser("curvature", help="how the loss bends: eigenvalues, trace and density of a matrix")
    curvature.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    matrices = "hessian, gauss_newton or empirical_fisher (default: hessian)"
    curvature.add_argument("--matrix", default="hessian", metavar="NAME", help=matrices)
    curvature.add_argument("--count", type=int, default=5, metavar="N", help="eigenvalues at either end (default: 5)")
    curvature.add_argument("--samples", type=int, default=10, metavar="N", help="random vectors (default: 10)")
    curvature.add_argument("--examples", type=int, default=0, metavar="N", help="of the batch (default: all)")
    curvature.add_argument("--steps", type=int, default=0, metavar="N", help="after N steps of training (default: 0)")
    curvature.add_argument("--figure", metavar="PNG", type=Path, help="draw the density into this file")

    profile = commands.add_parser(
        "profile", help="where the time of a step goes: a trace, and the costliest operations with their source lines"
    )
    profile.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    profile.add_argument("--steps", type=int, default=20, metavar="N", help="of training, traced (default: 20)")
    profile.add_argument("--top", type=int, default=10, metavar="N", help="operations that are shown (default: 10)")
    profile.add_argument("--out", metavar="DIR", type=Path, help="of the trace; else runs/NAME-profile, numbered")

    ways = commands.add_parser(
        "compare-estimators", help="what backpropagation buys: one config trained by each estimator, loss against cost"
    )
    ways.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    kinds = "such as spsa:directions=16; give it once for each (default: twelve kinds)"
    ways.add_argument("--kind", dest="kinds", action="append", metavar="KIND", help=kinds)
    budget = "of the loss, for each kind (default: 10,000)"
    ways.add_argument("--evaluations", type=int, default=10_000, metavar="N", help=budget)
    ways.add_argument("--figure", metavar="PNG", type=Path, help="draw the losses into this file")

    folds = commands.add_parser("folds", help="k-fold cross-validation: a run for each of data.folds, and their mean")
    folds.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"a TOML file; then {override}")
    folds.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the runs are; again to go on")

    active = commands.add_parser("active", help="active learning: runs with ever more labels, chosen by the last")
    active.add_argument("arguments", nargs="+", metavar="CONFIG key=value", help=f"with few_labels; then {override}")
    active.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the runs are; again to go on")
    criteria = "of entropy, margin, confidence, random (default: margin,random)"
    active.add_argument("--by", metavar="A,B", default="margin,random", help=criteria)
    active.add_argument("--rounds", type=int, default=5, help="how often labels are added (default: 5)")
    active.add_argument("--add", type=int, default=100, help="how many labels each time (default: 100)")

    compare = commands.add_parser("compare", help="runs side by side")
    compare.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    compare.add_argument("--figure", metavar="PNG", type=Path, help="draw their curves into this file")

    data = commands.add_parser("data", help="data sets known by name: list, get, check").add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=_Parser
    )
    data.add_parser("list", help="every known set: what it is, its size, its licence, where it is here")
    fetch = data.add_parser("get", help="download a set, or go on with a download that broke off")
    fetch.add_argument("name", metavar="NAME")
    fetch.add_argument("--into", metavar="DIR", type=Path, help="else FUNCTRAIN_DATA, else ~/.cache/functrain/data")
    check = data.add_parser("check", help="compare the files that are here with their digests; status 1 if one differs")
    check.add_argument("name", metavar="NAME")

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
    from functrain.process import keep_memory

    warnings.showwarning = lambda message, *_, **__: print(f"functrain: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries, to their developers
    try:
        keep_memory()
        return _COMMANDS[given.command](given)
    except ConfigError as error:
        print("functrain: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error)), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `functrain predict ... | head`
        sys.stderr.close()
        return 0


def _opened(arguments: list[str]) -> tuple[Path, Any, Any]:
    """(the config's path, the config, a console): what a command that computes with a config begins with."""
    from functrain import runs
    from functrain.config import parse, read
    from functrain.experiment import Experiment

    path, overrides = _config_and_overrides(arguments)
    runs.use_compilation_cache()
    return path, parse(Experiment, read(path, overrides)), runs.make_console()


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
    x = model.config.data.read_inputs(given.input) if model.config.data else None  # a table, by its columns' names
    if x is None:
        shape = getattr(model.config.model, "inputs", None) or getattr(model.task, "inputs", None)
        if shape is None:
            raise ConfigError(f"{given.run}: its model does not say what one example looks like")
        x = trained.read_inputs(given.input, shape)
    for row in model.rows(x):
        print(json.dumps(row))
    return 0


def _recommend(given) -> int:
    from functrain import recommending, runs, trained

    runs.use_compilation_cache()
    model = trained.load(given.run, given.step)
    for row in recommending.recommend(model, given.users, given.k, given.again):
        print(json.dumps(row, ensure_ascii=False))
    return 0


def _sample(given) -> int:
    from functrain import runs, sampling, trained
    from functrain.observe.console import duration, human

    names = ("tokens", "number", "seed", "beams", *sampling.LEGAL)
    wanted = sampling.wanted(**{name: getattr(given, name) for name in names})
    prompts = [given.prompt] if given.file is None else sampling.read_prompts(given.file)
    where = "--prompt" if given.file is None else f"--file: {given.file}"
    runs.use_compilation_cache()
    writer = sampling.Writer(trained.load(given.run, given.step), given.run)

    def show(text):
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)

    try:
        told = sampling.write(writer, prompts, wanted, show, where)
    except KeyboardInterrupt:
        print()
        return 130
    speed = f"{human(told['tokens'] / told['seconds'])} tokens/s"
    print(
        f"functrain: {told['tokens']} tokens in {duration(told['seconds'])}, {speed}; "
        f"before them {duration(told['compile'])} to compile",
        file=sys.stderr,
    )
    return 0


def _export(given) -> int:
    from functrain import runs, trained, transfer

    transfer.check_export(given.file, given.layout)
    runs.use_compilation_cache()
    model = trained.load(given.run, given.step, given.member)
    arrays = transfer.export(model, given.file, given.layout)
    numbers = sum(array.size for array in arrays.values())
    print(f"{given.file}: {len(arrays):,} arrays, {numbers:,} numbers, of {given.run}, step {model.step}")
    return 0


def _inspect(given) -> int:
    from functrain import report
    from functrain.building import build

    report.check_figure(given.figure)
    report.check_figure(given.examples, "--examples")
    _, config, console = _opened(given.arguments)
    built = build(config)
    learnt = report.inspect(console, built, try_overfit=given.overfit, figure=given.figure, examples=given.examples)
    return 0 if learnt else 1


def _find_rate(given) -> int:
    from functrain import finder, report

    report.check_figure(given.figure)
    _, config, console = _opened(given.arguments)
    found = finder.find_rate(config, lowest=given.lowest, highest=given.highest, steps=given.steps)
    report.found_rate(console, found, given.figure)
    print(json.dumps({"suggestion": found.suggestion}))
    return 0


def _precision(given) -> int:
    from functrain import report, runs
    from functrain.building import build
    from functrain.observe.console import progress

    report.check_figure(given.figure)
    _, config, console = _opened(given.arguments)
    tell = progress(console, "precision")
    built = build(config, tell)
    if built.chosen is not None:
        runs.show_choice(console, built.chosen)
    found = report.precision(console, built, batches=given.batches, steps=given.steps, figure=given.figure, tell=tell)
    print(json.dumps({"gradient_error": found.error, "float32": found.exact}))
    return 0


def _check(given) -> int:
    from functrain import checking, report
    from functrain.observe.console import progress

    _, config, console = _opened(given.arguments)
    tell = progress(console, "check")
    found = checking.check(config, directions=given.directions, examples=given.examples, tell=tell)
    report.checked(console, found)
    worst = found.worst
    facts = {"parameter": worst.path, "check": worst.check, "verdict": worst.verdict, "error": _finite(worst.error)}
    facts |= {"index": worst.index, "reverse": _finite(worst.reverse), "found": _finite(worst.found)}
    print(json.dumps({"passed": found.passed, "worst": facts}))
    return 0 if found.passed else 1


def _finite(x: float) -> float | None:
    """The number, or None for what JSON has none of."""
    return x if abs(x) < float("inf") else None


def _trace(given) -> int:
    from functrain import report, tracing
    from functrain.autodiff import drawing
    from functrain.building import build
    from functrain.observe.console import progress

    report.check_figure(given.page, "--page", ".html")
    report.check_figure(given.svg, "--svg", ".svg")
    path, config, console = _opened(given.arguments)
    built = build(config, progress(console, "precision"))
    found = tracing.trace_loss(built, examples=given.examples, steps=given.steps)
    report.traced(console, found)
    for file, drawn in ((given.page, lambda: drawing.page(found, path.stem)), (given.svg, lambda: drawing.svg(found))):
        if file is not None:
            file.write_text(drawn(), encoding="utf-8")
            console.print(f"drawn: {file}")
    return 0


def _curvature(given) -> int:
    from functrain import curvature, report
    from functrain.building import build
    from functrain.observe.console import progress

    report.check_figure(given.figure)
    path, config, console = _opened(given.arguments)
    built = build(config, progress(console, "precision"))
    numbers = {name: getattr(given, name) for name in ("matrix", "count", "samples", "examples", "steps")}
    found = curvature.measure(built, **numbers, tell=progress(console, "curvature"))
    curvature.show(console, found, given.figure, path.stem)
    print(json.dumps(found.record()))
    return 0


def _profile(given) -> int:
    from functrain import profiling
    from functrain.building import build
    from functrain.config import ConfigError
    from functrain.observe.console import progress

    if given.top < 1:
        raise ConfigError(f"--top: found {given.top}; expected at least 1")
    path, config, console = _opened(given.arguments)
    built = build(config, progress(console, "precision"))
    out = given.out or _unused(Path("runs") / f"{path.stem}-profile")
    found = profiling.profile(built, out, steps=given.steps, tell=progress(console, "profile"))
    profiling.show(console, found, given.top)
    print(json.dumps(found.record(given.top)))
    return 0


def _compare_estimators(given) -> int:
    from functrain import comparing, report
    from functrain.observe.console import progress

    report.check_figure(given.figure)
    _, config, console = _opened(given.arguments)
    kinds = given.kinds or list(comparing.KINDS)
    tell = progress(console, "compare-estimators")
    found = comparing.compare(config, kinds, evaluations=given.evaluations, tell=tell)
    comparing.show(console, found, given.figure)
    print(comparing.summary(found))
    return 0


def _folds(given) -> int:
    from functrain.config import parse, read
    from functrain.train.stop import Stop

    with Stop() as stop:
        path, overrides = _config_and_overrides(given.arguments)
        source = read(path, overrides)
        from functrain import folds, runs
        from functrain.experiment import Experiment

        runs.use_compilation_cache()
        return folds.cross_validate(parse(Experiment, source), given.out, stop=stop)


def _active(given) -> int:
    from functrain.config import parse, read
    from functrain.train.stop import Stop

    with Stop() as stop:
        path, overrides = _config_and_overrides(given.arguments)
        source = read(path, overrides)
        from functrain import active, runs
        from functrain.experiment import Experiment

        runs.use_compilation_cache()
        config = parse(Experiment, source)
        by = tuple(given.by.split(","))
        return active.learn(config, given.out, by=by, rounds=given.rounds, add=given.add, stop=stop)


def _compare(given) -> int:
    from functrain import report, runs

    report.compare(runs.make_console(), given.runs, given.figure)
    return 0


def _data(given) -> int:
    from functrain import runs
    from functrain.data import fetch

    console = runs.make_console()
    if given.action == "list":
        console.print(fetch.table())
    elif given.action == "check":
        found = fetch.check(given.name)
        for place, state in found:
            console.print(f"{state:8}{place}", soft_wrap=True)
        return 0 if all(state == "ok" for _, state in found) else 1
    else:
        try:
            fetch.get(given.name, given.into, console=console)
        except KeyboardInterrupt:
            print(f"functrain: interrupted; functrain data get {given.name} goes on from there", file=sys.stderr)
            return 130
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
    "recommend": _recommend,
    "sample": _sample,
    "export": _export,
    "inspect": _inspect,
    "find-rate": _find_rate,
    "precision": _precision,
    "trace": _trace,
    "check": _check,
    "compare-estimators": _compare_estimators,
    "curvature": _curvature,
    "profile": _profile,
    "folds": _folds,
    "active": _active,
    "compare": _compare,
    "data": _data,
    "schema": _schema,
    "list": _list,
}


if __name__ == "__main__":
    sys.exit(main())
