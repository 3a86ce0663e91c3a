"""A folder of small files, each written whole or not at all.

A run needs four things of the place where it is kept: write a file atomically,
read it, list the folder, delete a file. So little is asked that a local disk,
any fsspec filesystem (``s3://``, ``gs://``, ``sftp://`` …) and plain memory all
do. Files are a few megabytes at most (see :mod:`evenflow.store.writer`), hence
whole ``bytes`` and no streams.

Atomic means: the bytes go to a temporary name, reach the disk (``fsync``), and
only then get their name by a rename, which POSIX makes indivisible. A reader
sees the old file, the new one or none, never half of one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Protocol, final

from evenflow.errors import MissingPackageError
from evenflow.store.errors import StoreError

TEMPORARY = ".tmp"
"""Ending of files that are not there yet; readers pass over them."""


class Storage(Protocol):
    """Where the files of one run are kept."""

    @property
    def location(self) -> str:
        """The place, for messages."""

    def create(self) -> None:
        """Make the folder if it is not there."""

    def names(self) -> list[str]:
        """Names of all complete files, sorted; an ``OSError`` if there is no such folder."""

    def read(self, name: str) -> bytes:
        """The content of a file; an ``OSError`` if it is not there."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file, whole or not at all; an ``OSError`` if that failed."""

    def delete(self, name: str) -> None:
        """Delete a file; not being there is fine."""


def storage_at(path: str | os.PathLike[str] | None) -> Storage:
    """The storage that a path names: memory (None), a URL of fsspec, or a local folder.

    Raises:
        StoreError: The URL's kind is unknown.
        MissingPackageError: fsspec, or the package for this kind of URL, is not installed.
    """
    if path is None:
        return Memory()
    text = os.fspath(path)
    if "://" in text and not text.startswith("file://"):
        return Remote(text)
    return Folder(Path(text.removeprefix("file://")))


@final
class Folder:
    """A local folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def location(self) -> str:
        """The path."""
        return str(self._path)

    def create(self) -> None:
        """Make the folder and its parents."""
        self._path.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Complete files."""
        with os.scandir(self._path) as entries:
            return sorted(e.name for e in entries if not e.name.endswith(TEMPORARY) and e.is_file())

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self._path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Temporary file, fsync, rename, fsync of the folder."""
        temporary = self._path / f".{name}.{os.getpid()}{TEMPORARY}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def delete(self, name: str) -> None:
        """Unlink."""
        (self._path / name).unlink(missing_ok=True)


@final
class Memory:
    """Files in a dict: a run that is kept as long as the process lives."""

    location = "memory"

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def create(self) -> None:
        """Nothing to make."""

    def names(self) -> list[str]:
        """All files."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def write(self, name: str, content: bytes) -> None:
        """Keep a file."""
        self._files[name] = content

    def delete(self, name: str) -> None:
        """Forget a file."""
        self._files.pop(name, None)


@final
class Remote:
    """A folder on any filesystem that fsspec knows."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingPackageError("fsspec", f"A run at {url}", "remote") from error
        self._url = url
        self._files: Any
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:  # an unknown protocol; a package that it needs
            raise StoreError(
                f"fsspec cannot open {url}: {error}\n"
                "Install the package that it names, or give the path of a local folder."
            ) from error

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def create(self) -> None:
        """Make the folder, where the filesystem has such."""
        self._files.makedirs(self._path, exist_ok=True)

    def names(self) -> list[str]:
        """Complete files, as they are now."""
        self._files.invalidate_cache(self._path)
        found = (
            str(name).rstrip("/").rpartition("/")[2] for name in self._files.ls(self._path, detail=False)
        )
        return sorted(name for name in found if not name.endswith(TEMPORARY))

    def read(self, name: str) -> bytes:
        """The content of a file."""
        content: bytes = self._files.cat_file(f"{self._path}/{name}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Temporary file, then a move."""
        temporary = f"{self._path}/.{name}.{os.getpid()}{TEMPORARY}"
        self._files.pipe_file(temporary, content)
        self._files.mv(temporary, f"{self._path}/{name}")

    def delete(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._path}/{name}")
