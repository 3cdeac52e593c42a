"""benchmarks/gpu.py in small, on a CPU: the same losses of all, figures that hang together, and what is missing."""

import importlib.util
import json

import pytest

TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def gpu(root, monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import gpu  # pyright: ignore[reportMissingImports]

    return gpu


def test_it_runs_in_small(gpu, capsys):
    """functrain, by blocks of the vocabulary and in float8, and torch where it is installed: equal losses."""
    programs = ["functrain", "functrain-float8", *["torch"] * TORCH]
    few = ["--rounds", "1", "--windows", "2", "--steps", "2", "--vocabulary-block", "128", "--eager"]
    assert gpu.main(["--small", *few, "--precision", "float32", "--programs", ",".join(programs)]) == 0
    shown = capsys.readouterr()
    rows = {row["program"]: row for row in map(json.loads, shown.out.splitlines())}
    assert list(rows) == programs
    size = gpu.SIZES["small"]
    work = 6 * 41_120 + 12 * 2 * 32 * 32  # 512 x 32, and two blocks of 12 x 32 x 32 with norms of 32, and one more
    for program, row in rows.items():
        assert row["parameters"] == 512 * 32 + 2 * (12 * 32 * 32 + 64) + 32 == 41_120
        assert row["mfu_of_989"] == pytest.approx(row["tokens_per_s"] * work / 989e12, rel=0.5, abs=1e-6)
        assert row["mfu_of_measured"] == pytest.approx(
            row["tokens_per_s"] * work / row["matmul_tflops"] / 1e12, rel=0.01, abs=1e-4
        )
        assert row["least"] <= row["tokens_per_s"] <= row["most"]
        assert row["first_step_s"][0] > 0
        assert row["precision"] == ("float8" if program == "functrain-float8" else "float32")
        assert len(row["losses"]) == gpu.CHECKED
        assert row["losses"][-1] < row["losses"][0]
        assert row["difference"] < (1e-3 if program == "functrain-float8" else 1e-5)
    assert rows["functrain"]["vocabulary_block"] == 128
    assert rows["functrain"]["peak_memory_gb"] > 0
    assert ("times_torch" in rows["functrain"]) == TORCH
    assert size["layers"] == 2


def _answer(**changes):
    found = {"precision": "bfloat16", "device": "d", "versions": {}, "parameters": 10, "losses": [2.0, 1.0]}
    found |= {"tokens_per_s": [100.0, 300.0, 200.0], "first_step_s": 9.0, "peak_bytes": 5e9, "memory_by": "allocator"}
    return found | {"matmul_flops": 1e12} | changes


def test_rounds_go_turn_about(gpu, monkeypatch, capsys):
    """Every second one backwards; medians over all windows; torch's losses are compared in the first round."""
    asked = []

    def run(program, settings):
        asked.append((program, settings["checked"], settings["precision"]))
        rates = [50.0, 150.0, 100.0] if program == "torch" else [100.0, 300.0, 200.0]
        return _answer(tokens_per_s=rates, matmul_flops=2e12 if program == "torch" else 1e12)

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "missing", lambda *_: {})
    assert gpu.main(["124M", "--programs", "torch,functrain", "--rounds", "3"]) == 0
    wanted = [("functrain", 3), ("torch", 3), ("torch", 0), ("functrain", 0), ("functrain", 0), ("torch", 0)]
    assert asked == [(program, checked, "bfloat16") for program, checked in wanted]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tokens_per_s"] for row in rows] == [200, 100]
    assert rows[0]["times_torch"] == 2
    assert {row["matmul_tflops"] for row in rows} == {2.0}
    assert rows[0]["first_step_s"] == [9, 9, 9]
    work = 60 + 12 * 12 * 768 * 1024
    assert rows[0]["mfu_of_measured"] == pytest.approx(200 * work / 2e12, abs=1e-4)


def test_unequal_losses_and_failures_are_status_1(gpu, monkeypatch, capsys):
    """Both are in the lines; the other rounds of what failed are left out."""
    calls = []

    def run(program, settings):
        calls.append(program)
        if program == "functrain-float8":
            raise gpu.Failed("functrain-float8: XlaRuntimeError: out of memory")
        return _answer(losses=[2.0, 1.1] if program == "torch" else [2.0, 1.0])

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "missing", lambda *_: {})
    assert gpu.main(["1B", "--programs", "functrain,functrain-float8,torch"]) == 1
    rows = {row["program"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["functrain"]["equal"]
    assert not rows["torch"]["equal"]
    assert rows["torch"]["difference"] == pytest.approx(0.1)
    assert rows["functrain-float8"]["failed"].endswith("out of memory")
    assert calls.count("functrain-float8") == 1


def test_a_program_that_fails_says_why(gpu, tmp_path):
    """The last line of its error."""
    settings = {"size": gpu.SIZES["small"], "tokens": str(tmp_path / "none.bin"), "vocabulary_block": 0}
    settings |= {"precision": "float32", "steps": 1, "remat": "none", "loop": "auto", "checked": 0}
    with pytest.raises(gpu.Failed, match=r"functrain: .*ConfigError: data\.path: .*none\.bin"):
        gpu.run("functrain", settings)


def test_what_is_missing_is_said(gpu, monkeypatch, capsys):
    """Without a GPU nothing runs but --small; mistakes end it with status 2."""
    monkeypatch.setattr(gpu, "_answers", lambda code: False)
    assert gpu.main([]) == 1
    said = capsys.readouterr()
    assert "not run: functrain: jax finds no GPU" in said.err
    assert "not run: torch: torch is" in said.err
    assert not said.out
    for given, words in (
        (["2B"], "size: found '2B'; expected 124M, 1B"),
        (["--programs", "functrain,caffe"], "program: found 'caffe'"),
        (["--programs", "torch"], "functrain is missing"),
        (["--steps", "0"], "--steps: found 0; expected at least 1"),
    ):
        with pytest.raises(SystemExit) as ended:
            gpu.main(given)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
