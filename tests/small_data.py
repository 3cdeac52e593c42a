"""Tiny stand-ins for real data, in the real formats and at the real places below a folder: for FUNCTRAIN_DATA."""

import gzip
import io
import json
import string
import tarfile
import wave
import zipfile

import numpy as np

ADULT = "age workclass fnlwgt education education-num marital-status occupation relationship race sex capital-gain"
ADULT = (*ADULT.split(), "capital-loss", "hours-per-week", "native-country", "income")
"""The columns of the adult files, which have no header."""


def write_small_data(folder):
    """Write all that a config of the repository reads, each set in a folder of its own."""
    rng = np.random.default_rng(0)
    write_mnist(folder / "mnist", rng)
    write_adult(folder / "tabular" / "adult", rng)
    write_housing(folder / "tabular" / "california-housing", rng)
    write_penguins(folder / "tabular" / "penguins", rng)
    write_text(folder / "tinyshakespeare", rng)
    write_cifar(folder / "cifar10-jpeg", rng)
    write_imagenette(folder / "imagenette2", rng)
    write_bccd(folder / "bccd", rng)
    write_coco(folder / "coco", rng)
    write_polarity(folder / "nltk-sentiment", rng)
    write_multi30k(folder / "multi30k", rng)
    write_digits_said(folder / "fsdd", rng)
    write_movielens(folder / "ml-100k", rng)
    return folder


def idx(array, code=0x08, dtype="u1"):
    """The bytes of an IDX file."""
    shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, code, array.ndim]) + shape + array.astype(np.dtype(dtype).newbyteorder(">")).tobytes()


def write_mnist(folder, rng, train=640, test=160):
    """Images of noise with a bright bar, whose row says the label."""
    folder.mkdir(parents=True)
    for name, n in (("train", train), ("t10k", test)):
        labels = rng.integers(0, 10, n)
        labels[:10] = range(min(n, 10))
        images = rng.integers(0, 60, (n, 28, 28))
        images[np.arange(n), 2 * labels + 4, 4:24] = 250
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{what}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array), 1, mtime=0))


def write_movielens(folder, rng, users=50, items=150, each=30):
    """MovieLens 100k's u.data: user, item, rating and time with tabs between, and no header."""
    folder.mkdir(parents=True)
    rated = [(user, item) for user in range(users) for item in rng.choice(items, each, replace=False)]
    rows = [(user + 1, item + 1, 1 + (user + item) % 5, rng.integers(10**6)) for user, item in rng.permutation(rated)]
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))


def write_adult(folder, rng, train=800, test=200):
    """The adult's files: no header, a blank after each comma, "?" for missing, a dot after each label of the test."""
    folder.mkdir(parents=True)
    schools = {"HS-grad": 9, "Some-college": 10, "Bachelors": 13, "Masters": 14}
    for name, n, dot in (("train", train, ""), ("test", test, ".")):
        rows = []
        for _ in range(n):
            age, hours, school = int(rng.integers(17, 80)), int(rng.integers(10, 70)), rng.choice(list(schools))
            score = (age - 40) / 20 + (hours - 40) / 15 + (schools[school] - 11) / 2 + rng.normal()
            rows.append([
                age, rng.choice(["Private", "Self-emp-inc", "State-gov", "?"]), int(rng.integers(2e4, 5e5)), school,
                schools[school], rng.choice(["Never-married", "Divorced", "Married-civ-spouse"]),
                rng.choice(["Sales", "Craft-repair", "?"]), rng.choice(["Husband", "Wife", "Own-child"]),
                rng.choice(["White", "Black", "Other"]), rng.choice(["Male", "Female"]),
                int(rng.choice([0, 0, 0, 7688])), int(rng.choice([0, 0, 0, 1902])), hours,
                rng.choice(["United-States", "Mexico", "?"]), (">50K" if score > 1 else "<=50K") + dot,
            ])  # fmt: skip
        text = "".join(", ".join(map(str, row)) + "\n" for row in rows) + "\n"
        (folder / f"adult-{name}.csv").write_text(text)


