"""Changed episodes: kept frames are identical to the bit, each variant's promise holds, and a score is held to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import moving_square
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.errors import UsageError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.evidence.baselines import PixelMean, time_curves
from srpo_robot.progress.evidence.counterfactual import (
    ELSEWHERE,
    Variant,
    allowed,
    backwards,
    colour_swap,
    cut,
    from_simulator,
    frozen,
    over_reward,
    parse_colours,
    variant_episode,
    variants,
    wrong_ending,
)
from srpo_robot.progress.score import WindowEmbeddings, score
from srpo_robot.records import Episode

lengths = st.integers(2, 40)
fractions = st.floats(0.0, 0.999)
RED, GREEN = (200, 20, 20), (20, 200, 20)


def video(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(0, 256, (length, 4, 6, 3), dtype=np.uint8)


def frames_match_their_sources(variant: Variant, source: np.ndarray, donor: np.ndarray | None = None) -> bool:
    """Returns whether every frame equals its named source frame. Asserts that it comes from one of the two episodes."""
    assert len(variant.source) == len(variant.donor) == len(variant.frames)
    assert ((variant.source == ELSEWHERE) != (variant.donor == ELSEWHERE)).all()
    assert 0 <= variant.ceiling < len(source)
    assert variant.success is False
    pairs = [(variant.source, source)] + ([] if donor is None else [(variant.donor, donor)])
    return all(
        np.array_equal(variant.frames[indices != ELSEWHERE], frames[indices[indices != ELSEWHERE]])
        for indices, frames in pairs
    )


# --- laws of the makers


@given(lengths, fractions)
def test_a_frozen_episode_repeats_one_frame_after_the_stop(length, fraction):
    source = video(length)
    variant = frozen(source, fraction)
    stop = variant.ceiling
    assert variant.frames.shape == source.shape
    assert frames_match_their_sources(variant, source)
    assert np.array_equal(variant.frames[: stop + 1], source[: stop + 1])
    assert (variant.frames[stop:] == source[stop]).all()
    assert stop < length - 1  # something is changed
    assert abs(stop - fraction * length) <= 2


@given(lengths, fractions)
def test_a_cut_episode_is_a_prefix(length, fraction):
    source = video(length)
    variant = cut(source, fraction)
    assert np.array_equal(variant.frames, source[: variant.ceiling + 1])
    assert len(variant.frames) < length
    assert frames_match_their_sources(variant, source)


@given(lengths)
def test_backwards_twice_is_the_episode(length):
    source = video(length)
    variant = backwards(source)
    assert np.array_equal(variant.frames[-1], source[variant.ceiling])
    assert np.array_equal(backwards(variant.frames).frames, source)
    assert frames_match_their_sources(variant, source)


@given(lengths, st.integers(1, 40), fractions, st.sampled_from(["failure", "other-task"]))
def test_a_wrong_ending_is_a_beginning_and_an_end(length, donor_length, fraction, kind):
    source, ending = video(length), video(donor_length, seed=1)
    variant = wrong_ending(source, ending, fraction, kind)
    prefix_length = variant.ceiling + 1
    assert len(variant.frames) == prefix_length + min(length - prefix_length, donor_length)
    assert np.array_equal(variant.frames[:prefix_length], source[:prefix_length])
    assert np.array_equal(variant.frames[-1], ending[-1])
    assert frames_match_their_sources(variant, source, ending)
    assert variant.donor_ceiling == (donor_length - 1 if kind == "failure" else None)


def test_states_follow_the_frames():
    source, ending = video(6), video(4, seed=1)
    variant = wrong_ending(source, ending, 0.5, "failure")
    states, donor_states = np.arange(6.0)[:, None], 10 + np.arange(4.0)[:, None]
    assert variant.carried(states, donor_states)[:, 0].tolist() == [0, 1, 2, 3, 12, 13]
    assert frozen(source, 0.5).carried(states)[:, 0].tolist() == [0, 1, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="shows a donor"):
        variant.carried(states)


def two_objects() -> np.ndarray:
    """A red and a green block, half of each in shade, on grey: uint8 (3, 12, 20, 3)."""
    frames = np.full((3, 12, 20, 3), 120, dtype=np.uint8)
    for t in range(3):
        frames[t, 2:6, 2 + t : 6 + t] = RED
        frames[t, 4:6, 2 + t : 6 + t] = (100, 10, 10)
        frames[t, 2:6, 12:16] = GREEN
    frames[:, 10, :, :] = (8, 1, 1)  # too dark to have a hue
    return frames


def test_a_colour_swap_exchanges_two_colours_keeps_the_shade_and_leaves_the_rest():
    source = two_objects()
    variant = colour_swap(source, RED, GREEN, moved=1)
    assert variant.frames[0, 3, 3].tolist() == list(GREEN)
    assert variant.frames[0, 5, 3].tolist() == [10, 100, 10]
    assert variant.frames[0, 3, 13].tolist() == list(RED)
    block = (source == 120).all(axis=-1) | (source == (8, 1, 1)).all(axis=-1)
    assert np.array_equal(variant.frames[block], source[block])
    assert np.array_equal(colour_swap(variant.frames, RED, GREEN).frames, source)
    assert (variant.ceiling, variant.edited) == (1, True)
    assert np.array_equal(colour_swap(source, GREEN, RED).frames, variant.frames)


def test_an_impossible_colour_swap_is_refused():
    source = two_objects()
    for colours, says in ((((200, 0, 0), (180, 10, 0)), "smaller reach"), (((0, 0, 0), GREEN), "black has no hue")):
        with pytest.raises(UsageError, match=says):
            colour_swap(source, *colours)
    with pytest.raises(UsageError, match="frame 3 is not in an episode of 3"):
        colour_swap(source, RED, GREEN, moved=3)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_a_fraction_outside_the_episode(fraction):
    with pytest.raises(UsageError, match="give 0 up to below 1"):
        frozen(video(10), fraction)


def test_an_array_that_is_not_a_video():
    with pytest.raises(UsageError, match="a variant is made of uint8"):
        backwards(np.zeros((3, 4, 4, 3)))
    with pytest.raises(UsageError, match="2 frames or more"):
        cut(video(1), 0.5)
    with pytest.raises(UsageError, match="resize one"):
        wrong_ending(video(5), np.zeros((5, 8, 8, 3), dtype=np.uint8), 0.5, "failure")
    with pytest.raises(UsageError, match="no donor 'success'"):
        wrong_ending(video(5), video(5), 0.5, "success")  # pyright: ignore[reportArgumentType]


@given(st.integers(0, 50), st.integers(5, 40))
def test_the_set_is_the_same_for_a_seed_and_holds_its_laws(seed, length):
    source, failure, success = video(length), video(12, seed=1), video(9, seed=2)
    first, second = (variants(source, seed, failure, success) for _ in range(2))
    names = ["frozen", "early-cut", "reversed", "wrong-ending:failure", "wrong-ending:other-task"]
    assert [variant.name for variant in first] == names
    for variant_1, variant_2, donor in zip(first, second, (None, None, None, failure, success), strict=True):
        assert np.array_equal(variant_1.frames, variant_2.frames)
        assert frames_match_their_sources(variant_1, source, donor)
    assert [variant.name for variant in variants(source, seed)] == names[:3]
    stops = {tuple(v.ceiling for v in variants(video(40), s)[:2]) for s in range(8)}
    assert len(stops) > 4


def test_the_wrong_object_is_made_if_the_colours_are_known():
    source = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    source[:, 1:3, 1:3], source[:, 5:7, 5:7] = (200, 20, 20), (20, 20, 200)
    (*_, swap) = variants(source, 0, colours=parse_colours("200,20,20:20,20,200"))
    assert (swap.name, swap.ceiling, swap.success) == ("wrong-object", 0, False)
    assert np.array_equal(swap.frames[:, 1:3, 1:3], source[:, 5:7, 5:7])
    assert np.array_equal(swap.frames[:, 5:7, 5:7], source[:, 1:3, 1:3])


@pytest.mark.parametrize(
    "text", ["", "red:blue", "1,2,3", "1,2:3,4,5", "1,2,3:4,5,256", "-1,2,3:4,5,6", "1,2,3:4,5,6:7,8,9"]
)
def test_invalid_colours(text):
    with pytest.raises(UsageError, match="give R,G,B:R,G,B of 0 to 255"):
        parse_colours(text)


def test_a_simulators_frames_are_used_unchanged():
    variant = from_simulator("wrong-object", video(7), ceiling=2)
    assert (variant.name, variant.ceiling, variant.edited) == ("wrong-object", 2, True)
    assert np.array_equal(variant.frames, video(7))


# --- allowed scores


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0, 1))
def test_over_reward_is_the_amount_above_the_bound(source, final):
    progress = np.array(source)
    variant = frozen(video(4), 0.5)
    assert allowed(variant, progress) == progress[2]
    assert over_reward(final, variant, progress) == max(0.0, final - progress[2])


def test_the_end_of_a_failure_may_reach_the_failures_own_score():
    variant = wrong_ending(video(4), video(3, seed=1), 0.5, "failure")
    source, donor = np.array([0.0, 0.1, 0.3, 1.0]), np.array([0.0, 0.2, 0.6])
    assert allowed(variant, source, donor) == 0.6
    assert allowed(variant, source, donor / 10) == pytest.approx(0.3)
    assert over_reward(0.9, variant, source, donor) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="give the donor's progress too"):
        allowed(variant, source)


def test_a_missing_score_stays_missing():
    variant = frozen(video(4), 0.5)
    assert math.isnan(over_reward(math.nan, variant, np.ones(4)))
    assert math.isnan(over_reward(1.0, variant, np.full(4, math.nan)))
    ending = wrong_ending(video(4), video(3), 0.5, "failure")
    assert math.isnan(over_reward(1.0, ending, np.ones(4), np.full(3, math.nan)))


def test_an_honest_score_does_not_over_reward_and_one_that_counts_time_does():
    """Runs the real pipeline with two scores: the last pixels against the successes, and the time index."""
    encoder, spec = (
        PixelMean(16),
        ScoringConfig(windows="dense", min_window=4, frames_per_clip=2, window_shape="recent"),
    )
    reaches = [1.0, 0.97, 0.94, 0.91, 0.4]
    videos = [moving_square(30 + i, reach) for i, reach in enumerate(reaches)]
    episodes = [
        Episode(index=i, task="go", length=len(v), fps=10.0, first_frame=0, cameras=("c",), success=i < 4)
        for i, v in enumerate(videos)
    ]
    changes = variants(videos[0], 0, failure=videos[4])
    extra = [variant_episode(episodes[0], variant, 100 + i) for i, variant in enumerate(changes)]

    def windows(frames: np.ndarray) -> WindowEmbeddings:
        return embed_frames(encoder.prepare(frames), encoder, spec)

    embeddings = [windows(v) for v in [*videos, *(variant.frames for variant in changes)]]
    curves = score([*episodes, *extra], embeddings, ScoringConfig(profile="loo", references="nearest")).curves
    source, failure = curves[0].progress, curves[4].progress
    for variant, curve in zip(changes, curves[5:], strict=True):
        honest = over_reward(float(curve.progress[-1]), variant, source, failure)
        assert honest < 0.05, variant.name
    clock = time_curves([*episodes, *extra])
    for variant, curve in zip(
        changes[:3], clock[5:], strict=False
    ):  # without the failure donor: its own end is late too
        assert over_reward(float(curve.progress[-1]), variant, clock[0].progress) > 0.3, variant.name


def test_a_variant_is_not_measured_against_its_source_episode():
    """A variant identical to its source would be at distance 0 from it if the group were not left out."""
    source = Episode(index=3, task="go", length=5, fps=10.0, first_frame=0, cameras=("c",), success=True)
    other_episodes = [
        Episode(index=i, task="go", length=5, fps=10.0, first_frame=0, cameras=("c",), success=True) for i in (4, 5)
    ]
    copy = variant_episode(source, from_simulator("copy", video(5)), 9)
    assert (copy.success, copy.group, copy.length) == (False, "episode 3", 5)
    points = [np.array([[0.5], [1.0]]), np.array([[0.5], [3.0]]), np.array([[0.5], [4.0]])]
    windows = [WindowEmbeddings(np.array([2, 4]), p) for p in [*points, points[0]]]
    curves = score([source, *other_episodes, copy], windows, ScoringConfig(profile="loo", references="nearest")).curves
    assert curves[3].distance[-1] == 2.0
    assert (
        variant_episode(
            Episode(index=1, task="go", length=5, fps=10.0, first_frame=0, cameras=(), success=True, group="take 7"),
            from_simulator("x", video(4)),
            2,
        ).group
        == "take 7"
    )
