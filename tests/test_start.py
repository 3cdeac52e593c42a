"""The start of a run: nothing is traced more often than it must be, and what comes later is compiled meanwhile."""

import io
import logging

import jax
import pytest

from functrain import config
from functrain.building import build
from functrain.built import compile
from functrain.experiment import Experiment
from functrain.models import MLP


@pytest.fixture
def experiment(root):
    """The digits' config, parsed."""
    return config.parse(Experiment, config.read(root / "configs/digits_mlp.toml"))


def test_a_step_is_traced_twice(experiment, monkeypatch):
    """Once for what it computes, once for its program; validation is for its outputs and its metrics."""
    seen, apply = [], MLP.apply

    def counted(*args, **kwargs):
        seen.append(kwargs["train"])
        return apply(*args, **kwargs)

    monkeypatch.setattr(MLP, "apply", counted)
    built = build(experiment)
    assert (seen.count(True), seen.count(False)) == (1, 2)
    compile(built)
    assert (seen.count(True), seen.count(False)) == (2, 2)


def test_evaluation_is_compiled_while_the_run_trains(experiment):
    """Once prepared, it traces and compiles nothing; the other split's, which is not, does (the check is not void)."""
    compiled = compile(build(experiment))
    program, evaluate = compiled.program, compiled.evaluate
    program.prepare()
    train_state, _, _ = program.advance(compiled.train_state, compiled.metrics, program.window(0, 1), 1)
    evaluate["validation"].pending.result()
    said = {}
    for split in ("validation", "test"):
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger("jax").addHandler(handler)
        with jax.log_compiles(True):
            evaluate[split](train_state)
        logging.getLogger("jax").removeHandler(handler)
        said[split] = [line for line in log.getvalue().splitlines() if "trac" in line or "Compiling" in line]
    assert not said["validation"]
    assert said["test"]
