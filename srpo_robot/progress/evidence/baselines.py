"""What a score must be held against: scorers without a network, and nulls that take something away from the episodes.

All go through the one pipeline (`embed_buffer`, `score`): a null is the encoder under test on changed video, a baseline
is another encoder, and a few need no video at all. "V-JEPA helps" may be written where its score beats every one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import UsageError
from srpo_robot.progress.embed import embed_buffer
from srpo_robot.progress.encoder import Encoder, HoldsFrames
from srpo_robot.progress.pipeline import combined
from srpo_robot.progress.references import parse_references
from srpo_robot.progress.score import (
    CONSTANT,
    NO_SUCCESS,
    ONE_WINDOW,
    SKIPPED_EPISODE,
    SKIPPED_TASK,
    Rules,
    Scores,
    WindowEmbeddings,
    dense_distance,
    failure_progress,
    score,
    success_progress,
)
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import WindowSpec
from srpo_robot.records import Curve, Episode

NULL_TO_BEAT = "pixel-last10"


# --- encoders without a network -----------------------------------------------------------------------------------


class PixelMean:
    """A clip's mean image, small: what a scene looks like on average, and nothing else. An `Encoder`.

    With `prefix` windows it is the "cumulative pixel mean", with `recent` ones of 10 frames the null to beat.
    """

    batch_clips = 64

    def __init__(self, size: int = 32, frames: int = 10) -> None:
        """Images of `size` x `size` px (the aspect ratio goes; nothing is cropped), clips of `frames` frames, even.

        Raises:
            UsageError: size below 1. (An odd clip is refused by `WindowSpec`.)
        """
        if size < 1:
            raise UsageError(f"images of {size} px; give 1 or more, for example 32")
        self.size, self.frames_per_clip = size, frames
        self.identity = f"pixel-mean-{size}"

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) -> uint8 (T, size, size, 3); bilinear with antialiasing."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        size = [self.size, self.size]
        small = tvf.resize(video, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().numpy()

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """uint8 (B, F, S, S, 3) -> float32 (B, S*S*3) in (0, 1]; black is not zero, as a zero embedding is an error."""
        return self._flat(clips.mean(axis=1, dtype=np.float32))

    def _flat(self, images: np.ndarray) -> np.ndarray:
        return (images.reshape(len(images), -1).astype(np.float32) + 1.0) / 256.0


class PixelFrame(PixelMean):
    """A window's last frame, small: what `pixel` measures (appendix B)."""

    def __init__(self, size: int = 32) -> None:
        """Images of `size` x `size` px. Raises as `PixelMean`."""
        super().__init__(size, frames=2)
        self.identity = f"pixel-frame-{size}"

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """uint8 (B, F, S, S, 3) -> float32 (B, S*S*3) in (0, 1] of each clip's last frame."""
        return self._flat(clips[:, -1])


# --- nulls: the encoder under test on changed video ---------------------------------------------------------------


def _keep(what: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return what


@dataclass(frozen=True)
class Transform:
    """A change of an episode's video between decoding and encoding.

    Attributes:
        name: of `TRANSFORMS`.
        frames: prepared frames, uint8 (T, S, S, 3), and a generator -> frames of the same shape.
        window: frame numbers of one clip (F,) and a generator -> as many, what the encoder sees instead.
    """

    name: str
    frames: Callable[[np.ndarray, np.random.Generator], np.ndarray] = _keep
    window: Callable[[np.ndarray, np.random.Generator], np.ndarray] = _keep


def frozen_from(length: int) -> int:
    """First frame of the frozen tail: 2/3 of the way, (2T)//3."""
    return 2 * length // 3


def _frozen(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frames[np.minimum(np.arange(len(frames)), frozen_from(len(frames)))]


def _noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, frames.shape, dtype=np.uint8)


TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Transform("shuffled", window=lambda indices, rng: rng.permutation(indices)),
        Transform("reversed", lambda frames, rng: frames[::-1]),
        Transform("frozen-tail", _frozen),
        Transform("noise", _noise),
    )
}


