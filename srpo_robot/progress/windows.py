"""Growing windows of an episode: where they end, and which frames represent each (arXiv 2511.15605: prefix windows)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from srpo_robot.errors import UsageError

Kind = Literal["dense", "stride", "nested"]
Shape = Literal["prefix", "recent"]
Repeat = Literal["linspace", "cyclic"]
TUBELET = 2  # frames in one token of V-JEPA 2; it drops the last frame of an odd clip without a word


@dataclass(frozen=True)
class WindowSpec:
    """Which windows of an episode are embedded, and how each becomes a clip of F frames.

    Attributes:
        kind: "dense" (every frame, the paper), "stride" (every `stride`-th), or "nested" (prefixes of one sampling).
        stride: frames from one window's end to the next; 1 unless `kind` is "stride".
        shape: "prefix" (frames 0..t, the paper) or "recent" (the last F frames up to t).
        min_window: t0, last frame of the first window.
        frames_per_clip: F, even; None: the encoder's, see `resolved`.
        repeat: what a window shorter than F repeats: each frame in place, or (siiRL) the whole window again and again.

    Raises:
        UsageError: a value that cannot be, or a pair that does not go together.
    """

    kind: Kind
    stride: int = 1
    shape: Shape = "prefix"
    min_window: int = 10
    frames_per_clip: int | None = None
    repeat: Repeat = "linspace"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("windows", self.kind, get_args(Kind)),
            ("window shape", self.shape, get_args(Shape)),
            ("repeat", self.repeat, get_args(Repeat)),
        ):
            if value not in known:
                raise UsageError(f"no {name} {value!r}; there are: {', '.join(known)}")
        if self.stride < 1 or (self.kind != "stride" and self.stride != 1):
            raise UsageError(f"no windows {self.kind!r} of stride {self.stride}; give stride:K with K at least 1")
        if self.min_window < 0:
            raise UsageError(f"the first window cannot end at frame {self.min_window}; give --min-window 0 or more")
        frames = self.frames_per_clip
        if frames is not None and (frames < TUBELET or frames % TUBELET):
            raise UsageError(f"no clips of {frames} frames: V-JEPA 2 sees pairs; give an even number, for example 16")
        if self.kind == "nested" and (self.shape, self.repeat) != ("prefix", "linspace"):
            raise UsageError(
                f"nested windows are prefixes of one sampling, not {self.shape!r} with {self.repeat!r} repeats; "
                "give prefix and linspace, or stride:4"
            )

    def resolved(self, encoder_frames: int) -> WindowSpec:
        """The same spec with F filled in: its own, otherwise the encoder's."""
        return self if self.frames_per_clip is not None else replace(self, frames_per_clip=encoder_frames)

    def __str__(self) -> str:
        """As `parse_windows` reads it: "dense", "stride:4", "nested"."""
        return f"stride:{self.stride}" if self.kind == "stride" else self.kind


PREFIX = WindowSpec("dense")


def parse_windows(
    text: str,
    shape: str = "prefix",
    min_window: int = 10,
    frames_per_clip: int | None = None,
    repeat: str = "linspace",
) -> WindowSpec:
    """The spec that `text` names: "dense", "stride:K" or "nested"; the other arguments as in `WindowSpec`.

    Raises:
        UsageError: anything else, or a value that `WindowSpec` refuses; the message lists what there is.
    """
    kind, colon, number = text.partition(":")
    strided = kind == "stride" and number.isascii() and number.isdigit() and int(number) >= 1
    if not strided and (colon or kind not in ("dense", "nested")):
        raise UsageError(f"no window spec {text!r}; there are: dense, stride:K (for example stride:4), nested")
    # WindowSpec checks the three names itself; the casts are for the type checker only.
    return WindowSpec(
        kind,  # pyright: ignore[reportArgumentType]
        int(number) if strided else 1,
        shape,  # pyright: ignore[reportArgumentType]
        min_window,
        frames_per_clip,
        repeat,  # pyright: ignore[reportArgumentType]
    )


