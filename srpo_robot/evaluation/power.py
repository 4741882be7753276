"""Sample sizes: exact power of the tests in `statistics`, and simulated power of the sequential test."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom

from srpo_robot.evaluation.sequential import log_evidence

MOST = 5000  # largest sample size that is considered: pairs, or trials of each policy
_AHEAD = 12  # the power of exact tests is a sawtooth, so sizes up to this many larger must also have the power


def rates(base: float, difference: float) -> tuple[float, float]:
    """Returns A's rate `base` and B's rate, `difference` above it. If that exceeds 1, B's rate is below A's.

    Raises:
        ValueError: `base` is outside 0 to 1, `difference` is not in (0, 1], or both candidates are outside 0 to 1.
    """
    if not 0 <= base <= 1 or not 0 < difference <= 1:
        raise ValueError(f"a rate of {base} and a difference of {difference} cannot be")
    for rate_b in (base + difference, base - difference):
        if -1e-12 <= rate_b <= 1 + 1e-12:
            return base, min(max(rate_b, 0.0), 1.0)
    raise ValueError(f"from {base:.0%} no rate is {difference:.0%} away")


def discordance(base: float, difference: float) -> tuple[float, float]:
    """Returns the probabilities of the two discordant outcomes, "A alone" and "B alone", on one layout.

    Outcomes are assumed independent given the policies. Real layouts are hard or easy for both, so policies agree more
    often than that. The resulting number of pairs is therefore too large and not too small.
    """
    a, b = rates(base, difference)
    return a * (1 - b), b * (1 - a)


def paired_power(pairs: int, only_a: float, only_b: float, alpha: float = 0.05) -> float:
    """Returns the exact power of the exact McNemar test with `pairs` layouts, given the discordant probabilities."""
    discordant = only_a + only_b
    if discordant <= 0:
        return 0.0
    counts = np.arange(pairs + 1)
    limit = binom.ppf(alpha / 2, counts, 0.5)
    # Largest count in the rejection region.
    limit = np.where(binom.cdf(limit, counts, 0.5) > alpha / 2 * (1 + 1e-7), limit - 1, limit)
    fraction_b = only_b / discordant
    # Two-sided: reject for too few or too many wins of B among the discordant pairs.
    reject = binom.cdf(limit, counts, fraction_b) + binom.sf(counts - limit - 1, counts, fraction_b)
    return float(binom.pmf(counts, pairs, discordant) @ np.where(limit < 0, 0.0, reject))


def unpaired_power(trials: int, rate_a: float, rate_b: float, alpha: float = 0.05) -> float:
    """Returns the exact power of Fisher's exact test with `trials` independent trials of each policy."""
    successes = np.arange(trials + 1)
    pmf_a, pmf_b = binom.pmf(successes, trials, rate_a), binom.pmf(successes, trials, rate_b)
    log_choose = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(trials - successes + 1)
    power = 0.0
    for total in range(1, 2 * trials):
        a = np.arange(max(0, total - trials), total // 2 + 1)  # up to an even split, by symmetry
        logs = log_choose[a] + log_choose[total - a]
        pmf = np.exp(logs - logs.max())
        tails = np.cumsum(pmf) / (2 * pmf.sum() - (pmf[-1] if total % 2 == 0 else 0.0))
        rejected = a[(2 * tails <= alpha) & (2 * a < total)]
        power += float(pmf_a[rejected] @ pmf_b[total - rejected] + pmf_a[total - rejected] @ pmf_b[rejected])
    return power


def needed(power_of: Callable[[int], float], power: float = 0.8, most: int = MOST) -> int | None:
    """Returns the smallest size from which `power_of` is at least `power`, or None if it is larger than `most`.

    Raises:
        ValueError: `power` is not between 0 and 1.
    """
    if not 0 < power < 1:
        raise ValueError(f"a power of {power} cannot be asked for; it lies between 0 and 1")

    def enough(size: int) -> bool:
        return all(power_of(size + step) >= power for step in (0, 1, 2, 3, 5, 8, _AHEAD))

    low, high = 0, 8
    while not enough(high):
        low, high = high, 2 * high
        if high > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def pairs_needed(base: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Returns the number of layouts to try both policies on. Raises ValueError as `rates` and `needed`."""
    only_a, only_b = discordance(base, difference)
    return needed(lambda pairs: paired_power(pairs, only_a, only_b, alpha), power)


def trials_needed(base: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Returns the number of independent trials of each policy. Raises ValueError as `rates` and `needed`."""
    a, b = rates(base, difference)
    return needed(lambda trials: unpaired_power(trials, a, b, alpha), power)


def sequential_pairs_needed(
    base: float,
    difference: float,
    power: float = 0.8,
    alpha: float = 0.05,
    most: int = 1000,
    studies: int = 2000,
    seed: int = 0,
) -> int | None:
    """Returns the number of pairs after which a fraction `power` of simulated sequential tests has stopped.

    Only stops for a difference count. Returns None if `most` pairs are not enough.

    Raises:
        ValueError: as `rates`.
    """
    only_a, only_b = discordance(base, difference)
    draws = np.random.default_rng(seed).random((studies, most))
    wins_a = np.cumsum(draws < only_a, axis=1)
    wins_b = np.cumsum((draws >= only_a) & (draws < only_a + only_b), axis=1)
    stopped = np.maximum.accumulate(log_evidence(wins_a, wins_b) >= -math.log(alpha), axis=1).mean(axis=0)
    return int(np.argmax(stopped >= power)) + 1 if stopped[-1] >= power else None