def episode_transform(name: str) -> Transform:
    """The transform of that name.

    Raises:
        UsageError: none such; the message lists those there are.
    """
    if name not in TRANSFORMS:
        raise UsageError(f"no transform {name!r}; there are: {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


class Transformed:
    """An encoder that sees changed video. An `Encoder` with an identity, and so a place in the store, of its own.

    The change is made in `hold`, which gets the whole prepared episode: decoding may come in pieces. Randomness follows
    from the seed and the episode's pixels, so the same episode is changed the same way every time, whatever its number.
    """

    def __init__(self, encoder: Encoder, name: str, seed: int = 0) -> None:
        """`name`: of `TRANSFORMS`. Raises UsageError where there is none such."""
        self._encoder, self._transform, self._seed = encoder, episode_transform(name), seed
        self.identity = f"{encoder.identity}+{name}:{seed}"
        self.frames_per_clip, self.batch_clips = encoder.frames_per_clip, encoder.batch_clips

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """As the encoder's."""
        return self._encoder.prepare(frames)

    def hold(self, frames: np.ndarray) -> _View:
        """All of an episode, prepared, uint8 (T, S, S, 3) -> its changed clips, by frame numbers."""
        seed = [self._seed, zlib.crc32(np.ascontiguousarray(frames))]
        changed = np.ascontiguousarray(self._transform.frames(frames, np.random.default_rng(seed)))
        held = self._encoder.hold(changed) if isinstance(self._encoder, HoldsFrames) else changed
        return _View(held, self._transform, seed)

    def encode(self, clips: Any) -> np.ndarray:
        """As the encoder's, of clips that `hold` gave."""
        return self._encoder.encode(clips)


class _View:
    """Frames whose clips are gathered through a transform's `window`; each window has a generator of its own."""

    def __init__(self, held: Any, transform: Transform, seed: list[int]) -> None:
        self._held, self._transform, self._seed = held, transform, seed

    def __getitem__(self, indices: np.ndarray) -> Any:
        """Clips by frame numbers (B, F)."""
        return self._held[np.stack([self._transform.window(row, self._rng(row)) for row in indices])]

    def _rng(self, row: np.ndarray) -> np.random.Generator:
        return np.random.default_rng([*self._seed, zlib.crc32(np.ascontiguousarray(row, dtype=np.int64))])


# --- scores that are made without `score` -------------------------------------------------------------------------


Windows = Sequence[WindowEmbeddings | None]


def pixel_curves(episodes: Sequence[Episode], windows: Windows) -> tuple[Curve, ...]:
    """Appendix B's `pixel`: L1 distance of each frame to the last one, as progress.

    The paper says "to the last frame". A success: to its own, p = (d_max - d)/(d_max - d_min). A failure: to the last
    frame of the nearest success of its task, p = 1 - d/d_max (as its embeddings are treated; to its own last frame a
    failure would always end at 1, and the paper's MMD and JS of `pixel` are not 0). As in profile `paper`, a success
    ends at 1 by construction, so its AUC says nothing.

    Args:
        windows: of `PixelFrame`, aligned; None: left out.
    """
    ends = _success_ends(episodes, windows)  # once: windows may lie on a disk
    curves = []
    for episode, own in zip(episodes, windows, strict=True):
        goals = ends.get(episode.task)
        if own is None or goals is None:
            curves.append(_nothing(episode, SKIPPED_EPISODE if own is None else NO_SUCCESS))
            continue
        goals = own.embeddings[-1:] if episode.success else goals
        distance = cdist(own.embeddings.astype(np.float64), goals.astype(np.float64), "cityblock").min(axis=1)
        dense = dense_distance(own.ends, distance)
        progress = (success_progress if episode.success else failure_progress)(dense)
        reason = "" if np.isfinite(progress).all() else (ONE_WINDOW if len(own.ends) == 1 else CONSTANT)
        before, scored = int(own.ends[0]), np.zeros(episode.length, dtype=bool)
        scored[own.ends] = True
        held = np.concatenate([np.full(before, progress[0]), progress])
        curves.append(Curve(episode.index, np.concatenate([np.full(before, np.nan), dense]), held, scored, reason))
    return tuple(curves)


def length_curves(episodes: Sequence[Episode], windows: Windows = ()) -> tuple[Curve, ...]:
    """Episode length alone: (t + 1) over the longest episode of the task, so the final progress is T/T_max.

    Longer counts as better: an AUC far from 0.5, on either side, means that length gives the label away.
    """
    longest: dict[str, int] = {}
    for episode in episodes:
        longest[episode.task] = max(episode.length, longest.get(episode.task, 0))
    return tuple(_counted(e, np.arange(1, e.length + 1) / longest[e.task]) for e in episodes)


def time_curves(episodes: Sequence[Episode], windows: Windows = ()) -> tuple[Curve, ...]:
    """The time index: t/(T - 1), which ends at 1 whatever happened; NaN for an episode of one frame."""
    return tuple(
        _counted(e, np.arange(e.length) / (e.length - 1)) if e.length > 1 else _nothing(e, ONE_WINDOW) for e in episodes
    )


def _counted(episode: Episode, progress: np.ndarray) -> Curve:
    return Curve(episode.index, np.full(episode.length, np.nan), progress, np.ones(episode.length, dtype=bool))


def _nothing(episode: Episode, reason: str) -> Curve:
    nothing = np.full(episode.length, np.nan)
    return Curve(episode.index, nothing, nothing.copy(), np.zeros(episode.length, dtype=bool), reason)


def _success_ends(episodes: Sequence[Episode], windows: Windows) -> dict[str, np.ndarray]:
    """By task, the last embeddings of its successes (S, D)."""
    found: dict[str, list[np.ndarray]] = {}
    for episode, own in zip(episodes, windows, strict=True):
        if episode.success and own is not None:
            found.setdefault(episode.task, []).append(own.embeddings[-1])
    return {task: np.stack(ends) for task, ends in found.items()}


# --- the registry -------------------------------------------------------------------------------------------------


def _same_windows(spec: WindowSpec) -> WindowSpec:
    return spec


def _same_rules(rules: Rules) -> Rules:
    return rules


@dataclass(frozen=True)
class Scorer:
    """A score beside the one under test; what is not said is as there.

    Attributes:
        name: of `SCORERS`.
        meaning: what it measures, one line.
        trustworthy: what a score that can be trusted does on it, or beside it.
        null: it is a control that must fail or be beaten, not a rival.
        encoder: makes its encoder; None: the one under test.
        windows: from the windows under test to its own.
        rules: from the rules under test to its own.
        transform: of `TRANSFORMS`, the change of the video; "": none.
        curves: makes its curves instead of `score`, from episodes and windows.
        video: it looks at the video at all; where not, `curves` gets no windows.
    """

    name: str
    meaning: str
    trustworthy: str
    null: bool = True
    encoder: Callable[[], Encoder] | None = None
    windows: Callable[[WindowSpec], WindowSpec] = _same_windows
    rules: Callable[[Rules], Rules] = _same_rules
    transform: str = ""
    curves: Callable[[Sequence[Episode], Windows], tuple[Curve, ...]] | None = None
    video: bool = True


def _recent(frames: int) -> Callable[[WindowSpec], WindowSpec]:
    """The last `frames` frames at the ends under test; nested windows, whose ends go with their clips: stride:4."""

    def windows(spec: WindowSpec) -> WindowSpec:
        kind, stride = ("stride", 4) if spec.kind == "nested" else (spec.kind, spec.stride)
        return WindowSpec(kind, stride, "recent", spec.min_window, frames)

    return windows


def _nearest(rules: Rules) -> Rules:
    return replace(rules, references="nearest")


_NULLS = (
    Scorer(
        NULL_TO_BEAT,
        "mean image of the last 10 frames, nearest success",
        "is better than it: what a mean image sees needs no network",
        encoder=PixelMean,
        windows=_recent(10),
        rules=_nearest,
    ),
    Scorer(
        "pixel-mean",
        "mean image of the same windows, same references",
        "is better than it, by more than the interval",
        encoder=lambda: PixelMean(frames=64),
        windows=lambda spec: replace(spec, frames_per_clip=spec.frames_per_clip or 64),
    ),
    Scorer(
        "shuffled",
        "the frames of each window in random order",
        "falls: a score that does not has seen what is there, not what happens",
        transform="shuffled",
    ),
    Scorer(
        "reversed",
        "every video backwards",
        "falls to 0.5: all episodes end where they began; what is left of its SC was never progress",
        transform="reversed",
    ),
    Scorer(
        "frozen-tail",
        "the last third stands still",
        "stands still too: it changes by 0 in the tail, and its AUC falls where the end is what failed",
        transform="frozen-tail",
    ),
    Scorer(
        "noise",
        "every frame is independent noise",
        "is at 0.5; the SC and Mono that it still has are made by the windows, not by the video",
        transform="noise",
    ),
    Scorer(
        "length",
        "episode length alone, longer is better",
        "is better than it, and it is near 0.5: otherwise length gives the label away",
        curves=length_curves,
        video=False,
    ),
    Scorer(
        "time",
        "the time index",
        "is better than its AUC of 0.5; its SC and Mono of 1 show that these measure no quality",
        curves=time_curves,
        video=False,
    ),
)
_RIVALS = (
    Scorer(
        "pixel",
        "L1 distance of a small frame to the last one (appendix B)",
        "has a higher SC and Mono; AUC, MMD, JS and SMD are by construction, as in profile paper",
        null=False,
        encoder=PixelFrame,
        windows=_recent(2),
        curves=pixel_curves,
    ),
)
SCORERS: dict[str, Scorer] = {scorer.name: scorer for scorer in (*_NULLS, *_RIVALS)}
NULLS: dict[str, Scorer] = {name: scorer for name, scorer in SCORERS.items() if scorer.null}


def scorer_named(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        UsageError: none such; the message lists those there are.
    """
    if name not in SCORERS:
        raise UsageError(f"no scorer {name!r}; there are: {', '.join(SCORERS)}")
    return SCORERS[name]


def image_scorer(encoder: Encoder, name: str) -> Scorer:
    """The baseline `image`: an image encoder (see `image_encoder.load_image_encoder`) on the last frame of each window.

    Args:
        name: what the encoder is called, for the record.
    """
    return Scorer(
        "image",
        f"embedding of the last frame by {name}",
        "is better than it where motion matters",
        null=False,
        encoder=lambda: encoder,
        windows=_recent(2),
    )


def score_with(
    scorer: Scorer,
    buffer: Buffer,
    store: EmbeddingStore,
    cameras: str | tuple[str, ...],
    encoder: Encoder,
    windows: WindowSpec,
    rules: Rules,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
) -> Scores:
    """Score a buffer with `scorer`; `encoder`, `windows` and `rules` are those of the score under test.

    Scores that are made without `score` have curves and values alone: no rewards, no references.

    Raises:
        UsageError: `rules` measures against another dataset, whose video the nulls do not have.
        SrpoRobotError: as `embed_buffer` and `score`.
    """
    if parse_references(rules.reference_name).external:
        raise UsageError("nulls and baselines need the dataset's own successes as references; leave --reference out")
    if not scorer.video:
        return _made(buffer.episodes, (), scorer, rules)
    used = encoder if scorer.encoder is None else scorer.encoder()
    if scorer.transform:
        used = Transformed(used, scorer.transform)
    spec = scorer.windows(windows)
    own = combined(embed_buffer(buffer, used, store, cameras, spec, skip_bad, on_episode))
    if scorer.curves is None:
        return score(buffer.episodes, own, scorer.rules(rules))
    return _made(buffer.episodes, own, scorer, rules)


def _made(episodes: Sequence[Episode], windows: Windows, scorer: Scorer, rules: Rules) -> Scores:
    assert scorer.curves is not None
    curves = tuple(
        _nothing(episode, SKIPPED_TASK) if episode.task in rules.skip_tasks else curve
        for episode, curve in zip(episodes, scorer.curves(episodes, windows), strict=True)
    )
    return Scores(
        curves,
        np.full(len(curves), np.nan),
        {},
        (),
        tuple(curve.progress.copy() for curve in curves),
        tuple(curve.reason for curve in curves),
        np.full(len(curves), np.nan),
    )
