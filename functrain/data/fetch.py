"""Downloading of known data sets: resumed where it broke off, verified, and under its name only when it is whole.

get(name)    -> the files' places
check(name)  -> what is here, by digest
table()      -> every set there is

A download grows in NAME.partial, which has a lock while somebody writes it, and stays where it was interrupted. Size
and digest decide, never the server: a mirror may be anybody's.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from functrain.config import ConfigError
from functrain.data.known import KNOWN, File, KnownSet, download_folder, folders, locate
from functrain.version import __version__

_TRIES = 3  # for each address
_PIECE = 1 << 20


class _Broken(Exception):
    """The connection failed; another try may go on from there."""


class _Useless(Exception):
    """This address will not give the file, however often it is asked."""


def known_set(name: str) -> KnownSet:
    """The set of this name.

    Raises:
      ConfigError: there is none; with the names there are.
    """
    if name not in KNOWN:
        close = difflib.get_close_matches(name, KNOWN, n=1)
        meant = f'did you mean "{close[0]}"? ' if close else ""
        raise ConfigError(f"no data set {name[:80]!r}; {meant}there are: {', '.join(KNOWN)}")
    return KNOWN[name]


def get(
    name: str,
    into: Path | None = None,
    *,
    console: Console | None = None,
    mirrors: tuple[str, ...] | None = None,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> list[Path]:
    """Download a set; what is here already, with the right digest, is not fetched again.

    Args:
      name: of the set.
      into: the folder; else the one that FUNCTRAIN_DATA names, else `data` in the cache folder.
      console: where progress is shown; nowhere if None.
      mirrors: addresses to take in place of those published; the files' paths are put behind them. None takes those
        in FUNCTRAIN_MIRROR (separated by spaces), where it is set.
      wait: seconds before the second try; doubled before the third.
      timeout: seconds without a byte after which a connection counts as broken.

    Returns:
      Where each file of the set is.

    Raises:
      ConfigError: no such set, no folder to write to, no room, no address that gives the file, or a file that is here
        and is another.
    """
    known = known_set(name)
    if mirrors is None:
        mirrors = tuple(os.environ.get("FUNCTRAIN_MIRROR", "").split())
    folder = download_folder() if into is None else into
    here = {f: (locate(f) or folder / f.path) if into is None else folder / f.path for f in known.files}
    for file, place in here.items():
        if _is_there(place) and not _is(place, file):
            raise ConfigError(f"{place}: is there, and is not that of {name} (size or digest); move it away first")
    missing = [f for f, place in here.items() if not _is_there(place)]
    with _Shown(console) as shown:
        terms = _Terms(mirrors, wait, timeout, shown)
        if missing and known.archive:
            _from_archive(known, known.archive, missing, folder, terms)
        else:
            for file in missing:
                _from_files(known, file, folder, terms)
        for file, place in here.items():
            if file not in missing:
                shown.line(f"{place}  here already")
    return list(here.values())


def check(name: str) -> list[tuple[str, str]]:
    """[(place or path, "ok", "differs" or "missing")] of each file of a set, by digest.

    Raises:
      ConfigError: no such set.
    """
    found = []
    for file in known_set(name).files:
        place = locate(file)
        if place is None:
            found.append((file.path, "missing"))
        else:
            found.append((str(place), "ok" if _is(place, file) else "differs"))
    return found


def table() -> Table:
    """Every known set: name, what it is, size of the download, licence, where it is here (told by sizes alone)."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "what", "size", "licence", "here"):
        narrow = title in ("name", "size")
        shown.add_column(title, justify="right" if title == "size" else "left", no_wrap=narrow, overflow="fold")
    for name, known in KNOWN.items():
        places = [locate(f) for f in known.files]
        whole = [p for p, f in zip(places, known.files) if p is not None and p.stat().st_size == f.size]
        where = "get" if not whole else "in part" if len(whole) < len(known.files) else str(whole[0].absolute().parent)
        shown.add_row(name, known.what, decimal(known.size), known.licence, where)
    return shown


@dataclasses.dataclass(frozen=True)
class _Terms:
    """What `get` was told."""

    mirrors: tuple[str, ...]
    wait: float
    timeout: float
    shown: "_Shown"


def _from_files(known: KnownSet, file: File, folder: Path, terms: _Terms) -> None:
    """A file that is published as it is."""
    target = folder / file.path
    with _partial_of(target, lambda: _is_there(target), terms.shown) as at:
        if at is not None:
            _download(known, file, at, terms)
            os.fsync(at.fileno())
            os.replace(at.name, target)
            terms.shown.line(f"{target}  {decimal(file.size)}")
        elif not _is(target, file):
            raise ConfigError(f"{target}: another process has put another file there")