def ends(length: int, spec: WindowSpec) -> np.ndarray:
    """Last frame of each window of an episode of `length` frames: (n,) increasing, always with the last frame.

    From `min_window` (t0) on; an episode of at most t0 frames gets its whole self. Nested windows end at the last
    sampled frame of each even prefix; where a short episode repeats frames, windows of one end are one window.

    Raises:
        ValueError: `length` < 1, or nested windows without a clip length (see `WindowSpec.resolved`).
    """
    if spec.kind != "nested":
        return window_ends(length, spec.stride, spec.min_window)
    if length < 1 or spec.frames_per_clip is None:
        raise ValueError(f"nested windows of {length} frames, {spec.frames_per_clip} frames per clip")
    found = np.unique(_sampled(length - 1, spec.frames_per_clip)[TUBELET - 1 :: TUBELET])
    return found[(found >= spec.min_window) | (found == length - 1)]


def window_ends(length: int, stride: int, min_window: int) -> np.ndarray:
    """`ends` of the windows t0, t0 + stride, ... and the last frame. Raises as `ends`."""
    if length < 1 or min_window < 0 or stride < 1:
        raise ValueError(f"length {length}, stride {stride}, min_window {min_window}")
    found = np.arange(min(min_window, length - 1), length, stride)
    return found if found[-1] == length - 1 else np.append(found, length - 1)


def clip_indices(end: int, frames_per_clip: int, spec: WindowSpec = PREFIX, length: int | None = None) -> np.ndarray:
    """Frames that show the window up to `end` to the encoder: (F,) non-negative frame numbers.

    A prefix is linspace(0, end, F), rounded, so a window shorter than F repeats frames in place and the clip never
    restarts. "recent" is the last F frames up to `end`; a shorter past is shown as a prefix. Nested windows have even
    lengths 2..F: the longest prefix, of one sampling of the whole episode, whose last frame is `end`. "cyclic" is
    siiRL's np.resize (utils/embodied/video_emb.py:152), which shows restarts that never happened.

    Args:
        length: frames of the episode; nested windows need it.

    Raises:
        ValueError: a nested window without `length`, or an `end` that is none of its `ends`.
    """
    if spec.kind == "nested":
        if length is None:
            raise ValueError("a nested window needs the episode's length")
        sample = _sampled(length - 1, frames_per_clip)
        prefixes = np.flatnonzero(sample[TUBELET - 1 :: TUBELET] == end)
        if not len(prefixes):
            raise ValueError(f"no nested window of {length} frames ends at frame {end}")
        return sample[: TUBELET * (prefixes[-1] + 1)]
    if end + 1 < frames_per_clip and spec.repeat == "cyclic":
        return np.resize(np.arange(end + 1), frames_per_clip)
    if spec.shape == "recent" and end + 1 >= frames_per_clip:
        return np.arange(end + 1 - frames_per_clip, end + 1)
    return _sampled(end, frames_per_clip)


def clips(length: int, spec: WindowSpec) -> list[np.ndarray]:
    """`clip_indices` of every window of `ends`, in order. Raises as `ends`; ValueError where F is not known."""
    if spec.frames_per_clip is None:
        raise ValueError("the clip length is not known; see WindowSpec.resolved")
    return [clip_indices(int(end), spec.frames_per_clip, spec, length) for end in ends(length, spec)]


def clip_lengths(length: int, spec: WindowSpec) -> np.ndarray:
    """Frames in the clip of every window of `ends`: (n,), F unless nested. Raises as `clips`."""
    if spec.frames_per_clip is not None and spec.kind != "nested":
        return np.full(len(ends(length, spec)), spec.frames_per_clip)
    return np.array([len(clip) for clip in clips(length, spec)])


def _sampled(end: int, frames: int) -> np.ndarray:
    return np.linspace(0, end, frames).round().astype(np.int64)
