"""What the command sets for its own process: that what is freed is kept, and how to turn it off."""

import json
import os
import subprocess
import sys

import pytest

from functrain.cli import main
from functrain.process import SETTING

FAULTS = """
import ctypes, resource, threading
from functrain.process import keep_memory
keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def take():
    at = ctypes.c_void_p(libc.malloc(100_000_000))
    libc.memset(at, 1, 100_000_000)
    libc.free(at)
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(faults(5))
"""
glibc = pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")


def _run(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@glibc
def test_memory_is_kept_unless_it_is_turned_off():
    """Allocations of 100 MB in turn, in threads: no page is asked for again; without, each is, 24,000 a time."""
    assert int(_run(FAULTS, **{SETTING: "1"})) < 1_000
    assert int(_run(FAULTS, **{SETTING: "0"})) > 100_000


@glibc
@pytest.mark.parametrize(("platforms", "kept"), [("cpu", "1"), ("cuda,cpu", "0")])
def test_it_is_for_programs_on_a_cpu(platforms, kept):
    """By the rule, where the variable is unset."""
    code = f"import os; from functrain.process import keep_memory; keep_memory(); print(os.environ[{SETTING!r}])"
    assert _run(code, JAX_PLATFORMS=platforms, **{SETTING: ""}).strip() == kept


def test_importing_the_library_sets_nothing():
    """That is the command's alone."""
    code = f"import os, functrain.runs; print(repr(os.environ.get({SETTING!r})))"
    assert _run(f"import os; os.environ.pop({SETTING!r}, None)\n" + code).strip() == "None"


def test_a_run_says_which(root, tmp_path, monkeypatch):
    """In environment.json."""
    monkeypatch.setenv(SETTING, "0")
    config, out = str(root / "configs/digits_mlp.toml"), tmp_path / "run"
    assert main(["train", config, "train.epochs=1", "observe.figures=false", "--out", str(out)]) == 0
    assert json.loads((out / "environment.json").read_text())["flags"][SETTING] == "0"


def test_another_word_is_refused(monkeypatch, capsys):
    """With one line, status 2."""
    monkeypatch.setenv(SETTING, "yes")
    assert main(["train", "none.toml"]) == 2
    assert capsys.readouterr().err == f"functrain: {SETTING}: found 'yes'; expected 0 or 1\n"
