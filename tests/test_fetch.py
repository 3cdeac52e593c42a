"""Known data sets: downloads that are cut, wrong, slow or redirected; the table; the source that reads them by name."""

import hashlib
import http.server
import io
import os
import resource
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.parse import urlsplit

import numpy as np
import pytest
from rich.console import Console

from functrain import config as configs
from functrain.cli import main
from functrain.config import ConfigError, parse
from functrain.data import fetch, known
from functrain.data.known import KNOWN, File, KnownSet
from functrain.data.named import READERS, Known

CONTENT = np.random.default_rng(0).bytes(5_000)
PATH = "toy/a.bin"


def file_of(path, content, algorithm="sha256"):
    """The table's entry for a file."""
    return File(path, len(content), hashlib.new(algorithm, content).hexdigest())


# -- a server that misbehaves as it is told -------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """`files` by path, and `script`: what it does at each request, one after another; then it behaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.script, self.seen = {}, [], []
        self.leave, self.gone = threading.Event(), 0

    @property
    def address(self):
        """Of its root."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that go away are what is tested."""
        self.gone += 1


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a request as `Server.script` says."""

    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        """A file, whole or from where the Range begins, with what the script wants done to it."""
        server, path = self.server, urlsplit(self.path).path
        what = server.script.pop(0) if server.script else ""
        server.seen.append((path, self.headers.get("Range")))
        what, _, size = what.partition(" ")
        if what.isdecimal() or path not in server.files:
            self.send_error(int(what or 404))
            return
        if what == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{server.address}{path}?again")
            self.end_headers()
            return
        body, begin = server.files[path], 0
        whole = len(body)
        if (asked := self.headers.get("Range")) and what != "norange":
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        if what == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        body = body[begin:] + b"x" * (1000 if what == "long" else 0)
        self.send_response(206 if begin else 200)
        if begin:
            first = 7 if what == "elsewhere" else begin
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        if what not in ("long", "nolength"):
            self.send_header("Content-Length", str(len(body) + (what == "length")))
        self.end_headers()
        if what in ("cut", "nolength"):
            body = body[: int(size)]
        if what == "stall":
            self.wfile.write(body[: int(size)])
            self.wfile.flush()
            server.leave.wait(20)
            return
        if what == "slow":
            for i in range(0, len(body), 500):
                self.wfile.write(body[i : i + 500])
                self.wfile.flush()
                server.leave.wait(0.03)
            return
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    """A server with the toy set's file, until the test ends; nothing between it and us."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FUNCTRAIN_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    running.files[f"/{PATH}"] = CONTENT
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.leave.set()
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory and an empty cache; the table has a toy set."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FUNCTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUNCTRAIN_DATA", raising=False)
    monkeypatch.setitem(KNOWN, "toy", KnownSet("a toy", "none", (file_of(PATH, CONTENT),), ("http://nowhere/",)))
    return tmp_path / "work"


def get(server, name="toy", **more):
    """`fetch.get` into the working directory."""
    return fetch.get(name, Path(), mirrors=(server.address,), **{"wait": 0.001, "timeout": 0.4} | more)


def left():
    """Every file below the working directory."""
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


# -- one file -------------------------------------------------------------------------------------

TURNS_OUT_WELL = {
    # name: (what is there of it before, what the server does, the Range of each request)
    "at-once": (None, [], [None]),
    "length-not-told": (None, ["nolength 9000"], [None]),
    "cut": (None, ["cut 3000"], [None, "bytes=3000-"]),
    "cut-twice": (None, ["cut 3000", "cut 1000"], [None, "bytes=3000-", "bytes=4000-"]),
    "cut-length-not-told": (None, ["nolength 3000"], [None, "bytes=3000-"]),
    "cut-at-nothing": (None, ["cut 0"], [None, None]),
    "cut-and-no-ranges": (None, ["cut 3000", "norange"], [None, "bytes=3000-"]),
    "no-ranges-cut-again": (None, ["cut 3000", "cut 0", "norange"], [None, "bytes=3000-", "bytes=3000-"]),
    "another-part": (None, ["cut 3000", "elsewhere"], [None, "bytes=3000-", None]),
    "stalls": (None, ["stall 2000"], [None, "bytes=2000-"]),
    "trickles": (None, ["slow"], [None]),
    "busy": (None, ["503", "500"], [None, None, None]),
    "too-many-requests": (None, ["429"], [None, None]),
    "redirected": (None, ["redirect"], [None, None]),
    "redirected-in-the-middle": (None, ["cut 3000", "redirect"], [None, "bytes=3000-", "bytes=3000-"]),
    "begun": (CONTENT[:1234], [], ["bytes=1234-"]),
    "begun-no-ranges": (CONTENT[:1234], ["norange"], ["bytes=1234-"]),
    "begun-range-refused": (CONTENT[:1234], ["416"], ["bytes=1234-", None]),
    "begun-wrongly": (b"x" * 1234, [], ["bytes=1234-", None]),
    "begun-wrongly-and-cut": (b"x" * 1234, ["", "cut 10"], ["bytes=1234-", None, "bytes=10-"]),
    "whole-but-not-named": (CONTENT, [], []),
    "whole-and-wrong": (b"x" * 5000, [], [None]),
    "longer": (CONTENT + b"x", [], [None]),
}


