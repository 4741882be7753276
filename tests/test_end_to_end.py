"""The loop on the mock arm with the real parts: record, score, train, run, and a second round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.evaluation.trials import read_trials
from srpo_robot.recipes import HardwareRecipe, load

SIZES = ("--episodes", "4", "--steps", "6", "--trials", "1")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that was interrupted with Ctrl-C while it trained, and called a second time."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "srpo_robot.cli", "demo", "--root", str(root), *SIZES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    metrics = root / "awr" / "metrics.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while first.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=120)
    finally:
        first.kill()
    assert first.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert second.returncode == 0, second.stderr
    assert "4 episodes are there." in second.stdout
    assert "These are numbers of a mock" in second.stderr
    return root


def test_an_interrupted_demo_goes_on_and_trains_every_step_once(demo):
    for scheme in ("awr", "uniform"):
        steps = [json.loads(line)["step"] for line in (demo / scheme / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3, 4, 5, 6]


def test_a_demo_of_other_sizes_is_not_mixed_in(demo, cli):
    refused(cli("demo", "--root", demo, "--episodes", 5), "another --root", "--episodes 4 --steps 6 --trials 1")


def test_demonstrations_are_labelled_by_physics_and_fail_on_purpose(demo):
    labels = [episode.success for episode in open_buffer(demo / "dataset").episodes]
    assert set(labels) == {True, False}


def test_the_page_is_one_file_that_explains_the_numbers(demo):
    page = (demo / "report.html").read_text()
    assert "numbers of a mock" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    for word in ("AWR", "SFT", "Wilson", "put the apple on the plate"):
        assert word in page


def test_trials_hold_verdict_layout_and_executed_actions_within_the_limits(demo):
    trial = read_trials(demo / "run_awr")[0]
    assert trial.success in (True, False)
    assert trial.layout
    buffer = open_buffer(demo / "run_awr" / "dataset")
    assert buffer.episodes[0].length == trial.steps
    assert buffer.episodes[0].success == trial.success
    limits = load(HardwareRecipe, "hardware", "mock").limits
    actions = buffer.column("action")
    assert np.isfinite(actions).all()
    for axis in range(3):
        assert actions[:, axis].min() >= limits.box_min_m[axis] - 1e-4
        assert actions[:, axis].max() <= limits.box_max_m[axis] + 1e-4
    assert actions[:, 3].min() >= limits.gripper_min_m - 1e-6
    assert actions[:, 3].max() <= limits.gripper_max_m + 1e-6
    assert np.abs(np.diff(actions[:, 3])).max() <= limits.max_gripper_speed_m_s / 10 + 1e-6


def test_the_second_round_trials_join_the_buffer_and_only_they_are_embedded(demo, cli, tmp_path):
    before = len(open_buffer(demo / "dataset").episodes)
    command = ("run", "--policy", demo / "awr", "--task", "put-apple", "--trials", 2, "--output", tmp_path / "round2")
    code, out, err = cli(*command, "--record-to", demo / "dataset", "--json", tmp_path / "run.json")
    assert code == 0, err
    assert "95 % interval (Wilson)" in " ".join(out.split())
    assert len(json.loads((tmp_path / "run.json").read_text())["trials"]) == 2
    assert len(open_buffer(demo / "dataset").episodes) == before + 2
    result = cli("train-awr", demo / "dataset", "--policy", "pi0-tiny", "--output", tmp_path / "too_early")
    refused(result, "another state", "srpo-robot score-dataset")
    code, out, err = cli("score-dataset", demo / "dataset", "--json", tmp_path / "score.json")
    assert code == 0, err
    assert json.loads((tmp_path / "score.json").read_text())["embedded_now"] == 2
    # the same run called again has nothing left to do, and a different run is refused
    assert cli(*command, "--record-to", demo / "dataset")[0] == 0
    assert len(read_trials(tmp_path / "round2")) == 2
    assert len(open_buffer(demo / "dataset").episodes) == before + 2
    refused(cli(*command, "--seed", 5), "holds another run")


def test_a_checkpoint_without_its_weights_is_refused(demo, cli, tmp_path):
    import shutil

    bare = shutil.copytree(demo / "awr" / "checkpoints" / "000006", tmp_path / "bare")
    (bare / "pretrained_model" / "model.safetensors").unlink()
    result = cli("run", "--policy", bare, "--task", "put-apple", "--output", tmp_path / "o")
    refused(result, "model.safetensors")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('["front", "wrist"]', '["front"]'), "trained with cameras ['front', 'wrist'], this task has ['front']"),
        (('"tcp"', '"joints"'), "the checkpoint's actions are tcp.x, tcp.y, tcp.z, gripper, this task's joint1.pos"),
    ],
)
def test_a_checkpoint_for_another_task_is_refused(demo, tmp_path, cli, monkeypatch, change, says):
    from srpo_robot.recipes import packaged_folder

    (tmp_path / "datasets").mkdir()
    text = (packaged_folder("datasets") / "put_apple.toml").read_text()
    (tmp_path / "datasets" / "put_apple.toml").write_text(text.replace(*change))
    monkeypatch.chdir(tmp_path)
    result = cli("run", "--policy", demo / "awr", "--task", "put-apple", "--output", tmp_path / "o")
    refused(result, says)
    assert not (tmp_path / "o").exists()


def test_success_only_weights_train_too(demo, cli, tmp_path):
    command = ("train-awr", demo / "dataset", "--policy", "pi0-tiny", "--weights", "success", "--steps", 2)
    code, out, err = cli(*command, "--output", tmp_path / "bc")
    assert code == 0, err
    assert "failure 0.00" in out
    refused(cli(*command, "--output", tmp_path / "bc"), "--resume")
