"""Counterfactual episodes: recorded video, changed so that the task cannot have succeeded.

A trustworthy score gives such an ending at most the progress of the last real frame. All functions are pure numpy.
Edits of recorded video have limits, and each function documents its own: a splice jumps, a colour swap changes every
pixel of that colour. A simulator can render the counterfactual itself (see `from_simulator`).
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
DARK = 25  # a pixel with a brightest channel below this has no reliable hue
ELSEWHERE = -1  # in `Variant.source` and `Variant.donor`: the frame does not come from that episode


@dataclass(frozen=True, eq=False, kw_only=True)
class Variant:
    """A changed episode and its known truth. Its task has not succeeded at the end.

    Attributes:
        name: kind of change.
        frames: uint8 (T', H, W, 3).
        source: (T',) number of the source frame that each frame shows, changed or not. `ELSEWHERE` if it shows none.
        donor: (T',) the same for the donor, the episode that was spliced on.
        ceiling: source frame whose true progress is an upper bound for the end.
        donor_ceiling: donor frame whose progress is also allowed. None if there is none.
        edited: True if pixels differ from the source, False if only the order of frames differs.
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
        """Returns False: a variant never succeeds."""
        return False

    def carried(self, per_frame: np.ndarray, donor: np.ndarray | None = None) -> np.ndarray:
        """Maps a record of the source, for example its states (T, ...), to the frames of this variant (T', ...).

        Frames that show neither source nor donor get NaN.

        Args:
            per_frame: (T, ...) record of the source.
            donor: (T_d, ...) the same record of the donor.

        Raises:
            ValueError: the variant shows a donor, but `donor` is None.
        """
        if donor is None and (self.donor != ELSEWHERE).any():
            raise ValueError(f"the variant {self.name!r} shows a donor; give its record too")
        result = np.full((len(self.frames), *per_frame.shape[1:]), np.nan)
        for numbers, record in ((self.source, per_frame), (self.donor, donor)):
            if record is not None:
                result[numbers != ELSEWHERE] = record[numbers[numbers != ELSEWHERE]]
        return result


def frozen(frames: np.ndarray, fraction: float) -> Variant:
    """Freezes the video from `fraction` of its length to the end. The length stays the same."""
    stop = _frame_at(frames, fraction)
    return _rearranged("frozen", frames, np.minimum(np.arange(len(frames)), stop), stop)


def cut(frames: np.ndarray, fraction: float) -> Variant:
    """Cuts the video off at `fraction` of its length."""
    stop = _frame_at(frames, fraction)
    return _rearranged("early-cut", frames, np.arange(stop + 1), stop)


def backwards(frames: np.ndarray) -> Variant:
    """Reverses the video, so it ends at the start of the task. (Objects move without a cause: a score may notice.)"""
    return _rearranged("reversed", frames, np.arange(len(frames))[::-1].copy(), 0)


def wrong_ending(frames: np.ndarray, ending: np.ndarray, fraction: float, donor: Donor) -> Variant:
    """Joins the first `fraction` of the episode with the end of a donor. The length stays the same if the donor is
    long enough.

    The scene jumps at the splice, unless both episodes were recorded in one layout. A score that reads only the end
    gives the score of the donor. The end of a failure of the same task may therefore reach the score of that failure.

    Args:
        frames: frames of the source, uint8 (T, H, W, 3).
        ending: frames of the donor, uint8 (T_d, H, W, 3).
        fraction: fraction of the source that is kept.
        donor: "failure" for a failure of the same task, or "other-task". The end of another task has no progress here.

    Raises:
        UsageError: the image sizes differ, or the kind of donor is unknown. A success of the same task is not a wrong
            ending.
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
        name="wrong-ending",
        frames=np.concatenate([frames[kept], ending[tail]]),
        source=np.concatenate([kept, np.full(len(tail), ELSEWHERE)]),
        donor=np.concatenate([np.full(len(kept), ELSEWHERE), tail]),
        ceiling=stop,
        donor_ceiling=len(ending) - 1 if donor == "failure" else None,
    )


def colour_swap(frames: np.ndarray, first: Colour, second: Colour, reach: float = 60.0, moved: int = 0) -> Variant:
    """Exchanges the colours of two objects: the target becomes the distractor, so the arm moved the wrong object.

    A pixel whose colour at full brightness is within `reach` of one object's colour gets the colour of the other
    object, at its own brightness.
    Limits: all pixels of such a colour change, also those of the arm and the table. Shapes stay. Deep shadows,
    reflections and grey objects (which have no hue) do not change. A rim of mixed pixels keeps the old colour, which
    is visible at 96 px. Look at a frame before you use it.

    Args:
        frames: frames of the source, uint8 (T, H, W, 3).
        first, second: RGB 0..255 of the two objects as they look in the video.
        reach: largest distance of a pixel from an object's colour, both scaled to a brightest channel of 255.
        moved: last frame before any object moved. Progress up to this frame was real.

    Raises:
        UsageError: the colours are too close to each other, or black, or `moved` is not in the episode.
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
            f"more than the reach of {reach:g}; give a smaller reach"
        )
    swapped = np.stack([_swap_hues(frame, hues, reach) for frame in frames])
    return _edited("colour-swap", swapped, moved)


def from_simulator(name: str, frames: np.ndarray, ceiling: int = 0) -> Variant:
    """Creates a variant from a simulator's own rendering, for example the same motion with two objects exchanged.

    Args:
        name: kind of change.
        frames: rendered frames. Frame t stands for frame t of the source.
        ceiling: last source frame before the two videos differ in what happened.
    """
    _check(frames)
    _check_moved(frames, ceiling)
    return _edited(name, frames, ceiling)


def variants(
    frames: np.ndarray,
    seed: int,
    failure: np.ndarray | None = None,
    other_task: np.ndarray | None = None,
    colours: tuple[Colour, Colour] | None = None,
) -> tuple[Variant, ...]:
    """Creates all variants of a success: frozen, early-cut, reversed, one wrong ending per donor, and the wrong object
    if the colours of target and distractor are known.

    The stop is drawn from `seed`, uniformly between 0.3 and 0.6 of the episode. By then something has happened, but
    the task is usually not done.

    Args:
        frames: frames of a success, uint8 (T, H, W, 3).
        seed: seed of the stops.
        failure: frames of a failure of the same task.
        other_task: frames of an episode of another task.
        colours: colours of target and distractor as they look in the video (see `colour_swap`).

    Raises:
        UsageError: raised by `colour_swap`.
    """
    rng = np.random.default_rng([seed, len(frames)])
    stops = rng.uniform(0.3, 0.6, 4)
    result = [frozen(frames, stops[0]), cut(frames, stops[1]), backwards(frames)]
    donors: Sequence[tuple[np.ndarray | None, float, Donor]] = (
        (failure, stops[2], "failure"),
        (other_task, stops[3], "other-task"),
    )
    for ending, stop, kind in donors:
        if ending is not None:
            result.append(replace(wrong_ending(frames, ending, stop, kind), name=f"wrong-ending:{kind}"))
    if colours is not None:
        result.append(replace(colour_swap(frames, *colours), name="wrong-object"))
    return tuple(result)


def parse_colours(text: str) -> tuple[Colour, Colour]:
    """Parses the colours of target and distractor: "200,30,25:40,90,190" -> two RGB colours, 0 to 255.

    Raises:
        UsageError: the text is not two colours of three numbers from 0 to 255.
    """
    try:
        first, second = ([int(part) for part in colour.split(",")] for colour in text.split(":"))
    except ValueError:
        first, second = [], []
    if len(first) != 3 or len(second) != 3 or not all(0 <= value <= 255 for value in (*first, *second)):
        raise UsageError(f"colours {text!r}: give R,G,B:R,G,B of 0 to 255, for example 200,30,25:40,90,190")
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


def variant_episode(source: Episode, variant: Variant, index: int) -> Episode:
    """Returns the variant as an episode: a failure of the same task, to be scored beside its source.

    It has the group of the source, so leave-one-out does not measure it against its own source. `score` gives an
    episode without a group a group of its own, "episode N". The same name is used here.

    Args:
        source: the episode that the variant was made from.
        variant: the variant.
        index: an unused episode_index.
    """
    group = source.group or f"episode {source.index}"
    return replace(source, index=index, length=len(variant.frames), success=False, group=group)


def allowed(variant: Variant, source: np.ndarray, donor: np.ndarray | None = None) -> float:
    """Returns the highest progress that the variant's end may get: the progress at the last real frame.

    Args:
        variant: the variant.
        source: (T,) progress of the source by the score under test, with references from other groups.
        donor: (T_d,) progress of the donor. Required if the variant has a `donor_ceiling`.

    Raises:
        ValueError: the donor's progress is required but None.
    """
    bound = float(source[variant.ceiling])
    if variant.donor_ceiling is None:
        return bound
    if donor is None:
        raise ValueError(f"the variant {variant.name!r} may reach its donor's score; give the donor's progress too")
    return float(np.max([bound, donor[variant.donor_ceiling]]))  # np.max: NaN stays NaN


def over_reward(final: float, variant: Variant, source: np.ndarray, donor: np.ndarray | None = None) -> float:
    """Returns how far the variant's final progress is above `allowed`: 0 if it is below, NaN if either is NaN.

    Args:
        final: final progress of the variant, by the same score and scale.
        variant, source, donor: see `allowed`.
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
    """Returns the frame at `fraction` of the episode, but never the last one, which would change nothing."""
    _check(frames)
    if not 0.0 <= fraction < 1.0 or len(frames) < 2:
        raise UsageError(f"fraction {fraction:g} of {len(frames)} frames; give 0 up to below 1, and 2 frames or more")
    return min(int(fraction * len(frames)), len(frames) - 2)


def _rearranged(name: str, frames: np.ndarray, order: np.ndarray, ceiling: int) -> Variant:
    _check(frames)
    return Variant(name=name, frames=frames[order], source=order, donor=np.full(len(order), ELSEWHERE), ceiling=ceiling)


def _edited(name: str, frames: np.ndarray, ceiling: int) -> Variant:
    """Returns a variant with changed pixels and the source's order of frames."""
    return Variant(
        name=name,
        frames=frames,
        source=np.arange(len(frames)),
        donor=np.full(len(frames), ELSEWHERE),
        ceiling=ceiling,
        edited=True,
    )


def _swap_hues(frame: np.ndarray, hues: np.ndarray, reach: float) -> np.ndarray:
    """Exchanges two hues in an image, uint8 (H, W, 3). `hues`: (2, 3), scaled to a brightest channel of 255."""
    pixels = frame.astype(np.float64)
    brightness = pixels.max(axis=-1, keepdims=True)
    full = pixels * (255.0 / np.maximum(brightness, 1.0))
    distance = np.linalg.norm(full[:, :, None] - hues, axis=-1)  # (H, W, 2)
    nearest = distance.argmin(axis=-1)
    swap = (distance.min(axis=-1, keepdims=True) <= reach) & (brightness >= DARK)
    other = hues[1 - nearest] * (brightness / 255.0)
    return np.where(swap, other.round(), pixels).astype(np.uint8)
