"""Data sets known by name: where their files are published, and what tells that they are those.

The digests are those of the original files; tensorflow-datasets, MXNet (the members of the CIFAR archives) and the
authors' pages state the same. A set whose digest nobody states is not here.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a set.

    path: below a folder of data.
    size: bytes.
    digest: hexadecimal; SHA-256, or SHA-1 where nothing newer is published.
    """

    path: str
    size: int
    digest: str

    @property
    def algorithm(self) -> str:
        """The digest's, told by its length."""
        return {40: "sha1", 64: "sha256"}[len(self.digest)]


def _files(folder: str, lines: str) -> tuple[File, ...]:
    """Files from lines of bytes, digest and name."""
    rows = [line.split() for line in lines.strip().splitlines()]
    return tuple(File(folder + name, int(size), digest) for size, digest, name in rows)


def _like_mnist(folder: str) -> dict[str, str]:
    """The settings of a set whose files are called as MNIST's."""
    return {
        "kind": "idx",
        "images": f"{folder}/train-images-idx3-ubyte.gz",
        "labels": f"{folder}/train-labels-idx1-ubyte.gz",
        "test_images": f"{folder}/t10k-images-idx3-ubyte.gz",
        "test_labels": f"{folder}/t10k-labels-idx1-ubyte.gz",
    }


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """A data set.

    what: it is, in one line.
    licence: as its publisher states it.
    files: it needs.
    mirrors: addresses of folders that hold the files, or the archive, under the last part of their paths.
    archive: where it is published as one .tar.gz or .zip, that file; the paths of `files` are then names inside it.
    settings: of the source that reads it, `kind` among them; empty where there is none, and the files are all.
    """

    what: str
    licence: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...]
    archive: File | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that a download takes."""
        return sum(f.size for f in self.published)

    @property
    def published(self) -> tuple[File, ...]:
        """The files as they are published: the archive where there is one."""
        return (self.archive,) if self.archive else self.files


KNOWN: Mapping[str, KnownSet] = {
    "mnist": KnownSet(
        what="handwritten digits, 28 x 28: 60,000 and 10,000 for the test",
        licence="none stated by the authors (LeCun, Cortes, Burges)",
        files=_files(
            "mnist/",
            """
            9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 train-images-idx3-ubyte.gz
            28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c train-labels-idx1-ubyte.gz
            1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 t10k-images-idx3-ubyte.gz
            4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 t10k-labels-idx1-ubyte.gz
            """,
        ),
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        settings=_like_mnist("mnist"),
    ),
    "fashion_mnist": KnownSet(
        what="articles of clothing, 28 x 28: 60,000 and 10,000 for the test",
        licence="MIT (Zalando SE)",
        files=_files(
            "fashion_mnist/",
            """
            26421880 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 train-images-idx3-ubyte.gz
            29515 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 train-labels-idx1-ubyte.gz
            4422102 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 t10k-images-idx3-ubyte.gz
            5148 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 t10k-labels-idx1-ubyte.gz
            """,
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        settings=_like_mnist("fashion_mnist"),
    ),
    "kmnist": KnownSet(
        what="cursive Japanese characters, 28 x 28: 60,000 and 10,000 for the test",
        licence="CC BY-SA 4.0 (ROIS-DS CODH)",
        files=_files(
            "kmnist/",
            """
            18165135 51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4 train-images-idx3-ubyte.gz
            29497 e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17 train-labels-idx1-ubyte.gz
            3041136 edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5 t10k-images-idx3-ubyte.gz
            5120 20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c t10k-labels-idx1-ubyte.gz
            """,
        ),
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        settings=_like_mnist("kmnist"),
    ),
    "cifar10": KnownSet(
        what="photographs of 10 kinds of things, 32 x 32 in colour: 50,000 and 10,000 for the test",
        licence="none stated by the author (Krizhevsky)",
        archive=File(
            "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
        files=_files(
            "cifar-10-batches-bin/",
            """
            30730000 aadd24acce27caa71bf4b10992e9e7b2d74c2540 data_batch_1.bin
            30730000 c0ba65cce70568cd57b4e03e9ac8d2a5367c1795 data_batch_2.bin
            30730000 1dd00a74ab1d17a6e7d73e185b69dbf31242f295 data_batch_3.bin
            30730000 aab85764eb3584312d3c7f65fd2fd016e36a258e data_batch_4.bin
            30730000 26e2849e66a845b7f1e4614ae70f4889ae604628 data_batch_5.bin
            30730000 67eb016db431130d61cd03c7ad570b013799c88c test_batch.bin
            """,
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        settings={
            "kind": "cifar_binary",
            "files": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
            "test_files": ["cifar-10-batches-bin/test_batch.bin"],
            "classes": 10,
        },
    ),
    "cifar100": KnownSet(
        what="photographs of 100 kinds of things, 32 x 32 in colour: 50,000 and 10,000 for the test",
        licence="none stated by the author (Krizhevsky)",
        archive=File(
            "cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        ),
        files=_files(
            "cifar-100-binary/",
            """
            153700000 e207cd2e05b73b1393c74c7f5e7bea451d63e08e train.bin
            30740000 8fb6623e830365ff53cf14adec797474f5478006 test.bin
            """,
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        settings={
            "kind": "cifar_binary",
            "files": ["cifar-100-binary/train.bin"],
            "test_files": ["cifar-100-binary/test.bin"],
            "classes": 100,
            "labels": 2,
        },
    ),
    "tiny_shakespeare": KnownSet(
        what="40,000 lines of Shakespeare, one million characters",
        licence="public domain; the repository is MIT (Karpathy)",
        files=_files(
            "tinyshakespeare/",
            """
            1115394 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed input.txt
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
        ),
        settings={"kind": "text", "path": "tinyshakespeare/input.txt", "level": "character"},
    ),
    "names": KnownSet(
        what="32,033 first names, a line each",
        licence="data of ssa.gov; the repository is MIT (Karpathy)",
        files=_files(
            "names/",
            """
            228145 0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d names.txt
            """,
        ),
        mirrors=("https://raw.githubusercontent.com/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/",),
        settings={"kind": "text", "path": "names/names.txt", "level": "character", "block": 16},
    ),
    "text8": KnownSet(
        what="100 million letters and spaces of the English Wikipedia",
        licence="CC BY-SA and GFDL (Wikipedia)",
        archive=File("text8.zip", 31_344_016, "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"),
        files=(File("text8", 100_000_000, "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"),),
        mirrors=("http://mattmahoney.net/dc/", "https://data.deepai.org/"),
        settings={"kind": "text", "path": "text8", "level": "character", "validation": 0.05, "test": 0.05},
    ),
    "enwik8": KnownSet(
        what="the first 100 million bytes of the English Wikipedia as XML",
        licence="CC BY-SA and GFDL (Wikipedia)",
        archive=File("enwik8.zip", 36_445_475, "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"),
        files=(File("enwik8", 100_000_000, "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"),),
        mirrors=("http://mattmahoney.net/dc/", "https://data.deepai.org/"),
        settings={"kind": "text", "path": "enwik8", "level": "byte", "validation": 0.05, "test": 0.05},
    ),
    "adult": KnownSet(
        what="census of 1994: income above 50,000 dollars or not; 32,561 rows and 16,281 for the test",
        licence="none stated there; UCI gives CC BY 4.0 (Becker, Kohavi)",
        files=_files(
            "tabular/adult/",
            """
            3974305 5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d adult-train.csv
            2003132 72567b94f5c1a6f8501377dd80f93892c3848ff071cf91ba47e00b0785a28074 adult-test.csv
            """,
        ),
        mirrors=("https://raw.githubusercontent.com/jbrownlee/Datasets/d20fcb6402ae34e653d4513b00f39257bb37ed7f/",),
        settings={
            "kind": "csv",
            "path": "tabular/adult/adult-train.csv",
            "test_path": "tabular/adult/adult-test.csv",
            "target": "income",
            "header": False,
            "names": [
                *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation"),
                *("relationship", "race", "sex", "capital_gain", "capital_loss", "hours_per_week"),
                *("native_country", "income"),
            ],
            "replace": {"<=50K.": "<=50K", ">50K.": ">50K"},
        },
    ),
    "california_housing": KnownSet(
        what="20,640 districts of California in 1990: the median value of a house",
        licence="none stated for the data; the repository is Apache-2.0 (StatLib, Pace and Barry)",
        files=_files(
            "tabular/california-housing/",
            """
            1423529 8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e housing.csv
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/ageron/handson-ml2/1e2115277b50f6c584cd668fa30e3af309a5b136/datasets/housing/",
        ),
        settings={
            "kind": "csv",
            "path": "tabular/california-housing/housing.csv",
            "target": "median_house_value",
            "target_unit": 100000.0,
        },
    ),
    "penguins": KnownSet(
        what="344 penguins of three species, measured",
        licence="CC0 1.0 (Horst, Hill, Gorman)",
        files=_files(
            "tabular/penguins/",
            """
            15241 f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93 penguins.csv
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/allisonhorst/palmerpenguins/8957207b78d6ccd1b4654a9dd9c9041b657478ab/inst/extdata/",
        ),
        settings={"kind": "csv", "path": "tabular/penguins/penguins.csv", "target": "species"},
    ),
    "multi30k": KnownSet(
        what="31,014 captions of pictures in English, German, French and Czech; the files alone",
        licence="none stated; for research (Elliott et al. 2016)",
        files=_files(
            "multi30k/",
            """
            22572 200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1 test_2016_flickr.cs.gz
            22890 9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8 test_2016_flickr.de.gz
            21077 611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9 test_2016_flickr.en.gz
            22310 6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90 test_2016_flickr.fr.gz
            21471 a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee test_2017_flickr.de.gz
            19138 76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074 test_2017_flickr.en.gz
            20434 3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496 test_2017_flickr.fr.gz
            10230 799e4854c25d601cb6cb6be29eabe5667734c61ace2f495e03e429031a0bc338 test_2017_mscoco.de.gz
            8844 aab300bfb4427697987e02cd0aacd44bfe8aa50456231b6474c08038bbed2b58 test_2017_mscoco.en.gz
            9751 754f3072ba9f124569ba5258b32730fc1d214bbf8e0c6dfb2b74401676220db0 test_2017_mscoco.fr.gz
            25181 7d0a9db904f94c554a8c58049a9f3a5357c27f46cc3d710d70cb0b4a2585b8c2 test_2018_flickr.cs.gz
            26461 ddd0130c7d97482dc5197a02141dae8dd79f20f03586c480d675c09a32daf608 test_2018_flickr.de.gz
            23514 ef4f4844037d4c5dea75c9a8ed5fd78905967a26f67c255e230cc9780032654d test_2018_flickr.en.gz
            25321 fb2b83fcceb937a4f7e3e93c1c51c22aba92f1e342391e6b5ba392b16a920501 test_2018_flickr.fr.gz
            593827 a65adb8b32e3bc664f21ecba7a6e7f6950fd1f405e135f7c312faabdb6255077 train.cs.gz
            637044 726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6 train.de.gz
            568929 d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f train.en.gz
            604242 622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c train.fr.gz
            22096 b63226e05c4bd5dd6a42897d74b86a1b9d2c31498252c572b1ea7f7996927fcc val.cs.gz
            24681 f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a val.de.gz
            21650 14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28 val.en.gz
            23001 ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9 val.fr.gz
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
        ),
    ),
    "sentence_polarity": KnownSet(
        what="10,662 sentences of film reviews, for and against; the file alone",
        licence="CC BY 4.0 (Pang and Lee)",
        files=_files(
            "nltk-sentiment/",
            """
            490256 6e1ed4405b65c7eabf1d199a7f7c437091ac21da0ea7467b410a74062574566b sentence_polarity.zip
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora/",
        ),
    ),
    "subjectivity": KnownSet(
        what="10,000 sentences on films, of opinion and of fact; the file alone",
        licence="CC BY 4.0 (Pang and Lee)",
        files=_files(
            "nltk-sentiment/",
            """
            521628 741f3371e1a4375051b874fd82fd55857b90975473c91c19a3101cbe17fc4d8c subjectivity.zip
            """,
        ),
        mirrors=(
            "https://raw.githubusercontent.com/nltk/nltk_data/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora/",
        ),
    ),
}


# -- where files are ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where functrain keeps what can be made again: FUNCTRAIN_CACHE, or ~/.cache/functrain."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FUNCTRAIN_CACHE") or Path(home) / "functrain")


def download_folder() -> Path:
    """Where `functrain data get` puts files: the folder that FUNCTRAIN_DATA names, or `data` in the cache folder."""
    named = os.environ.get("FUNCTRAIN_DATA")
    return Path(named) if named else cache_folder() / "data"


def folders() -> tuple[Path, ...]:
    """Where files are looked for, in this order: the working directory, FUNCTRAIN_DATA, the cache folder's `data`."""
    return tuple(dict.fromkeys([Path(), download_folder(), cache_folder() / "data"]))


def locate(file: File) -> Path | None:
    """The first place where the file is; None where it is nowhere."""
    return next((folder / file.path for folder in folders() if os.path.isfile(folder / file.path)), None)
