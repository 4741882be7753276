"""Statistics of two policies: success rates, exact tests and confidence intervals. Differences are always B minus A.

Trials of two policies on the same layouts are pairs, and only discordant pairs tell the policies apart. Without pairs,
the stratified test conditions on the totals of each task. Neither pools trials across tasks before the comparison, so a
policy gains nothing from more trials on an easy task (Simpson's paradox).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binomtest, hypergeom, norm, t

from srpo_robot.records import Trial

_TIES = 1 + 1e-7  # probabilities within this factor count as equal, as in scipy's Fisher test
_EDGE = 1e-9  # intervals of a difference are searched on the open interval from -1 to 1


# --- rates --------------------------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """A success rate with its Wilson score interval."""

    successes: int
    trials: int  # without void trials
    rate: float  # NaN if there are no trials
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """Returns the success rate with its Wilson interval (Wilson 1927, by scipy). Without trials, NaN with [0, 1].

    Raises:
        ValueError: there are more successes than trials, or a count is negative.
    """
    if trials == 0 and successes == 0:
        return Rate(0, 0, float("nan"), 0.0, 1.0)
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Rate(successes, trials, successes / trials, float(interval.low), float(interval.high))


def success_rate(trials: Sequence[Trial]) -> Rate:
    """Returns the success rate over all trials that are not void."""
    decided = [trial.success for trial in trials if trial.success is not None]
    return wilson(sum(decided), len(decided))


# --- two policies -------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """The difference B - A with its confidence interval and the p-value of the null hypothesis "no difference"."""

    difference: float
    low: float
    high: float
    p: float


class Pairs(NamedTuple):
    """Numbers of layouts that both policies were tried on, by outcome."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def layouts(self) -> int:
        return sum(self)


class Stratum(NamedTuple):
    """One task: numbers of successes and trials of both policies."""

    successes_a: int
    trials_a: int
    successes_b: int
    trials_b: int


def paired_effect(pairs: Pairs, confidence: float = 0.95) -> Effect:
    """Computes the effect over pairs: exact McNemar test and Tango's score interval.

    The paired exact test is also the stratified test: under the null hypothesis each policy wins a discordant layout
    with equal probability, in every task. Over several tasks the interval is conservative, because pairs from one
    mixture of tasks vary more than pairs from fixed tasks.

    Raises:
        ValueError: there are no pairs.
    """
    if pairs.layouts < 1:
        raise ValueError("no layout was tried by both")
    difference = (pairs.only_b - pairs.only_a) / pairs.layouts
    low, high = _crossings(lambda delta: _tango(pairs, delta), difference, confidence)
    return Effect(difference, low, high, exact_mcnemar(pairs))


def exact_mcnemar(pairs: Pairs) -> float:
    """Returns the two-sided p-value of the exact McNemar test: a binomial test with p = 1/2 on the discordant pairs."""
    discordant = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_b, discordant).pvalue) if discordant else 1.0


def stratified_effect(strata: Sequence[Stratum], confidence: float = 0.95) -> Effect:
    """Computes the effect over independent trials of the same tasks: exact stratified test and score interval.

    The difference is the mean of the tasks' differences with Mantel-Haenszel weights n_a n_b / (n_a + n_b). The
    interval inverts Miettinen and Nurminen's score statistic (1985) with the same weights. Tasks with trials of only
    one policy have no weight.

    Raises:
        ValueError: no task has trials of both policies.
    """
    shared = [s for s in strata if s.trials_a and s.trials_b]
    if not shared:
        raise ValueError("no task was tried by both")
    weights = np.array([s.trials_a * s.trials_b / (s.trials_a + s.trials_b) for s in shared])
    weights /= weights.sum()
    gaps = np.array([s.successes_b / s.trials_b - s.successes_a / s.trials_a for s in shared])
    difference = float(weights @ gaps)

    def statistic(delta: float) -> float:
        variance = weights**2 @ [_score_variance(s, delta) for s in shared]
        return _ratio(difference - delta, variance)

    low, high = _crossings(statistic, difference, confidence)
    return Effect(difference, low, high, exact_stratified(shared))


