"""From a scored buffer to the weights that train. Pure: reads the buffer's episodes and the progress table it is given.

    A = A_chunk + kappa * A_trajectory        weight = min(exp(A / beta), w_max), scaled to mean 1

`awr.advantage` computes A_chunk, `awr.weights` the exponential, `awr.weights_table` writes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

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
from srpo_robot.buffer.tables import Table
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.recipes import PolicyRecipe, Weighting

Scheme = Literal["awr", "uniform", "success", "rabc"]
DEFAULT_HORIZON = 10  # frames; the horizon if neither the weighting nor a policy says one


class Chunk(NamedTuple):
    """Sizes of a policy's action chunk, in actions."""

    size: int  # lerobot's chunk_size: actions that are predicted
    executed: int  # lerobot's n_action_steps: actions that are carried out before the next prediction


@dataclass(frozen=True, eq=False)
class BufferAdvantages(Advantages):
    """Advantages of a buffer's frames, in dataset order.

    Attributes:
        total: (N,) A = A_chunk + kappa * A_trajectory. This one trains.
    """

    total: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class BufferWeights:
    """Weights of a buffer, and how they came about.

    Attributes:
        scheme: how frames are weighted.
        weighting: all keys of the weighting, with the horizon filled in. Only the scheme "awr" uses them.
        frames: weights of the frames.
        advantages: what the weights were computed from; None for schemes without advantages.
        actions: (N, chunk size) float32, one weight per action of a chunk in place of the frame's weight (see
            `weights.action_weights`); None unless the recipe asks for them.
    """

    scheme: Scheme
    weighting: Weighting
    frames: Weights
    advantages: BufferAdvantages | None = None
    actions: np.ndarray | None = None


def weights_of(
    buffer: Buffer,
    progress: Table | None,
    recipe: Weighting | PolicyRecipe,
    scheme: Scheme = "awr",
    chunk: Chunk | None = None,
) -> BufferWeights:
    """Computes the weights of a buffer's frames. Reads and writes no file.

    Args:
        buffer: the dataset, with its labels.
        progress: its progress table; None is enough for "uniform" and "success".
        recipe: how progress becomes weights. A PolicyRecipe may ask for `action_weights` too.
        scheme: "awr": by advantage. "uniform": all frames alike (SFT). "success": successes only (filtered behaviour
            cloning). "rabc": as lerobot's RA-BC.
        chunk: the policy's chunk. "rabc" and `action_weights` need it, and a horizon of 0 is its `executed`
            (without a chunk: DEFAULT_HORIZON).

    Raises:
        StaleTable: the progress table belongs to another dataset.
        UnlabelledError: "success" without labels.
        UsageError, TrainingError: see `advantage.chunk_gain` and the functions of `awr.weights`. UsageError also if
            the recipe has `action_weights` and the scheme is not "awr".
        ValueError: a progress table or a chunk is needed and missing.
    """
    weighting, per_action = resolve(recipe, chunk), isinstance(recipe, PolicyRecipe) and recipe.action_weights
    check_scheme(recipe, scheme)
    if scheme == "uniform":
        return BufferWeights(scheme=scheme, weighting=weighting, frames=uniform_weights(buffer.total_frames))
    if scheme == "success":
        return BufferWeights(scheme=scheme, weighting=weighting, frames=_success_weights(buffer))
    if progress is None or (chunk is None and (scheme == "rabc" or per_action)):
        raise ValueError(f"weights {scheme!r} need a progress table, and rabc and action_weights a chunk")
    if scheme == "rabc":
        assert chunk is not None
        frames = rabc_weights(step_values(buffer, progress), chunk.size)
        return BufferWeights(scheme=scheme, weighting=weighting, frames=frames)
    computed = buffer_advantages(buffer, progress, weighting)
    return BufferWeights(
        scheme=scheme,
        weighting=weighting,
        frames=awr_weights(computed.total, weighting.beta, weighting.w_max),
        advantages=computed,
        actions=_buffer_action_weights(buffer, progress, weighting, chunk.size) if per_action and chunk else None,
    )


