"""Runs trials with random faults against the mock lab, and checks that nothing is lost and nothing is left running.

    python scripts/soak.py --minutes 60 --json soak.json

Every run is `srpo-robot run` in its own process (forked from one that has already imported the heavy modules). The
scripted demonstrator is served over HTTP. A fault strikes at a random step: errors of the controller and the gripper,
the emergency stop, links that break, hang or stall, silent reports, cameras that freeze or disappear, Ctrl-C, kill -9.
After each run the script checks the exit code, that the arm stands still, that no process and no connection is left,
that the journal is complete, that recorded data and logs are readable, and that the next run is refused until a person
confirms the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from srpo_robot.arm.actions import make_action_space
from srpo_robot.arm.limits import Limits
from srpo_robot.cli.mock_lab import ScriptedPolicy
from srpo_robot.cli.sessions import LiveOptions, make_session
from srpo_robot.errors import SrpoRobotError, UsageError, one_line
from srpo_robot.evaluation.served_policy import PolicyServer, describe
from srpo_robot.evaluation.trial_log import STEPS, TICKS, read_log
from srpo_robot.evaluation.trials import JOURNAL, read_fault, read_trials
from srpo_robot.mock.lab import MockLab
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, dump, load

PRELOAD = ["srpo_robot.cli.running", "srpo_robot.cli.sessions", "srpo_robot.buffer.recorder", "lerobot.datasets", "av"]
START_S, END_S, GONE_S = 120.0, 90.0, 20.0  # limits: start to first step, fault to end of run, end to no process left
STOP_S = 5.0  # limit for the arm to stop after that
FAULTED, INTERRUPTED = 1, 130
NOTHING = "nothing"
_TRIAL_S = 6.0  # time limit of a trial; most faults strike before it
_LAST_STEP = 40
_STOPPED = (4, 5)  # controller states in which the arm does not move
_STILL_RAD = 1e-3
_FILM_LAG = 15  # frames by which a film may lag behind the steps: one fragment


# --- in a separate process --------------------------------------------------------------------------------------------


def run_command(arguments: list[str], log: str) -> None:
    """Runs `srpo-robot` with these arguments. Its output goes to the file `log`."""
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    sys.argv = ["srpo-robot", *arguments]
    from srpo_robot.cli import main

    main()


def read_back(dataset: str, answer: Connection) -> None:
    """Repairs a dataset as a user would and decodes every frame. Sends the numbers of episodes and frames."""
    from srpo_robot.buffer.opening import open_buffer, quiet_lerobot
    from srpo_robot.buffer.repair import repair

    quiet_lerobot()
    root = Path(dataset)
    try:
        repair(root)
        if not (root / "meta" / "info.json").is_file():
            answer.send((0, 0, ""))  # no episode was finished
            return
        buffer = open_buffer(root)
        frames = 0
        for episode in buffer.episodes:
            for camera in episode.cameras:
                frames += sum(len(part) for part in buffer.frame_chunks(episode, camera))
        answer.send((len(buffer.episodes), frames, ""))
    except SrpoRobotError as error:
        answer.send((0, 0, one_line(error)))


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault and the exit code that must follow.

    Attributes:
        strike: causes the fault. It gets the lab and the run's process.
        code: expected exit code of the run.
        is_cut_off: no stop can reach the controller. The arm must come to rest anyway.
    """

    strike: Callable[[MockLab, Any], None]
    code: int = FAULTED
    is_cut_off: bool = False


def _nothing(lab: MockLab, run: Any) -> None:
    pass


def _signal(number: int) -> Callable[[MockLab, Any], None]:
    return lambda lab, run: os.kill(run.pid, number)


