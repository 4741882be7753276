"""Metrics of the Progress Reward Benchmark (arXiv 2511.15605, appendix A) with intervals, in pure numpy.

Every statistic is a function of counts: how often each episode is drawn as a success and as a failure. The sample, a
bootstrap resample and a permutation of the labels are rows of one matrix, so a thousand resamples cost a few matrix
products. An undefined metric is NaN with a reason, and macro means count it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import rel_entr
from scipy.stats import kendalltau, spearmanr

from srpo_robot.errors import UnlabelledError, UsageError
from srpo_robot.records import Curve

SEPARATION = ("auc", "mmd", "mmd_unbiased", "js", "smd", "hedges_g")  # final progress, success against failure
METRICS = ("sc", "mono", *SEPARATION)
TESTED = ("auc", "mmd", "js", "smd")  # metrics with a permutation test
JS_BINS = 10
ROUNDING = 1e-12  # numbers are equal if they differ by less than this, relative to their size

NO_SUCCESS = "no success with a final progress"
NO_FAILURE = "no failure with a final progress"
NO_CURVE = "no success has two scored windows that differ"
NO_STEP = "no success has two scored windows"
NO_SPREAD = "no spread within the labels: the pooled standard deviation is 0"
TOO_FEW = "too few episodes: {need}"
OUTSIDE = "a final progress is outside [0, 1], where the histogram ends"
FEW_POLICIES = "episodes of {count} policies; a ranking needs 3 or more"
TIED_POLICIES = "all policies have the same {quantity}: there is no order to agree with"
NO_GAIN = "the gain of the score or of the oracle is constant, or the episode is shorter than the horizon"
NO_DROP = "no failure with a drop"
NO_CARRY = "no success with a carrying frame"
NO_TASK = "no task defines it"


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap and of the permutation test.

    Attributes:
        resamples: number of bootstrap resamples. 0 gives no intervals.
        permutations: number of permutations of the labels within a task. 0 gives no p values.
        confidence: confidence of the percentile interval.
        seed: seed of both. Each task has its own random stream, so the order of tasks does not matter.

    Raises:
        UsageError: a number is negative, or the confidence is outside (0, 1).
    """

    resamples: int = 1000
    permutations: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.permutations < 0 or self.seed < 0 or not 0.0 < self.confidence < 1.0:
            raise UsageError(f"{self}: numbers must be 0 or more and the confidence between 0 and 1, for example 0.95")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number with its uncertainty.

    Attributes:
        value: the number. NaN if it is undefined.
        reason: why the value is NaN. Empty if it is defined.
        undefined: number of episodes that are left out because they are undefined. For a macro mean: number of tasks.
        low, high: percentile bootstrap interval over episodes, stratified by label. NaN if no interval was requested,
            if a label has a single episode, or if fewer than half of the resamples are defined. The bias of MMD and
            JS is upwards in every resample again, so near 0 the interval may lie above the value. Use p there.
        p: one-sided permutation p value (at least as large), (1 + #)/(1 + n). Only labels are permuted. The scores
            stay, and references are not rebuilt. A permutation with an undefined statistic counts as at least as large.
        null: mean of the statistic under the null hypothesis: the value for identical samples of these sizes.
    """

    value: float
    reason: str = ""
    undefined: int = 0
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    null: float = math.nan


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskMetrics:
    """Metrics of one task.

    Attributes:
        task: name of the task.
        successes, failures: number of episodes that have a final progress.
        left_out: number of episodes without a final progress. They are in no metric.
        estimates: by metric. The keys are a subset of `METRICS`.
        draws: by metric, the bootstrap values (resamples,). Macro means use them.
    """

    task: str
    successes: int
    failures: int
    left_out: int
    estimates: dict[str, Estimate]
    draws: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ChunkCorrelation:
    """Pearson correlation of a step value's chunk gain with the chunk gain of the oracle.

    Attributes:
        success, failure: mean over the successes and over the failures.
        pooled: one correlation over the chunks of all episodes.
    """

    success: Estimate
    failure: Estimate
    pooled: Estimate


# --- one number from two samples ----------------------------------------------------------------------------------


def auc(success: np.ndarray, failure: np.ndarray) -> float:
    """Computes ROC-AUC: how often a success scores above a failure. A tie counts half. NaN if a sample is empty."""
    return _alone(_auc, success, failure, 1)


def mmd(success: np.ndarray, failure: np.ndarray, unbiased: bool = False) -> float:
    """Computes the squared maximum mean discrepancy: the biased V-statistic in [0, 2), or the unbiased U-statistic.

    The unbiased one may be negative. The kernel is RBF, exp(-gamma d^2), with gamma = 1/median of the squared distances
    of all pairs in both samples together. The median leaves out pairs of equal values. In profile `paper` every success
    ends at exactly 1, and with many of them the median would be 0. Uses 8 n^2 bytes of memory. NaN if a sample is empty
    (unbiased: if it has fewer than two values).
    """
    return _alone(_mmd_unbiased, success, failure, 2) if unbiased else _alone(_mmd, success, failure, 1)


def js(success: np.ndarray, failure: np.ndarray) -> float:
    """Computes the Jensen-Shannon divergence of two histograms of 10 bins on [0, 1]. Natural logarithm: in [0, ln 2].

    It is the square of scipy's `jensenshannon`, which is a distance. NaN if a sample is empty or leaves [0, 1].
    """
    both = np.concatenate([success, failure])
    return _alone(_js, success, failure, 1) if _in_unit(both) else math.nan


def smd(success: np.ndarray, failure: np.ndarray) -> float:
    """Computes the standardised mean difference (Cohen's d): (mean_s - mean_f)/pooled sd, ddof 1.

    The pooled variance weighs both samples by their degrees of freedom. NaN if it is 0 or if a sample is empty.
    """
    return _alone(_smd, success, failure, 1)


def hedges_g(success: np.ndarray, failure: np.ndarray) -> float:
    """Computes SMD with Hedges' (1981) correction for small samples, 1 - 3/(4 df - 1).

    NaN for fewer than 4 episodes, because the correction is 0 at 3.
    """
    return _alone(_hedges, success, failure, 1) if len(success) + len(failure) >= 4 else math.nan


def spearman(curve: Curve) -> float:
    """Computes SC of one episode (eq. 10): Spearman correlation of time and progress. NaN if progress is constant.

    The paper's equation prints Pearson, but its text says Spearman. Only scored windows count, because frames between
    windows are interpolated.
    """
    frames = np.flatnonzero(curve.scored)
    progress = curve.progress[frames]
    if len(frames) < 2 or not np.isfinite(progress).all() or _constant(progress):
        return math.nan
    return float(np.asarray(spearmanr(frames, progress)[0]))


def monotonicity(curve: Curve) -> float:
    """Computes Mono of one episode: the fraction of steps between scored windows in which progress rises.

    A tie is not a rise. NaN if there is no step.
    """
    progress = curve.progress[curve.scored]
    if len(progress) < 2 or not np.isfinite(progress).all():
        return math.nan
    return float((np.diff(progress) > 0).mean())


def final_progress(curves: Sequence[Curve]) -> np.ndarray:
    """Returns the progress at each episode's last frame, (E,). NaN if it is undefined."""
    return np.array([curve.progress[-1] for curve in curves], dtype=np.float64)


# --- tables -------------------------------------------------------------------------------------------------------


def separation(
    final: np.ndarray, success: Sequence[bool | None], resampling: Resampling | None = None, task: str = ""
) -> TaskMetrics:
    """Computes the metrics `SEPARATION` of one task: how well final progress separates success from failure.

    Args:
        final: (E,) final progress, or any score. NaN is in no metric, and `left_out` counts it.
        success: (E,) labels.
        resampling: settings of intervals and p values. None uses the defaults.
        task: name of the task. It seeds the draws.

    Raises:
        UnlabelledError: a label is None.
    """
    resampling = resampling or Resampling()
    labels = _labels(success)
    known = np.isfinite(final)
    x, label = np.asarray(final, dtype=np.float64)[known], labels[known]
    successes, failures, left_out = int(label.sum()), int((~label).sum()), int((~known).sum())
    rng = _stream(resampling, task)
    resampled = _bootstrap(label, resampling.resamples, rng)
    permuted = _permutations(label, resampling.permutations, rng)
    estimates: dict[str, Estimate] = {}
    draws: dict[str, np.ndarray] = {}
    for name in SEPARATION:
        reason = _undefined_reason(name, x, successes, failures)
        if reason:
            estimates[name] = _undefined(reason, left_out)
            continue
        estimates[name], draws[name] = _estimate(name, x, label, resampled, permuted, resampling, left_out)
    return TaskMetrics(
        task=task, successes=successes, failures=failures, left_out=left_out, estimates=estimates, draws=draws
    )


def task_metrics(
    task: str, curves: Sequence[Curve], success: Sequence[bool | None], resampling: Resampling | None = None
) -> TaskMetrics:
    """Computes all metrics of one task from one curve per episode. Other arguments and errors: see `separation`."""
    resampling = resampling or Resampling()
    labels = _labels(success)
    if len(curves) != len(labels):
        raise ValueError(f"{len(curves)} curves, {len(labels)} labels")
    table = separation(final_progress(curves), success, resampling, task)
    winners = [curve for curve, label in zip(curves, labels, strict=True) if label]
    shapes = {"sc": ([spearman(c) for c in winners], NO_CURVE), "mono": ([monotonicity(c) for c in winners], NO_STEP)}
    estimates: dict[str, Estimate] = {}
    draws: dict[str, np.ndarray] = {}
    for name, (values, reason) in shapes.items():
        estimates[name], draws[name] = _mean(
            np.array(values), reason if winners else NO_SUCCESS, resampling, f"{task} {name}"
        )
    return replace(table, estimates=estimates | table.estimates, draws=draws | table.draws)


def all_metrics(
    tasks: Sequence[str],
    curves: Sequence[Curve],
    success: Sequence[bool | None],
    resampling: Resampling | None = None,
) -> tuple[TaskMetrics, ...]:
    """Computes `task_metrics` of every task, in the order of their first episodes. `tasks`: one name per episode."""
    tables = []
    for name in dict.fromkeys(tasks):
        rows = [i for i, task in enumerate(tasks) if task == name]
        tables.append(task_metrics(name, [curves[i] for i in rows], [success[i] for i in rows], resampling))
    return tuple(tables)


def macro_mean(tables: Sequence[TaskMetrics], confidence: float = 0.95) -> dict[str, Estimate]:
    """Returns, by metric, the mean over the tasks that define it.

    `undefined` counts the other tasks, and `reason` is the reason of the first of them. The interval is the interval
    of the mean, with each task resampled separately. There is no p value.
    """
    result = {}
    for name in METRICS:
        measured = [table for table in tables if name in table.estimates]
        defined = [table for table in measured if math.isfinite(table.estimates[name].value)]
        missing = len(measured) - len(defined)
        reason = next((t.estimates[name].reason for t in measured if t not in defined), NO_TASK)
        if not measured:
            continue
        if not defined:
            result[name] = _undefined(reason, missing)
            continue
        draws = [t.draws.get(name, np.zeros(0)) for t in defined]
        low, high = _interval(_mean_of_draws(draws), confidence)
        null = float(np.mean([t.estimates[name].null for t in defined]))
        value = float(np.mean([t.estimates[name].value for t in defined]))
        result[name] = Estimate(
            value=value, reason=reason if missing else "", undefined=missing, low=low, high=high, null=null
        )
    return result


def auc_difference(
    first: np.ndarray, second: np.ndarray, success: Sequence[bool | None], resampling: Resampling | None = None
) -> Estimate:
    """Returns the AUC of one score minus the AUC of another on the same episodes, with a paired interval.

    Every resample is used for both scores. A score beats a negative control if this interval is above 0. An episode
    that lacks one of the scores is left out of both, and counted.
    """
    resampling = resampling or Resampling()
    labels, known = _labels(success), np.isfinite(first) & np.isfinite(second)
    a, b, label = first[known], second[known], labels[known]
    left_out = int((~known).sum())
    reason = _undefined_reason("auc", a, int(label.sum()), int((~label).sum()))
    if reason:
        return _undefined(reason, left_out)
    sample = _sample(label)
    resampled = _bootstrap(label, resampling.resamples, _stream(resampling, "difference"))
    value = float((_auc(a, *sample) - _auc(b, *sample))[0])
    return _with_interval(value, left_out, _auc(a, *resampled) - _auc(b, *resampled), resampling.confidence)


def policy_ranking(final: np.ndarray, success: Sequence[bool | None], policy: Sequence[str]) -> Estimate:
    """Computes Kendall's tau-b between mean final progress and success rate of the policies. `p` is two-sided (scipy).

    Args:
        final: (E,) final progress. An episode with NaN is in neither mean.
        success: (E,) labels.
        policy: (E,) name of the policy that moved the arm, "" if unknown. Unknown ones are left out and counted.
    """
    labels, names = _labels(success), np.array(policy, dtype=object)
    known = np.isfinite(final) & (names != "")
    left_out = int((~known).sum())
    policies = sorted(set(names[known]))
    if len(policies) < 3:
        return _undefined(FEW_POLICIES.format(count=len(policies)), left_out)
    progress = np.array([final[known & (names == name)].mean() for name in policies])
    rate = np.array([labels[known & (names == name)].mean() for name in policies])
    for quantity, values in (("mean final progress", progress), ("success rate", rate)):
        if _constant(values):
            return _undefined(TIED_POLICIES.format(quantity=quantity), left_out)
    tau, p = kendalltau(progress, rate)
    return Estimate(value=float(np.asarray(tau)), undefined=left_out, p=float(np.asarray(p)))


# --- step values --------------------------------------------------------------------------------------------------


def chunk_correlation(
    values: Sequence[np.ndarray],
    oracle: Sequence[np.ndarray],
    success: Sequence[bool | None],
    horizon: int,
    first: int = 0,
    resampling: Resampling | None = None,
) -> ChunkCorrelation:
    """Computes the Pearson correlation of chunk gains R[t+H] - R[t] of a step value with the gains of the oracle.

    The correlation is computed within each episode and averaged over successes and over failures. `pooled` is one
    correlation over all chunks of all episodes. If the gain of an episode (or of its oracle) is constant, the episode
    has no correlation and is counted as undefined. Its chunks stay in `pooled`.

    Args:
        values: per episode (T_i,) step value. Episodes with NaN are left out.
        oracle: per episode (T_i,) true progress.
        success: label of each episode.
        horizon: chunk length H [frames].
        first: first frame of the first chunk. Pass `min_window`: before the first window the value is padded.
        resampling: settings of the intervals. Whole episodes are resampled.
    """
    if horizon < 1 or first < 0:
        raise UsageError(f"horizon {horizon} must be at least 1 and the first frame {first} 0 or more")
    resampling = resampling or Resampling()
    labels = _labels(success)
    gains = [_gains(r, o, horizon, first) for r, o in zip(values, oracle, strict=True)]
    correlations = np.array([_pearson(*gain) for gain in gains])
    successes, _ = _mean(correlations[labels], NO_GAIN if labels.any() else NO_SUCCESS, resampling, "chunk success")
    failures, _ = _mean(correlations[~labels], NO_GAIN if (~labels).any() else NO_FAILURE, resampling, "chunk failure")
    return ChunkCorrelation(successes, failures, _pooled(gains, labels, resampling))


def drop_auc(
    gains: Sequence[np.ndarray],
    drops: Sequence[int | None],
    carrying: Sequence[np.ndarray | None],
    success: Sequence[bool | None],
    resampling: Resampling | None = None,
) -> Estimate:
    """Computes the AUC that the gain G at the drop of a failure is lower than G of successes while they carry.

    0.5 means that the value does not notice drops, 0 that it rewards them. The gain of a drop is G at `drop` - 1, the
    last frame that still holds the object. The actions of that chunk let it fall. At `drop` it already lies there.

    Args:
        gains: per episode (T_i,) G, for example from `awr.advantage.chunk_gain`.
        drops: per episode, the first frame without the object. None if there is no drop. Drops of successes are
            ignored.
        carrying: per episode (T_i,) bool, True in frames that carry the object. Failures are ignored.
        success: label of each episode.
        resampling: settings of the interval. Whole episodes are resampled, because frames of one success are alike.
    """
    resampling = resampling or Resampling()
    labels = _labels(success)
    drop_gains = [g[max(d - 1, 0)] for g, d, won in zip(gains, drops, labels, strict=True) if not won and d is not None]
    carry_gains = [g[c] for g, c, won in zip(gains, carrying, labels, strict=True) if won and c is not None]
    carry_gains = [g[np.isfinite(g)] for g in carry_gains]
    at_drop, carried = np.array(drop_gains)[np.isfinite(drop_gains)], [g for g in carry_gains if len(g)]
    left_out = len(drop_gains) - len(at_drop)
    if not len(at_drop) or not carried:
        return _undefined(NO_CARRY if len(at_drop) else NO_DROP, left_out)
    wins = np.stack([_lower(at_drop, frames) for frames in carried], axis=1)  # (drops, successes), summed over frames
    frames = np.array([len(g) for g in carried], dtype=np.float64)

    def rate(failed: np.ndarray, won: np.ndarray) -> np.ndarray:
        return ((failed @ wins) * won).sum(axis=1) / (failed.sum(axis=1) * (won @ frames))

    value = float(rate(np.ones((1, len(at_drop))), np.ones((1, len(carried))))[0])
    rng = _stream(resampling, "drop")
    if not resampling.resamples or min(wins.shape) < 2:
        return Estimate(value=value, undefined=left_out)
    draws = rate(*(_multinomial(n, resampling.resamples, rng) for n in wins.shape))
    return _with_interval(value, left_out, draws, resampling.confidence)


def tail_rise(curves: Sequence[Curve], starts: Sequence[int], resampling: Resampling | None = None) -> Estimate:
    """Computes the change of progress after the video froze: the mean of p at the end minus p at `starts`.

    It is for the negative control `frozen-tail`. A trustworthy score gives 0. `starts`: first frozen frame of each
    episode.
    """
    resampling = resampling or Resampling()
    rises = [curve.progress[-1] - curve.progress[start] for curve, start in zip(curves, starts, strict=True)]
    return _mean(np.array(rises, dtype=np.float64), "no episode with a progress", resampling, "tail")[0]


# --- statistics of counts: x (n,) in any order, s and f (R, n) how often each value is a success and a failure --------


def _auc(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Computes AUC by ranks. Equal values share one rank, so a row costs n and not successes times failures."""
    if not len(s):
        return np.zeros(0)
    order = np.argsort(x)
    ranks = np.flatnonzero(np.concatenate([[True], np.diff(x[order]) > 0]))
    successes, failures = (np.add.reduceat(counts[:, order], ranks, axis=1) for counts in (s, f))
    below = np.cumsum(failures, axis=1) - 0.5 * failures
    return (successes * below).sum(axis=1) / (s.sum(axis=1) * f.sum(axis=1))


def _kernel_sums(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums the kernel over pairs: success-success, failure-failure, success-failure, each (R,).

    gamma comes from the sample and is the same for all resamples.
    """
    squared = (x[:, None] - x) ** 2
    positive = squared[squared > 0]
    kernel = np.exp(-squared / np.median(positive)) if len(positive) else np.ones_like(squared)
    left, right = s @ kernel, f @ kernel
    return (left * s).sum(axis=1), (right * f).sum(axis=1), (left * f).sum(axis=1)


def _mmd(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    ss, ff, sf = _kernel_sums(x, s, f)
    n, m = s.sum(axis=1), f.sum(axis=1)
    return np.maximum(ss / n**2 + ff / m**2 - 2.0 * sf / (n * m), 0.0)  # a squared norm: below 0 only by rounding


def _mmd_unbiased(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Computes `_mmd` without the pair of each draw with itself (kernel 1). An episode drawn twice is two draws."""
    ss, ff, sf = _kernel_sums(x, s, f)
    n, m = s.sum(axis=1), f.sum(axis=1)
    return (ss - n) / (n * (n - 1)) + (ff - m) / (m * (m - 1)) - 2.0 * sf / (n * m)


def _js(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    edges = np.linspace(0.0, 1.0, JS_BINS + 1)[1:-1]
    bins = np.eye(JS_BINS)[np.digitize(x, edges)]
    p, q = (counts @ bins / counts.sum(axis=1, keepdims=True) for counts in (s, f))
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle).sum(axis=1) + rel_entr(q, middle).sum(axis=1)) / 2
    return np.clip(divergence, 0.0, math.log(2.0))


def _smd(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Computes SMD. NaN if the pooled sd is 0."""
    n, m = s.sum(axis=1), f.sum(axis=1)
    mean_s, mean_f = s @ x / n, f @ x / m
    squares = (s * (x - mean_s[:, None]) ** 2).sum(axis=1) + (f * (x - mean_f[:, None]) ** 2).sum(axis=1)
    sd = np.sqrt(squares / np.maximum(n + m - 2, 1))
    flat = (sd <= ROUNDING * np.abs(x).max(initial=0.0)) | (n + m < 3)
    return np.where(flat, np.nan, (mean_s - mean_f) / np.where(flat, 1.0, sd))


def _hedges(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    freedom = s.sum(axis=1) + f.sum(axis=1) - 2
    return _smd(x, s, f) * (1.0 - 3.0 / (4.0 * freedom - 1.0))


Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_STATISTICS: dict[str, Statistic] = {
    "auc": _auc,
    "mmd": _mmd,
    "mmd_unbiased": _mmd_unbiased,
    "js": _js,
    "smd": _smd,
    "hedges_g": _hedges,
}


def _alone(statistic: Statistic, success: np.ndarray, failure: np.ndarray, need: int) -> float:
    """Computes the statistic of two samples. NaN if one has fewer than `need` values."""
    x = np.concatenate([success, failure]).astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("a sample has a value that is not finite; leave it out and say so")
    if min(len(success), len(failure)) < need:
        return math.nan
    return float(statistic(x, *_sample(np.arange(len(x)) < len(success)))[0])


def _estimate(
    name: str,
    x: np.ndarray,
    label: np.ndarray,
    resampled: tuple[np.ndarray, np.ndarray],
    permuted: tuple[np.ndarray, np.ndarray],
    resampling: Resampling,
    left_out: int,
) -> tuple[Estimate, np.ndarray]:
    """Computes one metric and its bootstrap draws."""
    statistic = _STATISTICS[name]
    value = float(statistic(x, *_sample(label))[0])
    if math.isnan(value):
        return _undefined(NO_SPREAD, left_out), np.zeros(0)
    draws = statistic(x, *resampled)
    p = null = math.nan
    if name in TESTED and len(permuted[0]):
        chance = statistic(x, *permuted)
        p = float((1 + np.sum(~(chance < value - ROUNDING * max(1.0, abs(value))))) / (1 + len(chance)))
        null = float(chance[np.isfinite(chance)].mean()) if np.isfinite(chance).any() else math.nan
    return replace(_with_interval(value, left_out, draws, resampling.confidence), p=p, null=null), draws


def _undefined(reason: str, left_out: int) -> Estimate:
    return Estimate(value=math.nan, reason=reason, undefined=left_out)


def _with_interval(value: float, left_out: int, draws: np.ndarray, confidence: float) -> Estimate:
    low, high = _interval(draws, confidence)
    return Estimate(value=value, undefined=left_out, low=low, high=high)


def _undefined_reason(name: str, x: np.ndarray, successes: int, failures: int) -> str:
    """Returns the reason why a metric of these samples is undefined, or an empty string if it may be defined."""
    if not successes or not failures:
        return NO_FAILURE if successes else NO_SUCCESS
    if name == "js" and not _in_unit(x):
        return OUTSIDE
    need, enough = {
        "mmd_unbiased": ("two of each label", min(successes, failures) >= 2),
        "smd": ("three", successes + failures >= 3),
        "hedges_g": ("four", successes + failures >= 4),
    }.get(name, ("", True))
    return "" if enough else TOO_FEW.format(need=need)


# --- drawing ------------------------------------------------------------------------------------------------------


def _stream(resampling: Resampling, name: str) -> np.random.Generator:
    return np.random.default_rng([resampling.seed, zlib.crc32(name.encode())])


def _sample(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of the sample itself, (1, n) each."""
    return label[None].astype(np.float64), (~label)[None].astype(np.float64)


def _multinomial(n: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Counts how often each of `n` episodes is drawn in n draws with replacement: (rows, n)."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=rows).astype(np.float64)


def _bootstrap(label: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws resamples, stratified by label, (rows, n) each. Draws none if a label has fewer than two episodes."""
    rows = rows if min(label.sum(), (~label).sum()) >= 2 else 0
    s, f = np.zeros((rows, len(label))), np.zeros((rows, len(label)))
    if rows:
        s[:, label] = _multinomial(int(label.sum()), rows, rng)
        f[:, ~label] = _multinomial(int((~label).sum()), rows, rng)
    return s, f


def _permutations(label: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Permutes the labels, (rows, n) each."""
    s = rng.permuted(np.tile(label, (rows, 1)), axis=1).astype(np.float64)
    return s, 1.0 - s


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Returns percentiles of the defined draws. NaN if fewer than half of the draws are defined."""
    defined = draws[np.isfinite(draws)]
    if len(defined) == 0 or 2 * len(defined) < len(draws):
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _mean(values: np.ndarray, reason: str, resampling: Resampling, name: str) -> tuple[Estimate, np.ndarray]:
    """Returns the mean of the defined values and its bootstrap draws. `reason` is used if no value is defined."""
    defined = values[np.isfinite(values)]
    left_out = len(values) - len(defined)
    if len(defined) == 0:
        return _undefined(reason, left_out), np.zeros(0)
    draws = np.zeros(0)
    if len(defined) >= 2 and resampling.resamples:
        counts = _multinomial(len(defined), resampling.resamples, _stream(resampling, name))
        draws = counts @ defined / len(defined)
    return _with_interval(float(defined.mean()), left_out, draws, resampling.confidence), draws


def _mean_of_draws(task_draws: Sequence[np.ndarray]) -> np.ndarray:
    """Averages draws over tasks (R,), each row over the tasks that define it. Empty if a task has no draws."""
    if any(len(draws) == 0 for draws in task_draws):
        return np.zeros(0)
    table = np.stack(task_draws)
    defined = np.isfinite(table)
    count = defined.sum(axis=0)
    total = np.where(defined, table, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _labels(success: Sequence[bool | None]) -> np.ndarray:
    """Returns labels (E,) bool. Raises UnlabelledError if one is None, because an unknown label is not a failure."""
    unknown = [i for i, label in enumerate(success) if label is None]
    if unknown:
        raise UnlabelledError(
            f"{len(unknown)} of {len(success)} episodes have no label (the first is number {unknown[0]}); "
            "label with 'srpo-robot label DATASET'"
        )
    return np.array([bool(label) for label in success], dtype=bool)


def _in_unit(x: np.ndarray) -> bool:
    return bool(np.all((x >= -ROUNDING) & (x <= 1.0 + ROUNDING)))


def _constant(values: np.ndarray) -> bool:
    return len(values) == 0 or bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


# --- chunks -------------------------------------------------------------------------------------------------------


def _gains(value: np.ndarray, oracle: np.ndarray, horizon: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns gains of value and oracle over full chunks from frame `first` on. Both are empty if a gain is NaN."""
    if len(value) != len(oracle):
        raise ValueError(f"a value of {len(value)} frames and an oracle of {len(oracle)}")
    pair = [r[first + horizon :] - r[first : max(len(r) - horizon, first)] for r in (value, oracle)]
    return (pair[0], pair[1]) if all(np.isfinite(g).all() for g in pair) else (np.zeros(0), np.zeros(0))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or _constant(x) or _constant(y):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _pooled(gains: list[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, resampling: Resampling) -> Estimate:
    """Computes one correlation over all chunks of all episodes. Episodes are resampled through their moments."""
    rows = [i for i, (x, _) in enumerate(gains) if len(x)]
    left_out = len(gains) - len(rows)
    x, y = (np.concatenate([gains[i][k] for i in rows] or [np.zeros(0)]) for k in (0, 1))
    value = _pearson(x, y)
    if math.isnan(value):
        return _undefined(NO_GAIN, left_out)
    centred = [(gains[i][0] - x.mean(), gains[i][1] - y.mean()) for i in rows]
    moments = np.array([[len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b] for a, b in centred])
    s, f = _bootstrap(labels[rows], resampling.resamples, _stream(resampling, "chunk pooled"))
    n, a, b, aa, bb, ab = ((s + f) @ moments).T
    variance = np.maximum(n * aa - a * a, 0.0) * np.maximum(n * bb - b * b, 0.0)
    flat = variance <= 0.0
    draws = np.where(flat, np.nan, (n * ab - a * b) / np.sqrt(np.where(flat, 1.0, variance)))
    return _with_interval(value, left_out, draws, resampling.confidence)


def _lower(at_drop: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Counts the values in `frames` that are above each value of `at_drop` (drops,). A tie counts half."""
    ordered = np.sort(frames)
    below, upto = np.searchsorted(ordered, at_drop, "left"), np.searchsorted(ordered, at_drop, "right")
    return len(ordered) - 0.5 * (below + upto)
