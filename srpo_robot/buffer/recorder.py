"""Appends episodes to a LeRobot v3.0 dataset. Each episode is complete on disk before the next one begins."""

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
    """Returns LeRobot's feature table: a video per camera (name -> height, width [px]), state, action, success."""
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
    """Writes episodes into a new dataset, or appends to one with the same features. Use it as a context manager.

    lerobot makes episodes readable only when it finalises the dataset. To continue, it must reopen the dataset, which
    takes longer with every episode. So the dataset is finalised every `commit_every` episodes and on exit, also after
    an exception or Ctrl-C. Files that a kill -9 cut off are moved aside when the next recorder opens the dataset.
    """

    def __init__(self, root: Path, fps: float, features: dict[str, Any], robot: str, commit_every: int = 1) -> None:
        """Checks the target folder and writes nothing. With `commit_every` 1 every finished episode survives a crash.

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
        stored = {name: feature for name, feature in info["features"].items() if name not in _LEROBOTS}
        for name in stored.keys() & self.features.keys():
            there, here = stored[name], self.features[name]
            if list(there["shape"]) != list(here["shape"]) or there["names"] != here["names"]:
                raise DatasetError(
                    f"{self.root} has another {name!r} than this run would append; use another --root "
                    f"(there: {there['shape']}, here: {list(here['shape'])})"
                )
        lacking, extra = sorted(self.features.keys() - stored.keys()), sorted(stored.keys() - self.features.keys())
        if lacking or extra:
            difference = f"has no column {lacking[0]!r}" if lacking else f"has a column {extra[0]!r} of its own"
            raise DatasetError(
                f"{self.root} {difference}, unlike this run: it is another arm's or version's; use another --root"
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
        """Number of finished episodes."""
        return recorded_episodes(self.root)

    def begin(self) -> None:
        """Opens the dataset for the next episode, unless it is open."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        if self._dataset is not None:
            return
        name = f"local/{self.root.name}"
        # The queue is unbounded. lerobot's default holds 30 frames and drops further ones if the encoder is slower than
        # the camera, which shifts all later images against their states. Here a slow encoder costs memory instead.
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
        """Adds one frame.

        Args:
            images: uint8 (H, W, 3) by camera name.
            state: state before the action.
            action: action executed from that state.
            task: language instruction.
            truth: values from a simulator by column name. Columns that the features do not declare are ignored.
        """
        frame: dict[str, Any] = {f"observation.images.{name}": image for name, image in images.items()}
        frame["observation.state"] = np.asarray(state, dtype=np.float32)
        frame["action"] = np.asarray(action, dtype=np.float32)
        frame["next.success"] = np.array([False])
        frame |= {name: value for name, value in (truth or {}).items() if name in self.features}
        self._dataset.add_frame({**frame, "task": task})

    def end(self, success: bool | None) -> int:
        """Finishes the episode and returns its index. If `success` is None (void trial), discards it and returns -1."""
        import datasets

        if not self._dataset.has_pending_frames():
            return -1
        if success is None:
            self._dataset.clear_episode_buffer()
            return -1
        with interrupts.held_back():
            self._dataset.writer.episode_buffer["next.success"][-1] = np.array([success])
            datasets.disable_progress_bars()  # one per episode; lerobot enables them whenever it loads a dataset
            self._dataset.save_episode()
            self._uncommitted += 1
            index = self.episodes - 1
            if self._uncommitted >= self._commit_every:
                self._commit()
        return index

    def _commit(self) -> None:
        """Finalises the dataset, so that its episodes become readable."""
        dataset, self._dataset, self._uncommitted = self._dataset, None, 0
        if dataset is not None:
            if dataset.has_pending_frames():  # after an exception: this episode has no verdict
                dataset.clear_episode_buffer()
            dataset.finalize()


def recorded_episodes(root: Path) -> int:
    """Returns the number of finished episodes in `root`, 0 if there is no dataset."""
    info = root / INFO
    return int(json.loads(info.read_text())["total_episodes"]) if info.is_file() else 0


def _make_room(root: Path) -> None:
    """Removes the folder of an earlier start that recorded nothing, because lerobot creates only new folders.

    Raises:
        DatasetError: the folder holds more than an empty dataset's metadata.
    """
    if not root.exists():
        return
    if {path.name for path in root.iterdir()} - {"meta", "images"}:
        raise DatasetError(f"{root} holds files but no finished episode; move it away or give another --root")
    shutil.rmtree(root)
