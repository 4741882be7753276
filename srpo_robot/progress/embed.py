"""Embeds the windows of a buffer's episodes: prepares each frame once, encodes in batches, commits each to the store.

Decoding runs one episode ahead in its own thread. Several processes can share a store: each embeds its shard of the
episodes, and `gather` reads them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, overload

import numpy as np

from srpo_robot.buffer.decode import joined
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import ScoringError, UndecodableFrame
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import Encoder, HoldsFrames
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import clip_lengths, clips, ends
from srpo_robot.records import Episode


class Shard(NamedTuple):
    """The part of the episodes that one process embeds: number `rank` of `world` parts, see `shards`."""

    rank: int = 0
    world: int = 1


ALL = Shard()


class StoredWindows(Sequence[WindowEmbeddings | None]):
    """Embeddings of a dataset, read from the store on access: memory stays flat for any number of episodes."""

    def __init__(self, store: EmbeddingStore, keys: Sequence[str | None]) -> None:
        """`keys`: one per episode, None if it was left out."""
        self._store, self._keys = store, tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> WindowEmbeddings | None: ...
    @overload
    def __getitem__(self, index: slice) -> StoredWindows: ...
    def __getitem__(self, index: int | slice) -> WindowEmbeddings | StoredWindows | None:
        if isinstance(index, slice):
            return StoredWindows(self._store, self._keys[index])
        key = self._keys[index]
        return None if key is None else self._store.get(key)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a buffer.

    Attributes:
        cameras: by feature key of the camera, one item per episode, in order; None if the episode was left out. Empty
            after one shard of several: `gather` reads them all.
        computed: number of episodes that were embedded now; the others were in the store.
        left_out: by episode index, the reason.
    """

    cameras: dict[str, StoredWindows]
    computed: int
    left_out: dict[int, str]

    @property
    def windows(self) -> StoredWindows:
        """Windows of the first camera. Raises ScoringError if only this rank's shard was embedded."""
        if not self.cameras:
            raise ScoringError("this process embedded a shard of the episodes; gather() reads them all")
        return next(iter(self.cameras.values()))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Recording:
    """One camera of one episode, ready for the encoder.

    Attributes:
        episode: the episode.
        camera: feature key.
        video: identity of the recorded frames.
        key: key in the store; None if the recorded frames cannot be read.
        frames: prepared frames; None if the store has their embeddings or `error` is set.
        error: why the video cannot be decoded; None if it can.
    """

    episode: Episode
    camera: str
    video: str
    key: str | None
    frames: np.ndarray | None = None
    error: UndecodableFrame | None = None


def resolved(config: ScoringConfig, buffer: Buffer, encoder: Encoder) -> ScoringConfig:
    """Returns the config with feature keys as cameras and with a clip length: its own, otherwise the encoder's.

    Raises:
        DatasetError: the buffer has no such camera; the message lists its cameras.
    """
    cameras = dict.fromkeys(buffer.camera(name) for name in config.cameras or (None,))
    return replace(config, cameras=tuple(cameras)).resolved(encoder.frames_per_clip)


def embed_buffer(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    config: ScoringConfig,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
    shard: Shard = ALL,
) -> Embedded:
    """Embeds every episode of the shard that is not yet in `store`.

    Frames in memory: the prepared ones of the current and of the next episode, and one raw chunk.

    Args:
        config: cameras and windows; see `resolved` for the defaults.
        skip_bad: leave out episodes whose video cannot be decoded (by any of the cameras) instead of raising.
        on_episode: called after each episode with the number of windows embedded for it (0: it was in the store).
        shard: the episodes of this process, among several.

    Raises:
        UndecodableFrame: names episode and frame (unless `skip_bad`).
        ScoringError: an embedding is NaN or zero.
        SrpoRobotError: the disk of the store is full or may not be written; committed episodes stay.
    """
    config = resolved(config, buffer, encoder)
    owners = shards([_cost(episode, config) for episode in buffer.episodes], shard.world)
    episodes = [episode for episode, rank in zip(buffer.episodes, owners, strict=True) if rank == shard.rank]
    keys: dict[tuple[int, str], str | None] = {}
    left_out: dict[int, str] = {}
    computed = fresh = 0
    load = partial(_load, buffer, encoder, store, config, skip_bad)
    with closing(_one_ahead(load, [(e, camera) for e in episodes for camera in config.cameras])) as recordings:
        for recording in recordings:
            index = recording.episode.index
            keys[index, recording.camera] = recording.key
            if recording.error is not None:
                left_out.setdefault(index, str(recording.error))
            # Look into the store again: an earlier episode may be the same video.
            elif recording.key is not None and recording.frames is not None and recording.key not in store:
                windows = embed_frames(recording.frames, encoder, config, index)
                store.put(recording.key, windows, _metadata(encoder, config, recording))
                fresh += len(windows.ends)
            if recording.camera == config.cameras[-1]:
                computed += fresh > 0
                if on_episode is not None:
                    on_episode(recording.episode, fresh)
                fresh = 0
    cameras = _sequences(buffer, store, config.cameras, keys, left_out) if shard.world == 1 else {}
    return Embedded(cameras, computed, left_out)


