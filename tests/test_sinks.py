"""The trackers of experiments: each number sent once, across kills and resumes; failures that harm nothing."""

import json
import math
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from functrain.config import ConfigError
from functrain.observe import Observe
from functrain.observe.mlflow import MLflow
from functrain.observe.seen import BINS, EDGES, Seen
from functrain.observe.tracking import library
from functrain.observe.wandb import WandB

CONFIG = {"train": {"steps": 12, "seed": 0}, "model": {"kind": "mlp", "hidden": [16]}}
NORM = "gradient_norm/layer0/kernel"


# -- libraries that remember, with the signatures of wandb 0.31 and mlflow 3.17 -------------------


class FakeWandbRun:
    """What `wandb.init` returns."""

    def __init__(self, server, id, resumed):
        self.id, self.summary, self.finished, self.config_seen = id, {}, False, {}
        self._rows = server.setdefault(id, {})
        self.step = max(self._rows, default=-1) + 1 if resumed else 0
        self.config = types.SimpleNamespace(update=self._update)
        self.refused = []

    def _update(self, d, allow_val_change=None):
        assert all(allow_val_change or self.config_seen.get(k, v) == v for k, v in d.items())
        self.config_seen |= d

    def log(self, data, step=None, commit=None):
        if step < self.step:
            self.refused.append((step, data))
            return
        self.step = step
        self._rows.setdefault(step, {}).update(data)

    def finish(self, exit_code=None):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module `wandb` with a server that keeps rows by run and step."""
    fake = types.ModuleType("wandb")
    fake.server, fake.calls, fake.runs, fake.images = {}, [], [], []

    def image(path):
        fake.images.append(Path(path))
        return Path(path).read_bytes()

    def init(entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None):
        fake.calls.append({"project": project, "dir": dir, "id": id, "name": name, "resume": resume})
        fake.runs.append(FakeWandbRun(fake.server, id or f"run{len(fake.calls)}", resume == "allow"))
        return fake.runs[-1]

    fake.init, fake.Image = init, image
    fake.Histogram = lambda np_histogram: [x.tolist() for x in np_histogram]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


class FakeMlflowClient:
    """Experiments and runs; it keeps every point, and refuses what MLflow refuses."""

    def __init__(self, server):
        self._server = server

    def get_experiment_by_name(self, name):
        found = self._server.experiments.get(name)
        return found and types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name, artifact_location=None, tags=None):
        assert name not in self._server.experiments
        self._server.experiments[name] = f"experiment {name}"
        return self._server.experiments[name]

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        id = f"run{len(self._server.runs)}"
        self._server.runs[id] = types.SimpleNamespace(
            experiment=experiment_id, name=run_name, status="RUNNING", points=[], params={}, requests=0, artifacts=[]
        )
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=id))

    def update_run(self, run_id, status=None, name=None):
        self._server.runs[run_id].status = status

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        run = self._server.runs[run_id]
        assert len(metrics) <= 1000
        assert len(params) <= 100
        run.requests += 1
        for metric in metrics:
            assert all(c.isalnum() or c in "_-./: " for c in metric.key), metric.key
            run.points.append((metric.key, metric.step, metric.value))
        for param in params:
            assert isinstance(param.value, str)
            assert len(param.value) <= 6000
            assert run.params.setdefault(param.key, param.value) == param.value

    def log_artifact(self, run_id, local_path, artifact_path=None):
        self._server.runs[run_id].artifacts.append((artifact_path, Path(local_path).name))

    def set_terminated(self, run_id, status=None, end_time=None):
        self._server.runs[run_id].status = status


@pytest.fixture
def mlflow(monkeypatch):
    """A module `mlflow` with a server."""
    fake = types.ModuleType("mlflow")
    fake.experiments, fake.runs = {}, {}
    fake.MlflowClient = lambda tracking_uri=None, registry_uri=None: FakeMlflowClient(fake)
    fake.entities = types.SimpleNamespace(
        Metric=lambda key, value, timestamp, step: types.SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: types.SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def send(sink, steps):
    """What the loop tells a sink."""
    for step in steps:
        sink.scalars(step, "train", {"loss": 1 / step, "recall@5": 0.5})
        if step % 2 == 0:
            sink.layers(step, seen(step))
            sink.scalars(step, "validation", {"loss": 2 / step})
            sink.flush()


def seen(step):
    """A number by parameter that is finite, one that is not, and two histograms of which one is empty."""
    counts = np.zeros((2, BINS + 2), np.int32)
    counts[0, 70:72] = step, 1
    numbers = (np.array([2.0 * step, np.nan], np.float32), counts)
    return Seen(*numbers, (NORM, "update_ratio/layer0/bias"), ("gradient/layer0/kernel", "update/layer0/kernel"))


def show(sink, folder, steps):
    """A picture of each step."""
    for step in steps:
        sink.pictures(step, {"samples": picture(folder, step)})


def picture(folder, step):
    """A PNG of one pixel, where a run would draw it."""
    path = folder / "figures" / f"step{step:08d}" / "samples.png"
    if not path.exists():
        path.parent.mkdir(parents=True)
        imsave(path, np.full((1, 1, 3), step / 255))
    return path


def expected(steps):
    """{(name, step): value} of `send`."""
    points = {("train/loss", s): 1 / s for s in steps} | {("train/recall@5", s): 0.5 for s in steps}
    even = [s for s in steps if s % 2 == 0]
    return points | {(NORM, s): 2.0 * s for s in even} | {("validation/loss", s): 2 / s for s in even}


def finish(sink):
    """As a run that is done does."""
    sink.hyperparameters(CONFIG, {"best/loss": 0.5, "best/step": 8})
    sink.close()


# -- Weights & Biases -----------------------------------------------------------------------------


def test_wandb_sends_each_number_once(tmp_path, wandb):
    """A run killed at step 7, resumed at 4, stopped at 8 and resumed there: one W&B run, every step once."""
    send(WandB("digits", tmp_path, CONFIG), range(1, 8))  # and no close: a kill
    sink = WandB("digits", tmp_path, CONFIG, 4)
    send(sink, range(5, 9))
    sink.close()
    longer = CONFIG | {"train": {"steps": 20, "seed": 0}}
    sink = WandB("digits", tmp_path, longer, 8)
    send(sink, range(9, 13))
    finish(sink)
    asked = {"project": "digits", "dir": str(tmp_path), "name": tmp_path.name}
    assert wandb.calls[0] == asked | {"id": None, "resume": None}
    assert [(call["id"], call["resume"]) for call in wandb.calls[1:]] == [("run1", "allow")] * 2
    rows = wandb.server["run1"]
    found = {(name, step): v for step, row in rows.items() for name, v in row.items()}
    histograms = {("gradient/layer0/kernel", step): [[step, 1], EDGES[70:73].tolist()] for step in range(2, 13, 2)}
    assert found == expected(range(1, 13)) | histograms
    assert not any(run.refused for run in wandb.runs)
    last = wandb.runs[-1]
    assert last.summary == {"best/loss": 0.5, "best/step": 8.0}
    assert last.config_seen == {"train.steps": 20, "train.seed": 0, "model.kind": "mlp", "model.hidden": [16]}
    assert last.finished
    assert [p.name for p in (tmp_path / "wandb").iterdir()] == ["run.json"]


def test_wandb_offline_sends_from_the_checkpoint(tmp_path, wandb):
    """Offline a run says that it stands at step 0: what came after the checkpoint is sent, for it may be lost."""
    send(WandB("digits", tmp_path, CONFIG), range(1, 8))
    wandb.server.clear()
    sink = WandB("digits", tmp_path, CONFIG, 4)
    send(sink, range(5, 8))
    assert sorted(wandb.server["run1"]) == [5, 6, 7]


# -- MLflow ---------------------------------------------------------------------------------------


def test_mlflow_sends_each_number_once(tmp_path, mlflow):
    """The same; MLflow keeps every point that it is given, so a repeated one would stand there twice."""
    many = CONFIG | {"more": {f"key{i}": "x" * 7000 for i in range(230)}}
    send(MLflow("digits", tmp_path, many), range(1, 8))
    sink = MLflow("digits", tmp_path, many, 4)
    send(sink, range(5, 9))
    sink.close()
    assert mlflow.runs["run0"].status == "KILLED"  # stopped: it may go on
    sink = MLflow("digits", tmp_path, many | {"train": {"steps": 20}}, 8)
    assert mlflow.runs["run0"].status == "RUNNING"
    send(sink, range(9, 13))
    points = mlflow.runs["run0"].points
    legal = {(name.replace("@", "_"), step): value for (name, step), value in expected(range(1, 13)).items()}
    assert len(points) == len(legal)
    assert {(name, step): value for name, step, value in points} == legal
    finish(sink)
    (run,) = mlflow.runs.values()
    assert set(run.points[-2:]) == {("best/loss", 12, 0.5), ("best/step", 12, 8.0)}
    assert (run.experiment, run.name, run.status) == ("experiment digits", tmp_path.name, "FINISHED")
    assert len(run.params) == 234
    assert run.params["train.steps"] == "12"
    MLflow("digits", tmp_path / "other", CONFIG)
    assert len(mlflow.runs) == 2
    assert len(mlflow.experiments) == 1


def test_a_step_half_sent_is_completed(tmp_path, mlflow):
    """Killed between the training and the validation metrics of one step: what is missing is sent."""
    sink = MLflow("digits", tmp_path, CONFIG)
    send(sink, range(1, 4))
    sink.scalars(4, "train", {"loss": 0.25, "recall@5": 0.5})
    send(MLflow("digits", tmp_path, CONFIG, 2), range(3, 5))
    points = [(name, step) for name, step, _ in mlflow.runs["run0"].points]
    assert len(set(points)) == len(points) == len(expected(range(1, 5)))


# -- both -----------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(("kind", "name"), [(WandB, "wandb"), (MLflow, "mlflow")])


@BOTH
def test_pictures_are_sent_once(kind, name, tmp_path, request):
    """A run killed after step 6, resumed at 4, done at 8 and resumed there: each picture once, with its step."""
    fake = request.getfixturevalue(name)
    show(kind("digits", tmp_path, CONFIG), tmp_path, [2, 4, 6])  # and no close: a kill
    sink = kind("digits", tmp_path, CONFIG, 4)
    show(sink, tmp_path, [6])
    sink.scalars(8, "validation", {"loss": 0.25})  # of the same step as a picture
    show(sink, tmp_path, [8])
    finish(sink)
    show(kind("digits", tmp_path, CONFIG, 8), tmp_path, [8])
    if name == "wandb":
        assert fake.images == [picture(tmp_path, step) for step in (2, 4, 6, 8)]
        shown = {step: row["samples"] for step, row in fake.server["run1"].items()}
        assert shown == {step: picture(tmp_path, step).read_bytes() for step in (2, 4, 6, 8)}
        assert not any(run.refused for run in fake.runs)
    else:
        shown = fake.runs["run0"].artifacts
        assert shown == [(f"figures/samples/step{step:08d}", "samples.png") for step in (2, 4, 6, 8)]


@BOTH
def test_a_picture_that_fails_is_one_line(kind, name, tmp_path, request, monkeypatch, capsys):
    """One warning and no more calls; the next process sends what did not arrive."""
    fake = request.getfixturevalue(name)
    sink = kind("digits", tmp_path, CONFIG)
    calls = []

    def full(*args):
        calls.append(args)
        raise OSError("no space left\nand a long story")

    with monkeypatch.context() as patch:
        patch.setattr(*((fake, "Image") if name == "wandb" else (FakeMlflowClient, "log_artifact")), full)
        show(sink, tmp_path, [2, 4])
        send(sink, [5])
        finish(sink)
    assert len(calls) == 1
    assert capsys.readouterr().err == (
        f"functrain: warning: observe.{name}: OSError: no space left; training goes on without it\n"
    )
    show(kind("digits", tmp_path, CONFIG, 0), tmp_path, [2])
    assert fake.images == [picture(tmp_path, 2)] if name == "wandb" else len(fake.runs["run0"].artifacts) == 1


@BOTH
def test_a_failure_is_one_line(kind, name, tmp_path, request, monkeypatch, capsys):
    """A server that goes away in the middle: one warning, and no more calls; the next process goes on there."""
    fake = request.getfixturevalue(name)
    sink = kind("digits", tmp_path, CONFIG)
    send(sink, range(1, 5))
    calls = []

    def gone(*args, **kwargs):
        calls.append(args)
        raise ConnectionError("no route to host\nand a long story")

    with monkeypatch.context() as patch:
        for owner in (FakeWandbRun, FakeMlflowClient):
            for method in ("log", "log_batch", "finish", "set_terminated"):
                if hasattr(owner, method):
                    patch.setattr(owner, method, gone)
        send(sink, range(5, 9))
        finish(sink)
    assert len(calls) == 1
    assert capsys.readouterr().err == (
        f"functrain: warning: observe.{name}: ConnectionError: no route to host; training goes on without it\n"
    )
    send(kind("digits", tmp_path, CONFIG, 4), range(5, 7))
    steps = fake.server["run1"] if name == "wandb" else {step for _, step, _ in fake.runs["run0"].points}
    assert set(steps) == set(range(1, 7))


@BOTH
def test_a_failure_at_the_start_is_one_line(kind, name, tmp_path, request, monkeypatch, capsys):
    """No server, no key: training goes on; run.json of an earlier process is left as it was."""
    fake = request.getfixturevalue(name)
    kind("digits", tmp_path, CONFIG)
    record = (tmp_path / name / "run.json").read_text()

    def refused(*args, **kwargs):
        raise RuntimeError("x" * 5000)

    monkeypatch.setattr(fake, "init" if name == "wandb" else "MlflowClient", refused)
    sink = kind("digits", tmp_path, CONFIG, 4)
    send(sink, range(5, 9))
    finish(sink)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert len(errors) < 400
    assert (tmp_path / name / "run.json").read_text() == record


@BOTH
@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"id": 3, "of": "digits"}', '{"id": "a", "of": "other", "sent": {}}']
)
def test_a_damaged_record_begins_anew(kind, name, damage, tmp_path, request):
    """So does one of another project, and a new run in place of an old."""
    request.getfixturevalue(name)
    sink = kind("digits", tmp_path, CONFIG)
    send(sink, range(1, 3))
    file = tmp_path / name / "run.json"
    first = json.loads(file.read_text())
    file.write_text(damage)
    kind("digits", tmp_path, CONFIG, 2)
    again = json.loads(file.read_text())
    assert again["id"] != first["id"]
    assert again["of"] == "digits"
    kind("digits", tmp_path, CONFIG)
    assert json.loads(file.read_text())["id"] not in (first["id"], again["id"])


@BOTH
def test_a_missing_library_names_the_extra(kind, name, tmp_path, monkeypatch):
    """One line with the command that installs it; and a library that is broken inside says so itself."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"^observe.{name}: not installed here; pip install 'functrain\[{name}\]'$"):
        kind("digits", tmp_path, CONFIG)
    assert not (tmp_path / name).exists()
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / f"{name}.py").write_text("import no_such_dependency_of_it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency_of_it"):
        library(name)


