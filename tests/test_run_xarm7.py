"""Tests of `srpo-robot run` with the real driver and the mock lab: end to end, with a person, and with faults."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from conftest import refused
from test_mock_lab import CELL, TASK, XARM, end, output_until_open, start_lab

from srpo_robot.arm.actions import TCP_NAMES
from srpo_robot.arm.cameras import Cameras
from srpo_robot.cli import running, sessions
from srpo_robot.cli.mock_lab import ScriptedPolicy
from srpo_robot.evaluation.trial_log import STEPS, TICKS, TrialLog, read_log
from srpo_robot.evaluation.trials import FAULT, read_fault, read_trials
from srpo_robot.mock.lab import MockLab
from srpo_robot.recipes import dump
from srpo_robot.records import ActionChunk, Observation

pytestmark = pytest.mark.real_time

HOME_M = np.array([0.40, 0.0, 0.25, 0.085])


@dataclass
class Nudge:
    """Moves a little down and sideways for `steps` steps, then ends. `on` is called during the third step."""

    on: Callable[[], object] = lambda: None
    steps: int = 6
    name: str = "nudge"
    row: np.ndarray = field(default_factory=lambda: HOME_M - [0.0, 0.02, 0.02, 0.0])
    calls: int = 0

    def reset(self, seed: int) -> None:
        self.calls = 0

    def act(self, observation: Observation) -> ActionChunk | None:
        self.calls += 1
        if self.calls == 3:
            self.on()
        return ActionChunk(self.row[None], TCP_NAMES) if self.calls <= self.steps else None


@dataclass
class Bench:
    """A lab in this process, and `srpo-robot run` on it with a policy that the test provides."""

    lab: MockLab
    folder: Path
    cli: Callable[..., tuple[int, str, str]]
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.output = self.folder / "run"
        self.recipe = self.folder / "lab.toml"
        self.recipe.write_text(dump(self.lab.recipe(XARM)))

    def run(self, policy: object, *options: object, trials: int = 1) -> tuple[int, str, str]:
        self.patch.setattr(running, "check_policy", lambda *_: None)
        self.patch.setattr(running, "load_any_policy", lambda *_: policy)
        common = ("--arm", self.recipe, "--task", "put-apple", "--policy", "test", "--output", self.output)
        return self.cli("run", *common, "--trials", trials, *options)

    def faulted(self, result: tuple[int, str, str], says: str, steps: int) -> None:
        """Asserts exit code 1, one error line, a note for the next run, a readable log and an arm at rest."""
        code, _, err = result
        assert code == 1, err
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and says in lines[0] and "Traceback" not in err, err
        assert says in read_fault(self.output) and "in trial 0" in read_fault(self.output)
        log = read_log(self.output / "trials" / "000", STEPS)
        assert len(log["step"]) >= steps
        assert not np.any(self.lab.controller.arm_state().velocity_rad_s)
        refused(self.run(Nudge()), "nobody has confirmed that the fault is over")

    def works(self, *options: object) -> str:
        """Asserts that the next run succeeds after a person's confirmation. Returns its output."""
        code, out, err = self.run(Nudge(), "--confirm-fault", *options)
        assert code == 0, err
        assert not (self.output / FAULT).exists()
        return out


@pytest.fixture(scope="module")
def lab() -> Iterator[MockLab]:
    with MockLab(CELL, TASK) as running_lab:
        yield running_lab


@pytest.fixture
def bench(lab: MockLab, tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield Bench(lab, tmp_path, cli, monkeypatch)
    lab.streams.heal()
    lab.controller.faults.heal()


def frames(path: Path) -> int:
    film = av.open(str(path))
    try:
        return sum(1 for _ in film.decode(video=0))
    finally:
        film.close()


def children() -> list[int]:
    """Returns the ids of this process's children."""
    process = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True)
    return [int(line.split()[0]) for line in process.stdout.splitlines() if not line.endswith(" ps")]


# --- end to end, with real processes on loopback


