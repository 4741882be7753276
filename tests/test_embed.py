"""From frames to stored embeddings: batches, the thread that decodes ahead, several cameras, several processes."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SQUARES, record_squares
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import ScoringError, SrpoRobotError, UndecodableFrame
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.embed import (
    Shard,
    batches,
    embed_buffer,
    embed_frames,
    gather,
    prepared,
    shards,
    store_key,
    store_keys,
)
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import clip_indices, clips, ends

FRONT, SIDE = "observation.images.front", "observation.images.side"
SPEC = ScoringConfig(windows="stride:4", min_window=6)
FRONT_ONLY, SIDE_ONLY = replace(SPEC, cameras=(FRONT,)), replace(SPEC, cameras=(SIDE,))
BOTH = replace(SPEC, cameras=(FRONT, SIDE))
SPECS = [SPEC, replace(SPEC, window_shape="recent"), ScoringConfig(windows="nested", min_window=2, frames_per_clip=8)]


class CountingEncoder:
    """Embeds a clip as its mean colour and last red, and records its inputs."""

    name, dtype, identity, frames_per_clip, batch_clips = "counting", "float32", "counting", 4, 3

    def __init__(self) -> None:
        self.prepared = 0
        self.calls: list[tuple[int, ...]] = []
        self.threads: set[str] = set()

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        self.prepared += len(frames)
        return frames[:, ::12, ::12].copy()

    def encode(self, clips: np.ndarray) -> np.ndarray:
        assert threading.current_thread() is threading.main_thread()
        self.calls.append(clips.shape)
        return np.concatenate(
            [clips.mean(axis=(1, 2, 3)) + 1, clips[:, -1, :, :, 0].mean(axis=(1, 2))[:, None]], axis=1
        )


@pytest.fixture
def buffer(squares):
    return open_buffer(squares)


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "s.zarr")


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


# --- one episode


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_batches_change_no_embedding_and_no_order(tiny_encoder_folder, spec):
    encoder = load_encoder(str(tiny_encoder_folder))
    frames = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    windows = embed_frames(frames, encoder, spec)
    config = spec.resolved(4)
    assert windows.ends.tolist() == ends(30, config).tolist()
    one_by_one = np.concatenate([encoder.encode(frames[clip][None]) for clip in clips(30, config)])
    assert windows.embeddings == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)


def test_the_last_nested_window_is_the_whole_episode_bit_for_bit(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder))
    frames = np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    windows = embed_frames(frames, encoder, ScoringConfig(windows="nested", frames_per_clip=8))
    whole = encoder.encode(frames[clip_indices(29, 8)][None])[0]
    assert np.array_equal(windows.embeddings[-1], whole)


@given(st.lists(st.integers(1, 9).map(lambda n: 2 * n), min_size=1, max_size=40), st.integers(1, 100))
def test_a_batch_has_one_length_and_fits_the_budget(lengths, budget):
    groups = list(batches(lengths, budget))
    assert sorted(i for batch in groups for i in batch) == list(range(len(lengths)))
    for batch in groups:
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


def test_a_nan_embedding_names_its_episode_and_window(buffer, store):
    class Broken(CountingEncoder):
        def encode(self, clips: np.ndarray) -> np.ndarray:
            return super().encode(clips) * np.nan

    with pytest.raises(ScoringError, match="episode 0, window up to frame 6: the encoder gave NaN or zero"):
        embed_buffer(buffer, Broken(), store, FRONT_ONLY)
    assert len(store) == 0


# --- a buffer


class WatchingEncoder(CountingEncoder):
    """Counts the raw chunks and the prepared episodes that are in memory at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[weakref.ref] = []
        self.whole: list[weakref.ref] = []
        self.most_raw = self.most_whole = 0

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        self.raw.append(weakref.ref(frames))
        self.most_raw = max(self.most_raw, alive(self.raw))
        return super().prepare(frames)

    def encode(self, clips: np.ndarray) -> np.ndarray:
        self.most_whole = max(self.most_whole, alive(self.whole))
        return super().encode(clips)


def alive(references: list[weakref.ref]) -> int:
    return sum(reference() is not None for reference in references)


