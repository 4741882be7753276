"""Embeddings of windows -> distance, progress, step value and trajectory reward, by profile. numpy in, numpy out.

Source: arXiv 2511.15605, eq. 3-6 and appendix B; profile `siirl`: the authors' released code; `loo`: ours. If the
paper is silent, the docstrings name our choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import expit

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.numerics import standardise
from srpo_robot.progress.config import ALPHA, ScoringConfig
from srpo_robot.progress.references import References, Strategy, parse_references
from srpo_robot.progress.value import (
    NO_FAILURE,
    NO_NEIGHBOUR,
    knn_return,
    knn_time,
    normalised_time,
    window_rewards,
)
from srpo_robot.records import Curve, Episode

SIIRL_CEILING, SIIRL_STEEPNESS, SIIRL_OFFSET, SIIRL_RANGE = 0.6, 10.0, 0.5, 1e-6  # siiRL's reward_score/embodied.py

ONE_WINDOW = "shorter than the first window and one frame: one distance, no progress"
CONSTANT = "all distances are equal: progress is undefined"
NO_SUCCESS = "its task has no success, so there is nothing to measure against"
NO_REFERENCE = "no success of its task outside its own group: leave-one-out has nothing to measure it against"
SKIPPED_TASK = "its task was left out (--skip-task)"
SKIPPED_EPISODE = "its video cannot be decoded (--skip-bad-episodes)"


@dataclass(frozen=True, eq=False)
class WindowEmbeddings:
    """Embedded windows of one episode.

    Attributes:
        ends: (n,) last frame of each window, increasing; the last one is T-1.
        embeddings: (n, D); the last row is h_i, the embedding of the whole episode.
    """

    ends: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True, eq=False)
class EpisodeScore:
    """The score of one episode.

    Attributes:
        curve: distance and progress of every frame.
        value: (T,) step value R, constant before the end of the first window; NaN throughout if it is undefined.
        reward: trajectory reward (eq. 5); NaN if the episode was left out or has no distance.
        trajectory_advantage: the reward standardised over the episodes of its task (eq. 6); NaN if the reward is.
        reason: why the value is NaN; "" if it is not.
    """

    curve: Curve
    value: np.ndarray
    reward: float = math.nan
    trajectory_advantage: float = math.nan
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """The score of a dataset.

    Attributes:
        episodes: one score per episode, in the order of the episodes.
        references: by task, the references of all its successes (`loo` leaves each episode's group out of its own). A
            task without references (profile siirl, no success) is absent.
        warnings: one line each.
        reference_episodes: by task, the episode_index of each row that `References.members` counts; empty if the
            references come from another dataset.
    """

    episodes: tuple[EpisodeScore, ...]
    references: dict[str, References]
    warnings: tuple[str, ...]
    reference_episodes: dict[str, np.ndarray]

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Curve of each episode."""
        return tuple(episode.curve for episode in self.episodes)

    @property
    def values(self) -> tuple[np.ndarray, ...]:
        """Step value (T,) of each episode."""
        return tuple(episode.value for episode in self.episodes)

    @property
    def rewards(self) -> np.ndarray:
        """(E,) trajectory reward of each episode."""
        return np.array([episode.reward for episode in self.episodes])

    @property
    def trajectory_advantages(self) -> np.ndarray:
        """(E,) trajectory advantage of each episode."""
        return np.array([episode.trajectory_advantage for episode in self.episodes])


def success_progress(distance: np.ndarray) -> np.ndarray:
    """Appendix B for a success: (d_max - d)/(d_max - d_min) over its own windows; NaN if all distances are equal."""
    low, high = distance.min(), distance.max()
    if high <= low:
        return np.full_like(distance, np.nan)
    return (high - distance) / (high - low)


def failure_progress(distance: np.ndarray) -> np.ndarray:
    """Appendix B for a failure: 1 - d/d_max over its own windows; NaN if all distances are equal."""
    low, high = distance.min(), distance.max()
    if high <= low:
        return np.full_like(distance, np.nan)
    return 1.0 - distance / high


def loo_progress(distance: np.ndarray, d_ref: float) -> np.ndarray:
    """Profile `loo` for success and failure alike: 1 - d/d_ref; NaN for a constant video (several, equal distances).

    Args:
        distance: (n,) distances of one episode.
        d_ref: the largest distance of all scored windows of the task, so progress stays in [0, 1].
    """
    if d_ref <= 0.0 or (len(distance) > 1 and distance.max() <= distance.min()):
        return np.full_like(distance, np.nan)
    return 1.0 - distance / d_ref


def failure_rewards(distance: np.ndarray, alpha: float = ALPHA, literal: bool = False) -> np.ndarray:
    """Eq. 5 for the failures of one task: alpha * sigmoid(-(d - mean)/std), (n,) in (0, alpha).

    The paper prints a plus sign, which rewards distance and contradicts its text. Only `literal` (profile
    `paper-literal`) uses it. `std` is the population's. If it is 0 (one failure), the standardised value is 0. A NaN
    distance gives NaN and counts in neither mean nor std.
    """
    return window_rewards(distance, distance, alpha, literal)


def siirl_rewards(distance: np.ndarray) -> np.ndarray:
    """siiRL's reward of one task's failures: 0.6 * sigmoid(10 * (0.5 - minmax(d))), (n,) in [0.004, 0.596].

    Distances that span less than 1e-6 all count as 0.5: reward 0.3.
    """
    span = np.ptp(distance)
    flat = span < SIIRL_RANGE
    scaled = np.full(len(distance), 0.5) if flat else (distance - distance.min()) / span
    return SIIRL_CEILING * expit(SIIRL_STEEPNESS * (SIIRL_OFFSET - scaled))


def dense_distance(ends: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Interpolates distances (or values) to every frame from ends[0] on, by PCHIP: (ends[-1] - ends[0] + 1,).

    PCHIP does not overshoot, and it does not force the curve to be monotone: a regress is signal.
    """
    if len(ends) == 1 or not np.isfinite(distance).all():
        return np.full(int(ends[-1] - ends[0]) + 1, distance[0] if len(ends) == 1 else np.nan)
    dense = PchipInterpolator(ends, distance)(np.arange(ends[0], ends[-1] + 1))
    # Exact at the measured frames: a success is at distance 0 from itself, not at -1e-17.
    dense[ends - ends[0]] = distance
    return np.clip(dense, distance.min(), distance.max())


def trajectory_advantages(rewards: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """Returns A_i = (g_i - mu_g)/sigma_g over the episodes of the same task (eq. 6): (E,); std 0 gives 0, NaN stays."""
    advantage = np.full(len(rewards), np.nan)
    names = np.array(tasks, dtype=object)
    for task in dict.fromkeys(tasks):
        advantage[names == task] = standardise(rewards[names == task])
    return advantage


@dataclass(frozen=True, eq=False, kw_only=True)
class _Task:
    """The scored episodes of one task, aligned.

    Attributes:
        name: language instruction.
        places: (n,) positions among all episodes.
        episodes: the episodes.
        windows: their embeddings.
        success: (n,) bool, their labels.
        groups: their groups; an episode without a group is a group of its own.
    """

    name: str
    places: np.ndarray
    episodes: list[Episode]
    windows: list[WindowEmbeddings]
    success: np.ndarray
    groups: list[str]

    @property
    def success_ends(self) -> np.ndarray:
        """(S, D) whole-episode embeddings h_i of the successes."""
        return np.stack([w.embeddings[-1] for w, good in zip(self.windows, self.success, strict=True) if good])


@dataclass(frozen=True, eq=False)
class _TaskScores:
    """The score of one task. `episodes` is aligned with the task's; their advantages are not computed yet."""

    episodes: list[EpisodeScore]
    references: References | None
    warnings: list[str]


def score(
    episodes: Sequence[Episode],
    windows: Sequence[WindowEmbeddings | None],
    config: ScoringConfig | None = None,
    external: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Scores a dataset.

    Args:
        episodes: labelled episodes in any order, of any mix of tasks.
        windows: their embeddings, aligned; None for an episode that is left out.
        config: profile, references, step value and skipped tasks; None: the paper's. Its windows play no part here.
        external: by task, whole-episode embeddings (S, D) of another dataset's successes. They are given if and only
            if the references are "external" (or "external:NAME"). Then a task needs no success of its own.

    Raises:
        ScoringError: an episode is unlabelled, a task has no success (profile siirl: its failures get reward 0, as in
            siiRL), an embedding is zero or not finite, external references are missing for a task or of another width.
        UsageError: external references without the strategy for them, or the strategy without the references.
    """
    config = config or ScoringConfig()
    strategy = parse_references(config.reference_name)
    if strategy.external != (external is not None):
        raise UsageError("external reference embeddings and the references 'external' go together; give both or none")
    _check(episodes, windows)
    results = [_left_out(e, SKIPPED_TASK if e.task in config.skip_tasks else SKIPPED_EPISODE) for e in episodes]
    references: dict[str, References] = {}
    rows: dict[str, np.ndarray] = {}
    warnings: list[str] = []
    for name in dict.fromkeys(e.task for e in episodes if e.task not in config.skip_tasks):
        task = _task(name, episodes, windows)
        task_scores = _score_task(task, config, strategy, external)
        for place, episode_score in zip(task.places, task_scores.episodes, strict=True):
            results[place] = episode_score
        if task_scores.references is not None:
            references[name] = task_scores.references
            indices = [e.index for e, good in zip(task.episodes, task.success, strict=True) if good]
            rows[name] = np.array([] if strategy.external else indices, dtype=int)
        warnings += task_scores.warnings
    advantages = trajectory_advantages(np.array([r.reward for r in results]), [e.task for e in episodes])
    scored = (replace(r, trajectory_advantage=float(a)) for r, a in zip(results, advantages, strict=True))
    return Scores(tuple(scored), references, tuple(warnings), rows)


def _task(name: str, episodes: Sequence[Episode], windows: Sequence[WindowEmbeddings | None]) -> _Task:
    rows = [
        (i, e, w) for i, (e, w) in enumerate(zip(episodes, windows, strict=True)) if e.task == name and w is not None
    ]
    return _Task(
        name=name,
        places=np.array([i for i, _, _ in rows], dtype=int),
        episodes=[e for _, e, _ in rows],
        windows=[w for _, _, w in rows],
        success=np.array([bool(e.success) for _, e, _ in rows], dtype=bool),
        groups=[e.group or f"episode {e.index}" for _, e, _ in rows],
    )


def _check(episodes: Sequence[Episode], windows: Sequence[WindowEmbeddings | None]) -> None:
    unlabelled = [episode.index for episode in episodes if episode.success is None]
    if unlabelled:
        shown = ", ".join(map(str, unlabelled[:10])) + (", ..." if len(unlabelled) > 10 else "")
        which = f"episode {shown} is" if len(unlabelled) == 1 else f"{len(unlabelled)} episodes ({shown}) are"
        raise ScoringError(
            f"{which} unlabelled; label with 'srpo-robot label DATASET' (keys), '--csv FILE' or '--all-success'"
        )
    for episode, embedded in zip(episodes, windows, strict=True):
        if embedded is None:
            continue
        bad = ~np.isfinite(embedded.embeddings).all(axis=1) | ~embedded.embeddings.any(axis=1)
        if bad.any():
            frame = int(embedded.ends[np.flatnonzero(bad)[0]])
            raise ScoringError(
                f"episode {episode.index}, window up to frame {frame}: the embedding is NaN or zero; "
                "look at the encoder and the video, or leave the episode out: --skip-bad-episodes"
            )


def _score_task(
    task: _Task, config: ScoringConfig, strategy: Strategy, external: Mapping[str, np.ndarray] | None
) -> _TaskScores:
    references = _references(task, config, strategy, external)
    distances = _distances(task, config, strategy, references)
    curves = _curves(task, config, distances, references)
    rewards = np.ones(len(task.episodes))
    failed = np.array([d[-1] for d, good in zip(distances, task.success, strict=True) if not good])
    rewards[~task.success] = _failure_rewards(failed, config, references)
    values = _values(task, config, curves, distances)
    episodes = [
        EpisodeScore(curve, value, reward, reason=reason)
        for curve, (value, reason), reward in zip(curves, values, rewards.tolist(), strict=True)
    ]
    warnings = _warnings(task, config, references, failed[np.isfinite(failed)])
    warnings += _value_warnings(task, config, [episode.reason for episode in episodes], distances)
    return _TaskScores(episodes, references, warnings)


def _references(
    task: _Task, config: ScoringConfig, strategy: Strategy, external: Mapping[str, np.ndarray] | None
) -> References | None:
    """Returns references of all successes, or the external ones; None for a task without a success under siirl."""
    if external is not None:
        points = external.get(task.name)
        if points is None:
            raise ScoringError(
                f"task {task.name!r} has no external reference; there are: {', '.join(map(repr, external)) or 'none'}; "
                f"add some, or leave the task out: --skip-task {task.name!r}"
            )
        width = task.windows[0].embeddings.shape[1] if task.windows else points.shape[-1]
        if points.ndim != 2 or points.shape[1] != width or not points.any(axis=1).all():
            raise ScoringError(
                f"external references of task {task.name!r} have shape {points.shape}, expected (S, {width}) and no "
                "zero row; embed them with the same encoder"
            )
        return strategy(points)
    if task.success.any():
        return strategy(task.success_ends)
    if config.profile == "siirl":
        return None
    raise ScoringError(
        f"task {task.name!r} has no success ({len(task.episodes)} failures): nothing to measure against; "
        f"label or record one, or leave the task out: --skip-task {task.name!r}"
    )


def _distances(
    task: _Task, config: ScoringConfig, strategy: Strategy, references: References | None
) -> list[np.ndarray]:
    """Returns per episode the distances (n,) of its windows; NaN if there is nothing to measure against."""
    if references is None:
        return [np.full(len(windows.ends), np.nan) for windows in task.windows]
    if config.profile != "loo":  # appendix B: a success is measured against its own end
        return [
            np.linalg.norm(windows.embeddings - windows.embeddings[-1], axis=-1)
            if good
            else references.distance(windows.embeddings)
            for windows, good in zip(task.windows, task.success, strict=True)
        ]
    left_out: dict[str, References | None] = {}
    if not strategy.external:  # another dataset holds none of these episodes
        ends = task.success_ends
        owners = np.array([g for g, good in zip(task.groups, task.success, strict=True) if good], dtype=object)
        for group in dict.fromkeys(owners):
            others = ends[owners != group]
            left_out[group] = strategy(others) if len(others) else None
    distances = []
    for windows, group in zip(task.windows, task.groups, strict=True):
        outside = left_out.get(group, references)  # a group without a success leaves nothing out
        nothing = np.full(len(windows.ends), np.nan)
        distances.append(nothing if outside is None else outside.distance(windows.embeddings))
    return distances


def _curves(
    task: _Task, config: ScoringConfig, distances: list[np.ndarray], references: References | None
) -> list[Curve]:
    finite = [d.max() for d in distances if np.isfinite(d).all()]
    d_ref = float(max(finite, default=np.nan))
    missing = NO_SUCCESS if references is None else NO_REFERENCE
    curves = []
    for episode, windows, distance, good in zip(task.episodes, task.windows, distances, task.success, strict=True):
        dense = dense_distance(windows.ends, distance)
        if config.profile == "loo":
            progress = loo_progress(dense, d_ref)
        else:
            progress = (success_progress if good else failure_progress)(dense)
        reason = "" if np.isfinite(progress).all() else (ONE_WINDOW if len(windows.ends) == 1 else CONSTANT)
        reason = reason if np.isfinite(dense).all() else missing
        curves.append(_curve(episode, windows.ends, dense, progress, reason))
    return curves


def _curve(episode: Episode, ends: np.ndarray, dense: np.ndarray, progress: np.ndarray, reason: str) -> Curve:
    scored = np.zeros(episode.length, dtype=bool)
    scored[ends] = True
    before = np.full(int(ends[0]), np.nan)
    return Curve(episode.index, np.concatenate([before, dense]), _held(ends, progress), scored, reason)


def _held(ends: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Extends values that start at ends[0] to the whole episode (T,), constant before ends[0]: no increment there."""
    return np.concatenate([np.full(int(ends[0]), dense[0]), dense])


def _left_out(episode: Episode, reason: str) -> EpisodeScore:
    nothing = np.full(episode.length, np.nan)
    curve = Curve(episode.index, nothing, nothing.copy(), np.zeros(episode.length, dtype=bool), reason)
    return EpisodeScore(curve, nothing.copy(), reason=reason)


def _failure_rewards(distance: np.ndarray, config: ScoringConfig, references: References | None) -> np.ndarray:
    if references is None or len(distance) == 0:
        return np.zeros(len(distance))  # siiRL: a task without a success rewards nothing
    if config.profile == "siirl":
        return siirl_rewards(distance)
    return failure_rewards(distance, config.alpha, literal=config.profile == "paper-literal")


def _values(
    task: _Task, config: ScoringConfig, curves: list[Curve], distances: list[np.ndarray]
) -> list[tuple[np.ndarray, str]]:
    """Returns per episode the step value (T,) and the reason why it is NaN ("" if it is not)."""
    kind = config.value_name
    if kind == "progress":
        return [(curve.progress.copy(), curve.reason) for curve in curves]
    starts = [int(windows.ends[0]) for windows in task.windows]
    if kind == "reward":
        pool = _failed_windows(task, distances)
        literal = config.profile == "paper-literal"
        dense = [
            window_rewards(c.distance[t:], pool, config.alpha, literal) for c, t in zip(curves, starts, strict=True)
        ]
        reasons = [c.reason if np.isnan(c.distance[t]) else NO_FAILURE for c, t in zip(curves, starts, strict=True)]
    else:
        estimate = knn_time if kind == "knn-time" else knn_return
        times = [normalised_time(w.ends, e.length) for w, e in zip(task.windows, task.episodes, strict=True)]
        embeddings = [windows.embeddings for windows in task.windows]
        estimates = estimate(embeddings, times, task.success.tolist(), task.groups, config.neighbours)
        dense = [dense_distance(w.ends, value) for w, value in zip(task.windows, estimates, strict=True)]
        reasons = [NO_NEIGHBOUR] * len(dense)
    values = [_held(windows.ends, value) for windows, value in zip(task.windows, dense, strict=True)]
    return [(v, "" if np.isfinite(v).all() else reason) for v, reason in zip(values, reasons, strict=True)]


def _failed_windows(task: _Task, distances: list[np.ndarray]) -> np.ndarray:
    """Returns the distances of all measured windows of all failures, in one array."""
    failed = [d for d, good in zip(distances, task.success, strict=True) if not good]
    return np.concatenate(failed) if failed else np.zeros(0)


def _warnings(task: _Task, config: ScoringConfig, references: References | None, failed: np.ndarray) -> list[str]:
    name, successes = task.name, int(task.success.sum())
    if references is None:
        count = len(task.success)
        return [f"{name!r}: no success, so its {count} failures get reward 0, as siiRL does, and no progress"]
    warnings = []
    if references.degenerate and references.strategy != "mean":  # a chosen mean needs no warning
        kind = "nearest success to their mean" if references.strategy == "medoid" else "mean"
        warnings.append(
            f"{name!r}: all {references.sizes[0]} successes form one cluster, so the reference is their {kind}; "
            "for varied layouts that is a weak reference"
        )
    if config.profile == "loo" and len(_groups(task)) == 1 and not parse_references(config.reference_name).external:
        subject = "one success" if successes == 1 else f"{successes} successes, all of one group"
        warnings.append(f"{name!r}: {subject}, so nothing is left to measure that group's episodes against")
    if len(failed) == 1:
        siirl = "distance counts as 0.5 and its reward is 0.3"
        paper = "standardised distance is 0 and its reward alpha/2"
        warnings.append(f"{name!r}: one failure, so its {siirl if config.profile == 'siirl' else paper}")
    elif _all_equal(failed):
        warnings.append(f"{name!r}: all failures are equally far, so their rewards are equal")
    if not (~task.success).any():
        warnings.append(f"{name!r}: no failure, so nothing tells a good score from a bad one")
    return warnings


def _all_equal(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _groups(task: _Task) -> set[str]:
    """Returns the groups that hold a success."""
    return {group for group, good in zip(task.groups, task.success, strict=True) if good}


def _value_warnings(task: _Task, config: ScoringConfig, reasons: list[str], distances: list[np.ndarray]) -> list[str]:
    kind, warnings = config.value_name, []
    if kind == "knn-return" and task.success.all() and len(task.success):
        warnings.append(f"{task.name!r}: no failure, so the value 'knn-return' is 'knn-time'")
    if kind == "reward" and _all_equal(_failed_windows(task, distances)):
        warnings.append(
            f"{task.name!r}: all windows of failures are equally far, so the value 'reward' is alpha/2 throughout"
        )
    if kind != "progress":
        for reason in dict.fromkeys(text for text in reasons if text):
            warnings.append(f"{task.name!r}: {reasons.count(reason)} episodes without a value {kind!r}: {reason}")
    return warnings
