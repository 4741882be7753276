"""Embeddings of windows -> distance, progress and trajectory reward: SRPO's `paper` profile. numpy in, numpy out.

Source: arXiv 2511.15605, eq. 3-5 and appendix B. Where the paper is silent the docstrings say what was chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator

from srpo_robot.errors import ScoringError
from srpo_robot.progress.references import References, nearest_distance, nn2_references
from srpo_robot.records import Curve, Episode

ALPHA = 0.8  # the paper's ceiling on a failure's reward
ONE_WINDOW = "shorter than the first window and one frame: one distance, no progress"
CONSTANT = "all distances are equal: progress is undefined"
SKIPPED_TASK = "its task was left out (--skip-task)"
SKIPPED_EPISODE = "its video cannot be decoded (--skip-bad-episodes)"


@dataclass(frozen=True, eq=False)
class WindowEmbeddings:
    """One episode's windows.

    Attributes:
        ends: (n,) last frame of each window, increasing; the last one is T-1.
        embeddings: (n, D); the last row is the whole episode's h_i.
    """

    ends: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything a dataset's scoring yields.

    Attributes:
        curves: one per episode, in order.
        rewards: (E,) trajectory reward (eq. 5); NaN where the episode was left out.
        references: by task.
        warnings: what a reader should know, one line each.
    """

    curves: tuple[Curve, ...]
    rewards: np.ndarray
    references: dict[str, References]
    warnings: tuple[str, ...] = field(default=())


def success_progress(distance: np.ndarray) -> np.ndarray:
    """Appendix B, a success: (d_max - d)/(d_max - d_min) over its own windows; NaN where all distances are equal."""
    low, high = distance.min(), distance.max()
    if high <= low:
        return np.full_like(distance, np.nan)
    return (high - distance) / (high - low)


def failure_progress(distance: np.ndarray) -> np.ndarray:
    """Appendix B, a failure: 1 - d/d_max over its own windows; NaN where all distances are equal."""
    low, high = distance.min(), distance.max()
    if high <= low:
        return np.full_like(distance, np.nan)
    return 1.0 - distance / high


