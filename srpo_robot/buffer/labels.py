"""Success labels of episodes: where they are read from, in which order, and how they are set.

Order: DATASET/srpo/labels.parquet, then `success` in the episodes' metadata, then any `next.success` of the episode's
frames, else unlabelled. Unlabelled is never read as failure.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import read_table, write_table
from srpo_robot.errors import DatasetError, UnlabelledError

TABLE = "labels.parquet"
_SUCCESS = {"1": True, "true": True, "success": True, "s": True, "yes": True}
_FAILURE = {"0": False, "false": False, "failure": False, "f": False, "no": False}


@dataclass(frozen=True)
class Label:
    """success: True, False or None (unlabelled); group: episodes of one take share it."""

    success: bool | None
    group: str


def read_labels(buffer: Buffer) -> dict[int, Label]:
    """The label of every episode of `buffer`, by episode_index."""
    recorded = _recorded(buffer)
    stored = _stored(buffer)
    labels = {}
    for episode in buffer.episodes:
        own = stored.get(episode.index, Label(None, ""))
        success = own.success if own.success is not None else recorded[episode.index]
        labels[episode.index] = Label(success, own.group or f"episode {episode.index}")
    return labels


def _stored(buffer: Buffer) -> dict[int, Label]:
    """Labels of the sidecar table; {} where there is none."""
    path = buffer.sidecar / TABLE
    if not path.is_file():
        return {}
    table = read_table(path, refresh=f"srpo-robot label {buffer.root}")
    rows = zip(table["episode_index"], table["success"], table["group"], strict=True)
    return {int(index): Label(None if success < 0 else bool(success), str(group)) for index, success, group in rows}


def _recorded(buffer: Buffer) -> dict[int, bool | None]:
    """Labels that the recording itself carries."""
    success: dict[int, bool | None] = {episode.index: None for episode in buffer.episodes}
    if "next.success" in buffer.meta.features:
        flags = buffer.column("next.success").reshape(-1).astype(bool)
        for episode in buffer.episodes:
            success[episode.index] = bool(flags[episode.first_frame : episode.first_frame + episode.length].any())
    if "success" in buffer.meta.episodes.column_names:
        for row in buffer.meta.episodes:
            if row["success"] is not None:
                success[int(row["episode_index"])] = bool(row["success"])
    return success


def write_labels(buffer: Buffer, labels: dict[int, Label]) -> None:
    """Store `labels` (any subset of the episodes) in DATASET/srpo/labels.parquet, over those already stored there."""
    merged = _stored(buffer)
    for index, label in labels.items():
        old = merged.get(index, Label(None, ""))
        merged[index] = Label(label.success if label.success is not None else old.success, label.group or old.group)
    order = sorted(merged)
    write_table(
        buffer.sidecar / TABLE,
        {
            "episode_index": np.array(order, dtype=np.int64),
            "success": np.array([-1 if merged[i].success is None else int(bool(merged[i].success)) for i in order]),
            "group": np.array([merged[i].group for i in order], dtype=object),
        },
        {"kind": "labels"},
    )


def require_labels(buffer: Buffer) -> None:
    """Raise UnlabelledError where an episode has no label; it lists them and names the ways to label."""
    missing = [episode.index for episode in buffer.episodes if episode.success is None]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UnlabelledError(
            f"{len(missing)} of {len(buffer.episodes)} episodes are unlabelled (episodes {shown}); label them with "
            f"'srpo-robot label {buffer.root}' (keys), '--csv FILE' or '--all-success'"
        )


def parse_csv(path: Path, episodes: int) -> dict[int, Label]:
    """Read "episode_index,success[,group]" with a header; success is one of 1/0, true/false, success/failure, or empty.

    Raises:
        DatasetError: no such file, a column or value that is not understood; names the line.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from None
    if not rows or "episode_index" not in rows[0] or not {"success", "group"} & set(rows[0]):
        raise DatasetError(f"{path} needs a header 'episode_index,success' (and 'group' if takes share one)")
    labels = {}
    for line, row in enumerate(rows, start=2):
        index, text = (row["episode_index"] or "").strip(), (row.get("success") or "").strip().lower()
        if not index.isdigit() or int(index) >= episodes:
            raise DatasetError(f"{path}, line {line}: no episode {index!r}; there are 0 to {episodes - 1}")
        if text and text not in _SUCCESS | _FAILURE:
            raise DatasetError(f"{path}, line {line}: success is {text!r}; write true or false")
        labels[int(index)] = Label((_SUCCESS | _FAILURE).get(text), (row.get("group") or "").strip())
    return labels
