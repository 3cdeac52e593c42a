"""Ratings: the layouts of files, the splits against plain loops, what describes items, mistakes."""

import collections
import dataclasses
import itertools
import time
import tomllib

import numpy as np
import pytest

from functrain.config import ConfigError, dump, parse
from functrain.data import AnyData, Ratings, rating_files
from functrain.data.base import reader

PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUNCTRAIN_DATA", raising=False)


def generated(users=23, items=31, n=400, seed=0):
    """Low-rank ratings: (user, item, rating, time) as text, each pair once, in no order, some at equal times."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(users, 2)) @ rng.normal(size=(2, items))
    stars = np.clip(np.round(2 * (3.0 + score)) / 2, 0.5, 5.0)
    pairs = rng.permutation(users * items)[:n].tolist()
    times = rng.integers(880_000_000, 880_000_000 + n // 3, n).tolist()
    return [
        (str(3 * (pair // items) + 2), str(pair % items + 1), f"{stars[divmod(pair, items)]:g}", str(at))
        for pair, at in zip(pairs, times)
    ]


def write(path, rows, mark=",", header="", end="\n"):
    """A file with a line for each row."""
    lines = ([header] if header else []) + [mark.join(row) for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write("".join(line + end for line in lines))
    return str(path)


HEADER = "userId,movieId,rating,timestamp"


def plain(rows, **settings):
    """The source of a file of rows, in MovieLens's CSV."""
    return Ratings(path=write("ratings.csv", rows, header=HEADER), **settings)


def decoded(made):
    """{split: [(user, item, rating)]} as text, None where the number is below 0."""
    users, items = made.found["users"], made.found["items"]

    def row(x, y):
        return (users[x[0]] if x[0] >= 0 else None, items[x[1]] if x[1] >= 0 else None, f"{y:g}")

    return {
        split: [row(*pair) for pair in zip(part["x"].tolist(), part["y"].tolist())]
        for split in PARTS
        if (part := made.split(split))
    }


def check_splits(made, wanted):
    """That the splits hold these rows (in any order), each numbered by the training ones."""
    users = sorted({row[0] for row in wanted["train"]}, key=int)
    items = sorted({row[1] for row in wanted["train"]}, key=int)
    assert made.found["users"] == tuple(users)
    assert made.found["items"] == tuple(items)
    assert made.fields == (len(users), len(items))

    def seen(row):
        return (row[0] if row[0] in users else None, row[1] if row[1] in items else None, row[2])

    found = decoded(made)
    assert set(found) == {split for split in PARTS if wanted[split]}
    for split, rows in found.items():
        assert collections.Counter(rows) == collections.Counter(map(seen, wanted[split])), split


