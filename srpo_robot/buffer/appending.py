"""A run's recorded trials go back into the buffer: the next round scores them and trains on them.

lerobot's own aggregation copies the frames unchanged, video packets included, so that what was embedded stays embedded:
the store is keyed by what the packets hold. The new dataset is built beside the old one and takes its place in one
step; until then the old one is untouched.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srpo_robot.buffer.episodes import SIDECAR, Buffer
from srpo_robot.buffer.labels import Label, write_labels
from srpo_robot.buffer.opening import open_buffer, quiet_lerobot
from srpo_robot.errors import DatasetError, one_line


def append(root: Path, sources: Sequence[Path]) -> tuple[int, int]:
    """Append the episodes of `sources` to the dataset in `root`, or make it from them where there is none.

    Columns, labels and groups come along, and so does all that DATASET/srpo holds of `root`; of the sources' sidecars
    the labels alone. Needs as much free disk as the whole takes.

    Returns:
        episodes added, episodes in all.

    Raises:
        DatasetError: no source; one that is no dataset or has other columns, rate or robot than `root`; an episode that
            is there already.
    """
    if not sources:
        raise DatasetError("nothing to append; give the folders of runs or datasets")
    buffers = [open_buffer(path) for path in ([root] if root.exists() else []) + list(sources)]
    _check_fit(buffers)
    _check_new(buffers)
    part, before = root.with_name(f".{root.name}.appending"), root.with_name(f".{root.name}.before")
    if before.exists():
        raise DatasetError(
            f"{before} is {root} as it was before an append that was cut off; move it back, or remove it"
        )
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _aggregate(buffers, part)
        if (root / SIDECAR).is_dir():
            shutil.copytree(root / SIDECAR, part / SIDECAR, copy_function=_link)
        merged = open_buffer(part)
        write_labels(merged, _labels(buffers))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if root.exists():
        root.rename(before)
    part.rename(root)
    shutil.rmtree(before, ignore_errors=True)
    total = len(merged.episodes)
    return total - (len(buffers[0].episodes) if len(buffers) > len(sources) else 0), total


def _link(source: str, target: str) -> None:
    """Sidecar files are replaced whole and never written to, so two folders may share one; a copy where they cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_fit(buffers: Sequence[Buffer]) -> None:
    first = buffers[0]
    for other in buffers[1:]:
        if (other.fps, other.meta.robot_type) != (first.fps, first.meta.robot_type):
            raise DatasetError(
                f"{other.root} is of {other.meta.robot_type} at {other.fps:g} fps, {first.root} of "
                f"{first.meta.robot_type} at {first.fps:g}; append what was recorded alike"
            )
        theirs, ours = _columns(other), _columns(first)
        odd = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        if odd:
            raise DatasetError(
                f"{other.root} and {first.root} differ in the column {odd[0]!r}; append what has the same"
            )


def _columns(buffer: Buffer) -> dict[str, tuple[object, ...]]:
    return {
        name: (feature["dtype"], tuple(feature["shape"]), str(feature["names"]))
        for name, feature in buffer.meta.features.items()
    }


def _check_new(buffers: Sequence[Buffer]) -> None:
    """The same recording twice would count twice, and be its own reference. Only equal lengths are looked at."""
    seen: dict[tuple[str, int], dict[str, str]] = {}
    lengths = [{(e.task, e.length) for e in buffer.episodes} for buffer in buffers]
    for place, buffer in enumerate(buffers):
        shared = set().union(*(own for at, own in enumerate(lengths) if at != place))
        for episode in buffer.episodes:
            key = episode.task, episode.length
            if key not in shared or not buffer.cameras:
                continue
            identity = buffer.video_identity(episode, buffer.cameras[0])
            own = f"{buffer.root}, episode {episode.index}"
            known = seen.setdefault(key, {})
            if identity in known and not known[identity].startswith(f"{buffer.root}, "):
                raise DatasetError(f"{own} is the same recording as {known[identity]}; append it once")
            known.setdefault(identity, own)


def _aggregate(buffers: Sequence[Buffer], target: Path) -> None:
    quiet_lerobot()
    from lerobot.datasets.aggregate import aggregate_datasets

    logging.getLogger("lerobot.datasets.aggregate").setLevel(logging.ERROR)
    names = [f"local/{place}" for place in range(len(buffers))]
    try:
        with redirect_stderr(StringIO()):  # its progress bars
            aggregate_datasets(
                names,
                f"local/{target.name}",
                roots=[buffer.root for buffer in buffers],
                aggr_root=target,
                concatenate_videos=False,  # a file is copied as it is: its packets, and so its identity, stay
            )
    except (ValueError, KeyError) as error:
        raise DatasetError(f"lerobot cannot put these datasets together: {one_line(error)[:200]}") from None
    _number_tables(target)


def _number_tables(target: Path) -> None:
    """Let every row of meta/episodes say which file it is in.

    lerobot packs the sources' tables into one and leaves their old numbers in the rows; the next aggregation would look
    for files of those numbers.
    """
    for path in sorted((target / "meta" / "episodes").rglob("*.parquet")):
        table = pq.read_table(path)
        for kind, text in (("chunk", path.parent.name), ("file", path.stem)):
            name = f"meta/episodes/{kind}_index"
            place = table.column_names.index(name)
            number = pa.array([int(text.rpartition("-")[2])] * len(table), table.schema.field(name).type)
            table = table.set_column(place, table.schema.field(name), number)
        pq.write_table(table, path)


def _labels(buffers: Sequence[Buffer]) -> dict[int, Label]:
    """Labels and groups under the new episode numbers; a group is one take of its own dataset only."""
    labels, first = {}, 0
    for place, buffer in enumerate(buffers):
        for episode in buffer.episodes:
            index = first + episode.index
            own = f"episode {episode.index}"
            group = f"episode {index}" if episode.group == own else f"{episode.group}{_mark(place)}"
            labels[index] = Label(episode.success, group)
        first += len(buffer.episodes)
    return labels


def _mark(place: int) -> str:
    return f" (appended {place})" if place else ""