def _from_archive(known: KnownSet, archive: File, files: list[File], folder: Path, terms: _Terms) -> None:
    """Files out of an archive: one that is here already, or one that is downloaded, and removed when it is unpacked."""
    for place in dict.fromkeys(f / archive.path for f in (folder, *folders())):
        if _is(place, archive):
            _unpack(place, archive.path, files, folder, terms.shown)
            return

    def done() -> bool:
        return all(_is_there(folder / file.path) for file in files)

    with _partial_of(folder / archive.path, done, terms.shown) as at:
        if at is not None:
            _download(known, archive, at, terms)
            _unpack(Path(at.name), archive.path, files, folder, terms.shown)
            os.unlink(at.name)


# -- one download ---------------------------------------------------------------------------------


def _download(known: KnownSet, file: File, at: IO[bytes], terms: _Terms) -> None:
    """Go on with a partial file until it is whole, from the first address that gives it."""
    base = file.path.rsplit("/", 1)[-1]
    addresses = [f"{m.rstrip('/')}/{file.path}" for m in terms.mirrors] or [m + base for m in known.mirrors]
    hosts = [_host(address) for address in addresses]
    _check_room(Path(at.name).parent, file.size - at.tell())
    why, reason = [], ""
    for host, address in zip(hosts, addresses):
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(terms.wait * 2 ** (attempt - 1))
            try:
                _fetch(address, at, file, terms)
            except _Broken as error:
                reason = f"{error} ({_TRIES} tries)"
            except _Useless as error:
                reason = str(error)
                break
            else:
                return
        why.append(f"{host}: {reason}")
    kept = os.fstat(at.fileno()).st_size
    rest = f"; {decimal(kept)} are kept in {at.name}, to go on from" if kept else ""
    raise ConfigError(f"{file.path}: not downloaded: {'; '.join(why)}{rest}")


def _host(address: str) -> str:
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not address.isascii():
        raise ConfigError(f"FUNCTRAIN_MIRROR: found {address[:80]!r}; expected addresses of http:// or https://")
    return parts.netloc


@contextlib.contextmanager
def _partial_of(target: Path, done: Callable[[], bool], shown: "_Shown") -> Iterator[IO[bytes] | None]:
    """The partial file, open at its end, for us alone; None where it is done, perhaps by another process meanwhile."""
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target.parent}: cannot be made: {error.strerror}") from None
    while not done():
        try:
            file = open(partial, "a+b", buffering=0)  # noqa: SIM115 - entered below
        except OSError as error:
            raise ConfigError(f"{partial}: cannot be written: {error.strerror}") from None
        with file:
            _lock(file, target, shown)
            if not os.path.exists(partial) or not os.path.samestat(os.fstat(file.fileno()), os.stat(partial)):
                continue  # who had the lock has renamed or removed it
            try:
                file.seek(0, os.SEEK_END)
                yield file
            finally:
                if not os.fstat(file.fileno()).st_size:
                    partial.unlink(missing_ok=True)
            return
    yield None


