"""Trials with random faults against the mock lab, for as long as asked: is anything lost, is anything left running?

    python scripts/soak.py --minutes 60 --json soak.json

Every run is `srpo-robot run` in a process of its own (forked from one that has imported the heavy modules already),
with the scripted demonstrator served over HTTP. A fault strikes at a random step: errors of the controller and the
gripper, the emergency stop, links that break, hang or stall, silent reports, cameras that freeze or go away, Ctrl-C,
kill -9. After each run: the exit code, that the arm stands, that no process and no connection is left, that the journal
is whole, that what was recorded and logged is readable, and that the next run is refused until somebody has confirmed
the fault.
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
from srpo_robot.cli.options import LiveOptions
from srpo_robot.cli.sessions import make_session
from srpo_robot.errors import SrpoRobotError, UsageError, one_line
from srpo_robot.evaluation.served_policy import PolicyServer, describe
from srpo_robot.evaluation.trial_log import STEPS, TICKS, read_log
from srpo_robot.evaluation.trials import JOURNAL, read_fault, read_trials
from srpo_robot.mock.lab import MockLab
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, dump, load

PRELOAD = ["srpo_robot.cli.running", "srpo_robot.cli.sessions", "srpo_robot.buffer.recorder", "lerobot.datasets", "av"]
START_S, END_S, GONE_S = 120.0, 90.0, 20.0  # to a run's first step; to its end after a fault; to the last of it gone
STOP_S = 5.0  # from then to an arm that has stopped
FAULTED, INTERRUPTED = 1, 130
NOTHING = "nothing"
_TRIAL_S = 6.0  # time limit: most faults strike before it
_LAST_STEP = 40
_STOPPED = (4, 5)  # the controller's states in which nothing moves
_STILL_RAD = 1e-3
_FILM_LAG = 15  # frames that a film may be behind the steps: one fragment


# --- in a process of its own ------------------------------------------------------------------------------------------


def run_command(arguments: list[str], log: str) -> None:
    """`srpo-robot` with these arguments; what it prints goes to a file."""
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server of forks ignores it
    sys.argv = ["srpo-robot", *arguments]
    from srpo_robot.cli import main

    main()


def read_back(dataset: str, answer: Connection) -> None:
    """Bring a dataset back to its finished episodes as a user would, and decode every frame of it: episodes, frames."""
    from srpo_robot.buffer.opening import open_buffer, quiet_lerobot
    from srpo_robot.buffer.repair import repair

    quiet_lerobot()
    root = Path(dataset)
    try:
        repair(root)
        if not (root / "meta" / "info.json").is_file():
            answer.send((0, 0, ""))  # not one episode was finished
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
    """What strikes, and the exit code that must follow. `strike` gets the lab and the run's process.

    `is_cut_off`: no stop can reach the controller; the arm must come to rest all the same.
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
    """No fault any more; an error that is latched stays until a person confirms its recovery."""
    lab.controller.faults.heal()
    lab.controller.faults.release()
    lab.controller.faults.gripper_repair()
    lab.streams.heal()


