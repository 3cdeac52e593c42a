"""Parameters in torch's layout, under the names of a torch twin: one rule for every model.

A kernel of four axes [height, width, in, out] is torch's [out, in, height, width]; a kernel of two axes [in, out] is
torch's [out, in]; all else is as it is. `names` maps our paths, with "params/" or "state/" before them, to the names of
torch's state dict: `{"params/conv1/kernel": "conv1.weight", "state/norm1/mean": "bn1.running_mean"}`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from functrain import tree

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""What torch calls the arrays of a linear layer, a convolution and a norm."""


def names_of(params: Any, state: Any, module: Callable[[str], str]) -> dict[str, str]:
    """Names for a model of linear layers, convolutions and norms alone; `module` maps our path of a layer to torch's.

    >>> names_of({"linear0": {"bias": 0.0, "kernel": 0.0}}, {}, {"linear0": "fc"}.__getitem__)
    {'params/linear0/bias': 'fc.bias', 'params/linear0/kernel': 'fc.weight'}
    """
    names = {}
    for path in tree.by_path({"params": params, "state": state}):
        layer, leaf = path.split("/", 1)[1].rsplit("/", 1)
        names[path] = f"{module(layer)}.{_LEAVES[leaf]}"
    return names


def to_torch(names: Mapping[str, str], params: Any, state: Any, as_is: str = "") -> dict[str, np.ndarray]:
    """The arrays of a model by their names in torch, in torch's layout, each contiguous and in its own dtype.

    as_is: a pattern of the paths of kernels that lie there as here (as most of GPT-2's do); "" is none.

    Raises:
      ValueError: `names` are not those of the model's arrays.

    >>> kernel = np.array([[1.0], [2.0]])
    >>> to_torch({"params/linear0/kernel": "fc.weight"}, {"linear0": {"kernel": kernel}}, {})
    {'fc.weight': array([[1., 2.]])}
    """
    leaves = _leaves(names, params, state)
    return {names[path]: _turned(np.asarray(leaf), _to_torch(path, leaf, as_is)) for path, leaf in leaves.items()}


def from_torch(
    names: Mapping[str, str], tensors: Mapping[str, Any], params: Any, state: Any, as_is: str = ""
) -> tuple[Any, Any]:
    """(params, state) as NumPy arrays, from torch's tensors by name: what `to_torch` gives, turned back.

    Args:
      tensors: arrays, or tensors that NumPy reads, by name. Each `*.num_batches_tracked` is passed over: torch counts
        there the batches that a batch norm has seen, which no model here needs.
      params, state: arrays or `jax.ShapeDtypeStruct`: the structure, shapes and dtypes that are wanted.
      as_is: as in `to_torch`.

    Raises:
      ValueError: a tensor is missing, one is left over, or one has another shape; the message names the first of them.
        Or `names` are not those of the model's arrays.

    >>> from_torch({"params/linear0/kernel": "fc.weight"}, {"fc.weight": np.ones((1, 2))},
    ...            {"linear0": {"kernel": np.zeros((2, 1))}}, {})
    ({'linear0': {'kernel': array([[1.], [1.]])}}, {})
    """
    leaves, wanted = _leaves(names, params, state), set(names.values())
    for path in leaves:
        if names[path] not in tensors:
            raise ValueError(f"{names[path]}: no such tensor; {path} is to be read from it")
    for name in tensors:
        if name not in wanted and name.split(".")[-1] != "num_batches_tracked":
            raise ValueError(f"{name}: the model has no place for this tensor")
    for path, leaf in leaves.items():
        found, expected = tuple(tensors[names[path]].shape), tuple(leaf.shape[i] for i in _to_torch(path, leaf, as_is))
        if found != expected:
            raise ValueError(f"{names[path]}: found shape {list(found)}; {path} needs {list(expected)}")

    def read(path, leaf):
        axes = _to_torch(path, leaf, as_is)
        back = tuple(axes.index(i) for i in range(len(axes)))
        return _turned(np.asarray(tensors[names[path]]), back).astype(leaf.dtype)

    both = tree.map_by_path(read, {"params": params, "state": state})
    return both["params"], both["state"]


def _leaves(names, params, state):
    """Every array by its path, all of them named and nothing else."""
    leaves = tree.by_path({"params": params, "state": state})
    for path in [*leaves, *names]:
        if path not in names or path not in leaves:
            raise ValueError(
                f"{path}: " + ("has no name in torch" if path in leaves else "the model has no such array")
            )
    return leaves


def _to_torch(path, leaf, as_is) -> tuple[int, ...]:
    """Which of our axes stands at each place of torch's."""
    n = len(leaf.shape)
    kernel = path.rsplit("/", 1)[-1] == "kernel" and not (as_is and re.search(as_is, path))
    return {4: (3, 2, 0, 1), 2: (1, 0)}[n] if kernel and n in (2, 4) else tuple(range(n))


def _turned(array, axes):
    # A scalar stays one: ascontiguousarray would give it an axis.
    return np.array(array.transpose(axes), order="C")
