"""The mock lab: its recipe, its judge, its command and its cleanup."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from srpo_robot.arm.cameras import Cameras
from srpo_robot.cli import mock_lab
from srpo_robot.cli.mock_lab import _privileges
from srpo_robot.errors import ArmError, RecipeError, UsageError
from srpo_robot.evaluation.operator import Judge
from srpo_robot.mock import tasks
from srpo_robot.mock.lab import MockLab
from srpo_robot.mock.objects import THINGS
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, dump, load

pytestmark = pytest.mark.real_time

CELL = load(HardwareRecipe, "hardware", "mock")
XARM = load(HardwareRecipe, "hardware", "xarm7")
TASK = load(TaskRecipe, "datasets", "put-apple")


@pytest.fixture
def lab() -> Iterator[MockLab]:
    with MockLab(CELL, TASK, seed=3) as running:
        yield running
    threads = [t.name for t in threading.enumerate() if t.name in ("xarm-controller", "mock-cameras", "http-server")]
    assert not threads


def test_its_recipe_points_at_it_and_survives_toml(lab, tmp_path):
    recipe = lab.recipe(XARM)
    assert recipe.kind == "xarm7" and recipe.controller is not None
    assert (recipe.controller.address, recipe.controller.command_port) == (
        lab.controller.host,
        lab.controller.command_port,
    )
    assert recipe.limits == CELL.limits and recipe.home_rad == CELL.home_rad
    path = tmp_path / "lab.toml"
    path.write_text(dump(recipe))
    assert load(HardwareRecipe, "hardware", str(path)) == recipe


def test_recipes_survive_toml(tmp_path):
    for recipe in (CELL, XARM):
        path = tmp_path / "x.toml"
        path.write_text(dump(recipe))
        assert load(HardwareRecipe, "hardware", str(path)) == recipe


def test_its_cameras_open_like_any_camera(lab):
    with Cameras(lab.recipe(XARM).cameras) as cameras:
        assert {name: frame.image.shape for name, frame in cameras.read(10.0).items()} == {
            camera.name: (camera.height_px, camera.width_px, 3) for camera in CELL.cameras
        }


def test_the_judge_sets_the_table_and_leaves_the_arm_alone(lab):
    judge = Judge(lab.judge.url)
    before = lab.controller.arm_state().joints_rad
    assert judge.lay_out(11) == json.loads(json.dumps(tasks.layout(TASK, 11).as_json()))
    with lab.plant.lock:
        facts = lab.plant.sim.facts()
    for item in tasks.layout(TASK, 11).objects:
        assert facts.objects_m[item.name][:2] == pytest.approx([item.x_m, item.y_m], abs=2e-3)
    assert lab.controller.arm_state().joints_rad == pytest.approx(before, abs=2e-3)


def test_the_judge_decides_by_physics(lab):
    judge = Judge(lab.judge.url)
    judge.lay_out(5)
    assert judge.succeeded() is False
    plate = tasks.layout(TASK, 5).plate_m
    with lab.plant.lock:  # a hand puts the apple there
        lab.plant.sim.move_object("apple", np.array([*plate, 0.02 + THINGS["apple"].rest_m]))
    stop = threading.Event()
    for _ in range(600):
        if judge.succeeded():
            break
        stop.wait(0.05)
    assert judge.succeeded() is True


@pytest.mark.parametrize(("path", "body", "status"), [("/reset", b"{}", 400), ("/reset", b"x", 400), ("/x", b"", 404)])
def test_the_judge_refuses_unknown_requests(lab, path, body, status):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(lab.judge.url + path, data=body, timeout=10)
    assert refusal.value.code == status
    refusal.value.close()


def test_bad_input():
    with pytest.raises(RecipeError, match="needs one of kind 'mock'"):
        MockLab(XARM, TASK)
    with MockLab(CELL, TASK) as lab, pytest.raises(RecipeError, match="has no \\[controller\\]"):
        lab.recipe(CELL)
    with MockLab(CELL, TASK) as lab, pytest.raises(ArmError, match="cannot listen on"):
        MockLab(CELL, TASK, host=lab.controller.host).__enter__()


def test_a_privileged_port_without_the_right(monkeypatch):
    error = ArmError("cannot listen on 127.0.0.1:502 (Permission denied)")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = _privileges(502, error)
    assert (
        isinstance(answer, UsageError)
        and "leave --port out" in str(answer)
        and "unprivileged_port_start=502" in str(answer)
    )
    assert _privileges(0, error) is error and _privileges(5020, error) is error
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert _privileges(502, error) is error


def test_the_command_refuses(cli, tmp_path):
    own_recipe = tmp_path / "mine.toml"
    own_recipe.write_text("name = 'my arm'\n")
    refused(cli("mock-lab", "--task", "put-apple", "--recipe", own_recipe), "exists and is no mock lab's")
    assert own_recipe.read_text() == "name = 'my arm'\n"
    refused(cli("mock-lab", "--task", "put-apple", "--recipe", tmp_path / "lab"), "is no .toml")
    refused(cli("mock-lab", "--task", "put-aple", "--recipe", tmp_path / "lab.toml"), "did you mean 'put-apple'")
    refused(cli("mock-lab", "--task", "put-apple", "--recipe", tmp_path / "x.toml", "--host", "10.0.0.1"), "loopback")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def start_lab(recipe: Path) -> subprocess.Popen[str]:
    """Starts the command in its own process."""
    command = [sys.executable, "-m", "srpo_robot.cli", "mock-lab", "--task", "put-apple", "--recipe", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output_until_open(lab: subprocess.Popen[str]) -> str:
    """Returns the output of the command up to the line that says that the lab is open."""
    assert lab.stdout is not None
    text = ""
    for line in lab.stdout:
        text += line
        if "Ctrl-C closes the lab" in line:
            return text
    raise AssertionError(text)


def end(lab: subprocess.Popen[str]) -> tuple[int, str]:
    """Sends Ctrl-C. Returns the exit code and the rest of the output."""
    lab.send_signal(signal.SIGINT)
    output, _ = lab.communicate(timeout=60)
    return lab.returncode, output


def test_the_command_prints_the_next_command_and_cleans_up(tmp_path):
    recipe = tmp_path / "lab.toml"
    lab = start_lab(recipe)
    try:
        text = output_until_open(lab)
        assert f"srpo-robot run --arm {recipe} --task put-apple --policy http://127.0.0.1:" in text
        hardware = load(HardwareRecipe, "hardware", str(recipe))
        assert hardware.controller is not None and hardware.judge_url
        ports = [(hardware.controller.address, hardware.controller.command_port)]
        ports += [("127.0.0.1", int(port)) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", text)]
        for place in ports:
            with socket.create_connection(place, timeout=10):
                pass
    finally:
        code, output = end(lab)
    assert code == 0 and "closed" in output
    assert not list(tmp_path.iterdir())
    for place in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(place) != 0


def test_ctrl_c_ends_it_as_soon_as_it_is_offered(cli, monkeypatch, tmp_path):
    lines = list[str]()

    def hear(text: str) -> None:
        lines.append(text)
        if "Ctrl-C" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(mock_lab, "say", hear)
    code, _, err = cli("mock-lab", "--task", "put-apple", "--recipe", tmp_path / "lab.toml")
    assert code == 0, err
    assert "closed" in lines[-1] and not list(tmp_path.iterdir())
