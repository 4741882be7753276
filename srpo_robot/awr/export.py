"""Writes scores for other trainers as parquet files by global frame index. The dataset itself is never changed.

`rabc`: progress in the schema of lerobot's SARM tools, for stock `lerobot-train --sample_weighting.type=rabc`.
`weights`: AWR's weights, for the plugin `lerobot_policy_srpo_awr` and `--sample_weighting.type=srpo_awr`.
`recap`: a binary advantage, as pi*0.6 is conditioned (RECAP, arXiv 2511.14759).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srpo_robot.awr.weighting import BufferWeights, step_values
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import Table, write_table
from srpo_robot.errors import TrainingError, UsageError
from srpo_robot.records import Episode

Kind = Literal["rabc", "weights", "recap"]
RABC_FILE = "sarm_progress.parquet"  # lerobot's default for sample_weighting.progress_path
SIDECAR_FILES = {"weights": "awr_weights.parquet", "recap": "recap.parquet"}
# pi*0.6 reads this text between its instruction and its actions (section V-B).
ADVANTAGE_TEXT = {True: "Advantage: positive", False: "Advantage: negative"}
_RECORDED = ("data", "meta", "videos", "images")


def default_path(buffer: Buffer, kind: Kind) -> Path:
    """Returns the default path of an export."""
    return buffer.root / RABC_FILE if kind == "rabc" else buffer.sidecar / SIDECAR_FILES[kind]


def export_rabc(buffer: Buffer, progress: Table, path: Path) -> Table:
    """Writes the step value as SARM progress: index, episode_index and frame_index int64, progress_sparse float32.

    The step value is `progress` itself unless the score was made with another --value. Undefined values are NaN:
    lerobot gives such frames its `fallback_weight`, 1 by default.

    Raises:
        StaleTable: the progress table belongs to another dataset.
        TrainingError: the value is undefined everywhere.
        UsageError: see `check_path`.
    """
    value = np.concatenate(step_values(buffer, progress))
    if not np.isfinite(value).any():
        raise TrainingError("no frame has a step value to export; look at the scores: srpo-robot score-dataset")
    places = {name: progress[name].astype(np.int64) for name in ("index", "episode_index", "frame_index")}
    columns = {**places, "progress_sparse": value.astype(np.float32)}
    encoder = str(progress.metadata["encoder"]["name"])
    return _write(buffer, progress, path, "rabc", columns, {}, {"reward_model_path": encoder})


def export_weights(buffer: Buffer, progress: Table, weights: BufferWeights, path: Path) -> Table:
    """Writes AWR's weights: index int64, weight float32, mean 1 over the dataset, 0 if the advantage is undefined.

    Raises:
        UsageError: see `check_path`.
    """
    columns = {"index": progress["index"].astype(np.int64), "weight": weights.frames.values.astype(np.float32)}
    return _write(buffer, progress, path, "weights", columns, {"weighting": asdict(weights.weighting)})


def export_recap(buffer: Buffer, progress: Table, weights: BufferWeights, positive: float, path: Path) -> Table:
    """Writes RECAP's improvement indicator: index int64, advantage bool, advantage_text.

    A frame is positive if A = A_chunk + kappa * A_trajectory is above its task's threshold (see
    `recap_thresholds`). If A is undefined, advantage is null and the text is empty: such a frame trains without the
    indicator, as pi*0.6 does for a random share of all frames.

    Raises:
        UsageError, TrainingError: see `recap_thresholds` and `check_path`.
    """
    assert weights.advantages is not None
    advantage = weights.advantages.total
    task = np.repeat([e.task for e in buffer.episodes], [e.length for e in buffer.episodes])
    thresholds = recap_thresholds(advantage, task, positive)
    labels = recap_labels(advantage, task, thresholds)
    text = np.array(["" if label is None else ADVANTAGE_TEXT[label] for label in labels], dtype=object)
    columns = {"index": progress["index"].astype(np.int64), "advantage": labels, "advantage_text": text}
    source = {"weighting": asdict(weights.weighting), "positive": positive, "thresholds": thresholds}
    return _write(buffer, progress, path, "recap", columns, source)


def check_positive(positive: float) -> None:
    """Raises UsageError if the share of positive frames is not between 0 and 1."""
    if not 0 < positive < 1:
        raise UsageError(f"the positive share is {positive:g}; give a number between 0 and 1, pi*0.6 has 0.3")


def recap_thresholds(advantage: np.ndarray, task: np.ndarray, positive: float) -> dict[str, float]:
    """Returns the threshold of each task: the quantile 1 - `positive` of its advantages. Frames above it are positive.

    pi*0.6 sets one threshold per task, so that about 30 % of the task's frames are positive in pre-training, and more
    while fine-tuning. Ties at the threshold are negative, so the share may be smaller. A task without any defined
    advantage is left out. (pi*0.6 calls human corrections and demonstrations positive whatever their advantage. Here
    the advantage always decides.)

    Args:
        advantage: (N,), NaN if undefined.
        task: (N,) task of each frame.
        positive: share of positive frames, between 0 and 1.

    Raises:
        UsageError: `positive` is not between 0 and 1.
        TrainingError: no advantage is defined.
    """
    check_positive(positive)
    defined = np.isfinite(advantage)
    if not defined.any():
        raise TrainingError("no finite advantage to train on; look at the scores: srpo-robot score-dataset")
    names = dict.fromkeys(task[defined])
    return {str(name): float(np.quantile(advantage[defined & (task == name)], 1 - positive)) for name in names}


def recap_labels(advantage: np.ndarray, task: np.ndarray, thresholds: dict[str, float]) -> np.ndarray:
    """Returns (N,) labels: True or False, None if the advantage is undefined."""
    above = advantage > np.array([thresholds.get(str(name), np.nan) for name in task])
    return np.array([bool(a) if f else None for a, f in zip(above, np.isfinite(advantage), strict=True)], dtype=object)


def check_path(buffer: Buffer, path: Path, kind: Kind) -> None:
    """Raises UsageError if `path` is no place for an export: among the recorded files, or another program's file."""
    check_suffix(path)
    root, place = buffer.root.resolve(), path.resolve()
    if any(place.is_relative_to(root / folder) for folder in _RECORDED):
        raise UsageError(
            f"{path} is among the dataset's recorded files, where every reader would take it for frames; "
            f"put it beside them, for example {default_path(buffer, kind)}"
        )
    if path.exists() and _kind(path) != f"export {kind}":
        raise UsageError(
            f"{path} exists and is no {kind} export of srpo-robot; move it, or write elsewhere: --output FILE"
        )


