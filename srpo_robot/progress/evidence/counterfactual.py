"""Episodes whose truth is known because we made them: recorded video, changed so that the task cannot have succeeded.

A trustworthy score gives such an ending no more than the moment up to which it was real. numpy in, numpy out. What can
be done to recorded video is limited, and each maker says where: a splice jumps, a colour swap swaps every pixel of that
colour, a region swap pastes rectangles. A simulator can render the real thing; `from_simulator` takes its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.records import Episode

Donor = Literal["failure", "other-task"]
Colour = tuple[int, int, int]
DARK = 25  # a pixel whose brightest channel is below this has no hue worth the name
ELSEWHERE = -1  # in `Variant.source` and `Variant.donor`: this frame is not from there


@dataclass(frozen=True, eq=False)
class Variant:
    """A changed episode and what is true of it. Its task has not succeeded at its end.

    Attributes:
        name: what was done.
        frames: uint8 (T', H, W, 3).
        source: (T',) the source's frame that each one shows (changed or not), `ELSEWHERE` where it shows none.
        donor: (T',) the same for the episode that was spliced on.
        ceiling: the source's frame whose true progress the end does not exceed.
        donor_ceiling: the donor's frame that may be reached instead; None: none.
        edited: pixels of the frames differ from the source's, not only their order.
    """

    name: str
    frames: np.ndarray
    source: np.ndarray
    donor: np.ndarray
    ceiling: int
    donor_ceiling: int | None = None
    edited: bool = False

    @property
    def success(self) -> bool:
        """False: that is what the makers are for."""
        return False

    def carried(self, per_frame: np.ndarray, donor: np.ndarray | None = None) -> np.ndarray:
        """States or another (T, ...) record of the source (and of the donor) as this variant's: (T', ...).

        A frame that neither shows has NaN.

        Raises:
            ValueError: the variant shows a donor, and its record is not given.
        """
        if donor is None and (self.donor != ELSEWHERE).any():
            raise ValueError(f"the variant {self.name!r} shows a donor; give its record too")
        result = np.full((len(self.frames), *per_frame.shape[1:]), np.nan)
        for where, record in ((self.source, per_frame), (self.donor, donor)):
            if record is not None:
                result[where != ELSEWHERE] = record[where[where != ELSEWHERE]]
        return result


def frozen(frames: np.ndarray, fraction: float) -> Variant:
    """The episode stops at `fraction` of its length and stands still to the end: same length."""
    stop = _frame_at(frames, fraction)
    return _rearranged("frozen", frames, np.minimum(np.arange(len(frames)), stop), stop)


def cut(frames: np.ndarray, fraction: float) -> Variant:
    """The recording ends at `fraction` of its length."""
    stop = _frame_at(frames, fraction)
    return _rearranged("early-cut", frames, np.arange(stop + 1), stop)


def backwards(frames: np.ndarray) -> Variant:
    """The video in reverse: it ends where the task began. (Things move that nothing pushes: a score may notice.)"""
    return _rearranged("reversed", frames, np.arange(len(frames))[::-1].copy(), 0)


def wrong_ending(frames: np.ndarray, ending: np.ndarray, fraction: float, donor: Donor) -> Variant:
    """The first `fraction` of the episode, then the end of another one, of the same total length where that is long
    enough.

    The scene jumps where they meet, unless both were recorded in one layout. A score that reads the end alone gives
    what it gives the donor; so the end of a failure of the same task may reach that failure's own score.

    Args:
        ending: the donor's frames, uint8 (T_d, H, W, 3).
        donor: "failure" of the same task, or an episode of "other-task", whose end is worth nothing here.

    Raises:
        UsageError: images of another size, or an unknown kind of donor. A success of the same task is no wrong ending.
    """
    _check(frames)
    _check(ending)
    if frames.shape[1:] != ending.shape[1:]:
        raise UsageError(f"an ending of images {ending.shape[1:]} on an episode of {frames.shape[1:]}; resize one")
    if donor not in ("failure", "other-task"):
        raise UsageError(f"no donor {donor!r}; there are: failure (of the same task), other-task")
    stop = _frame_at(frames, fraction)
    kept = np.arange(stop + 1)
    tail = np.arange(max(0, len(ending) - (len(frames) - len(kept))), len(ending))
    return Variant(
        "wrong-ending",
        np.concatenate([frames[kept], ending[tail]]),
        np.concatenate([kept, np.full(len(tail), ELSEWHERE)]),
        np.concatenate([np.full(len(kept), ELSEWHERE), tail]),
        stop,
        len(ending) - 1 if donor == "failure" else None,
    )


def colour_swap(frames: np.ndarray, first: Colour, second: Colour, reach: float = 60.0, moved: int = 0) -> Variant:
    """Two objects exchange their colours: what was the target is now the distractor, so the wrong one was moved.

    Pixels whose colour, brightness aside, is within `reach` of one object's get the other's at their own brightness.
    Honest limits: all pixels of such a colour are exchanged, the arm's and the table's too; shapes stay; deep
    shadows, reflections and grey objects (which have brightness alone) do not take part, and a rim of mixed pixels
    keeps the old colour (plain to see at 96 px). Look at a frame first.

    Args:
        first, second: RGB 0..255 of the two objects as they look in the video.
        reach: largest distance of a pixel from an object's colour, both scaled to a brightest channel of 255.
        moved: last frame before anything was moved; progress up to there was real.

    Raises:
        UsageError: the colours are too near to tell apart, or black, or `moved` is not in the episode.
    """
    _check(frames)
    _check_moved(frames, moved)
    hues = np.array([first, second], dtype=np.float64)
    if hues.max(axis=1).min() <= 0:
        raise UsageError(f"colours {first} and {second}: black has no hue; give the objects' colours as they look")
    hues *= 255.0 / hues.max(axis=1, keepdims=True)
    if np.linalg.norm(hues[0] - hues[1]) <= reach:
        raise UsageError(
            f"colours {first} and {second} are {np.linalg.norm(hues[0] - hues[1]):.0f} apart at full brightness, no "
            f"more than the reach of {reach:g}; give a smaller reach or a region swap"
        )
    swapped = np.stack([_swap_hues(frame, hues, reach) for frame in frames])
    everything = np.arange(len(frames))
    return Variant("colour-swap", swapped, everything, np.full(len(frames), ELSEWHERE), moved, edited=True)


def region_swap(frames: np.ndarray, first: np.ndarray, second: np.ndarray, moved: int = 0) -> Variant:
    """Two rectangles exchange their contents in every frame, so the target stands where the distractor was.

    Honest limits: the background comes along, an object that leaves its box is cut, and a gripper inside a box jumps
    with it. Boxes that follow the objects (from a tracker or a simulator) look best.

    Args:
        first, second: (4,) or per frame (T, 4): top, left, bottom, right [px], bottom and right not included. The two
            are of one size and do not overlap.
        moved: as in `colour_swap`.

    Raises:
        UsageError: boxes outside the image, of two sizes, or overlapping; names the first such frame.
    """
    _check(frames)
    _check_moved(frames, moved)
    boxes = [np.broadcast_to(np.asarray(box, dtype=int), (len(frames), 4)) for box in (first, second)]
    swapped = frames.copy()
    for t, (a, b) in enumerate(zip(*boxes, strict=True)):
        _check_boxes(t, a, b, frames.shape[1:3])
        one, other = _inside(a), _inside(b)
        swapped[t][one], swapped[t][other] = frames[t][other], frames[t][one]
    everything = np.arange(len(frames))
    return Variant("region-swap", swapped, everything, np.full(len(frames), ELSEWHERE), moved, edited=True)


def from_simulator(name: str, frames: np.ndarray, ceiling: int = 0) -> Variant:
    """The seam for a simulator that renders the counterfactual itself, for example the same motion with two objects
    exchanged.

    Args:
        frames: what it rendered; frame t stands for the source's frame t.
        ceiling: last source frame up to which what happened is the same.
    """
    _check(frames)
    _check_moved(frames, ceiling)
    everything = np.arange(len(frames))
    return Variant(name, frames, everything, np.full(len(frames), ELSEWHERE), ceiling, edited=True)


def variants(
    frames: np.ndarray,
    seed: int,
    failure: np.ndarray | None = None,
    other_task: np.ndarray | None = None,
    colours: tuple[Colour, Colour] | None = None,
) -> tuple[Variant, ...]:
    """The set that a successful recording allows: frozen, early-cut, reversed, a wrong ending per donor given, and the
    wrong object where the colours of target and distractor are known.

    Where it stops is drawn from `seed`, between 0.3 and 0.6 of the way: after something has happened and before a
    task is usually done.

    Args:
        frames: of a success, uint8 (T, H, W, 3).
        failure: frames of a failure of the same task.
        other_task: frames of an episode of another task.
        colours: of target and distractor as they look; see `colour_swap`.

    Raises:
        UsageError: as `colour_swap`.
    """
    rng = np.random.default_rng([seed, len(frames)])
    stops = rng.uniform(0.3, 0.6, 4)
    made = [frozen(frames, stops[0]), cut(frames, stops[1]), backwards(frames)]
    donors: Sequence[tuple[np.ndarray | None, float, Donor]] = (
        (failure, stops[2], "failure"),
        (other_task, stops[3], "other-task"),
    )
    for ending, stop, kind in donors:
        if ending is not None:
            made.append(replace(wrong_ending(frames, ending, stop, kind), name=f"wrong-ending:{kind}"))
    if colours is not None:
        made.append(replace(colour_swap(frames, *colours), name="wrong-object"))
    return tuple(made)


def parse_colours(text: str) -> tuple[Colour, Colour]:
    """Target and distractor: "200,30,25:40,90,190" -> two RGB colours, 0 to 255.

    Raises:
        UsageError: not two colours of three such numbers.
    """
    try:
        first, second = ([int(part) for part in colour.split(",")] for colour in text.split(":"))
    except ValueError:
        first, second = [], []
    if len(first) != 3 or len(second) != 3 or not all(0 <= value <= 255 for value in (*first, *second)):
        raise UsageError(f"colours {text!r}: give R,G,B:R,G,B of 0 to 255, for example 200,30,25:40,90,190")
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def variant_episode(source: Episode, variant: Variant, index: int) -> Episode:
    """The variant as an episode to be scored beside its source, as a failure of the same task.

    It shares the source's group, so leave-one-out does not measure it against the very success that it was made of;
    `score` puts an episode without a group in one of its own, which is what stands here.

    Args:
        index: an episode_index that is not taken.
    """
    group = source.group or f"episode {source.index}"
    return replace(source, index=index, length=len(variant.frames), success=False, group=group)


def allowed(variant: Variant, source: np.ndarray, donor: np.ndarray | None = None) -> float:
    """The most that a score may give the variant's end: what the same score gives where it was still real.

    Args:
        source: (T,) progress of the source by the score under test, references without its group.
        donor: (T_d,) the same of the donor; needed where `donor_ceiling` is set.

    Raises:
        ValueError: the donor's progress is needed and missing.
    """
    bound = float(source[variant.ceiling])
    if variant.donor_ceiling is None:
        return bound
    if donor is None:
        raise ValueError(f"the variant {variant.name!r} may reach its donor's score; give the donor's progress too")
    return float(np.max([bound, donor[variant.donor_ceiling]]))  # np.max: NaN stays NaN


def over_reward(final: float, variant: Variant, source: np.ndarray, donor: np.ndarray | None = None) -> float:
    """How far the variant's final progress is above what is `allowed`: 0 where it is not; NaN where either is.

    Arguments as `allowed`; `final`: the variant's final progress, by the same score and scale.
    """
    return float(np.maximum(final - allowed(variant, source, donor), 0.0))


# --- inside -------------------------------------------------------------------------------------------------------


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise UsageError(f"frames of {frames.dtype} {frames.shape}; a variant is made of uint8 (T, H, W, 3), T >= 1")


def _check_moved(frames: np.ndarray, moved: int) -> None:
    if not 0 <= moved < len(frames):
        raise UsageError(f"frame {moved} is not in an episode of {len(frames)} frames; count from 0")


def _frame_at(frames: np.ndarray, fraction: float) -> int:
    """The frame at `fraction` of the way, never the last one (nothing would change)."""
    _check(frames)
    if not 0.0 <= fraction < 1.0 or len(frames) < 2:
        raise UsageError(f"fraction {fraction:g} of {len(frames)} frames; give 0 up to below 1, and 2 frames or more")
    return min(int(fraction * len(frames)), len(frames) - 2)


def _rearranged(name: str, frames: np.ndarray, order: np.ndarray, ceiling: int) -> Variant:
    _check(frames)
    return Variant(name, frames[order], order, np.full(len(order), ELSEWHERE), ceiling)


def _swap_hues(frame: np.ndarray, hues: np.ndarray, reach: float) -> np.ndarray:
    """uint8 (H, W, 3) with pixels of either hue (2, 3), at a brightest channel of 255, in the other one."""
    pixels = frame.astype(np.float64)
    brightness = pixels.max(axis=-1, keepdims=True)
    full = pixels * (255.0 / np.maximum(brightness, 1.0))
    distance = np.linalg.norm(full[:, :, None] - hues, axis=-1)  # (H, W, 2)
    nearest = distance.argmin(axis=-1)
    swap = (distance.min(axis=-1, keepdims=True) <= reach) & (brightness >= DARK)
    other = hues[1 - nearest] * (brightness / 255.0)
    return np.where(swap, other.round(), pixels).astype(np.uint8)


def _inside(box: np.ndarray) -> tuple[slice, slice]:
    top, left, bottom, right = (int(side) for side in box)
    return slice(top, bottom), slice(left, right)


def _check_boxes(t: int, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> None:
    for box in (a, b):
        if not (0 <= box[0] < box[2] <= shape[0] and 0 <= box[1] < box[3] <= shape[1]):
            raise UsageError(f"frame {t}: box {box.tolist()} is not inside an image of {shape[0]}x{shape[1]} px")
    if not np.array_equal(a[2:] - a[:2], b[2:] - b[:2]):
        raise UsageError(f"frame {t}: boxes {a.tolist()} and {b.tolist()} are of two sizes; make them one")
    if (np.maximum(a[:2], b[:2]) < np.minimum(a[2:], b[2:])).all():
        raise UsageError(f"frame {t}: boxes {a.tolist()} and {b.tolist()} overlap; give smaller ones")
