"""Comparison of scoring profiles, episode by episode. This comparison is ours, not the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from scipy.stats import rankdata

from srpo_robot.errors import UsageError
from srpo_robot.progress.score import Profile, Rules, WindowEmbeddings, score
from srpo_robot.records import Episode


@dataclass(frozen=True, kw_only=True)
class ProfileComparison:
    """One episode under several profiles.

    Attributes:
        episode_index: episode_index in the dataset.
        task: language instruction.
        success: label of the episode.
        progress: by profile, progress at the last frame.
        reward: by profile, trajectory reward.
        progress_rank: by profile, rank of the progress among the task's episodes. 1 is best. Ties share a mean rank.
        reward_rank: by profile, rank of the reward in the same way.
        disagreement: [ranks] the larger spread over the profiles, of progress rank or of reward rank. 0 if the
            profiles agree.
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
    """Scores every episode under each profile. Episodes with the largest disagreement of ranks come first.

    Args:
        episodes, windows, external: see `score`.
        profiles: two or more names.
        rules: rules of the score. The profile is replaced. Empty references mean the default of each profile.

    Raises:
        UsageError: fewer than two profiles are given, or one is unknown.
        ScoringError: raised by `score` under any of the profiles.
    """
    names = list(dict.fromkeys(profiles))
    if len(names) < 2:
        raise UsageError(f"a comparison needs two profiles or more; there are: {', '.join(get_args(Profile))}")
    progress, reward, progress_rank, reward_rank = {}, {}, {}, {}
    for name in names:
        # The step value is not used here, and progress is the cheapest one.
        scores = score(episodes, windows, replace(rules or Rules(), profile=name, value="progress"), external)  # type: ignore[arg-type]
        progress[name] = np.array([curve.progress[-1] for curve in scores.curves])
        reward[name] = scores.rewards
        progress_rank[name] = _ranks(progress[name], episodes)
        reward_rank[name] = _ranks(reward[name], episodes)
    spread = np.fmax(_spread(progress_rank), _spread(reward_rank))
    rows = [
        ProfileComparison(
            episode_index=e.index,
            task=e.task,
            success=bool(e.success),
            progress=_at(progress, i),
            reward=_at(reward, i),
            progress_rank=_at(progress_rank, i),
            reward_rank=_at(reward_rank, i),
            disagreement=float(spread[i]),
        )
        for i, e in enumerate(episodes)
    ]
    return sorted(rows, key=lambda row: (-row.disagreement, row.episode_index))


def _at(column: Mapping[str, np.ndarray], row: int) -> dict[str, float]:
    return {name: float(values[row]) for name, values in column.items()}


def _ranks(values: np.ndarray, episodes: Sequence[Episode]) -> np.ndarray:
    """Returns ranks within the task (E,). The largest value has rank 1. NaN stays NaN."""
    ranks = np.full(len(values), np.nan)
    tasks = np.array([episode.task for episode in episodes], dtype=object)
    for task in dict.fromkeys(tasks):
        rows = np.flatnonzero((tasks == task) & np.isfinite(values))
        ranks[rows] = rankdata(-values[rows].round(9))  # values that differ only by rounding are ties
    return ranks


def _spread(ranks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the largest minus the smallest rank over the profiles (E,). 0 if fewer than two profiles have a rank."""
    table = np.stack(list(ranks.values()))
    known = np.isfinite(table)
    high = np.where(known, table, -np.inf).max(axis=0)
    low = np.where(known, table, np.inf).min(axis=0)
    return np.where(known.sum(axis=0) > 1, high - low, 0.0)
