"""Appending episodes to a LeRobot v3.0 dataset, each one whole on disk before the next begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from srpo_robot import interrupts
from srpo_robot.buffer.opening import INFO, quiet_lerobot
from srpo_robot.buffer.repair import repair
from srpo_robot.errors import DatasetError

_LEROBOTS = {"timestamp", "frame_index", "episode_index", "index", "task_index"}  # columns that lerobot adds itself


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
    """Writes episodes into a new dataset, or onto the end of one with the same features. Use it as a context manager.

    lerobot makes an episode readable only when it finalises the dataset, and to go on it must open it anew, which takes
    longer the more episodes there are. So the dataset is finalised every `commit_every` episodes, and on the way out,
    also by an exception or Ctrl-C. What a kill -9 cuts off is moved aside when the next recorder opens the dataset.
    """

    def __init__(self, root: Path, fps: float, features: dict[str, Any], robot: str, commit_every: int = 1) -> None:
        """`commit_every` 1: every finished episode survives whatever comes after it.

        Raises:
            DatasetError: `root` holds something else, or a dataset with other features or another rate.
        """
        if fps != int(fps):
            raise DatasetError(f"a LeRobot dataset needs a whole number of frames a second, not {fps}")
        self.root, self.fps, self.features, self.robot = root, int(fps), features, robot
        self._commit_every, self._uncommitted = commit_every, 0
        self._dataset: Any = None
        if (root / INFO).is_file():
            self._check_same()
        elif root.exists() and any(root.iterdir()):
            raise DatasetError(f"{root} exists and is no dataset; give a new folder or a dataset to append to")

    def _check_same(self) -> None:
        info = json.loads((self.root / INFO).read_text())
        if info["fps"] != self.fps:
            raise DatasetError(
                f"{self.root} is recorded at {info['fps']} fps, this run at {self.fps}; use another --root"
            )
        have = {name: feature for name, feature in info["features"].items() if name not in _LEROBOTS}
        for name in have.keys() & self.features.keys():
            there, here = have[name], self.features[name]
            if list(there["shape"]) != list(here["shape"]) or there["names"] != here["names"]:
                raise DatasetError(
                    f"{self.root} has another {name!r} than this run would append; use another --root "
                    f"(there: {there['shape']}, here: {list(here['shape'])})"
                )
        lacking, extra = sorted(self.features.keys() - have.keys()), sorted(have.keys() - self.features.keys())
        if lacking or extra:
            what = f"has no column {lacking[0]!r}" if lacking else f"has a column {extra[0]!r} of its own"
            raise DatasetError(
                f"{self.root} {what}, unlike this run: it is another arm's or version's; use another --root"
            )

    def __enter__(self) -> Self:
        quiet_lerobot()
        if (self.root / INFO).is_file():
            repair(self.root)
        return self

    def __exit__(self, *_: object) -> None:
        self._commit()

    @property
    def episodes(self) -> int:
        """Finished episodes."""
        return recorded_episodes(self.root)

    def begin(self) -> None:
        """Open the dataset for one episode, where it is not open."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        if self._dataset is not None:
            return
        name = f"local/{self.root.name}"
        # A queue without a bound: lerobot's own holds 30 frames, and drops the next one when the encoder is slower than
        # the camera, so that from there on images belong to other states. A slow encoder costs memory instead.
        options: dict[str, Any] = {"streaming_encoding": True, "encoder_threads": 2, "encoder_queue_maxsize": 0}
        with interrupts.held_back():
            if self.episodes:
                self._dataset = LeRobotDataset.resume(name, root=self.root, **options)
                return
            _make_room(self.root)
            options |= {"robot_type": self.robot, "use_videos": True}
            self._dataset = LeRobotDataset.create(name, self.fps, self.features, root=self.root, **options)

    def add(
        self,
        images: dict[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        truth: Mapping[str, np.ndarray | str] | None = None,
    ) -> None:
        """Add one frame: images by camera name uint8 (H, W, 3), the state before and the action executed from it.

        `truth`: what a simulator knows, by column name; of it the columns are recorded that the features declare.
        """
        frame: dict[str, Any] = {f"observation.images.{name}": image for name, image in images.items()}
        frame["observation.state"] = np.asarray(state, dtype=np.float32)
        frame["action"] = np.asarray(action, dtype=np.float32)
        frame["next.success"] = np.array([False])
        frame |= {name: value for name, value in (truth or {}).items() if name in self.features}
        self._dataset.add_frame({**frame, "task": task})

    def end(self, success: bool | None) -> int:
        """Finish the episode and return its index. `success` None discards it (a void trial) and returns -1."""
        import datasets

        if not self._dataset.has_pending_frames():
            return -1
        if success is None:
            self._dataset.clear_episode_buffer()
            return -1
        with interrupts.held_back():
            self._dataset.writer.episode_buffer["next.success"][-1] = np.array([success])
            datasets.disable_progress_bars()  # one an episode; lerobot switches them on whenever it loads a dataset
            self._dataset.save_episode()
            self._uncommitted += 1
            index = self.episodes - 1
            if self._uncommitted >= self._commit_every:
                self._commit()
        return index

    def _commit(self) -> None:
        """Make what was recorded readable."""
        dataset, self._dataset, self._uncommitted = self._dataset, None, 0
        if dataset is not None:
            if dataset.has_pending_frames():  # an exception on the way: this episode has no verdict
                dataset.clear_episode_buffer()
            dataset.finalize()


def recorded_episodes(root: Path) -> int:
    """Finished episodes of the dataset in `root`; 0 where there is none."""
    info = root / INFO
    return int(json.loads(info.read_text())["total_episodes"]) if info.is_file() else 0


def _make_room(root: Path) -> None:
    """lerobot creates a dataset only where there is no folder; an earlier start that recorded nothing left one.

    Raises:
        DatasetError: the folder holds more than an empty dataset's metadata.
    """
    if not root.exists():
        return
    if {path.name for path in root.iterdir()} - {"meta", "images"}:
        raise DatasetError(f"{root} holds files but no finished episode; move it away or give another --root")
    shutil.rmtree(root)
