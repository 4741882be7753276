"""Atomic file writes: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, data: bytes | str | Callable[[BinaryIO], object], sync: bool = False) -> None:
    """Writes `path` in one step, through a temporary file in the same folder.

    If the write fails, `path` keeps its old content and the temporary file is removed.

    Args:
        path: the file; its folder must exist.
        data: the content (text is written as UTF-8), or a function that writes it into an open file.
        sync: whether content and name must be on the disk when this returns.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # unique: several processes may write the same file
    try:
        with part.open("xb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data.encode() if isinstance(data, str) else data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
