"""Statistics of trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest

from srpo_robot.records import Trial


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
