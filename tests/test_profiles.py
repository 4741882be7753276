"""Tests of the score profiles: hand-computed rewards and progress, leave-one-out properties, and comparisons."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.progress.config import Profile, ScoringConfig
from srpo_robot.progress.evidence.profiles import compare
from srpo_robot.progress.score import (
    CONSTANT,
    NO_REFERENCE,
    NO_SUCCESS,
    SKIPPED_EPISODE,
    SKIPPED_TASK,
    WindowEmbeddings,
    failure_rewards,
    score,
    siirl_rewards,
    trajectory_advantages,
)
from srpo_robot.records import Episode

PROFILES = get_args(Profile)


def episode(index: int, success: bool, task: str = "task", group: str = "", length: int = 13) -> Episode:
    return Episode(
        index=index,
        task=task,
        length=length,
        fps=10.0,
        first_frame=0,
        cameras=("observation.images.front",),
        success=success,
        group=group,
    )


def line(*values: float, ends: tuple[int, ...] = (10, 11, 12)) -> WindowEmbeddings:
    return WindowEmbeddings(np.array(ends), np.array([[v, 1.0] for v in values]))


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


# One success that ends at 10, failures that end 1, 2 and 3 from it.
EPISODES = [episode(0, True)] + [episode(i, False) for i in (1, 2, 3)]
WINDOWS = [line(0.0, 5.0, 10.0), line(0.0, 5.0, 9.0), line(0.0, 5.0, 8.0), line(0.0, 5.0, 7.0)]
Z = float(np.sqrt(1.5))  # (3 - 2)/std of 1, 2, 3


# --- rewards by hand


def test_paper_rewards_nearness_and_paper_literal_distance():
    assert score(EPISODES, WINDOWS).rewards == pytest.approx([1.0, 0.8 * sigmoid(Z), 0.4, 0.8 * sigmoid(-Z)])
    literal = score(EPISODES, WINDOWS, ScoringConfig(profile="paper-literal")).rewards
    assert literal == pytest.approx([1.0, 0.8 * sigmoid(-Z), 0.4, 0.8 * sigmoid(Z)])
    assert score(EPISODES, WINDOWS, ScoringConfig(alpha=0.5)).rewards[2] == pytest.approx(0.25)


def test_siirl_rewards_by_rank_between_the_extremes():
    rewards = score(EPISODES, WINDOWS, ScoringConfig(profile="siirl")).rewards
    assert rewards == pytest.approx([1.0, 0.6 * sigmoid(5.0), 0.3, 0.6 * sigmoid(-5.0)])
    assert (
        score(EPISODES, WINDOWS, ScoringConfig(profile="siirl", alpha=0.5)).rewards.tolist() == rewards.tolist()
    )  # its ceiling


def test_siirl_counts_equal_distances_as_a_half():
    assert siirl_rewards(np.array([2.0])).tolist() == [0.3]
    assert siirl_rewards(np.array([2.0, 2.0 + 9e-7])).tolist() == [0.3, 0.3]
    assert siirl_rewards(np.array([2.0, 2.0 + 2e-6])) == pytest.approx([0.6 * sigmoid(5.0), 0.6 * sigmoid(-5.0)])
    scores = score(EPISODES[:2], WINDOWS[:2], ScoringConfig(profile="siirl"))
    assert scores.rewards.tolist() == [1.0, 0.3]
    assert any("one failure" in text and "0.3" in text for text in scores.warnings)


def test_siirl_gives_failures_of_a_task_without_success_zero():
    scores = score(EPISODES[1:], WINDOWS[1:], ScoringConfig(profile="siirl"))
    assert scores.rewards.tolist() == [0.0, 0.0, 0.0]
    assert scores.trajectory_advantages.tolist() == [0.0, 0.0, 0.0]
    assert scores.references == {}
    assert all(curve.reason == NO_SUCCESS and np.isnan(curve.progress).all() for curve in scores.curves)
    assert scores.warnings == ("'task': no success, so its 3 failures get reward 0, as siiRL does, and no progress",)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "siirl"])
def test_other_profiles_refuse_a_task_without_success(profile):
    with pytest.raises(ScoringError, match=r"'task' has no success \(3 failures\).*--skip-task"):
        score(EPISODES[1:], WINDOWS[1:], ScoringConfig(profile=profile))


def test_siirl_uses_the_siirl_references():
    successes = [line(0.0, 1.0, end) for end in (10.0, 10.0, 20.0, 20.0)]
    episodes = [episode(i, True) for i in range(4)] + [episode(4, False)]
    scores = score(episodes, [*successes, line(0.0, 1.0, 18.0)], ScoringConfig(profile="siirl"))
    assert scores.references["task"].centres[:, 0].tolist() == [10.0, 20.0]
    assert scores.references["task"].strategy == "siirl"
    assert scores.curves[4].distance[10:].tolist() == [10.0, 9.0, 2.0]


def test_failures_that_are_equally_far_get_equal_rewards():
    assert failure_rewards(np.array([0.1, 0.1, 0.1])).tolist() == [0.4, 0.4, 0.4]  # its computed std is not 0
    scores = score(EPISODES[:3], [WINDOWS[0], WINDOWS[1], WINDOWS[1]])
    assert scores.rewards.tolist() == [1.0, 0.4, 0.4]
    assert any("equally far" in text for text in scores.warnings)


def test_trajectory_advantage_is_standardised_within_the_task():
    rewards = np.array([1.0, 0.0, 0.5, np.nan, 0.3])
    advantages = trajectory_advantages(rewards, ["a", "a", "b", "a", "b"])
    assert advantages == pytest.approx([1.0, -1.0, 1.0, np.nan, -1.0], nan_ok=True)
    assert trajectory_advantages(np.ones(3), ["a"] * 3).tolist() == [0.0, 0.0, 0.0]
    scores = score(EPISODES, WINDOWS)
    assert scores.trajectory_advantages == pytest.approx(
        (scores.rewards - scores.rewards.mean()) / scores.rewards.std()
    )


# --- leave one out


def test_loo_measures_successes_by_the_others():
    # Successes end at 10 and 12, the failure at 7. knn3 is the mean distance to both, or to the other success.
    episodes = [episode(0, True), episode(1, True), episode(2, False)]
    scores = score(
        episodes, [line(0.0, 5.0, 10.0), line(0.0, 6.0, 12.0), line(0.0, 5.0, 7.0)], ScoringConfig(profile="loo")
    )
    assert scores.curves[0].distance[10:].tolist() == [12.0, 7.0, 2.0]
    assert scores.curves[1].distance[10:].tolist() == [10.0, 4.0, 2.0]
    assert scores.curves[2].distance[10:].tolist() == [11.0, 6.0, 4.0]
    # d_ref is 12 for every episode, the largest of the task
    assert scores.curves[0].progress[10:] == pytest.approx([0.0, 5 / 12, 10 / 12])
    assert scores.curves[2].progress[10:] == pytest.approx([1 / 12, 6 / 12, 8 / 12])
    assert scores.rewards.tolist() == [1.0, 1.0, 0.4]
    assert scores.reference_episodes["task"].tolist() == [0, 1]


def test_loo_leaves_out_the_whole_group():
    # The failure is part of success 1's take, so only success 0 may measure it.
    episodes = [episode(0, True, group="a"), episode(1, True, group="b"), episode(2, False, group="b")]
    windows = [line(0.0, 5.0, 10.0), line(0.0, 6.0, 12.0), line(0.0, 6.0, 11.0)]
    scores = score(episodes, windows, ScoringConfig(profile="loo"))
    assert scores.curves[2].distance[10:].tolist() == [10.0, 4.0, 1.0]


def test_a_single_success_has_no_loo_progress_of_its_own():
    scores = score(EPISODES, WINDOWS, ScoringConfig(profile="loo"))
    assert scores.curves[0].reason == NO_REFERENCE
    assert np.isnan(scores.curves[0].progress).all()
    assert scores.curves[1].progress[10:] == pytest.approx([0.0, 0.5, 0.9])
    assert scores.rewards == pytest.approx([1.0, 0.8 * sigmoid(Z), 0.4, 0.8 * sigmoid(-Z)])
    assert any("one success" in text for text in scores.warnings)
    assert scores.episodes[0].reason == NO_REFERENCE


def test_a_failure_cut_from_the_only_success_has_no_loo_reward():
    episodes = [episode(0, True, group="a"), episode(1, False, group="a"), episode(2, False), episode(3, False)]
    scores = score(episodes, WINDOWS, ScoringConfig(profile="loo"))
    assert scores.curves[1].reason == NO_REFERENCE
    assert np.isnan(scores.rewards[1])
    assert np.isnan(scores.trajectory_advantages[1])
    assert scores.rewards[2:] == pytest.approx([0.8 * sigmoid(1.0), 0.8 * sigmoid(-1.0)])


def test_a_constant_video_has_no_loo_progress_and_a_short_one_has():
    short = WindowEmbeddings(np.array([6]), np.array([[9.0, 1.0]]))
    episodes = [episode(0, True), episode(1, False), episode(2, False, length=7)]
    scores = score(episodes, [line(0.0, 5.0, 10.0), line(3.0, 3.0, 3.0), short], ScoringConfig(profile="loo"))
    assert scores.curves[1].reason == CONSTANT
    assert np.isnan(scores.curves[1].progress).all()
    assert scores.curves[2].progress == pytest.approx(np.full(7, 1 - 1 / 7))  # d_ref is 7, from the constant video
    assert scores.curves[2].reason == ""


# --- external references


def test_external_references_need_no_success_and_no_leaving_out():
    external = {"task": np.array([[10.0, 1.0], [20.0, 1.0]])}
    for profile in PROFILES:
        scores = score(EPISODES[1:], WINDOWS[1:], ScoringConfig(profile=profile, references="external"), external)
        assert scores.curves[0].distance[10:].tolist() == [10.0, 5.0, 1.0]
        assert scores.reference_episodes["task"].tolist() == []
    honest = score(EPISODES, WINDOWS, ScoringConfig(profile="loo", references="external"), external)
    assert honest.curves[0].distance[10:].tolist() == [10.0, 5.0, 0.0]
    means = score(EPISODES, WINDOWS, ScoringConfig(references="external:mean"), external)
    assert means.curves[1].distance[10:].tolist() == [15.0, 10.0, 6.0]


def test_external_references_that_do_not_fit_are_refused():
    rules = ScoringConfig(references="external")
    with pytest.raises(UsageError, match="go together"):
        score(EPISODES, WINDOWS, rules)
    with pytest.raises(UsageError, match="go together"):
        score(EPISODES, WINDOWS, ScoringConfig(), {"task": np.ones((1, 2))})
    with pytest.raises(ScoringError, match=r"'task' has no external reference; there are: 'other'"):
        score(EPISODES, WINDOWS, rules, {"other": np.ones((1, 2))})
    for bad in (np.ones((1, 3)), np.ones(2), np.zeros((1, 2))):
        with pytest.raises(ScoringError, match=r"expected \(S, 2\)"):
            score(EPISODES, WINDOWS, rules, {"task": bad})


# --- rules


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"profile": "srpo"}, "there are: paper, paper-literal, siirl, loo"),
        ({"references": "knn4"}, "there are: dbscan-auto"),
        ({"value": "q"}, "there are: progress"),
        ({"alpha": -0.1}, "alpha -0.1"),
        ({"neighbours": 0}, "neighbours 0"),
    ],
)
def test_invalid_rules_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ScoringConfig(**wrong)


def test_unlabelled_episodes_are_listed():
    new_episodes = [Episode(index=i, task="task", length=13, fps=10.0, first_frame=0, cameras=()) for i in (4, 7)]
    with pytest.raises(ScoringError, match=r"2 episodes \(4, 7\) are unlabelled; .*--csv FILE.*--all-success"):
        score([*EPISODES, *new_episodes], [*WINDOWS, None, None])


def test_each_profile_has_its_references():
    assert [ScoringConfig(profile=profile).reference_name for profile in PROFILES] == [
        "dbscan-auto",
        "dbscan-auto",
        "siirl",
        "knn3",
    ]
    assert ScoringConfig(profile="loo", references="nearest").reference_name == "nearest"
    assert ScoringConfig().value_name == "progress"


def test_omitted_episodes_have_no_values_under_any_profile():
    episodes = [*EPISODES, episode(4, True, task="other"), episode(5, False)]
    for profile in PROFILES:
        scores = score(
            episodes, [*WINDOWS, line(0.0, 1.0, 2.0), None], ScoringConfig(profile=profile, skip_tasks=("other",))
        )
        assert [e.reason for e in scores.episodes[4:]] == [SKIPPED_TASK, SKIPPED_EPISODE]
        assert np.isnan(scores.values[4]).all()
        assert np.isnan(scores.rewards[4:]).all()
        assert np.isnan(scores.trajectory_advantages[4:]).all()
        assert np.isfinite(scores.trajectory_advantages[:4]).all()


# --- compare


def test_profiles_that_agree_in_order_have_no_disagreement():
    assert {row.disagreement for row in compare(EPISODES, WINDOWS, ["paper", "siirl"])} == {0.0}


def test_the_printed_sign_reverses_the_failures():
    rows = compare(EPISODES, WINDOWS, ["paper", "paper-literal"])
    assert [row.episode_index for row in rows] == [1, 3, 0, 2]
    assert [row.disagreement for row in rows] == [2.0, 2.0, 0.0, 0.0]
    assert rows[0].reward_rank == {"paper": 2.0, "paper-literal": 4.0}
    assert rows[0].progress_rank == {"paper": 2.0, "paper-literal": 2.0}
    assert rows[0].reward["paper"] == pytest.approx(0.8 * sigmoid(Z))
    assert rows[0].progress["paper"] == pytest.approx(0.9)


def test_loo_detects_the_unusual_success():
    successes = [line(0.0, 1.0, end) for end in (10.0, 10.1, 10.2, 10.3, 2.0)]
    episodes = [episode(i, True) for i in range(5)] + [episode(5, False)]
    rows = compare(episodes, [*successes, line(0.0, 5.0, 9.0)], ["paper", "loo"])
    assert rows[0].episode_index == 4
    assert rows[0].progress["paper"] == 1.0
    assert rows[0].progress_rank == {"paper": 3.0, "loo": 6.0}
    assert rows[0].disagreement == 3.0


def test_compare_needs_two_known_profiles():
    with pytest.raises(UsageError, match="two profiles"):
        compare(EPISODES, WINDOWS, ["paper", "paper"])
    with pytest.raises(UsageError, match="no profile 'x'"):
        compare(EPISODES, WINDOWS, ["paper", "x"])


def test_omitted_episodes_are_not_counted_as_disagreements():
    rows = compare([*EPISODES, episode(4, False)], [*WINDOWS, None], ["paper", "siirl", "loo"])
    left_out = next(row for row in rows if row.episode_index == 4)
    assert left_out.disagreement == 0.0
    assert np.isnan(left_out.reward["loo"])


# --- properties


def walks(seed: int, episodes: int = 9) -> tuple[list[Episode], list[WindowEmbeddings]]:
    rng = np.random.default_rng(seed)
    listing = [episode(i, success=i < 5, task="a" if i % 2 else "b", group=f"take {i // 3}") for i in range(episodes)]
    return listing, [WindowEmbeddings(np.array([10, 12]), rng.normal(size=(2, 4)).cumsum(0)) for _ in range(episodes)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("value", ["progress", "knn-time", "reward"])
@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(9)))
@settings(max_examples=8, deadline=None)
def test_scores_do_not_depend_on_the_order_of_episodes(profile, value, seed, order):
    episodes, windows = walks(seed)
    rules = ScoringConfig(profile=profile, value=value, neighbours=2)
    straight = score(episodes, windows, rules)
    permutation = score([episodes[i] for i in order], [windows[i] for i in order], rules)
    for place, i in enumerate(order):
        for one, other in (
            (permutation.curves[place].distance, straight.curves[i].distance),
            (permutation.curves[place].progress, straight.curves[i].progress),
            (permutation.values[place], straight.values[i]),
            (permutation.rewards[place], straight.rewards[i]),
            (permutation.trajectory_advantages[place], straight.trajectory_advantages[i]),
        ):
            assert one == pytest.approx(other, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("profile", PROFILES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_progress_and_rewards_are_within_0_and_1(profile, seed):
    scores = score(*walks(seed), ScoringConfig(profile=profile))
    progress = np.concatenate([curve.progress for curve in scores.curves if not curve.reason])
    assert ((progress >= 0.0) & (progress <= 1.0)).all()
    assert ((scores.rewards >= 0.0) & (scores.rewards <= 1.0)).all()


@pytest.mark.parametrize("references", ["knn3", "dbscan-auto", "nearest"])
@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, 8))
@settings(max_examples=15, deadline=None)
def test_loo_distances_ignore_copies_within_the_same_group(references, seed, index):
    episodes, windows = walks(seed)
    rules = ScoringConfig(profile="loo", references=references)
    before = score(episodes, windows, rules).curves[index].distance
    copy = episode(9, bool(episodes[index].success), episodes[index].task, episodes[index].group)
    after = score([*episodes, copy], [*windows, windows[index]], rules)
    assert after.curves[index].distance == pytest.approx(before, nan_ok=True)
    assert after.curves[9].distance == pytest.approx(before, nan_ok=True)


def test_pure_noise_scores_perfectly_under_the_papers_profile():
    """A success that is compared with itself scores 1.00 for any video. The test documents this tautology."""
    rng = np.random.default_rng(0)
    ends = np.arange(10, 110)
    episodes = [episode(i, i < 6, length=110) for i in range(12)]
    windows = []
    for _ in episodes:
        frames = rng.normal(size=(110, 256))
        means = frames.cumsum(axis=0) / np.arange(1, 111)[:, None]  # a mean-pooled encoder on prefix windows
        windows.append(WindowEmbeddings(ends, means[ends]))
    paper = score(episodes, windows)
    success = [curve.progress[ends] for curve in paper.curves[:6]]
    assert [progress[-1] for progress in success] == [1.0] * 6
    correlations = [np.corrcoef(ends, rankdata(progress))[0, 1] for progress in success]  # Spearman: ends are sorted
    assert min(correlations) > 0.99
    honest = score(episodes, windows, ScoringConfig(profile="loo"))
    assert max(curve.progress[-1] for curve in honest.curves[:6]) < 1.0
