"""Embed the windows of a buffer's episodes: prepare each frame once, encode in batches, commit each to the store.

Decoding runs one episode ahead in a thread of its own. Several processes share a store: each embeds its `deal`, and
`gather` reads the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import overload

import numpy as np

from srpo_robot.buffer.decode import joined
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import ScoringError, UndecodableFrame
from srpo_robot.progress.encoder import Encoder, HoldsFrames
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import WindowSpec, clip_lengths, clips, ends
from srpo_robot.records import Episode


class StoredWindows(Sequence[WindowEmbeddings | None]):
    """Embeddings of a dataset, read from the store when asked for: memory stays flat however many there are."""

    def __init__(self, store: EmbeddingStore, keys: Sequence[str | None]) -> None:
        """`keys`: one per episode, None where it was left out."""
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
        cameras: by camera, one item per episode, in order; None where the episode was left out. Empty for one rank of
            several, which has seen its share only: see `gather`.
        computed: episodes that were embedded now; the others were in the store.
        left_out: why, by episode index.
    """

    cameras: dict[str, StoredWindows]
    computed: int
    left_out: dict[int, str]

    @property
    def windows(self) -> StoredWindows:
        """Those of the first camera. Raises ScoringError on one rank of several."""
        if not self.cameras:
            raise ScoringError("this process embedded a share of the episodes; gather() reads them all")
        return next(iter(self.cameras.values()))


@dataclass(frozen=True, eq=False)
class _Job:
    """One camera of one episode, ready for the encoder. `frames` is None where the store has it or `error` says why."""

    episode: Episode
    camera: str
    video: str  # identity of the recorded frames
    key: str | None
    frames: np.ndarray | None
    error: UndecodableFrame | None


