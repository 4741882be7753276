"""Windows: where they end and which frames show them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.errors import UsageError
from srpo_robot.progress.windows import clip_indices, parse_stride, window_ends


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
    assert (parse_stride("dense"), parse_stride("stride:7")) == (1, 7)
    for bad in ("stride:0", "stride", "nested:", "every 4"):
        with pytest.raises(UsageError, match="stride:4"):
            parse_stride(bad)
