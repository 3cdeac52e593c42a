"""Pictures with boxes: tiny folders and archives as VOC and COCO have them, what is read, what is refused."""

import dataclasses
import io
import json
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from functrain.config import ConfigError, Source, dump, parse
from functrain.data.detection import Coco, Pictures, Voc
from functrain.observe.boxes_figure import draw_boxes

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'functrain[images]'")

SIZE = (30, 40)  # height and width; the pictures below have 60 x 80 or 20 x 20
NAMES = ("bus", "cat", "dog")


def picture(width, height, shade=100, kind="PNG"):
    """The bytes of an image of one grey, with a bright first row."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    pixels[0] = 250
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def annotation(boxes, width=80, height=60):
    """VOC's XML of (class, x0, y0, x1, y1, difficult) each."""
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name><bndbox/></part>"
        f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, difficult in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{items}</annotation>".encode()


SCENES = {
    "a": (80, 60, [("cat", 8, 6, 40, 30, 0), ("bus", 0, 0, 20, 60, 1), ("dog", 70, 50, 100, 90, 0)]),
    "b": (20, 20, [("dog", 5, 5, 5, 9, 1), ("dog", 30, 5, 40, 9, 0), ("cat", 1, 2, 11.5, 12, 0)]),
    "c": (80, 60, []),
    "d": (80, 60, [("bus", 10, 10, 20, 20, 0)] * 4),
}
LISTS = {"train": "a\nb\n", "val": "c\r\n", "test": "d\n"}


def voc_files(**changed):
    """Name -> bytes of a small VOC, below DEVKIT/."""
    files = {f"ImageSets/Main/{name}.txt": text.encode() for name, text in LISTS.items()}
    for name, (width, height, boxes) in SCENES.items():
        files[f"JPEGImages/{name}.png"] = picture(width, height)
        files[f"Annotations/{name}.xml"] = annotation(boxes, width, height)
    files |= {name.replace("__", "/"): data for name, data in changed.items()}
    return {f"DEVKIT/{name}": data for name, data in files.items() if data is not None}


def coco_files(change=None):
    """Name -> bytes of the same pictures as COCO has them; difficult ones are crowds."""
    ids = {"cat": 7, "dog": 9, "bus": 3}
    files, parts = {}, {"train": "ab", "val": "cd"}
    for part, names in parts.items():
        images, annotations = [], []
        for i, name in enumerate(names):
            width, height, boxes = SCENES[name]
            images.append({"id": 10 + i, "file_name": f"{name}.png", "width": width, "height": height})
            for label, x0, y0, x1, y1, crowd in boxes:
                box = {"image_id": 10 + i, "category_id": ids[label], "bbox": [x0, y0, x1 - x0, y1 - y0]}
                annotations.append(box | {"iscrowd": crowd, "id": len(annotations)})
            files[f"images/{name}.png"] = picture(width, height)
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        data = {"images": images, "annotations": annotations, "categories": categories}
        if change:
            change(data, part)
        files[f"{part}.json"] = json.dumps(data).encode()
    return files


def write(folder, files):
    """The files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def pack(path, files):
    """The files as an archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


def coco(path, **more):
    """The source of `coco_files`."""
    settings = {
        "train": "train.json",
        "train_images": "images",
        "validation": "val.json",
        "validation_images": "images",
    }
    return Coco(path=path, size=SIZE, **settings | more)


def same(a, b):
    """The same arrays in every split."""
    for split in ("train", "validation", "test"):
        one, other = a.split(split), b.split(split)
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{split} {name}")


