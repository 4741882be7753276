"""An open LeRobot v3.0 dataset: its episodes, frames, columns and fingerprints."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from srpo_robot.buffer.decode import (
    CHUNK,
    Video,
    broken,
    image_chunks,
    image_content,
    joined,
    video_chunks,
    video_packets,
)
from srpo_robot.errors import DatasetError, one_line
from srpo_robot.records import Episode

SIDECAR = "srpo"


@dataclass(frozen=True, eq=False)
class Buffer:
    """A LeRobot v3.0 dataset on disk.

    Attributes:
        root: folder of the dataset.
        meta: lerobot's LeRobotDatasetMetadata.
        episodes: all episodes with their labels, in order.
    """

    root: Path
    meta: Any
    episodes: tuple[Episode, ...]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of the cameras, "observation.images.*"."""
        return tuple(self.meta.camera_keys)

    @property
    def fps(self) -> float:
        return float(self.meta.fps)

    @property
    def sidecar(self) -> Path:
        """DATASET/srpo, the folder of all files that this package adds. Recorded files are never changed."""
        return self.root / SIDECAR

    @property
    def total_frames(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the recording: frames, lengths and tasks of all episodes, without labels."""
        content = [(e.index, e.task, e.length, e.first_frame) for e in self.episodes]
        return hashlib.sha256(json.dumps([self.fps, content]).encode()).hexdigest()[:16]

    @cached_property
    def labels_fingerprint(self) -> str:
        """Hash of all labels and groups. A score stores it to detect changed labels."""
        content = [(e.index, e.success, e.group) for e in self.episodes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def camera(self, name: str | None) -> str:
        """Returns the feature key of camera `name` ("front" or "observation.images.front"), None: the first camera.

        Raises:
            DatasetError: there is no such camera. The message lists the existing ones.
        """
        if not self.cameras:
            raise DatasetError(f"{self.root} has no camera; scoring needs a dataset with observation.images.*")
        if name is None:
            return self.cameras[0]
        for key in self.cameras:
            if name in (key, key.removeprefix("observation.images.")):
                return key
        names = ", ".join(key.removeprefix("observation.images.") for key in self.cameras)
        raise DatasetError(f"no camera {name!r} in {self.root}; there are: {names}")

    def frame_chunks(self, episode: Episode, camera: str, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Yields all frames of one camera in order, `chunk` at a time: uint8 (n, H, W, 3) RGB.

        Raises:
            UndecodableFrame: a frame cannot be decoded. Earlier chunks were already yielded. The message names episode,
                camera and frame.
        """
        if camera in self.meta.image_keys:
            cells = self._image_cells(episode, camera)
            return image_chunks(_named(episode, camera), cells, self.root, episode.length, chunk)
        return video_chunks(self._video(episode, camera), chunk)

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        """Returns `frame_chunks` as one array: uint8 (T, H, W, 3) RGB. 300 frames of 720x1280 take 830 MB."""
        return joined(self.frame_chunks(episode, camera), episode.length)

    def video_identity(self, episode: Episode, camera: str) -> str:
        """Returns a hash of the compressed frames. It stays the same if episodes are appended or files are moved.

        Raises:
            UndecodableFrame: the file cannot be read.
        """
        digest = hashlib.sha256(f"{camera} {episode.length}".encode())
        if camera in self.meta.image_keys:
            for cell in self._image_cells(episode, camera):
                digest.update(image_content(cell))
        else:
            for packet in video_packets(self._video(episode, camera)):
                digest.update(packet)
        return digest.hexdigest()[:32]

    def column(self, name: str) -> np.ndarray:
        """Returns one recorded column over all frames, in the order of the global `index`: (N,) or (N, width).

        Raises:
            DatasetError: there is no such column. The message lists the existing ones.
        """
        if name not in self.meta.features:
            raise DatasetError(f"{self.root} has no {name!r}; its columns are: {', '.join(self.meta.features)}")
        table = self._data.to_table(columns=list(dict.fromkeys(["index", name])))
        order = np.argsort(table["index"].to_numpy(), kind="stable")
        values = table[name].combine_chunks()
        if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            width = len(values[0])
            return np.asarray(values.flatten()).reshape(-1, width)[order]
        return values.to_numpy(zero_copy_only=False)[order]

    @cached_property
    def _data(self) -> Any:
        import pyarrow.dataset as pads  # imports pandas, which takes half a second

        return pads.dataset(self.root / "data", format="parquet", partitioning=None)

    def _image_cells(self, episode: Episode, camera: str) -> Iterator[Any]:
        import pyarrow.dataset as pads

        rows = pads.field("episode_index") == episode.index
        batches = self._data.to_batches(
            columns=["frame_index", camera], filter=rows, batch_size=CHUNK, batch_readahead=1, fragment_readahead=1
        )
        number = 0
        for batch in batches:
            for frame, cell in zip(batch["frame_index"], batch[camera], strict=True):
                if frame.as_py() != number:
                    raise broken(_named(episode, camera), number, "the frame is missing")
                yield cell.as_py()
                number += 1

    def _video(self, episode: Episode, camera: str) -> Video:
        row, name = self.meta.episodes[episode.index], _named(episode, camera)
        try:
            path = self.root / self.meta.get_video_file_path(episode.index, camera)
            span = float(row[f"videos/{camera}/from_timestamp"]), float(row[f"videos/{camera}/to_timestamp"])
        except (KeyError, TypeError, ValueError) as error:
            raise broken(name, 0, f"meta/episodes does not say where it is: {one_line(error)}") from None
        if not all(map(math.isfinite, span)):
            raise broken(name, 0, f"meta/episodes says it is at {span[0]:g} to {span[1]:g} s of {path.name}")
        return Video(name=name, path=path, start_s=span[0], end_s=span[1], length=episode.length, fps=self.fps)


def _named(episode: Episode, camera: str) -> str:
    return f"episode {episode.index}, {camera}"