def mistake(call, *parts):
    """The one line of a mistake, which holds each of the parts."""
    with pytest.raises(ConfigError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 400
    for part in parts:
        assert part in line, line


def settled(source, made):
    """The source as a run's config keeps it: with what it found, through TOML."""
    kept = dataclasses.replace(source, **made.found)
    again = parse(Ratings, tomllib.loads(dump(kept)))
    assert again == kept
    return again


# -- reading --------------------------------------------------------------------------------------

LAYOUTS = {
    "u.data": lambda rows: {"path": write("u.data", rows, "\t")},
    "tab": lambda rows: {"path": write("r.txt", rows, "\t"), "layout": "tab"},
    "ratings.dat": lambda rows: {"path": write("ratings.dat", rows, "::")},
    "colons": lambda rows: {"path": write("r.txt", rows, "::"), "layout": "colons"},
    "ratings.csv": lambda rows: {"path": write("ratings.csv", rows, header=HEADER)},
    "windows": lambda rows: {"path": write("ratings.csv", rows, header="\ufeff" + HEADER, end="\r\n"), "layout": "csv"},
    "quoted": lambda rows: {"path": write("q.csv", [[f'"{cell}"' for cell in row] for row in rows], ", ", HEADER)},
    "atomic": lambda rows: {
        "path": write("a.inter", rows, "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
        "user": "user_id:token",
        "item": "item_id:token",
        "rating": "rating:float",
        "time": "timestamp:float",
    },
    "other order": lambda rows: {
        "path": write("o.csv", [(at, "x y", i, r, u) for u, i, r, at in rows], ";", "when;why;what;stars;who"),
        "user": "who",
        "item": "what",
        "rating": "stars",
        "time": "when",
    },
    "names": lambda rows: {
        "path": write("n.txt", [(i, u, at, "7", r) for u, i, r, at in rows], " "),
        "delimiter": " ",
        "names": ("movieId", "userId", "timestamp", "-", "rating"),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_arrays(layout):
    rows = generated()
    users, items = (sorted({row[k] for row in rows}, key=int) for k in (0, 1))
    x = [(users.index(row[0]), items.index(row[1])) for row in rows]
    source = Ratings(**LAYOUTS[layout](rows), validation=0.0, test=0.0)
    made = source.load()
    at = np.random.default_rng(0).permutation(len(rows))  # as `split_at_random` draws
    assert made.train["x"].dtype == np.int32
    assert made.train["y"].dtype == np.float32
    np.testing.assert_array_equal(made.train["x"], np.array(x)[at])
    np.testing.assert_array_equal(made.train["y"], np.array([float(row[2]) for row in rows], np.float32)[at])
    assert (made.fields, made.inputs, made.classes) == ((23, 31), (2,), 0)
    assert made.validation == made.test == {}
    assert made.found["repeated"] == 0
    by_time = dataclasses.replace(source, split_by="time", test=0.25).load()  # so that the times were read
    assert by_time.test["y"].tolist() == [float(row[2]) for row in sorted(rows, key=lambda row: int(row[3]))[-100:]]


def test_numbers_are_parsed_in_blocks_and_equal_what_is_read_row_by_row(monkeypatch):
    rows = [(u, i, f"{float(r) - 2.75:.4f}", at + ".5") for u, i, r, at in generated(n=300)]
    rows[7] = ("123456789012345", "0", "-0", "0")
    careful = []
    keep = rating_files.File._carefully
    monkeypatch.setattr(rating_files.File, "_carefully", lambda *args: careful.append(1) or keep(*args))
    for mark, header in ((",", HEADER), ("::", ""), ("\t", "")):
        path = write("r.txt", rows, mark, header)
        with open(path, "r+b") as file:
            file.truncate(file.seek(0, 2) - 1)  # no line feed at the end
        made = []
        for block in (1, 1 << 26):
            monkeypatch.setattr(rating_files, "_BLOCK", block)
            made.append(Ratings(path=path, split_by="time").load())
        assert not careful
        with monkeypatch.context() as patch:
            patch.setattr(rating_files.File, "_quickly", lambda *args: None)
            made.append(Ratings(path=path, split_by="time").load())
        assert careful.pop()
        for other in made[1:]:
            assert other.found == made[0].found
            for split in PARTS:
                for name, a in made[0].split(split).items():
                    np.testing.assert_array_equal(other.split(split)[name], a)
    assert "123456789012345" in made[0].found["users"]


def test_ids_are_text_in_numeric_order_where_all_are_whole_numbers():
    rows = [("10", "b", "1", "0"), ("9", "a", "2", "0"), ("010", "é", "3", "0")]
    made = plain(rows, validation=0.0, test=0.0).load()
    assert made.found["users"] == ("9", "010", "10")
    assert made.found["items"] == ("a", "b", "é")
    assert sorted(decoded(made)["train"]) == sorted(row[:3] for row in rows)
    rows.append(("x", "a", "1.5e0", "0"))
    made = plain(rows, validation=0.0, test=0.0).load()
    assert made.found["users"] == ("010", "10", "9", "x")
    assert ("x", "a", "1.5") in decoded(made)["train"]
    made = plain([("10", "007", "1", "0"), ("010", "7", "2", "0")], validation=0.0, test=0.0).load()
    assert sorted(decoded(made)["train"]) == [("010", "7", "2"), ("10", "007", "1")]


def test_without_ratings_each_row_is_an_interaction():
    rows = generated(n=50)
    for path, settings in (
        (write("pairs.csv", [row[:2] for row in rows], header="userId,movieId"), {"rating": "", "time": ""}),
        (write("pairs.txt", [row[:2] for row in rows], "\t"), {}),
        (write("u.data", rows, "\t"), {"rating": ""}),
    ):
        made = Ratings(path=path, validation=0.0, test=0.0, **settings).load()
        assert sorted(decoded(made)["train"]) == sorted((*row[:2], "1") for row in rows)


def test_many_numbers_are_read_quickly():
    rows = 100_000
    text = "".join(f"{i * 7919 % 5003}\t{i % 3001}\t{i % 5 + 1}\t{i}\n" for i in range(rows))
    with open("u.data", "w") as file:
        file.write(text)
    start = time.thread_time()
    made = Ratings(path="u.data", validation=0.0, test=0.0).load()
    assert time.thread_time() - start < 2.0  # some 0.1 s
    assert made.fields == (5003, 3001)
    assert len(made) + made.found["repeated"] == rows


# -- what is left out -----------------------------------------------------------------------------


def test_of_a_repeated_pair_the_last_by_time_is_kept():
    rows = [
        ("1", "1", "1", "50"),
        ("1", "2", "2", "10"),
        ("1", "1", "3", "40"),  # later in the file, earlier in time
        ("2", "1", "4", "10"),
        ("1", "2", "5", "10"),  # at the same time: the later in the file
        ("2", "2", "3", "10"),
    ]
    kept = [("1", "1", "1"), ("1", "2", "5"), ("2", "1", "4"), ("2", "2", "3")]
    made = plain(rows, validation=0.0, test=0.0).load()
    assert sorted(decoded(made)["train"]) == kept
    assert made.found["repeated"] == 2
    made = plain(rows, validation=0.0, test=0.0, time="").load()
    assert sorted(decoded(made)["train"]) == [("1", "1", "3"), *kept[1:]]
    made = plain(rows, validation=0.0, test=0.0, positive=3).load()  # what was changed to a low one is no interaction
    assert sorted(decoded(made)["train"]) == [("1", "2", "1"), ("2", "1", "1"), ("2", "2", "1")]
    other = write("test.csv", rows[:1], header=HEADER)  # another file may have the same pair
    made = plain(rows, validation=0.0, test_path=other).load()
    assert decoded(made)["test"] == [("1", "1", "1")]
    assert len(made) == 4


def core(rows, least_user, least_item):
    """The k-core by plain loops."""
    while True:
        users = collections.Counter(row[0] for row in rows)
        items = collections.Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= least_user and items[row[1]] >= least_item]
        if len(kept) == len(rows):
            return rows
        rows = kept


@pytest.mark.parametrize(("least_user", "least_item"), [(0, 9), (11, 0), (7, 6), (8, 6)])
def test_the_core_is_that_of_a_plain_loop(least_user, least_item):
    rows = generated(n=250)
    wanted = core(rows, least_user, least_item)
    assert 0 < len(wanted) < len(rows)
    made = plain(rows, validation=0.0, test=0.0, least_user=least_user, least_item=least_item).load()
    check_splits(made, {"train": wanted, "validation": [], "test": []})


def test_the_core_takes_several_rounds_and_follows_positive():
    rows = [("1", "1", "5", "0"), ("1", "2", "5", "0"), ("2", "2", "5", "0"), ("2", "3", "5", "0")]
    rows += [(u, i, "5", "0") for u in ("3", "4", "5") for i in ("4", "5", "6")] + [("2", "1", "1", "0")]
    source = plain(rows, validation=0.0, test=0.0, least_user=2, least_item=2)
    assert {row[0] for row in decoded(source.load())["train"]} == {"1", "2", "3", "4", "5"}
    found = decoded(dataclasses.replace(source, positive=2.0).load())["train"]  # without 2, 1: item 1, then 1, 2, 2
    assert sorted(found) == [(u, i, "1") for u in ("3", "4", "5") for i in ("4", "5", "6")]


def test_positive_keeps_ratings_from_it_on_as_interactions():
    rows = generated()
    wanted = [(u, i, "1", at) for u, i, r, at in rows if float(r) >= 4]
    made = plain(rows, validation=0.0, test=0.0, positive=4).load()
    check_splits(made, {"train": wanted, "validation": [], "test": []})
    made = plain(rows, split_by="time", positive=4).load()
    assert {tuple(np.unique(made.split(split)["y"])) for split in PARTS} == {(1.0,)}


# -- splits ---------------------------------------------------------------------------------------


def test_at_random_every_rating_is_in_one_split_and_the_seed_decides():
    rows = generated()
    source = plain(rows, validation=0.15, test=0.25)
    found, again = decoded(source.load()), decoded(source.load())
    assert found == again
    assert {split: len(part) for split, part in found.items()} == {"train": 240, "validation": 60, "test": 100}
    assert collections.Counter(itertools.chain(*found.values())) == collections.Counter(row[:3] for row in rows)
    assert decoded(dataclasses.replace(source, split_seed=1).load())["test"] != found["test"]


def test_over_all_folds_each_rating_is_tested_once():
    rows = generated(n=200)
    parts = [decoded(plain(rows, folds=4, fold=k, least_user=5).load()) for k in range(4)]
    assert sorted(itertools.chain(*(part["test"] for part in parts))) == sorted(row[:3] for row in core(rows, 5, 0))
    parts = [plain(rows, folds=4, fold=k, split_by="cold_items", validation=0.0).load() for k in range(4)]
    assert sum(len(part.test["y"]) for part in parts) == len(rows)
    assert all((part.test["x"][:, 1] == -1).all() for part in parts)
    trained = collections.Counter(item for part in parts for item in part.found["items"])
    assert trained == {row[1]: 3 for row in rows}


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.33), (0.2, 0.0)])
def test_by_time_the_latest_are_the_test(validation, test):
    rows = generated()
    ordered = sorted(rows, key=lambda row: int(row[3]))  # stable, as the file has them
    at_test = 400 - round(400 * test)
    at = at_test - round(400 * validation)
    wanted = {"train": ordered[:at], "validation": ordered[at:at_test], "test": ordered[at_test:]}
    check_splits(plain(rows, split_by="time", validation=validation, test=test).load(), wanted)


