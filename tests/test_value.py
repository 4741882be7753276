"""Tests of step values: window rewards, knn-time and knn-return, by hand, as properties, and on a known drop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import srpo_robot.progress.value as value_module
from srpo_robot.errors import UsageError
from srpo_robot.numerics import standardise
from srpo_robot.progress.config import ScoringConfig, parse_value
from srpo_robot.progress.score import NO_SUCCESS, WindowEmbeddings, score
from srpo_robot.progress.value import (
    NO_FAILURE,
    NO_NEIGHBOUR,
    averages,
    knn_return,
    knn_time,
    normalised_time,
    window_rewards,
)
from srpo_robot.records import Episode


def episode(index: int, success: bool, length: int = 13, group: str = "") -> Episode:
    return Episode(
        index=index,
        task="task",
        length=length,
        fps=10.0,
        first_frame=0,
        cameras=("observation.images.front",),
        success=success,
        group=group,
    )


def line(*values: float, ends: tuple[int, ...] = (10, 11, 12)) -> WindowEmbeddings:
    return WindowEmbeddings(np.array(ends), np.array([[v, 1.0] for v in values]))


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


# --- by hand


def test_standardise():
    assert standardise(np.array([1.0, 3.0, np.nan])) == pytest.approx([-1.0, 1.0, np.nan], nan_ok=True)
    assert standardise(np.array([0.1, 0.1, 0.1])).tolist() == [0.0, 0.0, 0.0]  # the computed std is 1e-17, not 0
    assert np.isnan(standardise(np.full(2, np.nan))).all()


def test_the_sigmoid_of_eq5_does_not_overflow():
    pool = np.array([-1.0, 1.0])  # mean 0, std 1
    assert window_rewards(np.array([1e4, 0.0, -1e4]), pool, alpha=1.0).tolist() == [0.0, 0.5, 1.0]
    assert window_rewards(np.array([-1.0]), pool, alpha=1.0) == pytest.approx([0.7310586])


def test_normalised_time_ends_at_one():
    assert normalised_time(np.array([10, 15, 20]), 21).tolist() == [0.5, 0.75, 1.0]
    assert normalised_time(np.array([0]), 1).tolist() == [1.0]


def test_eq5_standardises_by_the_pool():
    # pool 1 and 3: mean 2, std 1. d = 2, 3, 1: z = 0, 1, -1
    rewards = window_rewards(np.array([2.0, 3.0, 1.0]), np.array([1.0, 3.0]))
    assert rewards == pytest.approx([0.4, 0.8 * 0.2689414, 0.8 * 0.7310586])
    assert window_rewards(np.array([3.0]), np.array([1.0, 3.0]), literal=True) == pytest.approx([0.8 * 0.7310586])
    assert np.isnan(window_rewards(np.array([3.0]), np.zeros(0))).all()


def test_phase_is_the_mean_time_of_the_nearest_success_windows():
    embeddings = [column(0.0, 1.0, 2.0), column(0.1, 1.1, 2.2), column(0.9, 5.0)]
    times = [np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.4, 1.0]), np.array([0.5, 1.0])]
    phases = knn_time(embeddings, times, [True, True, False], ["a", "b", "c"], neighbours=2)
    # 0.9: 1.0 (.5) and 1.1 (.4). 5.0: 2.2 (1) and 2.0 (1)
    assert phases[2] == pytest.approx([0.45, 1.0])
    # episode 0 sees episode 1 only. 0: .1 (0), 1.1 (.4); 1: 1.1 (.4), .1 (0); 2: 2.2 (1), 1.1 (.4)
    assert phases[0] == pytest.approx([0.2, 0.2, 0.7])


def test_return_counts_a_failure_as_zero():
    embeddings = [column(0.0, 1.0), column(0.9, 3.0), column(1.05, 3.1)]
    times = [np.array([0.5, 1.0])] * 3
    returns = knn_return(embeddings, times, [True, False, False], ["a", "b", "c"], neighbours=2)
    # 0.9: 1.0 (success, 1) and 1.05 (failure, 0); 3.0: 3.1 (failure) and 1.05 (failure)
    assert returns[1] == pytest.approx([0.5, 0.0])
    assert np.isnan(returns[0]).all()  # it is the only success


def test_windows_tied_with_the_last_neighbour_all_count():
    embeddings = [column(1.0), column(-1.0), column(0.0)]
    values = averages(embeddings, ["a", "b", "c"], [0, 1], [np.array([1.0]), np.array([0.0]), np.zeros(1)], 1)
    assert values[2].tolist() == [0.5]


def test_the_bank_may_be_smaller_than_the_neighbours():
    times = knn_time([column(0.0, 1.0), column(5.0)], [np.array([0.0, 1.0]), np.ones(1)], [True, False], ["a", "b"], 10)
    assert times[1].tolist() == [0.5]
    assert np.isnan(times[0]).all()


def test_an_unknown_step_value_is_refused_with_the_list():
    with pytest.raises(UsageError, match="there are: progress, reward, knn-time, knn-return"):
        parse_value("rewards")


# --- through score


def test_the_default_step_value_is_progress():
    scores = score([episode(0, True), episode(1, False)], [line(0.0, 3.0, 4.0), line(0.0, 1.0, 2.0)])
    for curve, value in zip(scores.curves, scores.values, strict=True):
        assert value.tolist() == curve.progress.tolist()
    assert [e.reason for e in scores.episodes] == ["", ""]


def test_eq5_on_the_windows_of_a_dataset():
    # the failure's distances to 4 are 3, 2, 1: mean 2, std .8165; the success's to its end are 4, 2, 0
    windows = [line(0.0, 2.0, 4.0), line(1.0, 2.0, 3.0)]
    scores = score([episode(0, True), episode(1, False)], windows, ScoringConfig(value="reward"))
    z = np.sqrt(1.5)
    assert scores.values[1][10:] == pytest.approx(0.8 * expit(np.array([-z, 0.0, z])))
    assert scores.values[0][10:] == pytest.approx(0.8 * expit(np.array([-2 * z, 0.0, 2 * z])))
    assert set(scores.values[1][:10]) == {scores.values[1][10]}  # held before the first window
    literal = score(
        [episode(0, True), episode(1, False)], windows, ScoringConfig(profile="paper-literal", value="reward")
    )
    assert literal.values[1][10:] == pytest.approx(0.8 * expit(np.array([z, 0.0, -z])))


def test_eq5_without_a_failure_is_nan_with_a_reason():
    scores = score([episode(0, True)], [line(0.0, 2.0, 4.0)], ScoringConfig(value="reward"))
    assert np.isnan(scores.values[0]).all()
    assert [e.reason for e in scores.episodes] == [NO_FAILURE]
    assert any("without a value 'reward'" in text for text in scores.warnings)


def test_eq5_of_equally_far_failures_is_flat_and_warned_about():
    windows = [line(0.0, 2.0, 4.0), line(3.0, 3.0, 3.0), line(5.0, 5.0, 5.0)]
    scores = score([episode(0, True), episode(1, False), episode(2, False)], windows, ScoringConfig(value="reward"))
    assert scores.values[1].tolist() == [0.4] * 13
    assert any("alpha/2 throughout" in text for text in scores.warnings)


def test_phase_of_strided_windows_is_interpolated():
    ends = (10, 14, 20)
    success = line(0.0, 4.0, 10.0, ends=ends)
    failure = line(0.1, 4.1, 0.2, ends=ends)
    scores = score(
        [episode(0, True, 21), episode(1, False, 21)], [success, failure], ScoringConfig(value="knn-time", neighbours=1)
    )
    value = scores.values[1]
    assert value[[10, 14, 20]] == pytest.approx([0.5, 0.7, 0.5])
    assert value[:10].tolist() == [0.5] * 10
    assert ((value >= 0.5) & (value <= 0.7)).all()
    assert np.isnan(scores.values[0]).all()
    assert [e.reason for e in scores.episodes] == [NO_NEIGHBOUR, ""]
    assert any("1 episodes without a value 'knn-time'" in text for text in scores.warnings)


def test_return_without_a_failure_equals_phase_and_warns():
    episodes = [episode(i, True) for i in range(3)]
    windows = [line(0.0, 1.0, 2.0 + i) for i in range(3)]
    by_return = score(episodes, windows, ScoringConfig(value="knn-return", neighbours=2))
    by_phase = score(episodes, windows, ScoringConfig(value="knn-time", neighbours=2))
    assert np.concatenate(by_return.values) == pytest.approx(np.concatenate(by_phase.values))
    assert any("is 'knn-time'" in text for text in by_return.warnings)


def test_a_short_episode_has_a_phase_and_no_increment():
    short = WindowEmbeddings(np.array([6]), np.array([[2.0, 1.0]]))
    episodes = [episode(0, True), episode(1, False, 7)]
    scores = score(episodes, [line(0.0, 1.0, 2.0), short], ScoringConfig(value="knn-time", neighbours=1))
    assert scores.values[1].tolist() == [1.0] * 7


def test_left_out_tasks_have_no_value():
    scores = score([episode(0, False)], [line(0.0, 1.0, 2.0)], ScoringConfig(profile="siirl", value="reward"))
    assert [e.reason for e in scores.episodes] == [NO_SUCCESS]


# --- properties


def random_task(seed: int, episodes: int = 8, windows: int = 6):
    rng = np.random.default_rng(seed)
    embeddings = [rng.normal(size=(windows, 3)).cumsum(axis=0) for _ in range(episodes)]
    times = [np.sort(rng.uniform(size=windows)) for _ in range(episodes)]
    return embeddings, times, [i < 5 for i in range(episodes)], [f"group {i // 2}" for i in range(episodes)]


@pytest.mark.parametrize("estimate", [knn_time, knn_return])
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(8)))
@settings(max_examples=25)
def test_values_stay_in_0_and_1_and_ignore_the_order_of_episodes(estimate, seed, order):
    columns = random_task(seed)
    straight = estimate(*columns)
    assert all(((v >= 0) & (v <= 1)).all() for v in straight)
    permutation = estimate(*([column[i] for i in order] for column in columns))
    for place, i in enumerate(order):
        assert permutation[place] == pytest.approx(straight[i])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_an_episodes_value_ignores_its_group(seed):
    embeddings, times, success, groups = random_task(seed)
    straight = knn_time(embeddings, times, success, groups)
    more = knn_time([*embeddings, embeddings[0]], [*times, times[0]], [*success, True], [*groups, groups[0]])
    assert more[0] == pytest.approx(straight[0])
    assert more[1] == pytest.approx(straight[1])  # episodes 0 and 1 share a group


def test_the_chunk_size_has_no_effect(monkeypatch):
    columns = random_task(3)
    whole = knn_return(*columns)
    monkeypatch.setattr(value_module, "CHUNK_NUMBERS", 1)  # one query at a time
    assert np.concatenate(knn_return(*columns)) == pytest.approx(np.concatenate(whole))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=25)
def test_averages_agree_with_a_plain_search(seed, neighbours):
    embeddings, times, success, groups = random_task(seed)
    phases = knn_time(embeddings, times, success, groups, neighbours)
    for i, windows in enumerate(embeddings):
        bank = [j for j in range(8) if success[j] and groups[j] != groups[i]]
        points, clock = np.concatenate([embeddings[j] for j in bank]), np.concatenate([times[j] for j in bank])
        for row, point in enumerate(windows):
            nearest = np.argsort(np.linalg.norm(points - point, axis=1))[:neighbours]
            assert phases[i][row] == pytest.approx(clock[nearest].mean())


# --- a drop, with the true state as encoder (our check, not from arXiv 2511.15605)


def carry(rng: np.random.Generator, drop_at: int | None = None) -> np.ndarray:
    """Returns states (arm, held) of reach 0..1, grasp, carry 1..2, release, home 2..3, plus 1 and noise: (61, 2)."""
    arm = np.linspace(0.0, 3.0, 61)
    apple = ((arm >= 1.0) & (arm < 2.0)).astype(float)
    if drop_at is not None:
        apple[drop_at:] = 0.0
    return np.stack([arm, apple], axis=1) + 1.0 + rng.normal(scale=0.01, size=(61, 2))


def test_phase_falls_at_a_drop_but_end_distance_does_not():
    rng = np.random.default_rng(0)
    drop = 25  # the arm is at 1.25, a quarter of the way to the plate
    states = [carry(rng) for _ in range(8)] + [carry(rng, drop) for _ in range(4)]
    windows = [WindowEmbeddings(np.arange(10, 61), state[10:]) for state in states]
    episodes = [episode(i, i < 8, 61) for i in range(12)]
    for profile in ("paper", "loo"):
        by_distance = score(episodes, windows, ScoringConfig(profile=profile, references="nearest"))
        by_phase = score(episodes, windows, ScoringConfig(profile=profile, value="knn-time"))
        for i in range(8, 12):
            assert by_distance.values[i][drop] > by_distance.values[i][drop - 1] + 0.05  # the drop is rewarded
            assert by_phase.values[i][drop] < by_phase.values[i][drop - 1] - 0.05  # the drop lowers the value
