"""Files of a folder or of an archive, which is never unpacked to disk."""

import os
import tarfile
import zipfile
import zlib
from pathlib import Path

from functrain.config import ConfigError
from functrain.data.dataset import find

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_LARGEST_FILE = 1 << 30


class Files:
    """Files by their names, with / between folders, of a folder or of an archive held in memory.

    key: the setting that messages name.
    path: looked for as `find` does; an archive by its suffix, else a folder.
    suffixes: of the names that are wanted, in small letters.

    Raises:
      ConfigError: there is none, it cannot be read, or a file in it is larger than any that is wanted.
    """

    def __init__(self, key: str, path: str, suffixes: tuple[str, ...]):
        self.suffixes = suffixes
        archive = path.lower().endswith(_ARCHIVES)
        place = find(key, path, folder=not archive)
        self.where = f"{key}: {place}"
        self.held: dict[str, bytes | Path] = {}
        try:
            if path.lower().endswith(".zip"):
                self._read_zip(place)
            elif archive:
                self._read_tar(place)
            else:
                for folder, _, names in os.walk(place):
                    self.held |= {(Path(folder) / n).relative_to(place).as_posix(): Path(folder) / n for n in names}
        except (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, ValueError) as error:
            raise ConfigError(f"{self.where}: cannot be read: {' '.join(str(error).split())}") from None

    def read(self, name: str, largest: int = _LARGEST_FILE) -> bytes:
        """The bytes of a file.

        Raises:
          ConfigError: there is none, or it cannot be read, or it is larger.
        """
        held = self.held.get(name)
        if held is None:
            raise ConfigError(f"{self.where}: no file {name}")
        try:
            data = held if isinstance(held, bytes) else held.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.where}: {name}: cannot be read: {error.strerror}") from None
        if len(data) > largest:
            raise ConfigError(f"{self.where}: {name}: {len(data)} bytes; expected at most {largest}")
        return data

    def _read_zip(self, place):
        with zipfile.ZipFile(place) as archive:
            for member in archive.infolist():
                if not member.is_dir() and self._wanted(member.filename, member.file_size):
                    self.held[_plain(member.filename)] = archive.read(member)

    def _read_tar(self, place):
        with tarfile.open(place) as archive:
            for member in archive:  # in the file's order: a compressed one cannot be read backwards
                if member.isfile() and self._wanted(member.name, member.size):
                    file = archive.extractfile(member)
                    self.held[_plain(member.name)] = file.read() if file else b""

    def _wanted(self, name, size):
        wanted = name.lower().endswith(self.suffixes)
        if wanted and size > _LARGEST_FILE:
            raise ConfigError(f"{self.where}: {name}: {size} bytes; expected at most {_LARGEST_FILE}")
        return wanted


def _plain(name: str) -> str:
    return name.removeprefix("./")
