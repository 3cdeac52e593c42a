"""A user's own task, named in the config."""

import dataclasses
from typing import Any, Literal

from functrain import custom
from functrain.config import ConfigError, Text, configclass


@configclass
class CustomTask:
    """Your own task: `target` is called with `args` and returns a task (see functrain.tasks.base)."""

    kind: Literal["custom"] = "custom"
    target: Text
    """What to call, as "package.module:name"; looked for in the working directory too."""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments, checked against the signature. `model` and `learner` (name -> Learner) are passed if named."""

    def outputs(self, dataset) -> int | None:
        """The classes or the width of the targets, where the data has either."""
        if dataset is None or "y" not in dataset.train:
            return None
        return dataset.classes or int(dataset.train["y"][0].size)

    def assemble(self, model: Any, learner: Any) -> Any:
        """What `target` returns."""
        task = custom.call("task", self.target, self.args, {"model": model, "learner": learner})
        lacking = [name for name in ("init", "update", "evaluate", "learners") if not hasattr(task, name)]
        if lacking:
            raise ConfigError(f"task.target: {self.target} returned no task: it lacks {', '.join(lacking)}")
        if not dataclasses.is_dataclass(task):
            raise ConfigError(f"task.target: {self.target} returned {type(task).__name__}, which is no dataclass")
        return task
