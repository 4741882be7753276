"""Two policies' trials: rates, exact tests and intervals of the difference. Differences are B minus A throughout.

Trials of two policies on the same layouts are pairs, and only the layouts on which they disagree tell them apart;
without pairs, what is held fixed is each task's own total. Either way nothing is ever pooled across tasks first, so a
policy that was run more often on an easy task wins nothing by it (Simpson's paradox).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binomtest, hypergeom, norm, t

from srpo_robot.records import Trial

_TIES = 1 + 1e-7  # two probabilities this near are equal: as scipy's Fisher test has it
_EDGE = 1e-9  # intervals of a difference are searched on the open interval from -1 to 1


# --- rates --------------------------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """A success rate with its Wilson score interval."""

    successes: int
    trials: int  # void ones left out
    rate: float  # NaN where there is no trial
    low: float
    high: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Rate:
    """Success rate and Wilson's interval (Wilson 1927, as scipy computes it); without trials it is NaN in [0, 1].

    Raises:
        ValueError: more successes than trials, or a negative count.
    """
    if trials == 0 and successes == 0:
        return Rate(0, 0, float("nan"), 0.0, 1.0)
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Rate(successes, trials, successes / trials, float(interval.low), float(interval.high))


def success_rate(trials: Sequence[Trial]) -> Rate:
    """The rate over all trials that are not void."""
    decided = [trial.success for trial in trials if trial.success is not None]
    return wilson(sum(decided), len(decided))


# --- two policies -------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """How much B is above A, with its interval and the p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p: float


