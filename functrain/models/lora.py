"""Low-rank adaptation (Hu et al. 2022): chosen kernels learn an addition of low rank, all else stays as it is."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functrain import tree
from functrain.config import ConfigError, NonNegative, Size, Text, configclass


@configclass
class LoRA:
    """[lora]: which kernels learn an addition of low rank, in place of training the model's parameters."""

    targets: tuple[Text, ...]
    """Patterns of what is adapted; searched in paths such as block0/attention/qkv/kernel."""
    rank: Size = 8
    """Columns of A and rows of B."""
    alpha: NonNegative = 16.0
    """A B is multiplied by alpha / rank."""
    also: tuple[Text, ...] = ()
    """Patterns of parameters that are trained whole, such as a new head."""

    def adapt(self, model: Any) -> "Adapted":
        """The model, adapted.

        Raises:
          ConfigError: a pattern matches nothing, or what cannot be adapted.
        """
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        try:
            chosen, whole = (tree.by_path(tree.select(these, params)) for these in (self.targets, self.also))
        except ValueError as error:
            raise ConfigError(f"lora: {error}") from None
        for path, leaf in tree.by_path(params).items():
            if chosen[path] and whole[path]:
                raise ConfigError(f"lora.also: {path} is one of lora.targets too")
            if chosen[path] and (len(leaf.shape) < 2 or not tree.is_float(leaf)):
                raise ConfigError(f"lora.targets: {path} {list(leaf.shape)} is no matrix; leave it to lora.also")
        return Adapted(
            model,
            tuple(path for path, found in chosen.items() if found),
            tuple(path for path, found in whole.items() if found),
            self.rank,
            self.alpha,
        )


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model of which W + (alpha / rank) A B stands for each adapted kernel W (Hu et al. 2022, eq. 3).

    Its parameters are `{"lora": {path: {"a", "b"}}, "lora_whole": {path: array}}`, its state `{"lora_base": the
    parameters that stay, "lora_model": the model's own state}`. A kernel of more than two axes is the matrix [all but
    the last, last]. A is uniform in +-1/sqrt(rows), B zero: it begins as the model itself. The sum is made once a step,
    and no input multiplied twice, so every model can be adapted, whatever it does with its kernels.

    >>> from functrain.models.mlp import MLP
    >>> model = LoRA(targets=("layer0/kernel",), rank=2).adapt(MLP(inputs=(5,), outputs=3, hidden=(4,)))
    >>> params, state = model.init(jax.random.key(0))
    >>> jax.tree.map(jnp.shape, params)
    {'lora': {'layer0/kernel': {'a': (5, 2), 'b': (2, 4)}}, 'lora_whole': {}}
    >>> model.apply(params, state, jnp.ones((1, 5)))[0].shape
    (1, 3)
    """

    model: Any
    targets: tuple[str, ...]
    also: tuple[str, ...]
    rank: int
    alpha: Any

    constant = ("lora_base",)
    """Parts of the state that never change: a run keeps them once, not with each checkpoint."""

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and state; the base is the model's own draw."""
        base_key, key = jax.random.split(key)
        base, state = self.model.init(base_key)
        leaves, pairs = tree.by_path(base), {}
        for path, k in zip(self.targets, jax.random.split(key, len(self.targets))):
            shape, dtype = leaves[path].shape, leaves[path].dtype
            rows, bound = math.prod(shape[:-1]), math.prod(shape[:-1]) ** -0.5
            a = jax.random.uniform(k, (rows, self.rank), dtype, -bound, bound)
            pairs[path] = {"a": a, "b": jnp.zeros((self.rank, shape[-1]), dtype)}
        kept = tree.map_by_path(lambda path, x: jnp.zeros((0,), x.dtype) if path in self.also else x, base)
        whole = {path: leaves[path] for path in self.also}
        return {"lora": pairs, "lora_whole": whole}, {"lora_base": kept, "lora_model": state}

    def apply(self, params, state, *inputs, **given):
        """What the model gives with `merged` parameters; its own state goes on."""
        outputs, new = self.model.apply(self.merged(params, state), state["lora_model"], *inputs, **given)
        return outputs, state | {"lora_model": new}

    def merged(self, params, state) -> Any:
        """The parameters of the model itself: what it can be used with from then on."""
        dtype = jax.tree.leaves(params)[0].dtype  # that in which is computed

        def merge(path, w):
            if path in params["lora_whole"]:
                return params["lora_whole"][path]
            if path not in params["lora"]:
                return w.astype(dtype) if tree.is_float(w) else w
            pair = params["lora"][path]
            with jax.named_scope("lora"), jax.named_scope(path):
                more = (self.alpha / self.rank) * (pair["a"] @ pair["b"]).reshape(w.shape)
                return w.astype(dtype) + more.astype(dtype)

        return tree.map_by_path(merge, state["lora_base"])


def to_peft(model: Adapted, params: Any, names: Mapping[str, str], as_is: str) -> tuple[str, dict[str, np.ndarray]]:
    """(the text of adapter_config.json, the arrays of adapter_model.safetensors) of the library peft.

    names, as_is: of the model in Hugging Face's transformers (see functrain.models.hub).

    Raises:
      ConfigError: a parameter trained whole, which peft has another way for.
    """
    if model.also:
        raise ConfigError(f"--layout: peft: lora.also trained {model.also[0]} whole; expected matrices A and B alone")
    arrays, modules = {}, []
    for path, pair in params["lora"].items():
        module = names[f"params/{path}"].removesuffix(".weight")
        modules.append(module)
        arrays[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(pair["a"].T)
        arrays[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(pair["b"].T)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": model.rank,
        "lora_alpha": float(model.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(bool(as_is) and re.search(as_is, f"params/{path}") for path in model.targets),
        "target_modules": modules,
        "inference_mode": True,
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n", arrays


def plain(model: Any, params: Any, state: Any) -> tuple[Any, Any, Any]:
    """(model, params, state), of an adapted model those of the model itself, merged."""
    if not isinstance(model, Adapted):
        return model, params, state
    return model.model, model.merged(params, state), state["lora_model"]