def test_both_are_off_by_default():
    """Nothing leaves the machine that was not asked for."""
    assert (Observe().wandb, Observe().mlflow) == ("", "")


# -- the real libraries, where they are installed -------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_real_wandb(tmp_path, monkeypatch):
    """Offline: a run and one that resumes it, each a folder, of one id."""
    pytest.importorskip("wandb", reason="needs wandb: the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    send(first := WandB("digits", tmp_path, CONFIG), range(1, 5))
    first.close()
    time.sleep(1.1)  # W&B names its folders by the second, and mixes up two of one id
    send(second := WandB("digits", tmp_path, CONFIG, 4), range(5, 9))
    show(second, tmp_path, [8])
    finish(second)
    id = json.loads((tmp_path / "wandb" / "run.json").read_text())["id"]
    files = sorted(Path(tmp_path).glob("wandb/offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{id}.wandb"] * 2
    assert all(b"validation/loss" in file.read_bytes() for file in files)
    assert b"best/loss" in files[-1].read_bytes()
    (shown,) = Path(tmp_path).glob("wandb/offline-run-*/files/media/images/samples_8_*.png")
    assert shown.read_bytes() == picture(tmp_path, 8).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_the_real_mlflow(tmp_path, monkeypatch):
    """A file store: every point of a killed and resumed run is there once."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    send(MLflow("digits", tmp_path, CONFIG), range(1, 8))
    sink = MLflow("digits", tmp_path, CONFIG, 4)
    sink.scalars(5, "train", {"loss": 7.0})
    sink.scalars(8, "train", {"loss": math.nan})
    show(sink, tmp_path, [8])
    finish(sink)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    (shown,) = client.list_artifacts(run.info.run_id, "figures/samples/step00000008")
    assert shown.path == "figures/samples/step00000008/samples.png"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history[:7]] == [(s, 1 / s) for s in range(1, 8)]
    assert history[7].step == 8
    assert len(history) == 8
    assert run.data.metrics["best/loss"] == 0.5
    assert run.data.params["model.hidden"] == "[16]"
    assert run.info.status == "FINISHED"
