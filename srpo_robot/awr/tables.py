"""advantage.parquet: from a scored buffer and a policy's recipe to the weights that train it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from srpo_robot.awr.advantage import Advantages, advantages
from srpo_robot.awr.weights import Weights, awr_weights, success_weights, uniform_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.tables import Table, write_table
from srpo_robot.errors import StaleTable
from srpo_robot.recipes import digest

TABLE = "advantage.parquet"
Scheme = Literal["awr", "uniform", "success"]


@dataclass(frozen=True)
class Weighting:
    """How progress becomes weights; see PolicyRecipe's keys of the same names."""

    horizon: int = 10  # frames; the executed part of a chunk
    shift: int = 1
    tail: Literal["divide", "raw", "drop"] = "divide"
    beta: float = 1.0
    w_max: float = 20.0
    kappa: float = 0.0


@dataclass(frozen=True, eq=False)
class Weighted:
    """A buffer's advantages and weights, and the table that holds them."""

    advantages: Advantages
    weights: Weights
    table: Table


def weigh_buffer(buffer: Buffer, progress: Table, weighting: Weighting) -> Weighted:
    """Compute advantages and AWR weights from the buffer's progress table and write DATASET/srpo/advantage.parquet.

    Raises:
        StaleTable: the table is of another dataset.
        UsageError, TrainingError: see `advantage.chunk_gain` and `weights.awr_weights`.
    """
    if progress.metadata.get("dataset") != buffer.fingerprint:
        raise StaleTable(f"the progress table is not of {buffer.root}; run: srpo-robot score-dataset {buffer.root}")
    spans = [slice(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
    found = advantages([progress["value"][span] for span in spans], weighting.horizon, weighting.shift, weighting.tail)
    total = found.chunk
    if weighting.kappa:
        total = total + weighting.kappa * progress["trajectory_advantage"]
    weights = awr_weights(total, weighting.beta, weighting.w_max)
    table = write_table(
        buffer.sidecar / TABLE,
        {
            "index": progress["index"],
            "increment": found.increment,
            "advantage": found.step,
            "chunk_advantage": found.chunk,
            "weight": weights.values,
        },
        {
            "kind": "advantage",
            "dataset": buffer.fingerprint,
            "parent": progress.metadata["content"],
            "recipe": digest(weighting),
        },
    )
    return Weighted(found, weights, table)


def baseline_weights(buffer: Buffer, scheme: Literal["uniform", "success"]) -> Weights:
    """Weights that need no score: all frames alike (SFT), or successes only (filtered behaviour cloning).

    Raises:
        UnlabelledError, TrainingError: `success` without labels, or without a success.
    """
    if scheme == "uniform":
        return uniform_weights(buffer.total_frames)
    require_labels(buffer)
    return success_weights(np.repeat([bool(e.success) for e in buffer.episodes], [e.length for e in buffer.episodes]))


def mean_weight_by_label(buffer: Buffer, weights: Weights) -> dict[str, float]:
    """Mean weight of the frames of successes and of failures (and unlabelled), by name; absent kinds are left out."""
    names = {True: "success", False: "failure", None: "unlabelled"}
    kind = np.repeat([names[e.success] for e in buffer.episodes], [e.length for e in buffer.episodes])
    return {name: float(weights.values[kind == name].mean()) for name in names.values() if (kind == name).any()}