def gather(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    config: ScoringConfig,
    left_out: Mapping[int, str] | None = None,
) -> Embedded:
    """Reads every episode's embeddings from the store, after all ranks have finished.

    Args:
        left_out: `Embedded.left_out` of all ranks, merged.

    Raises:
        ScoringError: embeddings are missing; names how many and the first ones.
        UndecodableFrame: a video cannot be read and its episode is not in `left_out`.
    """
    config = resolved(config, buffer, encoder)
    left_out = dict(left_out or {})
    keys: dict[tuple[int, str], str | None] = {}
    missing = []
    for index, episode_keys in store_keys(buffer, encoder, config, left_out).items():
        keys |= {(index, camera): key for camera, key in zip(config.cameras, episode_keys, strict=True)}
        if any(key not in store for key in episode_keys):
            missing.append(index)
    if missing:
        raise ScoringError(
            f"{len(missing)} of {len(buffer.episodes)} episodes are not embedded: {', '.join(map(str, missing[:10]))}"
            f"{', ...' if len(missing) > 10 else ''}; a process has died: start the same command again, it embeds "
            "only these"
        )
    return Embedded(_sequences(buffer, store, config.cameras, keys, left_out), 0, left_out)


def store_keys(
    buffer: Buffer,
    encoder: Encoder,
    config: ScoringConfig,
    left_out: Mapping[int, str] | None = None,
) -> dict[int, tuple[str, ...]]:
    """Returns store keys by episode index, one per camera of the config, without the episodes in `left_out`.

    Reads every recorded (compressed) frame once. Raises UndecodableFrame if a video cannot be read.
    """
    config = resolved(config, buffer, encoder)
    return {
        episode.index: tuple(
            store_key(encoder, buffer.video_identity(episode, camera), config) for camera in config.cameras
        )
        for episode in buffer.episodes
        if episode.index not in (left_out or {})
    }


def shards(costs: Sequence[float], ranks: int) -> tuple[int, ...]:
    """Deals episodes to ranks so that all ranks finish at about the same time: the rank of each episode.

    The most expensive episode comes first, and each goes to the rank with the least work (greedy; the longest shard is
    at most 4/3 of the best possible one). Every process computes the same shards without communication. They do not
    depend on the content of the store, which may change in the meantime.

    Raises:
        ValueError: fewer than one rank.
    """
    if ranks < 1:
        raise ValueError(f"{ranks} ranks")
    load = [0.0] * ranks
    owner = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[item] = min(range(ranks), key=lambda r: (load[r], r))
        load[owner[item]] += costs[item]
    return tuple(owner)