@pytest.mark.parametrize("name", TURNS_OUT_WELL)
def test_turns_out_well(name, server, here):
    """The file is there whole, nothing else is, and no byte was asked for twice without need."""
    before, server.script, asked = TURNS_OUT_WELL[name]
    if before is not None:
        Path("toy").mkdir()
        Path(f"{PATH}.partial").write_bytes(before)
    assert get(server) == [Path(PATH)]
    assert Path(PATH).read_bytes() == CONTENT
    assert left() == [PATH]
    assert [span for _, span in server.seen] == asked
    assert get(server) == [Path(PATH)]
    assert len(server.seen) == len(asked), "asked again for what is here"


TURNS_OUT_BADLY = {
    # name: (what the server does, the line, how many bytes are kept, how many requests)
    "not-found": (["404"], ("HTTP 404",), 0, 1),
    "forbidden": (["403"], ("HTTP 403",), 0, 1),
    "broken": (["500"] * 9, ("HTTP 500", "3 tries"), 0, 3),
    "wrong-byte": (["flip"] * 9, ("SHA256", "thrown away"), 0, 1),
    "wrong-length": (["length"], ("5001 bytes", "expected 5000"), 0, 1),
    "endless": (["long"], ("more than 5000 bytes",), 0, 1),
    "cut-always": (["cut 100"] * 9, ("broke off", "3 tries", "300 bytes are kept", "a.bin.partial"), 300, 3),
    "stalls-always": (["stall 50"] * 9, ("no byte in 0.1 s", "150 bytes are kept"), 150, 3),
    "cut-then-gone": (["cut 100", "404"], ("HTTP 404", "100 bytes are kept"), 100, 2),
    "redirected-for-ever": (["redirect"] * 40, ("HTTP 302",), 0, None),
}


@pytest.mark.parametrize("name", TURNS_OUT_BADLY)
def test_turns_out_badly(name, server, here):
    """One line that names the file, the host and the cause; nothing under the file's name; what is sound is kept."""
    server.script, says, kept, requests = TURNS_OUT_BADLY[name]
    with pytest.raises(ConfigError) as error:
        get(server, timeout=0.1)
    line = str(error.value)
    for part in (PATH, f"127.0.0.1:{server.server_port}", *says):
        assert part in line
    assert "\n" not in line
    assert left() == ([f"{PATH}.partial"] if kept else [])
    if kept:
        assert Path(f"{PATH}.partial").read_bytes() == CONTENT[:kept]
    assert requests in (None, len(server.seen))
    server.script = []
    assert get(server)[0].read_bytes() == CONTENT, "another time it does come"


@pytest.mark.parametrize("first", ["404", "flip", "length", "long", "cut 100"])
def test_the_next_mirror(first, server, here, monkeypatch):
    """What one address will not give, or gives wrongly, comes from the next, by the names that its publisher uses."""
    monkeypatch.setitem(
        KNOWN, "toy", KnownSet("", "", (file_of(PATH, CONTENT),), (f"{server.address}/a/", f"{server.address}/b/"))
    )
    server.files = {"/a/a.bin": CONTENT, "/b/a.bin": CONTENT}
    server.script = [first] * (3 if first.startswith("cut") else 1)
    assert fetch.get("toy", Path(), wait=0.001)[0].read_bytes() == CONTENT
    assert [path for path, _ in server.seen] == ["/a/a.bin"] * (len(server.seen) - 1) + ["/b/a.bin"]
    assert left() == [PATH]


