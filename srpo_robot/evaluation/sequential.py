"""A test that may be looked at after every trial. Ordinary p-values may not: an exact 5 % test that is looked at after
each of 100 layouts on which two equal policies disagree raises a false alarm in one study of five (22 %, simulated).

The evidence is an e-value: what a bettor who starts with 1 owns after betting on who wins the next layout on which the
two policies disagree. If they are equally good nobody gains by such bets, and the chance of ever owning 1/alpha is at
most alpha (Ville 1939). So one may stop the moment it gets there, or go on for as long as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import betaln, logsumexp, roots_legendre

from srpo_robot.evaluation.statistics import Pairs

_EDGE = 1e-6  # the interval is searched on -1 to 1 without the ends, where the largest bet is infinite


class InterimResult(NamedTuple):
    """What may be said after some pairs.

    Attributes:
        pairs: layouts tried by both, in order, that were looked at.
        evidence: the largest e-value so far.
        p: 1 / evidence: a p-value that holds however often one looked.
        low, high: interval of the difference B - A that holds at all times together.
        decision: "difference" (stop), "equivalent" (stop: the interval is within the margin), or "more".
        decided_at: pairs after which it was first so; 0 where it is "more".
    """

    pairs: int
    evidence: float
    p: float
    low: float
    high: float
    decision: Literal["difference", "equivalent", "more"]
    decided_at: int


def monitor(outcomes: Sequence[tuple[bool, bool]], alpha: float = 0.05, margin: float | None = None) -> InterimResult:
    """Look after every pair of `outcomes` (A's success, B's success on one layout), in the order they were run.

    Args:
        alpha: the chance, over all looks together, of seeing a difference where there is none.
        margin: differences smaller than this do not matter; None: never stop for want of a difference.

    The interval takes the layouts as draws from one mixture of tasks, as a sheet of mixed order has them; the test
    needs no such thing. Interval and test agree: it leaves 0 when the evidence passes 1 / alpha.

    Raises:
        ValueError: no pair.
    """
    if not outcomes:
        raise ValueError("no layout was tried by both")
    evidence, decision, decided_at = 1.0, "more", 0
    wins_a = wins_b = ties = 0
    low, high = -1.0, 1.0
    for number, (a, b) in enumerate(outcomes, start=1):
        wins_a, wins_b, ties = wins_a + (a and not b), wins_b + (b and not a), ties + (a == b)
        evidence = max(evidence, math.exp(min(float(log_evidence(wins_a, wins_b)), 700.0)))
        last = number == len(outcomes)
        if decision == "more" and evidence >= 1 / alpha:
            decision, decided_at = "difference", number
        if last or (margin is not None and decision == "more"):
            low, high = anytime_interval(Pairs(ties, wins_a, wins_b, 0), alpha)
        if decision == "more" and margin is not None and -margin < low and high < margin:
            decision, decided_at = "equivalent", number
    return InterimResult(len(outcomes), evidence, 1 / evidence, low, high, decision, decided_at)


def log_evidence(wins_a: int | np.ndarray, wins_b: int | np.ndarray) -> np.ndarray:
    """Logarithm of the e-value against "on layouts where they disagree, either wins with probability 1/2".

    The uniform mixture of likelihood ratios (Robbins 1970): B(1 + a, 1 + b) * 2^(a + b).
    """
    wins_a, wins_b = np.asarray(wins_a), np.asarray(wins_b)
    return betaln(1 + wins_a, 1 + wins_b) + (wins_a + wins_b) * math.log(2)


def log_wealth(pairs: Pairs, difference: float) -> float:
    """Logarithm of the e-value against "B's rate is `difference` above A's"; at 0 it is `log_evidence`.

    What becomes of 1 that is bet on every layout's outcome d (1: B alone, -1: A alone, 0: alike) by the factor
    1 + s (d - difference) (Waudby-Smith and Ramdas 2024), half of it spread evenly over the stakes s > 0 that cannot
    ruin one, half over those below 0. As a function of s that is a polynomial, so Gauss' quadrature is exact.
    """
    counts = np.array([pairs.only_b, pairs.only_a, pairs.both + pairs.neither])
    gains = np.array([1.0, -1.0, 0.0]) - difference
    nodes, weights = _quadrature(pairs.layouts // 2 + 1)
    stakes = np.concatenate([nodes / (1 + difference), -nodes / (1 - difference)])  # (2n,)
    factors = np.maximum(1 + stakes[:, None] * gains, 1e-300)
    return np.asarray(logsumexp(np.log(factors) @ counts, b=np.tile(weights, 2) / 2)).item()


def anytime_interval(pairs: Pairs, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of the difference B - A that holds at every number of pairs at once with probability 1 - alpha.

    All differences against which betting has not multiplied the stake by 1 / alpha.
    """
    seen = (pairs.only_b - pairs.only_a) / pairs.layouts if pairs.layouts else 0.0
    seen = min(max(seen, -1 + 2 * _EDGE), 1 - 2 * _EDGE)
    ends = []
    for edge in (-1 + _EDGE, 1 - _EDGE):
        if log_wealth(pairs, edge) < -math.log(alpha):
            ends.append(math.copysign(1.0, edge))  # not excluded anywhere on this side
            continue
        found: Any = root_scalar(
            lambda delta: log_wealth(pairs, delta) + math.log(alpha),
            bracket=sorted((edge, seen)),
            method="brentq",
            xtol=1e-9,
        )
        ends.append(found.root)
    return ends[0], ends[1]


@lru_cache(maxsize=64)
def _quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights (n,) on 0 to 1; the weights sum to 1."""
    at, weights = roots_legendre(nodes)
    return (at + 1) / 2, weights / 2
