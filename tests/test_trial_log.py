"""Tests of the log of a trial, including interrupted trials, and of the fault note."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest

from srpo_robot.arm.limits import Limited
from srpo_robot.errors import DatasetError
from srpo_robot.evaluation.runtime import Step
from srpo_robot.evaluation.trial_log import STEPS, TICKS, TrialLog, read_log
from srpo_robot.evaluation.trials import CUT_OFF, FAULT, clear_fault, note_fault, read_fault
from srpo_robot.records import ArmCommand, ArmState, Observation

TICK = np.dtype([("time_s", "f8"), ("sent_rad", "f8", (7,)), ("code", "i2")])
SIZE = {"front": (33, 48)}  # an odd height, although the codec needs even ones


def step(number: int, row: int = 0) -> Step:
    image = np.full((33, 48, 3), 10 * number % 256, dtype=np.uint8)
    state = ArmState(100.0 + 0.1 * number, np.full(7, 0.01 * number), 0.05)
    limited = Limited(ArmCommand(np.full(7, 0.02 * number), 0.06), ("joint_step",))
    requested = ArmCommand(np.full(7, 0.03 * number), 0.07)
    return Step(
        number=number,
        observation=Observation(state, requested, {"front": image}),
        requested=requested,
        limited=limited,
        chunk=2,
        row=row,
        limited_by=limited.limited_by,
    )


class Ticks:
    """Returns ten ticks per step, like a streamer at 100 Hz."""

    def __init__(self) -> None:
        self.at = 0

    def __call__(self) -> np.ndarray:
        ticks = np.zeros(10, TICK)
        ticks["time_s"] = 0.01 * np.arange(self.at, self.at + 10)
        ticks["sent_rad"] = np.arange(7)
        self.at += 10
        return ticks


def frames(path) -> list[np.ndarray]:
    film = av.open(str(path))
    try:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    finally:
        film.close()


def check(folder, steps: int) -> None:
    log = read_log(folder, STEPS)
    assert log["step"].tolist() == list(range(steps)) and log["chunk"].tolist() == [2] * steps
    assert log["asked_rad"] == pytest.approx(np.tile(0.03 * np.arange(steps)[:, None], 7))
    assert log["sent_rad"] == pytest.approx(np.tile(0.02 * np.arange(steps)[:, None], 7))
    assert log["reached_rad"] == pytest.approx(np.tile(0.01 * np.arange(steps)[:, None], 7))
    assert log["arm_s"] == pytest.approx(100.0 + 0.1 * np.arange(steps))
    assert log["limited_by"].tolist() == ["joint_step"] * steps
    ticks = read_log(folder, TICKS)
    assert ticks["time_s"] == pytest.approx(0.01 * np.arange(len(ticks["time_s"])))
    assert len(ticks["time_s"]) >= 10 * steps and ticks["sent_rad"][3].tolist() == list(range(7))


def test_an_ended_trial_is_parquet_and_videos(tmp_path):
    folder = tmp_path / "trials" / "000"
    with TrialLog(folder, SIZE, 10.0, Ticks()) as log:
        for number in range(25):
            log.add(step(number, row=-1 if number == 3 else 0))
    assert sorted(path.name for path in folder.iterdir()) == ["front.mp4", "steps.parquet", "ticks.parquet"]
    check(folder, 25)
    assert read_log(folder, STEPS)["late"].tolist() == [number == 3 for number in range(25)]
    film = frames(folder / "front.mp4")
    assert len(film) == 25 and film[0].shape == (32, 48, 3)
    assert film[20].mean() == pytest.approx(200, abs=4)


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from test_trial_log import SIZE, Ticks, step
from srpo_robot.evaluation.trial_log import TrialLog
log = TrialLog(Path({folder!r}), SIZE, 10.0, Ticks()).__enter__()
for number in range(45):
    log.add(step(number))
os.kill(os.getpid(), 9)
"""


def test_a_kill_loses_at_most_the_last_second(tmp_path):
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    check(tmp_path, 45)
    assert len(frames(tmp_path / "front.mp4")) >= 35


def test_a_truncated_line_or_tick_is_omitted(tmp_path):
    log = TrialLog(tmp_path, {}, 10.0, Ticks())
    log.__enter__()
    for number in range(4):
        log.add(step(number))
    log._files.close()
    for name in ("steps.jsonl", "ticks.npys"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
    assert read_log(tmp_path, STEPS)["step"].tolist() == [0, 1, 2]
    assert len(read_log(tmp_path, TICKS)["time_s"]) == 30


def test_a_full_disk_does_not_hide_the_first_error(tmp_path):
    with pytest.raises(RuntimeError, match="the first"), TrialLog(tmp_path / "x", {}, 10.0, Ticks()) as log:
        log.add(step(0))
        (tmp_path / "x" / "ticks.parquet").mkdir()  # the parquet cannot be written
        (tmp_path / "x" / "steps.parquet").mkdir()
        raise RuntimeError("the first")
    check(tmp_path / "x", 1)
    with pytest.raises(OSError), TrialLog(tmp_path / "y", {}, 10.0) as log:
        (tmp_path / "y" / "steps.parquet").mkdir()
        log.add(step(0))


def test_a_trial_without_a_step_has_no_log(tmp_path):
    with TrialLog(tmp_path, SIZE, 10.0):
        pass
    with pytest.raises(DatasetError, match="has no steps"):
        read_log(tmp_path, STEPS)


# --- the note of a fault


def test_a_fault_note_is_written_read_and_cleared(tmp_path):
    assert read_fault(tmp_path) == ""
    note_fault(tmp_path)
    assert read_fault(tmp_path).startswith(CUT_OFF)
    note_fault(tmp_path, "controller error C31", 4)
    assert read_fault(tmp_path).startswith("controller error C31 (") and "in trial 4)" in read_fault(tmp_path)
    assert json.loads((tmp_path / FAULT).read_text())["trial"] == 4
    clear_fault(tmp_path)
    clear_fault(tmp_path)
    assert read_fault(tmp_path) == "" and not list(tmp_path.iterdir())


def test_an_unreadable_note_is_still_a_fault(tmp_path):
    (tmp_path / FAULT).write_text("{")
    assert read_fault(tmp_path) == CUT_OFF


def test_a_failed_write_keeps_the_previous_note(tmp_path, monkeypatch):
    note_fault(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("srpo_robot.files.os.fsync", full)
    with pytest.raises(OSError):
        note_fault(tmp_path, "the disk is full")
    assert read_fault(tmp_path).startswith(CUT_OFF)
    assert [path.name for path in tmp_path.iterdir()] == [FAULT]