FAULTS: dict[str, Fault] = {
    NOTHING: Fault(_nothing, 0),
    "replies 190 ms late": Fault(lambda lab, run: lab.controller.faults.delay_replies(0.19, 3), 0),
    "collision (C31)": Fault(lambda lab, run: lab.controller.faults.error(31)),
    "motor 3 (C13)": Fault(lambda lab, run: lab.controller.faults.error(13)),
    "emergency stop": Fault(lambda lab, run: lab.controller.faults.emergency_stop()),
    "gripper (G11)": Fault(lambda lab, run: lab.controller.faults.gripper_fault(11)),
    "gripper's bus dead": Fault(lambda lab, run: lab.controller.faults.gripper_fault()),
    "links reset": Fault(lambda lab, run: lab.controller.faults.reset_connections()),
    "links half-open": Fault(lambda lab, run: lab.controller.faults.half_open(), is_cut_off=True),
    "reports silent": Fault(lambda lab, run: lab.controller.faults.silence_reports()),
    "camera frozen": Fault(lambda lab, run: lab.streams.freeze("front")),
    "camera unplugged": Fault(lambda lab, run: lab.streams.unplug("wrist")),
    "Ctrl-C": Fault(_signal(signal.SIGINT), INTERRUPTED),
    "SIGTERM": Fault(_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    "kill -9": Fault(_signal(signal.SIGKILL), -signal.SIGKILL),
}


def heal(lab: MockLab) -> None:
    """Clears all faults. A latched error stays until a person confirms its recovery."""
    lab.controller.faults.heal()
    lab.controller.faults.release()
    lab.controller.faults.gripper_repair()
    lab.streams.heal()


# --- the soak ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Counts:
    """Results of a soak. The soak passes if `problems` is empty.

    Attributes:
        by_themselves: reasons of runs that ended before a fault struck. A machine that is too busy for a lab and a run
            causes them. Their data is checked like that of all other runs.
        problems: one line per problem.
    """

    minutes: float = 0.0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # number of next runs that were refused until a person confirmed
    trials: int = 0
    episodes: int = 0
    frames: int = 0
    steps: int = 0  # in the logs of trials
    ticks: int = 0
    longest_end_s: float = 0.0  # from a fault to the end of its run
    by_themselves: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Soak:
    """Runs against one lab and into one output folder, one after the other."""

    def __init__(self, lab: MockLab, task: TaskRecipe, url: str, folder: Path) -> None:
        self.counts = Counts()
        self._lab, self._task = lab, task
        self._output, self._log = folder / "run", folder / "run.log"
        arm_file, task_file = folder / "arm.toml", folder / "task.toml"
        self._hardware = lab.recipe(load(HardwareRecipe, "hardware", "xarm7"))
        arm_file.write_text(dump(self._hardware))
        task_file.write_text(dump(task))
        self._options = ["--arm", str(arm_file), "--task", str(task_file), "--policy", url]
        self._options += ["--output", str(self._output)]
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOAD)
        self._journal = b""

    def run(self, name: str, at_step: int) -> bool:
        """Runs one more trial, causes the fault `name` after `at_step` logged steps, then makes all checks.

        Returns:
            True if the fault struck. False if the run ended before, in a fault of its own.
        """
        fault, folder = FAULTS[name], self._output / "trials" / f"{len(self._trials()):03d}"
        process = self._forks.Process(target=run_command, args=(self._arguments(), str(self._log)))
        process.start()
        self.counts.runs += 1
        self._wait(lambda: not process.is_alive() or _logged(folder) >= at_step, START_S)
        family, logged = _family(process.pid), _logged(folder)
        was_struck, struck_s = process.is_alive(), time.monotonic()
        if was_struck:
            fault.strike(self._lab, process)
        process.join(END_S)
        if process.is_alive():
            self._problem(name, f"it goes on {END_S:g} s later")
            process.kill()
            process.join()
        self.counts.longest_end_s = max(self.counts.longest_end_s, time.monotonic() - struck_s)
        if process.exitcode == FAULTED and (not was_struck or name == NOTHING):
            was_struck = False
            self.counts.by_themselves.append(read_fault(self._output))
        elif process.exitcode != fault.code:
            self._problem(name, f"exit code {process.exitcode}, expected {fault.code}; see {self._log}")
        self._check_gone(name, family)
        heal(self._lab)
        self._check_kept(name, folder, logged)
        self._check_confirmation(name, process.exitcode != 0)
        process.close()
        self.counts.faults[name] += was_struck
        return was_struck

    def _arguments(self) -> list[str]:
        """Returns the arguments of `srpo-robot` for one more trial. The script confirms the last fault."""
        confirmed = ["--confirm-fault"] if read_fault(self._output) else []
        return ["run", *self._options, "--trials", str(len(self._trials()) + 1), *confirmed]

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_gone(self, name: str, family: list[psutil.Process]) -> None:
        """Checks that no process or connection of the run is left and that the arm stands still."""
        if not self._wait(lambda: not any(_lives(process) for process in family), GONE_S):
            self._problem(name, f"processes are left: {[process.pid for process in family if _lives(process)]}")
        if not self._wait(lambda: not self._connections(), GONE_S):
            self._problem(name, f"connections are left: {self._connections()}")
        stopped = self._wait(lambda: self._lab.controller.arm_state().state in _STOPPED, STOP_S)
        if not stopped and not FAULTS[name].is_cut_off:
            self._problem(name, f"the controller is in state {self._lab.controller.arm_state().state}, not stopped")
        before = self._lab.controller.arm_state()
        time.sleep(0.2)
        moved = np.abs(self._lab.controller.arm_state().setpoint_rad - before.setpoint_rad).max()
        if moved > _STILL_RAD:
            self._problem(name, f"the arm still moves, {moved:.4f} rad in 0.2 s")

    def _connections(self) -> list[str]:
        """Returns the established connections to the lab: controller, reports, cameras, judge."""
        lab_ports = {self._lab.controller.host: None, "127.0.0.1": {int(self._url_port(u)) for u in self._urls()}}
        result = []
        for link in psutil.net_connections("tcp"):
            if link.status == psutil.CONN_ESTABLISHED and link.raddr and link.raddr.ip in lab_ports:
                ports = lab_ports[link.raddr.ip]
                if ports is None or link.raddr.port in ports:
                    result.append(f"{link.raddr.ip}:{link.raddr.port}")
        return result

    def _urls(self) -> list[str]:
        return [*(camera.source for camera in self._hardware.cameras), self._hardware.judge_url]

    @staticmethod
    def _url_port(url: str) -> str:
        return url.split("//")[1].split("/")[0].rpartition(":")[2]

    def _check_kept(self, name: str, folder: Path, logged: int) -> None:
        """Checks that the journal lost no row, that every row is a trial, and that dataset and log lost nothing."""
        journal = (self._output / JOURNAL).read_bytes() if (self._output / JOURNAL).is_file() else b""
        if not journal.startswith(self._journal):
            self._problem(name, "the journal lost rows")
        self._journal = journal
        trials = self._trials()
        if [trial.trial for trial in trials] != list(range(len(trials))):
            self._problem(name, f"the journal's numbers are {[trial.trial for trial in trials]}")
        with_episode = sum(trial.episode_index >= 0 for trial in trials)
        episodes, frames, error = self._read_dataset()
        if error or episodes < with_episode:
            self._problem(
                name, f"{with_episode} trials have an episode, the dataset {episodes} ({error or 'readable'})"
            )
        self.counts.trials, self.counts.episodes, self.counts.frames = len(trials), episodes, frames
        self._check_log(name, folder, logged)

    def _check_log(self, name: str, folder: Path, logged: int) -> None:
        """Checks steps, ticks and films of the struck trial. Skips a trial that ended before its first step."""
        if not logged and not (folder / f"{STEPS}.parquet").is_file():
            return
        try:
            steps, ticks = read_log(folder, STEPS), read_log(folder, TICKS)
        except (SrpoRobotError, OSError, ValueError) as error:
            self._problem(name, f"the trial's log is unreadable: {error}")
            return
        count = len(steps["step"])
        if count < logged or not np.array_equal(steps["step"], np.arange(count)):
            self._problem(name, f"{logged} steps were logged, {count} are left")
        if not len(ticks["time_s"]) or np.any(np.diff(ticks["time_s"]) <= 0):
            self._problem(name, "the log of the streamer has gaps in its order, or nothing")
        for camera in self._hardware.cameras:
            frames = _film_frames(folder / f"{camera.name}.mp4")
            if frames < count - _FILM_LAG:
                self._problem(name, f"the film of {camera.name} has {frames} frames of {count}")
        self.counts.steps += count
        self.counts.ticks += len(ticks["time_s"])

    def _check_confirmation(self, name: str, is_fault: bool) -> None:
        """Checks that after a fault the same command is refused until a person confirms, and only then."""
        if bool(read_fault(self._output)) != is_fault:
            self._problem(name, f"a fault is {'not ' if is_fault else ''}noted for the next run")
            return
        if not is_fault:
            return
        session = make_session(self._hardware, self._task, LiveOptions(self._output))
        try:
            with contextlib.redirect_stderr(io.StringIO()), session:
                self._problem(name, "the next run began without a confirmation")
        except UsageError as error:
            if "--confirm-fault" in str(error):
                self.counts.refused += 1
            else:
                self._problem(name, f"the next run was refused for another reason: {one_line(error)}")

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _read_dataset(self) -> tuple[int, int, str]:
        ours, theirs = self._forks.Pipe()
        process = self._forks.Process(target=read_back, args=(str(self._output / "dataset"), theirs))
        process.start()
        theirs.close()
        try:
            return ours.recv() if ours.poll(END_S) else (0, 0, "reading it hangs")
        except EOFError:
            return 0, 0, "reading it failed"
        finally:
            ours.close()
            process.join(END_S)

    def _trials(self) -> list[Any]:
        return read_trials(self._output) if (self._output / JOURNAL).is_file() else []

    def _problem(self, name: str, message: str) -> None:
        self.counts.problems.append(f"run {self.counts.runs} ({name}): {message}")

    @staticmethod
    def _wait(happens: Callable[[], bool], seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while not happens():
            if time.monotonic() > end_s:
                return False
            time.sleep(0.05)
        return True


def _logged(folder: Path) -> int:
    """Returns the number of steps that the running trial has logged."""
    path = folder / f"{STEPS}.jsonl"
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def _family(pid: int | None) -> list[psutil.Process]:
    """Returns a process and its descendants, including those that left its session."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _film_frames(path: Path) -> int:
    import cv2

    film, count = cv2.VideoCapture(str(path)), 0
    while film.read()[0]:
        count += 1
    film.release()
    return count


def soak(minutes: float, runs: int, faults: list[str], seed: int, folder: Path, console: Console) -> Counts:
    """Runs until the time is up or `runs` faults struck (0: any number). Every fault comes once before any repeats."""
    cell = load(HardwareRecipe, "hardware", "mock")
    task = replace(load(TaskRecipe, "datasets", "put-apple"), time_limit_s=_TRIAL_S)
    limits = Limits.from_recipe(cell.limits, cell.tcp_offset_m, 1.0 / cell.fps)
    space = make_action_space(task.action_space, limits, np.array(cell.home_rad))
    rng, start_s, queue = random.Random(seed), time.monotonic(), list[str]()
    with ExitStack() as stack:
        lab = stack.enter_context(MockLab(cell, task))
        script = ScriptedPolicy(lab)
        server = stack.enter_context(PolicyServer(script, describe(script, space, task.cameras)))
        running = Soak(lab, task, server.url, folder)
        counts = running.counts
        while time.monotonic() < start_s + 60.0 * minutes and (not runs or counts.faults.total() < runs):
            queue = queue or rng.sample(faults, len(faults))
            name, before = queue.pop(), len(counts.problems)
            if not running.run(name, rng.randint(1, _LAST_STEP)):
                queue.append(name)  # try again
            verdict = "[green]good[/]" if len(counts.problems) == before else "[red]problem[/]"
            minutes_passed = (time.monotonic() - start_s) / 60.0
            totals = f"{counts.trials} trials, {counts.episodes} episodes"
            console.print(f"{minutes_passed:5.1f} min  run {counts.runs:3d}  {name:20s} {verdict}  {totals}")
            for problem in counts.problems[before:]:
                console.print(problem, style="red", markup=False, soft_wrap=True)
            lab.check()
    counts.minutes = (time.monotonic() - start_s) / 60.0
    return counts


def print_counts(counts: Counts, console: Console) -> None:
    """Prints the results as a table."""
    table = Table(title=f"{counts.minutes:.1f} minutes", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name in ("runs", "refused", "trials", "episodes", "frames", "steps", "ticks"):
        table.add_row(name, str(getattr(counts, name)))
    table.add_row("longest end of a run after its fault", f"{counts.longest_end_s:.1f} s")
    table.add_row("ended by themselves", str(len(counts.by_themselves)))
    table.add_row("problems", str(len(counts.problems)))
    console.print(table)


def main() -> int:
    """Runs the soak and prints the results. Returns 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=0, help="at most so many that a fault has struck")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep what the runs leave in this new folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(highlight=False)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        counts = soak(options.minutes, options.runs, options.fault or list(FAULTS), options.seed, folder, console)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print_counts(counts, console)
    if options.json is not None:
        options.json.write_text(json.dumps(vars(counts), indent=2) + "\n")
    return 1 if counts.problems else 0


if __name__ == "__main__":
    sys.exit(main())
