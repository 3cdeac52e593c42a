"""Models from Hugging Face's hub: a folder with config.json, model.safetensors and, for a text, tokenizer.json.

`kind = "huggingface"` stands for the model that the folder's config.json describes, with its weights to start from; a
run's own config names that model and no folder.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from functrain.config import ConfigError, Fraction, Text, configclass
from functrain.models import bert, gpt, llama

FAMILIES = {"gpt2": gpt, "llama": llama, "bert": bert}
"""model_type of config.json -> the module of ours."""

_RATES = ("dropout", "attention_dropout")  # a model has the first, or both


@configclass
class HuggingFace:
    """A model from a folder of the Hugging Face hub (GPT-2, Llama, BERT), its weights and all."""

    kind: Literal["huggingface"] = "huggingface"
    folder: Text
    """Where config.json and model.safetensors are."""
    head: Literal["", "masked", "classes", "span", "tags"] = ""
    """What stands on a BERT; "" is what the config.json says. A head that the weights lack: start.fresh = ["^head"]."""
    dropout: Fraction | None = None
    """In place of every rate of dropout that the config.json says."""

    def found(self) -> Any:
        """The config of the model.

        Raises:
          ConfigError: there is no config.json, or it is of no model that functrain has.
        """
        text, config = read_config(self.folder)
        model = described(config, f"model.folder: {Path(self.folder) / 'config.json'}")
        changes: dict[str, Any] = {"huggingface": text}
        if self.dropout is not None:
            changes |= {rate: self.dropout for rate in _RATES if hasattr(model, rate)}
        if self.head:
            if not hasattr(model, "head"):
                raise ConfigError(f"model.head: found {self.head!r}; model_type {config['model_type']!r} has one alone")
            changes["head"] = self.head
        return dataclasses.replace(model, **changes)


def read_config(folder: str | Path) -> tuple[str, dict[str, Any]]:
    """The text of a folder's config.json, and what it says.

    Raises:
      ConfigError: there is none, or it is no JSON object.
    """
    path = Path(folder) / "config.json"
    try:
        text = path.read_text("utf-8")
        config = json.loads(text)
    except OSError as error:
        raise ConfigError(f"model.folder: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"model.folder: {path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"model.folder: {path}: not a JSON object")
    return text, config


def described(config: dict[str, Any], where: str = "config.json") -> Any:
    """The config of our model that a config.json describes.

    Raises:
      ConfigError: it is of another family, lacks a key, or has one that functrain's model does not do.

    >>> sizes = {"n_positions": 7, "n_embd": 6, "n_layer": 1, "n_head": 2}
    >>> described({"model_type": "gpt2", "vocab_size": 9, **sizes}).kind
    'gpt'
    """
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ConfigError(f"{where}: model_type: found {config.get('model_type')!r}; legal: {', '.join(FAMILIES)}")
    try:
        return family.from_huggingface(config)
    except KeyError as error:
        raise ConfigError(f"{where}: {error.args[0]}: missing") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def config_text(model: Any) -> str:
    """The config.json of a model of ours: the one it came with where that still says what it is.

    Raises:
      ConfigError: Hugging Face's model of that family cannot be like this one.
    """
    given = json.loads(model.huggingface) if model.huggingface else {}
    ends = {"inputs": (), "outputs": 0, "huggingface": ""} | {rate: 0.0 for rate in _RATES if hasattr(model, rate)}
    same = given and dataclasses.replace(described(given), **ends) == dataclasses.replace(model, **ends)
    labelled = getattr(model, "head", "") in ("classes", "tags")
    if same and not (labelled and model.outputs != len(given.get("id2label", (0, 1)))):
        return model.huggingface
    ours = model.to_huggingface()
    for old in ("rope_scaling", "rope_theta"):  # said in one key, from transformers 5 on
        given.pop(old, None)
    return json.dumps(given | ours, indent=2, sort_keys=True) + "\n"


def dtype(text: str) -> Any:
    """The dtype of the weights that a config.json speaks of; float32 where it says none.

    >>> dtype('{"torch_dtype": "bfloat16"}')
    dtype(bfloat16)
    """
    config = json.loads(text)
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise ConfigError(f"config.json: dtype: found {name!r}; expected a float")
    return jnp.dtype(name)


def canonical(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Name as the model's class has it -> name in the file, of the names that are weights.

    Files have them without the name of the class's part where they were saved from the bare model ("wte.weight"), with
    norms called gamma and beta where they came from TensorFlow, and with masks and angles that are no weights.

    >>> canonical(["wte.weight", "h.0.attn.bias", "ln_f.gamma"], ["transformer.wte.weight", "transformer.ln_f.weight"])
    {'transformer.wte.weight': 'wte.weight', 'transformer.ln_f.weight': 'ln_f.gamma'}
    """
    wanted, found = set(wanted), {}
    prefixes = {name.partition(".")[0] + "." for name in wanted}
    for name in names:
        if name.endswith(_NO_WEIGHTS):
            continue
        new = name
        for old, now in ((".gamma", ".weight"), (".beta", ".bias")):
            new = new.removesuffix(old) + now if new.endswith(old) else new
        if new not in wanted:
            new = next((p + new for p in prefixes if p + new in wanted), new)
        found[new] = name
    return found


_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq", "embeddings.position_ids")


def shards(folder: str | Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names.

    Raises:
      ConfigError: there are none, or one that the index names is missing.
    """
    one, index = Path(folder) / "model.safetensors", Path(folder) / "model.safetensors.index.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        raise ConfigError(f"start.file: {folder}: no model.safetensors is there (a pickle, *.bin, is not read)")
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"start.file: {index}: no index of weights: {error}") from None
    files = [Path(folder) / name for name in names]
    for file in files:
        if not file.is_file() or file.parent != Path(folder):
            raise ConfigError(f"start.file: {index}: names {file.name}, which is not there")
    return files
