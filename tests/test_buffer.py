"""The buffer: episodes, frames, columns, labels, tables, recording."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SQUARES, moving_square, real_data, record_squares

from srpo_robot.buffer.labels import Label, parse_csv, require_labels, write_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features, recorded_episodes
from srpo_robot.buffer.repair import repair
from srpo_robot.buffer.tables import read_table, write_table
from srpo_robot.errors import DatasetError, StaleTable, UndecodableFrame, UnlabelledError


def checksums(root: Path) -> dict[str, str]:
    """Returns the checksums of the recorded files, without the sidecar, which is this package's own."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "srpo" not in path.relative_to(root).parts
    }


# --- episodes and frames


def test_episodes_carry_task_length_cameras_and_label(squares):
    buffer = open_buffer(squares)
    assert [(e.task, e.length, e.success) for e in buffer.episodes] == [(t, n, s) for t, n, _, s in SQUARES]
    assert [e.first_frame for e in buffer.episodes] == [0, 24, 44, 66]
    assert buffer.cameras == ("observation.images.front", "observation.images.side")
    assert (buffer.fps, buffer.total_frames) == (10.0, 84)


def test_frames_equal_the_recorded_frames_up_to_compression(squares):
    buffer = open_buffer(squares)
    for episode, (_, length, reach, _) in zip(buffer.episodes, SQUARES, strict=True):
        frames = buffer.frames(episode, buffer.camera("front"))
        assert frames.shape == (length, 48, 48, 3)
        assert frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - moving_square(length, reach)).mean() < 6


def test_frames_agree_with_lerobots_own_decoding(squares):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    buffer = open_buffer(squares)
    reference = LeRobotDataset("local/squares", root=squares, video_backend="pyav")
    for episode in buffer.episodes:
        frames = buffer.frames(episode, "observation.images.side")
        for t in (0, episode.length // 2, episode.length - 1):
            item: Any = reference[episode.first_frame + t]
            image = item["observation.images.side"].permute(1, 2, 0).numpy()
            assert (image * 255).round().astype(np.uint8).tolist() == frames[t].tolist()


def test_columns_come_in_the_order_of_the_index(squares):
    buffer = open_buffer(squares)
    assert buffer.column("index").tolist() == list(range(84))
    assert buffer.column("action").shape == (84, 2)
    assert buffer.column("action") == pytest.approx(2 * buffer.column("observation.state"))
    with pytest.raises(DatasetError, match="no 'torque'; its columns are: .*action"):
        buffer.column("torque")


def test_an_unknown_camera_lists_the_known_cameras(squares):
    with pytest.raises(DatasetError, match="no camera 'top' .* there are: front, side"):
        open_buffer(squares).camera("top")


def test_a_videos_identity_survives_appending_and_differs_between_videos(squares_copy):
    before = open_buffer(squares_copy)
    identities = [before.video_identity(e, c) for e in before.episodes for c in before.cameras]
    assert len(set(identities)) == len(identities)
    record_squares(squares_copy, [("go right", 12, 0.7, False)])
    after = open_buffer(squares_copy)
    assert [after.video_identity(e, c) for e in after.episodes[:4] for c in after.cameras] == identities
    assert after.fingerprint != before.fingerprint


def test_real_video_and_real_images():
    video = open_buffer(real_data("table_tidy"))
    assert [e.success for e in video.episodes] == [True, True] + [False] * 6
    frames = video.frames(video.episodes[2], video.camera("left_wrist"))
    assert frames.shape == (149, 240, 320, 3)
    images = open_buffer(real_data("bridge_mini"))
    assert all(e.success is None for e in images.episodes)
    assert images.frames(images.episodes[7], images.camera(None)).shape == (10, 64, 64, 3)


# --- folders that are not a dataset


def test_a_folder_that_is_not_a_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"no LeRobot dataset: it has no meta/info.json"):
        open_buffer(tmp_path)
    with pytest.raises(DatasetError, match="is no folder"):
        open_buffer(tmp_path / "absent" / "deeper")