def test_each_frame_is_prepared_once_by_another_thread_and_few_are_in_memory(tmp_path, store, monkeypatch):
    many = open_buffer(record_squares(tmp_path / "many", [("go", 10 + i, 1.0, True) for i in range(8)]))
    encoder, reports = WatchingEncoder(), []

    def watched(*arguments: Any) -> np.ndarray:
        whole = prepared(*arguments)
        encoder.whole.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr("srpo_robot.progress.embed.prepared", watched)
    monkeypatch.setattr(Buffer, "frame_chunks", partialmethod(Buffer.frame_chunks, chunk=4))
    result = embed_buffer(many, encoder, store, FRONT_ONLY, on_episode=lambda e, n: reports.append((e.index, n)))
    assert encoder.prepared == sum(range(10, 18))
    assert all(name.startswith("decode") for name in encoder.threads)
    assert (len(encoder.raw), encoder.most_raw) == (sum(-(-length // 4) for length in range(10, 18)), 1)
    assert (len(encoder.whole), encoder.most_whole) == (8, 2)
    assert reports == [(e.index, len(ends(e.length, SPEC))) for e in many.episodes]
    assert (result.computed, result.left_out, len(result.windows)) == (8, {}, 8)
    gc.collect()
    assert alive(encoder.raw) == alive(encoder.whole) == 0  # no chunk and no episode stays in memory
    assert max(shape[0] for shape in encoder.calls) <= encoder.batch_clips
    assert decoding_threads() == []


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_preparing_in_chunks_changes_no_bit(buffer, tiny_encoder_folder, monkeypatch, chunk):
    encoder = load_encoder(str(tiny_encoder_folder))
    monkeypatch.setattr(Buffer, "frame_chunks", partialmethod(Buffer.frame_chunks, chunk=chunk))
    for episode in buffer.episodes:
        at_once = encoder.prepare(buffer.frames(episode, SIDE))
        assert np.array_equal(prepared(buffer, encoder, episode, SIDE), at_once)


def test_stored_episodes_are_neither_decoded_nor_embedded(buffer, store, monkeypatch):
    first = embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY)
    monkeypatch.setattr(Buffer, "frame_chunks", None)
    encoder, counts = CountingEncoder(), []
    second = embed_buffer(buffer, encoder, store, FRONT_ONLY, on_episode=lambda e, n: counts.append(n))
    assert (encoder.calls, second.computed, counts) == ([], 0, [0] * 4)
    for old, new in zip(first.windows, second.windows, strict=True):
        assert old is not None
        assert new is not None
        assert np.array_equal(old.embeddings, new.embeddings)


def test_the_store_describes_each_entry(buffer, store):
    embed_buffer(buffer, CountingEncoder(), store, SIDE_ONLY)
    entries = {entry.metadata["episode"]: entry for entry in store.entries()}
    assert sorted(entries) == [0, 1, 2, 3]
    assert entries[2].metadata["camera"] == SIDE
    assert entries[2].metadata["encoder"] == "counting"
    assert entries[2].metadata["windows"] == "stride:4, prefix, from 6, 4 frames"
    assert entries[2].metadata["video"] == buffer.video_identity(buffer.episodes[2], SIDE)
    assert entries[2].windows == len(ends(SQUARES[2][1], SPEC))


def test_several_cameras_are_embedded_each_by_itself(buffer, store):
    counts = []
    two_cameras = embed_buffer(buffer, CountingEncoder(), store, BOTH, on_episode=lambda e, n: counts.append(n))
    assert list(two_cameras.cameras) == [FRONT, SIDE]
    assert (two_cameras.computed, len(store)) == (4, 8)
    assert counts == [2 * len(ends(e.length, SPEC)) for e in buffer.episodes]
    side = embed_buffer(buffer, CountingEncoder(), store, SIDE_ONLY)
    assert side.computed == 0
    alone, together = side.windows[1], two_cameras.cameras[SIDE][1]
    assert alone is not None
    assert together is not None
    assert np.array_equal(alone.embeddings, together.embeddings)


def test_a_camera_added_later_embeds_that_camera_only(buffer, store):
    embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY)
    encoder = CountingEncoder()
    assert embed_buffer(buffer, encoder, store, BOTH).computed == 4
    assert encoder.prepared == sum(length for _, length, _, _ in SQUARES)


# --- failures on the way


def test_a_bad_camera_leaves_its_episode_out_for_all(squares_copy, store):
    path = sorted((squares_copy / "videos" / SIDE).rglob("*.mp4"))[1]
    path.write_bytes(path.read_bytes()[:700])
    damaged_buffer = open_buffer(squares_copy)
    with pytest.raises(UndecodableFrame, match="episode 1"):
        embed_buffer(damaged_buffer, CountingEncoder(), store, BOTH)
    assert len(store) == 3  # both of episode 0, the good camera of episode 1
    assert decoding_threads() == []
    result = embed_buffer(damaged_buffer, CountingEncoder(), store, BOTH, skip_bad=True)
    assert list(result.left_out) == [1]
    assert SIDE in result.left_out[1]
    assert result.cameras[FRONT][1] is None
    assert result.cameras[SIDE][1] is None
    assert result.cameras[SIDE][2] is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_while_encoding_stops_the_thread_and_keeps_finished_episodes(buffer, store, error):
    class Interrupted(CountingEncoder):
        def encode(self, clips: np.ndarray) -> np.ndarray:
            if len(store) == 2:
                raise error
            return super().encode(clips)

    with pytest.raises(error):
        embed_buffer(buffer, Interrupted(), store, FRONT_ONLY)
    assert decoding_threads() == []
    assert len(store) == 2
    assert embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY).computed == 2


