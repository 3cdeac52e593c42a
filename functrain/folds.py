"""K-fold cross-validation: a run for each fold, and the mean over them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from functrain import runs
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.train.stop import Stop


def cross_validate(config: Experiment, out: Path, *, console: Console | None = None, stop: Stop | None = None) -> int:
    """A run in out/fold-0, out/fold-1 ...; then out/result.json: mean, deviation and each fold's test metrics.

    A fold that is finished is left as it is, one that was stopped goes on: the same command again is the resumption.

    Returns:
      The exit status of the first fold that was stopped, or 0.

    Raises:
      ConfigError: data.folds is not set, or a fold cannot be trained.
    """
    folds = getattr(config.data, "folds", 0)
    if not folds:
        raise ConfigError("data.folds: missing; cross-validation needs at least 2")
    console = console or runs.make_console()
    results = []
    for fold in range(folds):
        place = out / f"fold-{fold}"
        if not (place / "result.json").is_file():
            console.print(f"fold {fold} of {folds}")
            if (place / "config.toml").is_file():
                status = runs.resume(place, console=console, stop=stop)
            else:
                data = dataclasses.replace(config.data, fold=fold)  # pyright: ignore
                status = runs.train(dataclasses.replace(config, data=data), place, console=console, stop=stop)
            if status:
                return status
        results.append(json.loads((place / "result.json").read_text())["test"])
    summary = summarise(results)
    (out / "result.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("test", *map(str, range(folds)), "mean ± deviation"):
        table.add_column(name, justify="right" if name != "test" else "left")
    for name in summary["mean"]:
        each = [f"{fold[name]:.4g}" for fold in summary["folds"]]
        table.add_row(name.replace("_", " "), *each, f"{summary['mean'][name]:.4g} ± {summary['deviation'][name]:.2g}")
    console.print(table)
    return 0


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """{"mean", "deviation", "folds"} of the metrics that every fold has as a number.

    >>> summarise([{"step": 9, "loss": 1.0}, {"step": 7, "loss": 3.0}])["mean"]
    {'loss': 2.0}
    """
    names = [n for n in results[0] if n != "step" and all(fold.get(n) is not None for fold in results)]
    values = {name: [fold[name] for fold in results] for name in names}
    return {
        "mean": {name: float(np.mean(v)) for name, v in values.items()},
        "deviation": {name: float(np.std(v, ddof=1)) for name, v in values.items()},
        "folds": results,
    }