def test_no_network(server, here):
    """A host that does not answer is one line, within the tries there are."""
    server.shutdown()
    server.server_close()
    with pytest.raises(ConfigError, match=r"Connection refused \(3 tries\)"):
        get(server)
    assert left() == []


def test_waits_longer_before_each_try(server, here, monkeypatch):
    """The pauses double."""
    pauses, server.script = [], ["500"] * 9
    monkeypatch.setattr(fetch.time, "sleep", pauses.append)
    with pytest.raises(ConfigError):
        get(server, wait=1.5)
    assert pauses == [1.5, 3.0]


def test_two_at_once(server, here):
    """The second waits for the first, and takes what it made: one request, and a whole file."""
    server.script = ["slow"]
    found, errors = [], []

    def work():
        try:
            found.append(get(server)[0].read_bytes())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert found == [CONTENT] * 3
    assert [span for _, span in server.seen] == [None]
    assert left() == [PATH]


def test_the_second_goes_on_where_the_first_gave_up(server, here):
    """A partial file that its owner leaves is taken over by who waits for it."""
    server.script = ["stall 2000", "404"]
    errors = []

    def first():
        try:
            get(server)
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    until = time.monotonic() + 5
    while not (Path(f"{PATH}.partial").exists() and Path(f"{PATH}.partial").stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.005)
    assert get(server)[0].read_bytes() == CONTENT
    thread.join()
    assert len(errors) == 1
    assert [span for _, span in server.seen] == [None, "bytes=2000-", "bytes=2000-"]


def test_no_room(server, here, monkeypatch):
    """Told before a byte is asked for."""
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4999}))
    with pytest.raises(ConfigError, match=r"5\.0 kB are needed; 5\.0 kB are free"):
        get(server)
    assert server.seen == []
    assert left() == []


def test_no_room_in_the_middle(server, here):
    """A write that fails is one line; what was written is kept, and is gone on from."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ConfigError, match=r"a\.bin\.partial: cannot be written: File too large"):
            get(server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left() == [f"{PATH}.partial"]
    assert get(server)[0].read_bytes() == CONTENT
    assert server.seen[-1] == (f"/{PATH}", "bytes=2000-")


def test_another_file_is_left_alone(server, here):
    """A file of that name that is not the set's is neither taken nor overwritten."""
    Path("toy").mkdir()
    Path(PATH).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"a\.bin: is there, and is not that of toy"):
        get(server)
    assert Path(PATH).read_bytes() == b"mine"
    assert server.seen == []


# -- archives -------------------------------------------------------------------------------------


def tar_of(members):
    """A .tar.gz; a value that is a string is a link to it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, None if isinstance(content, str) else io.BytesIO(content))
    return made.getvalue()


def zip_of(members):
    """A .zip."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


TWO = [("in/a.bin", b"a" * 100), ("in/b.bin", b"b" * 200)]
EVIL = [("../evil", b"e"), ("/tmp/evil", b"e"), ("in/other", b"o")]
ARCHIVES = {
    # name: (the archive's name and content, what the error says or None)
    "tar": ("pack.tar.gz", tar_of(TWO), None),
    "tar-and-more": ("pack.tar.gz", tar_of([*EVIL, ("in/link", "../../evil"), *TWO]), None),
    "zip": ("pack.zip", zip_of(TWO), None),
    "zip-and-more": ("pack.zip", zip_of([*EVIL, *TWO]), None),
    "member-missing": ("pack.tar.gz", tar_of(TWO[:1]), "there is no in/b.bin in it"),
    "member-missing-zip": ("pack.zip", zip_of(TWO[:1]), "there is no in/b.bin in it"),
    "member-is-a-link": ("pack.tar.gz", tar_of([TWO[0], ("in/b.bin", "/etc/passwd")]), "there is no in/b.bin in it"),
    "member-differs": ("pack.tar.gz", tar_of([TWO[0], ("in/b.bin", b"c" * 200)]), "in/b.bin in it is not that"),
    "member-is-shorter": ("pack.tar.gz", tar_of([TWO[0], ("in/b.bin", b"b" * 199)]), "in/b.bin in it is not that"),
    "cut-short": ("pack.tar.gz", tar_of(TWO)[:-40], "cannot be unpacked"),
    "no-archive": ("pack.zip", b"no archive", "cannot be unpacked"),
}