def failure_rewards(distance: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Eq. 5 for the failures of one task: alpha * sigmoid(-(d - mean)/std), (n,) in (0, alpha).

    The paper prints a plus sign, which rewards distance and contradicts its text; the profile `paper` takes the minus.
    `std` is the population's; where it is 0 (one failure) the standardised value is 0.
    """
    centred = distance - distance.mean()
    std = distance.std()
    z = centred / std if std > 0 else np.zeros_like(centred)
    return alpha / (1.0 + np.exp(z))


def dense_distance(ends: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Distances at every frame from the first window's end on, by PCHIP: (ends[-1] - ends[0] + 1,).

    PCHIP does not overshoot, and it never forces the curve to be monotone: a regress is signal.
    """
    if len(ends) == 1:
        return distance.copy()
    dense = PchipInterpolator(ends, distance)(np.arange(ends[0], ends[-1] + 1))
    dense[ends - ends[0]] = (
        distance  # exact where it was measured: a success is at distance 0 from itself, not at -1e-17
    )
    return np.clip(dense, distance.min(), distance.max())


def score(
    episodes: Sequence[Episode],
    windows: Sequence[WindowEmbeddings | None],
    alpha: float = ALPHA,
    skip_tasks: Collection[str] = (),
) -> Scores:
    """Score a dataset.

    Args:
        episodes: all labelled, any order, any mix of tasks.
        windows: their embeddings, aligned; None for an episode that is left out.
        alpha: ceiling of a failure's reward.
        skip_tasks: tasks that are left out; their progress and reward are NaN.

    Raises:
        ScoringError: a task has no success, an embedding is zero or not finite.
    """
    _check(episodes, windows)
    curves: list[Curve | None] = [None] * len(episodes)
    rewards = np.full(len(episodes), np.nan)
    references: dict[str, References] = {}
    warnings: list[str] = []
    for task in dict.fromkeys(episode.task for episode in episodes):
        members = [i for i, e in enumerate(episodes) if e.task == task and windows[i] is not None]
        if task in skip_tasks:
            continue
        successes = [i for i in members if episodes[i].success]
        failures = [i for i in members if not episodes[i].success]
        if not successes:
            raise ScoringError(
                f"task {task!r} has no success ({len(failures)} failures): nothing to measure against; "
                f"label or record one, or leave the task out: --skip-task {task!r}"
            )
        references[task] = nn2_references(np.stack([_of(windows, i).embeddings[-1] for i in successes]))
        for i in successes:
            own = _of(windows, i)
            distance = np.linalg.norm(own.embeddings - own.embeddings[-1], axis=-1)
            curves[i] = _curve(episodes[i], own.ends, distance, success=True)
            rewards[i] = 1.0
        centres = references[task].centres
        for i in failures:
            own = _of(windows, i)
            curves[i] = _curve(episodes[i], own.ends, nearest_distance(own.embeddings, centres), success=False)
        if failures:
            final = np.array([_of(curves, i).distance[-1] for i in failures])
            rewards[failures] = failure_rewards(final, alpha)
        warnings += _task_warnings(task, references[task], len(successes), len(failures))
    left_out = [
        curve if curve is not None else _nan_curve(e, SKIPPED_TASK if e.task in skip_tasks else SKIPPED_EPISODE)
        for e, curve in zip(episodes, curves, strict=True)
    ]
    return Scores(tuple(left_out), rewards, references, tuple(warnings))


def _of[T](items: Sequence[T | None], index: int) -> T:
    item = items[index]
    assert item is not None
    return item


def _check(episodes: Sequence[Episode], windows: Sequence[WindowEmbeddings | None]) -> None:
    for episode, own in zip(episodes, windows, strict=True):
        if episode.success is None:
            raise ScoringError(f"episode {episode.index} is unlabelled; label it with 'srpo-robot label'")
        if own is None:
            continue
        bad = ~np.isfinite(own.embeddings).all(axis=1) | ~own.embeddings.any(axis=1)
        if bad.any():
            frame = int(own.ends[np.flatnonzero(bad)[0]])
            raise ScoringError(
                f"episode {episode.index}, window up to frame {frame}: the embedding is NaN or zero; "
                "look at the encoder and the video, or leave the episode out: --skip-bad-episodes"
            )


def _curve(episode: Episode, ends: np.ndarray, distance: np.ndarray, success: bool) -> Curve:
    start = int(ends[0])
    dense = dense_distance(ends, distance)
    progress = (success_progress if success else failure_progress)(dense)
    scored = np.zeros(episode.length, dtype=bool)
    scored[ends] = True
    reason = "" if np.isfinite(progress).all() else (ONE_WINDOW if len(ends) == 1 else CONSTANT)
    return Curve(
        episode_index=episode.index,
        distance=np.concatenate([np.full(start, np.nan), dense]),
        progress=np.concatenate([np.full(start, progress[0]), progress]),  # before the first window the value is held
        scored=scored,
        reason=reason,
    )


def _nan_curve(episode: Episode, reason: str) -> Curve:
    nothing = np.full(episode.length, np.nan)
    return Curve(episode.index, nothing, nothing.copy(), np.zeros(episode.length, dtype=bool), reason)


def _task_warnings(task: str, references: References, successes: int, failures: int) -> list[str]:
    warnings = []
    if references.degenerate:
        warnings.append(
            f"{task!r}: all {successes} successes form one cluster, so the reference is their mean; "
            "for varied layouts that is a weak reference"
        )
    if failures == 1:
        warnings.append(f"{task!r}: one failure, so its standardised distance is 0 and its reward alpha/2")
    if failures == 0:
        warnings.append(f"{task!r}: no failure, so nothing tells a good score from a bad one")
    return warnings