def write_housing(folder, rng, n=800):
    """California housing: a header, some of total_bedrooms missing."""
    folder.mkdir(parents=True)
    names = "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income"
    lines = [names + ",median_house_value,ocean_proximity"]
    for i in range(n):
        homes, income = float(rng.integers(50, 1000)), round(float(rng.uniform(0.5, 10)), 4)
        sea = str(rng.choice(["INLAND", "NEAR BAY", "<1H OCEAN"]))
        value = float(round(40_000 * income + 60_000 * (sea != "INLAND") + 5_000 * rng.normal() + 20_000))
        place = [round(float(rng.uniform(-124, -114)), 2), round(float(rng.uniform(32, 42)), 2)]
        bedrooms = "" if i % 50 == 0 else round(homes * 1.1)
        row = [*place, float(rng.integers(1, 53)), homes * 5, bedrooms, homes * 3, homes, income, value, sea]
        lines.append(",".join(map(str, row)))
    (folder / "housing.csv").write_text("\n".join(lines) + "\n")


def write_penguins(folder, rng, n=90):
    """Palmer penguins: a header, NA for missing."""
    folder.mkdir(parents=True)
    lines = ["species,island,bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g,sex,year"]
    for i in range(n):
        kind = i % 3
        bill = "NA" if i == 3 else round(float(38 + 5 * kind + rng.normal()), 1)
        row = [("Adelie", "Chinstrap", "Gentoo")[kind], rng.choice(["Biscoe", "Dream"]), bill]
        row += [round(float(15 + kind + rng.normal()), 1), 190 + 10 * kind, 3700 + 500 * kind]
        lines.append(",".join(map(str, [*row, rng.choice(["male", "female", "NA"]), 2007 + i % 3])))
    (folder / "penguins.csv").write_text("\n".join(lines) + "\n")


def write_text(folder, rng, words=8_000):
    """Lines of made-up words, and a speaker here and there, as in Shakespeare's plays."""
    folder.mkdir(parents=True)
    lexicon = ["".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 9))) for _ in range(200)]
    lines = []
    for i, line in enumerate(np.array_split(rng.choice(lexicon, words), words // 8)):
        lines += ["", "First Citizen:"] * (i % 5 == 0) + [" ".join(line).capitalize() + ","]
    (folder / "input.txt").write_text("\n".join(lines) + "\n")


def jpeg(pixels):
    """The bytes of a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_cifar(folder, rng, train=256, test=64):
    """CIFAR-10 as JPEG: all files of a split one after another in one array; noise, with a shade for each class."""
    folder.mkdir(parents=True)
    arrays = {"class_names": np.array([f"class{i}" for i in range(10)])}
    for split, n in (("train", train), ("test", test)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (n, 32, 32, 3)) + 19 * labels[:, None, None, None]
        files = [jpeg(image.astype(np.uint8)) for image in images]
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{split}_y"] = labels
    np.savez(folder / "cifar10_jpeg_bytes.npz", **arrays)


def write_imagenette(folder, rng, each=4):
    """Images of several sizes in folders of classes."""
    for split in ("train", "test"):
        for name in ("n01440764", "n02102040", "n02979186"):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 255, (60 + 7 * i, 70, 3), dtype=np.uint8)
                (folder / split / name / f"{i}.JPEG").write_bytes(jpeg(pixels))


def write_bccd(folder, rng):
    """Blood cells in VOC's layout, in an archive: discs of three colours on grey."""
    folder.mkdir(parents=True)
    names, files = ("RBC", "WBC", "Platelets"), {}
    splits = {"train": range(12), "val": range(12, 16), "test": range(16, 20)}
    for i in range(20):
        pixels, objects = np.full((48, 64, 3), 128, np.uint8), []
        for kind in range(3):
            x, y, side = int(rng.integers(0, 44)), int(rng.integers(0, 28)), 6 + 6 * kind
            pixels[y : y + side, x : x + side] = np.eye(3, dtype=np.uint8)[kind] * 200
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + side}</xmax><ymax>{y + side}</ymax>"
            objects.append(f"<object><name>{names[kind]}</name><bndbox>{corners}</bndbox></object>")
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        annotation = f"<annotation><filename>{i}.jpg</filename>{size}{''.join(objects)}</annotation>"
        files[f"BCCD/JPEGImages/{i}.jpg"] = jpeg(pixels)
        files[f"BCCD/Annotations/{i}.xml"] = annotation.encode()
    for split, members in splits.items():
        files[f"BCCD/ImageSets/Main/{split}.txt"] = "".join(f"{i}\n" for i in members).encode()
    with tarfile.open(folder / "BCCD.tar.gz", "w:gz") as archive:
        for name, data in files.items():
            add(archive, name, data)


def add(archive, name, data):
    """A file into an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_coco(folder, rng):
    """COCO's layout: files of instances, folders of images."""
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 8), ("val2017", 4)):
        (folder / split).mkdir()
        images, boxes = [], []
        for i in range(count):
            (folder / split / f"{i}.jpg").write_bytes(jpeg(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)))
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
            boxes.append({"image_id": i, "category_id": 1 + i % 2, "bbox": [4, 6, 20 + i, 18], "iscrowd": 0})
        kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        text = json.dumps({"images": images, "annotations": boxes, "categories": kinds})
        (folder / "annotations" / f"instances_{split}.json").write_text(text)