def test_put_apple_is_solved_through_the_driver_and_a_kill_is_survived(tmp_path, cli):
    recipe, output = tmp_path / "lab.toml", tmp_path / "run"
    lab = start_lab(recipe)
    try:
        policy = re.findall(r"--policy (http://\S+)", output_until_open(lab))[0]
        command = ["run", "--arm", recipe, "--task", "put-apple", "--policy", policy, "--trials", "1"]
        command += ["--output", output, "--seed", "10000"]
        program = [sys.executable, "-m", "srpo_robot.cli", *map(str, command)]
        killed = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        lines = output / "trials" / "000" / "steps.jsonl"
        until(lambda: lines.is_file() and len(lines.read_text().splitlines()) >= 15, 120.0)
        killed.kill()
        killed.wait()
        cut = read_log(output / "trials" / "000", STEPS)
        assert len(cut["step"]) >= 15 and frames(lines.with_name("front.mp4")) >= 5
        refused(cli(*command), "the fault is over", "--confirm-fault")
        code, _, err = cli(*command, "--confirm-fault")
        assert code == 0, err
    finally:
        code, _ = end(lab)
    assert code == 0
    (trial,) = read_trials(output)
    assert trial.success is True and trial.episode_index == 0 and trial.note == "", trial  # from the simulation state
    assert not (output / FAULT).exists()
    folder = output / "trials" / "000"
    steps, ticks = read_log(folder, STEPS), read_log(folder, TICKS)
    assert len(steps["step"]) == trial.steps == frames(folder / "front.mp4") == frames(folder / "wrist.mp4")
    assert np.abs(steps["sent_rad"] - steps["reached_rad"]).max() < 0.5
    assert np.all(ticks["code"] == 0) and np.isfinite(ticks["sent_rad"]).all(axis=1).sum() > 5 * trial.steps
    episode = dataset_facts(output / "dataset")
    assert episode["length"] == trial.steps and episode["success"] is True
    assert episode["travel_m"] > 0.3 and (folder.parent / "000_before_1").is_dir()


def until(happens: Callable[[], bool], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.05)


def dataset_facts(root: Path) -> dict[str, Any]:
    """Reads the only episode of a dataset with the project's reader and returns facts of it."""
    from srpo_robot.buffer.opening import open_buffer

    buffer = open_buffer(root)
    (episode,) = buffer.episodes
    state = buffer.column("observation.state")
    images = buffer.frames(episode, "observation.images.front")
    assert len(images) == episode.length
    return {
        "length": episode.length,
        "success": episode.success,
        "travel_m": float(np.linalg.norm(np.diff(state[:, :3], axis=0), axis=1).sum()),
    }


# --- dry runs


def test_a_dry_run_checks_everything_and_moves_nothing(bench):
    before = bench.lab.controller.arm_state().setpoint_rad
    code, out, err = bench.run(ScriptedPolicy(bench.lab), "--dry-run")
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("PASS")] == [
        "controller:",
        "cameras:",
        "first",
    ]
    assert "Nothing has moved." in out and not bench.output.exists()
    assert np.array_equal(bench.lab.controller.arm_state().setpoint_rad, before)


def test_a_dry_run_finds_swapped_cameras(bench):
    recipe = bench.lab.recipe(XARM)
    cameras = [replace(camera, reference=str(bench.folder / f"{camera.name}.png")) for camera in recipe.cameras]
    with Cameras(recipe.cameras) as streams:
        for name, frame in streams.read(10.0).items():
            cv2.imwrite(str(bench.folder / f"{name}.png"), frame.image[..., ::-1])
    bench.recipe.write_text(dump(replace(recipe, cameras=tuple(cameras))))
    assert bench.run(Nudge(), "--dry-run")[0] == 0
    front, wrist = cameras
    swapped = replace(front, source=wrist.source), replace(wrist, source=front.source)
    bench.recipe.write_text(dump(replace(recipe, cameras=swapped)))
    code, _, err = bench.run(Nudge(), "--dry-run")
    assert code == 1 and "camera front sees what wrist should" in err


