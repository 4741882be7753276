"""The benchmark's numbers: against scipy and scikit-learn, by hand, if undefined, and under the null hypothesis."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import kendalltau, kstest, spearmanr
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from srpo_robot.errors import UnlabelledError, UsageError
from srpo_robot.progress.evidence import metrics
from srpo_robot.progress.evidence.metrics import (
    METRICS,
    SEPARATION,
    Estimate,
    Resampling,
    all_metrics,
    auc,
    auc_difference,
    chunk_correlation,
    drop_auc,
    hedges_g,
    js,
    macro_mean,
    mmd,
    monotonicity,
    policy_ranking,
    separation,
    smd,
    spearman,
    tail_rise,
    task_metrics,
)
from srpo_robot.records import Curve

FEW = Resampling(resamples=200, permutations=99)
NONE = Resampling(resamples=0, permutations=0)
# Few distinct values, so that ties are common. Eighths are exact.
samples = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=2, max_size=12).map(np.array)


def curve(progress: list[float], is_scored: list[bool] | None = None) -> Curve:
    p = np.array(progress)
    mask = np.ones(len(p), dtype=bool) if is_scored is None else np.array(is_scored)
    return Curve(0, 1.0 - p, p, mask)


def ending(value: float) -> Curve:
    return curve([0.0, value / 2, value])


# --- one number from two samples


@given(samples, samples)
def test_auc_is_scikit_learns(success, failure):
    expected = roc_auc_score(np.r_[np.ones(len(success)), np.zeros(len(failure))], np.r_[success, failure])
    assert auc(success, failure) == pytest.approx(expected, abs=1e-12)


@given(samples, samples)
def test_js_is_the_square_of_scipys_distance(success, failure):
    p, q = (np.histogram(x, bins=10, range=(0, 1))[0] / len(x) for x in (success, failure))
    assert js(success, failure) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)
    assert 0.0 <= js(success, failure) <= math.log(2)


@given(samples, samples)
def test_mmd_is_the_mean_of_kernels_with_the_median_heuristic(success, failure):
    pooled_samples = np.r_[success, failure][:, None]
    squares = cdist(pooled_samples, pooled_samples, "sqeuclidean")
    apart = squares[np.triu_indices(len(pooled_samples), 1)]
    assume((apart > 0).any())
    gamma = 1.0 / np.median(apart[apart > 0])
    n, m = len(success), len(failure)
    ss = rbf_kernel(success[:, None], gamma=gamma)
    ff = rbf_kernel(failure[:, None], gamma=gamma)
    sf = rbf_kernel(success[:, None], failure[:, None], gamma=gamma)
    assert mmd(success, failure) == pytest.approx(ss.mean() + ff.mean() - 2 * sf.mean(), abs=1e-12)
    u = (ss.sum() - n) / (n * (n - 1)) + (ff.sum() - m) / (m * (m - 1)) - 2 * sf.mean()
    assert mmd(success, failure, unbiased=True) == pytest.approx(u, abs=1e-12)
    assert 0.0 <= mmd(success, failure) < 2.0


@given(samples, samples)
def test_smd_is_the_difference_over_the_pooled_deviation(success, failure):
    n, m = len(success), len(failure)
    pooled_deviation = math.sqrt(((n - 1) * success.var(ddof=1) + (m - 1) * failure.var(ddof=1)) / (n + m - 2))
    assume(pooled_deviation > 1e-9)
    assert smd(success, failure) == pytest.approx((success.mean() - failure.mean()) / pooled_deviation)
    assert abs(hedges_g(success, failure)) <= abs(smd(success, failure))


@given(samples, samples)
def test_swapping_the_labels_mirrors_auc_and_smd_and_leaves_mmd_and_js(success, failure):
    assert auc(failure, success) == pytest.approx(1 - auc(success, failure))
    assert mmd(failure, success) == pytest.approx(mmd(success, failure), abs=1e-12)
    assert js(failure, success) == pytest.approx(js(success, failure), abs=1e-12)
    forward = smd(success, failure)
    assert smd(failure, success) == pytest.approx(-forward, nan_ok=True)


def test_numbers_by_hand():
    success, failure = np.array([0.9, 0.7]), np.array([0.7, 0.1])
    assert auc(success, failure) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # bins 9, 7 against 7, 1: half of each is shared
    assert js(success, failure) == pytest.approx(math.log(2) / 2)
    # variances 0.02 and 0.18, pooled 0.1; df 2
    assert smd(success, failure) == pytest.approx(0.4 / math.sqrt(0.1))
    assert hedges_g(success, failure) == pytest.approx(0.4 / math.sqrt(0.1) * (1 - 3 / 7))
    # squared distances of the pairs that differ: .04 (.9-.7, twice), .64, .36 (twice): median .36
    k = {d: math.exp(-d / 0.36) for d in (0.04, 0.36, 0.64)}
    biased_mmd = (1 + k[0.04]) / 2 + (1 + k[0.36]) / 2 - 2 * (k[0.04] + k[0.64] + 1 + k[0.36]) / 4
    assert mmd(success, failure) == pytest.approx(biased_mmd)


def test_the_ends_of_the_unit_interval_are_in_its_first_and_last_bin():
    assert js(np.array([1.0, 1.0]), np.array([0.95, 0.95])) == 0.0
    assert js(np.array([0.0]), np.array([1.0])) == pytest.approx(math.log(2))
    assert js(np.array([0.1]), np.array([0.0999])) == pytest.approx(math.log(2))
    assert math.isnan(js(np.array([1.1]), np.array([0.5])))


def test_js_of_two_identical_samples_of_30_and_20_is_not_0():
    rng = np.random.default_rng(0)
    values = [js(rng.random(30), rng.random(20)) for _ in range(400)]
    assert np.mean(values) == pytest.approx(0.115, abs=0.01)


def test_numbers_of_an_empty_or_broken_sample():
    empty, sample = np.zeros(0), np.array([0.2, 0.4])
    for statistic in (auc, mmd, js, smd, hedges_g):
        assert math.isnan(statistic(empty, sample))
        assert math.isnan(statistic(sample, empty))
    assert math.isnan(mmd(np.array([0.3]), sample, unbiased=True))
    assert math.isnan(hedges_g(np.array([0.3]), sample))  # df 1: the correction would make it 0
    with pytest.raises(ValueError, match="not finite"):
        auc(np.array([np.nan]), sample)


# --- curves


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_sc_is_scipys_spearman_of_time_and_progress(levels):
    progress = np.array(levels) / 5
    assume(np.ptp(progress) > 0)
    expected = spearmanr(np.arange(len(levels)), progress)[0]
    assert spearman(curve(list(progress))) == pytest.approx(expected)
    assert monotonicity(curve(list(progress))) == np.mean(np.diff(progress) > 0)


def test_interpolated_frames_are_no_evidence():
    is_scored = [False, True, False, False, True, True]
    made_up = curve([0.9, 0.2, 0.1, 0.7, 0.4, 0.4], is_scored)
    assert monotonicity(made_up) == 0.5  # .2 -> .4 rises, .4 -> .4 is a tie: no rise
    assert spearman(made_up) == pytest.approx(spearmanr([1, 4, 5], [0.2, 0.4, 0.4])[0])


def test_a_constant_or_nan_curve_has_no_sc():
    assert math.isnan(spearman(curve([0.5] * 4)))
    assert monotonicity(curve([0.5] * 4)) == 0.0
    for nothing in (curve([math.nan] * 4), curve([0.5], [True]), curve([0.1, 0.2], [False, False])):
        assert math.isnan(spearman(nothing))
        assert math.isnan(monotonicity(nothing))


# --- a task's table


def test_a_tasks_table_by_hand():
    curves = [ending(0.9), ending(0.7), curve([0.2, 0.1, 0.7]), ending(0.1)]
    table = task_metrics("apple", curves, [True, True, False, False], FEW)
    assert set(table.estimates) == set(METRICS)
    assert (table.successes, table.failures, table.left_out) == (2, 2, 0)
    assert table.estimates["sc"].value == 1.0
    assert table.estimates["mono"].value == 1.0
    assert table.estimates["auc"].value == pytest.approx(0.875)
    assert all(e.reason == "" and e.undefined == 0 for e in table.estimates.values())


@pytest.mark.parametrize(
    ("final", "success", "reason"),
    [
        ([0.5, 0.6], [True, True], metrics.NO_FAILURE),
        ([0.5, 0.6], [False, False], metrics.NO_SUCCESS),
        ([0.5, math.nan], [True, False], metrics.NO_FAILURE),
        ([], [], metrics.NO_SUCCESS),
    ],
)
def test_a_label_without_an_episode_leaves_everything_undefined(final, success, reason):
    table = separation(np.array(final), success, FEW)
    assert [e.reason for e in table.estimates.values()] == [reason] * len(SEPARATION)
    assert all(math.isnan(e.value) and math.isnan(e.low) and math.isnan(e.p) for e in table.estimates.values())


def test_an_episode_without_a_score_counts_nowhere_and_is_counted():
    final = np.array([0.9, math.nan, 0.7, 0.7, 0.1, math.nan])
    success = [True, True, True, False, False, False]
    table = separation(final, success, NONE)
    assert (table.successes, table.failures, table.left_out) == (2, 2, 2)
    assert table.estimates["auc"] == Estimate(value=0.875, undefined=2)


def test_a_constant_score_separates_nothing_and_has_no_smd():
    table = separation(np.full(8, 0.4), [True] * 4 + [False] * 4, FEW)
    values = {name: estimate.value for name, estimate in table.estimates.items()}
    assert (values["auc"], values["mmd"], values["js"]) == (0.5, 0.0, 0.0)
    assert table.estimates["auc"].p == 1.0
    assert table.estimates["smd"].reason == metrics.NO_SPREAD
    assert table.estimates["hedges_g"].reason == metrics.NO_SPREAD


def test_a_separation_without_spread_is_perfect_and_its_smd_undefined():
    """Every success ends at exactly 1, as in profile `paper`."""
    table = separation(np.array([1.0] * 8 + [0.2] * 3), [True] * 8 + [False] * 3, Resampling(100, 999))
    assert table.estimates["auc"].value == 1.0
    assert table.estimates["js"].value == pytest.approx(math.log(2))
    assert table.estimates["mmd"].value == pytest.approx(2 - 2 / math.e)  # the only distance is the median
    assert table.estimates["smd"].reason == metrics.NO_SPREAD
    assert table.estimates["auc"].p < 0.03  # 1/165 and the 1 of the estimate itself


def test_one_success_has_values_and_no_interval():
    table = separation(np.array([0.9, 0.3, 0.2, 0.4]), [True, False, False, False], FEW)
    assert table.estimates["auc"].value == 1.0
    assert all(math.isnan(estimate.low) for estimate in table.estimates.values())
    assert table.estimates["mmd_unbiased"].reason == "too few episodes: two of each label"


def test_too_few_episodes_for_a_deviation():
    table = separation(np.array([0.9, 0.3]), [True, False], NONE)
    assert table.estimates["smd"].reason == "too few episodes: three"
    assert table.estimates["hedges_g"].reason == "too few episodes: four"


def test_a_score_outside_the_unit_interval_has_no_histogram_but_a_rank():
    table = separation(np.array([30.0, 20.0, 10.0]), [True, True, False], NONE)
    assert table.estimates["js"].reason == metrics.OUTSIDE
    assert table.estimates["auc"].value == 1.0


def test_an_unlabelled_episode_is_never_a_failure():
    for call in (
        lambda: separation(np.array([0.1, 0.2]), [True, None]),
        lambda: task_metrics("t", [ending(0.1), ending(0.2)], [True, None]),
        lambda: policy_ranking(np.array([0.1]), [None], ["a"]),
    ):
        with pytest.raises(UnlabelledError, match="have no label"):
            call()


@pytest.mark.parametrize("wrong", [{"resamples": -1}, {"permutations": -1}, {"confidence": 1.0}, {"seed": -1}])
def test_an_invalid_resampling_is_refused(wrong):
    with pytest.raises(UsageError, match="must be 0 or more"):
        Resampling(**wrong)


# --- intervals and p values


def draw(seed: int, shift: float = 0.0, successes: int = 30, failures: int = 20) -> tuple[np.ndarray, list[bool]]:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0.5, 0.1, successes + failures), 0, 1)
    values[:successes] = np.clip(values[:successes] + shift, 0, 1)
    return values, [True] * successes + [False] * failures


def test_draws_follow_the_seed_and_the_task_not_the_order_of_tasks():
    final, success = draw(0, 0.05)
    first, second = separation(final, success, FEW, "apple"), separation(final, success, FEW, "apple")
    assert first.estimates == second.estimates
    assert first.estimates["auc"].low != separation(final, success, FEW, "pear").estimates["auc"].low
    assert (
        first.estimates["auc"].low
        != separation(final, success, Resampling(200, 99, seed=1), "apple").estimates["auc"].low
    )
    curves, tasks = [ending(value) for value in final], ["apple", "pear"] * 25
    there = {t.task: t.estimates for t in all_metrics(tasks, curves, success, FEW)}
    back = {t.task: t.estimates for t in all_metrics(tasks[::-1], curves[::-1], success[::-1], FEW)}
    assert {t: e["auc"].value for t, e in there.items()} == pytest.approx({t: e["auc"].value for t, e in back.items()})
    assert list(there) == ["apple", "pear"]


@given(st.permutations(range(12)))
def test_the_order_of_episodes_changes_no_value(order):
    final, success = draw(3, 0.05, 7, 5)
    first = separation(final, success, NONE).estimates
    second = separation(final[list(order)], [success[i] for i in order], NONE).estimates
    for name in SEPARATION:
        assert second[name].value == pytest.approx(first[name].value)


def test_an_interval_holds_its_value_and_widens_with_confidence():
    final, success = draw(1, 0.08)
    wide = separation(final, success, Resampling(confidence=0.99)).estimates
    narrow = separation(final, success, Resampling(confidence=0.8)).estimates
    for name in ("auc", "smd", "hedges_g"):
        assert wide[name].low < narrow[name].low <= narrow[name].value <= narrow[name].high < wide[name].high


def test_bootstrap_draws_are_the_statistic_of_real_resamples():
    """The counts name the drawn episodes. The draw is the statistic of the repeated episodes."""
    final, success = draw(5, 0.05, 6, 4)
    label = np.array(success)
    s, f = metrics._bootstrap(label, 20, np.random.default_rng(0))
    for row in range(20):
        successes, failures = np.repeat(final, s[row].astype(int)), np.repeat(final, f[row].astype(int))
        assert (len(successes), len(failures)) == (6, 4)
        counts = s[row : row + 1], f[row : row + 1]
        assert metrics._auc(final, *counts)[0] == pytest.approx(auc(successes, failures))
        assert metrics._js(final, *counts)[0] == pytest.approx(js(successes, failures))
        assert metrics._smd(final, *counts)[0] == pytest.approx(smd(successes, failures), nan_ok=True)


def test_the_bootstrap_interval_of_auc_covers_its_truth():
    """Two normals one deviation apart have the true AUC Phi(1/sqrt 2). The interval promises 95 %."""
    truth = 0.5 * math.erfc(-1.0 / 2.0)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        final = np.r_[rng.normal(1, 1, 40), rng.normal(0, 1, 40)]
        interval = separation(final, [True] * 40 + [False] * 40, Resampling(200, 0)).estimates["auc"]
        inside += interval.low <= truth <= interval.high
    assert inside / 200 >= 0.88


@pytest.fixture(scope="module")
def null_p() -> dict[str, np.ndarray]:
    """p values of 500 pairs of samples that differ by chance alone, by metric."""
    tables = [separation(*draw(seed), Resampling(0, 99, seed=seed)).estimates for seed in range(500)]
    return {metric: np.array([table[metric].p for table in tables]) for metric in metrics.TESTED}


@pytest.mark.parametrize("metric", metrics.TESTED)
def test_p_values_are_uniform_if_both_samples_have_one_distribution(null_p, metric):
    p = null_p[metric]
    assert p.min() >= 1 / 100
    assert p.max() <= 1.0
    # p takes the values 1/100 .. 1: half a step back it is as a continuous one. JS has few values, which moves its p
    # up, never down.
    assert kstest(p - 0.005, "uniform", alternative="greater" if metric == "js" else "two-sided")[1] > 0.001
    assert (p <= 0.05).mean() < 0.08


def test_p_values_are_small_if_the_samples_differ_and_the_null_is_near_chance():
    table = separation(*draw(0, 0.3), Resampling(0, 999)).estimates
    for metric in metrics.TESTED:
        assert table[metric].p == pytest.approx(1 / 1000)
    assert table["auc"].null == pytest.approx(0.5, abs=0.02)
    assert table["smd"].null == pytest.approx(0.0, abs=0.05)
    assert 0.0 < table["js"].null < table["js"].value / 3
    assert 0.0 < table["mmd"].null < table["mmd"].value / 3
    assert math.isnan(table["hedges_g"].p)


def test_a_score_that_is_wrong_has_no_small_p():
    table = separation(*draw(0, -0.3), Resampling(0, 199)).estimates
    assert table["auc"].p == 1.0
    assert table["smd"].p == 1.0


def test_a_paired_difference_is_tighter_than_two_intervals():
    final, success = draw(2, 0.08)
    worse = final - 0.02 * np.array(success)  # the same score, but successes score 0.02 less
    alone = separation(final, success, FEW).estimates["auc"]
    difference = auc_difference(final, worse, success, FEW)
    assert difference.value == pytest.approx(alone.value - separation(worse, success, NONE).estimates["auc"].value)
    assert difference.high - difference.low < alone.high - alone.low
    same = auc_difference(final, final, success, FEW)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    missing = np.where(np.arange(len(final)) == 3, np.nan, final)
    assert auc_difference(missing, worse, success, FEW).undefined == 1
    assert auc_difference(missing, worse, [True] * len(final), FEW).reason == metrics.NO_FAILURE


# --- macro means


def test_a_macro_mean_leaves_out_undefined_values_and_counts_them():
    good = task_metrics("a", [ending(v) for v in (0.9, 0.8, 0.1, 0.3)], [True, True, False, False], FEW)
    half = task_metrics("b", [ending(v) for v in (0.4, 0.6, 0.5, 0.55)], [True, True, False, False], FEW)
    no_failures = task_metrics("c", [ending(v) for v in (0.9, 0.8)], [True, True], FEW)
    macro = macro_mean([good, half, no_failures])
    assert macro["auc"].value == pytest.approx((1.0 + 0.5) / 2)
    assert (macro["auc"].undefined, macro["auc"].reason) == (1, metrics.NO_FAILURE)
    assert macro["auc"].low <= macro["auc"].value <= macro["auc"].high
    assert (macro["sc"].value, macro["sc"].undefined, macro["sc"].reason) == (1.0, 0, "")
    nothing = macro_mean([no_failures])["auc"]
    assert math.isnan(nothing.value)
    assert (nothing.undefined, nothing.reason) == (1, metrics.NO_FAILURE)
    assert macro_mean([]) == {}


def test_the_interval_of_a_macro_mean_is_narrower_than_its_tasks():
    tables = [separation(*draw(seed, 0.1), FEW, f"task {seed}") for seed in range(6)]
    macro = macro_mean(tables)["auc"]
    widths = [t.estimates["auc"].high - t.estimates["auc"].low for t in tables]
    assert macro.high - macro.low < min(widths)


# --- policies


def test_policy_ranking_is_kendalls_tau_of_means():
    final = np.array([0.1, 0.3, 0.5, 0.5, 0.9, 0.7, math.nan, 0.0])
    success = [False, False, False, True, True, True, True, True]
    policy = ["a", "a", "b", "b", "c", "c", "c", ""]
    ranking = policy_ranking(final, success, policy)
    assert (ranking.value, ranking.undefined) == (1.0, 2)
    assert ranking.p == pytest.approx(kendalltau([1, 2, 3], [1, 2, 3])[1])
    assert policy_ranking(-final, success, policy).value == -1.0
    assert policy_ranking(final[:4], success[:4], policy[:4]).reason == metrics.FEW_POLICIES.format(count=2)
    ties = policy_ranking(np.full(6, 0.5), success[:6], policy[:6])
    assert ties.reason == "all policies have the same mean final progress: there is no order to agree with"


# --- chunks


def walks(count: int, length: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [np.cumsum(rng.normal(size=length + i)) for i in range(count)]


def test_chunk_correlation_is_pearson_of_gains():
    oracle, noise = walks(6), walks(7)
    values = [o + 3 * n[: len(o)] for o, n in zip(oracle, noise, strict=False)]
    success = [True, True, True, False, False, False]
    correlation = chunk_correlation(values, oracle, success, horizon=9, first=10, resampling=FEW)
    gains = [(v[19:] - v[10:-9], o[19:] - o[10:-9]) for v, o in zip(values, oracle, strict=True)]
    per_episode = [np.corrcoef(*gain)[0, 1] for gain in gains]
    assert correlation.success.value == pytest.approx(np.mean(per_episode[:3]))
    assert correlation.failure.value == pytest.approx(np.mean(per_episode[3:]))
    pooled_correlation = np.corrcoef(np.concatenate([g[0] for g in gains]), np.concatenate([g[1] for g in gains]))[0, 1]
    assert correlation.pooled.value == pytest.approx(pooled_correlation)
    assert correlation.pooled.low < correlation.pooled.value < correlation.pooled.high


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_chunk_correlation_ignores_scale_and_offset(scale, offset):
    oracle = walks(4)
    success = [True, True, False, False]
    same = chunk_correlation([scale * o + offset for o in oracle], oracle, success, 5, resampling=NONE)
    assert (same.success.value, same.failure.value) == (pytest.approx(1.0), pytest.approx(1.0))
    back = chunk_correlation([-scale * o for o in oracle], oracle, success, 5, resampling=NONE)
    assert back.pooled.value == pytest.approx(-1.0)


def test_a_constant_gain_has_no_correlation_and_is_counted():
    oracle = walks(4)
    time = [np.arange(len(o)) / (len(o) - 1) for o in oracle]  # the negative control "time index"
    result = chunk_correlation(time, oracle, [True, True, False, False], 5)
    assert math.isnan(result.success.value)
    assert (result.success.undefined, result.success.reason) == (2, metrics.NO_GAIN)
    one_episode = chunk_correlation([*oracle[:3], time[3]], oracle, [True, True, False, False], 5)
    assert (one_episode.failure.value, one_episode.failure.undefined) == (pytest.approx(1.0), 1)
    short = chunk_correlation([o[:5] for o in oracle], [o[:5] for o in oracle], [True] * 4, 5)
    assert short.pooled.reason == metrics.NO_GAIN
    assert short.failure.reason == metrics.NO_FAILURE
    missing = chunk_correlation([oracle[0] * np.nan, *oracle[1:]], oracle, [True, True, False, False], 5)
    assert (missing.success.undefined, missing.pooled.undefined) == (1, 1)
    with pytest.raises(UsageError, match="horizon 0"):
        chunk_correlation(time, oracle, [True] * 4, 0)


def test_drop_auc_by_hand_and_against_scikit_learn():
    gains = [np.array([0.5, 0.1, 0.3, 0.3]), np.array([0.2, 0.2]), np.array([0.0, 0.4]), np.array([0.1, 0.2, 0.9])]
    carrying = [np.array([False, True, True, True]), np.array([True, False]), None, None]
    result = drop_auc(gains, [2, None, 1, 2], carrying, [True, True, False, False], FEW)
    # at the drops 0.0 and 0.2; while carrying 0.1, 0.3, 0.3 and 0.2
    lower = roc_auc_score([0, 0, 1, 1, 1, 1], [0.0, 0.2, 0.1, 0.3, 0.3, 0.2])
    assert result.value == pytest.approx(lower)
    assert result.low <= result.value <= result.high
    blind = drop_auc([np.zeros(3)] * 4, [None, None, 1, 2], [np.ones(3, bool)] * 4, [True, True, False, False], FEW)
    assert blind.value == 0.5


def test_drop_auc_without_a_drop_or_a_carry():
    gains = [np.zeros(3)] * 2
    assert drop_auc(gains, [1, None], [np.ones(3, bool), None], [True, False]).reason == metrics.NO_DROP
    assert drop_auc(gains, [None, 1], [np.zeros(3, bool), None], [True, False]).reason == metrics.NO_CARRY
    result = drop_auc([np.zeros(3), np.full(3, np.nan)], [None, 1], [np.ones(3, bool), None], [True, False])
    assert (result.reason, result.undefined) == (metrics.NO_DROP, 1)


def test_a_tail_that_stands_still_does_not_rise():
    still, rising, unknown = curve([0.0, 0.5, 0.5, 0.5]), curve([0.0, 0.5, 0.7, 0.9]), curve([math.nan] * 4)
    assert tail_rise([still, still], [1, 1], FEW).value == 0.0
    rise = tail_rise([still, rising, unknown], [1, 1, 1], FEW)
    assert (rise.value, rise.undefined) == (pytest.approx(0.2), 1)
    assert math.isnan(tail_rise([unknown], [1]).value)
