"""Appendix A's table for any set of scorers side by side: the score under test, its ablations, nulls and rivals.

One row is a scorer: its metrics by task and their macro mean. Everything is made from embeddings, so a second run over
the same episodes costs seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.progress.evidence.baselines import frozen_from
from srpo_robot.progress.evidence.metrics import (
    ChunkCorrelation,
    Estimate,
    Resampling,
    TaskMetrics,
    all_metrics,
    chunk_correlation,
    drop_auc,
    final_progress,
    macro_mean,
    policy_ranking,
    tail_rise,
)
from srpo_robot.progress.score import SKIPPED_TASK, Rules, Scores, WindowEmbeddings, score
from srpo_robot.progress.value import VALUES
from srpo_robot.records import Episode

Windows = Sequence[WindowEmbeddings | None]
ALPHAS = (0.0, 0.3, 0.5, 0.8, 1.0)  # the paper's sweep
OWN = {
    "paper": "the score under test, profile paper: a success against its own end",
    "loo": "the score under test, profile loo: everyone against the others' ends",
}
ABLATIONS = {
    "nearest": "profile paper without clusters: every success is a centre",
    "external": "profile paper without self-reference: another dataset's successes",
}


@dataclass(frozen=True, eq=False)
class ScorerRow:
    """One scorer on one dataset.

    Attributes:
        name, meaning: what it is, in a word and in a line.
        null: it is a control that must fail or be beaten.
        tables: the metrics of each task.
        macro: by metric, the mean over tasks.
        ranking: Kendall's tau between policies' progress and success rate; NaN with a reason where there is none.
        tail: change of progress after everything stopped; None where nothing stands still.
        final: (E,) final progress.
    """

    name: str
    meaning: str
    null: bool
    tables: tuple[TaskMetrics, ...]
    macro: dict[str, Estimate]
    ranking: Estimate
    tail: Estimate | None
    scores: Scores

    @property
    def final(self) -> np.ndarray:
        """Progress at the last frames (E,)."""
        return final_progress(self.scores.curves)


@dataclass(frozen=True)
class AlphaRow:
    """The reward at one alpha (eq. 5): what it leaves between labels and among failures.

    Attributes:
        alpha: ceiling of a failure's reward.
        failure, highest_failure: mean and largest reward of failures.
        within: share of the trajectory advantage's variance that lies among failures, mean over tasks; at 0 they are
            all alike and the reward is the label.
    """

    alpha: float
    failure: float
    highest_failure: float
    within: float


def measure(
    name: str,
    meaning: str,
    episodes: Sequence[Episode],
    scores: Scores,
    null: bool = False,
    frozen: bool = False,
    policies: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> ScorerRow:
    """The row of one scorer.

    Args:
        episodes: all labelled.
        scores: aligned with them; tasks that were left out have no table.
        frozen: the video stood still from `frozen_from` on.
        policies: what moved the arm in each episode, "" where it is unknown; None: nothing is known.

    Raises:
        UnlabelledError: an episode has no label.
    """
    success = [episode.success for episode in episodes]
    kept = [i for i, curve in enumerate(scores.curves) if curve.reason != SKIPPED_TASK]
    names, curves = [episodes[i].task for i in kept], [scores.curves[i] for i in kept]
    tables = all_metrics(names, curves, [success[i] for i in kept], resampling)
    tail = None
    if frozen:
        long = [(c, frozen_from(e.length)) for e, c in zip(episodes, scores.curves, strict=True) if e.length > 1]
        tail = tail_rise([c for c, _ in long], [start for _, start in long], resampling)
    ranking = policy_ranking(final_progress(scores.curves), success, policies or [""] * len(episodes))
    return ScorerRow(name, meaning, null, tables, macro_mean(tables), ranking, tail, scores)


def own_rows(
    episodes: Sequence[Episode],
    windows: Windows,
    rules: Rules,
    ablations: Sequence[str] = (),
    external: Mapping[str, np.ndarray] | None = None,
    policies: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> list[ScorerRow]:
    """The rows of the score under test: profiles `paper` and `loo`, then the ablations that were asked for.

    Args:
        rules: everything besides profile and references.
        ablations: of `ABLATIONS`; "external" needs `external`, embeddings by task (see `external_references`).

    Raises:
        UsageError: no such ablation, or "external" without references.
        ScoringError: as `score`.
    """
    unknown = [name for name in ablations if name not in ABLATIONS]
    if unknown:
        raise UsageError(f"no ablation {unknown[0]!r}; there are: {', '.join(ABLATIONS)}, alpha")
    if "external" in ablations and external is None:
        raise UsageError("the ablation 'external' measures against another dataset's successes; give --reference")
    rows = []
    for name in (*OWN, *ablations):
        profile, references = (name, "") if name in OWN else ("paper", name)
        own = replace(rules, profile=profile, references=references, value="")
        found = score(episodes, windows, own, external if name == "external" else None)
        label = name if name in OWN else f"paper, {name}"
        rows.append(measure(label, (OWN | ABLATIONS)[name], episodes, found, False, False, policies, resampling))
    return rows


def alpha_sweep(
    episodes: Sequence[Episode], windows: Windows, rules: Rules, alphas: Sequence[float] = ALPHAS
) -> list[AlphaRow]:
    """What alpha does to the reward of profile `paper`. It scales failures' rewards and changes no order among them."""
    rows = []
    for alpha in alphas:
        found = score(episodes, windows, replace(rules, profile="paper", references="", value="", alpha=alpha))
        failed = np.array([not e.success for e in episodes]) & np.isfinite(found.rewards)
        if not failed.any():
            raise ScoringError("no failure has a reward, so alpha changes nothing; label or record failures")
        rewards = found.rewards[failed]
        rows.append(AlphaRow(alpha, float(rewards.mean()), float(rewards.max()), _within(episodes, found.rewards)))
    return rows


