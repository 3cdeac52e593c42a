"""functrain on an accelerator, for gpu.py: its own build and compile of a config; a JSON line says what it took."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from gpu import config_of

import functrain
from functrain import config, tree
from functrain.building import build
from functrain.built import batches, compile
from functrain.experiment import Experiment
from functrain.layers import forms
from functrain.metrics import read, scalars
from functrain.observe import flops
from functrain.runs import use_compilation_cache


def measured(settings: dict) -> dict:
    """What gpu.py wants to know."""
    use_compilation_cache()
    with forms.noted() as taken:
        built = build(config.parse(Experiment, config.Source(config_of(settings))))
        compiled = compile(built)
    program, state, losses, seconds = compiled.program, compiled.train_state, [], 0.0
    params, at = state.players["model"].params, 0
    parameters = tree.size(params) - params["positions"]["table"].size
    if settings["checked"] and settings["precision"] != "float8":
        write_start(settings["start"], params, batches(built, 0, settings["checked"]))
    del params  # donated
    while at < max(settings["checked"], 1):
        state, metrics, mark = program.advance(state, program.fresh(), program.window(at, 1), 1)
        jax.block_until_ready(mark)
        seconds = seconds or time.time() - settings["began"]
        losses.append(scalars(read(metrics))["loss"])
        at += 1
    size, steps, rates = settings["size"], settings["steps"], []
    metrics, window = program.fresh(), program.window(at, steps)
    for i in range(settings["windows"] + 1):
        start = time.perf_counter()
        state, metrics, mark = program.advance(state, metrics, window, steps)
        at += steps
        window = program.window(at, steps)  # read while the device is at work, as the loop does
        jax.block_until_ready(mark)
        if i:  # the first warms up
            rates.append(steps * size["batch"] * size["block"] / (time.perf_counter() - start))
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "precision": settings["precision"],
        "device": jax.devices()[0].device_kind,
        "versions": {"functrain": functrain.__version__, "jax": jax.__version__},
        "parameters": parameters,
        "losses": losses,
        "tokens_per_s": rates,
        "first_step_s": seconds,
        "peak_bytes": stats.get("peak_bytes_in_use") or program.needs(),
        "memory_by": "allocator" if "peak_bytes_in_use" in stats else "XLA's analysis",
        "matmul_flops": flops.matmul_peak(jnp.bfloat16),
        "notes": {
            "forms": dict(sorted(taken)),
            "loop": built.config.train.loop,
            "remat": settings["remat"],
            "vocabulary_block": settings["vocabulary_block"],
        },
    }


def write_start(path: str, params, first: list) -> None:
    """Parameters by path, and the first batches, for the others to begin with."""
    arrays = {f"params/{name}": np.asarray(x, np.float32) for name, x in tree.by_path(params).items()}
    arrays |= {name: np.stack([np.asarray(batch[name]) for batch in first]) for name in ("x", "y")}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