def test_a_v21_dataset_names_lerobots_converter(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DatasetError, match=r"v2\.1.*convert_dataset_v21_to_v30"):
        open_buffer(tmp_path)


def test_the_converter_that_the_message_names_exists():
    import importlib.util

    assert importlib.util.find_spec("lerobot.scripts.convert_dataset_v21_to_v30") is not None


def test_a_hub_id_without_a_network_is_one_line():
    with pytest.raises(DatasetError, match="there is no folder nobody/nothing, and the Hub does not") as error:
        open_buffer("nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 900])
def test_an_undecodable_video_names_episode_and_frame(squares_copy, keep):
    path = sorted((squares_copy / "videos" / "observation.images.front").rglob("*.mp4"))[1]
    path.write_bytes(path.read_bytes()[:keep])
    buffer = open_buffer(squares_copy)
    with pytest.raises(UndecodableFrame, match=r"episode 1, observation.images.front, frame \d+ cannot be decoded"):
        buffer.frames(buffer.episodes[1], buffer.camera("front"))
    assert len(buffer.frames(buffer.episodes[0], buffer.camera("front"))) == 24


def test_a_video_that_ends_early_names_the_first_missing_frame(squares_copy):
    path = sorted((squares_copy / "videos" / "observation.images.front").rglob("*.mp4"))
    shutil.copy(path[3], path[0])  # 18 frames instead of the recorded 24
    buffer = open_buffer(squares_copy)
    with pytest.raises(UndecodableFrame, match="episode 0, .* frame 18 cannot be decoded"):
        buffer.frames(buffer.episodes[0], buffer.camera("front"))


# --- labels


def test_the_sidecar_comes_before_the_recording(squares_copy):
    write_labels(open_buffer(squares_copy), {2: Label(True, "take")})
    buffer = open_buffer(squares_copy)
    assert [e.success for e in buffer.episodes] == [True, True, True, False]
    assert [e.group for e in buffer.episodes] == ["episode 0", "episode 1", "take", "episode 3"]


def test_episode_metadata_comes_before_frames(squares_copy):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, path in enumerate(sorted((squares_copy / "meta" / "episodes").rglob("*.parquet"))):
        table = pq.read_table(path)
        pq.write_table(table.append_column("success", pa.array([[False, None, True, None][number]], pa.bool_())), path)
    assert [e.success for e in open_buffer(squares_copy).episodes] == [False, True, True, False]


def test_labels_add_up_and_leave_the_recording_alone(squares_copy):
    before = checksums(squares_copy)
    write_labels(open_buffer(squares_copy), {0: Label(False, "")})
    write_labels(open_buffer(squares_copy), {0: Label(None, "a"), 3: Label(True, "b")})
    buffer = open_buffer(squares_copy)
    assert (buffer.episodes[0].success, buffer.episodes[0].group) == (False, "a")
    assert (buffer.episodes[3].success, buffer.episodes[3].group) == (True, "b")
    assert checksums(squares_copy) == before


def test_unlabelled_episodes_are_listed_with_the_ways_to_label():
    buffer = open_buffer(real_data("bridge_mini"))
    with pytest.raises(UnlabelledError, match=r"25 of 25 .*0, 1, 2, .*keys.*--csv.*--all-success"):
        require_labels(buffer)


def test_a_csv(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("episode_index,success,group\n0,true,a\n1,F,a\n2,,b\n")
    assert parse_csv(path, 3) == {0: Label(True, "a"), 1: Label(False, "a"), 2: Label(None, "b")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("episode_index,success\n0,maybe\n", "line 2: success is 'maybe'"),
        ("episode_index,success\n0,1\n9,1\n", "line 3: no episode '9'; there are 0 to 2"),
        ("a,b\n1,2\n", "needs a header"),
        ("", "needs a header"),
    ],
)
def test_a_bad_csv_names_the_line(tmp_path, text, says):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=says):
        parse_csv(path, 3)


# --- tables