def write_polarity(folder, rng, each=120):
    """nltk_data's sentence_polarity.zip: a sentence a line, one word of it telling the class."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "sentence_polarity.zip", "w") as archive:
        for name, word in (("neg", "dull"), ("pos", "bright")):
            lines = [
                " ".join(
                    rng.permutation([word, *rng.choice(["a", "film", "of", "it's", "time ,"], rng.integers(3, 9))])
                )
                for _ in range(each)
            ]
            archive.writestr(f"sentence_polarity/rt-polarity.{name}", "\n".join(lines) + "\n")


def write_multi30k(folder, rng):
    """Captions in English and German, word by word the same, a sentence a line."""
    folder.mkdir(parents=True)
    words = [("a", "ein"), ("man", "Mann"), ("dog", "Hund"), ("sees", "sieht"), ("red", "rot"), ("two", "zwei")]
    for name, n in (("train", 200), ("val", 20), ("test_2016_flickr", 20)):
        rows = [rng.integers(0, len(words), rng.integers(3, 9)) for _ in range(n)]
        for i, language in enumerate(("en", "de")):
            text = "".join(" ".join(words[k][i] for k in row) + ".\n" for row in rows)
            (folder / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode(), 1, mtime=0))


def write_digits_said(folder, rng, takes=6, rate=8000):
    """Digits said by two speakers: a tone for each digit, of its own length, and noise."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "recordings.tar.gz", "w:gz") as archive:
        for digit in range(10):
            for speaker, pitch in (("ann", 1.0), ("bob", 0.7)):
                for take in range(takes):
                    t = np.arange(int(rng.integers(rate // 10, rate // 5))) / rate
                    x = 0.3 * np.sin(2 * np.pi * (200 + 150 * digit) * pitch * t) + rng.normal(0, 0.02, len(t))
                    add(archive, f"recordings/{digit}_{speaker}_{take}.wav", wav(x, rate))


def wav(x, rate=8000, width=2):
    """The bytes of a WAV file of x [samples] or [samples, channels], in -1..1, each sample in `width` bytes."""
    x = np.asarray(x).reshape(len(x), -1)
    whole = np.clip(np.rint(x * 2.0 ** (8 * width - 1)), *_limits(width)).astype(np.int64) + 128 * (width == 1)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((x.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole.ravel()))
    return out.getvalue()


def _limits(width):
    return -(2.0 ** (8 * width - 1)), 2.0 ** (8 * width - 1) - 1
