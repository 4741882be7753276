"""Progress Reward Benchmark (arXiv 2511.15605, appendix A): what a score is worth, with intervals. numpy in, numpy out.

Every statistic is a function of counts: how often each episode stands among the successes and among the failures. The
sample itself, a bootstrap resample and a permutation of the labels are then rows of one matrix, and a thousand of them
cost a few matrix products. What is undefined is NaN with a reason, and macro means count it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import rel_entr
from scipy.stats import kendalltau, spearmanr

from srpo_robot.errors import UnlabelledError, UsageError
from srpo_robot.records import Curve

SEPARATION = ("auc", "mmd", "mmd_unbiased", "js", "smd", "hedges_g")  # final progress, success against failure
METRICS = ("sc", "mono", *SEPARATION)
TESTED = ("auc", "mmd", "js", "smd")  # what gets a permutation test
JS_BINS = 10
ROUNDING = 1e-12  # numbers that differ by less, relative to their size, are equal

NO_SUCCESS = "no success with a final progress"
NO_FAILURE = "no failure with a final progress"
NO_CURVE = "no success has two scored windows that differ"
NO_STEP = "no success has two scored windows"
NO_SPREAD = "no spread within the labels: the pooled standard deviation is 0"
TOO_FEW = "too few episodes: {need}"
OUTSIDE = "a final progress is outside [0, 1], where the histogram ends"
FEW_POLICIES = "episodes of {count} policies; a ranking needs 3 or more"
TIED_POLICIES = "all policies have the same {what}: there is no order to agree with"
NO_GAIN = "the gain of the score or of the oracle is constant, or the episode is shorter than the horizon"
NO_DROP = "no failure with a drop"
NO_CARRY = "no success with a carrying frame"
NO_TASK = "no task defines it"


@dataclass(frozen=True)
class Resampling:
    """How intervals and p values are drawn.

    Attributes:
        resamples: of the bootstrap; 0: no intervals.
        permutations: of the labels within a task; 0: no p values.
        confidence: of the (percentile) interval.
        seed: of both; each task draws from a stream of its own, so the order of tasks does not matter.

    Raises:
        UsageError: a negative number, or a confidence outside (0, 1).
    """

    resamples: int = 1000
    permutations: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.permutations < 0 or self.seed < 0 or not 0.0 < self.confidence < 1.0:
            raise UsageError(f"{self}: numbers must be 0 or more and the confidence between 0 and 1, for example 0.95")


@dataclass(frozen=True)
class Estimate:
    """One number and how sure it is.

    Attributes:
        value: NaN where it is undefined.
        reason: why it is NaN ("" where it is not).
        undefined: episodes (of a macro mean: tasks) that are not in it, because theirs is undefined.
        low, high: percentile bootstrap interval over episodes, stratified by label; NaN where there is none: not asked
            for, a label with a single episode, or fewer than half of the resamples defined. A biased MMD and JS are
            biased upwards again in every resample, so near 0 their interval may lie above the value: read p there.
        p: permutation p value, one-sided (at least as large), (1 + #)/(1 + n); scores stay as they are, references
            are not built anew. A permutation whose statistic is undefined counts as at least as large.
        null: mean of the permutation null: what identical samples of these sizes give.
    """

    value: float
    reason: str = ""
    undefined: int = 0
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    null: float = math.nan


@dataclass(frozen=True, eq=False)
class TaskMetrics:
    """The metrics of one task.

    Attributes:
        task: its name.
        successes, failures: episodes with a final progress.
        left_out: episodes without one; they count nowhere.
        estimates: by metric, a part of `METRICS`.
        draws: by metric, the bootstrap's values (resamples,); for macro means.
    """

    task: str
    successes: int
    failures: int
    left_out: int
    estimates: dict[str, Estimate]
    draws: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ChunkCorrelation:
    """Pearson correlation of a step value's chunk gain with the oracle's: mean over episodes by label, and of all."""

    success: Estimate
    failure: Estimate
    pooled: Estimate


# --- one number from two samples ----------------------------------------------------------------------------------


def auc(success: np.ndarray, failure: np.ndarray) -> float:
    """ROC-AUC: how often a success scores above a failure, a tie counts half. NaN where a sample is empty."""
    return _alone(_auc, success, failure, 1)


def mmd(success: np.ndarray, failure: np.ndarray, unbiased: bool = False) -> float:
    """Squared maximum mean discrepancy: biased V-statistic, in [0, 2), or the unbiased U-statistic (may be negative).

    RBF kernel exp(-gamma d^2), gamma = 1/median of the squared distances of all pairs of the two samples together.
    Equal pairs are left out of the median: in profile `paper` every success ends at exactly 1, and with many of them
    the median would be 0. Memory 8 n^2 bytes. NaN where a sample is empty (unbiased: has fewer than two).
    """
    return _alone(_mmd_unbiased, success, failure, 2) if unbiased else _alone(_mmd, success, failure, 1)


def js(success: np.ndarray, failure: np.ndarray) -> float:
    """Jensen-Shannon divergence of histograms of 10 bins on [0, 1], natural logarithm: in [0, ln 2].

    It is the square of scipy's `jensenshannon`, which is a distance. NaN where a sample is empty or leaves [0, 1].
    """
    both = np.concatenate([success, failure])
    return _alone(_js, success, failure, 1) if _in_unit(both) else math.nan


def smd(success: np.ndarray, failure: np.ndarray) -> float:
    """Standardised mean difference (Cohen's d): (mean_s - mean_f)/pooled sd, ddof 1.

    The pooled variance weighs both samples by their degrees of freedom. NaN where it is 0 or a sample is empty.
    """
    return _alone(_smd, success, failure, 1)


def hedges_g(success: np.ndarray, failure: np.ndarray) -> float:
    """SMD with Hedges' (1981) correction for small samples, 1 - 3/(4 df - 1); NaN below 4 episodes, where it is 0."""
    return _alone(_hedges, success, failure, 1) if len(success) + len(failure) >= 4 else math.nan


def spearman(curve: Curve) -> float:
    """SC of one episode (eq. 10): Spearman of time and progress at scored windows; NaN where progress is constant.

    The equation prints Pearson, the text says Spearman. Frames between windows are interpolated: no evidence.
    """
    frames = np.flatnonzero(curve.scored)
    progress = curve.progress[frames]
    if len(frames) < 2 or not np.isfinite(progress).all() or _constant(progress):
        return math.nan
    return float(np.asarray(spearmanr(frames, progress)[0]))


def monotonicity(curve: Curve) -> float:
    """Mono of one episode: share of steps from one scored window to the next that rise; a tie is none. NaN: no step."""
    progress = curve.progress[curve.scored]
    if len(progress) < 2 or not np.isfinite(progress).all():
        return math.nan
    return float((np.diff(progress) > 0).mean())


def final_progress(curves: Sequence[Curve]) -> np.ndarray:
    """Progress at each episode's last frame: (E,); NaN where it is undefined."""
    return np.array([curve.progress[-1] for curve in curves], dtype=np.float64)


# --- tables -------------------------------------------------------------------------------------------------------


def separation(
    final: np.ndarray, success: Sequence[bool | None], resampling: Resampling | None = None, task: str = ""
) -> TaskMetrics:
    """How well final progress tells success from failure, in one task: the metrics `SEPARATION`.

    Args:
        final: (E,) final progress, or any score; NaN counts nowhere and is counted in `left_out`.
        success: (E,).
        resampling: intervals and p values; None: the default numbers.
        task: its name; it seeds the draws.

    Raises:
        UnlabelledError: a label is None.
    """
    resampling = resampling or Resampling()
    good = _labels(success)
    known = np.isfinite(final)
    x, label = np.asarray(final, dtype=np.float64)[known], good[known]
    counts = int(label.sum()), int((~label).sum())
    rng = _stream(resampling, task)
    drawn = _bootstrap(label, resampling.resamples, rng)
    permuted = _permutations(label, resampling.permutations, rng)
    estimates: dict[str, Estimate] = {}
    draws: dict[str, np.ndarray] = {}
    for name in SEPARATION:
        reason = _why_not(name, x, *counts)
        if reason:
            estimates[name] = Estimate(math.nan, reason, int((~known).sum()))
            continue
        estimates[name], draws[name] = _estimate(name, x, label, drawn, permuted, resampling, int((~known).sum()))
    return TaskMetrics(task, *counts, int((~known).sum()), estimates, draws)


def task_metrics(
    task: str, curves: Sequence[Curve], success: Sequence[bool | None], resampling: Resampling | None = None
) -> TaskMetrics:
    """All metrics of one task. Arguments and errors as `separation`; `curves`: one per episode."""
    resampling = resampling or Resampling()
    good = _labels(success)
    if len(curves) != len(good):
        raise ValueError(f"{len(curves)} curves, {len(good)} labels")
    table = separation(final_progress(curves), success, resampling, task)
    winners = [curve for curve, label in zip(curves, good, strict=True) if label]
    shapes = {"sc": ([spearman(c) for c in winners], NO_CURVE), "mono": ([monotonicity(c) for c in winners], NO_STEP)}
    estimates: dict[str, Estimate] = {}
    draws: dict[str, np.ndarray] = {}
    for name, (values, reason) in shapes.items():
        estimates[name], draws[name] = _mean(
            np.array(values), reason if winners else NO_SUCCESS, resampling, f"{task} {name}"
        )
    return TaskMetrics(
        task, table.successes, table.failures, table.left_out, estimates | table.estimates, draws | table.draws
    )


def all_metrics(
    tasks: Sequence[str],
    curves: Sequence[Curve],
    success: Sequence[bool | None],
    resampling: Resampling | None = None,
) -> tuple[TaskMetrics, ...]:
    """`task_metrics` of every task, in the order of their first episodes. `tasks`: one per episode."""
    tables = []
    for name in dict.fromkeys(tasks):
        rows = [i for i, task in enumerate(tasks) if task == name]
        tables.append(task_metrics(name, [curves[i] for i in rows], [success[i] for i in rows], resampling))
    return tuple(tables)


def macro_mean(tables: Sequence[TaskMetrics], confidence: float = 0.95) -> dict[str, Estimate]:
    """By metric, the mean over the tasks that define it; the others are counted in `undefined`, the first one's reason
    is kept. The interval is that of the mean, every task resampled by itself; p is none.
    """
    result = {}
    for name in METRICS:
        have = [table for table in tables if name in table.estimates]
        defined = [table for table in have if math.isfinite(table.estimates[name].value)]
        missing = len(have) - len(defined)
        reason = next((t.estimates[name].reason for t in have if t not in defined), NO_TASK)
        if not have:
            continue
        if not defined:
            result[name] = Estimate(math.nan, reason, missing)
            continue
        drawn = [t.draws.get(name, np.zeros(0)) for t in defined]
        low, high = _interval(_mean_of_draws(drawn), confidence)
        null = float(np.mean([t.estimates[name].null for t in defined]))
        value = float(np.mean([t.estimates[name].value for t in defined]))
        result[name] = Estimate(value, reason if missing else "", missing, low, high, null=null)
    return result


def auc_difference(
    first: np.ndarray, second: np.ndarray, success: Sequence[bool | None], resampling: Resampling | None = None
) -> Estimate:
    """AUC of one score minus that of another on the same episodes; the interval resamples both together (paired).

    "Beats the null" is this interval above 0. Episodes without either score are left out of both and counted.
    """
    resampling = resampling or Resampling()
    good, known = _labels(success), np.isfinite(first) & np.isfinite(second)
    a, b, label = first[known], second[known], good[known]
    left_out = int((~known).sum())
    reason = _why_not("auc", a, int(label.sum()), int((~label).sum()))
    if reason:
        return Estimate(math.nan, reason, left_out)
    once, drawn = _once(label), _bootstrap(label, resampling.resamples, _stream(resampling, "difference"))
    value = float((_auc(a, *once) - _auc(b, *once))[0])
    low, high = _interval(_auc(a, *drawn) - _auc(b, *drawn), resampling.confidence)
    return Estimate(value, "", left_out, low, high)


def policy_ranking(final: np.ndarray, success: Sequence[bool | None], policy: Sequence[str]) -> Estimate:
    """Kendall's tau-b between the policies' mean final progress and their success rates; `p` is scipy's, two-sided.

    Args:
        final: (E,) final progress; an episode without one counts in neither.
        success: (E,).
        policy: (E,) what moved the arm; "" where it is unknown: left out, and counted as undefined too.
    """
    good, names = _labels(success), np.array(policy, dtype=object)
    known = np.isfinite(final) & (names != "")
    left_out = int((~known).sum())
    policies = sorted(set(names[known]))
    if len(policies) < 3:
        return Estimate(math.nan, FEW_POLICIES.format(count=len(policies)), left_out)
    progress = np.array([final[known & (names == name)].mean() for name in policies])
    rate = np.array([good[known & (names == name)].mean() for name in policies])
    for what, values in (("mean final progress", progress), ("success rate", rate)):
        if _constant(values):
            return Estimate(math.nan, TIED_POLICIES.format(what=what), left_out)
    tau, p = kendalltau(progress, rate)
    return Estimate(float(np.asarray(tau)), "", left_out, p=float(np.asarray(p)))


# --- step values --------------------------------------------------------------------------------------------------


def chunk_correlation(
    values: Sequence[np.ndarray],
    oracle: Sequence[np.ndarray],
    success: Sequence[bool | None],
    horizon: int,
    first: int = 0,
    resampling: Resampling | None = None,
) -> ChunkCorrelation:
    """Does a step value R gain over a chunk what the task gains? Pearson of R[t+H] - R[t] with the oracle's.

    Within an episode and averaged over successes and over failures; pooled over all chunks of all episodes. An
    episode whose gain (or the oracle's) is constant has no correlation and is counted; in `pooled` its chunks stay.

    Args:
        values: per episode (T_i,) step value; NaN: left out.
        oracle: per episode (T_i,) true progress.
        success: per episode.
        horizon: H frames.
        first: first frame of the first chunk; before the first window the value is held, so give `min_window`.
        resampling: intervals; episodes are resampled.
    """
    if horizon < 1 or first < 0:
        raise UsageError(f"horizon {horizon} must be at least 1 and the first frame {first} 0 or more")
    resampling = resampling or Resampling()
    good = _labels(success)
    gains = [_gains(r, o, horizon, first) for r, o in zip(values, oracle, strict=True)]
    own = np.array([_pearson(*gain) for gain in gains])
    won, _ = _mean(own[good], NO_GAIN if good.any() else NO_SUCCESS, resampling, "chunk success")
    lost, _ = _mean(own[~good], NO_GAIN if (~good).any() else NO_FAILURE, resampling, "chunk failure")
    return ChunkCorrelation(won, lost, _pooled(gains, good, resampling))


def drop_auc(
    gains: Sequence[np.ndarray],
    drops: Sequence[int | None],
    carrying: Sequence[np.ndarray | None],
    success: Sequence[bool | None],
    resampling: Resampling | None = None,
) -> Estimate:
    """Is a drop noticed? AUC that the gain G at the drop of a failure is lower than G of successes while they carry.

    0.5: blind, 0: rewarded. G of a drop is taken at the last frame that still holds the object (`drop` - 1): that
    chunk's actions let it fall, while at `drop` it lies there already.

    Args:
        gains: per episode (T_i,) G, for example of `awr.advantage.chunk_gain`.
        drops: per episode the first frame without the object; None: no drop. Those of successes do not count.
        carrying: per episode (T_i,) bool, frames that carry the object; those of failures do not count.
        success: per episode.
        resampling: the interval; whole episodes are resampled, as frames of one success are alike.
    """
    resampling = resampling or Resampling()
    good = _labels(success)
    fallen = [g[max(d - 1, 0)] for g, d, won in zip(gains, drops, good, strict=True) if not won and d is not None]
    held = [g[c] for g, c, won in zip(gains, carrying, good, strict=True) if won and c is not None]
    held = [g[np.isfinite(g)] for g in held]
    at_drop, carried = np.array(fallen)[np.isfinite(fallen)], [g for g in held if len(g)]
    left_out = len(fallen) - len(at_drop)
    if not len(at_drop) or not carried:
        return Estimate(math.nan, NO_CARRY if len(at_drop) else NO_DROP, left_out)
    wins = np.stack([_lower(at_drop, frames) for frames in carried], axis=1)  # (drops, successes), summed over frames
    frames = np.array([len(g) for g in carried], dtype=np.float64)

    def rate(failed: np.ndarray, won: np.ndarray) -> np.ndarray:
        return ((failed @ wins) * won).sum(axis=1) / (failed.sum(axis=1) * (won @ frames))

    value = float(rate(np.ones((1, len(at_drop))), np.ones((1, len(carried))))[0])
    rng = _stream(resampling, "drop")
    if not resampling.resamples or min(wins.shape) < 2:
        return Estimate(value, "", left_out)
    drawn = rate(*(_multinomial(n, resampling.resamples, rng) for n in wins.shape))
    return Estimate(value, "", left_out, *_interval(drawn, resampling.confidence))


def tail_rise(curves: Sequence[Curve], starts: Sequence[int], resampling: Resampling | None = None) -> Estimate:
    """How much progress still changes after everything has stopped: mean of p at the end minus p at `starts`.

    For the null `frozen-tail`; a trustworthy score gives 0. `starts`: per episode, the first frozen frame.
    """
    resampling = resampling or Resampling()
    rises = [curve.progress[-1] - curve.progress[start] for curve, start in zip(curves, starts, strict=True)]
    return _mean(np.array(rises, dtype=np.float64), "no episode with a progress", resampling, "tail")[0]


# --- statistics of counts: x (n,) sorted or not, s and f (R, n) how often each stands among successes and failures ----


def _auc(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """By ranks: values that are equal are one place, so a row costs n, not successes times failures."""
    if not len(s):
        return np.zeros(0)
    order = np.argsort(x)
    places = np.flatnonzero(np.concatenate([[True], np.diff(x[order]) > 0]))
    won, lost = (np.add.reduceat(counts[:, order], places, axis=1) for counts in (s, f))
    below = np.cumsum(lost, axis=1) - 0.5 * lost
    return (won * below).sum(axis=1) / (s.sum(axis=1) * f.sum(axis=1))


def _kernel_sums(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel summed over pairs: success-success, failure-failure, success-failure, each (R,). gamma is the sample's."""
    squared = (x[:, None] - x) ** 2
    apart = squared[squared > 0]
    kernel = np.exp(-squared / np.median(apart)) if len(apart) else np.ones_like(squared)
    left, right = s @ kernel, f @ kernel
    return (left * s).sum(axis=1), (right * f).sum(axis=1), (left * f).sum(axis=1)


def _mmd(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    ss, ff, sf = _kernel_sums(x, s, f)
    n, m = s.sum(axis=1), f.sum(axis=1)
    return np.maximum(ss / n**2 + ff / m**2 - 2.0 * sf / (n * m), 0.0)  # a squared norm, up to rounding


def _mmd_unbiased(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """As `_mmd` without each drawn episode's pair with itself (kernel 1); an episode drawn twice is two."""
    ss, ff, sf = _kernel_sums(x, s, f)
    n, m = s.sum(axis=1), f.sum(axis=1)
    return (ss - n) / (n * (n - 1)) + (ff - m) / (m * (m - 1)) - 2.0 * sf / (n * m)


def _js(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    edges = np.linspace(0.0, 1.0, JS_BINS + 1)[1:-1]
    places = np.eye(JS_BINS)[np.digitize(x, edges)]
    p, q = (counts @ places / counts.sum(axis=1, keepdims=True) for counts in (s, f))
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle).sum(axis=1) + rel_entr(q, middle).sum(axis=1)) / 2
    return np.clip(divergence, 0.0, math.log(2.0))


def _smd(x: np.ndarray, s: np.ndarray, f: np.ndarray) -> np.ndarray:
    """NaN where the pooled sd is 0."""
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
    """The statistic of two samples; NaN where either has fewer than `need` values."""
    x = np.concatenate([success, failure]).astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("a sample has a value that is not finite; leave it out and say so")
    if min(len(success), len(failure)) < need:
        return math.nan
    return float(statistic(x, *_once(np.arange(len(x)) < len(success)))[0])


def _estimate(
    name: str,
    x: np.ndarray,
    label: np.ndarray,
    drawn: tuple[np.ndarray, np.ndarray],
    permuted: tuple[np.ndarray, np.ndarray],
    resampling: Resampling,
    left_out: int,
) -> tuple[Estimate, np.ndarray]:
    """One metric and its bootstrap draws."""
    statistic = _STATISTICS[name]
    value = float(statistic(x, *_once(label))[0])
    if math.isnan(value):
        return Estimate(math.nan, NO_SPREAD, left_out), np.zeros(0)
    draws = statistic(x, *drawn)
    p = null = math.nan
    if name in TESTED and len(permuted[0]):
        chance = statistic(x, *permuted)
        p = float((1 + np.sum(~(chance < value - ROUNDING * max(1.0, abs(value))))) / (1 + len(chance)))
        null = float(chance[np.isfinite(chance)].mean()) if np.isfinite(chance).any() else math.nan
    return Estimate(value, "", left_out, *_interval(draws, resampling.confidence), p, null), draws


def _why_not(name: str, x: np.ndarray, successes: int, failures: int) -> str:
    """Why a metric of these samples is undefined; "" where nothing is known against it."""
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


def _once(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sample itself as counts, (1, n) each."""
    return label[None].astype(np.float64), (~label)[None].astype(np.float64)


def _multinomial(n: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `n` episodes is drawn, n draws with replacement: (rows, n)."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=rows).astype(np.float64)


def _bootstrap(label: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Resamples stratified by label, (rows, n) each; none where a label has fewer than two episodes."""
    rows = rows if min(label.sum(), (~label).sum()) >= 2 else 0
    s, f = np.zeros((rows, len(label))), np.zeros((rows, len(label)))
    if rows:
        s[:, label] = _multinomial(int(label.sum()), rows, rng)
        f[:, ~label] = _multinomial(int((~label).sum()), rows, rng)
    return s, f


def _permutations(label: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels in random order, (rows, n) each."""
    s = rng.permuted(np.tile(label, (rows, 1)), axis=1).astype(np.float64)
    return s, 1.0 - s


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentiles of what is defined; NaN where that is less than half."""
    defined = draws[np.isfinite(draws)]
    if len(defined) == 0 or 2 * len(defined) < len(draws):
        return math.nan, math.nan
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _mean(values: np.ndarray, reason: str, resampling: Resampling, name: str) -> tuple[Estimate, np.ndarray]:
    """Mean of what is defined, with its bootstrap; `reason`: why, where nothing is."""
    defined = values[np.isfinite(values)]
    left_out = len(values) - len(defined)
    if len(defined) == 0:
        return Estimate(math.nan, reason, left_out), np.zeros(0)
    draws = np.zeros(0)
    if len(defined) >= 2 and resampling.resamples:
        counts = _multinomial(len(defined), resampling.resamples, _stream(resampling, name))
        draws = counts @ defined / len(defined)
    return Estimate(float(defined.mean()), "", left_out, *_interval(draws, resampling.confidence)), draws


def _mean_of_draws(drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over tasks of their draws (R,), each row over the tasks that define it; none where a task has none."""
    if any(len(draws) == 0 for draws in drawn):
        return np.zeros(0)
    table = np.stack(drawn)
    defined = np.isfinite(table)
    count = defined.sum(axis=0)
    total = np.where(defined, table, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _labels(success: Sequence[bool | None]) -> np.ndarray:
    """(E,) bool. Raises UnlabelledError where one is None: never read as failure."""
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
    """Gains over full chunks from frame `first` on, of the value and of the oracle; empty where either is NaN."""
    if len(value) != len(oracle):
        raise ValueError(f"a value of {len(value)} frames and an oracle of {len(oracle)}")
    pair = [r[first + horizon :] - r[first : max(len(r) - horizon, first)] for r in (value, oracle)]
    return (pair[0], pair[1]) if all(np.isfinite(g).all() for g in pair) else (np.zeros(0), np.zeros(0))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 2 or _constant(x) or _constant(y):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _pooled(gains: list[tuple[np.ndarray, np.ndarray]], good: np.ndarray, resampling: Resampling) -> Estimate:
    """Correlation over all chunks of all episodes; episodes are resampled by their moments."""
    used = [i for i, (x, _) in enumerate(gains) if len(x)]
    left_out = len(gains) - len(used)
    x, y = (np.concatenate([gains[i][k] for i in used] or [np.zeros(0)]) for k in (0, 1))
    value = _pearson(x, y)
    if math.isnan(value):
        return Estimate(math.nan, NO_GAIN, left_out)
    shifted = [(gains[i][0] - x.mean(), gains[i][1] - y.mean()) for i in used]
    moments = np.array([[len(a), a.sum(), b.sum(), a @ a, b @ b, a @ b] for a, b in shifted])
    s, f = _bootstrap(good[used], resampling.resamples, _stream(resampling, "chunk pooled"))
    n, a, b, aa, bb, ab = ((s + f) @ moments).T
    variance = np.maximum(n * aa - a * a, 0.0) * np.maximum(n * bb - b * b, 0.0)
    flat = variance <= 0.0
    draws = np.where(flat, np.nan, (n * ab - a * b) / np.sqrt(np.where(flat, 1.0, variance)))
    return Estimate(value, "", left_out, *_interval(draws, resampling.confidence))


def _lower(at_drop: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """How many of `frames` are above each of `at_drop` (drops,), a tie counts half."""
    ordered = np.sort(frames)
    below, upto = np.searchsorted(ordered, at_drop, "left"), np.searchsorted(ordered, at_drop, "right")
    return len(ordered) - 0.5 * (below + upto)