def test_tables_round_trip_and_refuse_another_parent(tmp_path):
    path = tmp_path / "t.parquet"
    first = write_table(path, {"a": np.arange(3), "b": np.array([0.5, np.nan, 1.0])}, {"dataset": "x"})
    table = read_table(path, refresh="srpo-robot score-dataset D", dataset="x")
    assert table["a"].tolist() == [0, 1, 2]
    assert np.isnan(table["b"][1])
    assert table.metadata == first.metadata
    with pytest.raises(StaleTable, match="another state of its dataset; run: srpo-robot score-dataset D"):
        read_table(path, refresh="srpo-robot score-dataset D", dataset="y")
    second = write_table(path, {"a": np.arange(3), "b": np.array([0.5, np.nan, 1.5])}, {"dataset": "x"})
    assert second.metadata["content"] != first.metadata["content"]


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_a_missing_or_broken_table_says_how_to_make_it(tmp_path, content):
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StaleTable, match="run: make it"):
        read_table(path, refresh="make it")


# --- recording


FEATURES = dataset_features({"front": (48, 48), "side": (48, 48)}, ("x", "y"), ("x", "y"))


def test_a_finished_episode_is_whole_on_disk_while_the_next_is_recorded(tmp_path):
    root = record_squares(tmp_path / "d", SQUARES[:1])
    with Recorder(root, 10.0, FEATURES, "test") as recorder:
        recorder.begin()
        frame = moving_square(1, 0.0)[0]
        recorder.add({"front": frame, "side": frame}, np.zeros(2), np.zeros(2), "go right")
        half_way = open_buffer(root)  # the folder as a reader, or a crash at this moment, would see it
        assert len(half_way.episodes) == 1
        assert len(half_way.frames(half_way.episodes[0], half_way.cameras[0])) == 24
    assert recorded_episodes(root) == 1  # the episode without a verdict is not kept


def test_void_episodes_leave_nothing_behind(tmp_path):
    with Recorder(tmp_path / "d", 10.0, dataset_features({"front": (48, 48)}, ("x",), ("x",)), "test") as recorder:
        for success in (None, True, None, False):
            recorder.begin()
            for frame in moving_square(3, 1.0):
                recorder.add({"front": frame}, np.zeros(1), np.zeros(1), "go")
            recorder.end(success)
    buffer = open_buffer(tmp_path / "d")
    assert [e.success for e in buffer.episodes] == [True, False]
    assert [len(buffer.frames(e, buffer.cameras[0])) for e in buffer.episodes] == [3, 3]


def test_a_recorder_that_recorded_nothing_leaves_a_folder_that_can_be_recorded_to(tmp_path):
    with Recorder(tmp_path / "d", 10.0, FEATURES, "test") as recorder:
        recorder.begin()
    record_squares(tmp_path / "d", SQUARES[:1])
    assert len(open_buffer(tmp_path / "d").episodes) == 1


def test_several_episodes_in_one_file_are_the_same_as_one_in_each(squares, tmp_path):
    together = open_buffer(record_squares(tmp_path / "d", SQUARES, commit_every=4))
    assert len(list((together.root / "data").rglob("*.parquet"))) == 1
    apart = open_buffer(squares)
    assert together.fingerprint == apart.fingerprint
    for episode, episode_alone in zip(together.episodes, apart.episodes, strict=True):
        for camera in together.cameras:
            assert (together.frames(episode, camera) == apart.frames(episode_alone, camera)).all()
            assert together.video_identity(episode, camera) == apart.video_identity(episode_alone, camera)
    assert (together.column("action") == apart.column("action")).all()


KILLED = """
import os, signal, sys
from pathlib import Path
from conftest import SQUARES, record_squares
import srpo_robot.buffer.recorder as m

def record_until_killed(root, at, commit_every):
    ends, end = 0, m.Recorder.end
    def end_until_killed(self, success):
        nonlocal ends
        ends += 1
        if ends == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return end(self, success)
    m.Recorder.end = end_until_killed
    record_squares(root, SQUARES * 2, commit_every=commit_every)

for name, at, commit_every in (("single", 4, 1), ("later", 7, 4), ("first", 3, 4)):
    child = os.fork()
    if not child:
        try:
            record_until_killed(Path(sys.argv[1]) / name / "d", at, commit_every)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name
"""