def exact_stratified(strata: Sequence[Stratum]) -> float:
    """Returns the two-sided p-value of the exact stratified test of a common odds ratio of 1 (Cox 1970).

    Given each task's totals, B's successes are hypergeometric, and the distribution of their sum over the tasks is a
    convolution. The p-value sums the probabilities of all outcomes that are at most as probable as the observed one.
    For one task the test is Fisher's exact test.
    """
    pmf, first, successes_b = np.ones(1), 0, 0  # pmf of B's total successes, which start at `first`
    for s in strata:
        total, successes = s.trials_a + s.trials_b, s.successes_a + s.successes_b
        low, high = max(0, successes - s.trials_a), min(successes, s.trials_b)
        stratum_pmf = hypergeom.pmf(np.arange(low, high + 1), total, successes, s.trials_b)
        pmf, first, successes_b = np.convolve(pmf, stratum_pmf), first + low, successes_b + s.successes_b
    return min(1.0, float(pmf[pmf <= pmf[successes_b - first] * _TIES].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values (1979) in the given order. They control the family-wise error rate at alpha."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


# --- score intervals ----------------------------------------------------------------------------------------------


def restricted_only_a(pairs: Pairs, delta: float) -> float:
    """Returns the restricted maximum likelihood estimate of P("A alone succeeds") if B's rate is `delta` above A's.

    Tango 1998, eq. 6.
    """
    n, a, b = pairs.layouts, pairs.only_a, pairs.only_b
    linear = (2 * n - b + a) * delta - a - b
    root = math.sqrt(max(linear**2 + 8 * n * a * delta * (1 - delta), 0.0))
    # Of the two forms of the root, use the one that does not subtract nearly equal numbers.
    probability = (root - linear) / (4 * n) if linear <= 0 else 2 * a * delta * (1 - delta) / (root + linear)
    return min(max(probability, 0.0, -delta), (1 - delta) / 2)


def _tango(pairs: Pairs, delta: float) -> float:
    n = pairs.layouts
    variance = n * (2 * restricted_only_a(pairs, delta) + delta * (1 - delta))
    return _ratio(pairs.only_b - pairs.only_a - n * delta, variance)


def restricted_rate_a(stratum: Stratum, delta: float) -> float:
    """Returns the restricted maximum likelihood estimate of A's rate if B's rate is `delta` above it.

    Miettinen and Nurminen 1985, appendix 1.
    """
    x0, n0, x1, n1 = stratum
    total, successes = n0 + n1, x0 + x1
    square = (n1 + 2 * n0) * delta - total - successes
    linear = (n0 * delta - total - 2 * x0) * delta + successes
    constant = x0 * delta * (1 - delta)
    third = square / (3 * total)
    q = third**3 - linear * square / (6 * total**2) + constant / (2 * total)
    p = math.copysign(math.sqrt(max(third**2 - linear / (3 * total), 0.0)), q)
    turn = 0.0 if p == 0.0 else math.acos(min(max(q / p**3, -1.0), 1.0))
    rate = 2 * p * math.cos((math.pi + turn) / 3) - third
    return min(max(rate, 0.0, -delta), 1.0, 1.0 - delta)


def _score_variance(stratum: Stratum, delta: float) -> float:
    a = restricted_rate_a(stratum, delta)
    b, total = a + delta, stratum.trials_a + stratum.trials_b
    return (a * (1 - a) / stratum.trials_a + b * (1 - b) / stratum.trials_b) * total / (total - 1)


def _ratio(gap: float, variance: float) -> float:
    """Returns a score statistic. If the variance is 0, it is infinite, or 0 if the gap is also 0."""
    if variance <= 0.0:
        return 0.0 if gap == 0.0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _crossings(statistic: Callable[[float], float], estimate: float, confidence: float) -> tuple[float, float]:
    """Returns the points on [-1, 1] at which a falling `statistic` crosses the normal quantiles +z and -z.

    The statistic is 0 at `estimate`.
    """
    z = float(norm.ppf(0.5 + confidence / 2))

    def end(edge: float, level: float) -> float:
        start = min(max(estimate, -1 + _EDGE), 1 - _EDGE)
        bounded = lambda delta: min(max(statistic(delta), -1e9), 1e9) - level  # noqa: E731 Brent's method needs finite values
        if bounded(start) * bounded(edge) > 0:
            return math.copysign(1.0, edge)  # no difference on this side is excluded
        return float(root_scalar(bounded, bracket=sorted((start, edge)), method="brentq", xtol=1e-10).root)

    return end(-1 + _EDGE, z), end(1 - _EDGE, -z)


# --- a measured outcome (final progress) --------------------------------------------------------------------------


def mean_effect(
    tasks: Sequence[tuple[np.ndarray, np.ndarray]],
    paired: bool,
    resamples: int = 4000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Effect:
    """Computes the effect on a measured outcome: permutation test and bootstrap interval, both within tasks.

    The difference is the mean of the tasks' differences, weighted by the number of pairs if `paired`, else by
    n_a n_b / (n_a + n_b). The interval uses bootstrap percentiles that are expanded as Student's t is beyond the normal
    distribution (Hesterberg 2015), because plain percentiles are too narrow for 15 trials.

    Args:
        tasks: values of A (n_a,) and of B (n_b,) for each task. If `paired`, n_a = n_b and row i is one layout.
        paired: whether rows are pairs.
        resamples: number of permutations, and number of bootstrap resamples.
        seed: seed of both.
        confidence: confidence of the interval.

    Raises:
        ValueError: no task has values of both policies.
    """
    groups = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in tasks if len(a) and len(b)]
    if not groups:
        raise ValueError("no task has values of both")
    rng = np.random.default_rng(seed)
    if paired:
        sizes = np.array([len(a) for a, _ in groups], dtype=float)
        columns = [_paired_draws(b - a, resamples, rng) for a, b in groups]
        values, freedom = sizes.sum(), sizes.sum() - len(groups)
    else:
        sizes = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in groups])
        columns = [_unpaired_draws(a, b, resamples, rng) for a, b in groups]
        values = sum(len(a) + len(b) for a, b in groups)
        freedom = values - 2 * len(groups)  # degrees of freedom
    weights = sizes / sizes.sum()
    difference = float(weights @ [gap for gap, _, _ in columns])
    null = weights @ np.stack([null for _, null, _ in columns])
    boot = weights @ np.stack([boot for _, _, boot in columns])
    p = (1 + np.count_nonzero(np.abs(null) >= abs(difference) / _TIES)) / (resamples + 1)
    if freedom < 1:
        return Effect(difference, -math.inf, math.inf, float(p))
    quantile = float(norm.cdf(t.ppf(0.5 - confidence / 2, freedom) * math.sqrt(values / freedom)))
    low, high = np.quantile(boot, [quantile, 1 - quantile])
    return Effect(difference, float(low), float(high), float(p))


def _paired_draws(gaps: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the mean gap, means under random sign flips, and means of resampled layouts."""
    signs = rng.choice([-1.0, 1.0], (resamples, len(gaps)))
    return float(gaps.mean()), (signs * gaps).mean(axis=1), rng.choice(gaps, (resamples, len(gaps))).mean(axis=1)


def _unpaired_draws(
    a: np.ndarray, b: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns the difference of means, differences of shuffled trials, and of trials resampled within each policy."""
    mixed = rng.permuted(np.tile(np.concatenate([a, b]), (resamples, 1)), axis=1)
    null = mixed[:, len(a) :].mean(axis=1) - mixed[:, : len(a)].mean(axis=1)
    boot = rng.choice(b, (resamples, len(b))).mean(axis=1) - rng.choice(a, (resamples, len(a))).mean(axis=1)
    return float(b.mean() - a.mean()), null, boot