def embed_frames(
    frames: np.ndarray, encoder: Encoder, config: ScoringConfig, episode_index: int = 0
) -> WindowEmbeddings:
    """Embeds the windows of one episode. `frames`: all its frames, prepared, uint8 (T, S, S, 3).

    Raises:
        ScoringError: an embedding is NaN or zero; names `episode_index` and the window.
    """
    config = config.resolved(encoder.frames_per_clip)
    last = ends(len(frames), config)
    indices = clips(len(frames), config)
    held = encoder.hold(frames) if isinstance(encoder, HoldsFrames) else frames
    rows: dict[int, np.ndarray] = {}
    for batch in batches([len(clip) for clip in indices], encoder.batch_clips * encoder.frames_per_clip):
        rows |= zip(batch, encoder.encode(held[np.stack([indices[i] for i in batch])]), strict=True)
    embeddings = np.stack([rows[i] for i in range(len(indices))])
    bad = ~np.isfinite(embeddings).all(axis=1) | ~embeddings.any(axis=1)
    if bad.any():
        raise ScoringError(
            f"episode {episode_index}, window up to frame {int(last[bad][0])}: the encoder gave NaN or zero; "
            "try --dtype float32"
        )
    return WindowEmbeddings(last, embeddings)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups clips for the encoder: clips of equal length, at most `budget` frames a batch, but at least one clip."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for frames, group in groupby(order, key=lambda i: lengths[i]):
        members = list(group)
        size = max(1, budget // frames)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def store_key(encoder: Encoder, video: str, config: ScoringConfig) -> str:
    """Returns a short hash of everything that an episode's embeddings depend on.

    The hashed names must stay: a new name would orphan every embedding on disk.

    Args:
        video: identity of the recorded frames, see `Buffer.video_identity`.
    """
    config = config.resolved(encoder.frames_per_clip)
    windows = {
        # "dense" and "stride:1" are the same windows, with the same embeddings.
        "kind": "nested" if config.window_kind == "nested" else "stride",
        "stride": config.stride,
        "shape": config.window_shape,
        "min_window": config.min_window,
        "frames_per_clip": config.frames_per_clip,
        "repeat": config.repeat,
    }
    return hashlib.sha256(json.dumps([encoder.identity, windows, video], sort_keys=True).encode()).hexdigest()[:32]


def _load(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    config: ScoringConfig,
    skip_bad: bool,
    episode: Episode,
    camera: str,
) -> _Recording:
    video, key = "", None
    try:
        video = buffer.video_identity(episode, camera)
        key = store_key(encoder, video, config)
        frames = None if key in store else prepared(buffer, encoder, episode, camera)
        return _Recording(episode=episode, camera=camera, video=video, key=key, frames=frames)
    except UndecodableFrame as error:
        if not skip_bad:
            raise
        return _Recording(episode=episode, camera=camera, video=video, key=key, error=error)


def prepared(buffer: Buffer, encoder: Encoder, episode: Episode, camera: str) -> np.ndarray:
    """Returns all frames, ready for the encoder: uint8 (T, S, S, 3). It holds one chunk of raw frames at a time."""
    return joined(map(encoder.prepare, buffer.frame_chunks(episode, camera)), episode.length)


def _one_ahead(
    load: Callable[[Episode, str], _Recording], todo: Iterable[tuple[Episode, str]]
) -> Generator[_Recording]:
    """Runs `load` on every item in a thread, one item ahead of the consumer, and yields the results in order.

    Errors of `load` are raised here unchanged. Closing the generator (after an error or Ctrl-C in the consumer) waits
    for the running load and starts no other.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
    try:
        coming = None
        for item in todo:
            ready, coming = coming, pool.submit(load, *item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sequences(
    buffer: Buffer,
    store: EmbeddingStore,
    cameras: tuple[str, ...],
    keys: Mapping[tuple[int, str], str | None],
    left_out: Mapping[int, str],
) -> dict[str, StoredWindows]:
    """An episode that one camera cannot show is left out for all cameras: distances are combined over cameras."""
    return {
        camera: StoredWindows(store, [None if e.index in left_out else keys[e.index, camera] for e in buffer.episodes])
        for camera in cameras
    }


def _metadata(encoder: Encoder, config: ScoringConfig, recording: _Recording) -> dict[str, object]:
    windows = f"{config.windows}, {config.window_shape}, from {config.min_window}, {config.frames_per_clip} frames"
    return {
        "encoder": encoder.identity,
        "windows": windows,
        "camera": recording.camera,
        "video": recording.video,
        "episode": recording.episode.index,
        "task": recording.episode.task,
    }


def _cost(episode: Episode, config: ScoringConfig) -> float:
    """Number of frames that the encoder sees; a measure of work that needs no model."""
    return float(clip_lengths(episode.length, config).sum())
