"""Embeddings of windows -> distance, progress, step value and trajectory reward, by profile. numpy in, numpy out.

Source: arXiv 2511.15605, eq. 3-6 and appendix B; profile `siirl`: the authors' released code; `loo`: ours. Where the
paper is silent the docstrings say what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from scipy.interpolate import PchipInterpolator

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.numerics import standardise
from srpo_robot.progress.references import References, Strategy, parse_references
from srpo_robot.progress.value import (
    ALPHA,
    NO_FAILURE,
    NO_NEIGHBOUR,
    knn_return,
    knn_time,
    normalised_time,
    parse_value,
    sigmoid,
    window_rewards,
)
from srpo_robot.records import Curve, Episode
from srpo_robot.renames import REFERENCES, current

Profile = Literal["paper", "paper-literal", "siirl", "loo"]
DEFAULT_REFERENCES = {"paper": "dbscan-auto", "paper-literal": "dbscan-auto", "siirl": "siirl", "loo": "knn3"}
SIIRL_CEILING, SIIRL_STEEPNESS, SIIRL_OFFSET, SIIRL_RANGE = 0.6, 10.0, 0.5, 1e-6  # siiRL's reward_score/embodied.py

ONE_WINDOW = "shorter than the first window and one frame: one distance, no progress"
CONSTANT = "all distances are equal: progress is undefined"
NO_SUCCESS = "its task has no success, so there is nothing to measure against"
NO_REFERENCE = "no success of its task outside its own group: leave-one-out has nothing to measure it against"
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


@dataclass(frozen=True)
class Rules:
    """How embeddings become scores.

    Attributes:
        profile: `paper`; `paper-literal`: its reward with the sign as printed; `siirl`: reward and references of the
            released code; `loo`: successes are measured as failures are, by references that leave out their own group.
        references: a name of `references.parse_references`; "": the profile's (dbscan-auto, dbscan-auto, siirl, knn3).
        value: step value R, a name of `value.VALUES`; "": progress.
        alpha: ceiling of a failure's reward and of `reward`; `siirl` has its own, 0.6.
        neighbours: windows averaged by `knn-time` and `knn-return`.
        skip_tasks: tasks that are left out; everything of theirs is NaN.

    Raises:
        UsageError: an unknown name, alpha outside [0, 1], fewer than one neighbour.
    """

    profile: Profile = "paper"
    references: str = ""
    value: str = ""
    alpha: float = ALPHA
    neighbours: int = 10
    skip_tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.profile not in get_args(Profile):
            raise UsageError(f"no profile {self.profile!r}; there are: {', '.join(get_args(Profile))}")
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha {self.alpha} must be at least 0, where the reward is the label, and at most 1")
        if self.neighbours < 1:
            raise UsageError(f"neighbours {self.neighbours} must be at least 1")
        parse_references(self.reference_name)
        object.__setattr__(self, "references", current(self.references, REFERENCES))
        object.__setattr__(self, "value", parse_value(self.value) if self.value else "")

    @property
    def reference_name(self) -> str:
        """The reference strategy, the profile's own where none was asked for."""
        return self.references or DEFAULT_REFERENCES[self.profile]

    @property
    def value_name(self) -> str:
        """The step value, progress where none was asked for."""
        return self.value or "progress"


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything a dataset's scoring yields. E episodes, in order.

    Attributes:
        curves: one per episode.
        rewards: (E,) trajectory reward (eq. 5); NaN where the episode was left out or has no distance.
        references: by task, of all its successes (`loo` leaves each episode's group out of its own); a task without
            any (profile siirl, no success) is absent.
        warnings: what a reader should know, one line each.
        values: per episode (T,) step value R, held before the first window; NaN throughout where undefined.
        value_reasons: per episode why its value is NaN ("" where it is not).
        trajectory_advantage: (E,) rewards standardised over the task's episodes (eq. 6); NaN where the reward is.
        reference_episodes: by task, the episode_index of each row that `References.members` counts; empty where the
            references are another dataset's.
    """

    curves: tuple[Curve, ...]
    rewards: np.ndarray
    references: dict[str, References]
    warnings: tuple[str, ...] = ()
    values: tuple[np.ndarray, ...] = ()
    value_reasons: tuple[str, ...] = ()
    trajectory_advantage: np.ndarray = field(default_factory=lambda: np.zeros(0))
    reference_episodes: dict[str, np.ndarray] = field(default_factory=dict)


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


def loo_progress(distance: np.ndarray, d_ref: float) -> np.ndarray:
    """Profile `loo`, success and failure alike: 1 - d/d_ref; NaN for a constant video (more than one, equal, distance).

    Args:
        distance: (n,) of one episode.
        d_ref: one per task, the largest distance of any of its scored windows, so progress stays in [0, 1].
    """
    if d_ref <= 0.0 or (len(distance) > 1 and distance.max() <= distance.min()):
        return np.full_like(distance, np.nan)
    return 1.0 - distance / d_ref


def failure_rewards(distance: np.ndarray, alpha: float = ALPHA, literal: bool = False) -> np.ndarray:
    """Eq. 5 for the failures of one task: alpha * sigmoid(-(d - mean)/std), (n,) in (0, alpha).

    The paper prints a plus sign, which rewards distance and contradicts its text: only `literal` (profile
    `paper-literal`) takes it. `std` is the population's; where it is 0 (one failure) the standardised value is 0. A
    NaN distance gives NaN and counts in neither.
    """
    return window_rewards(distance, distance, alpha, literal)


def siirl_rewards(distance: np.ndarray) -> np.ndarray:
    """siiRL's reward of one task's failures: 0.6 * sigmoid(10 * (0.5 - minmax(d))), (n,) in [0.004, 0.596].

    Distances that span less than 1e-6 all count as 0.5: reward 0.3.
    """
    span = np.ptp(distance)
    flat = span < SIIRL_RANGE
    scaled = np.full(len(distance), 0.5) if flat else (distance - distance.min()) / span
    return SIIRL_CEILING * sigmoid(SIIRL_STEEPNESS * (SIIRL_OFFSET - scaled))


def dense_distance(ends: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Distances (or values) at every frame from the first window's end on, by PCHIP: (ends[-1] - ends[0] + 1,).

    PCHIP does not overshoot, and it never forces the curve to be monotone: a regress is signal.
    """
    if len(ends) == 1 or not np.isfinite(distance).all():
        return np.full(int(ends[-1] - ends[0]) + 1, distance[0] if len(ends) == 1 else np.nan)
    dense = PchipInterpolator(ends, distance)(np.arange(ends[0], ends[-1] + 1))
    dense[ends - ends[0]] = (
        distance  # exact where it was measured: a success is at distance 0 from itself, not at -1e-17
    )
    return np.clip(dense, distance.min(), distance.max())


def trajectory_advantages(rewards: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """A_i = (g_i - mu_g)/sigma_g over the episodes of the same task (eq. 6): (E,); std 0 gives 0, NaN stays NaN."""
    advantage = np.full(len(rewards), np.nan)
    names = np.array(tasks, dtype=object)
    for task in dict.fromkeys(tasks):
        advantage[names == task] = standardise(rewards[names == task])
    return advantage


@dataclass(frozen=True, eq=False)
class _Task:
    """The scored episodes of one task, aligned."""

    name: str
    places: np.ndarray  # (n,) positions among all episodes
    episodes: list[Episode]
    windows: list[WindowEmbeddings]
    success: np.ndarray  # (n,) bool
    groups: list[str]  # an episode without a group is a group of its own

    @property
    def ends(self) -> np.ndarray:
        """(S, D) whole-episode embeddings h_i of the successes."""
        return np.stack([own.embeddings[-1] for own, good in zip(self.windows, self.success, strict=True) if good])


@dataclass(frozen=True, eq=False)
class _TaskScores:
    """What one task yields, aligned with its episodes."""

    curves: list[Curve]
    rewards: np.ndarray
    values: list[np.ndarray]
    value_reasons: list[str]
    references: References | None
    warnings: list[str]


def score(
    episodes: Sequence[Episode],
    windows: Sequence[WindowEmbeddings | None],
    rules: Rules | None = None,
    external: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Score a dataset.

    Args:
        episodes: all labelled, any order, any mix of tasks.
        windows: their embeddings, aligned; None for an episode that is left out.
        rules: profile, references, step value; None: the paper's.
        external: by task, whole-episode embeddings (S, D) of another dataset's successes. Goes with the references
            "external" (and "external:NAME"), and only with them; then a task needs no success of its own.

    Raises:
        ScoringError: an episode is unlabelled, a task has no success (profile siirl: its failures get 0, as there), an
            embedding is zero or not finite, external references are missing for a task or of another width.
        UsageError: external references without the strategy for them, or the other way round.
    """
    rules = rules or Rules()
    strategy = parse_references(rules.reference_name)
    if strategy.external != (external is not None):
        raise UsageError("external reference embeddings and the references 'external' go together; give both or none")
    _check(episodes, windows)
    reasons = [SKIPPED_TASK if e.task in rules.skip_tasks else SKIPPED_EPISODE for e in episodes]
    curves = [_nan_curve(e, reason) for e, reason in zip(episodes, reasons, strict=True)]
    values = [np.full(e.length, np.nan) for e in episodes]
    rewards = np.full(len(episodes), np.nan)
    references: dict[str, References] = {}
    rows: dict[str, np.ndarray] = {}
    warnings: list[str] = []
    for name in dict.fromkeys(e.task for e in episodes if e.task not in rules.skip_tasks):
        task = _task(name, episodes, windows)
        own = _score_task(task, rules, strategy, external)
        for place, curve, value, reason in zip(task.places, own.curves, own.values, own.value_reasons, strict=True):
            curves[place], values[place], reasons[place] = curve, value, reason
        rewards[task.places] = own.rewards
        if own.references is not None:
            references[name] = own.references
            indices = [e.index for e, good in zip(task.episodes, task.success, strict=True) if good]
            rows[name] = np.array([] if strategy.external else indices, dtype=int)
        warnings += own.warnings
    advantage = trajectory_advantages(rewards, [e.task for e in episodes])
    return Scores(tuple(curves), rewards, references, tuple(warnings), tuple(values), tuple(reasons), advantage, rows)


def _task(name: str, episodes: Sequence[Episode], windows: Sequence[WindowEmbeddings | None]) -> _Task:
    rows = [
        (i, e, w) for i, (e, w) in enumerate(zip(episodes, windows, strict=True)) if e.task == name and w is not None
    ]
    return _Task(
        name,
        np.array([i for i, _, _ in rows], dtype=int),
        [e for _, e, _ in rows],
        [w for _, _, w in rows],
        np.array([bool(e.success) for _, e, _ in rows], dtype=bool),
        [e.group or f"episode {e.index}" for _, e, _ in rows],
    )


def _check(episodes: Sequence[Episode], windows: Sequence[WindowEmbeddings | None]) -> None:
    unlabelled = [episode.index for episode in episodes if episode.success is None]
    if unlabelled:
        shown = ", ".join(map(str, unlabelled[:10])) + (", ..." if len(unlabelled) > 10 else "")
        which = f"episode {shown} is" if len(unlabelled) == 1 else f"{len(unlabelled)} episodes ({shown}) are"
        raise ScoringError(
            f"{which} unlabelled; label with 'srpo-robot label DATASET' (keys), '--csv FILE' or '--all-success'"
        )
    for episode, own in zip(episodes, windows, strict=True):
        if own is None:
            continue
        bad = ~np.isfinite(own.embeddings).all(axis=1) | ~own.embeddings.any(axis=1)
        if bad.any():
            frame = int(own.ends[np.flatnonzero(bad)[0]])
            raise ScoringError(
                f"episode {episode.index}, window up to frame {frame}: the embedding is NaN or zero; "
                "look at the encoder and the video, or leave the episode out: --skip-bad-episodes"
            )


def _score_task(
    task: _Task, rules: Rules, strategy: Strategy, external: Mapping[str, np.ndarray] | None
) -> _TaskScores:
    references = _references(task, rules, strategy, external)
    distances = _distances(task, rules, strategy, references)
    curves = _curves(task, rules, distances, references)
    rewards = np.ones(len(task.episodes))
    failed = np.array([d[-1] for d, good in zip(distances, task.success, strict=True) if not good])
    rewards[~task.success] = _failure_rewards(failed, rules, references)
    values, reasons = _values(task, rules, curves, distances)
    warnings = _warnings(task, rules, references, failed[np.isfinite(failed)])
    warnings += _value_warnings(task, rules, reasons, distances)
    return _TaskScores(curves, rewards, values, reasons, references, warnings)


def _references(
    task: _Task, rules: Rules, strategy: Strategy, external: Mapping[str, np.ndarray] | None
) -> References | None:
    """References of all successes, or the external ones; None for a task without a success under siirl."""
    if external is not None:
        given = external.get(task.name)
        if given is None:
            raise ScoringError(
                f"task {task.name!r} has no external reference; there are: {', '.join(map(repr, external)) or 'none'}; "
                f"add some, or leave the task out: --skip-task {task.name!r}"
            )
        width = task.windows[0].embeddings.shape[1] if task.windows else given.shape[-1]
        if given.ndim != 2 or given.shape[1] != width or not given.any(axis=1).all():
            raise ScoringError(
                f"external references of task {task.name!r} have shape {given.shape}, expected (S, {width}) and no "
                "zero row; embed them with the same encoder"
            )
        return strategy(given)
    if task.success.any():
        return strategy(task.ends)
    if rules.profile == "siirl":
        return None
    raise ScoringError(
        f"task {task.name!r} has no success ({len(task.episodes)} failures): nothing to measure against; "
        f"label or record one, or leave the task out: --skip-task {task.name!r}"
    )


def _distances(task: _Task, rules: Rules, strategy: Strategy, references: References | None) -> list[np.ndarray]:
    """Per episode (n,) distance of its windows; NaN where there is nothing to measure against."""
    if references is None:
        return [np.full(len(own.ends), np.nan) for own in task.windows]
    if rules.profile != "loo":  # appendix B: a success is measured against its own end
        return [
            np.linalg.norm(own.embeddings - own.embeddings[-1], axis=-1)
            if good
            else references.distance(own.embeddings)
            for own, good in zip(task.windows, task.success, strict=True)
        ]
    left_out: dict[str, References | None] = {}
    if not strategy.external:  # another dataset holds none of these episodes
        ends = task.ends
        owners = np.array([g for g, good in zip(task.groups, task.success, strict=True) if good], dtype=object)
        for group in dict.fromkeys(owners):
            others = ends[owners != group]
            left_out[group] = strategy(others) if len(others) else None
    distances = []
    for own, group in zip(task.windows, task.groups, strict=True):
        outside = left_out.get(group, references)  # a group without a success leaves nothing out
        distances.append(np.full(len(own.ends), np.nan) if outside is None else outside.distance(own.embeddings))
    return distances


def _curves(task: _Task, rules: Rules, distances: list[np.ndarray], references: References | None) -> list[Curve]:
    finite = [d.max() for d in distances if np.isfinite(d).all()]
    d_ref = float(max(finite, default=np.nan))
    missing = NO_SUCCESS if references is None else NO_REFERENCE
    curves = []
    for episode, own, distance, good in zip(task.episodes, task.windows, distances, task.success, strict=True):
        dense = dense_distance(own.ends, distance)
        if rules.profile == "loo":
            progress = loo_progress(dense, d_ref)
        else:
            progress = (success_progress if good else failure_progress)(dense)
        reason = "" if np.isfinite(progress).all() else (ONE_WINDOW if len(own.ends) == 1 else CONSTANT)
        curves.append(_curve(episode, own.ends, dense, progress, reason if np.isfinite(dense).all() else missing))
    return curves


def _curve(episode: Episode, ends: np.ndarray, dense: np.ndarray, progress: np.ndarray, reason: str) -> Curve:
    scored = np.zeros(episode.length, dtype=bool)
    scored[ends] = True
    before = np.full(int(ends[0]), np.nan)
    return Curve(episode.index, np.concatenate([before, dense]), _held(ends, progress), scored, reason)


def _held(ends: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Values from the first window's end on -> (T,): before it the value is held, so there is no increment."""
    return np.concatenate([np.full(int(ends[0]), dense[0]), dense])


def _nan_curve(episode: Episode, reason: str) -> Curve:
    nothing = np.full(episode.length, np.nan)
    return Curve(episode.index, nothing, nothing.copy(), np.zeros(episode.length, dtype=bool), reason)


def _failure_rewards(distance: np.ndarray, rules: Rules, references: References | None) -> np.ndarray:
    if references is None or len(distance) == 0:
        return np.zeros(len(distance))  # siiRL: a task without a success rewards nothing
    if rules.profile == "siirl":
        return siirl_rewards(distance)
    return failure_rewards(distance, rules.alpha, literal=rules.profile == "paper-literal")


def _values(
    task: _Task, rules: Rules, curves: list[Curve], distances: list[np.ndarray]
) -> tuple[list[np.ndarray], list[str]]:
    """Per episode the step value (T,) and why it is NaN ("" where it is not)."""
    kind = rules.value_name
    if kind == "progress":
        return [curve.progress.copy() for curve in curves], [curve.reason for curve in curves]
    starts = [int(own.ends[0]) for own in task.windows]
    if kind == "reward":
        pool = _failed_windows(task, distances)
        literal = rules.profile == "paper-literal"
        dense = [
            window_rewards(c.distance[t:], pool, rules.alpha, literal) for c, t in zip(curves, starts, strict=True)
        ]
        reasons = [c.reason if np.isnan(c.distance[t]) else NO_FAILURE for c, t in zip(curves, starts, strict=True)]
    else:
        estimate = knn_time if kind == "knn-time" else knn_return
        times = [normalised_time(own.ends, e.length) for own, e in zip(task.windows, task.episodes, strict=True)]
        embeddings = [own.embeddings for own in task.windows]
        found = estimate(embeddings, times, task.success.tolist(), task.groups, rules.neighbours)
        dense = [dense_distance(own.ends, value) for own, value in zip(task.windows, found, strict=True)]
        reasons = [NO_NEIGHBOUR] * len(dense)
    values = [_held(own.ends, value) for own, value in zip(task.windows, dense, strict=True)]
    return values, ["" if np.isfinite(v).all() else reason for v, reason in zip(values, reasons, strict=True)]


def _failed_windows(task: _Task, distances: list[np.ndarray]) -> np.ndarray:
    """Distances of all measured windows of all failures, together."""
    failed = [d for d, good in zip(distances, task.success, strict=True) if not good]
    return np.concatenate(failed) if failed else np.zeros(0)


def _warnings(task: _Task, rules: Rules, references: References | None, failed: np.ndarray) -> list[str]:
    name, successes = task.name, int(task.success.sum())
    if references is None:
        count = len(task.success)
        return [f"{name!r}: no success, so its {count} failures get reward 0, as siiRL does, and no progress"]
    warnings = []
    if references.degenerate and references.strategy != "mean":  # a mean that was asked for is no news
        kind = "nearest success to their mean" if references.strategy == "medoid" else "mean"
        warnings.append(
            f"{name!r}: all {references.sizes[0]} successes form one cluster, so the reference is their {kind}; "
            "for varied layouts that is a weak reference"
        )
    if rules.profile == "loo" and len(_groups(task)) == 1 and not parse_references(rules.reference_name).external:
        what = "one success" if successes == 1 else f"{successes} successes, all of one group"
        warnings.append(f"{name!r}: {what}, so nothing is left to measure that group's episodes against")
    if len(failed) == 1:
        siirl = "distance counts as 0.5 and its reward is 0.3"
        paper = "standardised distance is 0 and its reward alpha/2"
        warnings.append(f"{name!r}: one failure, so its {siirl if rules.profile == 'siirl' else paper}")
    elif _all_equal(failed):
        warnings.append(f"{name!r}: all failures are equally far, so their rewards are equal")
    if not (~task.success).any():
        warnings.append(f"{name!r}: no failure, so nothing tells a good score from a bad one")
    return warnings


def _all_equal(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _groups(task: _Task) -> set[str]:
    """Groups that hold a success."""
    return {group for group, good in zip(task.groups, task.success, strict=True) if good}


def _value_warnings(task: _Task, rules: Rules, reasons: list[str], distances: list[np.ndarray]) -> list[str]:
    kind, warnings = rules.value_name, []
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
