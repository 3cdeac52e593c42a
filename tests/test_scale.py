"""The benchmark of scale runs: its rows are whole, and the two sides' losses are the same."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("axis", ["params", "batch", "leaves"])
def test_small_points_run(axis, root, tmp_path):
    """Two points of each axis, in a process of its own."""
    command = [sys.executable, "benchmarks/scale.py", axis, "--small", "--rounds", "1", "--json", str(tmp_path / "j")]
    command += ["--figure", str(tmp_path / "scale.png")]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "j").read_text())["rows"]
    assert [row["axis"] for row in rows] == [axis] * 2
    assert all(row["functrain_us"] > 0 and row["by_hand_us"] > 0 and row["loss_difference"] < 1e-4 for row in rows)
    assert (tmp_path / "scale.png").stat().st_size > 1000