def test_a_dry_run_refuses_nan(bench):
    code, _, err = bench.run(Nudge(row=HOME_M * np.nan), "--dry-run")
    assert code == 1 and "NaN" in err


# --- faults


def test_a_frozen_camera(bench):
    result = bench.run(Nudge(lambda: bench.lab.streams.freeze("front"), steps=100))
    bench.lab.streams.heal()
    bench.faulted(result, "camera front", 3)


def test_an_unplugged_camera(bench):
    result = bench.run(Nudge(lambda: bench.lab.streams.unplug("wrist"), steps=100))
    bench.faulted(result, "camera wrist", 3)
    bench.lab.streams.heal()
    bench.works()


def crash() -> None:
    raise RuntimeError("no more memory")


def test_a_crashing_policy(bench):
    bench.faulted(bench.run(Nudge(crash)), "the policy crashed: RuntimeError: no more memory", 2)


def test_a_policy_that_returns_nan(bench):
    policy = Nudge(steps=100)
    policy.on = lambda: policy.row.__imul__(np.nan)
    code, _, err = bench.run(policy)
    assert code == 1 and "NaN" in err
    (trial,) = read_trials(bench.output)
    assert trial.success is None and "NaN" in trial.note  # the trial is in the journal
    assert len(read_log(bench.output / "trials" / "000", STEPS)["step"]) == 2
    refused(bench.run(Nudge(), trials=2), "nobody has confirmed")


@pytest.mark.parametrize(
    ("number", "code", "note"),
    [(signal.SIGINT, 130, "ended by Ctrl-C"), (signal.SIGTERM, 143, "ended by a signal")],
)
def test_a_signal_stops_the_arm_and_keeps_the_recording(bench, number, code, note):
    exit_code, _, err = bench.run(Nudge(lambda: os.kill(os.getpid(), number), steps=100))
    assert exit_code == code, err
    assert note in read_fault(bench.output)
    assert len(read_log(bench.output / "trials" / "000", STEPS)["step"]) >= 2
    assert frames(bench.output / "trials" / "000" / "front.mp4") >= 2
    assert not np.any(bench.lab.controller.arm_state().velocity_rad_s)


def test_a_full_disk(bench):
    add, steps = TrialLog.add, []

    def full(self: TrialLog, step: object) -> None:
        steps.append(step)
        if len(steps) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "steps.jsonl"))
        add(self, step)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialLog, "add", full)
        code, _, err = bench.run(Nudge(steps=100))
    assert code == 1 and "no space left" in err and "free some space" in err
    assert len(read_log(bench.output / "trials" / "000", STEPS)["step"]) == 4
    assert read_fault(bench.output)


def test_no_trial_begins_on_an_almost_full_disk(bench, monkeypatch):
    monkeypatch.setattr(sessions, "_FREE_BYTES", 10**18)
    code, _, err = bench.run(Nudge())
    assert code == 1 and "make room" in err


def test_a_collision_is_cleaned_only_when_confirmed(bench):
    result = bench.run(Nudge(lambda: bench.lab.controller.faults.error(31), steps=100))
    bench.faulted(result, "C31", 2)
    assert bench.lab.controller.arm_state().error == 31
    bench.works()
    assert bench.lab.controller.arm_state().error == 0


def test_a_judge_that_does_not_answer(bench):
    bench.recipe.write_text(dump(replace(bench.lab.recipe(XARM), judge_url="http://127.0.0.1:9")))
    code, _, err = bench.run(Nudge())
    assert code == 1 and "the judge at http://127.0.0.1:9 does not answer" in err


# --- by hand