def _within(episodes: Sequence[Episode], rewards: np.ndarray) -> float:
    """Share of the rewards' variance among failures, mean over the tasks that have any variance; NaN: none has."""
    shares = []
    for task in dict.fromkeys(e.task for e in episodes):
        rows = [i for i, e in enumerate(episodes) if e.task == task and np.isfinite(rewards[i])]
        own = rewards[rows]
        failed = own[[not episodes[i].success for i in rows]]
        total = float(((own - own.mean()) ** 2).sum()) if len(own) else 0.0
        if total > 0.0 and len(failed):
            shares.append(float(((failed - failed.mean()) ** 2).sum()) / total)
    return float(np.mean(shares)) if shares else float("nan")


# --- step values --------------------------------------------------------------------------------------------------


def step_values(
    episodes: Sequence[Episode], windows: Windows, rules: Rules, names: Sequence[str] = VALUES
) -> dict[str, tuple[np.ndarray, ...]]:
    """By value name, the step value R of every episode (T,), in profile `loo` (own group left out everywhere)."""
    loo = replace(rules, profile="loo", references="")
    return {name: score(episodes, windows, replace(loo, value=name)).values for name in names}


def worst_gains(values: Sequence[np.ndarray], horizon: int) -> np.ndarray:
    """The most negative gain over a full chunk of `horizon` frames in each episode (E,); NaN where there is no chunk.

    An episode in which something went wrong should have a chunk in which the value fell; one in which all went well
    should not. It is what the labels alone can say about a step value.

    Raises:
        UsageError: a horizon below 1.
    """
    if horizon < 1:
        raise UsageError(f"horizon {horizon} must be at least 1")
    worst = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        gains = value[horizon:] - value[:-horizon]
        if len(gains) and np.isfinite(gains).all():
            worst[i] = gains.min()
    return worst


@dataclass(frozen=True)
class OracleRow:
    """One step value beside a simulator's oracle of progress.

    Attributes:
        value: of `value.VALUES`.
        chunks: correlation of its chunk gains with the oracle's.
        drop: AUC that the gain is lower at a drop than while a success carries; 0.5 is blind.
    """

    value: str
    chunks: ChunkCorrelation
    drop: Estimate


def beside_oracle(
    values: Mapping[str, Sequence[np.ndarray]],
    stage: Sequence[np.ndarray],
    drops: Sequence[int | None],
    carrying: Sequence[np.ndarray],
    success: Sequence[bool | None],
    horizon: int,
    first: int,
    resampling: Resampling | None = None,
) -> list[OracleRow]:
    """How well each step value says what the simulator knows.

    Args:
        values: by name, per episode (T,).
        stage: per episode (T,), the oracle of progress.
        drops: per episode the first frame without the object; None: it was not dropped.
        carrying: per episode (T,) bool, frames in which the object is held.
        horizon: of a chunk [frames].
        first: frames before this one do not count: the value is held there.
    """
    rows = []
    for name, own in values.items():
        gains = [_full_gains(value, horizon) for value in own]
        rows.append(
            OracleRow(
                name,
                chunk_correlation(own, stage, success, horizon, first, resampling),
                drop_auc(gains, drops, carrying, success, resampling),
            )
        )
    return rows


def _full_gains(value: np.ndarray, horizon: int) -> np.ndarray:
    """R[t+H] - R[t], (T,); NaN where no full chunk is left."""
    gains = np.full(len(value), np.nan)
    gains[: max(len(value) - horizon, 0)] = value[horizon:] - value[:-horizon]
    return gains
