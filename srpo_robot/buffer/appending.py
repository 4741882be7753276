"""Appends recorded trials to the buffer, so that the next round can score them and train on them.

lerobot's aggregation copies frames and video packets unchanged. Embeddings stay valid, because the store is keyed by
the packets' content. The new dataset is built beside the old one and replaces it in one step.
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
    """Appends the episodes of `sources` to the dataset in `root`, which is created if it does not exist.

    Columns, labels and groups are kept. The sidecar DATASET/srpo of `root` is kept whole. Of the sources' sidecars only
    the labels are kept. Needs as much free disk space as the whole result takes.

    Returns:
        number of added episodes, number of episodes in total.

    Raises:
        DatasetError: there is no source, a source is no dataset or differs from `root` in columns, rate or robot, or an
            episode is in `root` already.
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
    """Links a sidecar file, or copies it if the file system has no links.

    Two folders may share a sidecar file, because such files are replaced whole and never written in place.
    """
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
    """Raises DatasetError if two datasets hold the same recording, which would count twice and be its own reference.

    Only episodes of equal task and length are compared.
    """
    identities: dict[tuple[str, int], dict[str, str]] = {}
    lengths = [{(e.task, e.length) for e in buffer.episodes} for buffer in buffers]
    for place, buffer in enumerate(buffers):
        shared = set().union(*(others for at, others in enumerate(lengths) if at != place))
        for episode in buffer.episodes:
            key = episode.task, episode.length
            if key not in shared or not buffer.cameras:
                continue
            identity = buffer.video_identity(episode, buffer.cameras[0])
            name = f"{buffer.root}, episode {episode.index}"
            known = identities.setdefault(key, {})
            if identity in known and not known[identity].startswith(f"{buffer.root}, "):
                raise DatasetError(f"{name} is the same recording as {known[identity]}; append it once")
            known.setdefault(identity, name)


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
                concatenate_videos=False,  # files are copied unchanged, so packets and identities stay the same
            )
    except (ValueError, KeyError) as error:
        raise DatasetError(f"lerobot cannot put these datasets together: {one_line(error)[:200]}") from None
    _number_tables(target)


def _number_tables(target: Path) -> None:
    """Corrects the file numbers in the rows of meta/episodes.

    lerobot packs the sources' tables into one but keeps their old numbers in the rows. The next aggregation would look
    for files with those numbers.
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
    """Returns labels and groups by new episode number. A group never spans two datasets, so its name gets a mark."""
    labels, first = {}, 0
    for place, buffer in enumerate(buffers):
        for episode in buffer.episodes:
            index = first + episode.index
            default = f"episode {episode.index}"
            group = f"episode {index}" if episode.group == default else f"{episode.group}{_mark(place)}"
            labels[index] = Label(episode.success, group)
        first += len(buffer.episodes)
    return labels


def _mark(place: int) -> str:
    return f" (appended {place})" if place else ""