def left_out(rows, taken):
    """Leave one out, by plain loops: `taken` are the splits that get each user's latest, the one before, ..."""
    wanted = {split: [] for split in PARTS}
    for user in {row[0] for row in rows}:
        own = sorted((row for row in rows if row[0] == user), key=lambda row: int(row[3]))
        for split in taken if len(own) > len(taken) else ():
            wanted[split].append(own.pop())
        wanted["train"] += own
    return wanted


def test_leave_one_out_takes_each_users_latest():
    rows = generated(n=300) + [("1000", "1", "5", "1"), ("1001", "2", "4", "2"), ("1001", "1", "3", "1")]
    source = plain(rows, split_by="leave_one_out")
    wanted = left_out(rows, ("test", "validation"))
    assert len(wanted["test"]) == len(wanted["validation"]) == len({row[0] for row in rows}) - 2
    check_splits(source.load(), wanted)
    wanted = left_out(rows, ("test",))
    assert ("1001", "2", "4", "2") in wanted["test"]
    check_splits(dataclasses.replace(source, validation=0.0).load(), wanted)
    in_file = [(*row[:3], str(i)) for i, row in enumerate(rows)]
    check_splits(dataclasses.replace(source, time="").load(), left_out(in_file, ("test", "validation")))


def test_cold_items_are_whole_items():
    rows = generated()
    made = plain(rows, split_by="cold_items", validation=0.1, test=0.2).load()
    items = dict(zip(PARTS, np.split(np.random.default_rng(0).permutation(31), [6, 9])[::-1]))  # as split_at_random
    ordered = sorted({row[1] for row in rows}, key=int)
    wanted = {split: [row for row in rows if ordered.index(row[1]) in which] for split, which in items.items()}
    check_splits(made, wanted)
    assert {len({row[1] for row in part}) for part in wanted.values()} == {22, 3, 6}
    assert (made.test["x"][:, 1] == -1).all()


