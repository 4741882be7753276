"""Tests of rates, exact tests, intervals, the sequential test and power: by hand, with scipy, by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import xlogy
from scipy.stats import binom, fisher_exact

from srpo_robot.evaluation.power import (
    discordance,
    needed,
    paired_power,
    pairs_needed,
    rates,
    sequential_pairs_needed,
    trials_needed,
    unpaired_power,
)
from srpo_robot.evaluation.sequential import anytime_interval, log_evidence, log_wealth, monitor
from srpo_robot.evaluation.statistics import (
    Pairs,
    Stratum,
    exact_mcnemar,
    exact_stratified,
    holm,
    mean_effect,
    paired_effect,
    restricted_only_a,
    restricted_rate_a,
    stratified_effect,
)

COUNTS = st.integers(0, 25)
PAIRS = st.builds(Pairs, COUNTS, COUNTS, COUNTS, COUNTS).filter(lambda pairs: pairs.layouts > 0)


@st.composite
def strata(draw: st.DrawFn) -> Stratum:
    trials_a, trials_b = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    return Stratum(draw(st.integers(0, trials_a)), trials_a, draw(st.integers(0, trials_b)), trials_b)


def fisher(table: list[list[int]]) -> float:
    result: Any = fisher_exact(table)
    return float(result[1])


# --- exact tests


def test_mcnemar_by_hand():
    # 1 against 7: P(at most 1 or at least 7 of 8 heads) = 2 (1 + 8) / 256
    assert exact_mcnemar(Pairs(10, 1, 7, 3)) == pytest.approx(18 / 256)
    assert exact_mcnemar(Pairs(10, 0, 0, 3)) == 1.0


@settings(deadline=None)
@given(strata())
def test_one_task_is_fishers_exact_test(s):
    table = [[s.successes_a, s.trials_a - s.successes_a], [s.successes_b, s.trials_b - s.successes_b]]
    assert exact_stratified([s]) == pytest.approx(fisher(table), abs=1e-9)


@settings(deadline=None)
@given(st.lists(strata(), min_size=1, max_size=4), st.randoms())
def test_task_order_has_no_effect_and_swapping_policies_flips_the_sign(tasks, random):
    forward = stratified_effect(tasks)
    permutation = random.sample(tasks, len(tasks))
    assert stratified_effect(permutation) == pytest.approx(forward, abs=1e-7)
    back = stratified_effect([Stratum(s.successes_b, s.trials_b, s.successes_a, s.trials_a) for s in tasks])
    assert (-back.difference, -back.high, -back.low, back.p) == pytest.approx(forward, abs=1e-6)


def test_two_tasks_by_enumeration():
    # Enumerates every split of each task's totals, weighted by the hypergeometric distribution.
    first, second = Stratum(1, 3, 3, 4), Stratum(0, 2, 2, 3)

    def law(s: Stratum) -> dict[int, float]:
        total = s.successes_a + s.successes_b
        ways = {b: math.comb(s.trials_b, b) * math.comb(s.trials_a, total - b) for b in range(total + 1)}
        return {b: way / sum(ways.values()) for b, way in ways.items() if way}

    chances: dict[int, float] = {}
    for b, p in law(first).items():
        for c, q in law(second).items():
            chances[b + c] = chances.get(b + c, 0.0) + p * q
    expected = sum(p for p in chances.values() if p <= chances[5] * (1 + 1e-7))
    assert exact_stratified([first, second]) == pytest.approx(expected)


def test_pooling_tasks_first_would_reverse_the_result():
    # A was run on the easy task, B on the hard one, and B is better on both (Simpson's paradox).
    effect = stratified_effect([Stratum(72, 90, 9, 10), Stratum(1, 10, 27, 90)])
    assert effect.difference == pytest.approx(0.15)
    assert 72 + 1 > 9 + 27


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


# --- intervals


def test_published_intervals():
    # Newcombe (1998): 56 of 70 against 48 of 80, Miettinen and Nurminen; Tango (1998): one discordant pair of 44.
    assert stratified_effect([Stratum(48, 80, 56, 70)])[:3] == pytest.approx((0.2, 0.0528, 0.3382), abs=5e-5)
    assert paired_effect(Pairs(43, 1, 0, 0))[1:3] == pytest.approx((-0.118, 0.059), abs=5e-4)


@settings(deadline=None)
@given(strata(), st.floats(-0.95, 0.95))
def test_the_restricted_rate_is_the_most_likely_one(s, delta):
    def surprise(rate: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return -binom.logpmf(s.successes_a, s.trials_a, rate) - binom.logpmf(
                s.successes_b, s.trials_b, rate + delta
            )

    grid = np.clip(np.linspace(max(0.0, -delta), min(1.0, 1.0 - delta), 2001), 0.0, 1.0 - max(delta, 0.0))
    best = float(np.nanmin(surprise(grid)))
    assert float(surprise(np.array([restricted_rate_a(s, delta)]))[0]) <= best + 1e-6


@settings(deadline=None)
@given(PAIRS, st.floats(-0.95, 0.95))
def test_the_restricted_chance_of_a_alone_is_the_most_likely_one(pairs, delta):
    def likelihood(only_a: np.ndarray) -> np.ndarray:
        chances = np.stack([only_a, only_a + delta, 1 - 2 * only_a - delta]).clip(0.0)
        counts = np.array([pairs.only_a, pairs.only_b, pairs.both + pairs.neither])
        return xlogy(counts[:, None], chances).sum(axis=0)

    grid = np.linspace(max(0.0, -delta), (1 - delta) / 2, 2001)
    assert likelihood(np.array([restricted_only_a(pairs, delta)]))[0] >= likelihood(grid).max() - 1e-6


@settings(deadline=None)
@given(PAIRS)
def test_an_interval_holds_the_difference_and_widens_with_confidence(pairs):
    narrow, wide = paired_effect(pairs, 0.8), paired_effect(pairs, 0.99)
    assert -1 <= wide.low <= narrow.low + 1e-8 <= narrow.difference + 2e-8
    assert narrow.difference - 2e-8 <= narrow.high - 1e-8 <= wide.high <= 1


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no layout"):
        paired_effect(Pairs(0, 0, 0, 0))
    with pytest.raises(ValueError, match="no task"):
        stratified_effect([Stratum(0, 0, 1, 2)])
    with pytest.raises(ValueError, match="no task"):
        mean_effect([(np.array([]), np.array([1.0]))], paired=False)


@pytest.mark.parametrize(("pairs", "only_a", "only_b"), [(15, 0.1, 0.1), (20, 0.1, 0.4), (50, 0.2, 0.25)])
def test_paired_intervals_cover_and_tests_err_as_promised(pairs, only_a, only_b):
    rng = np.random.default_rng(pairs)
    studies = rng.multinomial(pairs, [only_a, only_b, 1 - only_a - only_b], size=2000)
    draws, often = np.unique(studies, axis=0, return_counts=True)  # many outcomes are equal, so each is computed once
    effects = [paired_effect(Pairs(int(c), int(a), int(b), 0)) for a, b, c in draws]
    coverage = often @ [effect.low <= only_b - only_a <= effect.high for effect in effects] / often.sum()
    assert coverage >= 0.93
    if only_a == only_b:
        assert often @ [effect.p <= 0.05 for effect in effects] / often.sum() <= 0.05


@pytest.mark.parametrize(("rates_a", "difference"), [((0.3, 0.6, 0.1), 0.2), ((0.28, 0.05), 0.0)])
def test_stratified_intervals_cover_and_tests_err_as_promised(rates_a, difference):
    rng = np.random.default_rng(len(rates_a))
    effects = [
        stratified_effect(
            [Stratum(int(rng.binomial(15, a)), 15, int(rng.binomial(18, a + difference)), 18) for a in rates_a]
        )
        for _ in range(400)
    ]
    assert np.mean([effect.low <= difference <= effect.high for effect in effects]) >= 0.92
    if difference == 0.0:
        assert np.mean([effect.p <= 0.05 for effect in effects]) <= 0.06


# --- a measured outcome


def test_progress_by_hand():
    a, b = np.array([0.2, 0.4, 0.6]), np.array([0.5, 0.5, 0.9])
    paired = mean_effect([(a, b)], paired=True)
    assert paired.difference == pytest.approx(0.7 / 3)
    assert paired.p == pytest.approx(2 / 8, abs=0.03)  # all three signs equal: 2 of 8 sign patterns
    # Two tasks of 3 and 1 pairs: (3 * 0.7 / 3 + 0.1) / 4
    assert mean_effect([(a, b), (np.array([0.1]), np.array([0.2]))], paired=True).difference == pytest.approx(0.2)


def test_one_pair_has_no_interval():
    effect = mean_effect([(np.array([0.1]), np.array([0.2]))], paired=True)
    assert (effect.low, effect.high, effect.p) == (-math.inf, math.inf, 1.0)


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_of_progress_covers_and_its_test_errs_as_promised(paired):
    rng = np.random.default_rng(int(paired))
    effects = []
    for _ in range(300):
        base = rng.beta(2, 2, 12)
        other = base if paired else rng.beta(2, 2, 12)
        noise = 0.1 * rng.standard_normal((2, 12))
        effects.append(mean_effect([(base + noise[0], other + noise[1] + 0.1)], paired, resamples=500))
    assert np.mean([effect.low <= 0.1 <= effect.high for effect in effects]) >= 0.91
    null = [mean_effect([tuple(rng.random((2, 10)))], paired, resamples=500).p for _ in range(300)]
    assert np.mean(np.array(null) <= 0.05) <= 0.085


# --- the sequential test


def test_evidence_by_hand():
    # Uniform mixture: 2^n a! b! / (n + 1)!; five wins in a row: 32 / 6
    assert math.exp(log_evidence(0, 5)) == pytest.approx(32 / 6)
    assert math.exp(log_evidence(2, 3)) == pytest.approx(32 * 2 * 6 / 720)
    look = monitor([(False, True)] * 8)
    assert (look.decision, look.decided_at) == ("difference", 8)  # 2^8 / 9 = 28.4, 2^7 / 8 = 16
    assert look.p == pytest.approx(9 / 256)


def test_layouts_with_equal_outcomes_are_no_evidence():
    outcomes = [(False, True), (True, True), (False, False)] * 10
    assert monitor(outcomes).evidence == pytest.approx(monitor([(False, True)] * 10).evidence)
    assert monitor([(True, True)] * 50).p == 1.0


@settings(deadline=None)
@given(PAIRS)
def test_interval_and_test_agree_and_treat_the_policies_alike(pairs):
    assert log_wealth(pairs, 0.0) == pytest.approx(float(log_evidence(pairs.only_a, pairs.only_b)), abs=1e-9)
    low, high = anytime_interval(pairs)
    assert (low > 0 or high < 0) == (log_wealth(pairs, 0.0) > math.log(20))
    mirror = anytime_interval(Pairs(pairs.both, pairs.only_b, pairs.only_a, pairs.neither))
    assert (-mirror[1], -mirror[0]) == pytest.approx((low, high), abs=1e-6)
    assert low <= (pairs.only_b - pairs.only_a) / pairs.layouts <= high
    ordinary = paired_effect(pairs)
    assert high - low >= ordinary.high - ordinary.low - 1e-6  # the anytime interval is wider


def test_evidence_is_a_fair_bet():
    # Exactly, over all outcomes of ten fair coins: the mean gain is zero.
    wins = np.arange(11)
    assert binom.pmf(wins, 10, 0.5) @ np.exp(log_evidence(10 - wins, wins)) == pytest.approx(1.0)


@pytest.mark.parametrize("agree", [0.0, 0.6, 0.96])
def test_looking_after_every_trial_raises_no_more_false_alarms_than_promised(agree):
    rng = np.random.default_rng(7)
    draws = rng.random((2000, 400))
    wins_a, wins_b = np.cumsum(draws < (1 - agree) / 2, axis=1), np.cumsum(draws > (1 + agree) / 2, axis=1)
    false_alarms = (log_evidence(wins_a, wins_b) >= math.log(20)).any(axis=1).mean()
    assert false_alarms <= 0.05
    if agree == 0.0:  # the ordinary test exceeds its error rate if it is repeated that often
        limits = binom.ppf(0.025, np.arange(1, 401), 0.5)
        assert (np.minimum(wins_a, wins_b) < limits).any(axis=1).mean() > 0.2


@pytest.mark.parametrize(("only_a", "only_b"), [(0.1, 0.3), (0.4, 0.4)])
def test_the_interval_holds_at_all_times_together(only_a, only_b):
    rng = np.random.default_rng(3)
    misses = 0
    for _ in range(100):
        counts = [0, 0, 0]
        for kind in rng.choice(3, 60, p=[only_a, only_b, 1 - only_a - only_b]):
            counts[kind] += 1
            if log_wealth(Pairs(counts[2], counts[0], counts[1], 0), only_b - only_a) >= math.log(20):
                misses += 1
                break
    assert misses <= 5


def test_the_test_stops_once_no_relevant_difference_is_left():
    look = monitor([(True, True)] * 60, margin=0.15)
    assert look.decision == "equivalent"
    low, high = anytime_interval(Pairs(look.decided_at, 0, 0, 0))
    assert low > -0.15
    assert high < 0.15
    before = anytime_interval(Pairs(look.decided_at - 1, 0, 0, 0))
    assert before[1] >= 0.15
    assert monitor([(True, True)] * 60).decision == "more"


# --- power


@pytest.mark.parametrize(("pairs", "only_a", "only_b"), [(6, 0.1, 0.5), (17, 0.1, 0.5), (12, 0.0, 0.6)])
def test_paired_power_by_enumeration(pairs, only_a, only_b):
    expected = 0.0
    for a in range(pairs + 1):
        for b in range(pairs + 1 - a):
            if exact_mcnemar(Pairs(pairs - a - b, a, b, 0)) <= 0.05:
                rest = pairs - a - b
                ways = math.comb(pairs, a) * math.comb(pairs - a, b)
                expected += ways * only_a**a * only_b**b * (1 - only_a - only_b) ** rest
    assert paired_power(pairs, only_a, only_b) == pytest.approx(expected)


@pytest.mark.parametrize(("trials", "a", "b"), [(5, 0.0, 1.0), (8, 0.1, 0.8), (15, 0.28, 0.467)])
def test_unpaired_power_by_enumeration(trials, a, b):
    expected = sum(
        binom.pmf(x, trials, a) * binom.pmf(y, trials, b)
        for x in range(trials + 1)
        for y in range(trials + 1)
        if fisher([[x, trials - x], [y, trials - y]]) <= 0.05
    )
    assert unpaired_power(trials, a, b) == pytest.approx(expected)


def test_without_a_difference_power_is_the_error_rate():
    assert paired_power(40, 0.2, 0.2) <= 0.05
    assert unpaired_power(40, 0.3, 0.3) <= 0.05


@settings(max_examples=10, deadline=None)
@given(st.floats(0.05, 0.45), st.floats(0.2, 0.4))
def test_a_larger_difference_needs_fewer_trials_and_that_number_suffices(base, difference):
    size, fewer = pairs_needed(base, difference), pairs_needed(base, difference + 0.15)
    assert size is not None
    assert fewer is not None
    assert fewer <= size
    assert paired_power(size, *discordance(base, difference)) >= 0.8
    assert paired_power(max(size // 2, 1), *discordance(base, difference)) < 0.8


def test_looking_after_every_trial_costs_trials_but_keeps_the_power():
    ordinary, sequential = pairs_needed(0.3, 0.3), sequential_pairs_needed(0.3, 0.3)
    assert ordinary is not None
    assert sequential is not None
    assert ordinary < sequential < 2 * ordinary
    rng = np.random.default_rng(99)  # independent of the studies that the number was computed from
    only_a, only_b = discordance(0.3, 0.3)
    draws = rng.random((2000, sequential))
    wins_a, wins_b = np.cumsum(draws < only_a, axis=1), np.cumsum(draws > 1 - only_b, axis=1)
    assert (log_evidence(wins_a, wins_b) >= math.log(20)).any(axis=1).mean() == pytest.approx(0.8, abs=0.03)


def test_unpaired_trials_are_needed_as_computed():
    size = trials_needed(0.28, 0.187)  # figure 8 of the paper, if both arms ran on different layouts
    assert size is not None
    assert unpaired_power(size, 0.28, 0.467) >= 0.8 > unpaired_power(size - 20, 0.28, 0.467)


def test_an_impossible_difference_is_refused():
    assert rates(0.9, 0.2) == pytest.approx((0.9, 0.7))  # no higher rate is possible
    with pytest.raises(ValueError, match="no rate is 70% away"):
        rates(0.5, 0.7)
    with pytest.raises(ValueError, match="power"):
        needed(lambda _: 1.0, power=1.0)
    assert needed(lambda _: 0.5, most=100) is None
