"""Reads and writes success labels of episodes.

A label comes from DATASET/srpo/labels.parquet, else from `success` in the episodes' metadata, else from any
`next.success` of the episode's frames. Otherwise the episode is unlabelled, which never counts as a failure.
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
    """One episode's label.

    Attributes:
        success: True, False, or None if unlabelled.
        group: name shared by the episodes of one take.
    """

    success: bool | None
    group: str


def read_labels(buffer: Buffer) -> dict[int, Label]:
    """Returns the label of every episode, by episode_index."""
    recorded = _recorded(buffer)
    stored = _stored(buffer)
    labels = {}
    for episode in buffer.episodes:
        label = stored.get(episode.index, Label(None, ""))
        success = label.success if label.success is not None else recorded[episode.index]
        labels[episode.index] = Label(success, label.group or f"episode {episode.index}")
    return labels


def _stored(buffer: Buffer) -> dict[int, Label]:
    """Returns the labels of the sidecar table, {} if there is no table."""
    path = buffer.sidecar / TABLE
    if not path.is_file():
        return {}
    table = read_table(path, refresh=f"srpo-robot label {buffer.root}")
    rows = zip(table["episode_index"], table["success"], table["group"], strict=True)
    return {int(index): Label(None if success < 0 else bool(success), str(group)) for index, success, group in rows}


def _recorded(buffer: Buffer) -> dict[int, bool | None]:
    """Returns the labels in the recording itself."""
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
    """Merges `labels` (of any subset of the episodes) into DATASET/srpo/labels.parquet."""
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
    """Raises UnlabelledError if an episode has no label. The message lists the episodes and the ways to label them."""
    missing = [episode.index for episode in buffer.episodes if episode.success is None]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UnlabelledError(
            f"{len(missing)} of {len(buffer.episodes)} episodes are unlabelled (episodes {shown}); label them with "
            f"'srpo-robot label {buffer.root}' (keys), '--csv FILE' or '--all-success'"
        )


def parse_csv(path: Path, episodes: int) -> dict[int, Label]:
    """Reads a CSV file with the header "episode_index,success[,group]".

    `success` is 1 or 0, true or false, success or failure, or empty.

    Raises:
        DatasetError: the file does not exist, or a column or value is invalid. The message names the line.
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
