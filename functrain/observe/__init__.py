"""Seeing a run: console, JSON lines, TensorBoard, W&B, MLflow; layers; figures; FLOPs. Each is imported by name."""

from functrain.config import Count, configclass


@configclass
class Observe:
    """[observe]: what is recorded beside metrics.jsonl."""

    tensorboard: bool = True
    """Whether tensorboard/ is written."""
    wandb: str = ""
    """The project of Weights & Biases to which metrics go; empty is none."""
    mlflow: str = ""
    """The experiment of MLflow to which metrics go; empty is none."""
    figures: bool = True
    """Whether figures/ is drawn at the end."""
    draw_every: Count = 0
    """Steps between pictures of what the model makes of examples, where its task has some; 0 is at the end alone."""
    norms_every: Count = 0
    """Steps between looks at gradients, updates and parameters by layer (layers.jsonl), a few steps' time each; 0 is a
    20th of the run, and none in one of fewer than 20 steps."""
