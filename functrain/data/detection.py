"""Pictures with boxes: Pascal VOC's layout and COCO's, from a folder or an archive, which is never unpacked to disk.

A batch has, for images resized to one size and a fixed number of boxes each:

x        [n, height, width, 3] uint8
boxes    [n, most, 4] float32: (x0, y0, x1, y1) in pixels of x, edges of the box; 0 where there is none
labels   [n, most] int32: the class, from 0; -1 where there is none
ignored  [n, most] uint8: 1 for a box that is neither to be found nor wrong to find (crowd, difficult)
scale    [n, 2] float32: what x and y are times to be pixels of the file's own image
"""

import dataclasses
import io
import json
import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np

from functrain.config import ConfigError, Count, Size, Text, configclass
from functrain.data.archive import Files
from functrain.data.base import Normalised
from functrain.data.dataset import SPLITS, Dataset, dataset
from functrain.data.images import SUFFIXES, images_in, read_image

_LARGEST_XML = 1 << 20


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is known of one picture before it is read.

    image: its name among the files.
    where: what messages call its annotation.
    classes: [k] the name of each box's class.
    boxes: [k, 4] x0, y0, x1, y1 in its own pixels, as annotated.
    ignored: [k] whether a box is crowd or difficult.
    size: width and height as annotated; 0 where that is not said.
    """

    image: str
    where: str
    classes: Sequence[str]
    boxes: np.ndarray
    ignored: np.ndarray
    size: tuple[int, int] = (0, 0)


@configclass
class Pictures(Normalised):
    """What sources of pictures with boxes share."""

    path: Text
    """The folder or archive (.tar.gz, .zip); looked for in the working directory, then where FUNCTRAIN_DATA points."""
    size: tuple[Size, Size]
    """Height and width to which every picture is resized, and its boxes with it."""
    most: Count = 0
    """Boxes of a picture at most; a training picture keeps its largest ones. 0 takes the most that one has."""
    class_names: tuple[str, ...] = ()
    """The classes, in the order of their numbers; taken from the training annotations."""
    dropped: Count = 0
    """How many boxes were left out because nothing of them lies inside their picture; counted as they are read."""

    @abstractmethod
    def scenes(self, files: Files) -> tuple[dict[str, list[Scene]], tuple[str, ...]]:
        """The pictures of each split, and the names of the classes that the training part has."""

    def load(self) -> Dataset:
        """x, boxes, labels, ignored and scale, as this module says."""
        files = Files("data.path", self.path, (".xml", ".txt", ".json", *SUFFIXES))
        scenes, names = self.scenes(files)
        names = self.class_names or names
        if not names:
            raise ConfigError(f"{files.where}: the training pictures have no boxes")
        read = {split: [self._picture(files, scene, names) for scene in scenes[split]] for split in scenes}
        longest = max(len(labels) for pictures in read.values() for _, _, labels, _, _ in pictures)
        most = self.most or max(longest, 1)
        parts = {}
        for split, pictures in read.items():
            if split != "train":  # a score without all true boxes would be wrong
                for scene, picture in zip(scenes[split], pictures):
                    if len(picture[2]) > most:
                        raise ConfigError(f"data.most: found {most}; {scene.where} has {len(picture[2])} boxes")
            parts[split] = _stacked(pictures, most)
        made = dataset(files.where, parts)
        dropped = sum(len(s.classes) for split in scenes.values() for s in split)
        dropped -= sum(len(labels) for pictures in read.values() for _, _, labels, _, _ in pictures)
        found = {"class_names": names, "most": most, "dropped": dropped}
        return self.measured(dataclasses.replace(made, classes=len(names), found=found), 255.0)

    def scaled(self, batch: dict) -> dict:
        """Bytes to 0..1."""
        return batch | {"x": batch["x"].astype(jnp.float32) / 255}

    def read_inputs(self, path: str) -> np.ndarray | None:
        """x [n, height, width, 3] uint8 of a picture, or of all those in a folder, sorted by name."""
        if os.path.isdir(path):
            return np.stack([self._read(str(file), file)[0] for file in images_in(Path(path))])
        return self._read(path, Path(path))[0][None] if path.lower().endswith(SUFFIXES) else None

    def describe(self) -> dict[str, str]:
        """The classes and the boxes."""
        left_out = f", {self.dropped} empty or outside left out" if self.dropped else ""
        return {"classes": ", ".join(self.class_names), "boxes": f"at most {self.most} in a picture{left_out}"}

    def _picture(self, files: Files, scene: Scene, names: tuple[str, ...]) -> tuple:
        """(x, boxes, labels, ignored, scale) of one picture."""
        for name in scene.classes:
            if name not in names:
                raise ConfigError(f"{scene.where}: class {name!r}; there are: {', '.join(names)[:160]}")
        x, (width, height) = self._read(f"{files.where}: {scene.image}", io.BytesIO(files.read(scene.image)))
        if all(scene.size) and scene.size != (width, height):
            said = "{} x {}".format(*scene.size)
            raise ConfigError(f"{scene.where}: a picture of {said}; {scene.image} has {width} x {height}")
        boxes = np.clip(scene.boxes, 0, [width, height, width, height])
        there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        scale = np.array([width / self.size[1], height / self.size[0]])
        labels = np.array([names.index(name) for name in scene.classes], np.int32)
        return x, (boxes / np.tile(scale, 2))[there], labels[there], scene.ignored[there], scale

    def _read(self, name: str, file: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture [height, width, 3] of the wanted size, and the width and height that it had."""
        return read_image(name, file, 3, self.size)