class Pairs(NamedTuple):
    """Layouts that both policies were tried on, by who succeeded."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def layouts(self) -> int:
        return sum(self)


class Stratum(NamedTuple):
    """One task: successes and trials of both policies."""

    successes_a: int
    trials_a: int
    successes_b: int
    trials_b: int


def paired_effect(pairs: Pairs, confidence: float = 0.95) -> Effect:
    """Effect over the same layouts: exact McNemar test and Tango's score interval.

    The test is the stratified one as well: given that two policies disagree on a layout, either is equally likely to
    have won it under the null hypothesis, whatever its task. Over several tasks the interval is conservative, because
    pairs of one mixture vary more than pairs of fixed tasks do.

    Raises:
        ValueError: no pair.
    """
    if pairs.layouts < 1:
        raise ValueError("no layout was tried by both")
    difference = (pairs.only_b - pairs.only_a) / pairs.layouts
    low, high = _crossings(lambda delta: _tango(pairs, delta), difference, confidence)
    return Effect(difference, low, high, exact_mcnemar(pairs))


def exact_mcnemar(pairs: Pairs) -> float:
    """Two-sided p-value of the exact McNemar test: the layouts that one policy alone solved, against a fair coin."""
    discordant = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_b, discordant).pvalue) if discordant else 1.0


def stratified_effect(strata: Sequence[Stratum], confidence: float = 0.95) -> Effect:
    """Effect over independent trials of the same tasks: exact conditional test and a stratified score interval.

    The difference is the mean of the tasks' differences with Mantel-Haenszel weights n_a n_b / (n_a + n_b); the
    interval inverts Miettinen and Nurminen's score statistic (1985) with the same weights. Tasks that one of the two
    was not tried on carry no weight.

    Raises:
        ValueError: no task that both were tried on.
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
    """Two-sided p-value of the exact conditional test of a common odds ratio of 1 (Cox 1970; Fisher's for one task).

    Given each task's totals, B's successes are hypergeometric; their sum over the tasks is a convolution. The p-value
    sums every outcome that is at most as probable as the one seen.
    """
    chances, first, seen = np.ones(1), 0, 0
    for s in strata:
        total, successes = s.trials_a + s.trials_b, s.successes_a + s.successes_b
        low, high = max(0, successes - s.trials_a), min(successes, s.trials_b)
        law = hypergeom.pmf(np.arange(low, high + 1), total, successes, s.trials_b)
        chances, first, seen = np.convolve(chances, law), first + low, seen + s.successes_b
    return min(1.0, float(chances[chances <= chances[seen - first] * _TIES].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: with them the chance of any false alarm stays at alpha."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


# --- score intervals ----------------------------------------------------------------------------------------------


def restricted_only_a(pairs: Pairs, delta: float) -> float:
    """Most likely probability of "A alone succeeds" where B's rate is `delta` above A's (Tango 1998, eq. 6)."""
    n, a, b = pairs.layouts, pairs.only_a, pairs.only_b
    linear = (2 * n - b + a) * delta - a - b
    root = math.sqrt(max(linear**2 + 8 * n * a * delta * (1 - delta), 0.0))
    # Of the two ways to write the root, the one that does not subtract nearly equal numbers.
    chance = (root - linear) / (4 * n) if linear <= 0 else 2 * a * delta * (1 - delta) / (root + linear)
    return min(max(chance, 0.0, -delta), (1 - delta) / 2)


def _tango(pairs: Pairs, delta: float) -> float:
    n = pairs.layouts
    variance = n * (2 * restricted_only_a(pairs, delta) + delta * (1 - delta))
    return _ratio(pairs.only_b - pairs.only_a - n * delta, variance)


def restricted_rate_a(stratum: Stratum, delta: float) -> float:
    """Most likely success rate of A where B's is `delta` above it (Miettinen and Nurminen 1985, appendix 1)."""
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
    """A score statistic; without variance it is infinite, or 0 where there is no gap either."""
    if variance <= 0.0:
        return 0.0 if gap == 0.0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _crossings(statistic: Callable[[float], float], at: float, confidence: float) -> tuple[float, float]:
    """Where a falling `statistic`, 0 at `at`, passes the normal quantiles +z and -z on [-1, 1]."""
    z = float(norm.ppf(0.5 + confidence / 2))

    def end(edge: float, level: float) -> float:
        start = min(max(at, -1 + _EDGE), 1 - _EDGE)
        bounded = lambda delta: min(max(statistic(delta), -1e9), 1e9) - level  # noqa: E731 Brent's method knows no infinity
        if bounded(start) * bounded(edge) > 0:
            return math.copysign(1.0, edge)  # not excluded anywhere on this side
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
    """Difference of a number measured in each trial: permutation p-value, bootstrap interval, both within tasks.

    Args:
        tasks: for each task the values of A (n_a,) and of B (n_b,); where `paired`, n_a = n_b and row i is one layout.
        resamples: of the permutations and of the bootstrap.

    The difference is the mean of the tasks' differences, weighted by pairs, else by n_a n_b / (n_a + n_b). The interval
    takes percentiles that are as much further out as Student's t is beyond the normal (Hesterberg 2015): plain ones
    are too narrow for 15 trials.

    Raises:
        ValueError: no task with values of both.
    """
    groups = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in tasks if len(a) and len(b)]
    if not groups:
        raise ValueError("no task has values of both")
    rng = np.random.default_rng(seed)
    if paired:
        sizes = np.array([len(a) for a, _ in groups], dtype=float)
        columns = [_paired_draws(b - a, resamples, rng) for a, b in groups]
        values, spare = sizes.sum(), sizes.sum() - len(groups)
    else:
        sizes = np.array([len(a) * len(b) / (len(a) + len(b)) for a, b in groups])
        columns = [_unpaired_draws(a, b, resamples, rng) for a, b in groups]
        values = sum(len(a) + len(b) for a, b in groups)
        spare = values - 2 * len(groups)
    weights = sizes / sizes.sum()
    seen = float(weights @ [seen for seen, _, _ in columns])
    null = weights @ np.stack([null for _, null, _ in columns])
    boot = weights @ np.stack([boot for _, _, boot in columns])
    p = (1 + np.count_nonzero(np.abs(null) >= abs(seen) / _TIES)) / (resamples + 1)
    if spare < 1:
        return Effect(seen, -math.inf, math.inf, float(p))
    reach = float(norm.cdf(t.ppf(0.5 - confidence / 2, spare) * math.sqrt(values / spare)))
    low, high = np.quantile(boot, [reach, 1 - reach])
    return Effect(seen, float(low), float(high), float(p))


def _paired_draws(gaps: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean gap; means with signs flipped at random; means of resampled layouts."""
    signs = rng.choice([-1.0, 1.0], (resamples, len(gaps)))
    return float(gaps.mean()), (signs * gaps).mean(axis=1), rng.choice(gaps, (resamples, len(gaps))).mean(axis=1)


def _unpaired_draws(
    a: np.ndarray, b: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, np.ndarray, np.ndarray]:
    """Difference of means; of shuffled trials; of trials resampled within each policy."""
    mixed = rng.permuted(np.tile(np.concatenate([a, b]), (resamples, 1)), axis=1)
    null = mixed[:, len(a) :].mean(axis=1) - mixed[:, : len(a)].mean(axis=1)
    boot = rng.choice(b, (resamples, len(b))).mean(axis=1) - rng.choice(a, (resamples, len(a))).mean(axis=1)
    return float(b.mean() - a.mean()), null, boot