def test_voc(tmp_path):
    """Each number of the arrays: boxes resized with their pictures, clipped, empty ones left out, difficult ignored."""
    made = Voc(path=write(tmp_path, voc_files()), size=SIZE).load()
    assert made.classes == 3
    assert made.found == {"class_names": NAMES, "most": 4, "dropped": 2}
    train = made.train
    assert train["x"].shape == (2, 30, 40, 3)
    assert [train[n].dtype for n in ("x", "boxes", "labels", "ignored", "scale")] == ["u1", "f4", "i4", "u1", "f4"]
    # a is 80 x 60, half of which is 40 x 30; b is 20 x 20, which is stretched
    assert train["boxes"][0].tolist() == [[4, 3, 20, 15], [0, 0, 10, 30], [35, 25, 40, 30], [0, 0, 0, 0]]
    assert train["boxes"][1].tolist() == [[2, 3, 23, 18], *[[0, 0, 0, 0]] * 3]
    assert train["labels"].tolist() == [[1, 0, 2, -1], [1, -1, -1, -1]]
    assert train["ignored"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(train["scale"], np.float32([[2, 2], [0.5, 20 / 30]]))
    assert made.validation["labels"].tolist() == [[-1] * 4]
    assert made.test["labels"].tolist() == [[0] * 4]
    scaled = Voc(path="x", size=SIZE).scaled(train)
    assert np.asarray(scaled["x"]).max() < 1
    assert abs(float(scaled["x"][0, 20, 20, 0]) - 100 / 255) < 0.01


@pytest.mark.parametrize("kind", ["voc.tar", "voc.tar.gz", "voc.zip"])
def test_archives_are_as_folders(tmp_path, kind):
    """The same arrays, and nothing beside the archive afterwards."""
    folder, archives = tmp_path / "folder", tmp_path / "archives"
    archives.mkdir()
    made = Voc(path=pack(archives / kind, voc_files()), size=SIZE).load()
    same(made, Voc(path=write(folder, voc_files()), size=SIZE).load())
    assert [file.name for file in archives.iterdir()] == [kind]
    same(coco(pack(archives / kind, coco_files())).load(), coco(write(tmp_path / "coco", coco_files())).load())


def test_coco_is_as_voc(tmp_path):
    """The same pictures: classes in the order of their ids, crowds ignored."""
    made = coco(write(tmp_path / "coco", coco_files()), test="val.json", test_images="images").load()
    other = Voc(path=write(tmp_path / "voc", voc_files()), size=SIZE).load()
    assert made.found == {"class_names": NAMES, "most": 4, "dropped": 2}  # ids 3, 7, 9
    for name, array in other.train.items():
        np.testing.assert_array_equal(made.train[name], array, err_msg=name)
    assert made.validation["labels"].tolist() == [[-1] * 4, [0] * 4]


def test_difficult_and_first_pixels(tmp_path):
    """Difficult boxes are kept or dropped; VOC's own numbers count pixels from 1."""
    path = write(tmp_path, voc_files())
    kept, dropped = (
        Voc(path=path, size=SIZE, difficult=how, class_names=NAMES).load().train for how in ("keep", "drop")
    )
    assert kept["labels"][0].tolist() == [1, 0, 2, -1]
    assert not kept["ignored"].any()
    assert dropped["labels"][0].tolist() == [1, 2, -1, -1]
    counted = Voc(path=path, size=SIZE, one_based=True).load().train
    assert counted["boxes"][0, 0].tolist() == [3.5, 2.5, 20, 15]
    assert counted["labels"][1, :2].tolist() == [2, 1]  # pixel 5 alone is one pixel wide


def test_what_is_found_is_kept(tmp_path):
    """A run's config has the classes and the length; with them the data is the same; `most` keeps the largest boxes."""
    source = Voc(path=write(tmp_path, voc_files()), size=SIZE, normalise="standard")
    made = source.load()
    settled = dataclasses.replace(source, **made.found)
    assert parse(Voc, Source(tomllib.loads(dump(settled)))) == settled
    again = settled.load()
    same(again, made)
    assert again.found["class_names"] == NAMES
    lines = {"classes": "bus, cat, dog", "boxes": "at most 4 in a picture, 2 empty or outside left out"}
    assert settled.describe() == lines
    prepared = np.asarray(settled.prepare(made.train)["x"])
    assert abs(prepared.mean()) < 1e-4
    few = Voc(path=str(tmp_path), size=SIZE, most=2, test="").load()
    assert few.train["labels"].tolist() == [[1, 0], [1, -1]]  # the dog's corner is the smallest
    assert not few.test
    with pytest.raises(ConfigError, match=r"data.most: found 2; .*d.xml has 4 boxes"):
        Voc(path=str(tmp_path), size=SIZE, most=2).load()


def test_inputs_of_a_trained_model(tmp_path):
    """An image, or all of a folder, resized."""
    write(tmp_path, {"b.png": picture(80, 60, 7), "a.jpg": picture(20, 20, 200, "JPEG")})
    source: Pictures = Voc(path="x", size=SIZE)
    both = source.read_inputs(str(tmp_path))
    assert both is not None
    assert both.shape == (2, 30, 40, 3)
    one = source.read_inputs(str(tmp_path / "b.png"))
    np.testing.assert_array_equal(one, both[1:])
    assert source.read_inputs("rows.csv") is None
    with pytest.raises(ConfigError, match="no such file"):
        source.read_inputs("gone.png")


BOMB = b'<!DOCTYPE a [<!ENTITY b "1"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>'
WRONG = {
    "a DOCTYPE": ({"Annotations__a.xml": BOMB}, r"Annotations/a.xml: not as XML should be: a DOCTYPE"),
    "one in UTF-16": (
        {"Annotations__a.xml": b"\xff\xfe" + BOMB.decode().encode("utf-16-le")},
        r"a.xml: not as XML should be: a DOCTYPE",
    ),
    "no XML": ({"Annotations__a.xml": b"<annotation><object>"}, r"a.xml: not as XML should be: no element found"),
    "other XML": ({"Annotations__a.xml": b"<html/>"}, r"a.xml: <html>; expected <annotation>"),
    "an encoding": ({"Annotations__a.xml": b'<?xml version="1.0" encoding="odd"?><annotation/>'}, r"a.xml: not as XML"),
    "long XML": ({"Annotations__a.xml": b" " * (1 << 21)}, r"a.xml: 2097152 bytes; expected at most 1048576"),
    "no number": ({"Annotations__a.xml": annotation([("cat", "x", 1, 2, 3, 0)])}, r"a.xml: object 0: found 'x'"),
    "no finite one": ({"Annotations__a.xml": annotation([("cat", "nan", 1, 2, 3, 0)])}, r"object 0: found 'nan'"),
    "no box": ({"Annotations__a.xml": annotation([]).replace(b"</an", b"<object><name>a</name></object></an")},
               r"a.xml: object 0: found 'None'; expected a number"),
    "no name": ({"Annotations__a.xml": annotation([("", 1, 1, 2, 3, 0)])}, r"a.xml: object 0 has no name"),
    "another size": ({"Annotations__a.xml": annotation([], 81)}, r"a picture of 81 x 60; DEVKIT/\S*a.png has 80"),
    "an unknown class": ({"Annotations__c.xml": annotation([("cow", 1, 1, 2, 3, 0)])},
                         r"c.xml: class 'cow'; there are: bus, cat, dog"),
    "no classes": ({"ImageSets__Main__train.txt": b"c", "ImageSets__Main__val.txt": b"a"}, r"pictures have no boxes"),
    "no annotation": ({"Annotations__b.xml": None}, r"no file DEVKIT/Annotations/b.xml"),
    "no image": ({"JPEGImages__b.png": None}, r"no image DEVKIT/JPEGImages/b.jpg"),
    "a broken image": ({"JPEGImages__b.png": b"PNG"}, r"DEVKIT/JPEGImages/b.png: cannot be read as an image"),
    "no list": ({"ImageSets__Main__train.txt": None}, r"no ImageSets/Main/train.txt; there are the lists: test, val"),
    "no test list": ({"ImageSets__Main__test.txt": None}, r'Main/test.txt; data.test = "" is for none'),
    "an empty list": ({"ImageSets__Main__val.txt": b"\n"}, r"val.txt: lists no pictures"),
    "one twice": ({"ImageSets__Main__train.txt": b"a\nb\na"}, r"train.txt: 'a' is there twice"),
    "one in both": ({"ImageSets__Main__val.txt": b"b"}, r"data.validation: 'b' is in the train list too"),
    "one outside": ({"ImageSets__Main__val.txt": b"../../a"}, r"no image DEVKIT/JPEGImages/../../a.jpg"),
    "a list of bytes": ({"ImageSets__Main__val.txt": b"\xff\xff"}, r"val.txt: not UTF-8 text"),
    "two roots": ({"old__ImageSets__Main__train.txt": b"a"}, r"2 of ImageSets/Main/train.txt: DEVKIT/, DEVKIT/old/"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_in_voc(tmp_path, case):
    """Each is one line with the file."""
    changed, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as caught:
        Voc(path=write(tmp_path, voc_files(**changed)), size=SIZE).load()
    assert "\n" not in str(caught.value)


def _set(*path_and_value):
    """A change of the training file's data: data[path] = value."""
    *path, last, value = path_and_value

    def change(data, part):
        for key in path:
            data = data[key]
        if part == "train":
            data[last] = value

    return change


def _add_cow(data, part):
    """A category that the training file has not."""
    if part == "val":
        data["categories"].append({"id": 4, "name": "cow"})
        data["annotations"].append({"image_id": 10, "category_id": 4, "bbox": [1, 2, 3, 4]})


WRONG_COCO = {
    "no list": (_set("images", 5), r"train.json: no list of images"),
    "no images": (_set("images", []), r"train.json: images: there are none"),
    "no name": (_set("images", 1, {"id": 3}), r"images\[1\]: expected a file_name that is of type str"),
    "a true id": (_set("images", 1, "id", True), r"images\[1\]: expected a id"),
    "an id twice": (_set("images", 1, "id", 10), r"images: an id is there twice"),
    "no image": (_set("annotations", 2, "image_id", 99), r"annotations\[2\]: no image has the id 99"),
    "no category": (_set("annotations", 2, "category_id", 99), r"annotations\[2\]: no category has the id 99"),
    "three numbers": (_set("annotations", 2, "bbox", [1, 2, 3]), r"annotations\[2\]: bbox of 3 numbers"),
    "no number": (_set("annotations", 2, "bbox", [1, 2, "x", 3]), r"annotations\[2\]: found 'x'; expected a number"),
    "another size": (_set("images", 0, "width", 81), r"image a.png: a picture of 81 x 60; images/a.png has 80 x 60"),
    "no file": (_set("images", 0, "file_name", "z.png"), r"no file images/z.png"),
    "an unknown class": (_add_cow, r"val.json: image c.png: class 'cow'; there are: bus, cat, dog"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_COCO)
def test_mistakes_in_coco(tmp_path, case):
    """Each is one line with the file."""
    change, message = WRONG_COCO[case]
    with pytest.raises(ConfigError, match=message) as caught:
        coco(write(tmp_path, coco_files(change))).load()
    assert "\n" not in str(caught.value)


def test_mistakes_in_files(tmp_path):
    """Archives that are none, or cut off; JSON that is none; a path to nothing."""
    for name in ("a.tar.gz", "a.zip", "a.tar"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(ConfigError, match=rf"data.path: .*{name}: cannot be read"):
            Voc(path=str(tmp_path / name), size=SIZE).load()
    whole = Path(pack(tmp_path / "b.tar.gz", voc_files())).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"b.tar.gz: cannot be read"):
        Voc(path=str(tmp_path / "b.tar.gz"), size=SIZE).load()
    for data, message in (
        (b"{", "not JSON"),
        (b"[1]", "found no object"),
        (b"[" * 10**6, "nested too deeply|not JSON"),
    ):
        write(tmp_path / "coco", coco_files() | {"train.json": data})
        with pytest.raises(ConfigError, match=f"train.json: ({message})"):
            coco(str(tmp_path / "coco")).load()
    with pytest.raises(ConfigError, match=r"data.path: no folder"):
        Voc(path="nowhere", size=SIZE).load()


def test_boxes_are_drawn(tmp_path):
    """A page of pictures: white dashes for what is there, a colour for what was found; nothing for what is not."""
    shade = np.full((3, 30, 40, 3), 0.3)
    truth = {"boxes": np.tile([[4.0, 3.0, 30.0, 25.0]], (3, 2, 1)), "labels": np.array([[0, -1]] * 3)}
    found = {"boxes": truth["boxes"] + 4, "scores": np.array([[0.9, 0.0]] * 3), "classes": np.array([[1, 1]] * 3)}

    def drawn(*arguments, columns=2, **more):
        draw_boxes(*arguments, NAMES, tmp_path / "page" / "boxes.png", columns, **more)
        return np.asarray(Image.open(tmp_path / "page" / "boxes.png").convert("RGB")).astype(int)

    bare, there, both = drawn(shade, None, None), drawn(shade, truth, None), drawn(shade, truth, found)
    orange = lambda page: ((page[..., 0] > 200) & (page[..., 2] < 80)).sum()  # noqa: E731
    assert (bare != there).any()
    assert orange(there) == orange(bare) == orange(drawn(shade, truth, found, least=0.95)) == 0
    assert orange(both) > 500
    assert drawn(shade[:1, ..., :1], None, found, columns=5).shape[1] < both.shape[1]
