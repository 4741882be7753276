"""The table of appendix A for the score under test, its ablations, negative controls and baselines.

One row is one scorer: its metrics by task and their macro mean. All rows are computed from stored embeddings, so a
second run over the same episodes takes seconds.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class ScorerRow:
    """Results of one scorer on one dataset.

    Attributes:
        name, meaning: short name, and a description of one line.
        control: True for a negative control.
        tables: metrics of each task.
        macro: by metric, the mean over tasks.
        ranking: Kendall's tau between the policies' progress and success rate. NaN with a reason if undefined.
        tail: change of progress after the video froze. None if the scorer freezes nothing.
        scores: curves and rewards of the episodes.
    """

    name: str
    meaning: str
    control: bool
    tables: tuple[TaskMetrics, ...]
    macro: dict[str, Estimate]
    ranking: Estimate
    tail: Estimate | None
    scores: Scores

    @property
    def final(self) -> np.ndarray:
        """Returns the progress at the last frames (E,)."""
        return final_progress(self.scores.curves)


@dataclass(frozen=True)
class AlphaRow:
    """Rewards at one alpha (eq. 5).

    Attributes:
        alpha: ceiling of a failure's reward.
        failure, highest_failure: mean and largest reward of failures.
        within: fraction of the trajectory advantage's variance that lies among failures, mean over tasks. At 0 all
            failures have the same reward, so the reward carries only the label.
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
    control: bool = False,
    frozen: bool = False,
    policies: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> ScorerRow:
    """Computes the row of one scorer.

    Args:
        name, meaning, control: see `ScorerRow`.
        episodes: labelled episodes.
        scores: scores of the episodes, in the same order. Skipped tasks get no table.
        frozen: True if the video is frozen from `frozen_from` on.
        policies: name of the policy that moved the arm in each episode, "" if unknown. None if all are unknown.
        resampling: see `metrics.separation`.

    Raises:
        UnlabelledError: an episode has no label.
    """
    success = [episode.success for episode in episodes]
    rows = [i for i, curve in enumerate(scores.curves) if curve.reason != SKIPPED_TASK]
    names, curves = [episodes[i].task for i in rows], [scores.curves[i] for i in rows]
    tables = all_metrics(names, curves, [success[i] for i in rows], resampling)
    tail = None
    if frozen:
        long = [(c, frozen_from(e.length)) for e, c in zip(episodes, scores.curves, strict=True) if e.length > 1]
        tail = tail_rise([c for c, _ in long], [start for _, start in long], resampling)
    ranking = policy_ranking(final_progress(scores.curves), success, policies or [""] * len(episodes))
    return ScorerRow(
        name=name,
        meaning=meaning,
        control=control,
        tables=tables,
        macro=macro_mean(tables),
        ranking=ranking,
        tail=tail,
        scores=scores,
    )


