"""Tests of the path from a recorded buffer to its tables: store, pipeline, staleness and a second round."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import record_squares
from test_buffer import checksums

from srpo_robot.awr.weighting import mean_weight_by_label, weights_of
from srpo_robot.awr.weights_table import write_weights
from srpo_robot.buffer.labels import Label, write_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import ScoringError, StaleTable, UndecodableFrame
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.pipeline import (
    TABLE,
    EncoderInfo,
    audit_origin,
    read_curves,
    read_progress,
    read_provenance,
    score_buffer,
)
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import clip_indices, window_ends
from srpo_robot.recipes import Weighting

CONFIG = ScoringConfig(cameras=("observation.images.front",), windows="stride:4", min_window=6)


@pytest.fixture
def encoder(tiny_encoder_folder):
    return load_encoder(str(tiny_encoder_folder))


def test_batched_scores_equal_scores_of_one_window_at_a_time(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    scoring = score_buffer(buffer, encoder, CONFIG)
    episode = buffer.episodes[2]
    frames = encoder.prepare(buffer.frames(episode, CONFIG.cameras[0]))
    ends = window_ends(episode.length, 4, 6)
    one_by_one = np.concatenate([encoder.encode(frames[clip_indices(end, 4)][None]) for end in ends])
    entry = scoring.embedded.windows[2]
    assert entry is not None
    assert entry.ends.tolist() == ends.tolist()
    assert entry.embeddings == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)


def test_the_table_has_one_row_per_frame_and_the_recording_stays_byte_identical(squares_copy, encoder):
    before = checksums(squares_copy)
    buffer = open_buffer(squares_copy)
    scoring = score_buffer(buffer, encoder, CONFIG)
    write_weights(buffer, scoring.table, weights_of(buffer, scoring.table, Weighting(horizon=4)))
    table = read_progress(buffer)
    assert table["index"].tolist() == list(range(84))
    assert np.bincount(table["episode_index"]).tolist() == [24, 20, 22, 18]
    for episode, curve in zip(buffer.episodes, scoring.scores.curves, strict=True):
        span = slice(episode.first_frame, episode.first_frame + episode.length)
        assert table["progress"][span].tolist() == curve.progress.tolist()
        assert np.flatnonzero(table["scored"][span]).tolist() == window_ends(episode.length, 4, 6).tolist()
    assert table["progress"][23] == 1.0  # a success ends at itself
    assert np.all(table["reward"][:44] == 1.0)
    assert np.all((table["reward"][44:] > 0) & (table["reward"][44:] < 0.8))
    assert [c.progress.tolist() for c in read_curves(buffer)] == [c.progress.tolist() for c in scoring.scores.curves]
    assert checksums(squares_copy) == before


def test_the_second_round_embeds_only_new_episodes(squares_copy, encoder):
    first = score_buffer(open_buffer(squares_copy), encoder, CONFIG)
    record_squares(squares_copy, [("go right", 16, 0.6, False), ("go right", 14, 1.0, True)])
    again = score_buffer(open_buffer(squares_copy), encoder, CONFIG)
    assert (first.embedded.computed, again.embedded.computed) == (4, 2)
    for old, new in zip(first.embedded.windows, again.embedded.windows[:4], strict=True):
        assert old is not None
        assert new is not None
        assert old.embeddings.tolist() == new.embeddings.tolist()


def test_a_different_encoder_stride_or_camera_is_embedded_again(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    score_buffer(buffer, encoder, CONFIG)
    for config in (
        replace(CONFIG, windows="stride:5"),
        replace(CONFIG, min_window=7),
        replace(CONFIG, cameras=("observation.images.side",)),
    ):
        assert score_buffer(buffer, encoder, config).embedded.computed == 4
    assert score_buffer(buffer, encoder, CONFIG).embedded.computed == 0


def test_a_score_is_stale_after_an_episode_or_a_label_changes(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    table = score_buffer(buffer, encoder, CONFIG).table
    write_labels(buffer, {2: Label(True, "")})
    with pytest.raises(StaleTable, match="another state of its labels; run: srpo-robot score-dataset"):
        read_progress(open_buffer(squares_copy))
    record_squares(squares_copy, [("go right", 10, 0.6, False)])
    with pytest.raises(StaleTable, match="run: srpo-robot score-dataset"):
        read_progress(open_buffer(squares_copy))
    with pytest.raises(StaleTable, match="run: srpo-robot score-dataset"):
        weights_of(open_buffer(squares_copy), table, Weighting())


def test_a_table_records_config_and_encoder_and_an_older_format_is_refused(squares_copy, tiny_encoder_folder):
    buffer, encoder = open_buffer(squares_copy), load_encoder(str(tiny_encoder_folder), dtype="bfloat16")
    score_buffer(buffer, encoder, ScoringConfig(min_window=6, value="knn-time"))
    provenance = read_provenance(buffer)
    assert provenance.config == ScoringConfig(
        cameras=("observation.images.front",), min_window=6, value="knn-time", frames_per_clip=encoder.frames_per_clip
    )
    assert provenance.encoder == EncoderInfo(str(tiny_encoder_folder), "bfloat16", encoder.identity)
    assert audit_origin(buffer, provenance)["encoder"] == encoder.identity
    path = buffer.sidecar / TABLE
    table = pq.read_table(path)
    metadata = json.loads((table.schema.metadata or {})[b"srpo"])
    old = json.dumps({**metadata, "format": 2, "settings": {}}).encode()
    pq.write_table(table.replace_schema_metadata({b"srpo": old}), path)
    with pytest.raises(StaleTable, match=f"another state of its format; run: srpo-robot score-dataset {buffer.root}"):
        read_progress(buffer)


def test_weights_of_a_buffer(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    weights = weights_of(buffer, score_buffer(buffer, encoder, CONFIG).table, Weighting(horizon=4))
    assert weights.frames.values.mean() == pytest.approx(1)
    with_kappa = weights_of(buffer, read_progress(buffer), Weighting(horizon=4, kappa=2.0))
    tilt = mean_weight_by_label(buffer, with_kappa.frames.values)
    assert tilt["success"] > tilt["failure"]  # kappa's trajectory advantage favours successes
    means = mean_weight_by_label(buffer, weights_of(buffer, None, Weighting(), "success").frames.values)
    assert (means["success"], means["failure"]) == (pytest.approx(84 / 44), 0.0)


def test_a_task_without_success_is_refused_before_embedding(squares_copy, encoder):
    record_squares(squares_copy, [("go left", 10, 0.6, False)])
    buffer = open_buffer(squares_copy)
    with pytest.raises(ScoringError, match=r"'go left' has no success.*--skip-task 'go left'"):
        score_buffer(buffer, encoder, CONFIG)
    assert not (buffer.sidecar / "embeddings.zarr").exists()
    scoring = score_buffer(buffer, encoder, replace(CONFIG, skip_tasks=("go left",)))
    assert np.isnan(scoring.table["progress"][-10:]).all()
    weights = weights_of(buffer, scoring.table, Weighting()).frames
    assert weights.undefined == 10
    assert weights.values[-10:].tolist() == [0.0] * 10
    with pytest.raises(ScoringError, match="no task 'go up' to skip"):
        score_buffer(buffer, encoder, replace(CONFIG, skip_tasks=("go up",)))


def test_a_bad_video_stops_scoring_and_can_be_left_out(squares_copy, encoder):
    path = sorted((squares_copy / "videos" / "observation.images.front").rglob("*.mp4"))[2]
    path.write_bytes(path.read_bytes()[:700])
    buffer = open_buffer(squares_copy)
    with pytest.raises(UndecodableFrame, match="episode 2"):
        score_buffer(buffer, encoder, CONFIG)
    scoring = score_buffer(buffer, encoder, CONFIG, skip_bad=True)
    assert list(scoring.embedded.left_out) == [2]
    assert scoring.embedded.computed == 1  # the two before the bad one were already in the store
    assert np.isnan(scoring.scores.rewards[2])


# --- the store


def test_the_store_holds_complete_episodes_only(tmp_path, monkeypatch):
    store = EmbeddingStore(tmp_path / "s.zarr")
    windows = WindowEmbeddings(np.array([3, 5]), np.ones((2, 4), dtype=np.float32))

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("srpo_robot.progress.store.os.rename", fail)
        with pytest.raises(OSError, match="no space"):
            store.put("a", windows)
    assert "a" not in store
    assert len(list((tmp_path / "s.zarr").glob(".a*"))) == 0
    store.put("a", windows)
    store.put("a", windows)  # a second writer's copy is dropped
    assert store.get("a").ends.tolist() == [3, 5]
    assert store.get("a").embeddings.tolist() == windows.embeddings.tolist()
    assert len(store) == 1
    with pytest.raises(KeyError):
        store.get("b")


def test_a_killed_writer_leaves_a_store_that_works(tmp_path):
    script = (
        "import numpy as np, os, sys, zarr\n"
        "from pathlib import Path\n"
        "from srpo_robot.progress.store import EmbeddingStore\n"
        "from srpo_robot.progress.score import WindowEmbeddings\n"
        "import srpo_robot.progress.store as m\n"
        "s = EmbeddingStore(Path(sys.argv[1]))\n"
        "s.put('whole', WindowEmbeddings(np.array([1]), np.ones((1, 2))))\n"
        "m.os.rename = lambda *a: os.kill(os.getpid(), 9)\n"
        "s.put('half', WindowEmbeddings(np.array([1]), np.ones((1, 2))))\n"
    )
    path = tmp_path / "s.zarr"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    store = EmbeddingStore(path)
    assert "whole" in store
    assert "half" not in store
    assert len(store) == 1
    store.put("half", WindowEmbeddings(np.array([1]), np.ones((1, 2))))
    assert len(store) == 2


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    EmbeddingStore(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "srpo.json").write_text('{"format": 99}')
    with pytest.raises(StaleTable, match="format 99"):
        EmbeddingStore(tmp_path / "s.zarr")