@pytest.mark.parametrize("split_by", ["random", "time", "leave_one_out", "cold_items"])
def test_a_given_test_file_is_the_test(split_by):
    rows = generated()
    base, held = rows[:320], [*rows[320:], ("999", "1", "2.5", "1"), ("2", "998", "1", "2")]
    path = {"path": write("u1.base", base, "\t"), "test_path": write("u1.test", held, "\t")}
    made = Ratings(**path, split_by=split_by, validation=0.2).load()
    found = decoded(made)
    assert len(found["test"]) == len(held)
    assert [row[2] for row in found["test"]] == [row[2] for row in held]
    assert found["test"][-2][0] is None
    assert found["test"][-1][1] is None
    assert len(found["train"]) + len(found["validation"]) == len(base)
    if split_by == "leave_one_out":
        check_splits(made, left_out(base, ("validation",)) | {"test": held})
    elif split_by != "cold_items":
        assert len(found["validation"]) == 64
    whole = Ratings(**path, split_by=split_by, validation_path=path["test_path"]).load()
    assert decoded(whole)["validation"] == decoded(whole)["test"]
    check_splits(whole, {"train": base, "validation": held, "test": held})


def test_times_count_where_all_files_have_them():
    rows = [("1", "1", "1", "2"), ("1", "1", "2", "1")]
    path = {"path": write("r.dat", rows, "::"), "test_path": write("t.dat", [row[:3] for row in rows], "::")}
    made = Ratings(**path, validation=0.0).load()
    assert decoded(made) == {"train": [("1", "1", "2")], "test": [("1", "1", "2")]}
    mistake(Ratings(**path, split_by="time").load, "data.split_by", "times")


