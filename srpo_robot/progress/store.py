"""Embeddings on disk: a zarr v3 group, one sub-group per episode, keyed by content, there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import zarr

from srpo_robot.errors import StaleTable
from srpo_robot.progress.score import WindowEmbeddings

FORMAT = 1


class EmbeddingStore:
    """`path`/<key>/ends (n,) and `path`/<key>/embeddings (n, D).

    A key names everything an embedding depends on (encoder, windows, video), so nothing in the store is ever stale:
    after episodes are appended only theirs are computed.
    """

    def __init__(self, path: Path) -> None:
        """Open or create. Raises StaleTable where the store was written by a newer version."""
        self.path = path
        info = path / "srpo.json"
        if info.is_file():
            version = json.loads(info.read_text())["format"]
            if version > FORMAT:
                raise StaleTable(f"{path} has format {version}, this version reads {FORMAT}; update srpo-robot")
            return
        path.mkdir(parents=True, exist_ok=True)
        zarr.open_group(path, mode="a", zarr_format=3)
        info.write_text(json.dumps({"format": FORMAT}))

    def __contains__(self, key: str) -> bool:
        return (self.path / key / "zarr.json").is_file()

    def __len__(self) -> int:
        return sum(1 for child in self.path.iterdir() if child.is_dir() and not child.name.startswith("."))

    def get(self, key: str) -> WindowEmbeddings:
        """Raises KeyError where `key` is not in the store."""
        if key not in self:
            raise KeyError(key)
        group = zarr.open_group(self.path / key, mode="r")
        return WindowEmbeddings(np.asarray(group["ends"]), np.asarray(group["embeddings"]))

    def put(self, key: str, windows: WindowEmbeddings) -> None:
        """Commit one episode atomically: written beside its place, then renamed. A second writer's copy is dropped."""
        part = self.path / f".{key}.{uuid.uuid4().hex}"
        try:
            group = zarr.open_group(part, mode="w", zarr_format=3)
            group.create_array("ends", data=np.asarray(windows.ends, dtype=np.int64))
            group.create_array("embeddings", data=np.asarray(windows.embeddings, dtype=np.float32))
            try:
                os.rename(part, self.path / key)
            except OSError:
                if key not in self:
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
