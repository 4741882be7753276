"""Step values R of a task's windows, besides progress. numpy in, numpy out.

Distance to an end state is a good terminal test and a wrong step value, even with a perfect encoder: after a drop the
empty arm moves on home, which looks like progress. `knn-time` and `knn-return` ask when, not how far.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from srpo_robot.numerics import standardise_by
from srpo_robot.progress.config import ALPHA

NO_FAILURE = "its task has no failure, whose windows eq. 5 is standardised with"
NO_NEIGHBOUR = "no success of its task outside its own group: nothing to compare its windows with"
CHUNK_NUMBERS = 4_000_000  # distances in memory at a time: 32 MB


def window_rewards(distance: np.ndarray, pool: np.ndarray, alpha: float = ALPHA, literal: bool = False) -> np.ndarray:
    """Returns eq. 5 on windows: alpha * sigmoid(-(d - mean)/std), (n,) in (0, alpha); NaN if `pool` is empty.

    A window of a success gets the same formula (the paper is silent). Eq. 5's 1 is for a whole successful trajectory,
    and a jump to 1 on the last window would put a success's entire advantage on its last frame. So a success ends
    near alpha, at alpha * sigmoid(mean/std).

    Args:
        distance: (n,) distances of windows, or of frames between them.
        pool: distances of all measured windows of all failures of the task; they give mean and std.
        alpha: ceiling of the reward.
        literal: use the plus sign that the paper prints.
    """
    z = standardise_by(distance, pool)
    return alpha * expit(z if literal else -z)


def normalised_time(ends: np.ndarray, length: int) -> np.ndarray:
    """Returns the end time of each window, `ends` (n,) over T-1: (n,) in [0, 1]; 1 for an episode of one frame."""
    return ends / (length - 1) if length > 1 else np.ones(len(ends))


def knn_time(
    embeddings: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    success: Sequence[bool],
    groups: Sequence[str],
    neighbours: int = 10,
) -> list[np.ndarray]:
    """Returns the mean normalised time of each window's nearest success windows of the task (ours).

    Windows of the same group are left out. For the cost see `averages`.

    Args:
        embeddings: per episode of one task, (n_i, D).
        times: per episode, normalised time of its windows, (n_i,).
        success: label of each episode.
        groups: group of each episode; recordings cut from one take share one.
        neighbours: number of nearest windows that are averaged.

    Returns:
        Per episode (n_i,) in [0, 1]; NaN if no success is outside its group.
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
    """Returns the mean of label * normalised time over the nearest windows of all episodes of the task (ours).

    This nearest-neighbour estimate of the return is the value `knn-return`. Windows of the same group are left out. A
    neighbour from a failure counts 0, one from a success counts its time. Without failures it equals `knn_time`, whose
    arguments it shares.

    Returns:
        Per episode (n_i,) in [0, 1]; NaN if no success is outside its group (a 0 would look like a measured value).
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
    """Returns the mean outcome of each window's nearest bank windows (raw L2), without those of its own group.

    All windows tied with the last neighbour are averaged in, so the order of episodes does not matter. With N windows,
    M of them in the bank: time N*M*D (one matrix product), memory the bank as float64 (8*M*D bytes: 0.6 GB for 75,000
    windows of 1024) plus some 0.1 GB.

    Args:
        embeddings: per episode (n_i, D).
        groups: group of each episode.
        bank: positions of the episodes whose windows are the neighbours.
        outcomes: per episode (n_i,), the numbers that are averaged.
        neighbours: number of neighbours; all windows of the bank if it has fewer.

    Returns:
        Per episode (n_i,); NaN if the bank is empty outside its group.
    """
    if len(bank) == 0:
        return [np.full(len(queries), np.nan) for queries in embeddings]
    points = np.concatenate([embeddings[i] for i in bank], dtype=np.float64)
    centre = points.mean(axis=0)
    points -= centre  # distances stay; the numbers that cancel in |a|^2 - 2ab + |b|^2 get small
    norms = np.einsum("nd,nd->n", points, points)
    outcome = np.concatenate([outcomes[i] for i in bank])
    owner = np.repeat(np.array([groups[i] for i in bank], dtype=object), [len(embeddings[i]) for i in bank])
    step = max(1, CHUNK_NUMBERS // len(points))
    results = []
    for windows, group in zip(embeddings, groups, strict=True):
        inside = owner == group
        count = min(neighbours, int((~inside).sum()))
        result = np.full(len(windows), np.nan)
        for start in range(0, len(windows) if count else 0, step):
            queries = windows[start : start + step].astype(np.float64) - centre
            squared = queries @ points.T
            squared *= -2.0
            squared += norms
            squared[:, inside] = np.inf
            # |q|^2 is the same for a whole row, so it is left out. The slack is far above the rounding of the product.
            reach = np.partition(squared, count - 1, axis=1)[:, count - 1]
            slack = 1e-12 * (np.einsum("nd,nd->n", queries, queries) + norms.max())
            rows, columns = np.nonzero(squared <= (reach + slack)[:, None])
            result[start : start + step] = np.bincount(rows, outcome[columns]) / np.bincount(rows)
        results.append(np.clip(result, outcome.min(), outcome.max()))  # rounding of a mean must not leave the range
    return results
