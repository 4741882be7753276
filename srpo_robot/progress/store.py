"""Embeddings on disk: a zarr v3 group with one sub-group per episode, keyed by content and committed atomically."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ContainsGroupError

from srpo_robot.errors import SrpoRobotError, StaleTable
from srpo_robot.files import write_whole
from srpo_robot.progress.score import WindowEmbeddings

FORMAT = 1
INFO = "srpo.json"
ENTRY_BYTES = 2600  # JSON, array headers and metadata of one entry, in addition to its numbers
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}")  # an interrupted commit or removal
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ATTEMPTS = 3  # a concurrent prune() may remove an unfinished entry; it is written again


@dataclass(frozen=True)
class Entry:
    """One episode in the store.

    Attributes:
        key: content key.
        bytes: size of its files.
        windows: number of embedded windows.
        metadata: metadata that `put` got; {} for an entry of an early version, which kept none.
    """

    key: str
    bytes: int
    windows: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Pruned:
    """Result of `prune`: number of removed entries, number of leftovers of killed writers, and the bytes of both."""

    entries: int
    leftovers: int
    bytes: int


class EmbeddingStore:
    """A store of `path`/<key>/ends (n,) and `path`/<key>/embeddings (n, D).

    A key names everything that an embedding depends on (encoder, windows, video), so no entry can become stale. After
    episodes are appended, only theirs are computed. Any number of processes may write at once.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the store.

        Raises:
            StaleTable: a newer version wrote it, or its srpo.json cannot be read.
            SrpoRobotError: it does not exist and cannot be created (a read-only folder, a full disk).
        """
        self.path = path
        info = path / INFO
        if not info.is_file():
            with self._writing(0):
                path.mkdir(parents=True, exist_ok=True)
                with suppress(ContainsGroupError):  # another process created it after zarr looked
                    zarr.open_group(path, mode="a", zarr_format=3)
                write_whole(info, json.dumps({"format": FORMAT}))  # another process may be opening the store
        try:
            version = int(json.loads(info.read_text())["format"])
        except (ValueError, KeyError, TypeError):
            raise StaleTable(f"{info} cannot be read; delete the folder {path} and score again") from None
        if version > FORMAT:
            raise StaleTable(f"{path} has format {version}, this version reads {FORMAT}; update srpo-robot")

    def __contains__(self, key: object) -> bool:
        return (self.path / str(key) / "zarr.json").is_file()

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        """Returns the keys of all entries, sorted."""
        return sorted(
            child.name for child in self.path.iterdir() if not child.name.startswith(".") and child.name in self
        )

    def entries(self) -> list[Entry]:
        """Returns all entries, sorted by key, without reading an embedding."""
        entries = []
        for key in self.keys():
            try:
                group = json.loads((self.path / key / "zarr.json").read_text())
                ends = json.loads((self.path / key / "ends" / "zarr.json").read_text())
                entries.append(Entry(key, _size(self.path / key), int(ends["shape"][0]), group.get("attributes", {})))
            except FileNotFoundError:  # pruned during the listing
                continue
        return entries

    def get(self, key: str) -> WindowEmbeddings:
        """Returns the embeddings of `key`. Raises KeyError if the store has no such key."""
        if key not in self:
            raise KeyError(key)
        group = zarr.open_group(self.path / key, mode="r")
        return WindowEmbeddings(np.asarray(group["ends"]), np.asarray(group["embeddings"]))

    def put(self, key: str, windows: WindowEmbeddings, metadata: Mapping[str, Any] | None = None) -> None:
        """Commits one episode atomically: it is written under a temporary name, then renamed.

        The copy of a second writer is dropped.

        Args:
            metadata: description of the embeddings for `entries`, ready for JSON.

        Raises:
            SrpoRobotError: the disk is full (the message gives needed and free space) or may not be written. Nothing
                of this episode stays on disk, and earlier episodes are whole.
        """
        need = np.asarray(windows.embeddings).size * 4 + len(windows.ends) * 8 + ENTRY_BYTES
        with self._writing(need):
            for attempt in range(_ATTEMPTS):
                part = self.path / f".{key}.{uuid.uuid4().hex}"
                try:
                    self._commit(part, key, windows, dict(metadata or {}))
                    return
                except FileNotFoundError:
                    if attempt == _ATTEMPTS - 1:
                        raise
                finally:
                    shutil.rmtree(part, ignore_errors=True)

    def _commit(self, part: Path, key: str, windows: WindowEmbeddings, metadata: dict[str, Any]) -> None:
        group = zarr.open_group(part, mode="w", zarr_format=3, attributes=metadata)
        # If prune() removes the folder after this line, zarr creates it again with the rest of the entry. That folder
        # is incomplete and lacks this file, so unlink raises FileNotFoundError.
        witness = part / ".writing"
        witness.touch()
        group.create_array("ends", data=np.asarray(windows.ends, dtype=np.int64))
        group.create_array("embeddings", data=np.asarray(windows.embeddings, dtype=np.float32))
        witness.unlink()
        try:
            os.rename(part, self.path / key)
        except OSError:
            if key not in self:
                raise

    def prune(self, keep: Collection[str], on_entry: Callable[[str], None] | None = None) -> Pruned:
        """Removes every entry that is not in `keep`, and the leftovers of killed writers.

        Each is renamed before it is deleted, so a kill in the middle leaves whole entries and leftovers only. A
        concurrent writer starts the commit of its episode again. `on_entry` is called with each removed key.

        Raises:
            SrpoRobotError: the folder may not be written.
        """
        kept = set(keep)
        entries = leftovers = freed = 0
        with self._writing(0):
            for key in self.keys():
                if key not in kept:
                    freed += self._remove(key)
                    entries += 1
                    if on_entry is not None:
                        on_entry(key)
            for child in sorted(self.path.iterdir()):
                if _LEFTOVER.fullmatch(child.name):
                    freed += self._remove(child.name)
                    leftovers += 1
        return Pruned(entries, leftovers, freed)

    def _remove(self, name: str) -> int:
        gone = self.path / f".pruned.{uuid.uuid4().hex}"
        try:
            os.rename(self.path / name, gone)
        except FileNotFoundError:  # its writer has finished, or another prune removed it
            return 0
        size = _size(gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)
        return size

    @contextmanager
    def _writing(self, need: int) -> Iterator[None]:
        """Turns a full or read-only disk into a one-line error with advice. Other errors pass unchanged."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                free = _free(self.path)
                raise SrpoRobotError(
                    f"no space left for the embeddings in {self.path}: this episode needs {max(need, 1) / 1e6:.1f} MB, "
                    f"{free / 1e6:.1f} MB are free; earlier episodes are kept: free some space and start again"
                ) from None
            if error.errno in _REFUSED:
                raise SrpoRobotError(
                    f"{self.path} may not be written ({os.strerror(error.errno or 0).lower()}); "
                    "make the dataset's folder writable, or score a copy of it"
                ) from None
            raise


def entry_bytes(windows: int, width: int) -> int:
    """Estimates the size of an episode of `windows` windows of `width` numbers on disk [bytes], uncompressed."""
    return windows * (4 * width + 8) + ENTRY_BYTES


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _free(path: Path) -> int:
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(place).free