def resolve(recipe: Weighting, chunk: Chunk | None = None) -> Weighting:
    """Returns the weighting keys of `recipe` alone, with a horizon of 0 filled in."""
    keys: dict[str, Any] = {field.name: getattr(recipe, field.name) for field in fields(Weighting)}
    keys["horizon"] = recipe.horizon or (0 if chunk is None else chunk.executed) or DEFAULT_HORIZON
    return Weighting(**keys)


def buffer_advantages(buffer: Buffer, progress: Table, weighting: Weighting) -> BufferAdvantages:
    """Computes the advantages of every frame; `weighting` is a resolved one.

    Raises:
        StaleTable: the progress table belongs to another dataset.
        UsageError: see `advantage.chunk_gain`.
    """
    computed = advantages(
        step_values(buffer, progress),
        weighting.horizon,
        weighting.shift,
        weighting.tail,
        weighting.baseline,
        [episode.task for episode in buffer.episodes],
    )
    total = computed.chunk + _trajectory_part(progress, weighting)
    return BufferAdvantages(computed.increment, computed.step, computed.chunk, total)


def step_values(buffer: Buffer, progress: Table) -> list[np.ndarray]:
    """Returns the step value (T,) of every episode. Raises StaleTable if the table belongs to another dataset."""
    if progress.metadata.get("dataset") != buffer.fingerprint:
        raise StaleTable(f"the progress table is not of {buffer.root}; run: srpo-robot score-dataset {buffer.root}")
    return [progress["value"][e.first_frame : e.first_frame + e.length] for e in buffer.episodes]


def check_scheme(recipe: Weighting | PolicyRecipe, scheme: Scheme) -> None:
    """Raises UsageError if the recipe asks for a weight per action and the scheme has none."""
    if isinstance(recipe, PolicyRecipe) and recipe.action_weights and scheme != "awr":
        raise UsageError(f"recipe {recipe.name}: action_weights are AWR's; set it to false, or train --weights awr")


def check_horizon(buffer: Buffer, horizon: int) -> None:
    """Raises UsageError if no episode is longer than `horizon` frames: then every chunk runs past its end."""
    longest = max(episode.length for episode in buffer.episodes)
    if horizon >= longest:
        raise UsageError(
            f"horizon {horizon} is longer than every episode of {buffer.root.name} (the longest has {longest} frames); "
            f"set it to at most {max(longest - 1, 1)}: --horizon, or the recipe's horizon or n_action_steps"
        )


def mean_weight_by_label(buffer: Buffer, weights: np.ndarray) -> dict[str, float]:
    """Returns the mean of `weights` (N,) over frames of successes, failures and unlabelled episodes, by that name.

    A label that no frame has is left out.
    """
    label = frames_of(buffer.episodes).label
    return {name: float(weights[label == name].mean()) for name in LABELS.values() if (label == name).any()}


def _success_weights(buffer: Buffer) -> Weights:
    require_labels(buffer)
    return success_weights(np.repeat([bool(e.success) for e in buffer.episodes], [e.length for e in buffer.episodes]))


def _buffer_action_weights(buffer: Buffer, progress: Table, weighting: Weighting, size: int) -> np.ndarray:
    """(N, size) weights of every action of every chunk, by the gain over `step_horizon` frames from that action."""
    values, tasks = step_values(buffer, progress), [episode.task for episode in buffer.episodes]
    gain = advantages(values, weighting.step_horizon, 1, weighting.tail, weighting.baseline, tasks).chunk
    lengths = [episode.length for episode in buffer.episodes]
    total = gain + _trajectory_part(progress, weighting)
    return action_weights(total, lengths, size, weighting.beta, weighting.w_max)


def _trajectory_part(progress: Table, weighting: Weighting) -> np.ndarray | float:
    return weighting.kappa * progress["trajectory_advantage"] if weighting.kappa else 0.0
