"""Embed the windows of a buffer's episodes: decode once, prepare once, encode in batches, commit each to the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import ScoringError, UndecodableFrame
from srpo_robot.progress.encoder import Encoder
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import clip_indices, window_ends
from srpo_robot.records import Episode


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a buffer.

    Attributes:
        windows: one per episode, in order; None where the episode was left out.
        computed: episodes that were embedded now; the others were in the store.
        left_out: why, by episode index.
    """

    windows: tuple[WindowEmbeddings | None, ...]
    computed: int
    left_out: dict[int, str]


def embed_buffer(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    camera: str,
    stride: int,
    min_window: int,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
) -> Embedded:
    """Embed every episode of `buffer` that is not yet in `store`.

    Args:
        camera: feature key.
        stride, min_window: see `windows.window_ends`.
        skip_bad: leave out episodes whose video cannot be decoded instead of raising.
        on_episode: called after each episode with the number of windows embedded for it (0: it was in the store).

    Raises:
        UndecodableFrame: names episode and frame (unless `skip_bad`).
        ScoringError: an embedding is NaN or zero.
    """
    windows: list[WindowEmbeddings | None] = []
    left_out: dict[int, str] = {}
    computed = 0
    for episode in buffer.episodes:
        fresh = 0
        try:
            key = store_key(encoder, buffer.video_identity(episode, camera), stride, min_window)
            if key not in store:
                own = embed_episode(buffer, episode, encoder, camera, stride, min_window)
                store.put(key, own)
                fresh = len(own.ends)
                computed += 1
            windows.append(store.get(key))
        except UndecodableFrame as error:
            if not skip_bad:
                raise
            left_out[episode.index] = str(error)
            windows.append(None)
        if on_episode is not None:
            on_episode(episode, fresh)
    return Embedded(tuple(windows), computed, left_out)


def embed_episode(
    buffer: Buffer, episode: Episode, encoder: Encoder, camera: str, stride: int, min_window: int
) -> WindowEmbeddings:
    """Embed the windows of one episode; every frame is decoded, resized and cropped once. Raises as `embed_buffer`."""
    frames = encoder.prepare(buffer.frames(episode, camera))
    ends = window_ends(episode.length, stride, min_window)
    batches = []
    for start in range(0, len(ends), encoder.batch_clips):
        indices = np.stack(
            [clip_indices(end, encoder.frames_per_clip) for end in ends[start : start + encoder.batch_clips]]
        )
        batches.append(encoder.encode(frames[indices]))
    embeddings = np.concatenate(batches)
    bad = ~np.isfinite(embeddings).all(axis=1) | ~embeddings.any(axis=1)
    if bad.any():
        raise ScoringError(
            f"episode {episode.index}, window up to frame {int(ends[bad][0])}: the encoder gave NaN or zero; "
            "try --dtype float32"
        )
    return WindowEmbeddings(ends, embeddings)


def store_key(encoder: Encoder, video: str, stride: int, min_window: int) -> str:
    """What an episode's embeddings depend on, as a short hash."""
    content = [encoder.identity, encoder.frames_per_clip, "prefix", "linspace", stride, min_window, video]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