def test_an_error_in_the_thread_arrives_unchanged(buffer, store):
    class OutOfMemory(CountingEncoder):
        def prepare(self, frames: np.ndarray) -> np.ndarray:
            if len(frames) == SQUARES[1][1]:
                raise MemoryError("no room for the frames")
            return super().prepare(frames)

    with pytest.raises(MemoryError, match="no room for the frames"):
        embed_buffer(buffer, OutOfMemory(), store, FRONT_ONLY, skip_bad=True)
    assert len(store) == 1
    assert decoding_threads() == []


def test_a_full_disk_keeps_earlier_episodes_and_goes_on_from_there(buffer, store, monkeypatch):
    store_put = EmbeddingStore.put

    def until_full(self, *arguments):
        if len(self) == 2:
            raise SrpoRobotError("no space left")
        store_put(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "put", until_full)
        with pytest.raises(SrpoRobotError, match="no space left"):
            embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY)
    assert embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY).computed == 2


# --- several processes


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 8))
def test_sharding_gives_each_episode_to_one_rank_and_no_rank_much_more(costs, ranks):
    owner = shards(costs, ranks)
    assert len(owner) == len(costs)
    assert set(owner) <= set(range(ranks))
    shares = [sum(c for c, r in zip(costs, owner, strict=True) if r == rank) for rank in range(ranks)]
    assert max(shares) <= sum(costs) / ranks + max(costs, default=0)
    assert max(shares) - min(shares) <= max(costs, default=0)


def test_shards_by_hand():
    assert shards([1, 5, 4, 3, 3], 2) == (
        1,
        0,
        1,
        1,
        0,
    )  # 5+3 and 4+3+1: the largest episode first, each to the rank with the fewest windows
    assert shards([2, 2, 2], 5) == (0, 1, 2)
    assert shards([], 3) == ()
    with pytest.raises(ValueError, match="0 ranks"):
        shards([1], 0)


def test_shards_of_three_ranks_cover_the_whole_buffer(buffer, store, tmp_path):
    alone = embed_buffer(buffer, CountingEncoder(), EmbeddingStore(tmp_path / "alone.zarr"), BOTH)
    results = []
    for rank in (2, 0, 1):
        results.append(embed_buffer(buffer, CountingEncoder(), store, BOTH, shard=Shard(rank, 3)))
        with pytest.raises(ScoringError, match="a shard of the episodes; gather"):
            _ = results[-1].windows
    assert sum(shard.computed for shard in results) == 4
    whole = gather(buffer, CountingEncoder(), store, BOTH)
    for camera in (FRONT, SIDE):
        for expected, actual in zip(alone.cameras[camera], whole.cameras[camera], strict=True):
            assert expected is not None
            assert actual is not None
            assert np.array_equal(expected.embeddings, actual.embeddings)