# -- what describes the items ---------------------------------------------------------------------

FILMS = {
    "1": ("Toy, toy Story (1995)", ("Animation", "Children's", "Comedy")),
    "2": ("GoldenEye: the Agent (1995)", ("Action", "Thriller")),
    "3": ("Été, story of the sea (1996)", ("Comedy",)),
    "4": ("Nothing", ()),
    "6": ("The Sea, the Sea (1966)", ("Drama", "Western")),
    "77": ("Of No Rating (2000)", ("War",)),
}
FLAGS = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def films(form):
    """A file of the films; the settings that read it."""
    if form == "u.item":
        lines = [
            "|".join((item, title, "01-Jan-1995", "", "http://x", *(str(int(f in genres)) for f in FLAGS)))
            for item, (title, genres) in FILMS.items()
        ]
        encoding, settings = "latin-1", {}
    elif form == "movies.dat":
        lines = [f"{item}::{title}::{'|'.join(genres)}" for item, (title, genres) in FILMS.items()]
        encoding, settings = "latin-1", {}
    elif form == "movies.csv":
        lines = [
            f'{item},"{title}",{"|".join(genres) or "(no genres listed)"}' for item, (title, genres) in FILMS.items()
        ]
        lines, encoding, settings = ["movieId,title,genres", *lines], "utf-8", {}
    else:
        lines = [f"{' '.join(genres)}\t{item}\t{title}" for item, (title, genres) in FILMS.items()]
        lines, encoding = ["class:token_seq\tmovieId\tmovie_title:token_seq", *lines], "utf-8"
        settings = {"content": ("class:token_seq",), "content_separator": " ", "title": "movie_title:token_seq"}
    with open(form, "wb") as file:
        file.write("".join(line + "\n" for line in lines).encode(encoding))
    return {"items_path": form, **settings}


RATED = [("1", item, "3", at) for item, at in zip(("3", "1", "2", "5", "4"), "12345")]
COLD = [("1", "6", "4", "9"), ("1", "9", "4", "9")]  # described, and not


