"""Tests of the soak script: a short run as a user starts it, and checks that detect lost data."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from srpo_robot.evaluation.trials import append_trial, note_fault
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import Trial

pytestmark = pytest.mark.real_time

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "soak.py"


@pytest.fixture
def soak(monkeypatch) -> Any:
    """The soak script, imported as a module."""
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "soak", module)
    spec.loader.exec_module(module)
    return module


def test_a_killed_run_loses_nothing_and_the_next_run_needs_confirmation(tmp_path):
    faults = ("--fault", "nothing", "--fault", "kill -9", "--runs", "2", "--minutes", "3", "--seed", "1")
    options = ("--keep", str(tmp_path / "kept"), "--json", str(tmp_path / "soak.json"))
    process = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *faults, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=280,
    )
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    counts = json.loads((tmp_path / "soak.json").read_text())
    assert counts["problems"] == []
    assert {name: count for name, count in counts["faults"].items() if count} == {"kill -9": 1, "nothing": 1}
    assert process.stdout.index("kill -9") < process.stdout.index("nothing")  # the second run was confirmed
    early = len(counts["by_themselves"])  # a busy machine
    assert (counts["runs"], counts["refused"]) == (2 + early, 1 + early)
    assert (counts["trials"], counts["episodes"]) == (1, 1)
    assert counts["steps"] > 10 and counts["ticks"] > counts["steps"] and counts["frames"] > 0


# --- its checks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checks(soak, tmp_path) -> Any:
    """The script's checks, on a folder with two trials and a log of three steps, without a lab."""
    instance = soak.Soak.__new__(soak.Soak)
    instance.counts = soak.Counts()
    instance._output, instance._journal = tmp_path, b""
    arm = load(HardwareRecipe, "hardware", "xarm7")
    assert arm.controller is not None
    nowhere = replace(arm.controller, address="127.0.0.1", command_port=1)
    instance._hardware = replace(arm, cameras=(), judge_url="http://127.0.0.1:1", controller=nowhere)
    instance._task = load(TaskRecipe, "datasets", "put-apple")
    instance._read_dataset = lambda: (2, 10, "")
    for number in range(2):
        append_trial(
            tmp_path,
            Trial(trial=number, task="t", policy="p", seed=0, success=True, steps=3, seconds=0.3, episode_index=number),
        )
    folder = tmp_path / "trials" / "002"
    folder.mkdir(parents=True)
    (folder / "steps.jsonl").write_text("".join(f'{{"step": {k}}}\n' for k in range(3)))
    with (folder / "ticks.npys").open("wb") as file:
        np.save(file, np.array([(0.0,), (0.01,)], dtype=[("time_s", "f8")]))
    return instance


def test_complete_data_is_no_problem(checks):
    folder = checks._output / "trials" / "002"
    for _ in range(2):
        checks._check_kept("x", folder, 3)
    assert checks.counts.problems == []
    assert (checks.counts.trials, checks.counts.episodes, checks.counts.steps) == (2, 2, 6)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c, folder: (c._output / "trials.jsonl").write_text(""), "the journal lost rows"),
        (lambda c, folder: setattr(c, "_read_dataset", lambda: (1, 5, "")), "2 trials have an episode, the dataset 1"),
        (lambda c, folder: setattr(c, "_read_dataset", lambda: (0, 0, "cut")), r"the dataset 0 \(cut\)"),
        (lambda c, folder: (folder / "steps.jsonl").write_text('{"step": 0}\n{"st'), "3 steps were logged, 1 are left"),
        (lambda c, folder: (folder / "steps.jsonl").unlink(), "the trial's log is unreadable"),
    ],
)
def test_lost_data_is_a_problem(checks, spoil, says):
    folder = checks._output / "trials" / "002"
    checks._check_kept("x", folder, 3)
    spoil(checks, folder)
    checks._check_kept("x", folder, 3)
    assert any(re.search(says, problem) for problem in checks.counts.problems), checks.counts.problems


def test_a_missing_fault_note_or_refusal_is_a_problem(checks, soak, monkeypatch):
    checks._check_confirmation("x", True)
    assert checks.counts.problems == ["run 0 (x): a fault is not noted for the next run"]
    checks.counts.problems.clear()
    note_fault(checks._output)
    checks._check_confirmation("x", False)
    assert checks.counts.problems == ["run 0 (x): a fault is noted for the next run"]
    checks.counts.problems.clear()
    checks._check_confirmation("x", True)
    assert checks.counts.problems == [] and checks.counts.refused == 1


def test_every_fault_is_drawn_before_one_comes_again(soak, tmp_path, monkeypatch):
    """Replaces the lab, the server and the runs by stubs."""
    names = list(soak.FAULTS)
    order: list[str] = []

    class Idle:
        def __init__(self, *_, **__):
            self.counts, self.url, self.plant = soak.Counts(), "", None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def check(self):
            pass

        def run(self, name, at_step):
            assert 1 <= at_step <= soak._LAST_STEP
            self.counts.runs += 1
            if self.counts.runs == 3:
                return False  # the run ended without the fault
            self.counts.faults[name] += 1
            order.append(name)
            return True

    for part in ("MockLab", "PolicyServer", "Soak", "ScriptedPolicy"):
        monkeypatch.setattr(soak, part, Idle)
    monkeypatch.setattr(soak, "describe", lambda *_: None)
    counts = soak.soak(60.0, 2 * len(names), names, 1, tmp_path, soak.Console(quiet=True))
    assert counts.runs == 2 * len(names) + 1
    assert Counter(order[: len(names)]) == Counter(order[len(names) :]) == Counter(names)
