"""Tests of windows: their last frames, and the frames of their clips."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.errors import UsageError
from srpo_robot.progress.config import Profile, ScoringConfig
from srpo_robot.progress.windows import clip_indices, clip_lengths, clips, ends, window_ends


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 50))
def test_ends_increase_start_at_t0_and_include_the_last_frame(length, stride, t0):
    ends = window_ends(length, stride, t0)
    assert ends[-1] == length - 1
    assert np.all(np.diff(ends) > 0)
    assert ends[0] == min(t0, length - 1)
    assert np.all(np.diff(ends)[:-1] == stride)


def test_dense_is_every_frame_from_t0():
    assert window_ends(14, 1, 10).tolist() == [10, 11, 12, 13]


def test_a_stride_takes_every_kth_and_the_last():
    assert window_ends(20, 4, 10).tolist() == [10, 14, 18, 19]


def test_an_episode_that_is_too_short_is_one_window():
    assert window_ends(10, 1, 10).tolist() == [9]


@given(st.integers(0, 500), st.integers(2, 64))
def test_a_clip_runs_from_the_first_frame_to_the_windows_end_without_restarting(end, frames):
    indices = clip_indices(end, frames)
    assert len(indices) == frames
    assert (indices[0], indices[-1]) == (0, end)
    assert np.all(np.diff(indices) >= 0)


def test_a_short_window_repeats_frames_in_place():
    assert clip_indices(2, 6).tolist() == [0, 0, 1, 1, 2, 2]


def test_specs():
    assert (ScoringConfig(windows="dense").stride, ScoringConfig(windows="stride:7").stride) == (1, 7)
    for bad in ("stride:0", "stride", "nested:", "every 4"):
        with pytest.raises(UsageError, match="stride:4"):
            ScoringConfig(windows=bad)


# --- configs


SPECS = [
    ScoringConfig(windows="dense", frames_per_clip=16),
    ScoringConfig(windows="stride:4", frames_per_clip=16),
    ScoringConfig(windows="stride:4", frames_per_clip=16, window_shape="recent"),
    ScoringConfig(windows="stride:3", frames_per_clip=16, profile="siirl"),
    ScoringConfig(windows="nested", frames_per_clip=16),
    ScoringConfig(windows="nested", min_window=0, frames_per_clip=64),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@given(length=st.integers(1, 300))
def test_every_spec_ends_with_the_episode_and_shows_frames_of_its_windows_only(spec, length):
    last, window_clips = ends(length, spec), clips(length, spec)
    assert np.all(np.diff(last) > 0)
    assert last[-1] == length - 1
    assert np.all(last[:-1] >= spec.min_window)
    assert [len(clip) for clip in window_clips] == clip_lengths(length, spec).tolist()
    for end, clip in zip(last, window_clips, strict=True):
        assert clip.min() >= 0
        assert clip.max() == end
        assert len(clip) % 2 == 0


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 20))
def test_dense_and_stride_end_at_the_window_ends(length, stride, t0):
    assert (
        ends(length, ScoringConfig(windows=f"stride:{stride}", min_window=t0)).tolist()
        == window_ends(length, stride, t0).tolist()
    )
    assert ends(length, ScoringConfig(windows="dense", min_window=t0)).tolist() == window_ends(length, 1, t0).tolist()


def test_recent_is_the_last_frames_and_a_short_past_is_a_prefix():
    spec = ScoringConfig(windows="dense", window_shape="recent")
    assert clip_indices(20, 6, spec).tolist() == [15, 16, 17, 18, 19, 20]
    assert clip_indices(5, 6, spec).tolist() == [0, 1, 2, 3, 4, 5]
    assert clip_indices(2, 6, spec).tolist() == [0, 0, 1, 1, 2, 2]


def test_cyclic_restarts_short_windows_only():
    spec = ScoringConfig(windows="dense", profile="siirl")
    assert clip_indices(2, 8, spec).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]  # np.resize, as siiRL
    assert clip_indices(40, 8, spec).tolist() == clip_indices(40, 8).tolist()


def test_nested_windows_are_even_prefixes_of_one_sampling():
    spec = ScoringConfig(windows="nested", min_window=0, frames_per_clip=8)
    sample = np.linspace(0, 70, 8).round().astype(int).tolist()  # 0, 10, .., 70
    assert ends(71, spec).tolist() == [10, 30, 50, 70]
    assert [clip.tolist() for clip in clips(71, spec)] == [sample[:2], sample[:4], sample[:6], sample]
    assert ends(71, ScoringConfig(windows="nested", min_window=31, frames_per_clip=8)).tolist() == [50, 70]


def test_nested_windows_of_a_short_episode_have_distinct_ends():
    spec = ScoringConfig(windows="nested", min_window=0, frames_per_clip=8)
    assert ends(3, spec).tolist() == [0, 1, 2]  # the sampling is 0 0 1 1 1 1 2 2
    assert [clip.tolist() for clip in clips(3, spec)] == [[0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 2, 2]]
    assert ends(1, spec).tolist() == [0]


@given(st.integers(1, 300), st.sampled_from([2, 4, 16, 64]))
def test_the_last_nested_window_is_the_full_clip(length, frames):
    spec = ScoringConfig(windows="nested", frames_per_clip=frames)
    assert clips(length, spec)[-1].tolist() == clip_indices(length - 1, frames).tolist()


def test_window_specs_are_parsed():
    configs = [ScoringConfig(windows=text) for text in ("dense", "stride:9", "stride:09", "nested")]
    assert [config.window_kind for config in configs] == ["dense", "stride", "stride", "nested"]
    assert [config.stride for config in configs] == [1, 9, 9, 1]
    assert [config.windows for config in configs] == ["dense", "stride:9", "stride:9", "nested"]
    assert ScoringConfig(windows="nested").resolved(64).frames_per_clip == 64
    assert ScoringConfig(windows="nested", frames_per_clip=16).resolved(64).frames_per_clip == 16


def test_only_siirl_repeats_a_short_window_from_its_start():
    assert {profile: ScoringConfig(profile=profile).repeat for profile in get_args(Profile)} == {
        "paper": "linspace",
        "paper-literal": "linspace",
        "siirl": "cyclic",
        "loo": "linspace",
    }


@pytest.mark.parametrize("text", ["stride", "stride:", "stride:0", "stride:-1", "dense:2", "nested:4", "", "stride:²"])
def test_an_unknown_spec_is_refused_with_the_list(text):
    with pytest.raises(UsageError, match=r"there are: dense, stride:K \(for example stride:4\), nested"):
        ScoringConfig(windows=text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window_shape": "suffix"}, "no window shape 'suffix'; there are: prefix, recent"),
        ({"min_window": -1}, "--min-window 0 or more"),
        ({"frames_per_clip": 17}, "no clips of 17 frames.*even number"),
        ({"frames_per_clip": 0}, "even number"),
    ],
)
def test_invalid_options_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        ScoringConfig(windows="stride:4", **options)


def test_nested_is_refused_in_meaningless_combinations():
    with pytest.raises(UsageError, match="nested windows are prefixes of one sampling, not 'prefix' with 'cyclic'"):
        ScoringConfig(windows="nested", profile="siirl")
    with pytest.raises(UsageError, match="nested windows are prefixes of one sampling"):
        ScoringConfig(windows="nested", window_shape="recent")
    with pytest.raises(ValueError, match="frames per clip"):
        ends(20, ScoringConfig(windows="nested"))
    with pytest.raises(ValueError, match="no nested window"):
        clip_indices(5, 8, ScoringConfig(windows="nested", frames_per_clip=8), 71)
