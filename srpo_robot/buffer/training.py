"""Training samples from a buffer, in the format of lerobot's policy preprocessors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import DatasetError, UndecodableFrame, one_line

ACTION = "action"


class FrameSource(Protocol):
    """Source of decoded frames."""

    def __call__(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns frames (B,) by global index for each camera: feature key -> float32 RGB (B, 3, H, W) in [0, 1]."""
        ...


class MemoryFrames:
    """Decodes every frame once and keeps it in memory as uint8 (N, 3, H, W) per camera."""

    def __init__(self, buffer: Buffer) -> None:
        self._frames: dict[str, torch.Tensor] = {}
        for camera in buffer.cameras:
            height, width = image_size(buffer, camera)
            store = torch.empty((buffer.total_frames, 3, height, width), dtype=torch.uint8)
            for episode in buffer.episodes:
                decoded = torch.from_numpy(buffer.frames(episode, camera))
                store[episode.first_frame : episode.first_frame + episode.length] = decoded.permute(0, 3, 1, 2)
            self._frames[camera] = store

    def __call__(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        rows = torch.from_numpy(frames)
        return {camera: store[rows].to(torch.float32).div_(255) for camera, store in self._frames.items()}


class DiskFrames:
    """Decodes frames on demand through lerobot's reader, which seeks to the keyframe before each frame.

    Keeps nothing. Training draws frames at random, so every epoch decodes every frame again. That takes a few
    milliseconds per frame and camera. It is slower than a step of a tiny policy, but loader workers hide it behind a
    step of a large one.
    """

    def __init__(self, buffer: Buffer) -> None:
        quiet_lerobot()
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self._cameras = buffer.cameras
        self._dataset = LeRobotDataset(f"local/{buffer.root.name}", root=buffer.root)

    def __call__(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        items = [self._item(int(frame)) for frame in frames]
        return {camera: torch.stack([item[camera] for item in items]) for camera in self._cameras}

    def _item(self, frame: int) -> dict[str, Any]:
        try:
            return self._dataset[frame]  # type: ignore[return-value]  # it is a list only for a slice
        except Exception as error:  # PyAV, torchcodec and PIL raise dozens of kinds
            raise UndecodableFrame(f"frame {frame} (global index) cannot be decoded: {one_line(error)[:200]}") from None


class TrainingSet(Dataset):
    """Samples of a buffer by global frame index.

    Frames are decoded into memory once if they fit into `cache_gb` (`MemoryFrames`), else on demand (`DiskFrames`).

    Attributes:
        chunk: number of actions per sample.
        in_memory: whether the frames are held in memory.
    """

    def __init__(self, buffer: Buffer, chunk: int, cache_gb: float = 4.0) -> None:
        """Raises DatasetError if there is no action, UndecodableFrame if a frame cannot be decoded into memory."""
        if ACTION not in buffer.meta.features:
            raise DatasetError(f"{buffer.root.name} has no action; record with 'srpo-robot record' to train a policy")
        self.chunk = chunk
        self._vectors = {
            key: torch.from_numpy(np.ascontiguousarray(buffer.column(key)))
            for key in buffer.meta.features
            if key.startswith("observation.") and key not in buffer.cameras
        }
        self._action = torch.from_numpy(np.ascontiguousarray(buffer.column(ACTION)))
        self._tasks = [str(task) for task in buffer.meta.tasks.index]
        self._task_index = buffer.column("task_index").reshape(-1)
        self._end, self._episode = np.zeros((2, buffer.total_frames), dtype=np.int64)
        for episode in buffer.episodes:
            span = slice(episode.first_frame, episode.first_frame + episode.length)
            self._end[span], self._episode[span] = span.stop, episode.index
        self.in_memory = cached_bytes(buffer) <= cache_gb * 1e9
        self._source: FrameSource = MemoryFrames(buffer) if self.in_memory else DiskFrames(buffer)

    def __len__(self) -> int:
        return len(self._end)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one sample.

        observation.images.*: float32 (3, H, W) RGB in [0, 1]. Other observation.*: (S,). action: (chunk, A), actions of
        this and the following frames. Past the episode's end its last action is repeated and action_is_pad (chunk,) is
        True. task: the instruction. index, episode_index: scalars.
        """
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Returns a batch of samples: as `__getitem__` with a leading batch dimension. Tasks are a list."""
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"frames are 0 to {len(self) - 1}")
        ahead = rows[:, None] + np.arange(self.chunk)
        end = self._end[rows, None]
        here = torch.from_numpy(rows)
        return {
            **self._source(rows),
            **{key: values[here] for key, values in self._vectors.items()},
            ACTION: self._action[torch.from_numpy(np.minimum(ahead, end - 1))],
            "action_is_pad": torch.from_numpy(ahead >= end),
            "task": [self._tasks[number] for number in self._task_index[rows]],
            "index": here,
            "episode_index": torch.from_numpy(self._episode[rows]),
        }


def collate(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns `batch` for DataLoader, because `TrainingSet.__getitems__` already collates."""
    return batch


def image_size(buffer: Buffer, camera: str) -> tuple[int, int]:
    """Returns height and width of a camera's frames [px]."""
    feature = buffer.meta.features[camera]
    names = feature.get("names") or ["height", "width", "channels"]
    sides = dict(zip(names, feature["shape"], strict=True))
    return int(sides["height"]), int(sides["width"])


def cached_bytes(buffer: Buffer) -> int:
    """Returns the size of all decoded frames in memory [bytes]."""
    return sum(3 * buffer.total_frames * int(np.prod(image_size(buffer, camera))) for camera in buffer.cameras)
