"""Negative controls and baselines for a score.

A negative control lacks something that the score claims to use: the network, the order of frames, the end of the
episode, or the video. The score must beat it. A baseline is another method that the score should beat.
All scorers use the same pipeline (`embed_buffer`, `score`). Claim "V-JEPA helps" only if its score beats all of them.
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
from srpo_robot.progress.config import ScoringConfig, parse_reference_name
from srpo_robot.progress.embed import embed_buffer
from srpo_robot.progress.encoder import Encoder, HoldsFrames
from srpo_robot.progress.pipeline import combined
from srpo_robot.progress.score import (
    CONSTANT,
    NO_SUCCESS,
    ONE_WINDOW,
    SKIPPED_EPISODE,
    SKIPPED_TASK,
    EpisodeScore,
    Scores,
    WindowEmbeddings,
    dense_distance,
    failure_progress,
    score,
    success_progress,
)
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.records import Curve, Episode

CONTROL_TO_BEAT = "pixel-last10"


# --- encoders without a network -----------------------------------------------------------------------------------


class PixelMean:
    """An `Encoder` without a network: the mean image of a clip, downsampled.

    With `prefix` windows it is the "cumulative pixel mean". With `recent` windows of 10 frames it is the negative
    control `CONTROL_TO_BEAT`.
    """

    name = "pixel-mean"
    dtype = "float32"
    batch_clips = 64

    def __init__(self, size: int = 32, frames: int = 10) -> None:
        """Sets the image size and the clip length.

        Args:
            size: images are resized to `size` x `size` px. Nothing is cropped, so the aspect ratio changes.
            frames: frames per clip, even. (`ScoringConfig` refuses an odd number.)

        Raises:
            UsageError: size below 1.
        """
        if size < 1:
            raise UsageError(f"images of {size} px; give 1 or more, for example 32")
        self.size, self.frames_per_clip = size, frames
        self.identity = f"pixel-mean-{size}"

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resizes uint8 (T, H, W, 3) -> uint8 (T, size, size, 3), bilinear with antialiasing."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        size = [self.size, self.size]
        small = tvf.resize(video, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().numpy()

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Averages uint8 (B, F, S, S, 3) -> float32 (B, S*S*3) in (0, 1].

        Black maps above zero, because a zero embedding is an error.
        """
        return self._flat(clips.mean(axis=1, dtype=np.float32))

    def _flat(self, images: np.ndarray) -> np.ndarray:
        return (images.reshape(len(images), -1).astype(np.float32) + 1.0) / 256.0


