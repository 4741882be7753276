"""Opening a LeRobot v3.0 dataset: episodes, frames decoded once and in order, columns, and what identifies them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from av.error import FFmpegError
from PIL import Image

from srpo_robot.buffer.labels import read_labels
from srpo_robot.buffer.repair import is_cut_off
from srpo_robot.errors import DatasetError, UndecodableFrame, one_line
from srpo_robot.records import Episode

# What libav cannot read becomes an exception; its own lines say less. The second level holds where lerobot's writer has
# handed libav back its default callback.
av.logging.set_level(av.logging.FATAL)
av.logging.set_libav_level(av.logging.FATAL)

CODEBASE = "v3.0"
INFO = Path("meta") / "info.json"
SIDECAR = "srpo"
REORDER_S = 1.0  # packets are stored in decoding order; one that is shown earlier may come this much later


def quiet_lerobot() -> None:
    """Keep what lerobot's parts print off the terminal; call it before importing lerobot.

    Without system ffmpeg it logs a 100-line torchcodec traceback and falls back to PyAV by itself; the AV1 encoder
    prints its settings for every file.
    """
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # errors only; read when an encoder opens


@dataclass(frozen=True, eq=False)
class Buffer:
    """A LeRobot v3.0 dataset on disk.

    Attributes:
        root: its folder.
        meta: lerobot's LeRobotDatasetMetadata.
        episodes: every episode with its label, in order.
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
        """DATASET/srpo, where everything that this package adds lives; the recorded files are never written."""
        return self.root / SIDECAR

    @property
    def total_frames(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what was recorded: frames, lengths and tasks of all episodes. Labels are not part of it."""
        content = [(e.index, e.task, e.length, e.first_frame) for e in self.episodes]
        return hashlib.sha256(json.dumps([self.fps, content]).encode()).hexdigest()[:16]

    @cached_property
    def labels_fingerprint(self) -> str:
        """Identifies the labels and groups that a score was computed with."""
        content = [(e.index, e.success, e.group) for e in self.episodes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def camera(self, name: str | None) -> str:
        """The feature key of camera `name` ("front" or "observation.images.front"); None: the first one.

        Raises:
            DatasetError: unknown; the message lists those there are.
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

    def frames(self, episode: Episode, camera: str) -> np.ndarray:
        """All frames of one camera, decoded once and sequentially: uint8 (T, H, W, 3) RGB.

        Raises:
            UndecodableFrame: names episode, camera and frame.
        """
        decode = self._decode_images if camera in self.meta.image_keys else self._decode_video
        return decode(episode, camera)

    def video_identity(self, episode: Episode, camera: str) -> str:
        """A hash of the recorded (compressed) frames: the same after episodes are appended or files are moved."""
        digest = hashlib.sha256(f"{camera} {episode.length}".encode())
        if camera in self.meta.image_keys:
            for cell in self._image_cells(episode, camera):
                digest.update(cell["bytes"] or str(cell["path"]).encode())
            return digest.hexdigest()[:32]
        path, start_s, end_s = self._video_span(episode, camera)
        with self._open_video(path, episode, camera) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            half = 0.5 / self.fps
            self._seek(container, stream, start_s)
            try:
                for packet in container.demux(stream):
                    if packet.pts is None:
                        continue
                    seconds = float(packet.pts * stream.time_base)
                    if start_s - half <= seconds < end_s - half:
                        digest.update(bytes(packet))
                    elif seconds > end_s + REORDER_S:
                        break
            except FFmpegError as error:
                raise UndecodableFrame(
                    f"episode {episode.index}, {camera}: {path.name} cannot be read: {error}"
                ) from None
        return digest.hexdigest()[:32]

    def column(self, name: str) -> np.ndarray:
        """One recorded column over all frames, in the order of the global `index`: (N,) or (N, width).

        Raises:
            DatasetError: no such column; the message lists those there are.
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
    def _data(self) -> pads.Dataset:
        return pads.dataset(self.root / "data", format="parquet", partitioning=None)

    def _image_cells(self, episode: Episode, camera: str) -> list[dict[str, Any]]:
        rows = pads.field("episode_index") == episode.index
        table = self._data.to_table(columns=["frame_index", camera], filter=rows).sort_by("frame_index")
        return table[camera].to_pylist()

    def _decode_images(self, episode: Episode, camera: str) -> np.ndarray:
        frames = []
        for number, cell in enumerate(self._image_cells(episode, camera)):
            try:
                source = io.BytesIO(cell["bytes"]) if cell["bytes"] else self.root / cell["path"]
                frames.append(np.asarray(Image.open(source).convert("RGB")))
            except (OSError, TypeError) as error:
                raise UndecodableFrame(_broken(episode, camera, number, error)) from None
        if len(frames) != episode.length:
            raise UndecodableFrame(_broken(episode, camera, len(frames), "the frame is missing"))
        return np.stack(frames)

    def _video_span(self, episode: Episode, camera: str) -> tuple[Path, float, float]:
        row = self.meta.episodes[episode.index]
        path = self.root / self.meta.get_video_file_path(episode.index, camera)
        return path, row[f"videos/{camera}/from_timestamp"], row[f"videos/{camera}/to_timestamp"]

    def _open_video(self, path: Path, episode: Episode, camera: str) -> Any:
        try:
            return av.open(str(path))
        except (FFmpegError, OSError) as error:
            raise UndecodableFrame(_broken(episode, camera, 0, f"{path.name} cannot be opened: {error}")) from None

    def _seek(self, container: Any, stream: Any, start_s: float) -> None:
        """To the keyframe before an episode's first frame: many episodes share a file."""
        if start_s > 0:
            container.seek(int(max(start_s - 1 / self.fps, 0) / stream.time_base), stream=stream)

    def _decode_video(self, episode: Episode, camera: str) -> np.ndarray:
        path, start_s, _ = self._video_span(episode, camera)
        frames: list[np.ndarray] = []
        with self._open_video(path, episode, camera) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert stream.time_base is not None
            self._seek(container, stream, start_s)
            try:
                for frame in container.decode(stream):
                    number = round((float(frame.pts * stream.time_base) - start_s) * self.fps)
                    if number < 0:
                        continue
                    if number != len(frames):
                        raise UndecodableFrame(_broken(episode, camera, len(frames), "the frame is missing"))
                    frames.append(frame.to_ndarray(format="rgb24"))
                    if len(frames) == episode.length:
                        break
            except FFmpegError as error:
                raise UndecodableFrame(_broken(episode, camera, len(frames), error)) from None
        if len(frames) != episode.length:
            raise UndecodableFrame(_broken(episode, camera, len(frames), "the video ends there"))
        return np.stack(frames)


def _broken(episode: Episode, camera: str, frame: int, why: object) -> str:
    return (
        f"episode {episode.index}, {camera}, frame {frame} cannot be decoded ({why}); "
        "record the episode again, or go on without it: --skip-bad-episodes"
    )


def open_buffer(dataset: str | Path) -> Buffer:
    """Open a LeRobot v3.0 dataset by folder, or download it by Hub id ("user/name").

    Raises:
        DatasetError: no such folder, no dataset in it, another format version, or the Hub does not answer.
    """
    root = Path(dataset)
    hub_id = None
    if root.is_dir():
        _check_folder(root)
    elif str(dataset).count("/") == 1 and not str(dataset).startswith((".", "/", "~")):
        hub_id = str(dataset)
    else:
        raise DatasetError(f"{dataset} is no folder; give a LeRobot v3.0 dataset's folder or a Hub id like user/name")
    meta = _load_metadata(root, hub_id)
    root = Path(meta.root)
    bare = tuple(_bare_episode(meta, row) for row in meta.episodes)
    buffer = Buffer(root, meta, bare)
    labels = read_labels(buffer)
    labelled = (replace(e, success=labels[e.index].success, group=labels[e.index].group) for e in bare)
    return Buffer(root, meta, tuple(labelled))


def _check_folder(root: Path) -> None:
    info = root / INFO
    if not info.is_file():
        raise DatasetError(f"{root} is no LeRobot dataset: it has no meta/info.json; give the folder that holds meta/")
    try:
        version = json.loads(info.read_text()).get("codebase_version", "unknown")
    except json.JSONDecodeError as error:
        raise DatasetError(f"{info} is not readable: {error}") from None
    if version != CODEBASE:
        raise DatasetError(
            f"{root} is in LeRobot format {version}; convert it with "
            f"'python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=USER/NAME --root={root}'"
            if str(version).startswith("v2")
            else f"{root} is in LeRobot format {version}; this version reads {CODEBASE}"
        )
    if is_cut_off(root):
        raise DatasetError(
            f"{root} has unfinished files: it is being recorded just now, or its recording was cut off; "
            f"if nobody records there: srpo-robot repair {root}"
        )


def _load_metadata(root: Path, hub_id: str | None) -> Any:
    quiet_lerobot()
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    try:
        if hub_id is None:
            meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
        else:
            from lerobot.datasets.lerobot_dataset import LeRobotDataset

            meta = LeRobotDataset(hub_id).meta
    except Exception as error:  # the Hub client and the parquet readers raise dozens of kinds
        if hub_id is None:
            raise DatasetError(f"{root} cannot be read: {one_line(error)[:200]}; restore it from a copy") from None
        raise DatasetError(
            f"there is no folder {hub_id}, and the Hub does not give a dataset of that name "
            f"({one_line(error)[:120]}); a folder on this machine works offline"
        ) from None
    if meta.episodes is None or len(meta.episodes) == 0:
        raise DatasetError(f"{root} holds no episodes yet; record some with 'srpo-robot record'")
    return meta


def _bare_episode(meta: Any, row: dict[str, Any]) -> Episode:
    tasks = row["tasks"]
    return Episode(
        index=int(row["episode_index"]),
        task=str(tasks[0]) if len(tasks) else "",
        length=int(row["length"]),
        fps=float(meta.fps),
        first_frame=int(row["dataset_from_index"]),
        cameras=tuple(meta.camera_keys),
    )