@pytest.fixture(scope="module")
def interrupted_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings that kill -9 stopped at the end of an episode. One interpreter forks all of them.

    single/d: at the fourth episode, one episode per file. first/d, later/d: at the third and at the seventh episode,
    four episodes per file.
    """
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(folder)]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_kill_9_loses_only_the_unfinished_episode(interrupted_recordings, squares):
    root = interrupted_recordings / "single" / "d"
    assert len(open_buffer(root).episodes) == 3
    record_squares(root, SQUARES[3:])
    assert open_buffer(root).fingerprint == open_buffer(squares).fingerprint


def test_a_killed_recording_is_repaired_and_nothing_is_deleted(interrupted_recordings):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = interrupted_recordings / "later" / "d"  # 4 are committed, 2 finished, 1 under way
    with pytest.raises(DatasetError, match="unfinished files.*srpo-robot repair"):
        open_buffer(root)
    assert repair(root) > 0
    assert repair(root) == 0
    buffer = open_buffer(root)
    assert [e.length for e in buffer.episodes] == [n for _, n, _, _ in SQUARES]
    assert list((root / "srpo" / "cut_off").rglob("*.mp4"))
    stats = json.loads((root / "meta" / "stats.json").read_text())
    assert stats["action"]["count"] == [84]
    assert stats["action"]["mean"] == pytest.approx(buffer.column("action").mean(axis=0).tolist(), rel=1e-5)
    record_squares(root, SQUARES[:2])
    assert [e.length for e in open_buffer(root).episodes] == [24, 20, 22, 18, 24, 20]
    assert len(LeRobotDataset("local/d", root=root, video_backend="pyav")) == 128


def test_a_recording_cut_off_in_its_first_episodes_is_moved_beside(interrupted_recordings):
    root = interrupted_recordings / "first" / "d"
    record_squares(root, SQUARES[:1])
    assert len(open_buffer(root).episodes) == 1
    assert list((root.parent / "d.cut_off_1" / "videos").rglob("*.mp4"))


def test_a_dataset_that_lost_a_file_is_not_repaired_by_throwing_episodes_away(squares_copy):
    sorted((squares_copy / "data").rglob("*.parquet"))[1].unlink()
    (squares_copy / "meta" / "episodes" / "chunk-000" / "file-003.parquet").write_bytes(b"cut")
    with pytest.raises(DatasetError, match="file-001.parquet is gone.*restore it from a copy"):
        repair(squares_copy)
    assert (squares_copy / "meta" / "episodes" / "chunk-000" / "file-003.parquet").is_file()


def test_appending_something_else_is_refused(squares_copy, tmp_path):
    names = ("x", "y")
    with pytest.raises(DatasetError, match=r"another 'observation.images.front'"):
        Recorder(squares_copy, 10.0, dataset_features({"front": (64, 64)}, names, names), "test")
    with pytest.raises(DatasetError, match="recorded at 10 fps, this run at 20"):
        Recorder(squares_copy, 20.0, dataset_features({"front": (48, 48)}, names, names), "test")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not delete")
    with pytest.raises(DatasetError, match="exists and is no dataset"):
        Recorder(tmp_path / "full", 10.0, dataset_features({}, names, names), "test")


def test_an_encoder_that_is_slower_than_the_camera_loses_no_frame(tmp_path, monkeypatch):
    from lerobot.datasets import video_utils

    go, encode = threading.Event(), video_utils._CameraEncoderThread.run

    def late(thread):
        go.wait(60)
        encode(thread)

    monkeypatch.setattr(video_utils._CameraEncoderThread, "run", late)
    features = dataset_features({"front": (48, 48)}, ("x",), ("x",))
    with Recorder(tmp_path / "late", 30.0, features, "test") as recorder:
        recorder.begin()
        for frame in moving_square(45, 1.0):  # lerobot's own queue holds 30
            recorder.add({"front": frame}, np.zeros(1), np.zeros(1), "wait")
        go.set()
        recorder.end(True)
    buffer = open_buffer(tmp_path / "late")
    assert len(buffer.frames(buffer.episodes[0], "observation.images.front")) == 45
