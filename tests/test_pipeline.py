"""From a recorded buffer to its tables: store, pipeline, staleness, the second round."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import record_squares
from test_buffer import checksums

from srpo_robot.awr.tables import Weighting, baseline_weights, mean_weight_by_label, weigh_buffer
from srpo_robot.buffer.labels import Label, write_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import ScoringError, StaleTable, UndecodableFrame
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.pipeline import ScoreSettings, read_curves, read_progress, score_buffer
from srpo_robot.progress.score import Rules, WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import WindowSpec, clip_indices, window_ends

SPEC = WindowSpec("stride", 4, min_window=6)
SETTINGS = ScoreSettings("tiny", ("observation.images.front",), SPEC)


@pytest.fixture
def encoder(tiny_encoder_folder):
    return load_encoder(str(tiny_encoder_folder))


def test_scores_are_those_of_embeddings_computed_one_window_at_a_time(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    scored = score_buffer(buffer, encoder, SETTINGS)
    episode = buffer.episodes[2]
    frames = encoder.prepare(buffer.frames(episode, SETTINGS.cameras[0]))
    ends = window_ends(episode.length, 4, 6)
    one_by_one = np.concatenate([encoder.encode(frames[clip_indices(end, 4)][None]) for end in ends])
    stored = scored.embedded.windows[2]
    assert stored is not None
    assert stored.ends.tolist() == ends.tolist()
    assert stored.embeddings == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)


def test_the_table_has_a_row_a_frame_and_the_recording_stays_byte_identical(squares_copy, encoder):
    before = checksums(squares_copy)
    buffer = open_buffer(squares_copy)
    scored = score_buffer(buffer, encoder, SETTINGS)
    weigh_buffer(buffer, scored.table, Weighting(horizon=4))
    table = read_progress(buffer)
    assert table["index"].tolist() == list(range(84))
    assert np.bincount(table["episode_index"]).tolist() == [24, 20, 22, 18]
    for episode, curve in zip(buffer.episodes, scored.scores.curves, strict=True):
        span = slice(episode.first_frame, episode.first_frame + episode.length)
        assert table["progress"][span].tolist() == curve.progress.tolist()
        assert np.flatnonzero(table["scored"][span]).tolist() == window_ends(episode.length, 4, 6).tolist()
    assert table["progress"][23] == 1.0  # a success ends at itself
    assert np.all(table["reward"][:44] == 1.0)
    assert np.all((table["reward"][44:] > 0) & (table["reward"][44:] < 0.8))
    assert [c.progress.tolist() for c in read_curves(buffer)] == [c.progress.tolist() for c in scored.scores.curves]
    assert checksums(squares_copy) == before


def test_the_second_round_embeds_only_what_is_new(squares_copy, encoder):
    first = score_buffer(open_buffer(squares_copy), encoder, SETTINGS)
    record_squares(squares_copy, [("go right", 16, 0.6, False), ("go right", 14, 1.0, True)])
    again = score_buffer(open_buffer(squares_copy), encoder, SETTINGS)
    assert (first.embedded.computed, again.embedded.computed) == (4, 2)
    for old, new in zip(first.embedded.windows, again.embedded.windows[:4], strict=True):
        assert old is not None
        assert new is not None
        assert old.embeddings.tolist() == new.embeddings.tolist()


def test_another_encoder_stride_or_camera_is_embedded_anew(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    score_buffer(buffer, encoder, SETTINGS)
    for other in (
        replace(SETTINGS, windows=replace(SPEC, stride=5)),
        replace(SETTINGS, windows=replace(SPEC, min_window=7)),
        replace(SETTINGS, cameras=("observation.images.side",)),
    ):
        assert score_buffer(buffer, encoder, other).embedded.computed == 4
    assert score_buffer(buffer, encoder, SETTINGS).embedded.computed == 0


def test_a_score_is_stale_after_an_episode_or_a_label_changed(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    table = score_buffer(buffer, encoder, SETTINGS).table
    write_labels(buffer, {2: Label(True, "")})
    with pytest.raises(StaleTable, match="another state of its labels; run: srpo-robot score-dataset"):
        read_progress(open_buffer(squares_copy))
    record_squares(squares_copy, [("go right", 10, 0.6, False)])
    with pytest.raises(StaleTable, match="run: srpo-robot score-dataset"):
        read_progress(open_buffer(squares_copy))
    with pytest.raises(StaleTable, match="run: srpo-robot score-dataset"):
        weigh_buffer(open_buffer(squares_copy), table, Weighting())


def test_weights_of_a_buffer(squares_copy, encoder):
    buffer = open_buffer(squares_copy)
    weighted = weigh_buffer(buffer, score_buffer(buffer, encoder, SETTINGS).table, Weighting(horizon=4))
    assert weighted.weights.values.mean() == pytest.approx(1)
    plain = weigh_buffer(buffer, read_progress(buffer), Weighting(horizon=4, kappa=2.0))
    tilt = mean_weight_by_label(buffer, plain.weights)
    assert tilt["success"] > tilt["failure"]  # kappa's trajectory advantage favours successes
    cloned = mean_weight_by_label(buffer, baseline_weights(buffer, "success"))
    assert (cloned["success"], cloned["failure"]) == (pytest.approx(84 / 44), 0.0)


def test_a_task_without_success_is_refused_before_anything_is_embedded(squares_copy, encoder):
    record_squares(squares_copy, [("go left", 10, 0.6, False)])
    buffer = open_buffer(squares_copy)
    with pytest.raises(ScoringError, match=r"'go left' has no success.*--skip-task 'go left'"):
        score_buffer(buffer, encoder, SETTINGS)
    assert not (buffer.sidecar / "embeddings.zarr").exists()
    scored = score_buffer(buffer, encoder, replace(SETTINGS, rules=Rules(skip_tasks=("go left",))))
    assert np.isnan(scored.table["progress"][-10:]).all()
    weights = weigh_buffer(buffer, scored.table, Weighting()).weights
    assert weights.undefined == 10
    assert weights.values[-10:].tolist() == [0.0] * 10
    with pytest.raises(ScoringError, match="no task 'go up' to skip"):
        score_buffer(buffer, encoder, replace(SETTINGS, rules=Rules(skip_tasks=("go up",))))


def test_a_bad_video_stops_scoring_and_can_be_left_out(squares_copy, encoder):
    path = sorted((squares_copy / "videos" / "observation.images.front").rglob("*.mp4"))[2]
    path.write_bytes(path.read_bytes()[:700])
    buffer = open_buffer(squares_copy)
    with pytest.raises(UndecodableFrame, match="episode 2"):
        score_buffer(buffer, encoder, SETTINGS)
    scored = score_buffer(buffer, encoder, SETTINGS, skip_bad=True)
    assert list(scored.embedded.left_out) == [2]
    assert scored.embedded.computed == 1  # the two before the bad one were already in the store
    assert np.isnan(scored.scores.rewards[2])


# --- the store


def test_the_store_holds_an_episode_whole_or_not_at_all(tmp_path, monkeypatch):
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
        "from srpo_robot.progress.score import Rules, WindowEmbeddings\n"
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