def own_rows(
    episodes: Sequence[Episode],
    windows: Windows,
    rules: Rules,
    ablations: Sequence[str] = (),
    external: Mapping[str, np.ndarray] | None = None,
    policies: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> list[ScorerRow]:
    """Computes the rows of the score under test: profiles `paper` and `loo`, then the requested ablations.

    Args:
        episodes, windows: labelled episodes and their windows.
        rules: rules of the score. Profile and references are replaced.
        ablations: names in `ABLATIONS`.
        external: embeddings by task for the ablation "external" (see `external_references`).
        policies, resampling: see `measure`.

    Raises:
        UsageError: an ablation is unknown, or "external" is requested without embeddings.
        ScoringError: raised by `score`.
    """
    unknown = [name for name in ablations if name not in ABLATIONS]
    if unknown:
        raise UsageError(f"no ablation {unknown[0]!r}; there are: {', '.join(ABLATIONS)}, alpha")
    if "external" in ablations and external is None:
        raise UsageError("the ablation 'external' measures against another dataset's successes; give --reference")
    rows = []
    for name in (*OWN, *ablations):
        profile, references = (name, "") if name in OWN else ("paper", name)
        row_rules = replace(rules, profile=profile, references=references, value="")
        scores = score(episodes, windows, row_rules, external if name == "external" else None)
        label = name if name in OWN else f"paper, {name}"
        rows.append(measure(label, (OWN | ABLATIONS)[name], episodes, scores, False, False, policies, resampling))
    return rows


def alpha_sweep(
    episodes: Sequence[Episode], windows: Windows, rules: Rules, alphas: Sequence[float] = ALPHAS
) -> list[AlphaRow]:
    """Computes rewards of profile `paper` for each alpha.

    Alpha scales the rewards of failures and does not change their order.

    Raises:
        ScoringError: no failure has a reward.
    """
    rows = []
    for alpha in alphas:
        scores = score(episodes, windows, replace(rules, profile="paper", references="", value="", alpha=alpha))
        failed = np.array([not e.success for e in episodes]) & np.isfinite(scores.rewards)
        if not failed.any():
            raise ScoringError("no failure has a reward, so alpha changes nothing; label or record failures")
        rewards = scores.rewards[failed]
        rows.append(AlphaRow(alpha, float(rewards.mean()), float(rewards.max()), _within(episodes, scores.rewards)))
    return rows


def _within(episodes: Sequence[Episode], rewards: np.ndarray) -> float:
    """Returns the fraction of reward variance among failures, mean over the tasks with variance. NaN if none has."""
    fractions = []
    for task in dict.fromkeys(e.task for e in episodes):
        rows = [i for i, e in enumerate(episodes) if e.task == task and np.isfinite(rewards[i])]
        task_rewards = rewards[rows]
        failed = task_rewards[[not episodes[i].success for i in rows]]
        total = float(((task_rewards - task_rewards.mean()) ** 2).sum()) if len(task_rewards) else 0.0
        if total > 0.0 and len(failed):
            fractions.append(float(((failed - failed.mean()) ** 2).sum()) / total)
    return float(np.mean(fractions)) if fractions else float("nan")


# --- step values --------------------------------------------------------------------------------------------------


def step_values(
    episodes: Sequence[Episode], windows: Windows, rules: Rules, names: Sequence[str] = VALUES
) -> dict[str, tuple[np.ndarray, ...]]:
    """Returns the step value R of every episode (T,), by value name.

    The profile is `loo`: an episode is never measured against its own group.
    """
    loo = replace(rules, profile="loo", references="")
    return {name: score(episodes, windows, replace(loo, value=name)).values for name in names}


def worst_gains(values: Sequence[np.ndarray], horizon: int) -> np.ndarray:
    """Returns each episode's most negative gain over a full chunk of `horizon` frames (E,). NaN if it has no chunk.

    The value should fall in some chunk of a failed episode, and in no chunk of a good one. The labels alone can test
    a step value no further than this.

    Raises:
        UsageError: the horizon is below 1.
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
    """One step value compared with a simulator's oracle of progress.

    Attributes:
        value: name of the step value, one of `value.VALUES`.
        chunks: correlation of its chunk gains with the chunk gains of the oracle.
        drop: AUC that the gain is lower at a drop than while a success carries the object. 0.5 is chance.
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
    """Compares each step value with the simulator's oracle.

    Args:
        values: by name, the step value of each episode (T,).
        stage: per episode (T,), the oracle of progress.
        drops: per episode, the first frame without the object. None if it was not dropped.
        carrying: per episode (T,) bool, True in frames in which the object is held.
        success: label of each episode.
        horizon: chunk length [frames].
        first: first frame that counts. Before it, the value is padded with its first number.
        resampling: see `metrics.separation`.
    """
    rows = []
    for name, episode_values in values.items():
        gains = [_full_gains(value, horizon) for value in episode_values]
        rows.append(
            OracleRow(
                name,
                chunk_correlation(episode_values, stage, success, horizon, first, resampling),
                drop_auc(gains, drops, carrying, success, resampling),
            )
        )
    return rows


def _full_gains(value: np.ndarray, horizon: int) -> np.ndarray:
    """Returns R[t+H] - R[t], (T,). NaN if fewer than H frames follow."""
    gains = np.full(len(value), np.nan)
    gains[: max(len(value) - horizon, 0)] = value[horizon:] - value[:-horizon]
    return gains
