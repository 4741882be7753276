"""Runs the scripts that make data in the mock cell and time it. Sizes are as small as possible."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.mock.tasks import TASKS
from srpo_robot.mock.truth import read_truth

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_one_command_makes_one_dataset_of_all_five_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, report = tmp_path / "demo", tmp_path / "made.json"
    run(monkeypatch, "make_demo_data.py", root, "--episodes", 1, "--failure-rate", 0, "--together", "--json", report)
    buffer = open_buffer(root)
    totals = json.loads(report.read_text())
    assert list(totals["tasks"]) == list(TASKS) and totals["total"]["episodes"] == 5 == len(buffer.episodes)
    assert len({episode.task for episode in buffer.episodes}) == 5
    assert buffer.episodes[-1].task.startswith("select the ")
    truth = read_truth(buffer)
    for episode, score in zip(buffer.episodes, truth.score, strict=True):
        assert episode.success and score[-1] >= 0.95, episode.task
    with pytest.raises(UsageError, match="is not empty; give a new folder"):
        run(monkeypatch, "make_demo_data.py", root, "--episodes", 1)


def test_the_same_seed_makes_the_same_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--episodes", 1, "--failure-rate", 1, "--seed", 5, "--tasks", "fold-towel")
    for name in ("one", "two"):
        run(monkeypatch, "make_demo_data.py", tmp_path / name, *options)
    first, second = (open_buffer(tmp_path / name / "fold-towel").column("truth.state") for name in ("one", "two"))
    assert first.shape == second.shape and (first == second).all()


def test_an_unknown_task_names_the_five_and_records_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="put-apple, put-pear, wipe-board, fold-towel, select-poker"):
        run(monkeypatch, "make_demo_data.py", tmp_path / "demo", "--tasks", "put-apple", "fold-shirt")
    assert not (tmp_path / "demo").exists()


def test_the_cell_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "cell.json"
    run(monkeypatch, "bench_cell.py", "--tasks", "wipe-board", "--size", 32, "--episodes", 1, "--json", report)
    result = json.loads(report.read_text())
    (row,) = result["tasks"]
    assert row["task"] == "wipe-board" and result["pairs_per_s"] == row["pairs_per_s"] > 0
    assert row["physics_steps_per_s"] > 0 and row["physics_steps_per_cpu_s"] > 0
