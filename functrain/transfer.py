"""Transfer: a run starts from the weights of another run or of a safetensors file; a trained model becomes such a file.

    of_run(start, settings, task)   -> Weights   what a run's evaluation uses
    of_file(start)                  -> Weights   what a safetensors file holds
    match(start, weights, task)     -> Loaded    which of them goes where, and what is drawn anew
    export(model, path)                          a trained model as a safetensors file

In a file of functrain's layout names are paths, "params/conv0/kernel" or "state/norm0/mean"; where a model has a twin
in torchvision or in Hugging Face's transformers, a file may have that one's names and layout instead; of the latter it
may be a folder. What is read are arrays, never code.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from functrain import config as configs
from functrain import tree
from functrain.config import ConfigError, Count, Text, configclass
from functrain.models import huggingface, lora, torch_layout
from functrain.train import state
from functrain.train.checkpoint import Arrays, Directory, from_arrays
from functrain.version import __version__

Layout = Literal["functrain", "torchvision", "huggingface", "adapter", "peft"]


@configclass
class Start:
    """[start]: the weights from which a run starts, in place of drawing all of them."""

    run: Text | None = None
    """A run directory; taken are the weights that its evaluation uses."""
    step: Count | None = None
    """A checkpoint's step of that run; left out, it is the best by validation, else the newest."""
    member: Count = 0
    """Which member of that run, where it has several seeds."""
    file: Text | None = None
    """A safetensors file, or a folder of Hugging Face, in place of a run; its names are functrain's or a twin's."""
    fresh: tuple[Text, ...] = ()
    """Patterns of what is drawn anew, such as another head; searched in paths such as layer0/kernel."""
    rename: tuple[tuple[Text, str], ...] = ()
    """Pairs [pattern, replacement], applied one after another to the paths of what is read, before they are matched."""
    state: bool = True
    """Whether what is no parameter (batch statistics) is read too; else it starts as it would without [start]."""

    def __post_init__(self):
        if self.run is not None and self.file is not None:
            raise ValueError("give run or file, one of them")
        if self.run is None and (self.step is not None or self.member):
            raise ValueError("step and member are of a run, not of a file")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays to start from.

    name: what messages call them. origin: what a record says of them. names: of all the arrays.
    read: name -> array, in the layout of its source.
    """

    name: str
    origin: dict[str, Any]
    names: list[str]
    read: Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a run starts from, and what became of each array.

    name, origin: of the weights.
    arrays: path -> array, in place of what `train.state.init` draws.
    fresh: path -> (how many numbers, why they are drawn anew).
    unused: names in the source that found no place.
    renamed: name in the source -> path, where [start] rename changed it.
    """

    name: str
    origin: dict[str, Any]
    arrays: Arrays
    fresh: dict[str, tuple[int, str]]
    unused: list[str]
    renamed: dict[str, str]

    def record(self) -> dict[str, Any]:
        """Plain data, for start.json."""
        numbers = sum(array.size for array in self.arrays.values())
        return self.origin | {
            "loaded": {"arrays": len(self.arrays), "numbers": numbers, "paths": [_public(p) for p in self.arrays]},
            "fresh": {path: why for path, (_, why) in self.fresh.items()},
            "unused": self.unused,
            "renamed": self.renamed,
        }