class Hands:
    """A person at a pty. `answers` maps a part of each prompt to the keys that answer it."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.person, self.program = pty.openpty()
        self.answers, self.messages = answers, list[str]()

    def press(self, keys: str) -> None:
        os.write(self.person, keys.encode())

    def hear(self, text: str) -> None:
        self.messages.append(text)
        for part, keys in self.answers.items():
            if part in text and keys:
                self.press(keys.pop(0))

    def close(self) -> None:
        os.close(self.person)
        os.close(self.program)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    person = Hands({})
    stdin = os.fdopen(os.dup(person.program))
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sessions, "say", person.hear)
    yield person
    stdin.close()
    person.close()


def test_a_person_runs_labels_stops_redoes_and_quits(bench, hands):
    hands.answers = {
        "Enter sends the arm home": ["\n", "\n", "\n", "\n", "q"],
        "Enter starts the policy": ["\n"] * 4,
        "The trial is over": ["f"],
    }
    pressed = iter(["s", "r", "f"])  # during the first trial, the second and its repetition. The third is stopped

    def press() -> None:
        hands.press(next(pressed, " "))

    code, out, err = bench.run(Nudge(press, steps=40), "--by-hand", trials=5)
    assert code == 0, err
    trials = read_trials(bench.output)
    assert [trial.success for trial in trials] == [True, False, False]
    assert [trial.note for trial in trials] == ["", "", "stopped by hand"]
    assert trials[1].layout["redone"] == 1 and (bench.output / "trials" / "001_before_1").is_dir()
    assert "Ended after 3 trials" in out and not (bench.output / FAULT).exists()
    assert trials[0].layout["seed"] == 10_000


def test_a_person_confirms_a_fault_by_key(bench, hands):
    hands.answers = {"Enter sends": ["\n", "q", "q"], "Enter starts": ["\n"], "Look at arm": ["n", "y"]}
    code, _, err = bench.run(Nudge(crash), "--by-hand")
    assert code == 1 and "crashed" in err
    refused(bench.run(Nudge(), "--by-hand"), "nobody has confirmed")
    code, _, err = bench.run(Nudge(), "--by-hand")
    assert code == 0, err
    assert not (bench.output / FAULT).exists()


def test_without_terminal_or_judge_the_run_is_refused(bench):
    bench.recipe.write_text(dump(replace(bench.lab.recipe(XARM), judge_url="")))
    refused(bench.run(Nudge()), "needs a person at the keys")


# --- bad input


def test_bad_input(bench, cli, tmp_path):
    common = ("--task", "put-apple", "--output", tmp_path / "x")
    for option in ("--dry-run", "--confirm-fault", "--by-hand"):
        refused(cli("run", "--policy", tmp_path, *common, option), "for an arm that moves for real")
    refused(
        cli("run", "--arm", bench.recipe, "--policy", "x", *common, "--randomization", "0.5"),
        "--randomization is for the mock arm",
    )
    refused(
        cli("record", "--arm", bench.recipe, "--task", "put-apple", "--episodes", 1, "--root", tmp_path / "r"),
        "lerobot-record",
    )
    refused(cli("run", "--arm", bench.recipe, "--policy", "ws://a", *common), "give http://HOST:PORT")
    code, _, err = cli("run", "--arm", bench.recipe, "--policy", "http://127.0.0.1:9", *common)
    assert code == 1 and "is 'srpo-robot serve' running there?" in err
    assert not (tmp_path / "x").exists()


def test_the_first_chunk_runs_at_the_given_pace(bench):
    assert bench.run(Nudge(row=HOME_M - [0.0, 0.1, 0.0, 0.0]), "--first-pace", "0.1")[0] == 0
    log = read_log(bench.output / "trials" / "000", STEPS)
    path = np.vstack([log["reached_rad"][:1], log["sent_rad"]])  # the first command counts from the arm's position
    first, *others = np.abs(np.diff(path, axis=0)).max(axis=1)
    cap = CELL.limits.max_joint_speed_rad_s / CELL.fps
    assert 0.0 < first <= 0.1 * cap + 1e-9 and max(others) > 2.0 * first
    assert "joint_step" in log["limited_by"][0]


def test_no_child_process_is_left(bench):
    bench.run(Nudge())
    assert children() == []
    assert json.loads((bench.output / "run.json").read_text())["arm"] == str(bench.recipe)
