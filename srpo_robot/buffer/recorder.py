"""Appending episodes to a LeRobot v3.0 dataset, each one whole on disk before the next begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.buffer.episodes import quiet_lerobot
from srpo_robot.errors import DatasetError


def dataset_features(
    cameras: dict[str, tuple[int, int]], state_names: tuple[str, ...], action_names: tuple[str, ...]
) -> dict[str, Any]:
    """LeRobot's feature table: a video per camera (name -> height, width [px]), state, action, success."""
    features: dict[str, Any] = {
        f"observation.images.{name}": {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
        for name, (height, width) in cameras.items()
    }
    features["observation.state"] = {"dtype": "float32", "shape": (len(state_names),), "names": list(state_names)}
    features["action"] = {"dtype": "float32", "shape": (len(action_names),), "names": list(action_names)}
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


class Recorder:
    """Writes episodes into a new dataset, or onto the end of one with the same features.

    lerobot buffers episode metadata and leaves parquet files open until `finalize`: a crash would lose them. So the
    dataset is finalised after every episode and resumed for the next.
    """

    def __init__(self, root: Path, fps: float, features: dict[str, Any], robot: str) -> None:
        """Raises DatasetError where `root` holds something else, or a dataset with other features or another rate."""
        if fps != int(fps):
            raise DatasetError(f"a LeRobot dataset needs a whole number of frames a second, not {fps}")
        self.root, self.fps, self.features, self.robot = root, int(fps), features, robot
        self._dataset: Any = None
        if root.exists() and not (root / "meta" / "info.json").is_file() and any(root.iterdir()):
            raise DatasetError(f"{root} exists and is no dataset; give a new folder or a dataset to append to")
        if (root / "meta" / "info.json").is_file():
            self._check_same()

    def _check_same(self) -> None:
        info = json.loads((self.root / "meta" / "info.json").read_text())
        if info["fps"] != self.fps:
            raise DatasetError(
                f"{self.root} is recorded at {info['fps']} fps, this run at {self.fps}; use another --root"
            )
        for name, feature in self.features.items():
            have = info["features"].get(name)
            if have is None or list(have["shape"]) != list(feature["shape"]) or have["names"] != feature["names"]:
                raise DatasetError(
                    f"{self.root} has another {name!r} than this run would append; use another --root "
                    f"(there: {have and have['shape']}, here: {list(feature['shape'])})"
                )

    @property
    def episodes(self) -> int:
        """Episodes on disk."""
        return recorded_episodes(self.root)

    def begin(self) -> None:
        """Open the dataset for one episode."""
        quiet_lerobot()
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        name = f"local/{self.root.name}"
        options: dict[str, Any] = {"streaming_encoding": True, "encoder_threads": 2}
        if self.episodes:
            self._dataset = LeRobotDataset.resume(name, root=self.root, **options)
        else:
            if self.root.exists():  # an earlier start that recorded nothing
                _remove_empty_dataset(self.root)
            self._dataset = LeRobotDataset.create(
                name, self.fps, self.features, root=self.root, robot_type=self.robot, use_videos=True, **options
            )

    def add(self, images: dict[str, np.ndarray], state: np.ndarray, action: np.ndarray, task: str) -> None:
        """Add one frame: images by camera name uint8 (H, W, 3), the state before and the action executed from it."""
        frame: dict[str, Any] = {f"observation.images.{name}": image for name, image in images.items()}
        frame["observation.state"] = np.asarray(state, dtype=np.float32)
        frame["action"] = np.asarray(action, dtype=np.float32)
        frame["next.success"] = np.array([False])
        self._dataset.add_frame({**frame, "task": task})

    def end(self, success: bool | None) -> int:
        """Write the episode and return its index. `success` None discards it (a void trial) and returns -1."""
        import datasets

        dataset, self._dataset = self._dataset, None
        if success is None or not dataset.has_pending_frames():
            if dataset.has_pending_frames():
                dataset.clear_episode_buffer()
            dataset.finalize()
            return -1
        dataset.writer.episode_buffer["next.success"][-1] = np.array([success])
        datasets.disable_progress_bars()  # one an episode; lerobot switches them on again whenever it loads a dataset
        dataset.save_episode()
        dataset.finalize()
        return self.episodes - 1


def recorded_episodes(root: Path) -> int:
    """Finished episodes of the dataset in `root`; 0 where there is none."""
    info = root / "meta" / "info.json"
    return int(json.loads(info.read_text())["total_episodes"]) if info.is_file() else 0


def _remove_empty_dataset(root: Path) -> None:
    if (root / "data").exists():
        raise DatasetError(f"{root} holds files but no finished episode; move it away or give another --root")
    shutil.rmtree(root)
