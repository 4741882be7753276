"""The log of a trial: a film per camera, every control step, and every tick of the streamer.

While a trial runs, all files are appended to, so that a kill or a full disk costs the last second at most. Films are
fragmented, steps are lines of JSON, and ticks are consecutive numpy arrays. At the end of the trial, steps and ticks
are converted to parquet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from srpo_robot.errors import DatasetError
from srpo_robot.evaluation.runtime import Step
from srpo_robot.files import write_whole
from srpo_robot.renames import TRIAL_KEYS, current_keys

STEPS, TICKS = "steps", "ticks"
_RUNNING = {STEPS: ".jsonl", TICKS: ".npys"}  # file suffixes while a trial runs
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_CODEC = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}

Ticks = Callable[[], np.ndarray]  # returns all ticks since the last call as a structured array, one row per tick


class TrialLog:
    """Writes the log of one trial to a folder inside a `with` block. Pass `add` as `Setup.log`."""

    def __init__(
        self, folder: Path, cameras: Mapping[str, tuple[int, int]], fps: float, ticks: Ticks | None = None
    ) -> None:
        """`cameras`: name -> (height, width) [px]. `ticks`: source of the streamer's ticks."""
        self.folder = folder
        self._cameras, self._fps, self._ticks = cameras, fps, ticks
        self._files = ExitStack()
        self._films: dict[str, _Film] = {}

    def __enter__(self) -> Self:
        """Opens the files. Raises OSError if the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._steps = opened.enter_context(_running(self.folder, STEPS).open("a", encoding="utf-8"))
            self._ticks_file = opened.enter_context(_running(self.folder, TICKS).open("ab"))
            for name, size in self._cameras.items():
                film = _Film(self.folder / f"{name}.mp4", *size, self._fps)
                opened.callback(film.close)
                self._films[name] = film
            self._files = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the files. Keeps an earlier error: a disk error is raised only if there is no other error."""
        try:
            try:
                self._drain()
            finally:
                self._files.close()
            finish(self.folder)
        except OSError:
            if error is None:
                raise

    def add(self, step: Step) -> None:
        """Appends one control step. Raises OSError if the disk is full."""
        self._steps.write(json.dumps(_row(step)) + "\n")
        self._steps.flush()
        for name, film in self._films.items():
            film.add(step.observation.images[name])
        self._drain()

    def _drain(self) -> None:
        rows = self._ticks() if self._ticks is not None else np.zeros(0)
        if len(rows):
            np.save(self._ticks_file, rows, allow_pickle=False)
            self._ticks_file.flush()


def read_log(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Returns the columns of a trial's `STEPS` or `TICKS`. Also reads trials that were cut off.

    Raises:
        DatasetError: the folder has no such log.
    """
    import pyarrow.parquet

    parquet = folder / f"{kind}.parquet"
    if parquet.is_file():
        table = pyarrow.parquet.read_table(parquet)
        columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
        return current_keys(columns, TRIAL_KEYS)
    rows = _read_running(folder, kind)
    if rows is None:
        raise DatasetError(f"{folder} has no {kind}; give a folder of OUTPUT/trials")
    return current_keys(rows, TRIAL_KEYS)


def finish(folder: Path) -> None:
    """Converts a trial's appended files to parquet. Each file is complete before its source is removed."""
    import pyarrow
    import pyarrow.parquet

    for kind in _RUNNING:
        rows, path = _read_running(folder, kind), folder / f"{kind}.parquet"
        if rows is None:
            continue
        if rows:
            table = pyarrow.table({name: values.tolist() for name, values in rows.items()})
            write_whole(path, partial(pyarrow.parquet.write_table, table), sync=True)
        _running(folder, kind).unlink()


def _running(folder: Path, kind: str) -> Path:
    return folder / f"{kind}{_RUNNING[kind]}"


def _read_running(folder: Path, kind: str) -> dict[str, np.ndarray] | None:
    """Returns the columns of an appended file, up to the point of a cut. Returns None if there is no such file."""
    path = _running(folder, kind)
    if not path.is_file():
        return None
    return _read_lines(path) if kind == STEPS else _read_arrays(path)


def _read_lines(path: Path) -> dict[str, np.ndarray]:
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the file is cut off here
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays: list[np.ndarray] = []
    with path.open("rb") as file:
        while True:
            try:
                arrays.append(np.load(file, allow_pickle=False))
            except (ValueError, EOFError, OSError):
                break  # the end of the file, or a cut
    if not arrays:
        return {}
    rows = np.concatenate(arrays)
    return {name: rows[name] for name in rows.dtype.names or ()}


def _row(step: Step) -> dict[str, Any]:
    """Returns a step's columns. If a name changes, `read_log` needs the old one in `renames.TRIAL_KEYS`."""
    state, sent = step.observation.state, step.limited.command
    return {
        "step": step.number,
        "wall_s": time.time(),
        "arm_s": state.time_s,
        "chunk": step.chunk,
        "row": step.row,
        "late": step.row < 0,
        "limited_by": ",".join(step.limited_by),
        "reached_rad": state.joints_rad.tolist(),
        "asked_rad": step.requested.joints_rad.tolist(),
        "sent_rad": sent.joints_rad.tolist(),
        "reached_gripper_m": state.gripper_m,
        "asked_gripper_m": step.requested.gripper_m,
        "sent_gripper_m": sent.gripper_m,
    }


class _Film:
    """A camera's film as fragmented MP4. The written part stays playable even if the process is killed."""

    def __init__(self, path: Path, height_px: int, width_px: int, fps: float) -> None:
        import av

        self._av, self._path = av, path
        self._container: Any = av.open(str(path), "w", options=_FRAGMENTS)
        self._size = (height_px // 2 * 2, width_px // 2 * 2)  # yuv420p needs even sizes
        rate = Fraction(fps).limit_denominator(1000)
        self._stream = self._container.add_stream("libx264", rate=rate, options=_CODEC | {"g": str(max(round(fps), 1))})
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"

    def add(self, image: np.ndarray) -> None:
        rows, columns = self._size
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:rows, :columns]), format="rgb24")
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def close(self) -> None:
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode())
        except self._av.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        finally:
            container.close()
