"""Where an episode fell back most: the largest drop of its step value, and the success that was in the same place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from srpo_robot.progress.score import WindowEmbeddings


@dataclass(frozen=True)
class Regress:
    """From frame `start` to frame `end` the value falls by `drop` > 0."""

    start: int
    end: int
    drop: float


@dataclass(frozen=True)
class Match:
    """The window of a success that is nearest: its episode_index, last frame, and L2 distance [embedding units]."""

    episode_index: int
    frame: int
    distance: float


def worst_regress(value: np.ndarray) -> Regress | None:
    """The largest value[s] - value[e] over frames s < e; None where the value never falls.

    It is the run of increments D_t = R_t - R_{t-1} (eq. 15) with the most negative sum. Of equal drops the one that
    ends first, and of those the shortest.

    Args:
        value: (T,) finite step value of one episode.

    Raises:
        ValueError: it is empty or not finite.
    """
    if len(value) == 0 or not np.isfinite(value).all():
        raise ValueError("a regress needs a finite value at every frame")
    highest = np.maximum.accumulate(value)
    end = int(np.argmax(highest - value))
    drop = float(highest[end] - value[end])
    if drop <= 0.0:
        return None
    return Regress(int(np.flatnonzero(value[:end] == highest[end])[-1]), end, drop)


def window_at(own: WindowEmbeddings, frame: int) -> np.ndarray:
    """(D,) embedding of the last window that ends at or before `frame`; the first one where there is none."""
    return own.embeddings[max(int(np.searchsorted(own.ends, frame, side="right")) - 1, 0)]


def nearest_windows(
    queries: np.ndarray, groups: list[str], successes: Iterable[tuple[int, str, WindowEmbeddings]]
) -> list[Match | None]:
    """For each query (n, D) the nearest window of a success outside the query's own group; None where there is none.

    An episode cut from the same take would show the very same frames. Of equally near windows the first one given.

    Args:
        queries: (n, D) embeddings of windows.
        groups: n, the groups of the episodes that they are of.
        successes: episode_index, group and windows of each; read one after another, so they need not fit in memory.
    """
    found: list[Match | None] = [None] * len(queries)
    for index, group, own in successes:
        for place, query in enumerate(queries):
            if group == groups[place]:
                continue
            distances = np.linalg.norm(own.embeddings - query, axis=1)
            row = int(np.argmin(distances))
            best = found[place]
            if best is None or distances[row] < best.distance:
                found[place] = Match(index, int(own.ends[row]), float(distances[row]))
    return found