# --- the soak ---------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What came of it. `problems`: a line each; the soak is good where there is none.

    `by_themselves`: why runs ended that no fault had struck: a machine too busy for a lab and a run at once. Their
    leavings are checked like all others.
    """

    minutes: float = 0.0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # next runs that were refused until somebody confirmed
    trials: int = 0
    episodes: int = 0
    frames: int = 0
    steps: int = 0  # in the logs of trials
    ticks: int = 0
    longest_end_s: float = 0.0  # from a fault to the end of its run
    by_themselves: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Soak:
    """One lab, one output folder, run after run."""

    def __init__(self, lab: MockLab, work: TaskRecipe, url: str, folder: Path) -> None:
        self.counts = Counts()
        self._lab, self._work = lab, work
        self._output, self._log = folder / "run", folder / "run.log"
        self._recipe, self._task = folder / "arm.toml", folder / "task.toml"
        self._hardware = lab.recipe(load(HardwareRecipe, "hardware", "xarm7"))
        self._recipe.write_text(dump(self._hardware))
        self._task.write_text(dump(work))
        self._options = ["--arm", str(self._recipe), "--task", str(self._task), "--policy", url]
        self._options += ["--output", str(self._output)]
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(PRELOAD)
        self._journal = b""

    def run(self, name: str, at_step: int) -> bool:
        """One run of one more trial, struck by the fault `name` once `at_step` steps are logged; then every check.

        Returns:
            Whether it was struck; False where it ended by itself, in a fault of its own.
        """
        fault, folder = FAULTS[name], self._output / "trials" / f"{len(self._trials()):03d}"
        process = self._forks.Process(target=run_command, args=(self._arguments(), str(self._log)))
        process.start()
        self.counts.runs += 1
        self._wait(lambda: not process.is_alive() or _logged(folder) >= at_step, START_S)
        family, seen = _family(process.pid), _logged(folder)
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
        self._check_kept(name, folder, seen)
        self._check_confirmation(name, process.exitcode != 0)
        process.close()
        self.counts.faults[name] += was_struck
        return was_struck

    def _arguments(self) -> list[str]:
        """Of `srpo-robot`: one more trial; a person, this script, has looked after the last fault."""
        confirmed = ["--confirm-fault"] if read_fault(self._output) else []
        return ["run", *self._options, "--trials", str(len(self._trials()) + 1), *confirmed]

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_gone(self, name: str, family: list[psutil.Process]) -> None:
        """Nothing of the run is left, and the arm stands."""
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
        """Established connections to the lab: controller, reports, cameras, judge."""
        mine = {self._lab.controller.host: None, "127.0.0.1": {int(self._url_port(u)) for u in self._urls()}}
        found = []
        for link in psutil.net_connections("tcp"):
            if link.status == psutil.CONN_ESTABLISHED and link.raddr and link.raddr.ip in mine:
                ports = mine[link.raddr.ip]
                if ports is None or link.raddr.port in ports:
                    found.append(f"{link.raddr.ip}:{link.raddr.port}")
        return found

    def _urls(self) -> list[str]:
        return [*(camera.source for camera in self._hardware.cameras), self._hardware.judge_url]

    @staticmethod
    def _url_port(url: str) -> str:
        return url.split("//")[1].split("/")[0].rpartition(":")[2]

    def _check_kept(self, name: str, folder: Path, seen: int) -> None:
        """The journal begins as it was, every row is a trial; dataset and log hold what they held before the fault."""
        journal = (self._output / JOURNAL).read_bytes() if (self._output / JOURNAL).is_file() else b""
        if not journal.startswith(self._journal):
            self._problem(name, "the journal lost rows")
        self._journal = journal
        trials = self._trials()
        if [trial.trial for trial in trials] != list(range(len(trials))):
            self._problem(name, f"the journal's numbers are {[trial.trial for trial in trials]}")
        kept = sum(trial.episode_index >= 0 for trial in trials)
        episodes, frames, trouble = self._read_dataset()
        if trouble or episodes < kept:
            self._problem(name, f"{kept} trials have an episode, the dataset {episodes} ({trouble or 'readable'})")
        self.counts.trials, self.counts.episodes, self.counts.frames = len(trials), episodes, frames
        self._check_log(name, folder, seen)

    def _check_log(self, name: str, folder: Path, seen: int) -> None:
        """Steps, ticks and films of the trial that was struck; nothing where it ended before its first step."""
        if not seen and not (folder / f"{STEPS}.parquet").is_file():
            return
        try:
            steps, ticks = read_log(folder, STEPS), read_log(folder, TICKS)
        except (SrpoRobotError, OSError, ValueError) as error:
            self._problem(name, f"the trial's log is unreadable: {error}")
            return
        count = len(steps["step"])
        if count < seen or not np.array_equal(steps["step"], np.arange(count)):
            self._problem(name, f"{seen} steps were logged, {count} are left")
        if not len(ticks["time_s"]) or np.any(np.diff(ticks["time_s"]) <= 0):
            self._problem(name, "the log of the streamer has gaps in its order, or nothing")
        for camera in self._hardware.cameras:
            frames = _film_frames(folder / f"{camera.name}.mp4")
            if frames < count - _FILM_LAG:
                self._problem(name, f"the film of {camera.name} has {frames} frames of {count}")
        self.counts.steps += count
        self.counts.ticks += len(ticks["time_s"])

    def _check_confirmation(self, name: str, is_fault: bool) -> None:
        """After a fault the same command is refused until somebody confirms; else it is not."""
        if bool(read_fault(self._output)) != is_fault:
            self._problem(name, f"a fault is {'not ' if is_fault else ''}noted for the next run")
            return
        if not is_fault:
            return
        session = make_session(self._hardware, self._work, self._output, LiveOptions())
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

    def _problem(self, name: str, what: str) -> None:
        self.counts.problems.append(f"run {self.counts.runs} ({name}): {what}")

    @staticmethod
    def _wait(happens: Callable[[], bool], seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while not happens():
            if time.monotonic() > end_s:
                return False
            time.sleep(0.05)
        return True


def _logged(folder: Path) -> int:
    """Steps that the running trial has logged."""
    path = folder / f"{STEPS}.jsonl"
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def _family(pid: int | None) -> list[psutil.Process]:
    """A process and its descendants, those that leave its session too."""
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
    """Run until the time is up or `runs` were struck (0: any number), each fault once before one comes again."""
    cell = load(HardwareRecipe, "hardware", "mock")
    work = replace(load(TaskRecipe, "datasets", "put-apple"), time_limit_s=_TRIAL_S)
    limits = Limits.from_recipe(cell.limits, cell.tcp_offset_m, 1.0 / cell.fps)
    space = make_action_space(work.action_space, limits, np.array(cell.home_rad))
    draw, began_s, left = random.Random(seed), time.monotonic(), list[str]()
    with ExitStack() as opened:
        lab = opened.enter_context(MockLab(cell, work))
        script = ScriptedPolicy(lab)
        server = opened.enter_context(PolicyServer(script, describe(script, space, work.cameras)))
        running = Soak(lab, work, server.url, folder)
        counts = running.counts
        while time.monotonic() < began_s + 60.0 * minutes and (not runs or counts.faults.total() < runs):
            left = left or draw.sample(faults, len(faults))
            name, before = left.pop(), len(counts.problems)
            if not running.run(name, draw.randint(1, _LAST_STEP)):
                left.append(name)  # again
            verdict = "[green]good[/]" if len(counts.problems) == before else "[red]problem[/]"
            passed = (time.monotonic() - began_s) / 60.0
            told = f"{counts.trials} trials, {counts.episodes} episodes"
            console.print(f"{passed:5.1f} min  run {counts.runs:3d}  {name:20s} {verdict}  {told}")
            for problem in counts.problems[before:]:
                console.print(problem, style="red", markup=False, soft_wrap=True)
            lab.check()
    counts.minutes = (time.monotonic() - began_s) / 60.0
    return counts


def print_counts(counts: Counts, console: Console) -> None:
    """The table of what came of it."""
    made = Table(title=f"{counts.minutes:.1f} minutes", title_justify="left")
    made.add_column("")
    made.add_column("", justify="right")
    for name in ("runs", "refused", "trials", "episodes", "frames", "steps", "ticks"):
        made.add_row(name, str(getattr(counts, name)))
    made.add_row("longest end of a run after its fault", f"{counts.longest_end_s:.1f} s")
    made.add_row("ended by themselves", str(len(counts.by_themselves)))
    made.add_row("problems", str(len(counts.problems)))
    console.print(made)


def main() -> int:
    """Parse, soak, print. 1 where something was lost or left."""
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
