"""The root config: a training run, as TOML sections."""

import dataclasses

from functrain import transfer
from functrain.augment import AnyAugment
from functrain.autodiff import AnyEstimator, Reverse
from functrain.config import configclass
from functrain.data import AnyData
from functrain.models import AnyModel, HuggingFace, LoRA
from functrain.observe import Observe
from functrain.optim import AdamW, AnyAverage, AnyOptimizer, NoAverage
from functrain.precision import AnyPrecision, Float32
from functrain.tasks import AnyTask
from functrain.train.checkpoint import Checkpoint
from functrain.train.evaluate import Evaluate
from functrain.train.loop import Train

# pyright: reportInvalidTypeForm=false
# The unions of kinds are built from tables by a function, which a static checker cannot follow.


@configclass
class PlayerConfig:
    """[players.NAME]: what one player of a task has differently."""

    optimizer: AnyOptimizer | None = None
    """Its own optimizer, in place of [optimizer]."""
    precision: AnyPrecision | None = None
    """Its own precision, in place of [precision]."""
    estimator: AnyEstimator | None = None
    """Its own way to a gradient, in place of [estimator]."""
    average: AnyAverage | None = None
    """Its own average, in place of [average]."""


@configclass
class Experiment:
    """A training run, whole: the same config gives the same run."""

    task: AnyTask
    """What is learned."""
    model: AnyModel | None = None
    """What learns it; a task that owns its models needs none."""
    data: AnyData | None = None
    """The examples; a task that makes its own (an environment) needs none."""
    augment: tuple[AnyAugment, ...] = ()
    """What is changed at random in the examples that are trained on, one after another, at each step otherwise."""
    optimizer: AnyOptimizer = dataclasses.field(default_factory=AdamW)
    """How every player's parameters are improved."""
    precision: AnyPrecision = dataclasses.field(default_factory=Float32)
    """In which dtype is computed."""
    estimator: AnyEstimator = dataclasses.field(default_factory=Reverse)
    """How gradients are had."""
    average: AnyAverage = dataclasses.field(default_factory=NoAverage)
    """Which average of the parameters evaluation uses."""
    players: dict[str, PlayerConfig] = dataclasses.field(default_factory=dict)
    """What single players have differently, by name."""
    lora: LoRA | None = None
    """Trains an addition of low rank to some kernels in place of the parameters; absent, all of them."""
    start: transfer.Start | None = None
    """From which weights it starts, another run's or a file's; absent, all of them are drawn from the seed."""
    train: Train = dataclasses.field(default_factory=Train)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    observe: Observe = dataclasses.field(default_factory=Observe)

    def __post_init__(self):
        start, folder = self.start, isinstance(self.model, HuggingFace)  # the folder's own weights are meant
        if start is not None and start.run is None and start.file is None and not folder:
            raise ValueError("start: give run or file, one of them")


MAY_CHANGE = ("train.steps", "train.log_every", "evaluate.patience", "checkpoint.", "observe.")
MAY_CHANGE += ("data.workers", "data.processes")
"""Keys (or beginnings of keys) that a resumed run may change; the first ones say how long and how it is seen."""
