"""advantage.parquet: from a scored buffer and a policy's recipe to the weights that train it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from srpo_robot.awr.advantage import Advantages, advantages
from srpo_robot.awr.weight_grid import LABELS, frames_of
from srpo_robot.awr.weights import (
    Weights,
    action_weights,
    awr_weights,
    rabc_weights,
    success_weights,
    uniform_weights,
)
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.tables import Table, write_table
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.recipes import PolicyRecipe, digest

TABLE = "advantage.parquet"
Scheme = Literal["awr", "uniform", "success", "rabc"]


@dataclass(frozen=True)
class Weighting:
    """How progress becomes weights; see PolicyRecipe's keys of the same names."""

    horizon: int = 10  # frames; the executed part of a chunk
    shift: int = 1
    tail: Literal["divide", "raw", "drop"] = "divide"
    beta: float = 1.0
    w_max: float = 20.0
    kappa: float = 0.0
    baseline: Literal["mean", "value"] = "mean"
    step_horizon: int = 5  # frames; an action's own gain in timestep weights. 1: its increment alone, mostly noise

    @classmethod
    def of(cls, recipe: PolicyRecipe, executed: int) -> Weighting:
        """What `recipe` says; its horizon 0 is `executed`, the actions of a chunk that are carried out."""
        horizon = recipe.horizon or executed
        return cls(horizon, recipe.shift, recipe.tail, recipe.beta, recipe.w_max, recipe.kappa, recipe.baseline)


@dataclass(frozen=True, eq=False)
class Weighted:
    """A buffer's advantages and weights, and the table that holds them.

    Attributes:
        timestep: (N, chunk) float32, a weight for every action of a chunk in place of the frame's (see
            `weights.action_weights`); None unless asked for.
    """

    advantages: Advantages
    weights: Weights
    table: Table
    timestep: np.ndarray | None = None


def weigh_buffer(buffer: Buffer, progress: Table, weighting: Weighting, chunk: int | None = None) -> Weighted:
    """Compute advantages and AWR weights from the buffer's progress table and write DATASET/srpo/advantage.parquet.

    Args:
        chunk: the policy's chunk_size, for weights of every action of a chunk too; None: frames only.

    Raises:
        StaleTable: the table is of another dataset.
        UsageError, TrainingError: see `advantage.chunk_gain` and `weights.awr_weights`.
    """
    found, total = total_advantage(buffer, progress, weighting)
    weights = awr_weights(total, weighting.beta, weighting.w_max)
    timestep = None if chunk is None else buffer_action_weights(buffer, progress, weighting, chunk)
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
    return Weighted(found, weights, table, timestep)


def total_advantage(buffer: Buffer, progress: Table, weighting: Weighting) -> tuple[Advantages, np.ndarray]:
    """The buffer's advantages, and A = A_chunk + kappa * A_trajectory (N,), which trains.

    Raises:
        StaleTable: the table is of another dataset.
        UsageError: see `advantage.chunk_gain`.
    """
    values = episode_values(buffer, progress)
    tasks = [episode.task for episode in buffer.episodes]
    found = advantages(values, weighting.horizon, weighting.shift, weighting.tail, weighting.baseline, tasks)
    return found, found.chunk + _trajectory_part(progress, weighting)


def buffer_action_weights(buffer: Buffer, progress: Table, weighting: Weighting, chunk: int) -> np.ndarray:
    """Weights (N, chunk) of every action of every chunk, by the gain over `step_horizon` frames from that action.

    Raises:
        StaleTable, UsageError, TrainingError: see `total_advantage` and `weights.action_weights`.
    """
    values, tasks = episode_values(buffer, progress), [episode.task for episode in buffer.episodes]
    own = advantages(values, weighting.step_horizon, 1, weighting.tail, weighting.baseline, tasks).chunk
    lengths = [episode.length for episode in buffer.episodes]
    total = own + _trajectory_part(progress, weighting)
    return action_weights(total, lengths, chunk, weighting.beta, weighting.w_max)


def rabc_buffer_weights(buffer: Buffer, progress: Table, chunk: int) -> Weights:
    """RA-BC weights (see `weights.rabc_weights`) of the buffer's step value; `chunk`: the policy's chunk_size.

    Raises:
        StaleTable, UsageError, TrainingError: see `episode_values` and `weights.rabc_weights`.
    """
    return rabc_weights(episode_values(buffer, progress), chunk)


def episode_values(buffer: Buffer, progress: Table) -> list[np.ndarray]:
    """The step value (T,) of every episode. Raises StaleTable where the table is of another dataset."""
    if progress.metadata.get("dataset") != buffer.fingerprint:
        raise StaleTable(f"the progress table is not of {buffer.root}; run: srpo-robot score-dataset {buffer.root}")
    return [progress["value"][e.first_frame : e.first_frame + e.length] for e in buffer.episodes]


def check_horizon(buffer: Buffer, horizon: int) -> None:
    """Raise UsageError where no episode is longer than `horizon` frames: then every chunk runs past its end."""
    longest = max(episode.length for episode in buffer.episodes)
    if horizon >= longest:
        raise UsageError(
            f"horizon {horizon} is longer than every episode of {buffer.root.name} (the longest has {longest} frames); "
            f"set it to at most {max(longest - 1, 1)}: --horizon, or the recipe's horizon or n_action_steps"
        )


def _trajectory_part(progress: Table, weighting: Weighting) -> np.ndarray | float:
    return weighting.kappa * progress["trajectory_advantage"] if weighting.kappa else 0.0


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
    label = frames_of(buffer.episodes).label
    return {name: float(weights.values[label == name].mean()) for name in LABELS.values() if (label == name).any()}