@pytest.mark.parametrize("form", ["u.item", "movies.dat", "movies.csv", "a.item"])
def test_each_layout_of_items_gives_the_same_content(form):
    settings = {"test_path": write("test.csv", COLD, header=HEADER), "validation": 0.0} | films(form)
    made = plain(RATED, **settings).load()
    items = ("1", "2", "3", "4", "5", "6")
    genres = ("Action", "Animation", "Children's", "Comedy", "Thriller")  # of the training items
    assert made.found["items"] == items
    assert made.fields == (1, 6)
    assert made.test["x"].tolist() == [[0, 5], [0, -1]]
    column = settings.get("content", ("genres",))[0]
    assert made.found["content_names"] == tuple(f"{column}: {genre}" for genre in genres)
    wanted = [[float(genre in FILMS.get(item, ("", ()))[1]) for genre in genres] for item in items]
    assert made.constants["content"].dtype == np.float32
    assert made.constants["content"].tolist() == wanted

    made = plain(RATED, **settings | {"title_words": 3}).load()
    words = ("story", "the", "agent")  # two in two titles each, then in the order of text
    assert made.found["content_names"][5:] == tuple(f"title word: {word}" for word in words)
    wanted = [[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert made.constants["content"][:, 5:].tolist() == wanted
    made = plain(RATED, **settings | {"title_words": 50, "content": ()}).load()
    names = tuple(name.removeprefix("title word: ") for name in made.found["content_names"])
    assert names == ("story", "the", "agent", "goldeneye", "nothing", "of", "sea", "toy", "été")
    assert made.constants["content"][5].tolist() == [float(name in ("the", "sea")) for name in names]


def test_a_resumed_run_uses_the_numbers_and_names_of_the_first():
    settings = {"test_path": write("test.csv", COLD, header=HEADER), "validation": 0.0, "title_words": 2}
    source = plain(RATED, **settings, **films("movies.csv"))
    made = source.load()
    again = settled(source, made)
    repeat = again.load()
    assert repeat.found == made.found
    np.testing.assert_array_equal(repeat.constants["content"], made.constants["content"])
    fewer = dataclasses.replace(again, path=write("fewer.csv", RATED[:1], header=HEADER)).load()
    assert fewer.found == made.found
    assert fewer.train["x"].tolist() == [[0, 2]]
    np.testing.assert_array_equal(fewer.constants["content"], made.constants["content"])


def test_cold_items_with_content_have_rows_after_the_training_ones():
    rows = [("1", item, "3", "0") for item in ("1", "2", "3", "4", "5", "6")]
    made = plain(rows, split_by="cold_items", validation=0.0, test=0.5, **films("movies.csv")).load()
    cold = np.random.default_rng(0).permutation(6)[:3]  # as split_at_random draws
    test = sorted(str(i + 1) for i in cold)
    trained = tuple(item for item in "123456" if item not in test)
    assert made.found["items"] == (*trained, *(item for item in test if item in FILMS))
    assert sorted(made.test["x"][:, 1].tolist()) == sorted(
        made.found["items"].index(i) if i in FILMS else -1 for i in test
    )


# -- in a run -------------------------------------------------------------------------------------


def test_a_run_encodes_new_pairs_as_its_training_ones():
    rows = generated()
    source = plain(rows, split_by="cold_items")
    made = source.load()
    assert source.read_inputs("ratings.csv") is None  # no ids are known yet
    run = settled(source, made)
    ids = [(row[0], row[1]) for row in rows]
    users, items = made.found["users"], made.found["items"]
    wanted = [[users.index(u), items.index(i) if i in items else -1] for u, i in ids]
    assert -1 in np.array(wanted)
    cases = {
        write("a.csv", rows, header=HEADER): wanted,
        write("b.csv", [("?", i, u) for u, i in ids], header="note,movieId,userId"): wanted,
        write("c.tsv", ids, "\t"): wanted,
        write("d.dat", ids, "::"): wanted,
        write("e.txt", [*ids, ("31415", "1"), ("2", "nobody's")], "\t"): [
            *wanted,
            [-1, items.index("1") if "1" in items else -1],
            [0, -1],
        ],
    }
    for path, x in cases.items():
        found = run.read_inputs(path)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(run.encode([{"userId": int(u), "movieId": i} for u, i in ids]), wanted)
    named = dataclasses.replace(run, names=("movieId", "userId", "rating", "timestamp"))
    np.testing.assert_array_equal(named.read_inputs(write("f.txt", [(i, u) for u, i in ids], "\t")), wanted)
    assert run.read_inputs("a.npy") is None
    mistake(lambda: run.encode([{"userId": 1, "movieId": 2}, {"userId": 1}]), "row 1", "'movieId'", "userId")
    mistake(lambda: run.read_inputs(write("g.csv", ids, header="userId,film")), "g.csv: line 1", "'movieId'", "film")
    mistake(lambda: run.read_inputs("none.csv"), "none.csv", "No such file")


def test_a_config_names_it_and_describes_it():
    source = plain(generated(), **films("movies.csv"))
    data = {"data": {"kind": "ratings", "path": "ratings.csv", "items_path": "movies.csv"}}

    @dataclasses.dataclass
    class Holder:
        data: AnyData  # pyright: ignore[reportInvalidTypeForm]

    assert parse(Holder, data).data == source
    assert source.batch_size == 1024
    assert reader(source) is source
    lines = settled(source, source.load()).describe()
    assert lines["users"].startswith("23: 2, 5, 8, 11")
    assert lines["items"].startswith("31: 1, 2, 3")
    assert lines["content_names"].startswith("7: genres: Action, genres: Animation")
    assert lines["repeated"].startswith("0 ")
    assert all(len(line) < 200 for line in lines.values())


# -- mistakes -------------------------------------------------------------------------------------

GOOD = "userId,movieId,rating,timestamp\n1,2,3,4\n1,3,3,4\n"

FILES = {
    "empty": ("", {}, ("no ratings",)),
    "blank": ("\n\n", {}, ("no ratings",)),
    "header alone": (HEADER + "\n", {}, ("no ratings",)),
    "too few cells": (GOOD + "\n1,4,3\n", {}, ("line 5", "3 cells; expected 4")),
    "too many cells": ("1\t2\t3\t4\n1\t2\t3\t4\t5\n", {}, ("line 2", "5 cells; expected 4")),
    "unnamed cells": ("1\t2\t3\t4\t5\n", {}, ("line 1", "5 cells; expected 2 to 4", "data.names")),
    "wrong count of names": ("1,2,3\n", {"names": HEADER.split(",")}, ("line 1", "3 cells; expected 4")),
    "rating no number": (GOOD + "1,4,good,4\n", {}, ("line 4", "'rating'", "'good'", "finite number")),
    "rating not finite": (GOOD + "1,4,nan,4\n", {}, ("line 4", "'rating'", "'nan'", "finite number")),
    "rating too large": (GOOD + "1,4,1e39,4\n", {}, ("line 4", "'rating'", "'1e39'", "finite number")),
    "rating missing": (GOOD + "1,4,,4\n", {}, ("line 4", "'rating'", "missing", "finite number")),
    "time no number": (GOOD + "1,4,3,1998-01-01\n", {}, ("line 4", "'timestamp'", "'1998-01-01'", "number")),
    "no user": (GOOD + " ,4,3,4\n", {}, ("line 4", "'userId'", "missing", "id")),
    "colons": ("1::2::3::4\n1::2::3\n", {}, ("line 2", "3 cells; expected 4")),
    "no column": ("userId,item,rating,timestamp\n1,2,3,4\n", {}, ("line 1", "'movieId'", "item", "data.item")),
    "no rating": ("userId,movieId,timestamp\n1,2,3\n", {}, ("line 1", "'rating'", 'data.rating, or "" for none')),
    "column twice": ("userId,movieId,rating,rating\n1,2,3,4\n", {}, ("line 1", "'rating' is there twice")),
    "no delimiter": ("12345\n", {}, ("line 1", "'12345'", "tab")),
    "quotes": (GOOD + '1,"4,3,4\n', {}, ("line 4", "unexpected end of data")),
    "not utf-8": (GOOD.encode() + b"\xe9,4,3,4\n", {}, ("not UTF-8",)),
    "not utf-8 at once": (b"\xe9,4,3,4\n", {}, ("not UTF-8",)),
    "no times": ("1,2,3\n1,3,3\n2,3,3\n", {"split_by": "time"}, ("data.split_by", "time")),
    "too positive": (GOOD, {"positive": 4.0}, ("data.positive", "4.0")),
    "no core": (GOOD, {"least_user": 3}, ("data.least_user", "3, 0", "no ratings")),
    "too many folds": (GOOD, {"folds": 3}, ("data.folds", "3", "2 examples")),
    "folds of a given test": (GOOD, {"folds": 2, "test_path": "r.csv"}, ("data.folds", "2")),
    "nothing to train on": (GOOD, {"test": 0.9}, ("r.csv", "train on")),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_is_one_line(case):
    text, settings, parts = FILES[case]
    with open("r.csv", "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())
    where = () if parts[0].startswith("data.") else ("data.path: ", "r.csv")
    mistake(Ratings(path="r.csv", **settings).load, *where, *parts)


ITEMS = {
    "empty": ("", {}, ("expected a table",)),
    "header alone": ("movieId,genres\n", {}, ("describes none", "2, 3")),
    "no content": ("movieId,name\n1,a\n", {}, ("line 1", "'genres'", "data.content")),
    "no titles": ("movieId,genres\n1,a\n", {"title_words": 3}, ("line 1", "'title'", "data.title")),
    "no item": ("id,genres\n1,a\n", {}, ("line 1", "'movieId'", "data.item")),
    "cells": ("movieId,genres\n1,a\n2\n", {}, ("line 3", "1 cells; expected 2")),
    "twice": ("movieId,genres\n1,a\n2,b\n1,c\n", {}, ("line 4", "'1'", "twice")),
    "others": ("movieId,genres\nx,a\n", {}, ("describes none", "2, 3")),
    "nothing": ("movieId,genres\n2,\n", {}, ("has nothing", "data.content")),
    "flags": ("2|a|b|c|d|" + "|".join("0" * 18 + "2") + "\n", {}, ("line 1", "'2'", "0 or 1")),
}


@pytest.mark.parametrize("case", ITEMS)
def test_a_mistake_in_the_items_is_one_line(case):
    text, settings, parts = ITEMS[case]
    for path, content in (("r.csv", GOOD), ("i.csv", text)):
        with open(path, "w") as file:
            file.write(content)
    source = Ratings(path="r.csv", items_path="i.csv", validation=0.0, test=0.0, **settings)
    mistake(source.load, "data.items_path: ", "i.csv", *parts)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"held_out": [1]}, ("held_out", "[1]", "cold_items")),
        ({"folds": 3, "split_by": "time"}, ("folds", "3", "time")),
        ({"user": "rating"}, ("'rating' twice",)),
        ({"delimiter": "ab"}, ("delimiter", "'ab'")),
        ({"names": ["userId", "movieId", "time"]}, ("names", "'rating'")),
        ({"items_path": "a", "content": []}, ("content", "title_words")),
        ({"positive": -1.0}, ("positive", "-1.0")),
        ({"split_by": "item"}, ("split_by", "item")),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(settings, parts):
    mistake(lambda: parse(Ratings, {"kind": "ratings", "path": "r.csv", **settings}), *parts)


def test_a_file_that_is_not_there_is_named_by_its_key():
    mistake(Ratings(path="none.csv").load, "data.path", "none.csv")
    write("r.csv", generated(), header=HEADER)
    mistake(Ratings(path="r.csv", test_path="none.csv").load, "data.test_path", "none.csv")
    mistake(Ratings(path="r.csv", items_path="none.csv").load, "data.items_path", "none.csv")
