"""Frames of a buffer as training samples, in the format that lerobot's policy preprocessors take."""

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
    """Where decoded frames come from."""

    def __call__(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """The frames (B,) of every camera, by global index: feature key -> float32 (B, 3, H, W) RGB in [0, 1]."""
        ...


class MemoryFrames:
    """Every frame decoded once, episode by episode, and kept as uint8 (N, 3, H, W) a camera."""

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
    """Frames decoded when asked for, through lerobot's reader: a seek to the keyframe before each one.

    Nothing is kept. Training draws frames at random, so every epoch decodes every frame again: a few milliseconds a
    frame and camera, slower than the step of a tiny policy; loader workers hide it behind the step of a large one.
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
            return self._dataset[frame]  # type: ignore[return-value]  # a list only for a slice
        except Exception as error:  # PyAV, torchcodec and PIL raise dozens of kinds
            raise UndecodableFrame(f"frame {frame} (global index) cannot be decoded: {one_line(error)[:200]}") from None


class TrainingSet(Dataset):
    """Samples of a buffer by global frame index; the source of the frames is the only thing that differs between sizes.

    Frames are decoded once into memory where they fit `cache_gb`, else read from disk one by one (`DiskFrames`).

    Attributes:
        chunk: number H of actions in a sample.
        in_memory: whether the frames are held in memory.
    """

    def __init__(self, buffer: Buffer, chunk: int, cache_gb: float = 4.0) -> None:
        """Raises DatasetError without an action, UndecodableFrame where a frame cannot be decoded into memory."""
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
        """One sample.

        observation.images.*: float32 (3, H, W) RGB in [0, 1]. Other observation.*: (S,). action: (chunk, A), the
        actions of this and the following frames, the episode's last one repeated past its end, where action_is_pad
        (chunk,) is True. task: the instruction. index, episode_index: scalars.
        """
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of samples, gathered at once: as `__getitem__` with a leading batch dimension; tasks are a list."""
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
    """For DataLoader: `TrainingSet.__getitems__` has made the batch already."""
    return batch


def image_size(buffer: Buffer, camera: str) -> tuple[int, int]:
    """Height and width of a camera's frames [px]."""
    feature = buffer.meta.features[camera]
    names = feature.get("names") or ["height", "width", "channels"]
    sides = dict(zip(names, feature["shape"], strict=True))
    return int(sides["height"]), int(sides["width"])


def cached_bytes(buffer: Buffer) -> int:
    """Bytes that all decoded frames take in memory."""
    return sum(3 * buffer.total_frames * int(np.prod(image_size(buffer, camera))) for camera in buffer.cameras)