def start_table(loaded: Loaded) -> Table:
    """What was loaded, renamed, drawn anew and not used, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"start from {loaded.name}")
    table.add_column("arrays", justify="right")
    table.add_column("numbers", justify="right")
    table.add_column("", overflow="fold")
    record = loaded.record()
    table.add_row("loaded", f"{len(loaded.arrays):,}", f"{record['loaded']['numbers']:,}", "")
    if loaded.renamed:
        pairs = [f"{old} to {_short(new)}" for old, new in loaded.renamed.items()]
        table.add_row("renamed", f"{len(pairs):,}", "", _some(pairs))
    for why in dict.fromkeys(why for _, why in loaded.fresh.values()):
        sizes = {path: size for path, (size, reason) in loaded.fresh.items() if reason == why}
        names = _some([_short(path) for path in sizes])
        table.add_row("drawn anew", f"{len(sizes):,}", f"{sum(sizes.values()):,}", f"{names} (by {why})")
    if loaded.unused:
        names = _some(name.removeprefix("params/") for name in loaded.unused)
        table.add_row("not used", f"{len(loaded.unused):,}", "", names)
    return table


# -- where weights come from ----------------------------------------------------------------------


def weights(task: Any, train_state: Any) -> dict[str, Any]:
    """{"params", "state"}: what evaluation uses; the parameters by player; of an adapted model, merged."""
    params = {
        name: player.params if (learner := task.learners[name]) is None else learner.weights(player)
        for name, player in train_state.players.items()
    }
    if set(params) == {"model"}:
        model = getattr(task, "model", None)
        _, params["model"], state = lora.plain(model, params["model"], train_state.state)
        return {"params": params, "state": _without(state, task)}
    return {"params": params, "state": _without(train_state.state, task)}


def _without(state: Any, task: Any) -> Any:
    """The state without what belongs to other runs."""
    asked = getattr(task, "constant", ())
    return {name: part for name, part in state.items() if name not in asked} if asked else state


def config_of(run: str | Path) -> configs.Source:
    """The text of a run's config.

    Raises:
      ConfigError: no run is there.
    """
    file = Path(run) / "config.toml"
    if not file.is_file():
        raise ConfigError(f"{run}: no run is there (it has no config.toml)")
    return configs.read(file)


def members_of(
    run: Path, settings: Any, task: Any, step: int | None = None, asked: str = "--step"
) -> tuple[int, list[Any]]:
    """(step, the train state of each member) of a run: of the best step where validation chose one, else the newest.

    Args:
      run: its directory.
      settings, task: its config, and what that is put together to.
      step: another checkpoint's.
      asked: what a message calls that.

    Raises:
      ConfigError: no such step, no sound checkpoint, or one of another config.
    """
    monitor = settings.evaluate.monitor or "loss"
    store = Directory(run / "checkpoints", monitor=monitor, mode=settings.evaluate.mode)
    if step is not None and step not in store.steps():
        raise ConfigError(f"{asked}: found {step}; {run} has: {', '.join(map(str, store.steps())) or 'none'}")
    try:
        found = store.load(store.best() if step is None else step)
    except OSError as error:
        raise ConfigError(f"checkpoint {error}") from None
    if found is None:
        raise ConfigError(f"{run}: no sound checkpoint")
    at, arrays = found
    like = jax.eval_shape(lambda: state.init(task, jax.random.key(0)))
    try:
        return at, [from_arrays(_of_member(arrays, settings.train, i), like) for i in range(settings.train.seeds)]
    except ValueError as error:
        raise ConfigError(f"{run}: {error}") from None


def _of_member(arrays: Arrays, train: Any, member: int) -> Arrays:
    """The arrays of one member's train state in a checkpoint."""
    in_turn = train.seeds > 1 and train.members == "in_turn"
    prefix = f"state/{member}/" if in_turn else "state/"
    own = {path.removeprefix(prefix): a for path, a in arrays.items() if path.startswith(prefix)}
    return {path: a[member] for path, a in own.items()} if train.seeds > 1 and not in_turn else own


def of_run(start: Start, settings: Any, task: Any) -> Weights:
    """The weights of `start.run`.

    settings, task: that run's config, and what it is put together to.

    Raises:
      ConfigError: see `members_of`; or there is no such member.
    """
    assert start.run is not None
    try:
        step, members = members_of(Path(start.run), settings, task, start.step, "start.step")
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("start.") else f"start.run: {text}") from None
    if start.member >= len(members):
        raise ConfigError(f"start.member: found {start.member}; {start.run} has {len(members)}, counted from 0")
    arrays = _plain(weights(task, members[start.member]))
    several = f", member {start.member}" if len(members) > 1 else ""
    origin = {"run": start.run, "step": step, "member": start.member}
    return Weights(f"{start.run}, step {step}{several}", origin, list(arrays), arrays.__getitem__)


_PICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_READ = ("BF16", "BOOL", "F16", "F32", "F64", "I16", "I32", "I64", "I8", "U16", "U32", "U64", "U8")