def packed(monkeypatch, server, name, content):
    """A set in an archive on the server."""
    files = tuple(file_of(path, inside, "sha1") for path, inside in TWO)
    monkeypatch.setitem(KNOWN, "toy", KnownSet("", "", files, (), file_of(name, content)))
    server.files = {f"/{name}": content}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, server, here, monkeypatch):
    """The members that are listed come out, each verified, and nothing else does; a bad archive is one line."""
    archive, content, says = ARCHIVES[name]
    packed(monkeypatch, server, archive, content)
    if says is None:
        assert [p.read_bytes() for p in get(server)] == [inside for _, inside in TWO]
        assert left() == ["in/a.bin", "in/b.bin"]
        assert sorted(os.listdir("..")) == ["work"]
        return
    with pytest.raises(ConfigError, match=f"{archive}: .*{says}") as error:
        get(server)
    assert "\n" not in str(error.value)
    assert "in/b.bin" not in left()
    kept = Path(f"{archive}.partial")
    assert [p for p in left() if "partial" in p] == [str(kept)], "whole, and no worse the next time"
    assert kept.read_bytes() == content


def test_an_archive_that_is_here_is_used_and_kept(server, here, monkeypatch):
    """No request, and the file of the user stays."""
    packed(monkeypatch, server, "pack.zip", zip_of(TWO))
    Path("pack.zip").write_bytes(zip_of(TWO))
    get(server)
    assert server.seen == []
    assert left() == ["in/a.bin", "in/b.bin", "pack.zip"]
    Path("in/b.bin").unlink()
    get(server)
    assert left() == ["in/a.bin", "in/b.bin", "pack.zip"]


def test_two_unpack_at_once(server, here, monkeypatch):
    """One downloads and unpacks; the other waits, and finds it done."""
    packed(monkeypatch, server, "pack.tar.gz", tar_of(TWO))
    server.script = ["stall 50"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(server))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert [span for _, span in server.seen] == [None, "bytes=50-"]
    assert left() == ["in/a.bin", "in/b.bin"]


# -- the command ----------------------------------------------------------------------------------


