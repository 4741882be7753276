"""What a trial leaves beside its episode: a film per camera, every control step, every tick of the streamer.

While a trial runs everything is appended, so that a kill or a full disk costs the last second at most: films are cut in
fragments, steps are lines of JSON, ticks numpy arrays one after another. When it ends, steps and ticks become parquet.
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

STEPS, TICKS = "steps", "ticks"
_RUNNING = {STEPS: ".jsonl", TICKS: ".npys"}  # the suffix while a trial runs
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_CODEC = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"}

Ticks = Callable[[], np.ndarray]  # structured array, one row a tick, of all since the last call


class TrialLog:
    """Writes one trial to a folder as long as the `with` block lasts; `add` is a `Setup.log`."""

    def __init__(
        self, folder: Path, cameras: Mapping[str, tuple[int, int]], fps: float, ticks: Ticks | None = None
    ) -> None:
        """`cameras`: name -> (height, width) [px]. `ticks`: where those of the streamer come from."""
        self.folder = folder
        self._cameras, self._fps, self._ticks = cameras, fps, ticks
        self._files = ExitStack()
        self._films: dict[str, _Film] = {}

    def __enter__(self) -> Self:
        """Raises OSError where the folder cannot be written."""
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
        """Finish the files. After an error that came first, one of the disk's is left unsaid: what is there stays."""
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
        """Append one control step. Raises OSError where the disk is full."""
        self._steps.write(json.dumps(_row(step)) + "\n")
        self._steps.flush()
        for name, film in self._films.items():
            film.add(step.seen.images[name])
        self._drain()

    def _drain(self) -> None:
        rows = self._ticks() if self._ticks is not None else np.zeros(0)
        if len(rows):
            np.save(self._ticks_file, rows, allow_pickle=False)
            self._ticks_file.flush()


def read_log(folder: Path, what: str) -> dict[str, np.ndarray]:
    """The columns of a trial's `STEPS` or `TICKS`, whether it ended by itself or was cut off.

    Raises:
        DatasetError: the folder has none.
    """
    import pyarrow.parquet

    finished = folder / f"{what}.parquet"
    if finished.is_file():
        table = pyarrow.parquet.read_table(finished)
        return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
    rows = _read_running(folder, what)
    if rows is None:
        raise DatasetError(f"{folder} has no {what}; give a folder of OUTPUT/trials")
    return rows


def finish(folder: Path) -> None:
    """Turn what a trial appended into parquet, each file whole before the other one is removed."""
    import pyarrow
    import pyarrow.parquet

    for what in _RUNNING:
        rows, path = _read_running(folder, what), folder / f"{what}.parquet"
        if rows is None:
            continue
        if rows:
            table = pyarrow.table({name: values.tolist() for name, values in rows.items()})
            write_whole(path, partial(pyarrow.parquet.write_table, table), sync=True)
        _running(folder, what).unlink()


def _running(folder: Path, what: str) -> Path:
    return folder / f"{what}{_RUNNING[what]}"


def _read_running(folder: Path, what: str) -> dict[str, np.ndarray] | None:
    """Columns of what was appended, up to where it was cut; None where there is no such file."""
    path = _running(folder, what)
    if not path.is_file():
        return None
    return _read_lines(path) if what == STEPS else _read_arrays(path)


def _read_lines(path: Path) -> dict[str, np.ndarray]:
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # cut off here
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays: list[np.ndarray] = []
    with path.open("rb") as file:
        while True:
            try:
                arrays.append(np.load(file, allow_pickle=False))
            except (ValueError, EOFError, OSError):
                break  # the end, or cut off here
    if not arrays:
        return {}
    rows = np.concatenate(arrays)
    return {name: rows[name] for name in rows.dtype.names or ()}


def _row(step: Step) -> dict[str, Any]:
    seen, sent = step.seen, step.limited.command
    return {
        "step": step.number,
        "wall_s": time.time(),
        "arm_s": seen.state.time_s,
        "chunk": step.chunk,
        "row": step.row,
        "late": step.row < 0,
        "limited_by": ",".join(step.limited_by),
        "reached_rad": seen.state.joints_rad.tolist(),
        "asked_rad": step.asked.joints_rad.tolist(),
        "sent_rad": sent.joints_rad.tolist(),
        "reached_gripper_m": seen.state.gripper_m,
        "asked_gripper_m": step.asked.gripper_m,
        "sent_gripper_m": sent.gripper_m,
    }


class _Film:
    """A camera's film as fragmented MP4: what is written can be watched, whatever happens next."""

    def __init__(self, path: Path, height_px: int, width_px: int, fps: float) -> None:
        import av

        self._av, self._path = av, path
        self._container: Any = av.open(str(path), "w", options=_FRAGMENTS)
        self._size = (height_px // 2 * 2, width_px // 2 * 2)  # the codec's colours come in blocks of two
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