def of_file(start: Start) -> Weights:
    """The arrays of `start.file`, each read when it is asked for.

    Raises:
      ConfigError: there is no such file, it is no safetensors file, or it is damaged.
    """
    assert start.file is not None
    path, where = Path(start.file), f"start.file: {start.file}"
    if path.suffix.lower() in _PICKLED:
        raise ConfigError(
            f"{where}: a pickle may hold code and is not read; where it came from, write a safetensors file: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    library, digest, opened = _library(where), hashlib.sha256(), {}
    for part in huggingface.shards(path) if path.is_dir() else [path]:
        try:
            with open(part, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            tensors = library.safe_open(part, framework="numpy")
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from None
        except library.SafetensorError as error:
            raise ConfigError(f"{where}: not a safetensors file, or damaged: {_line(error)}") from None
        opened |= dict.fromkeys(tensors.keys(), tensors)
    if not opened:
        raise ConfigError(f"{where}: holds no arrays")

    def read(name):
        dtype = opened[name].get_slice(name).get_dtype()
        if dtype not in _READ:
            raise ConfigError(f"{where}: {name}: its numbers are {dtype}; expected one of: {', '.join(_READ)}")
        return opened[name].get_tensor(name)

    return Weights(start.file, {"file": start.file, "sha256": digest.hexdigest()}, list(opened), read)


def _library(where: str) -> Any:
    """safetensors, with its functions for NumPy."""
    try:
        import safetensors.numpy  # late: an optional dependency
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "safetensors":
            raise
        raise ConfigError(f"{where}: safetensors is not installed here; pip install 'functrain[weights]'") from None
    return safetensors


# -- what goes where ------------------------------------------------------------------------------


def match(start: Start, weights: Weights, task: Any) -> Loaded:
    """Find an array for everything that the task would draw, but for what is wanted fresh.

    Arrays are turned to our layout and to the dtype of what they replace.

    Raises:
      ConfigError: something finds no array, or one of another shape; a pattern matches nothing; names that belong to
        no layout; numbers that are not finite.
    """
    params, drawn = jax.eval_shape(task.init, jax.random.key(0))
    asked = tuple(f"state/{name}/" for name in getattr(task, "constant", ()))  # other runs' arrays, which stay theirs
    paths = tree.by_path({"params": params, "state": drawn})
    wanted = {path: like for path, like in paths.items() if like.size and not path.startswith(asked)}
    try:
        tree.select(start.fresh, {_short(_public(path)): leaf for path, leaf in wanted.items()})
    except ValueError as error:
        raise ConfigError(f"start.fresh: {error}") from None
    ours = all(name.partition("/")[0] in ("params", "state") for name in weights.names)
    renamed, twin = _renamed(start.rename, weights, ours), None if ours else _twin(task)
    names = {_public(path): _public(path) for path in wanted} if ours else twin.names if twin else {}
    if twin is not None and twin.layout == "huggingface":
        renamed = {new: renamed[name] for new, name in huggingface.canonical(renamed, names.values()).items()}
    if renamed.keys().isdisjoint(names.values()):
        raise ConfigError(_foreign(start, weights, task))

    arrays, fresh, faults = {}, {}, []
    for place, like in wanted.items():
        path = _public(place)
        if why := _reason(start, path, like):
            fresh[path] = (like.size, why)
        elif (name := names.get(path, path)) not in renamed:
            named = "" if name == path else f" as {name}"
            has = f"it has {_some(renamed, 4)}"
            faults.append(f"{_short(path)} {list(like.shape)}: not in {weights.name}{named}; {has}")
        else:
            try:
                arrays[place] = _array(path, like, name, weights.read(renamed[name]), twin)
            except ValueError as error:
                faults.append(f"{error} in {weights.name}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"start: {faults[0]}; start.fresh would draw it anew{more}")
    if not arrays:
        raise ConfigError("start.fresh: covers every parameter; nothing is left to start from")
    used = {names[_public(place)]: _public(place) for place in arrays}
    return Loaded(
        weights.name,
        weights.origin | ({"layout": twin.layout if twin else "functrain"} if start.file is not None else {}),
        arrays,
        fresh,
        # torch counts in it the batches that a batch norm has seen, which no model here needs
        unused=[old for new, old in renamed.items() if new not in used and not new.endswith(".num_batches_tracked")],
        renamed={old: used[new] for new, old in renamed.items() if new != old and new in used},
    )


def _reason(start: Start, path: str, like: Any) -> str:
    """Why an array is drawn anew; "" where it is not."""
    if _is_key(like):
        return "the seed"
    if path.startswith("params/lora/"):
        return "lora"
    if found := next((p for p in start.fresh if re.search(p, _short(path))), None):
        return found
    return "start.state = false" if path.startswith("state") and not start.state else ""


def _renamed(pairs: Iterable[tuple[str, str]], weights: Weights, ours: bool) -> dict[str, str]:
    """Name after renaming -> name in the source; in our own layout, what stands after "params/" or "state/" changes."""
    names = {name: name for name in weights.names}
    for pattern, replacement in pairs:
        after, changed = {}, 0
        for name, old in names.items():
            head, slash, rest = name.partition("/") if ours else ("", "", name)
            try:
                rest, count = re.subn(pattern, replacement, rest)
            except (re.error, IndexError) as error:
                raise ConfigError(f'start.rename: ["{pattern}", "{replacement}"]: {error}') from None
            new = head + slash + rest
            if new in after:
                raise ConfigError(f"start.rename: both {after[new]} and {old} of {weights.name} would be {new}")
            after[new] = old
            changed += count
        if not changed:
            raise ConfigError(f'start.rename: "{pattern}" matches nothing in {weights.name}; it has {_some(names, 4)}')
        names = after
    return names


@dataclasses.dataclass(frozen=True)
class _Twin:
    """How another library keeps a model: our path -> its name; and a pattern of kernels that lie as ours do."""

    layout: str
    names: dict[str, str]
    as_is: str = ""


def _twin(task: Any) -> _Twin | None:
    """None where the task's model has none."""
    model: Any = getattr(task, "model", None)
    model = model.model if isinstance(model, lora.Adapted) else model
    if hasattr(model, "torchvision_names"):
        return _Twin("torchvision", model.torchvision_names())
    if hasattr(model, "huggingface_names"):
        return _Twin("huggingface", model.huggingface_names(), model.as_is)
    return None


def _foreign(start: Start, weights: Weights, task: Any) -> str:
    """What is wrong with weights of which none has a place in the model."""
    has = f"it has {_some(weights.names, 4)}"
    if start.run is not None or _twin(task):
        return f"start: nothing in {weights.name} has the name of an array of this model; {has}"
    model = type(getattr(task, "model", task)).__name__
    return (
        f"start.file: {weights.name}: {has}; expected functrain's names (params/..., state/...): "
        f"{model} has none elsewhere"
    )


def _array(path: str, like: Any, name: str, array: np.ndarray, twin: _Twin | None) -> np.ndarray:
    """An array in our layout and in the dtype of what it replaces; it comes from a twin, or has our layout.

    Raises:
      ValueError: it has another shape, is no array of such numbers, or holds some that are not finite.
    """
    if tree.is_float(array) != tree.is_float(like):
        raise ValueError(f"{name}: found {array.dtype}, {_short(path)} needs {like.dtype}")
    if twin is not None:
        own = {part: {_short(path): like} if path.startswith(part) else {} for part in ("params", "state")}
        params, drawn = torch_layout.from_torch({path: name}, {name: array}, own["params"], own["state"], twin.as_is)
        array = (params | drawn)[_short(path)]
    elif array.shape != like.shape:
        raise ValueError(f"{_short(path)}: {list(like.shape)} here, {list(array.shape)}")
    array = np.asarray(array).astype(like.dtype)
    if tree.is_float(array) and not np.isfinite(array).all():
        raise ValueError(f"{name}: numbers that are not finite")
    return array


def _public(place: str) -> str:
    """The path that a person writes: without the player's name where it is the only one's, "model".

    What an adapted model keeps (see functrain.models.lora) has the path that it has in the model itself.
    """
    place = re.sub(r"^params/model(?=/|$)", "params", place)
    place = re.sub(r"^(state/lora_base|params/lora_whole)/", "params/", place)
    return re.sub(r"^state/lora_model/", "state/", place)


def _short(path: str) -> str:
    """The path in which patterns are searched, as in [optimizer]: without "params/" or "state/"."""
    return path.partition("/")[2]


def _plain(weights: dict[str, Any]) -> Arrays:
    """Path -> array on the host, contiguous; random keys left out."""
    return {_public(path): np.array(x, order="C") for path, x in tree.by_path(weights).items() if not _is_key(x)}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _some(names: Iterable[str], most: int = 8) -> str:
    """The first of many names."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


# -- writing --------------------------------------------------------------------------------------


def check_export(path: str | Path, layout: str = "functrain") -> None:
    """Raises a ConfigError where `path` is not one at which `export` can make a file, or a folder for Hugging Face."""
    path = Path(path)
    if layout not in get_args(Layout):
        raise ConfigError(f"--layout: found {layout!r}; legal: {', '.join(get_args(Layout))}")
    folder = layout in ("huggingface", "peft")
    if (not folder and path.suffix != ".safetensors") or not path.absolute().parent.is_dir():
        what = "a folder" if folder else "a file .safetensors"
        raise ConfigError(f"{path}: expected {what} in a directory that exists")
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another name")


def export(model: Any, path: str | Path, layout: Layout = "functrain") -> dict[str, np.ndarray]:
    """Write the weights that a trained model's evaluation uses as a safetensors file, whole or not at all.

    Its metadata are texts: kind (of the model), layout, functrain (the version), step, and config, as JSON.

    Args:
      model: see functrain.trained.Trained.
      path: of the file, or of the folder for Hugging Face; it must not exist.
      layout: functrain: names are our paths; torchvision: the names and the layout of the model's twin there;
        huggingface: a folder with config.json, model.safetensors in the dtype that config.json says, and, where the
        data have a tokenizer of the library tokenizers, tokenizer.json; adapter: what [lora] trained alone, by our
        paths; peft: the same as a folder for the library peft, of a model that Hugging Face has.

    Returns:
      The arrays written, by name.

    Raises:
      ConfigError: the path is no good, the model has no twin, or safetensors is not installed.
    """
    check_export(path, layout)
    path = Path(path)
    arrays, files = _exported(model, layout)
    metadata = {"format": "pt"}  # what transformers and peft ask for
    if not files:
        metadata = {"kind": _kind(model), "layout": layout, "functrain": __version__, "step": str(model.step)}
        metadata |= _config_text(model.config)
    data = _library(str(path)).numpy.save(arrays, metadata)
    if files:
        _write_folder(path, {name: text.encode() for name, text in files.items()} | {_WEIGHTS[layout]: data})
    else:
        _write(path, data)
    return arrays


_WEIGHTS = {"huggingface": "model.safetensors", "peft": "adapter_model.safetensors"}
"""The file of the weights in a folder of each layout."""


def _kind(model: Any) -> str:
    return getattr(model.config.model, "kind", type(model.task.model).__name__)


def _exported(model: Any, layout: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a layout by name, and where it is a folder the texts of the files beside them."""
    task = model.task
    if layout in ("adapter", "peft") and not isinstance(task.model, lora.Adapted):
        raise ConfigError(f"--layout: {layout} is what [lora] trained; this run has none")
    if layout == "functrain":
        return _plain(weights(task, model.train_state)), {}
    if layout == "adapter":
        return _plain({"params": task.learner.weights(model.train_state.players["model"])}), {}
    twin, wanted = _twin(task), "huggingface" if layout == "peft" else layout
    if twin is None or twin.layout != wanted:
        legal = f"functrain{'' if twin is None else f', {twin.layout}'}"
        raise ConfigError(f'--layout: model.kind = "{_kind(model)}" has no names in {wanted}; legal: {legal}')
    if layout == "peft":
        trained = jax.device_get(task.learner.weights(model.train_state.players["model"]))
        text, arrays = lora.to_peft(task.model, trained, twin.names, twin.as_is)
        return arrays, {"adapter_config.json": text}
    text = huggingface.config_text(model.config.model) if layout == "huggingface" else ""
    found = weights(task, model.train_state)
    arrays = torch_layout.to_torch(twin.names, found["params"]["model"], found["state"], twin.as_is)
    if layout == "torchvision":
        return arrays, {}
    tokenizer = getattr(model.config.data, "tokenizer", "")
    files = {"config.json": text} | ({"tokenizer.json": tokenizer} if tokenizer else {})
    return {name: a.astype(huggingface.dtype(text)) for name, a in arrays.items()}, files


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    """A folder of files, there when all of them are whole."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.mkdir()
        for name, data in files.items():
            _write(partial / name, data)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    """A file, there when it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _config_text(settings: Any) -> dict[str, str]:
    try:
        return {"config": json.dumps(configs.to_data(settings))}
    except TypeError:  # of functrain.fit: functions and arrays, which are no text
        return {}