def refused(arguments, capsys):
    """The one line of a command that ends with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("functrain: ")
    assert line.count("\n") == 1
    assert len(line) <= 400
    return line


def test_the_command(server, here, monkeypatch, capsys):
    """get, from a mirror into each folder that there is, is seen by list and check; check tells what differs."""
    monkeypatch.setenv("FUNCTRAIN_MIRROR", f" http://127.0.0.1:1/ {server.address}/ ")
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    assert main(["data", "check", "toy"]) == 1
    assert capsys.readouterr().out == f"missing {PATH}\n"
    cache = known.cache_folder() / "data"
    monkeypatch.setenv("FUNCTRAIN_DATA", "named")
    for arguments, folder in (([], Path("named")), (["--into", "."], Path())):
        assert main(["data", "get", "toy", *arguments]) == 0
        assert capsys.readouterr().out == f"{folder / PATH}  5.0 kB\n"
        assert main(["data", "check", "toy"]) == 0
        assert capsys.readouterr().out == f"ok      {folder / PATH}\n"
        assert main(["data", "get", "toy"]) == 0
        assert capsys.readouterr().out == f"{folder / PATH}  here already\n"
    monkeypatch.delenv("FUNCTRAIN_DATA")
    Path(PATH).unlink()
    assert main(["data", "get", "toy"]) == 0
    assert (cache / PATH).read_bytes() == CONTENT
    assert main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert "toy" in shown
    assert str(cache)[:30] in shown
    for name, entry in KNOWN.items():
        assert name in shown
        assert entry.what.split()[0] in shown
    (cache / PATH).write_bytes(b"x" * 5000)
    assert main(["data", "check", "toy"]) == 1
    assert capsys.readouterr().out.split() == ["differs", str(cache / PATH)]


def test_on_a_terminal(server, here):
    """A bar while it comes, and the line that stays."""
    server.script, shown = ["slow"], io.StringIO()
    get(server, console=Console(file=shown, force_terminal=True, width=100, color_system=None))
    assert "kB/s" in shown.getvalue()
    assert f"{PATH}  5.0 kB\n" in shown.getvalue()


def test_interrupted(server, here, monkeypatch, capsys):
    """Ctrl-C ends it with status 130 and a line; the next command goes on from there."""
    monkeypatch.setenv("FUNCTRAIN_MIRROR", server.address)
    monkeypatch.setattr(fetch, "_PIECE", 1000)
    write, pieces = fetch._write, []

    def interrupted(at, piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt
        write(at, piece)

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_write", interrupted)
        assert main(["data", "get", "toy", "--into", "."]) == 130
    assert "functrain data get toy" in capsys.readouterr().err
    assert left() == [f"{PATH}.partial"]
    assert main(["data", "get", "toy", "--into", "."]) == 0
    assert server.seen[-1] == (f"/{PATH}", "bytes=2000-")
    assert Path(PATH).read_bytes() == CONTENT


BAD = {
    # name: (the arguments, FUNCTRAIN_MIRROR, what the line says)
    "unknown": (["get", "mnits"], "", ('"mnist"', "mnits", "cifar10")),
    "unknown-to-check": (["check", "zzz"], "", ("zzz", "there are: mnist")),
    "below-a-file": (["get", "toy", "--into", "f.txt/x"], "", ("f.txt/x", "Not a directory")),
    "is-a-file": (["get", "toy", "--into", "f.txt"], "", ("f.txt", "cannot be made")),
    "no-web-address": (["get", "toy", "--into", "."], "file:///etc", ("FUNCTRAIN_MIRROR", "file:///etc", "http://")),
    "no-address": (["get", "toy", "--into", "."], "http://[", ("FUNCTRAIN_MIRROR", "http://[")),
    "no-port": (["get", "toy", "--into", "."], "http://a:b/", ("toy/a.bin", "a:b")),
    "no-ascii": (["get", "toy", "--into", "."], "http://\u00e4/", ("FUNCTRAIN_MIRROR",)),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes(name, here, monkeypatch, capsys):
    """One line, status 2, and no file."""
    arguments, mirror, says = BAD[name]
    monkeypatch.setenv("FUNCTRAIN_MIRROR", mirror)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    Path("f.txt").write_text("")
    line = refused(["data", *arguments], capsys)
    for part in says:
        assert part in line
    assert left() == ["f.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_not_ours(here, capsys):
    """A folder that must not be written to."""
    Path("locked").mkdir(mode=0o500)
    assert "Permission denied" in refused(["data", "get", "toy", "--into", "locked"], capsys)


# -- the table, and the source that reads by name -------------------------------------------------


def test_the_table():
    """Each entry is whole: sizes, digests, addresses, distinct paths; its settings are legal and name its own files."""
    paths = [f.path for entry in KNOWN.values() for f in entry.files]
    assert len(set(paths)) == len(paths)
    for name, entry in KNOWN.items():
        assert entry.what, name
        assert entry.licence, name
        assert all(m.startswith("http") and m.endswith("/") for m in entry.mirrors)
        assert entry.mirrors
        for file in (*entry.files, *entry.published):
            assert file.size > 0
            assert file.algorithm in ("sha256", "sha1")
            assert not set(file.digest) - set("0123456789abcdef")
            assert ".." not in file.path
            assert not file.path.startswith("/")
        assert all(f.algorithm == "sha256" for f in entry.published), name
        if entry.settings:
            source = parse(Known, {"name": name}).source
            assert source.kind == entry.settings["kind"]
            named = {v for v in configs.flatten(source).values() if isinstance(v, str)}
            named |= {v for values in configs.flatten(source).values() if isinstance(values, list) for v in values}
            assert {f.path for f in entry.files} <= named
    names = get_args(get_type_hints(Known)["name"])
    assert list(names) == [name for name, entry in KNOWN.items() if entry.settings]
    assert {entry.settings["kind"] for entry in KNOWN.values() if entry.settings} == set(READERS)


def cifar(images, labels, count):
    """The bytes of records, written a pixel at a time from the definition."""
    made = bytearray()
    for image, label in zip(images, labels):
        made += bytes([99] * (count - 1) + [label])
        for channel in range(3):
            for row in range(32):
                made += bytes(image[row, column, channel] for column in range(32))
    return bytes(made)


@pytest.mark.parametrize(("name", "count"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_from_its_archive(name, count, server, here, monkeypatch):
    """Downloaded, unpacked and read by name: channels last, the last label, pixels to 0..1, then normalised."""
    rng = np.random.default_rng(0)
    entry, members, truth = KNOWN[name], [], []
    for file in entry.files:
        x, y = rng.integers(0, 256, (4, 32, 32, 3), np.uint8), rng.integers(0, 10, 4)
        members.append((file.path, cifar(x, y, count)))
        truth.append((x, y))
    files = tuple(file_of(path, content) for path, content in members)
    archive = file_of(entry.archive.path, tar_of(members))
    monkeypatch.setitem(KNOWN, name, KnownSet("", "", files, (), archive, entry.settings))
    server.files[f"/{archive.path}"] = tar_of(members)
    get(server, name)
    source = parse(Known, {"name": name, "validation": 0.25, "normalise": "standard", "batch_size": 2})
    dataset = source.load()
    assert dataset.classes == int(name.removeprefix("cifar"))
    np.testing.assert_array_equal(dataset.test["x"], truth[-1][0])
    np.testing.assert_array_equal(dataset.test["y"], truth[-1][1])
    images = np.concatenate([x for x, _ in truth[:-1]])
    labels = np.concatenate([y for _, y in truth[:-1]])
    both = np.concatenate([dataset.train["x"], dataset.validation["x"]])
    assert len(dataset.validation["x"]) == len(images) // 4
    assert {(x.tobytes(), int(y)) for x, y in zip(images, labels)} == {
        (x.tobytes(), int(y)) for x, y in zip(both, np.concatenate([dataset.train["y"], dataset.validation["y"]]))
    }
    found = configs.dump(Known(name=name, normalise="standard", **dataset.found))
    again = parse(Known, configs.tomllib.loads(found))
    pixels = dataset.train["x"].astype(np.float64) / 255
    wanted = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    np.testing.assert_allclose(again.prepare({"x": dataset.train["x"]})["x"], wanted, atol=2e-6)
    Path(entry.files[0].path).write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes; expected records of"):
        source.load()


def test_cifar_that_is_cut(here):
    """A file of no whole number of records is one line."""
    Path("a.bin").write_bytes(b"x" * 3074)
    with pytest.raises(ConfigError, match=r"data.files: a.bin: 3074 bytes; expected records of 3073"):
        parse(READERS["cifar_binary"], {"files": ["a.bin"], "test_files": ["a.bin"]}).load()


def test_known_where_it_is_not(here):
    """The line says what to do, and where was looked."""
    with pytest.raises(ConfigError) as error:
        parse(Known, {"name": "mnist"}).load()
    line = str(error.value)
    for part in ("data.name: mnist is not here; get it with: functrain data get mnist", "train-images", "cache/data"):
        assert part in line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "mnits"}, 'did you mean "mnist"'),
        ({"name": "multi30k"}, "expected 'mnist'"),
        ({"name": "mnist", "block": 3}, "block: unknown key"),
        ({"name": "mnist", "settings": {"kind": "csv"}}, "mnist is read by the source idx"),
        ({"name": "penguins", "settings": {"max_categories": 0}}, "max_categories: found 0"),
    ],
)
def test_known_mistakes(settings, says):
    """A name that is none, and settings that the set's source has not."""
    with pytest.raises(ConfigError, match=says):
        parse(Known, settings)