def embed_buffer(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    cameras: str | tuple[str, ...],
    spec: WindowSpec,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Embedded:
    """Embed every episode of `buffer` that is not yet in `store`; one of `world` processes embeds its `deal` only.

    Frames in memory: the prepared ones of the episode being encoded and of the next one, and one raw chunk.

    Args:
        cameras: feature keys; each is embedded by itself.
        skip_bad: leave out episodes whose video cannot be decoded (by any of the cameras) instead of raising.
        on_episode: called after each episode with the number of windows embedded for it (0: it was in the store).

    Raises:
        UndecodableFrame: names episode and frame (unless `skip_bad`).
        ScoringError: an embedding is NaN or zero.
        SrpoRobotError: the store's disk is full or may not be written; what was committed stays.
    """
    names = _names(cameras)
    spec = spec.resolved(encoder.frames_per_clip)
    shard_of = shards([_cost(episode, spec) for episode in buffer.episodes], world)
    share = [episode for episode, owner in zip(buffer.episodes, shard_of, strict=True) if owner == rank]
    keys: dict[tuple[int, str], str | None] = {}
    left_out: dict[int, str] = {}
    computed = fresh = 0
    load = partial(_load, buffer, encoder, store, spec, skip_bad)
    with closing(_one_ahead(load, [(episode, camera) for episode in share for camera in names])) as jobs:
        for job in jobs:
            index = job.episode.index
            keys[index, job.camera] = job.key
            if job.error is not None:
                left_out.setdefault(index, str(job.error))
            # Asked again: an earlier episode may be the same video.
            elif job.key is not None and job.frames is not None and job.key not in store:
                own = embed_frames(job.frames, encoder, spec, index)
                store.put(job.key, own, _metadata(encoder, spec, job))
                fresh += len(own.ends)
            if job.camera == names[-1]:
                computed += fresh > 0
                if on_episode is not None:
                    on_episode(job.episode, fresh)
                fresh = 0
    found = _sequences(buffer, store, names, keys, left_out) if world == 1 else {}
    return Embedded(found, computed, left_out)


def gather(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    cameras: str | tuple[str, ...],
    spec: WindowSpec,
    left_out: Mapping[int, str] | None = None,
) -> Embedded:
    """Every episode's embeddings, read from the store, after all ranks are done.

    Args:
        left_out: the ranks' `Embedded.left_out`, merged.

    Raises:
        ScoringError: embeddings are missing; names how many and the first ones.
        UndecodableFrame: a video cannot be read and its episode is not in `left_out`.
    """
    left_out = dict(left_out or {})
    keys: dict[tuple[int, str], str | None] = {}
    missing = []
    for index, own in store_keys(buffer, encoder, cameras, spec, left_out).items():
        keys |= {(index, camera): key for camera, key in zip(_names(cameras), own, strict=True)}
        if any(key not in store for key in own):
            missing.append(index)
    if missing:
        raise ScoringError(
            f"{len(missing)} of {len(buffer.episodes)} episodes are not embedded: {', '.join(map(str, missing[:10]))}"
            f"{', ...' if len(missing) > 10 else ''}; a process has died: start the same command again, it embeds "
            "only these"
        )
    return Embedded(_sequences(buffer, store, _names(cameras), keys, left_out), 0, left_out)


def store_keys(
    buffer: Buffer,
    encoder: Encoder,
    cameras: str | tuple[str, ...],
    spec: WindowSpec,
    left_out: Mapping[int, str] | None = None,
) -> dict[int, tuple[str, ...]]:
    """Store keys by episode index, one per camera in the order of `cameras`, without the episodes in `left_out`.

    Reads every recorded (compressed) frame once. Raises UndecodableFrame where a video cannot be read.
    """
    return {
        episode.index: tuple(
            store_key(encoder, buffer.video_identity(episode, camera), spec) for camera in _names(cameras)
        )
        for episode in buffer.episodes
        if episode.index not in (left_out or {})
    }


def shards(costs: Sequence[float], ranks: int) -> tuple[int, ...]:
    """Who embeds which episode: the rank of each, so that ranks finish at about the same time.

    The dearest episode first, each to the rank that has least (greedy; at most 4/3 of the best possible longest
    share). Every process computes the same deal without asking; what is stored already is not looked at, as that may
    change while they ask.

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


def embed_frames(frames: np.ndarray, encoder: Encoder, spec: WindowSpec, episode_index: int = 0) -> WindowEmbeddings:
    """Embed the windows of one episode. `frames`: all of it, prepared, uint8 (T, S, S, 3).

    Raises:
        ScoringError: an embedding is NaN or zero; names `episode_index` and the window.
    """
    spec = spec.resolved(encoder.frames_per_clip)
    last = ends(len(frames), spec)
    indices = clips(len(frames), spec)
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
    """Which clips go through the encoder together: of equal length, at most `budget` frames, but at least one clip."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for frames, group in groupby(order, key=lambda i: lengths[i]):
        members = list(group)
        size = max(1, budget // frames)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def store_key(encoder: Encoder, video: str, spec: WindowSpec) -> str:
    """What an episode's embeddings depend on, as a short hash. `video`: see `Buffer.video_identity`."""
    spec = spec.resolved(encoder.frames_per_clip)
    if spec.kind == "dense":  # the same windows, the same embeddings
        spec = replace(spec, kind="stride", stride=1)
    content = [encoder.identity, asdict(spec), video]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _load(
    buffer: Buffer,
    encoder: Encoder,
    store: EmbeddingStore,
    spec: WindowSpec,
    skip_bad: bool,
    episode: Episode,
    camera: str,
) -> _Job:
    video, key = "", None
    try:
        video = buffer.video_identity(episode, camera)
        key = store_key(encoder, video, spec)
        frames = None if key in store else prepared(buffer, encoder, episode, camera)
        return _Job(episode, camera, video, key, frames, None)
    except UndecodableFrame as error:
        if not skip_bad:
            raise
        return _Job(episode, camera, video, key, None, error)


def prepared(buffer: Buffer, encoder: Encoder, episode: Episode, camera: str) -> np.ndarray:
    """All frames, ready for the encoder: uint8 (T, S, S, 3). One chunk of raw frames at a time: map keeps none."""
    return joined(map(encoder.prepare, buffer.frame_chunks(episode, camera)), episode.length)


def _one_ahead(load: Callable[[Episode, str], _Job], todo: Iterable[tuple[Episode, str]]) -> Generator[_Job]:
    """`load` every item in a thread, one ahead of the consumer. Its errors are raised here, as they were, in order.

    Closing it (an error or Ctrl-C in the consumer) waits for the load under way and starts no other.
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
    """An episode that one camera cannot show is left out for all: distances are combined over cameras."""
    return {
        camera: StoredWindows(store, [None if e.index in left_out else keys[e.index, camera] for e in buffer.episodes])
        for camera in cameras
    }


def _metadata(encoder: Encoder, spec: WindowSpec, job: _Job) -> dict[str, object]:
    return {
        "encoder": encoder.identity,
        "windows": f"{spec}, {spec.shape}, from {spec.min_window}, {spec.frames_per_clip} frames",
        "camera": job.camera,
        "video": job.video,
        "episode": job.episode.index,
        "task": job.episode.task,
    }


def _cost(episode: Episode, spec: WindowSpec) -> float:
    """Frames that the encoder sees; a measure of work that needs no model."""
    return float(clip_lengths(episode.length, spec).sum())


def _names(cameras: str | tuple[str, ...]) -> tuple[str, ...]:
    return (cameras,) if isinstance(cameras, str) else cameras
