"""Growing windows of an episode: their end frames, and the frames that represent each (arXiv 2511.15605: prefixes)."""

from __future__ import annotations

import numpy as np

from srpo_robot.progress.config import TUBELET, ScoringConfig

PREFIX = ScoringConfig(windows="dense")


def ends(length: int, config: ScoringConfig) -> np.ndarray:
    """Returns the last frame of each window of an episode of `length` frames: (n,) increasing, ending at length - 1.

    The first window ends at `min_window` (t0). An episode of at most t0 frames has one window, the whole episode.
    Nested windows end at the last sampled frame of each even prefix. If a short episode repeats frames, windows with
    the same end are one window.

    Raises:
        ValueError: `length` < 1, or nested windows without a clip length (see `ScoringConfig.resolved`).
    """
    if config.window_kind != "nested":
        return window_ends(length, config.stride, config.min_window)
    if length < 1 or config.frames_per_clip is None:
        raise ValueError(f"nested windows of {length} frames, {config.frames_per_clip} frames per clip")
    sampled_ends = np.unique(_sampled(length - 1, config.frames_per_clip)[TUBELET - 1 :: TUBELET])
    return sampled_ends[(sampled_ends >= config.min_window) | (sampled_ends == length - 1)]


def window_ends(length: int, stride: int, min_window: int) -> np.ndarray:
    """Returns the ends t0, t0 + stride, ... and the last frame. Raises as `ends`."""
    if length < 1 or min_window < 0 or stride < 1:
        raise ValueError(f"length {length}, stride {stride}, min_window {min_window}")
    strided = np.arange(min(min_window, length - 1), length, stride)
    return strided if strided[-1] == length - 1 else np.append(strided, length - 1)


def clip_indices(
    end: int, frames_per_clip: int, config: ScoringConfig = PREFIX, length: int | None = None
) -> np.ndarray:
    """Returns the frames that show the window up to `end` to the encoder: (F,) non-negative frame numbers.

    A prefix is linspace(0, end, F), rounded, so a window shorter than F repeats frames in place and the clip never
    restarts. "recent" is the last F frames up to `end`; a shorter past is shown as a prefix. A nested window has an
    even length 2..F: it is the longest prefix, of one sampling of the whole episode, whose last frame is `end`.
    "cyclic" is siiRL's np.resize (utils/embodied/video_emb.py:152), which shows restarts that never happened.

    Args:
        length: number of frames of the episode; nested windows need it.

    Raises:
        ValueError: a nested window without `length`, or no window of the episode ends at `end`.
    """
    if config.window_kind == "nested":
        if length is None:
            raise ValueError("a nested window needs the episode's length")
        sample = _sampled(length - 1, frames_per_clip)
        prefixes = np.flatnonzero(sample[TUBELET - 1 :: TUBELET] == end)
        if not len(prefixes):
            raise ValueError(f"no nested window of {length} frames ends at frame {end}")
        return sample[: TUBELET * (prefixes[-1] + 1)]
    if end + 1 < frames_per_clip and config.repeat == "cyclic":
        return np.resize(np.arange(end + 1), frames_per_clip)
    if config.window_shape == "recent" and end + 1 >= frames_per_clip:
        return np.arange(end + 1 - frames_per_clip, end + 1)
    return _sampled(end, frames_per_clip)


def clips(length: int, config: ScoringConfig) -> list[np.ndarray]:
    """Returns the `clip_indices` of every window of `ends`, in order.

    Raises:
        ValueError: as `ends`, or the config has no clip length.
    """
    if config.frames_per_clip is None:
        raise ValueError("the clip length is not known; see ScoringConfig.resolved")
    return [clip_indices(int(end), config.frames_per_clip, config, length) for end in ends(length, config)]


def clip_lengths(length: int, config: ScoringConfig) -> np.ndarray:
    """Returns the number of frames in the clip of each window: (n,), F unless nested. Raises as `clips`."""
    if config.frames_per_clip is not None and config.window_kind != "nested":
        return np.full(len(ends(length, config)), config.frames_per_clip)
    return np.array([len(clip) for clip in clips(length, config)])


def _sampled(end: int, frames: int) -> np.ndarray:
    return np.linspace(0, end, frames).round().astype(np.int64)