def test_missing_embeddings_name_the_rank_that_died(buffer, store):
    embed_buffer(buffer, CountingEncoder(), store, FRONT_ONLY, shard=Shard(0, 2))
    shard_of = shards([len(ends(e.length, SPEC)) for e in buffer.episodes], 2)
    absent = ", ".join(str(i) for i, rank in enumerate(shard_of) if rank == 1)
    with pytest.raises(ScoringError, match=rf"2 of 4 episodes are not embedded: {absent}; .*same command again"):
        gather(buffer, CountingEncoder(), store, FRONT_ONLY)
    left_out = {i: "why" for i, rank in enumerate(shard_of) if rank == 1}
    whole = gather(buffer, CountingEncoder(), store, FRONT_ONLY, left_out)
    assert [windows is None for windows in whole.windows] == [rank == 1 for rank in shard_of]
    assert whole.left_out == left_out


# --- keys


def test_a_key_depends_on_every_input_of_an_embedding(buffer):
    encoder = CountingEncoder()
    other_keys = [
        replace(SPEC, windows="stride:5"),
        replace(SPEC, min_window=7),
        replace(SPEC, window_shape="recent"),
        replace(SPEC, repeat="cyclic"),
        replace(SPEC, frames_per_clip=8),
        ScoringConfig(windows="nested", min_window=6),
        ScoringConfig(windows="dense", min_window=6),
    ]
    keys = [store_key(encoder, "video", spec) for spec in (SPEC, *other_keys)]
    assert len({*keys, store_key(encoder, "other video", SPEC)}) == len(keys) + 1
    # 4 is the encoder's own number of frames per clip
    assert store_key(encoder, "video", replace(SPEC, frames_per_clip=4)) == keys[0]
    assert store_key(encoder, "video", ScoringConfig(windows="stride:1", min_window=6)) == keys[-1]
    by_episode = store_keys(buffer, encoder, BOTH, {1: "left out"})
    assert sorted(by_episode) == [0, 2, 3]
    assert len({key for episode_keys in by_episode.values() for key in episode_keys}) == 6


@pytest.mark.parametrize(
    ("identity", "frames", "video", "config", "key"),
    [
        ("an-encoder", 16, "video", {"windows": "dense"}, "1a423f71e20f0061e4eb703fd2edc41d"),
        ("an-encoder", 16, "video", {"windows": "stride:1"}, "1a423f71e20f0061e4eb703fd2edc41d"),
        ("an-encoder", 16, "video", {}, "d821c8735d1953bd70771dcf37fe1e36"),
        ("another", 64, "video", {}, "41db880a82adeba771eb5024e950f2ab"),
        ("an-encoder", 16, "other video", {}, "880c739eac72ff8f2abac1bab488cd1e"),
        ("an-encoder", 16, "video", {"window_shape": "recent"}, "a3402ee13778baa950decd9b1597b14b"),
        (
            *("an-encoder", 16, "video"),
            {"windows": "dense", "window_shape": "recent", "min_window": 0, "frames_per_clip": 32},
            "8a5d7e01033b916e9b3bb4c8592bcbf0",
        ),
        (
            *("an-encoder", 16, "video"),
            {"windows": "stride:3", "min_window": 6, "profile": "siirl"},
            "34f5cc2c2c1ae7be4a5fe49850ae8692",
        ),
        ("an-encoder", 16, "video", {"windows": "nested", "min_window": 6}, "853cf13a16dc7c2c317a0000c24e0590"),
        (
            *("an-encoder", 16, "video"),
            {"windows": "nested", "frames_per_clip": 64},
            "8a1a9f88416821a009a17d4c27212725",
        ),
    ],
)
def test_keys_never_change_so_that_stored_embeddings_stay_valid(identity, frames, video, config, key):
    encoder: Any = SimpleNamespace(identity=identity, frames_per_clip=frames)
    assert store_key(encoder, video, ScoringConfig(**config)) == key
    scored_otherwise = ScoringConfig(**config | {"alpha": 0.3, "value": "knn-time", "cameras": ("side",)})
    assert store_key(encoder, video, scored_otherwise) == key  # only the windows are part of the key
    assert store_key(encoder, video, ScoringConfig(**config).for_profile("loo")) == key
