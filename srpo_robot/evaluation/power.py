"""How many trials a difference needs: exact power of the tests of `statistics`, simulated for the sequential one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom

from srpo_robot.evaluation.sequential import log_evidence

MOST = 5000  # pairs, or trials of each policy; more than that nobody runs
_AHEAD = 12  # exact tests' power is a saw: this many further sizes must have it too


def rates(base: float, difference: float) -> tuple[float, float]:
    """Two success rates `difference` apart, A's at `base`; where there is no room above, B's is below.

    Raises:
        ValueError: `base` outside 0 to 1, `difference` not in (0, 1], or no room on either side.
    """
    if not 0 <= base <= 1 or not 0 < difference <= 1:
        raise ValueError(f"a rate of {base} and a difference of {difference} cannot be")
    for other in (base + difference, base - difference):
        if -1e-12 <= other <= 1 + 1e-12:
            return base, min(max(other, 0.0), 1.0)
    raise ValueError(f"from {base:.0%} no rate is {difference:.0%} away")


def discordance(base: float, difference: float) -> tuple[float, float]:
    """Probabilities of "A alone" and "B alone" on one layout, outcomes taken as independent given the policies.

    Layouts that are hard for both make them agree more often than that, so it asks for too many pairs, not too few.
    """
    a, b = rates(base, difference)
    return a * (1 - b), b * (1 - a)


def paired_power(pairs: int, only_a: float, only_b: float, alpha: float = 0.05) -> float:
    """Exact power of McNemar's exact test with `pairs` layouts, given the two discordant probabilities."""
    discordant = only_a + only_b
    if discordant <= 0:
        return 0.0
    counts = np.arange(pairs + 1)
    limit = binom.ppf(alpha / 2, counts, 0.5)
    limit = np.where(binom.cdf(limit, counts, 0.5) > alpha / 2 * (1 + 1e-7), limit - 1, limit)  # largest that rejects
    share = only_b / discordant
    # Two-sided: too few or too many wins of B among the discordant ones.
    reject = binom.cdf(limit, counts, share) + binom.sf(counts - limit - 1, counts, share)
    return float(binom.pmf(counts, pairs, discordant) @ np.where(limit < 0, 0.0, reject))


def unpaired_power(trials: int, rate_a: float, rate_b: float, alpha: float = 0.05) -> float:
    """Exact power of Fisher's exact test with `trials` independent trials of each policy."""
    successes = np.arange(trials + 1)
    chance_a, chance_b = binom.pmf(successes, trials, rate_a), binom.pmf(successes, trials, rate_b)
    ways = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(trials - successes + 1)
    power = 0.0
    for total in range(1, 2 * trials):
        a = np.arange(max(0, total - trials), total // 2 + 1)  # an even split or fewer; the others mirror it
        logs = ways[a] + ways[total - a]
        law = np.exp(logs - logs.max())
        tails = np.cumsum(law) / (2 * law.sum() - (law[-1] if total % 2 == 0 else 0.0))
        rejected = a[(2 * tails <= alpha) & (2 * a < total)]
        power += float(
            chance_a[rejected] @ chance_b[total - rejected] + chance_a[total - rejected] @ chance_b[rejected]
        )
    return power


def needed(power_of: Callable[[int], float], power: float = 0.8, most: int = MOST) -> int | None:
    """The smallest size from which on `power_of` is at least `power`; None where `most` does not do.

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
    """Layouts that both policies must be tried on. Raises ValueError as `rates` and `needed`."""
    only_a, only_b = discordance(base, difference)
    return needed(lambda pairs: paired_power(pairs, only_a, only_b, alpha), power)


def trials_needed(base: float, difference: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Independent trials of each policy. Raises ValueError as `rates` and `needed`."""
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
    """Pairs after which `power` of the simulated studies had stopped for a difference; None where `most` does not do.

    Raises:
        ValueError: as `rates`.
    """
    only_a, only_b = discordance(base, difference)
    draws = np.random.default_rng(seed).random((studies, most))
    wins_a = np.cumsum(draws < only_a, axis=1)
    wins_b = np.cumsum((draws >= only_a) & (draws < only_a + only_b), axis=1)
    stopped = np.maximum.accumulate(log_evidence(wins_a, wins_b) >= -math.log(alpha), axis=1).mean(axis=0)
    return int(np.argmax(stopped >= power)) + 1 if stopped[-1] >= power else None
