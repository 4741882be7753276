"""The command line as a user meets it: exit codes, one-line errors, and nothing lost."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import real_data, record_squares, refused
from test_buffer import checksums
from typer.main import get_command

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.app import app
from srpo_robot.cli.labelling import film_strip, half_blocks, label_by_keys, shrink
from srpo_robot.progress.pipeline import read_progress

COMMANDS = tuple(get_command(app).commands)  # type: ignore[attr-defined]


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: srpo-robot {command}" in " ".join(out.split())


def test_help_is_quick_because_no_room_is_imported():
    script = (
        "import sys\nimport srpo_robot.cli.app\n"
        "assert not {'torch', 'lerobot', 'mujoco', 'matplotlib'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_an_unknown_option_is_usage():
    result = subprocess.run(
        [sys.executable, "-m", "srpo_robot.cli", "score-dataset", "--speed", "9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "--speed" in result.stderr


# --- init


def test_init_hands_out_recipes_that_are_found_first(cli, tmp_path, monkeypatch):
    assert cli("init", tmp_path / "lab")[0] == 0
    names = {str(path.relative_to(tmp_path / "lab")) for path in (tmp_path / "lab").rglob("*.toml")}
    assert {"datasets/put_apple.toml", "policies/pi0_tiny.toml", "hardware/mock.toml"} <= names
    refused(cli("init", tmp_path / "lab"), "already has datasets, policies, hardware", "nothing was changed")
    path = tmp_path / "lab" / "datasets" / "put_apple.toml"
    path.write_text(path.read_text().replace("time_limit_s", "time_limits"))
    monkeypatch.chdir(tmp_path / "lab")
    result = cli("record", "--task", "put-apple", "--episodes", 1, "--root", tmp_path / "d")
    refused(result, "unknown key 'time_limits'; did you mean 'time_limit_s'?")


# --- datasets that cannot be scored


def test_a_folder_that_is_not_a_dataset(cli, tmp_path):
    refused(cli("score-dataset", tmp_path), "no LeRobot dataset")
    refused(cli("score-dataset", tmp_path / "nowhere"), "is no folder")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    refused(cli("score-dataset", tmp_path), "v2.1", "lerobot.scripts.convert_dataset_v21_to_v30")


def test_unlabelled_episodes(cli, tmp_path):
    data = shutil.copytree(real_data("bridge_mini"), tmp_path / "bridge")
    refused(cli("score-dataset", data), "25 of 25 episodes are unlabelled", "--csv FILE", "--all-success")
    assert not (data / "srpo").exists()


def test_a_task_without_success(cli, tmp_path):
    root = record_squares(tmp_path / "d", [("go right", 12, 1.0, True), ("go left", 12, 0.2, False)])
    refused(cli("score-dataset", root), "'go left' has no success", "--skip-task 'go left'")
    code, out, err = cli("score-dataset", root, "--skip-task", "go left")
    assert code == 0
    assert "left out" in out
    assert "undefined (its task was left out" in err


def test_an_unknown_camera_window_encoder_or_device(cli, squares_copy):
    refused(cli("score-dataset", squares_copy, "--camera", "top"), "no camera 'top'", "front, side")
    refused(cli("score-dataset", squares_copy, "--windows", "sparse"), "dense, stride:K", "nested")
    refused(cli("score-dataset", squares_copy, "--encoder", "vjepa9"), "embedded")
    refused(cli("score-dataset", squares_copy, "--device", "quantum"), "no device 'quantum'", "--device cpu")


def test_an_undecodable_video_names_episode_and_frame_and_loses_nothing(cli, squares_copy, tiny_encoder_folder):
    path = sorted((squares_copy / "videos" / "observation.images.front").rglob("*.mp4"))[3]
    path.write_bytes(path.read_bytes()[:700])
    before = checksums(squares_copy)
    options = ("--encoder", tiny_encoder_folder, "--min-window", 6)
    refused(cli("score-dataset", squares_copy, *options), "episode 3", "frame 0", "--skip-bad-episodes")
    assert (
        len(list((squares_copy / "srpo" / "embeddings.zarr").glob("*/zarr.json"))) == 3
    )  # finished embeddings are kept
    code, _, err = cli("score-dataset", squares_copy, *options, "--skip-bad-episodes")
    assert code == 0
    assert "left out episode 3" in err
    assert checksums(squares_copy) == before


# --- scoring


def test_scoring_writes_tables_picture_and_summary(cli, squares_copy, tiny_encoder_folder, tmp_path):
    before = checksums(squares_copy)
    path = tmp_path / "summary.json"
    code, out, _ = cli(
        "score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6, "--json", path
    )
    assert code == 0
    assert "4 episodes, 84 frames, 4 episodes embedded now" in out
    for name in ("progress.parquet", "curves.png"):
        assert (squares_copy / "srpo" / name).stat().st_size > 0
    assert not (squares_copy / "srpo" / "advantage.parquet").exists()  # only `weights` and `train-awr` write it
    task = json.loads(path.read_text())["tasks"]["go right"]
    assert (task["episodes"], task["successes"], task["clusters"]) == (4, 2, [2])
    assert task["final_progress_success"] == 1.0
    assert 0 <= task["final_progress_failure"] < 1
    assert checksums(squares_copy) == before


def test_the_output_says_that_random_weights_are_random(cli, squares_copy):
    code, _, err = cli("score-dataset", squares_copy, "--encoder", "embedded-random", "--windows", "nested")
    assert code == 0
    assert "random weights" in err


def test_the_default_encoder_names_its_training_data(cli, squares_copy):
    code, _, err = cli("score-dataset", squares_copy, "--windows", "nested")
    assert code == 0
    assert "the mock cell alone" in err


def test_episodes_shorter_than_the_first_window_are_named(cli, squares_copy, tiny_encoder_folder):
    code, _, err = cli("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 19)
    assert code == 0
    assert "progress of 2 episodes is undefined" in err
    assert "[1, 3]" in err  # 20 frames have one window that ends at frame 19, 18 frames have none


def test_a_second_profile_or_value_embeds_nothing_and_shows_where_it_disagrees(cli, squares_copy, tiny_encoder_folder):
    score = ("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)
    assert cli(*score)[0] == 0
    code, out, err = cli(*score, "--profile", "loo", "--value", "knn-time", "--compare", "paper,loo")
    assert code == 0, err
    assert "0 episodes embedded now" in out
    assert "ranks apart" in out
    table = read_progress(open_buffer(squares_copy))
    assert table.metadata["config"]["profile"] == "loo"
    assert not np.array_equal(table["value"], table["progress"])
    refused(cli(*score, "--value", "gut-feeling"), "no value 'gut-feeling'", "knn-time")
    refused(cli(*score, "--references", "best"), "dbscan-auto", "knn3")
    refused(cli(*score, "--compare", "loo"), "two profiles")


def test_cameras_are_combined_and_the_store_lists_its_entries(cli, squares_copy, tiny_encoder_folder):
    score = ("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)
    distances = []
    for cameras in (("front",), ("side",), ("front", "side")):
        assert cli(*score, *(word for name in cameras for word in ("--camera", name)))[0] == 0
        distances.append(read_progress(open_buffer(squares_copy))["distance"])
    # episode 0 is a success: the distances up to its own end
    front, side, combined = (values[np.isfinite(distances[0])][:18] for values in distances)
    scored_frames = read_progress(open_buffer(squares_copy))["scored"][np.isfinite(distances[0])][:18]
    assert combined[scored_frames] == pytest.approx(np.hypot(front, side)[scored_frames], rel=1e-5, abs=1e-6)
    code, out, _ = cli("store", squares_copy)
    assert code == 0
    assert "0 entries" in out
    path = sorted((squares_copy / "videos" / "observation.images.side").rglob("*.mp4"))
    shutil.copy(path[0], path[1])  # not the video that was embedded
    code, out, _ = cli("store", squares_copy, "--prune")
    assert code == 0
    assert "1 entries" in out
    assert "Removed 1 entries" in out


def test_a_plan_embeds_nothing(cli, squares_copy, tiny_encoder_folder):
    code, out, _ = cli("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6, "--plan")
    assert code == 0
    assert "TFLOP" in out
    assert not list((squares_copy / "srpo" / "embeddings.zarr").glob("*/zarr.json"))


def test_references_of_another_dataset(cli, squares_copy, tiny_encoder_folder, tmp_path):
    failures = record_squares(tmp_path / "f", [("go right", 16, 0.2, False), ("go right", 14, 0.4, False)])
    score = ("score-dataset", failures, "--encoder", tiny_encoder_folder, "--min-window", 6)
    refused(cli(*score), "no success", "--reference DATASET")
    code, _, err = cli(*score, "--reference", squares_copy)
    assert code == 0, err
    assert np.isfinite(read_progress(open_buffer(failures))["progress"]).all()


def test_two_processes_give_the_same_scores_as_one(squares_copy, tiny_encoder_folder, cli, tmp_path):
    alone = shutil.copytree(squares_copy, tmp_path / "alone")
    score = ("--encoder", str(tiny_encoder_folder), "--min-window", "6", "--device", "cpu")
    assert cli("score-dataset", alone, *score)[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, "srpo_robot.cli", "score-dataset", str(squares_copy), *score]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("4 episodes embedded now") == 1
    by_one, by_two = read_progress(open_buffer(alone)), read_progress(open_buffer(squares_copy))
    assert by_two.metadata["content"] == by_one.metadata["content"]


# --- training


def test_training_without_action(cli, tmp_path):
    data = shutil.copytree(real_data("table_tidy"), tmp_path / "tidy")
    result = cli("train-awr", data, "--policy", "pi0-tiny", "--output", tmp_path / "out", "--weights", "uniform")
    refused(result, "action")
    assert not (tmp_path / "out").exists()


def test_training_on_no_score_or_a_stale_one(cli, squares_copy, tiny_encoder_folder, tmp_path):
    train = ("train-awr", squares_copy, "--policy", "pi0-tiny", "--output", tmp_path / "out")
    refused(cli(*train), "progress.parquet does not exist", "srpo-robot score-dataset")
    assert cli("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)[0] == 0
    (tmp_path / "labels.csv").write_text("episode_index,success\n2,true\n")
    assert cli("label", squares_copy, "--csv", tmp_path / "labels.csv")[0] == 0
    refused(cli(*train), "another state of its labels", "srpo-robot score-dataset")
    assert not (tmp_path / "out").exists()


def test_invalid_training_options(cli, squares_copy, tiny_encoder_folder, tmp_path):
    assert cli("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)[0] == 0
    train = ("train-awr", squares_copy, "--output", tmp_path / "out")
    refused(cli(*train, "--policy", "pi0-tiny", "--beta", "-1"), "must be positive")
    refused(cli(*train, "--policy", "pi0-tny"), "did you mean 'pi0-tiny'")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep")
    refused(cli(*train, "--policy", "pi0-tiny", "--accept-audit"), "exists", "--resume", "--output")
    assert (tmp_path / "out" / "notes.txt").read_text() == "keep"


# --- running


def test_an_unknown_arm_or_task(cli, tmp_path):
    command = ("run", "--policy", tmp_path, "--output", tmp_path / "o")
    refused(cli(*command, "--arm", "xarm8", "--task", "put-apple"), "no recipe 'xarm8' in hardware/", "mock")
    refused(
        cli(*command, "--arm", "mock", "--task", "fold-laundry"), "no recipe 'fold-laundry' in datasets/", "put-apple"
    )
    assert not (tmp_path / "o").exists()


def test_a_folder_that_is_not_a_checkpoint(cli, tmp_path):
    result = cli("run", "--policy", tmp_path / "nothing", "--task", "put-apple", "--output", tmp_path / "o")
    refused(result, "nothing")
    assert not (tmp_path / "o").exists()


# --- labels


def test_labels_by_csv_and_by_rule(cli, tmp_path):
    data = shutil.copytree(real_data("bridge_mini"), tmp_path / "bridge")
    before = checksums(data)
    (tmp_path / "labels.csv").write_text("episode_index,success\n0,false\n")
    assert cli("label", data, "--csv", tmp_path / "labels.csv")[0] == 0
    code, out, _ = cli("label", data, "--all-success")
    assert code == 0
    assert "unlabelled" in out
    labels = [e.success for e in open_buffer(data).episodes]
    assert labels == [False] + [True] * 24
    assert checksums(data) == before


def test_labelling_by_keys_needs_a_terminal(cli, squares_copy, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    refused(cli("label", squares_copy, "--relabel"), "needs a terminal", "--csv")
    refused(cli("label", squares_copy, "--all-success", "--csv", "x.csv"), "exclude each other")


def test_keys_label_go_back_skip_and_quit_and_each_answer_is_kept(squares_copy):
    buffer = open_buffer(squares_copy)
    keys, strips = iter("f s?b f q"), []
    answers = label_by_keys(
        buffer,
        list(buffer.episodes),
        buffer.camera(None),
        lambda: next(keys),
        lambda e, f: strips.append((e.index, f.shape)),
    )
    # 0: f | 1: skip | 2: s | 3: ? asks again, then b | 2: skip | 3: f | then nothing is left
    assert answers == {0: False, 2: True, 3: False}
    assert [index for index, _ in strips] == [0, 1, 2, 3, 3, 2, 3]
    assert strips[0][1] == (7, 48, 48, 3)
    assert [e.success for e in open_buffer(squares_copy).episodes] == [False, True, True, False]


def test_the_last_frame_is_always_in_the_strip():
    frames = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)
    assert film_strip(frames)[-1, 0, 0, 0] == 29
    assert len(film_strip(frames[:2])) == 2


def test_pictures_in_the_terminal_carry_their_colours():
    image = np.zeros((4, 3, 3), dtype=np.uint8)
    image[0] = (255, 0, 0)
    image[3] = (0, 0, 255)
    text = half_blocks(image)
    assert text.plain == "▀▀▀\n▀▀▀\n"
    first = text.spans[0].style
    assert "#ff0000" in str(first)
    assert "#000000" in str(first)
    assert shrink(image, 2, 6).shape == (2, 6, 3)


def test_a_typo_is_answered_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "encoder").mkdir()
    options = (
        *("--encoder vjepa3", f"--encoder {tmp_path / 'encoder'}", "--profile srpo", "--windows stride"),
        *("--window-shape suffix", "--frames-per-clip 7", "--references knn4", "--value q", "--device gpu"),
        *("--dtype int4", "--attention flex", "--compare paper,srpo", "--windows nested --profile siirl"),
    )
    commands = [["score-dataset", "nowhere"], *(["score-dataset", str(tmp_path), *o.split()] for o in options)]
    for name in ("audit", "benchmark-progress"):
        bad_options = ("--windows stride", "--encoder vjepa3", "--device gpu", "--dtype int4")
        commands += [[name, str(tmp_path), *o.split()] for o in bad_options]
    script = (
        "import json, sys\n"
        "from srpo_robot.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['srpo-robot', *command]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2, command\n"
        "    heavy = {'torch', 'lerobot', 'zarr', 'scipy', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