@configclass
class Voc(Pictures):
    """Pictures with boxes in Pascal VOC's layout: JPEGImages, Annotations/*.xml, ImageSets/Main/{train,val,test}.txt"""

    kind: Literal["voc"] = "voc"
    train: Text = "train"
    """The list of the training pictures in ImageSets/Main, without .txt."""
    validation: str = "val"
    """The list of those to choose by; empty is none."""
    test: str = "test"
    """The list of those to be read once; empty is none."""
    difficult: Literal["ignore", "keep", "drop"] = "ignore"
    """Boxes marked as difficult: ignore neither asks for them nor punishes finding them, keep is as any other."""
    one_based: bool = False
    """Whether pixels are counted from 1 and a box includes its last one, as in VOC itself; else numbers are edges."""

    def scenes(self, files: Files) -> tuple[dict[str, list[Scene]], tuple[str, ...]]:
        """The pictures in the lists' order; the classes sorted by name."""
        root = self._root(files)
        found, split_of = {}, {}
        for split in SPLITS:
            if not getattr(self, split):
                continue
            found[split] = []
            for name in self._listed(files, root, split):
                if split_of.setdefault(name, split) != split:
                    raise ConfigError(f"data.{split}: {name!r} is in the {split_of[name]} list too; expected others")
                found[split].append(self._scene(files, root, name))
        return found, tuple(sorted({name for scene in found["train"] for name in scene.classes}))

    def _root(self, files: Files) -> str:
        """What stands before JPEGImages in the files' names."""
        end = f"ImageSets/Main/{self.train}.txt"
        roots = [name.removesuffix(end) for name in files.held if f"/{name}".endswith(f"/{end}")]
        if len(roots) != 1:
            lists = sorted({Path(n).stem for n in files.held if "ImageSets/Main/" in n and n.endswith(".txt")})
            several = f"{len(roots)} of {end}: {', '.join(sorted(roots))}; expected one"
            none = f"no {end}; there are the lists: {', '.join(lists) or 'none'}"
            raise ConfigError(f"{files.where}: {several if roots else none}"[:300])
        return roots[0]

    def _listed(self, files: Files, root: str, split: str) -> list[str]:
        name = f"{root}ImageSets/Main/{getattr(self, split)}.txt"
        if name not in files.held:
            raise ConfigError(f'{files.where}: no file {name}; data.{split} = "" is for none')
        listed = [line.strip() for line in _decoded(files, name).splitlines() if line.strip()]
        if not listed:
            raise ConfigError(f"{files.where}: {name}: lists no pictures")
        if len(set(listed)) < len(listed):
            twice = next(name for i, name in enumerate(listed) if name in listed[:i])
            raise ConfigError(f"{files.where}: {name}: {twice!r} is there twice")
        return listed

    def _scene(self, files: Files, root: str, name: str) -> Scene:
        images = [f"{root}JPEGImages/{name}{s}" for suffix in (".jpg", *SUFFIXES) for s in (suffix, suffix.upper())]
        image = next((i for i in images if i in files.held), None)
        if image is None:
            raise ConfigError(f"{files.where}: no image {images[0]}")
        file = f"{root}Annotations/{name}.xml"
        where = f"{files.where}: {file}"
        top = _xml(where, files.read(file, _LARGEST_XML))
        classes, boxes, ignored = [], [], []
        for i, item in enumerate(top.iterfind("object")):
            label = (item.findtext("name") or "").strip()
            if not label:
                raise ConfigError(f"{where}: object {i} has no name")
            difficult = (item.findtext("difficult") or "").strip() == "1"
            box = [item.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            box = [_finite(f"{where}: object {i}", text) for text in box]
            if difficult and self.difficult == "drop":
                continue
            classes.append(label)
            boxes.append([box[0] - self.one_based, box[1] - self.one_based, *box[2:]])
            ignored.append(difficult and self.difficult == "ignore")
        size = [top.findtext(f"size/{side}") or "0" for side in ("width", "height")]
        width, height = (int(_finite(f"{where}: size", text)) for text in size)
        return Scene(image, where, classes, np.reshape(boxes, (-1, 4)), np.array(ignored, bool), (width, height))


@configclass
class Coco(Pictures):
    """Pictures with boxes in COCO's layout: a JSON file of instances and a folder of images for each part."""

    kind: Literal["coco"] = "coco"
    train: Text = "annotations/instances_train2017.json"
    """The file of the training part, below `path`."""
    train_images: str = "train2017"
    """The folder of its images, below `path`."""
    validation: str = "annotations/instances_val2017.json"
    """The file of the part to choose by; empty is none."""
    validation_images: str = "val2017"
    """The folder of its images."""
    test: str = ""
    """The file of the part to be read once; empty is none."""
    test_images: str = ""
    """The folder of its images."""

    def scenes(self, files: Files) -> tuple[dict[str, list[Scene]], tuple[str, ...]]:
        """The pictures in the files' order; the classes in the order of the training file's category ids."""
        found, names = {}, ()
        for split in SPLITS:
            if file := getattr(self, split):
                found[split], classes = _coco_scenes(files, file, getattr(self, f"{split}_images"))
                names = classes if split == "train" else names
        return found, names


def _coco_scenes(files: Files, file: str, folder: str) -> tuple[list[Scene], tuple[str, ...]]:
    """The pictures of one file of instances, and its categories' names in the order of their ids."""
    where = f"{files.where}: {file}"
    try:
        data = json.loads(_decoded(files, file))
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: found no object; expected images, annotations, categories")
    images = _records(where, data, "images", {"id": int, "file_name": str})
    categories = _records(where, data, "categories", {"id": int, "name": str})
    annotations = _records(where, data, "annotations", {"image_id": int, "category_id": int, "bbox": list})
    if not images:
        raise ConfigError(f"{where}: images: there are none")
    name_of = {c["id"]: c["name"] for c in categories}
    by_image: dict[int, list] = {image["id"]: [] for image in images}
    for what, records, ids in (("images", images, by_image), ("categories", categories, name_of)):
        if len(ids) < len(records):
            raise ConfigError(f"{where}: {what}: an id is there twice")
    for i, annotation in enumerate(annotations):
        at = f"{where}: annotations[{i}]"
        if annotation["image_id"] not in by_image:
            raise ConfigError(f"{at}: no image has the id {annotation['image_id']}")
        if annotation["category_id"] not in name_of:
            raise ConfigError(f"{at}: no category has the id {annotation['category_id']}")
        if len(annotation["bbox"]) != 4:
            raise ConfigError(f"{at}: bbox of {len(annotation['bbox'])} numbers; expected x, y, width, height")
        x, y, width, height = (_finite(at, number) for number in annotation["bbox"])
        crowd = annotation.get("iscrowd", 0) == 1
        by_image[annotation["image_id"]].append(
            (name_of[annotation["category_id"]], (x, y, x + width, y + height), crowd)
        )
    scenes = []
    for image in images:
        classes, boxes, crowd = zip(*by_image[image["id"]]) if by_image[image["id"]] else ((), (), ())
        sides = [image.get(side, 0) for side in ("width", "height")]
        width, height = (side if type(side) is int else 0 for side in sides)
        name = f"{folder}/{image['file_name']}" if folder else image["file_name"]
        at = f"{where}: image {image['file_name']}"
        scenes.append(Scene(name, at, classes, np.reshape(boxes, (-1, 4)), np.array(crowd, bool), (width, height)))
    return scenes, tuple(name for _, name in sorted(name_of.items()))


def _records(where: str, data: dict, key: str, fields: Mapping[str, type]) -> list[dict]:
    """data[key], a list of objects that have the fields."""
    records = data.get(key)
    if not isinstance(records, list):
        raise ConfigError(f"{where}: no list of {key}")
    for i, record in enumerate(records):
        for field, kind in fields.items():
            if not isinstance(record, dict) or type(record.get(field)) is not kind:
                raise ConfigError(f"{where}: {key}[{i}]: expected a {field} that is of type {kind.__name__}")
    return records


def _stacked(pictures: Sequence[tuple], most: int) -> dict[str, np.ndarray]:
    """The arrays of one split: each picture's boxes in the first places, the largest where there are too many."""
    n = len(pictures)
    arrays = {
        "boxes": np.zeros((n, most, 4), np.float32),
        "labels": np.full((n, most), -1, np.int32),
        "ignored": np.zeros((n, most), np.uint8),
    }
    for i, (_, boxes, labels, ignored, _) in enumerate(pictures):
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = np.sort(np.argsort(-sides.prod(1), kind="stable")[:most])
        for name, values in (("boxes", boxes), ("labels", labels), ("ignored", ignored)):
            arrays[name][i, : len(kept)] = values[kept]
    x = np.stack([picture[0] for picture in pictures])
    return {"x": x} | arrays | {"scale": np.array([picture[4] for picture in pictures], np.float32)}


class _NoDoctype(ElementTree.TreeBuilder):
    """A tree that refuses a document type: entities, which may grow without bound, are declared nowhere else."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called by the parser where one begins."""
        raise ValueError("a DOCTYPE; expected none")


def _xml(where: str, data: bytes) -> ElementTree.Element:
    try:
        top = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ConfigError(f"{where}: not as XML should be: {error}") from None
    if top.tag != "annotation":
        raise ConfigError(f"{where}: <{top.tag[:40]}>; expected <annotation>")
    return top


def _finite(where: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where}: found {str(value)[:40]!r}; expected a number")
    return number


def _decoded(files: Files, name: str) -> str:
    try:
        return files.read(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{files.where}: {name}: not UTF-8 text") from None