def check_suffix(path: Path) -> None:
    """Raises UsageError if `path` does not end in .parquet."""
    if path.suffix != ".parquet":
        raise UsageError(f"{path} does not end in .parquet; the export is a parquet file")


def lengths_digest(episodes: Sequence[Episode]) -> str:
    """Returns a hash of the episodes' lengths, which any reader of LeRobot datasets can compute."""
    return hashlib.sha256(json.dumps([episode.length for episode in episodes]).encode()).hexdigest()[:16]


def _write(
    buffer: Buffer,
    progress: Table,
    path: Path,
    kind: Kind,
    columns: dict[str, np.ndarray],
    source: dict[str, Any],
    foreign: dict[str, str] | None = None,
) -> Table:
    check_path(buffer, path, kind)
    metadata = {
        "kind": f"export {kind}",
        "dataset": buffer.fingerprint,
        "lengths": lengths_digest(buffer.episodes),
        "frames": buffer.total_frames,
        "parent": progress.metadata["content"],
        **source,
    }
    return write_table(path, columns, metadata, foreign)


def _kind(path: Path) -> str | None:
    """The kind that a file of this package records in its metadata; None for any other file."""
    try:
        return json.loads((pq.read_schema(path).metadata or {})[b"srpo"]).get("kind")
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
