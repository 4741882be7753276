"""Tests of rounds: trials are appended and scored without a second embedding, and success is compared by round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SQUARES, record_squares, refused
from scipy.stats import binomtest
from test_buffer import checksums
from test_compare import BETTER, WORSE, study_of, write_run

from srpo_robot.buffer.appending import append
from srpo_robot.buffer.labels import Label, write_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.cli.rounds import spent
from srpo_robot.errors import DatasetError
from srpo_robot.progress.pipeline import read_progress

NEW = [("go right", 22, 0.9, True), ("go left", 16, 0.4, False)]  # 22: a length that the buffer has too


@pytest.fixture(scope="module")
def trials(tmp_path_factory) -> Path:
    """A run with two recorded trials. The buffer does not have the task of one of them."""
    run = write_run(tmp_path_factory.mktemp("trials") / "run", [True, False], "p")
    record_squares(run / "dataset", NEW)
    return run


# --- appending


def test_append_copies_frames_columns_labels_and_groups(squares_copy, trials, tmp_path):
    extra = shutil.copytree(trials / "dataset", tmp_path / "more")
    write_labels(open_buffer(extra), {1: Label(True, "take 7")})  # corrected by a person
    before, source = open_buffer(squares_copy), open_buffer(extra)
    frames = [
        before.frames(before.episodes[2], "observation.images.side"),
        source.frames(source.episodes[1], "observation.images.front"),
    ]
    write_labels(before, {3: Label(None, "take 7")})
    action = np.concatenate([before.column("action"), source.column("action")])
    assert append(squares_copy, [extra]) == (2, 6)
    buffer = open_buffer(squares_copy)
    assert [(e.task, e.length) for e in buffer.episodes] == [(t, n) for t, n, _, _ in SQUARES + NEW]
    assert [e.success for e in buffer.episodes] == [True, True, False, False, True, True]
    groups = [e.group for e in buffer.episodes]
    assert groups[3] == "take 7"
    assert groups[4] == "episode 4"
    assert len(set(groups)) == 6  # takes of two datasets stay distinct
    assert np.array_equal(buffer.frames(buffer.episodes[2], "observation.images.side"), frames[0])
    assert np.array_equal(buffer.frames(buffer.episodes[5], "observation.images.front"), frames[1])
    assert np.array_equal(buffer.column("action"), action)
    assert [p.name for p in tmp_path.iterdir() if "append" in p.name or "before" in p.name] == []
    assert append(tmp_path / "new", [squares_copy]) == (6, 6)  # a missing buffer is created


def test_appending_keeps_embeddings_and_makes_the_score_stale(cli, squares_copy, trials, tiny_encoder_folder, tmp_path):
    score = (
        "score-dataset",
        squares_copy,
        "--encoder",
        tiny_encoder_folder,
        "--min-window",
        6,
        "--json",
        tmp_path / "s.json",
    )
    assert cli(*score)[0] == 0
    old = read_progress(open_buffer(squares_copy))["distance"]
    code, out, err = cli("append", squares_copy, trials)
    assert code == 0, err
    assert "2 episodes added; 6 in all" in out
    train = ("train-awr", squares_copy, "--policy", "pi0-tiny", "--output", tmp_path / "o")
    refused(cli(*train), "another state of its dataset", "srpo-robot score-dataset")
    assert cli(*score, "--skip-task", "go left")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["embedded_now"] == 2
    new = read_progress(open_buffer(squares_copy))["distance"]
    old_successes = slice(0, 44)  # the two old successes: distances to their ends, which have not changed
    assert np.array_equal(new[old_successes], old[old_successes], equal_nan=True)
    # a recorder continues from here
    record_squares(squares_copy, [("go right", 12, 0.8, True)])
    assert len(open_buffer(squares_copy).episodes) == 7
    assert cli(*score, "--skip-task", "go left")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["embedded_now"] == 1


def test_append_keeps_the_simulators_true_state(tmp_path):
    features = dataset_features({"front": (48, 48)}, ("x",), ("x",))
    features["truth.stage"] = {"dtype": "float32", "shape": (1,), "names": ["stage"]}
    for number in range(2):
        with Recorder(tmp_path / f"d{number}", 10.0, features, "mock") as recorder:
            recorder.begin()
            for t in range(8 + number):
                truth = {"truth.stage": np.array([t / 10 + number], dtype=np.float32)}
                image = np.full((48, 48, 3), 10 * t, dtype=np.uint8)
                recorder.add({"front": image}, np.array([t]), np.array([t]), "go", truth)
            recorder.end(True)
    append(tmp_path / "d0", [tmp_path / "d1"])
    stage = open_buffer(tmp_path / "d0").column("truth.stage").reshape(-1)
    assert stage == pytest.approx([t / 10 for t in range(8)] + [1 + t / 10 for t in range(9)])


def test_the_same_trials_are_not_appended_twice(squares_copy, trials, tmp_path):
    append(squares_copy, [trials / "dataset"])
    before = checksums(squares_copy)
    with pytest.raises(DatasetError, match="episode 0 is the same recording as .* episode 4; append it once"):
        append(squares_copy, [trials / "dataset"])
    assert checksums(squares_copy) == before


def test_a_refused_append_does_not_change_the_buffer(cli, squares_copy, trials, tmp_path):
    before = checksums(squares_copy)
    odd = dataset_features({"front": (48, 48)}, ("x", "y"), ("x", "y"))
    for name, fps, says in (("fewer", 10.0, "differ in the column 'observation.images.side'"), ("slow", 5.0, "5 fps")):
        with Recorder(tmp_path / name, fps, odd, "test") as recorder:
            recorder.begin()
            for t in range(4):
                image = np.full((48, 48, 3), t, dtype=np.uint8)
                recorder.add({"front": image}, np.zeros(2), np.zeros(2), "go right")
            recorder.end(True)
        refused(cli("append", squares_copy, tmp_path / name), says)
    bare = write_run(tmp_path / "bare", WORSE, "p")
    refused(cli("append", squares_copy, bare), "holds no recorded trials")
    refused(cli("append", squares_copy, tmp_path / "nowhere"), "is no folder")
    assert checksums(squares_copy) == before


def test_a_failed_append_is_undone_and_an_interrupted_one_refused(squares_copy, trials, tmp_path, monkeypatch):
    from srpo_robot.buffer import appending

    before = checksums(squares_copy)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(appending, "write_labels", full)
        with pytest.raises(OSError, match="No space"):
            append(squares_copy, [trials / "dataset"])
    assert checksums(squares_copy) == before
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    (tmp_path / ".data.before").mkdir()  # killed between the two renames
    with pytest.raises(DatasetError, match=r"\.data\.before is .* as it was before an append that was cut off"):
        append(squares_copy, [trials / "dataset"])


# --- rounds


def test_rounds_are_compared_with_the_first(cli, tmp_path):
    runs = [
        write_run(tmp_path / f"round_{n}", rows, f"outputs/r{n}") for n, rows in enumerate((WORSE, WORSE, [True] * 20))
    ]
    code, out, err = cli("rounds", *runs, "--json", tmp_path / "r.json")
    assert code == 0, err
    flat = " ".join(out.split())
    assert "A difference from round 0 is shown for round 2 (better)." in flat
    rows = json.loads((tmp_path / "r.json").read_text())["rounds"]
    assert [row["rate"]["successes"] for row in rows] == [4, 4, 20]
    interval = binomtest(4, 20).proportion_ci(method="wilson")
    assert (rows[0]["rate"]["low"], rows[0]["rate"]["high"]) == pytest.approx((interval.low, interval.high))
    assert "effect" not in rows[0]
    assert rows[2]["effect"]["difference"] == pytest.approx(0.8)
    assert rows[2]["p"] == pytest.approx(6 * 17 / 2**16)  # 16 wins in a row, second of all future rounds
    assert rows[1]["p"] == 1.0


def test_all_future_rounds_share_one_false_alarm_rate():
    levels = [0.05 / spent(1e-9, number) * 1e-9 for number in range(1, 2000)]
    assert sum(levels) == pytest.approx(0.05, rel=1e-3)
    assert sum(levels) < 0.05
    assert spent(0.4, 3) == 1.0


def test_one_round_or_equal_rounds_show_no_difference(cli, tmp_path):
    runs = [write_run(tmp_path / name, BETTER, name) for name in "ab"]
    assert "No round is shown to differ" in cli("rounds", *runs)[1]
    code, out, _ = cli("rounds", runs[0])
    assert code == 0
    assert "differ" not in out


def test_invalid_rounds_are_refused(cli, tmp_path):
    good = write_run(tmp_path / "good", WORSE, "a")
    refused(cli("rounds", good, study_of(tmp_path / "s", False, 20)), "holds 2 policies; a round is a run of one")
    refused(cli("rounds", good, write_run(tmp_path / "v", [None], "b")), "no trial that counts")
    refused(cli("rounds", good, write_run(tmp_path / "p", WORSE, "b", task="pear")), "different tasks")
    refused(cli("rounds", good, tmp_path / "nowhere"), "has no trials.jsonl")


@pytest.mark.parametrize("command", ["protocol", "compare", "append", "rounds"])
def test_every_command_has_help_with_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: srpo-robot {command}" in " ".join(out.split())
