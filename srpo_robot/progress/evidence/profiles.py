"""Where profiles disagree, episode by episode (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from scipy.stats import rankdata

from srpo_robot.errors import UsageError
from srpo_robot.progress.score import Profile, Rules, WindowEmbeddings, score
from srpo_robot.records import Episode


@dataclass(frozen=True)
class ProfileComparison:
    """One episode under several profiles.

    Attributes:
        episode_index: episode_index in the dataset.
        task: language instruction.
        success: its label.
        progress: by profile, progress at the last frame.
        reward: by profile, trajectory reward.
        progress_rank: by profile, rank of that progress among the task's episodes, 1 the best, ties share their mean.
        reward_rank: by profile, the same for the reward.
        disagreement: [ranks] the larger of the two ranks' spreads over the profiles; 0 where they agree in order.
    """

    episode_index: int
    task: str
    success: bool
    progress: dict[str, float]
    reward: dict[str, float]
    progress_rank: dict[str, float]
    reward_rank: dict[str, float]
    disagreement: float


def compare(
    episodes: Sequence[Episode],
    windows: Sequence[WindowEmbeddings | None],
    profiles: Sequence[str],
    rules: Rules | None = None,
    external: Mapping[str, np.ndarray] | None = None,
) -> list[ProfileComparison]:
    """Every episode under each profile, the ones whose rank within their task differs most first (ours).

    Args:
        episodes, windows, external: as `score`.
        profiles: two or more names.
        rules: everything besides the profile; references "" are each profile's own.

    Raises:
        UsageError: fewer than two profiles, or an unknown one.
        ScoringError: as `score`, under any of the profiles.
    """
    names = list(dict.fromkeys(profiles))
    if len(names) < 2:
        raise UsageError(f"a comparison needs two profiles or more; there are: {', '.join(get_args(Profile))}")
    progress, reward, progress_rank, reward_rank = {}, {}, {}, {}
    for name in names:
        # The step value plays no part, and progress is the one that costs nothing.
        found = score(episodes, windows, replace(rules or Rules(), profile=name, value="progress"), external)  # type: ignore[arg-type]
        progress[name] = np.array([curve.progress[-1] for curve in found.curves])
        reward[name] = found.rewards
        progress_rank[name] = _ranks(progress[name], episodes)
        reward_rank[name] = _ranks(reward[name], episodes)
    spread = np.fmax(_spread(progress_rank), _spread(reward_rank))
    rows = [
        ProfileComparison(
            e.index,
            e.task,
            bool(e.success),
            _at(progress, i),
            _at(reward, i),
            _at(progress_rank, i),
            _at(reward_rank, i),
            float(spread[i]),
        )
        for i, e in enumerate(episodes)
    ]
    return sorted(rows, key=lambda row: (-row.disagreement, row.episode_index))


def _at(column: Mapping[str, np.ndarray], row: int) -> dict[str, float]:
    return {name: float(values[row]) for name, values in column.items()}


def _ranks(values: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
    """(E,) rank within the task, 1 the largest; NaN stays NaN."""
    ranks = np.full(len(values), np.nan)
    tasks = np.array([episode.task for episode in episodes], dtype=object)
    for task in dict.fromkeys(tasks):
        rows = np.flatnonzero((tasks == task) & np.isfinite(values))
        ranks[rows] = rankdata(-values[rows].round(9))  # a difference of rounding is a tie
    return ranks


def _spread(ranks: Mapping[str, np.ndarray]) -> np.ndarray:
    """(E,) largest minus smallest rank over the profiles that have one; 0 where fewer than two do."""
    table = np.stack(list(ranks.values()))
    known = np.isfinite(table)
    high = np.where(known, table, -np.inf).max(axis=0)
    low = np.where(known, table, np.inf).min(axis=0)
    return np.where(known.sum(axis=0) > 1, high - low, 0.0)
