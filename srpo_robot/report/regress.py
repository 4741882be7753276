"""Finds the largest drop of an episode's step value, and the most similar window of a success."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from srpo_robot.progress.score import WindowEmbeddings


@dataclass(frozen=True)
class Regress:
    """The value falls by `drop` > 0 from frame `start` to frame `end`."""

    start: int
    end: int
    drop: float


@dataclass(frozen=True)
class Match:
    """The nearest window of a success.

    Attributes:
        episode_index: index of the success.
        frame: last frame of the window.
        distance: L2 distance [embedding units].
    """

    episode_index: int
    frame: int
    distance: float


def worst_regress(value: np.ndarray) -> Regress | None:
    """Returns the largest value[s] - value[e] over frames s < e, None if the value never falls.

    This is the run of increments D_t = R_t - R_{t-1} (eq. 15) with the most negative sum. Among equal drops the one
    that ends first wins, then the shortest.

    Args:
        value: (T,) finite step value of one episode.

    Raises:
        ValueError: `value` is empty or not finite.
    """
    if len(value) == 0 or not np.isfinite(value).all():
        raise ValueError("a regress needs a finite value at every frame")
    highest = np.maximum.accumulate(value)
    end = int(np.argmax(highest - value))
    drop = float(highest[end] - value[end])
    if drop <= 0.0:
        return None
    return Regress(int(np.flatnonzero(value[:end] == highest[end])[-1]), end, drop)


def window_at(windows: WindowEmbeddings, frame: int) -> np.ndarray:
    """Returns the embedding (D,) of the last window that ends at or before `frame`, else of the first window."""
    return windows.embeddings[max(int(np.searchsorted(windows.ends, frame, side="right")) - 1, 0)]


def nearest_windows(
    queries: np.ndarray, groups: list[str], successes: Iterable[tuple[int, str, WindowEmbeddings]]
) -> list[Match | None]:
    """Returns for each query the nearest window of a success outside the query's group, None if there is none.

    The query's group is left out, because an episode cut from the same take would show the same frames. Among equally
    near windows the first one wins.

    Args:
        queries: (n, D) embeddings of windows.
        groups: n groups, one for each query's episode.
        successes: episode_index, group and windows of each success. They are read one by one, so they need not fit in
            memory together.
    """
    nearest: list[Match | None] = [None] * len(queries)
    for index, group, windows in successes:
        for place, query in enumerate(queries):
            if group == groups[place]:
                continue
            distances = np.linalg.norm(windows.embeddings - query, axis=1)
            row = int(np.argmin(distances))
            best = nearest[place]
            if best is None or distances[row] < best.distance:
                nearest[place] = Match(index, int(windows.ends[row]), float(distances[row]))
    return nearest