def _lock(file: IO[bytes], target: Path, shown: "_Shown") -> None:
    """The file is ours until it is closed, or the process ends."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            shown.line(f"{target}: another process downloads it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise ConfigError(f"{file.name}: cannot be locked: {error.strerror}") from None


def _fetch(address: str, at: IO[bytes], file: File, terms: _Terms) -> None:
    """Go on with the file from an address, to its end; its digest is that of the set.

    Raises:
      _Broken: the connection failed; what came is kept.
      _Useless: the address has not the file.
    """
    have = at.tell()
    if have > file.size:
        have = _emptied(at)
    if have < file.size:
        have = _receive(address, at, have, file, terms)
    if _digest(at, file.algorithm) == file.digest:
        return
    _emptied(at)
    if not have:
        raise _Useless(f"{file.algorithm.upper()} is not that of the set; what came was thrown away")
    _fetch(address, at, file, terms)  # it began with bytes of an earlier download: the whole from here


def _receive(address: str, at: IO[bytes], have: int, file: File, terms: _Terms) -> int:
    """Append what the server sends; how many bytes were kept from before."""
    headers = {"User-Agent": f"functrain/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=terms.timeout) as answer:
            span = f"bytes {have}-{file.size - 1}/{file.size}"
            if have and not (answer.status == 206 and answer.headers.get("Content-Range") == span):
                if answer.status == 206:
                    _emptied(at)
                    raise _Broken("sent another part than was asked for")
                have = _emptied(at)  # a server that sends all of it from the start
            length = answer.headers.get("Content-Length")
            if length is not None and length.isdecimal() and int(length) != file.size - have:
                raise _Useless(f"has {int(length) + have} bytes; expected {file.size}")
            with terms.shown.bar(file, have) as advance:
                left = file.size - have
                while left and (piece := answer.read1(min(_PIECE, left))):
                    _write(at, piece)
                    left -= len(piece)
                    advance(len(piece))
                if not left and answer.read1(1):
                    _emptied(at)
                    raise _Useless(f"has more than {file.size} bytes")
            if left:
                raise _Broken("the connection broke off")
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                _emptied(at)
            again = error.code >= 500 or error.code in (408, 416, 429)
        raise (_Broken if again else _Useless)(f"HTTP {error.code}") from None
    except urllib.error.URLError as error:
        raise _Broken(str(getattr(error.reason, "strerror", None) or error.reason)[:80]) from None
    except TimeoutError:
        raise _Broken(f"no byte in {terms.timeout:g} s") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(str(error)[:80] or type(error).__name__) from None
    return have


def _write(at: IO[bytes], piece: bytes) -> None:
    """All of the piece."""
    view = memoryview(piece)
    try:
        while view:
            view = view[at.write(view) :]
    except OSError as error:
        raise ConfigError(f"{at.name}: cannot be written: {error.strerror}") from None


def _emptied(at: IO[bytes]) -> int:
    """Nothing is left of it."""
    at.truncate(0)
    at.seek(0)
    return 0


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ConfigError(f"{folder}: {decimal(size)} are needed; {decimal(free)} are free")


def _is_there(place: Path) -> bool:
    return os.path.isfile(place)


def _is(place: Path, file: File) -> bool:
    """Whether that file is there."""
    try:
        with open(place, "rb") as opened:
            return os.fstat(opened.fileno()).st_size == file.size and _digest(opened, file.algorithm) == file.digest
    except OSError:
        return False


def _digest(opened: IO[bytes], algorithm: str) -> str:
    opened.seek(0)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    while piece := opened.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


# -- archives -------------------------------------------------------------------------------------


def _unpack(archive: Path, name: str, files: list[File], folder: Path, shown: "_Shown") -> None:
    """Members of the archive of this name, each verified; nothing else in it is looked at, whatever it is called."""
    left = {file.path: file for file in files}
    try:
        for path, member in _members(archive, name.endswith(".zip"), set(left)):
            file, target = left.pop(path), folder / path
            with _partial_of(target, functools.partial(_is_there, target), shown) as at:
                if at is None:
                    continue
                _emptied(at)
                _check_room(folder, file.size)
                while at.tell() < file.size and (piece := member.read(min(_PIECE, file.size - at.tell()))):
                    _write(at, piece)
                if at.tell() != file.size or _digest(at, file.algorithm) != file.digest:
                    _emptied(at)
                    raise ConfigError(f"{name}: {path} in it is not that of the set (size or digest)")
                os.replace(at.name, target)
            shown.line(f"{target}  {decimal(file.size)}")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ConfigError(f"{name}: cannot be unpacked: {error}") from None
    if left:
        raise ConfigError(f"{name}: there is no {min(left)} in it")


def _members(archive: Path, zipped: bool, names: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, open file) of these members that are regular files, in the order in which they lie there."""
    if zipped:
        with zipfile.ZipFile(archive) as opened:
            for name in names & set(opened.namelist()):
                with opened.open(name) as member:
                    yield name, member
        return
    with tarfile.open(archive) as opened:
        for info in opened:
            if info.isreg() and info.name in names and (member := opened.extractfile(info)):
                yield info.name, member


# -- what a person sees ---------------------------------------------------------------------------


class _Shown:
    """A bar while a file comes, on a terminal; a line for each file that is there."""

    def __init__(self, console: Console | None):
        self._console, self._live = console, None
        if console is not None and console.is_terminal:
            parts = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
            self._live = Progress(TextColumn("{task.description}"), *parts, console=console, transient=True)

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_):
        if self._live is not None:
            self._live.stop()

    @contextlib.contextmanager
    def bar(self, file: File, have: int):
        """`advance(bytes)` while a file comes."""
        live = self._live
        if live is None:
            yield lambda size: None
            return
        task = live.add_task(file.path, total=file.size, completed=have)
        try:
            yield lambda size: live.advance(task, size)
        finally:
            live.remove_task(task)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._console is not None:
            self._console.print(text, soft_wrap=True)
