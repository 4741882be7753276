"""Advantages and weights: by hand, and by law."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from srpo_robot.awr.advantage import advantages, chunk_gain, expected_gain, increments
from srpo_robot.awr.weighting import Chunk, weights_of
from srpo_robot.awr.weights import awr_weights, success_weights, uniform_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.errors import TrainingError, UsageError
from srpo_robot.numerics import standardise
from srpo_robot.recipes import PolicyRecipe, Weighting
from srpo_robot.records import Episode


class ToyBuffer:
    """The part of a buffer that `weights_of` reads."""

    root, fingerprint = Path("toy"), "toy"

    def __init__(self, lengths):
        starts = np.cumsum([0, *lengths])
        self.episodes = tuple(
            Episode(
                index=i,
                task="go",
                length=n,
                fps=10.0,
                first_frame=int(starts[i]),
                cameras=("c",),
                success=i % 2 == 0,
            )
            for i, n in enumerate(lengths)
        )
        self.total_frames = int(starts[-1])


def toy_buffer(lengths) -> Buffer:
    return cast(Buffer, ToyBuffer(lengths))


def toy_progress(lengths, random) -> Table:
    columns = {
        "index": np.arange(sum(lengths)),
        "value": random.uniform(0, 1, sum(lengths)),
        "trajectory_advantage": np.repeat(random.normal(0, 1, len(lengths)), lengths),
    }
    return Table(columns, {"dataset": "toy", "content": "0"})


VALUE = np.array([0.0, 0.0, 0.1, 0.4, 0.3, 1.0])
values = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=32))


# --- by hand


def test_increments():
    assert increments(VALUE) == pytest.approx([0.0, 0.0, 0.1, 0.3, -0.1, 0.7])


def test_chunk_gain_looks_forward_over_the_horizon():
    assert chunk_gain(VALUE, 2, tail="raw") == pytest.approx([0.1, 0.4, 0.2, 0.6, 0.7, 0.0])


def test_the_tail_is_divided_by_the_remaining_horizon():
    # full horizons: gain / 2; frame 4 has one frame left; the last has none
    assert chunk_gain(VALUE, 2) == pytest.approx([0.05, 0.2, 0.1, 0.3, 0.7, 0.0])


def test_the_tail_can_be_dropped():
    assert chunk_gain(VALUE, 2, tail="drop") == pytest.approx([0.1, 0.4, 0.2, 0.6, np.nan, np.nan], nan_ok=True)


def test_horizon_one_without_shift_is_the_papers_increment():
    assert chunk_gain(VALUE, 1, shift=0, tail="raw") == pytest.approx(increments(VALUE))


def test_step_advantages_of_two_episodes_are_standardised_together():
    result = advantages([np.array([0.0, 1.0]), np.array([0.0, 0.5, 0.5])], horizon=1)
    # increments 0 1 | 0 .5 0: mean .3, population variance .16
    assert result.increment == pytest.approx([0.0, 1.0, 0.0, 0.5, 0.0])
    assert result.step == pytest.approx([-0.75, 1.75, -0.75, 0.5, -0.75])


# --- baselines of a gain


def test_the_expected_gain_is_the_mean_of_its_neighbours_in_value():
    value = np.arange(40.0)
    gain = np.where(value < 20, 1.0, 3.0)
    expected = expected_gain(gain[::-1], value[::-1])[::-1]  # order does not matter
    assert expected[:18] == pytest.approx(1.0)
    assert expected[22:] == pytest.approx(3.0)
    assert expected[19] == pytest.approx((3 * 1.0 + 2 * 3.0) / 5)  # two ranks on either side


@given(values, st.integers(0, 99))
def test_frames_of_one_value_have_one_expectation_within_the_gains(gain, seed):
    value = np.random.default_rng(seed).integers(0, 4, len(gain)).astype(float)
    expected = expected_gain(gain, value)
    for level in np.unique(value):
        assert np.ptp(expected[value == level]) == 0
    assert expected.min() >= gain.min() - 1e-9
    assert expected.max() <= gain.max() + 1e-9


def test_without_a_value_no_gain_is_expected():
    expected = expected_gain(np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, np.nan]))
    assert expected[0] == 1.0
    assert np.isnan(expected[1:]).all()
    assert np.isnan(expected_gain(np.full(2, np.nan), np.zeros(2))).all()


def test_a_slow_phase_done_well_is_worth_as_much_as_a_fast_one_done_well():
    """Each episode creeps to 1 and then runs to 5. The second one creeps backwards at first and stops short of 5."""
    good = np.concatenate([np.linspace(0, 1, 30), np.linspace(1.2, 5, 20)])
    bad = np.concatenate([np.linspace(0, -0.5, 30), np.linspace(-0.3, 2, 20)])
    episodes = [good] * 5 + [bad]
    by_mean, by_value = (advantages(episodes, 5, baseline=baseline).chunk for baseline in ("mean", "value"))
    assert by_mean[10] < by_mean[35] - 1.0
    assert abs(by_value[10] - by_value[35]) < abs(by_mean[10] - by_mean[35]) / 3
    assert by_value[10] > by_value[250 + 10]  # the good phase is better than the bad one


def test_gains_are_expected_within_a_task():
    slow, fast = np.linspace(0, 1, 30), np.linspace(0, 3, 30)
    apart = advantages([slow, fast], 3, baseline="value", tasks=["slow", "fast"]).chunk
    together = advantages([slow, fast], 3, baseline="value").chunk
    assert apart[[5, 35]] == pytest.approx(apart[5])  # each has the usual speed of its task
    assert together[35] > together[5] + 1.0


def test_weights_by_hand():
    weights = awr_weights(np.array([0.0, np.log(3.0), 9.0, np.nan]), beta=1.0, w_max=4.0)
    # raw 1, 3, 4 (capped), 0 (undefined): mean 2
    assert weights.values == pytest.approx([0.5, 1.5, 2.0, 0.0])
    assert weights.clipped_fraction == pytest.approx(1 / 3)
    assert weights.effective_sample_size == pytest.approx(16 / 6.5)
    assert weights.undefined == 1


def test_a_large_advantage_does_not_overflow():
    assert awr_weights(np.array([1e6, 0.0]), 0.1, 20.0).values == pytest.approx([40 / 21, 2 / 21])


# --- laws


@given(values, st.integers(1, 20))
def test_raw_gains_are_sums_of_increments(value, horizon):
    steps = increments(value)
    gain = chunk_gain(value, horizon, tail="raw")
    for t in range(len(value)):
        assert gain[t] == pytest.approx(steps[t + 1 : t + 1 + horizon].sum(), abs=1e-9)


@given(values, st.floats(-5, 5), st.sampled_from(["divide", "raw"]))
def test_a_constant_added_to_the_value_changes_nothing(value, constant, tail):
    assert chunk_gain(value + constant, 3, tail=tail) == pytest.approx(chunk_gain(value, 3, tail=tail), abs=1e-9)


@given(values)
def test_standardised_is_mean_0_and_std_1_or_all_0(value):
    z = standardise(value)
    if np.any(z):
        assert z.mean() == pytest.approx(0, abs=1e-6)
        assert z.std() == pytest.approx(1)
    else:
        assert np.ptp(value) == pytest.approx(0, abs=1e-9)


advantage_arrays = hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-8, 8))


@given(advantage_arrays, st.floats(0.2, 3), st.floats(1, 50))
def test_weights_have_mean_1_and_rise_with_the_advantage(advantage, beta, w_max):
    weights = awr_weights(advantage, beta, w_max).values
    assert weights.mean() == pytest.approx(1)
    assert np.all(np.diff(weights[np.argsort(advantage)]) >= -1e-12)


@given(advantage_arrays, st.floats(-2, 2), st.floats(0.5, 3))
def test_below_the_cap_a_constant_added_to_every_advantage_changes_no_weight(advantage, constant, beta):
    before = awr_weights(advantage, beta, 1e12)
    after = awr_weights(advantage + constant, beta, 1e12)
    assert (before.clipped_fraction, after.clipped_fraction) == (0.0, 0.0)
    assert after.values == pytest.approx(before.values, rel=1e-9)


@given(advantage_arrays)
def test_the_effective_sample_size_is_between_1_and_n(advantage):
    ess = awr_weights(advantage, 1.0, 20.0).effective_sample_size
    assert 1 - 1e-9 <= ess <= len(advantage) + 1e-9


def test_baselines():
    assert uniform_weights(3).values.tolist() == [1.0, 1.0, 1.0]
    assert success_weights(np.array([True, False, False, True])).values.tolist() == [2.0, 0.0, 0.0, 2.0]


# --- refusals


@pytest.mark.parametrize(
    ("beta", "w_max"), [(0.0, 20.0), (-1.0, 20.0), (1.0, 0.0), (np.nan, 20.0), (np.inf, 20.0), (1.0, np.inf)]
)
def test_beta_and_w_max_must_be_positive(beta, w_max):
    with pytest.raises(UsageError, match="must be positive"):
        awr_weights(np.zeros(3), beta, w_max)


def test_no_frame_to_train_on_is_an_error():
    with pytest.raises(TrainingError, match="no finite advantage"):
        awr_weights(np.full(3, np.nan), 1.0, 20.0)
    with pytest.raises(TrainingError, match="every weight is zero"):
        awr_weights(np.full(3, -1e5), 1.0, 20.0)
    with pytest.raises(TrainingError, match="no success"):
        success_weights(np.zeros(3, dtype=bool))


def test_a_horizon_must_be_at_least_one_frame():
    with pytest.raises(UsageError, match="at least 1"):
        chunk_gain(VALUE, 0)


# --- from a score to the weights


@given(st.data())
def test_below_the_cap_a_higher_advantage_is_a_higher_weight(data):
    """The column `advantage` is the one that trains: its order is the order of the weights."""
    lengths = data.draw(st.lists(st.integers(3, 12), min_size=2, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    buffer, progress = toy_buffer(lengths), toy_progress(lengths, random)
    weighting = Weighting(
        horizon=data.draw(st.integers(1, 4)),
        beta=data.draw(st.floats(0.3, 3)),
        kappa=data.draw(st.floats(0, 2)),
        baseline=data.draw(st.sampled_from(["mean", "value"])),
        w_max=1e9,
    )
    weights = weights_of(buffer, progress, weighting)
    assert weights.advantages is not None
    total, values = weights.advantages.total, weights.frames.values
    assert weights.frames.clipped_fraction == 0
    assert np.log(values) - total / weighting.beta == pytest.approx(np.log(values[0]) - total[0] / weighting.beta)
    correlation: Any = spearmanr(np.round(total, 9), np.round(np.log(values), 9))
    assert correlation.statistic == pytest.approx(1)
    assert total == pytest.approx(weights.advantages.chunk + weighting.kappa * progress["trajectory_advantage"])


def test_weights_are_pure_and_say_all_keys():
    lengths = [6, 5]
    buffer, progress = toy_buffer(lengths), toy_progress(lengths, np.random.default_rng(0))
    before = {name: column.copy() for name, column in progress.columns.items()}
    first, second = (weights_of(buffer, progress, Weighting(), chunk=Chunk(8, 3)) for _ in range(2))
    assert first.frames.values.tolist() == second.frames.values.tolist()
    assert all((progress[name] == column).all() for name, column in before.items())
    assert first.weighting == Weighting(horizon=3)
    assert weights_of(buffer, progress, Weighting()).weighting == Weighting(horizon=10)
    recipe = PolicyRecipe(name="p", family="pi0", beta=0.5, horizon=2)
    assert weights_of(buffer, progress, recipe, chunk=Chunk(8, 3)).weighting == Weighting(beta=0.5, horizon=2)


def test_schemes_without_advantages_use_the_same_function():
    lengths = [6, 5]
    buffer, progress = toy_buffer(lengths), toy_progress(lengths, np.random.default_rng(0))
    assert weights_of(buffer, None, Weighting(), "uniform").frames.values.tolist() == [1.0] * 11
    assert weights_of(buffer, None, Weighting(), "success").frames.values[6:].tolist() == [0.0] * 5
    rabc = weights_of(buffer, progress, Weighting(), "rabc", Chunk(4, 2))
    assert (rabc.advantages, rabc.actions, rabc.frames.values.mean()) == (None, None, pytest.approx(1))
    recipe = PolicyRecipe(name="p", family="pi0", action_weights=True)
    with pytest.raises(UsageError, match="action_weights are AWR's"):
        weights_of(buffer, progress, recipe, "rabc", Chunk(4, 2))
    with pytest.raises(ValueError, match="need a progress table, and rabc and action_weights a chunk"):
        weights_of(buffer, None, Weighting(), "awr")
    with pytest.raises(ValueError, match="need a progress table, and rabc and action_weights a chunk"):
        weights_of(buffer, progress, Weighting(), "rabc")
