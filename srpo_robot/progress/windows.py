"""Growing windows of an episode: where they end, and which frames represent each (method: prefix windows)."""

from __future__ import annotations

import numpy as np

from srpo_robot.errors import UsageError


def parse_stride(spec: str) -> int:
    """The stride of a window spec: "dense" is 1, "stride:k" is k.

    Raises:
        UsageError: anything else.
    """
    if spec == "dense":
        return 1
    kind, _, number = spec.partition(":")
    if kind == "stride" and number.isdigit() and int(number) >= 1:
        return int(number)
    raise UsageError(f"no window spec {spec!r}; there are: dense, stride:K (for example stride:4)")


def window_ends(length: int, stride: int, min_window: int) -> np.ndarray:
    """Last frames t of the windows 0..t of an episode of `length` frames: (n,) increasing, always with the last frame.

    t runs from `min_window` (t0) to T-1 in steps of `stride`; an episode of at most t0 frames gets its whole self.
    """
    if length < 1 or min_window < 0 or stride < 1:
        raise ValueError(f"length {length}, stride {stride}, min_window {min_window}")
    ends = np.arange(min(min_window, length - 1), length, stride)
    return ends if ends[-1] == length - 1 else np.append(ends, length - 1)


def clip_indices(end: int, frames_per_clip: int) -> np.ndarray:
    """Frames that show the window 0..`end` to the encoder: (F,) linspace(0, end, F), rounded.

    A window shorter than F repeats frames in place (linspace-repeat), so the clip never restarts.
    """
    return np.linspace(0, end, frames_per_clip).round().astype(np.int64)