@pytest.mark.parametrize("name", ["penguins", "tiny_shakespeare"])
def test_known_keeps_what_it_found(name, here, monkeypatch):
    """A mean, categories, a vocabulary: found in training, written into the config, used again without the files."""
    content = {
        "penguins": b"species,mass,sex\n" + b"Adelie,3700,male\nGentoo,5000,NA\nAdelie,3500,female\n" * 20,
        "tiny_shakespeare": b"To be, or not to be, that is the question.\n" * 30,
    }[name]
    entry = KNOWN[name]
    path = Path(entry.files[0].path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setitem(KNOWN, name, KnownSet("", "", (file_of(str(path), content),), (), settings=entry.settings))
    source = parse(Known, {"name": name, "test": 0.2})
    dataset = source.load()
    told = configs.tomllib.loads(configs.dump(configs.dataclasses.replace(source, **dataset.found)))
    again = parse(Known, told)
    assert again.found == dataset.found["found"]
    assert again.source.validation == source.source.validation
    both = again.load()
    assert both.found == dataset.found
    for split in ("train", "validation", "test"):
        for key, array in dataset.split(split).items():
            np.testing.assert_array_equal(array, both.split(split)[key])
    if name == "penguins":
        Path("new.csv").write_text("sex,mass\nmale,4000\n")
        assert again.read_inputs("new.csv").shape == (1, *dataset.inputs)
        assert parse(Known, {"name": "tiny_shakespeare"}).read_inputs("new.csv") is None
    else:
        assert again.source.decode(dataset.train["tokens"][:5]) == "To be"