class PixelFrame(PixelMean):
    """The last frame of a window, downsampled. The baseline `pixel` uses it (appendix B)."""

    name = "pixel-frame"

    def __init__(self, size: int = 32) -> None:
        """Sets the image size, `size` x `size` px. Raises the errors of `PixelMean`."""
        super().__init__(size, frames=2)
        self.identity = f"pixel-frame-{size}"

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Takes the last frame of each clip: uint8 (B, F, S, S, 3) -> float32 (B, S*S*3) in (0, 1]."""
        return self._flat(clips[:, -1])


# --- negative controls: the encoder under test on changed video ---------------------------------------------------


def _keep(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Transform:
    """A change of an episode's video between decoding and encoding.

    Attributes:
        name: key in `TRANSFORMS`.
        frames: maps prepared frames, uint8 (T, S, S, 3), and a generator to frames of the same shape.
        window: maps the frame numbers of one clip (F,) and a generator to the (F,) frame numbers that are encoded.
    """

    name: str
    frames: Callable[[np.ndarray, np.random.Generator], np.ndarray] = _keep
    window: Callable[[np.ndarray, np.random.Generator], np.ndarray] = _keep


def frozen_from(length: int) -> int:
    """Returns the first frame of the frozen tail: (2T)//3, two thirds of the episode."""
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
    """Returns the transform with this name.

    Raises:
        UsageError: the name is unknown. The message lists the known names.
    """
    if name not in TRANSFORMS:
        raise UsageError(f"no transform {name!r}; there are: {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


class Transformed:
    """An `Encoder` that applies a transform to the video first. Its identity, and so its store entry, is separate.

    `hold` applies the change, because it gets the whole prepared episode, while `prepare` may get pieces. Random
    numbers depend on the seed and the pixels only, so an episode changes the same way whatever its index is.
    """

    def __init__(self, encoder: Encoder, name: str, seed: int = 0) -> None:
        """Wraps `encoder`. Raises UsageError if `name` is not in `TRANSFORMS`."""
        self._encoder, self._transform, self._seed = encoder, episode_transform(name), seed
        self.name, self.dtype = f"{encoder.name}, {name}", encoder.dtype
        self.identity = f"{encoder.identity}+{name}:{seed}"
        self.frames_per_clip, self.batch_clips = encoder.frames_per_clip, encoder.batch_clips

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Prepares frames with the wrapped encoder."""
        return self._encoder.prepare(frames)

    def hold(self, frames: np.ndarray) -> _TransformedFrames:
        """Transforms a whole prepared episode, uint8 (T, S, S, 3). The result gives clips by frame numbers."""
        seed = [self._seed, zlib.crc32(np.ascontiguousarray(frames))]
        changed = np.ascontiguousarray(self._transform.frames(frames, np.random.default_rng(seed)))
        clips = self._encoder.hold(changed) if isinstance(self._encoder, HoldsFrames) else changed
        return _TransformedFrames(clips, self._transform, seed)

    def encode(self, clips: Any) -> np.ndarray:
        """Encodes clips that `hold` returned, with the wrapped encoder."""
        return self._encoder.encode(clips)


class _TransformedFrames:
    """Frames that are indexed through a transform's `window`. Each window has its own random generator."""

    def __init__(self, frames: Any, transform: Transform, seed: list[int]) -> None:
        self._frames, self._transform, self._seed = frames, transform, seed

    def __getitem__(self, indices: np.ndarray) -> Any:
        """Returns clips for the frame numbers `indices` (B, F)."""
        return self._frames[np.stack([self._transform.window(row, self._rng(row)) for row in indices])]

    def _rng(self, row: np.ndarray) -> np.random.Generator:
        return np.random.default_rng([*self._seed, zlib.crc32(np.ascontiguousarray(row, dtype=np.int64))])


# --- curves that do not come from `score` -------------------------------------------------------------------------


Windows = Sequence[WindowEmbeddings | None]


def pixel_curves(episodes: Sequence[Episode], windows: Windows) -> tuple[Curve, ...]:
    """Computes the baseline `pixel` of appendix B: progress from the L1 distance of each frame to the last frame.

    The paper says "to the last frame". A success is compared with its own last frame, p = (d_max - d)/(d_max - d_min).
    A failure is compared with the last frame of the nearest success of its task, p = 1 - d/d_max, as for embeddings.
    (Against its own last frame, a failure would always end at 1, but the paper's MMD and JS of `pixel` are not 0.) As
    in profile `paper`, a success ends at 1 by construction, so the AUC of this baseline is not informative.

    Args:
        episodes: labelled episodes.
        windows: windows of `PixelFrame`, one entry per episode. None skips the episode.
    """
    ends = _success_ends(episodes, windows)  # computed once, because windows may be stored on disk
    curves = []
    for episode, episode_windows in zip(episodes, windows, strict=True):
        goals = ends.get(episode.task)
        if episode_windows is None or goals is None:
            curves.append(_undefined(episode, SKIPPED_EPISODE if episode_windows is None else NO_SUCCESS))
            continue
        embeddings, frames = episode_windows.embeddings, episode_windows.ends
        goals = embeddings[-1:] if episode.success else goals
        distance = cdist(embeddings.astype(np.float64), goals.astype(np.float64), "cityblock").min(axis=1)
        dense = dense_distance(frames, distance)
        progress = (success_progress if episode.success else failure_progress)(dense)
        reason = "" if np.isfinite(progress).all() else (ONE_WINDOW if len(frames) == 1 else CONSTANT)
        before, scored = int(frames[0]), np.zeros(episode.length, dtype=bool)
        scored[frames] = True
        padded = np.concatenate([np.full(before, progress[0]), progress])
        curves.append(Curve(episode.index, np.concatenate([np.full(before, np.nan), dense]), padded, scored, reason))
    return tuple(curves)


def length_curves(episodes: Sequence[Episode], windows: Windows = ()) -> tuple[Curve, ...]:
    """Computes progress from episode length alone: (t + 1)/T_max, with T_max the longest episode of the task.

    The final progress is T/T_max, so longer counts as better. An AUC far from 0.5, on either side, means that the
    length reveals the label.
    """
    longest: dict[str, int] = {}
    for episode in episodes:
        longest[episode.task] = max(episode.length, longest.get(episode.task, 0))
    return tuple(_without_video(e, np.arange(1, e.length + 1) / longest[e.task]) for e in episodes)


def time_curves(episodes: Sequence[Episode], windows: Windows = ()) -> tuple[Curve, ...]:
    """Computes progress from time alone: t/(T - 1), which always ends at 1. NaN if the episode has one frame."""
    return tuple(
        _without_video(e, np.arange(e.length) / (e.length - 1)) if e.length > 1 else _undefined(e, ONE_WINDOW)
        for e in episodes
    )


def _without_video(episode: Episode, progress: np.ndarray) -> Curve:
    return Curve(episode.index, np.full(episode.length, np.nan), progress, np.ones(episode.length, dtype=bool))


def _undefined(episode: Episode, reason: str) -> Curve:
    nan = np.full(episode.length, np.nan)
    return Curve(episode.index, nan, nan.copy(), np.zeros(episode.length, dtype=bool), reason)


def _success_ends(episodes: Sequence[Episode], windows: Windows) -> dict[str, np.ndarray]:
    """Returns the last embedding of every success, by task (S, D)."""
    by_task: dict[str, list[np.ndarray]] = {}
    for episode, episode_windows in zip(episodes, windows, strict=True):
        if episode.success and episode_windows is not None:
            by_task.setdefault(episode.task, []).append(episode_windows.embeddings[-1])
    return {task: np.stack(ends) for task, ends in by_task.items()}


# --- the registry -------------------------------------------------------------------------------------------------


def _unchanged(config: ScoringConfig) -> ScoringConfig:
    return config


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A score to compare with the score under test. Every setting that is left out equals the one under test.

    Attributes:
        name: key in `SCORERS`.
        meaning: one line that says what this scorer measures.
        trustworthy: the result to expect from a trustworthy score on or beside this scorer.
        control: True for a negative control, False for a baseline.
        encoder: creates the encoder. None uses the encoder under test.
        config: maps the config under test to this scorer's config.
        transform: change of the video, a key in `TRANSFORMS`. Empty for none.
        curves: computes the curves from episodes and windows, in place of `score`.
        video: False if the scorer needs no video. `curves` then gets no windows.
    """

    name: str
    meaning: str
    trustworthy: str
    control: bool = True
    encoder: Callable[[], Encoder] | None = None
    config: Callable[[ScoringConfig], ScoringConfig] = _unchanged
    transform: str = ""
    curves: Callable[[Sequence[Episode], Windows], tuple[Curve, ...]] | None = None
    video: bool = True


def _recent(frames: int, references: str = "") -> Callable[[ScoringConfig], ScoringConfig]:
    """Returns a change of the config to windows of the last `frames` frames, with the ends under test.

    The ends of nested windows depend on their clips, so nested windows become stride:4. `references`: references of
    the scorer; "" keeps those under test.
    """

    def changed(config: ScoringConfig) -> ScoringConfig:
        windows = "stride:4" if config.window_kind == "nested" else config.windows
        recent = replace(config, windows=windows, window_shape="recent", frames_per_clip=frames, repeat="linspace")
        return replace(recent, references=references) if references else recent

    return changed


_CONTROLS = (
    Scorer(
        name=CONTROL_TO_BEAT,
        meaning="mean image of the last 10 frames, nearest success",
        trustworthy="is better than it; if not, a mean image is enough and no network is needed",
        encoder=PixelMean,
        config=_recent(10, references="nearest"),
    ),
    Scorer(
        name="pixel-mean",
        meaning="mean image of the same windows, same references",
        trustworthy="is better than it, by more than the interval",
        encoder=lambda: PixelMean(frames=64),
        config=lambda config: config.resolved(64),
    ),
    Scorer(
        name="shuffled",
        meaning="the frames of each window in random order",
        trustworthy="falls; a score that does not fall sees the objects but not the motion",
        transform="shuffled",
    ),
    Scorer(
        name="reversed",
        meaning="every video backwards",
        trustworthy="falls to 0.5, because every episode ends at its start; a remaining SC was never progress",
        transform="reversed",
    ),
    Scorer(
        name="frozen-tail",
        meaning="the last third stands still",
        trustworthy="changes by 0 in the tail, and its AUC falls if the failures happen at the end",
        transform="frozen-tail",
    ),
    Scorer(
        name="noise",
        meaning="every frame is independent noise",
        trustworthy="is at 0.5; a remaining SC and Mono come from the windows, not from the video",
        transform="noise",
    ),
    Scorer(
        name="length",
        meaning="episode length alone, longer is better",
        trustworthy="is better than it, and it is near 0.5; if not, the length reveals the label",
        curves=length_curves,
        video=False,
    ),
    Scorer(
        name="time",
        meaning="the time index",
        trustworthy="is better than its AUC of 0.5; its SC and Mono of 1 show that these measure no quality",
        curves=time_curves,
        video=False,
    ),
)
_BASELINES = (
    Scorer(
        name="pixel",
        meaning="L1 distance of a small frame to the last one (appendix B)",
        trustworthy="has a higher SC and Mono; AUC, MMD, JS and SMD are by construction, as in profile paper",
        control=False,
        encoder=PixelFrame,
        config=_recent(2),
        curves=pixel_curves,
    ),
)
SCORERS: dict[str, Scorer] = {scorer.name: scorer for scorer in (*_CONTROLS, *_BASELINES)}
NEGATIVE_CONTROLS: dict[str, Scorer] = {name: scorer for name, scorer in SCORERS.items() if scorer.control}


def scorer_named(name: str) -> Scorer:
    """Returns the scorer with this name.

    Raises:
        UsageError: the name is unknown. The message lists the known names.
    """
    if name not in SCORERS:
        raise UsageError(f"no scorer {name!r}; there are: {', '.join(SCORERS)}")
    return SCORERS[name]


def image_scorer(encoder: Encoder, name: str) -> Scorer:
    """Returns the baseline `image`: an image encoder on the last frame of each window.

    Args:
        encoder: see `image_encoder.load_image_encoder`.
        name: name of the encoder, shown in tables.
    """
    return Scorer(
        name="image",
        meaning=f"embedding of the last frame by {name}",
        trustworthy="is better than it if motion matters",
        control=False,
        encoder=lambda: encoder,
        config=_recent(2),
    )


def score_with(
    scorer: Scorer,
    buffer: Buffer,
    store: EmbeddingStore,
    encoder: Encoder,
    config: ScoringConfig,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
) -> Scores:
    """Scores a buffer with `scorer`.

    Scores that come from `scorer.curves` have curves and values only: no rewards and no references.

    Args:
        scorer: the negative control or baseline.
        encoder, config: encoder and config of the score under test.

    Raises:
        UsageError: `config` measures against another dataset. The scorers have no embeddings of its video.
        SrpoRobotError: raised by `embed_buffer` and `score`.
    """
    if parse_reference_name(config.reference_name).external:
        raise UsageError(
            "negative controls and baselines need the dataset's own successes as references; leave --reference out"
        )
    if not scorer.video:
        return _scores_from_curves(buffer.episodes, (), scorer, config)
    scorer_encoder = encoder if scorer.encoder is None else scorer.encoder()
    if scorer.transform:
        scorer_encoder = Transformed(scorer_encoder, scorer.transform)
    scorer_config = scorer.config(config)
    embedded = combined(embed_buffer(buffer, scorer_encoder, store, scorer_config, skip_bad, on_episode))
    if scorer.curves is None:
        return score(buffer.episodes, embedded, scorer_config)
    return _scores_from_curves(buffer.episodes, embedded, scorer, config)


def _scores_from_curves(episodes: Sequence[Episode], windows: Windows, scorer: Scorer, config: ScoringConfig) -> Scores:
    assert scorer.curves is not None
    curves = tuple(
        _undefined(episode, SKIPPED_TASK) if episode.task in config.skip_tasks else curve
        for episode, curve in zip(episodes, scorer.curves(episodes, windows), strict=True)
    )
    episode_scores = tuple(EpisodeScore(curve, curve.progress.copy(), reason=curve.reason) for curve in curves)
    return Scores(episode_scores, references={}, warnings=(), reference_episodes={})
