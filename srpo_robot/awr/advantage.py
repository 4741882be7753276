"""Progress -> advantages (eq. 15 and the chunk form). numpy in, numpy out.

The paper weights frame t by the standardised increment D_t = R_t - R_{t-1}. A policy trains on the chunk
a_t..a_{t+H-1}, so the default here is the standardised gain over that chunk: aggregate first, then standardise.
`horizon=1, shift=0` is the paper to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.numerics import standardise

Tail = Literal["divide", "raw", "drop"]
Baseline = Literal["mean", "value"]
_NEIGHBOURS = 0.1  # share of a task's frames over which the expected gain at a value is averaged


@dataclass(frozen=True, eq=False)
class Advantages:
    """Advantages per frame, over all episodes in order. NaN if progress is undefined or the tail is dropped.

    Attributes:
        increment: (N,) D_t = R_t - R_{t-1} [progress], 0 at t = 0.
        step: (N,) A_t = (D_t - mu)/sigma, with mu and sigma over all trajectories.
        chunk: (N,) standardised gain over the horizon, A_chunk.
    """

    increment: np.ndarray
    step: np.ndarray
    chunk: np.ndarray


def increments(value: np.ndarray) -> np.ndarray:
    """Returns D_t = R_t - R_{t-1} of one episode, (T,), with D_0 = 0. All NaN if the value is undefined."""
    return np.diff(value, prepend=value[:1])


def chunk_gain(value: np.ndarray, horizon: int, shift: int = 1, tail: Tail = "divide") -> np.ndarray:
    """Returns the gain (T,) of one episode's value R (T,) over the chunk that starts at each frame.

    shift 1: G_t = R_{min(t+H, T-1)} - R_t, caused by the actions a_t..a_{t+H-1}. shift 0 starts and ends one frame
    earlier; with H = 1 it is D_t. The last frames have a shorter horizon. `divide` turns G into a gain per frame (0 at
    the last frame, which has no successor). `raw` leaves G as it is. `drop` sets frames without a full horizon to NaN.

    Raises:
        UsageError: horizon or shift is out of range.
    """
    if horizon < 1 or shift not in (0, 1):
        raise UsageError(f"horizon {horizon} must be at least 1 and shift {shift} 0 or 1")
    length = len(value)
    start = np.maximum(np.arange(length) + shift - 1, 0)
    end = np.minimum(np.arange(length) + shift - 1 + horizon, length - 1)
    end = np.maximum(end, start)
    gain = value[end] - value[start]
    frames = end - start  # 0 to horizon
    if tail == "divide":
        return gain / np.maximum(frames, 1)
    if tail == "drop":
        full = np.arange(length) + shift - 1 + horizon <= length - 1
        return np.where(full, gain, np.nan)
    return gain


def expected_gain(gain: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns E[G | R] (N,), the expected gain from a frame's value; NaN if its gain or value is NaN.

    It is the mean gain over the tenth of the frames whose values are nearest in rank. Frames with equal values have
    equal expectations.

    Args:
        gain: (N,) gain over the chunk from each frame.
        value: (N,) R at the start of the chunk.
    """
    known = np.isfinite(gain) & np.isfinite(value)
    expected = np.full(len(gain), np.nan)
    order = np.argsort(value[known], kind="stable")
    ranks, half = np.arange(len(order)), max(1, round(_NEIGHBOURS / 2 * len(order)))
    low, high = np.maximum(ranks - half, 0), np.minimum(ranks + half + 1, len(order))
    sums = np.concatenate([[0.0], np.cumsum(gain[known][order])])
    near = (sums[high] - sums[low]) / (high - low)
    _, level, counts = np.unique(value[known], return_inverse=True, return_counts=True)
    expected[known] = (np.bincount(level[order], near, len(counts)) / counts)[level]
    return expected


def advantages(
    values: Sequence[np.ndarray],
    horizon: int,
    shift: int = 1,
    tail: Tail = "divide",
    baseline: Baseline = "mean",
    tasks: Sequence[str] | None = None,
) -> Advantages:
    """Computes the advantages of a dataset from its episodes' values, standardised over all trajectories together.

    Args:
        values: step value of each episode, (T_i,).
        horizon: frames of a chunk.
        shift: see `chunk_gain`.
        tail: see `chunk_gain`.
        baseline: "mean" compares a gain with the mean over all frames (the paper's standardisation). A chunk in a slow
            phase of the task then has a low advantage however well it is done. "value" compares it with the expected
            gain from the value at its start (`expected_gain`, within a task), as in A = Q - V.
        tasks: task of each episode; None: all have the same task.

    Raises:
        UsageError: see `chunk_gain`.
    """
    increment = np.concatenate([increments(value) for value in values])
    gains = [chunk_gain(value, horizon, shift, tail) for value in values]
    gain = np.concatenate(gains)
    if baseline == "value":
        start = np.concatenate([value[np.maximum(np.arange(len(value)) + shift - 1, 0)] for value in values])
        task = np.repeat(tasks if tasks is not None else [""] * len(values), [len(value) for value in values])
        for name in np.unique(task):
            rows = task == name
            gain[rows] -= expected_gain(gain[rows], start[rows])
    return Advantages(increment, standardise(increment), standardise(gain))
