"""Tests of the paper profile: distances, references, progress and reward, hand-computed and as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srpo_robot.errors import ScoringError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.references import parse_references
from srpo_robot.progress.score import (
    CONSTANT,
    ONE_WINDOW,
    SKIPPED_EPISODE,
    SKIPPED_TASK,
    WindowEmbeddings,
    dense_distance,
    failure_progress,
    failure_rewards,
    score,
    success_progress,
)
from srpo_robot.records import Episode


def episode(index: int, success: bool, length: int = 13, task: str = "task") -> Episode:
    return Episode(
        index=index,
        task=task,
        length=length,
        fps=10.0,
        first_frame=0,
        cameras=("observation.images.front",),
        success=success,
        group=f"episode {index}",
    )


def line(*values: float, ends: tuple[int, ...] = (10, 11, 12)) -> WindowEmbeddings:
    """Returns windows with embeddings on a line, so that distances are differences."""
    return WindowEmbeddings(np.array(ends), np.array([[v, 1.0] for v in values]))


# --- by hand


def test_a_success_is_measured_against_its_own_end():
    scores = score([episode(0, True)], [line(0.0, 3.0, 4.0)])
    curve = scores.curves[0]
    assert curve.distance[10:].tolist() == [4.0, 1.0, 0.0]
    assert curve.progress[10:] == pytest.approx([0.0, 0.75, 1.0])  # (4 - d) / (4 - 0)
    assert np.isnan(curve.distance[:10]).all()
    assert curve.progress[:10].tolist() == [0.0] * 10  # the first window's value is held
    assert np.flatnonzero(curve.scored).tolist() == [10, 11, 12]
    assert scores.rewards.tolist() == [1.0]


def test_a_failure_is_measured_against_the_mean_of_three_successes():
    successes = [episode(i, True) for i in range(3)]
    windows = [line(0.0, 1.0, end) for end in (9.0, 10.0, 11.0)]  # centre: 10
    scores = score([*successes, episode(3, False)], [*windows, line(0.0, 5.0, 6.0)])
    assert scores.references["task"].centres.tolist() == [[10.0, 1.0]]
    assert scores.curves[3].distance[10:].tolist() == [10.0, 5.0, 4.0]
    assert scores.curves[3].progress[10:] == pytest.approx([0.0, 0.5, 0.6])  # 1 - d/10


def test_rewards_of_three_failures():
    # d = 1, 2, 3: mean 2, population std sqrt(2/3). z = -1.2247, 0, 1.2247, then 0.8 * sigmoid(-z)
    rewards = failure_rewards(np.array([1.0, 2.0, 3.0]))
    assert rewards == pytest.approx([0.8 * 0.7729, 0.4, 0.8 * 0.2271], abs=1e-4)


def test_one_failure_gets_half_of_alpha_and_a_warning():
    scores = score([episode(0, True), episode(1, False)], [line(0.0, 1.0, 2.0), line(0.0, 0.5, 1.0)])
    assert scores.rewards.tolist() == [1.0, 0.4]
    assert any("one failure" in text for text in scores.warnings)


def test_two_clusters_and_a_lone_success():
    # nearest neighbours: .1 .1 | .2 .2 | 1.8 -> median .2, eps .4: {0, .1}, {5, 5.2}, and 7 alone
    points = np.array([[0.0], [0.1], [5.0], [5.2], [7.0]])
    references = parse_references("dbscan-auto")(points)
    assert references.eps == pytest.approx(0.4)
    assert references.centres.ravel() == pytest.approx([0.05, 5.1, 7.0])
    assert (references.sizes.tolist(), references.noise) == ([2, 2, 1], 1)
    assert not references.degenerate
    assert references.distance(np.array([[6.5], [0.0]])) == pytest.approx([0.5, 0.05])


def test_fewer_than_four_successes_use_their_mean():
    references = parse_references("dbscan-auto")(np.array([[0.0], [0.2], [10.0]]))
    assert references.centres.ravel() == pytest.approx([3.4])
    assert np.isnan(references.eps)


def test_one_cluster_out_of_many_is_called_degenerate():
    points = np.linspace(0, 1, 8)[:, None]
    assert parse_references("dbscan-auto")(points).degenerate
    many = [episode(i, True) for i in range(8)] + [episode(8, False)]
    windows = [line(5.0, 3.0, float(v)) for v in points.ravel()] + [line(5.0, 4.0, 2.0)]
    assert any("one cluster" in text for text in score(many, windows).warnings)


def test_copies_of_one_success_use_their_mean():
    assert parse_references("dbscan-auto")(np.ones((6, 3))).centres.tolist() == [[1.0, 1.0, 1.0]]


def test_strided_distances_are_interpolated_and_exact_at_measured_frames():
    dense = dense_distance(np.array([10, 14, 18, 19]), np.array([4.0, 2.0, 3.0, 0.0]))
    assert len(dense) == 10
    assert dense[[0, 4, 8, 9]].tolist() == [4.0, 2.0, 3.0, 0.0]
    assert dense.min() >= 0.0  # PCHIP does not overshoot
    assert dense[6] > dense[4]  # the regress is kept


# --- missing is never a number


def test_a_constant_video_has_no_progress():
    curve = score([episode(0, True)], [line(2.0, 2.0, 2.0)]).curves[0]
    assert np.isnan(curve.progress).all()
    assert curve.reason == CONSTANT


def test_a_short_episode_has_one_window_and_no_progress():
    short = WindowEmbeddings(np.array([6]), np.array([[1.0, 1.0]]))
    curve = score([episode(0, True, length=7)], [short]).curves[0]
    assert curve.reason == ONE_WINDOW
    assert np.isnan(curve.progress).all()


def test_a_task_without_success_is_an_error_or_left_out():
    episodes = [episode(0, True), episode(1, False, task="other")]
    windows = [line(0.0, 1.0, 2.0), line(0.0, 1.0, 2.0)]
    with pytest.raises(ScoringError, match=r"'other' has no success .* --skip-task"):
        score(episodes, windows)
    scores = score(episodes, windows, ScoringConfig(skip_tasks=("other",)))
    assert scores.curves[1].reason == SKIPPED_TASK
    assert np.isnan(scores.rewards[1])


def test_an_unlabelled_episode_is_never_a_failure():
    new_episode = Episode(index=4, task="task", length=13, fps=10.0, first_frame=0, cameras=(), success=None, group="")
    with pytest.raises(ScoringError, match="episode 4 is unlabelled"):
        score([episode(0, True), new_episode], [line(0.0, 1.0, 2.0)] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_bad_embedding_is_an_error_that_names_episode_and_frame(bad):
    windows = WindowEmbeddings(np.array([10, 11, 12]), np.array([[1.0, 1.0], [bad, bad], [2.0, 1.0]]))
    with pytest.raises(ScoringError, match=r"episode 7, window up to frame 11"):
        score([episode(7, True)], [windows])


def test_omitting_an_episode_does_not_change_the_others():
    episodes = [episode(0, True), episode(1, False), episode(2, False)]
    windows = [line(0.0, 1.0, 9.0), line(0.0, 1.0, 2.0), line(0.0, 2.0, 4.0)]
    without = score([episodes[0], episodes[1]], windows[:2])
    scores = score(episodes, [windows[0], windows[1], None])
    assert scores.curves[2].reason == SKIPPED_EPISODE
    assert scores.rewards[1] == without.rewards[1]


# --- properties

distances = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(0, 1e3, allow_subnormal=False)).filter(
    lambda d: np.ptp(d) > 1e-6
)


@given(distances)
def test_progress_is_within_0_and_1_and_falls_with_distance(d):
    for progress in (success_progress(d), failure_progress(d)):
        assert progress.min() >= 0.0
        assert progress.max() <= 1.0
        order = np.argsort(d)
        assert np.all(np.diff(progress[order]) <= 1e-12)
        assert progress[d.argmax()] == pytest.approx(0.0, abs=1e-12)
    assert success_progress(d).max() == pytest.approx(1.0)


@given(distances)
def test_rewards_are_below_alpha_and_fall_with_distance(d):
    rewards = failure_rewards(d)
    assert rewards.min() >= 0.0
    assert rewards.max() <= 0.8
    assert np.all(np.diff(rewards[np.argsort(d)]) <= 1e-12)


@given(st.integers(0, 2**32 - 1), st.permutations(range(9)))
@settings(max_examples=40)
def test_scores_do_not_depend_on_the_order_of_episodes(seed, order):
    rng = np.random.default_rng(seed)
    episodes = [episode(i, success=i < 5, task="a" if i % 2 else "b") for i in range(9)]
    windows = [WindowEmbeddings(np.array([10, 12]), rng.normal(size=(2, 4)).cumsum(0)) for _ in range(9)]
    straight = score(episodes, windows)
    permutation = score([episodes[i] for i in order], [windows[i] for i in order])
    for place, i in enumerate(order):
        assert permutation.curves[place].progress == pytest.approx(straight.curves[i].progress, abs=1e-9)
        assert permutation.rewards[place] == pytest.approx(straight.rewards[i], abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_clusters_hold_every_success_once(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(12, 3)) + rng.integers(0, 3, size=(12, 1)) * 8
    references = parse_references("dbscan-auto")(points)
    assert references.sizes.sum() == 12
    assert (references.sizes[:, None] * references.centres).sum(axis=0) == pytest.approx(points.sum(axis=0))
