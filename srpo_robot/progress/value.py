"""Step values R of a task's windows: progress is one, here are the others. numpy in, numpy out.

Why others: distance to an end state is a good terminal test and a wrong step value, even with a perfect encoder: after
a drop the empty arm goes on home, which looks like progress. `knn-time` and `knn-return` ask when, not how far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.numerics import standardise_by
from srpo_robot.renames import STEP_VALUES, current

VALUES = ("progress", "reward", "knn-time", "knn-return")
ALPHA = 0.8  # the paper's ceiling on a failure's reward
NO_FAILURE = "its task has no failure, whose windows eq. 5 is standardised with"
NO_NEIGHBOUR = "no success of its task outside its own group: nothing to compare its windows with"
CHUNK_NUMBERS = 4_000_000  # distances held at a time: 32 MB


def parse_value(name: str) -> str:
    """Returns `name`, or its new name if it is an old one.

    Raises:
        UsageError: no such step value; the message lists those that exist.
    """
    name = current(name, STEP_VALUES)
    if name not in VALUES:
        raise UsageError(f"no value {name!r}; there are: {', '.join(VALUES)}")
    return name


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1/(1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def window_rewards(distance: np.ndarray, pool: np.ndarray, alpha: float = ALPHA, literal: bool = False) -> np.ndarray:
    """Eq. 5 on windows: alpha * sigmoid(-(d - mean)/std), (n,) in (0, alpha); NaN where `pool` holds nothing.

    A window of a success gets the same formula (the paper is silent): eq. 5's 1 is for a whole successful trajectory,
    and a jump to 1 on the last window would put a success's entire advantage on its last frame. So a success ends
    near alpha, at alpha * sigmoid(mean/std).

    Args:
        distance: (n,) of windows, or of frames between them.
        pool: distances of all measured windows of all failures of the task: mean and std are theirs.
        alpha: ceiling.
        literal: the plus sign that the paper prints.
    """
    z = standardise_by(distance, pool)
    return alpha * sigmoid(z if literal else -z)


def normalised_time(ends: np.ndarray, length: int) -> np.ndarray:
    """When each window ends, `ends` (n,) over T-1: (n,) in [0, 1]; the only frame of an episode is its end, 1."""
    return ends / (length - 1) if length > 1 else np.ones(len(ends))


def knn_time(
    embeddings: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    success: Sequence[bool],
    groups: Sequence[str],
    neighbours: int = 10,
) -> list[np.ndarray]:
    """Mean normalised time of the nearest success windows of the task, own group left out (ours). Cost: see `averages`.

    Args:
        embeddings: per episode of one task, (n_i, D).
        times: per episode, normalised time of its windows, (n_i,).
        success: per episode.
        groups: per episode; recordings cut from one take share one.
        neighbours: how many nearest windows are averaged.

    Returns:
        Per episode (n_i,) in [0, 1]; NaN where no success is outside its group.
    """
    bank = [i for i, good in enumerate(success) if good]
    return averages(embeddings, groups, bank, times, neighbours)


def knn_return(
    embeddings: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    success: Sequence[bool],
    groups: Sequence[str],
    neighbours: int = 10,
) -> list[np.ndarray]:
    """Mean of label * normalised time over the nearest windows of all episodes of the task, own group left out (ours).

    The value `knn-return`: a nearest-neighbour estimate of the return. A neighbour from a failure counts 0, one from a
    success its time. Without failures it is `knn-time`. Arguments as `knn-time`.

    Returns:
        Per episode (n_i,) in [0, 1]; NaN where no success is outside its group (0 would only say so).
    """
    outcomes = [time if good else np.zeros(len(time)) for time, good in zip(times, success, strict=True)]
    values = averages(embeddings, groups, range(len(embeddings)), outcomes, neighbours)
    good_groups = {group for group, good in zip(groups, success, strict=True) if good}
    return [
        value if good_groups - {group} else np.full(len(value), np.nan)
        for value, group in zip(values, groups, strict=True)
    ]


def averages(
    embeddings: Sequence[np.ndarray],
    groups: Sequence[str],
    bank: Sequence[int],
    outcomes: Sequence[np.ndarray],
    neighbours: int,
) -> list[np.ndarray]:
    """Mean outcome of each window's nearest bank windows (raw L2), those of its own group left out.

    Windows tied with the last neighbour are all averaged in, so the order of episodes does not matter. With N windows,
    M of them in the bank: time N*M*D (one matrix product), memory the bank as float64 (8*M*D bytes: 0.6 GB for 75,000
    windows of 1024) plus some 0.1 GB.

    Args:
        embeddings: per episode (n_i, D).
        groups: per episode.
        bank: which episodes are looked up.
        outcomes: per episode (n_i,), what is averaged.
        neighbours: how many; where the bank has fewer, all of them.

    Returns:
        Per episode (n_i,); NaN where the bank is empty outside its group.
    """
    if len(bank) == 0:
        return [np.full(len(own), np.nan) for own in embeddings]
    points = np.concatenate([embeddings[i] for i in bank], dtype=np.float64)
    centre = points.mean(axis=0)
    points -= centre  # distances stay, the numbers that cancel in |a|^2 - 2ab + |b|^2 get small
    norms = np.einsum("nd,nd->n", points, points)
    outcome = np.concatenate([outcomes[i] for i in bank])
    owner = np.repeat(np.array([groups[i] for i in bank], dtype=object), [len(embeddings[i]) for i in bank])
    step = max(1, CHUNK_NUMBERS // len(points))
    results = []
    for own, group in zip(embeddings, groups, strict=True):
        inside = owner == group
        count = min(neighbours, int((~inside).sum()))
        result = np.full(len(own), np.nan)
        for start in range(0, len(own) if count else 0, step):
            queries = own[start : start + step].astype(np.float64) - centre
            squared = queries @ points.T
            squared *= -2.0
            squared += norms
            squared[:, inside] = np.inf
            # |q|^2 is the same for a whole row, so it is left out; the slack is far above the product's rounding.
            reach = np.partition(squared, count - 1, axis=1)[:, count - 1]
            slack = 1e-12 * (np.einsum("nd,nd->n", queries, queries) + norms.max())
            rows, columns = np.nonzero(squared <= (reach + slack)[:, None])
            result[start : start + step] = np.bincount(rows, outcome[columns]) / np.bincount(rows)
        results.append(np.clip(result, outcome.min(), outcome.max()))  # a mean's rounding must not leave the range
    return results
