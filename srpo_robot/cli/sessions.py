"""Sessions: an arm, its cell and the way its trials are run, for the mock's physics and for an arm that moves for real.

Only `make_session` tells the two apart. A session is a context manager. Leaving it stops the arm.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from srpo_robot.arm.actions import ActionSpace, make_action_space
from srpo_robot.arm.arm import Workcell
from srpo_robot.cli.console import say, warn
from srpo_robot.cli.inputs import check_arm_options
from srpo_robot.cli.operator import TerminalKeys
from srpo_robot.cli.options import LiveOptions
from srpo_robot.errors import ArmError, CameraError, RecipeError, UsageError, one_line
from srpo_robot.evaluation.operator import GO, HELP, Judge, JudgedCell, OperatorCell, Quit, StopSwitch
from srpo_robot.evaluation.policy import PENDING, AsyncRunner, Policy
from srpo_robot.evaluation.runtime import FrameSink, Outcome, Setup, Step, run_episode
from srpo_robot.evaluation.trial_log import TrialLog
from srpo_robot.evaluation.trials import clear_fault, note_fault, read_fault
from srpo_robot.recipes import HardwareRecipe, TaskRecipe

if TYPE_CHECKING:
    from srpo_robot.arm.xarm7.driver import XArm7

TRIALS = "trials"  # folder of the trial logs in a run's output
_FREE_BYTES = 500_000_000  # no trial begins if less is free on the disk
_WAIT_SHARE = 0.5  # share of a control period to wait for a chunk before the arm holds for a step
_GIVE_UP_S = 30.0  # a policy that has not answered after this time has failed


class Session(Protocol):
    """An arm with its cell. `space` is known before the session is opened, so that a policy can be checked first."""

    space: ActionSpace

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, number: int, policy: Policy, seed: int, sink: FrameSink) -> Outcome:
        """Runs and judges trial `number`. Raises Quit if a person ends the run, ArmError and others on a fault."""
        ...

    def settle(self, outcome: Outcome) -> None:
        """Called once the outcome is in the journal. Raises ArmError if a person has to look before the next trial."""
        ...


def make_session(
    hardware: HardwareRecipe,
    task: TaskRecipe,
    output: Path,
    live: LiveOptions,
    *,
    wide_starts: float = 0.0,
    randomization: float = 0.0,
    keep_redone: bool = False,
) -> Session:
    """Returns the session for this kind of arm, not yet open.

    Args:
        output: the run's folder.
        live: options of an arm that moves for real.
        wide_starts: mock arm: share of trials that start anywhere over the table.
        randomization: mock arm: strength of the visual randomization, 0 to 1.
        keep_redone: real arm: a trial that the person wants redone is returned as void instead of being run again.

    Raises:
        RecipeError: the recipes contradict themselves or each other.
        UsageError: this kind of arm does not have an option that was given.
    """
    check_arm_options(hardware, live, randomization)
    if hardware.kind == "mock":
        return MockSession(hardware, task, wide_starts, randomization)
    return LiveSession(hardware, task, output, live, keep_redone)


class MockSession:
    """The mock arm. Its time passes only while commands are executed, and the physics judges the trial."""

    def __init__(self, hardware: HardwareRecipe, task: TaskRecipe, wide_starts: float, randomization: float) -> None:
        from srpo_robot.mock.arm import make_mock

        self._arm, workcell = make_mock(hardware, task, wide_starts=wide_starts, randomization=randomization)
        self.space = make_action_space(task.action_space, self._arm.limits, self._arm.home_rad)
        self._setup = Setup(
            arm=self._arm,
            workcell=workcell,
            space=self.space,
            instruction=task.instruction,
            time_limit_s=task.time_limit_s,
            cameras=task.cameras,
        )

    def __enter__(self) -> Self:
        self._arm.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arm.__exit__(kind, error, trace)

    def run(self, number: int, policy: Policy, seed: int, sink: FrameSink) -> Outcome:
        """See `Session`."""
        return run_episode(self._setup, policy, seed, sink)

    def settle(self, outcome: Outcome) -> None:
        """Does nothing: a void trial of the mock is no danger."""


class LiveSession:
    """An xArm 7 with a person at the keys, or with the mock lab's judge in place of that person."""

    def __init__(
        self, hardware: HardwareRecipe, task: TaskRecipe, output: Path, options: LiveOptions, keep_redone: bool
    ) -> None:
        """Raises RecipeError if a recipe contradicts itself, UsageError if no person could stop the arm."""
        from srpo_robot.arm.xarm7.driver import XArm7

        self._hardware, self._task, self._output, self._options = hardware, task, output, options
        self._keep_redone = keep_redone
        self._arm: XArm7 = XArm7(hardware, dry_run=options.dry_run, first_pace=options.first_pace)
        self.space = make_action_space(task.action_space, self._arm.limits, self._arm.home_rad)
        self._switch = StopSwitch(self._arm.stop)
        self._judged = bool(hardware.judge_url) and not options.by_hand
        self._keys = None if self._judged or options.dry_run else TerminalKeys(self._switch.press)
        self._runners: dict[int, AsyncRunner] = {}
        self._open = ExitStack()
        self._trial: int | None = None

    def __enter__(self) -> Self:
        """Takes the terminal, asks about an earlier fault and connects. Nothing moves.

        Raises:
            UsageError: no person has confirmed that an earlier fault is over.
            ArmError: the arm or a camera does not answer, is not set up as the recipe says, or has an error.
        """
        with ExitStack() as opened:
            if self._keys is not None:
                opened.enter_context(self._keys)
                say(f"[bold]{HELP}[/]")
            if not self._options.dry_run:
                confirmed = self._confirm_fault()
                opened.enter_context(_Terminated())
                opened.push(self._note)
                self._output.mkdir(parents=True, exist_ok=True)
                note_fault(self._output)
                self._enter_arm(opened, confirmed)
            else:
                opened.enter_context(self._arm)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def run(self, number: int, policy: Policy, seed: int, sink: FrameSink) -> Outcome:
        """See `Session`. Repeats the trial as long as the person wants it redone."""
        self._trial = number
        folder = self._output / TRIALS / f"{number:03d}"
        redone = 0
        while True:
            _check_disk(self._output)
            _move_aside(folder)
            with TrialLog(folder, self._sizes(), self._hardware.fps, self._arm.take_log) as log:
                outcome = run_episode(self._setup(policy, log), policy, seed, sink)
            if not outcome.redo or self._keep_redone:
                layout = outcome.layout | ({"redone": redone} if redone else {})
                return replace(outcome, layout=layout)
            redone += 1

    def ask(self, question: str, answers: Collection[str]) -> str:
        """Waits until the person at the keys presses one of `answers`. Raises ArmError if there is no terminal."""
        if self._keys is None:
            raise ArmError(f"nobody is at the keys to answer: {question}")
        self._keys.forget()
        say(question)
        while (key := self._keys.next()) not in answers:
            say(f"  {key!r} is no answer; choices: {', '.join(answers)}")
        return key

    def settle(self, outcome: Outcome) -> None:
        """See `Session`. A policy that commands NaN is broken, and a person has to look at it."""
        if outcome.refused:
            raise ArmError(outcome.note)

    def dry_run(self, policy: Policy, seed: int) -> None:
        """Runs every check and prints a line for each. The policy's first chunk passes every limit. Nothing moves.

        Raises:
            ArmError, CameraError, PolicyError: a check failed.
        """
        from srpo_robot.arm.cameras import Frame, check_references

        observation = self._arm.observe()
        info = self._arm.info
        firmware = ".".join(str(part) for part in info.get("firmware", ()))
        say(f"PASS controller: {info.get('serial')}, firmware {firmware}, its settings are the recipe's")
        frames = {name: Frame(image, 0.0) for name, image in observation.images.items()}
        wrong = check_references(self._hardware.cameras, frames)
        if wrong:
            raise CameraError("; ".join(wrong))
        say(f"PASS cameras: {', '.join(f'{name} {i.shape[1]}x{i.shape[0]}' for name, i in observation.images.items())}")
        runner = self._runner(policy)
        runner.reset(seed)
        while (chunk := runner.act(self._arm.observe())) == PENDING:
            continue
        if chunk is None:
            raise ArmError(f"{policy.name} has nothing to do in this scene; look at what its cameras see")
        limited_by: dict[str, int] = {}
        for row in chunk.actions:
            converted = self.space.command(row, self._arm.reference())
            for layer in {*converted.limited_by, *self._arm.send(converted.command).limited_by}:
                limited_by[layer] = limited_by.get(layer, 0) + 1
        changed = ", ".join(f"{layer} {count}" for layer, count in sorted(limited_by.items())) or "none"
        say(f"PASS first chunk of {policy.name}: {len(chunk.actions)} actions, changed by a limit: {changed}")
        say("Nothing has moved.")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _setup(self, policy: Policy, log: TrialLog) -> Setup:
        task = self._task
        return Setup(
            arm=self._arm,
            workcell=self._cell(),
            space=self.space,
            instruction=task.instruction,
            time_limit_s=task.time_limit_s,
            cameras=task.cameras,
            runner=self._runner(policy),
            stopped=self._switch.pressed,
            log=self._logger(log),
        )

    def _logger(self, log: TrialLog) -> Callable[[Step], None]:
        def add(step: Step) -> None:
            log.add(step)
            if step.chunk > 0 and self._arm.pace != 1.0:
                self._arm.pace = 1.0  # the session's first chunk is done

        return add

    def _cell(self) -> Workcell:
        judge = Judge(self._hardware.judge_url) if self._hardware.judge_url else None
        if self._keys is None:
            if judge is None:
                raise UsageError("nobody is at the keys, and there is no judge")
            return JudgedCell(self._arm, judge)
        lay_out = judge.lay_out if judge is not None else lambda seed: lay_out_by_hand(self._task, seed)
        return OperatorCell(self._arm, self._keys, self._switch, lay_out, say, self._task.success)

    def _runner(self, policy: Policy) -> AsyncRunner:
        if id(policy) not in self._runners:
            runner = AsyncRunner(policy, _WAIT_SHARE * self._arm.period_s, _GIVE_UP_S)
            self._runners[id(policy)] = self._open.enter_context(runner)
        return self._runners[id(policy)]

    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {camera.name: (camera.height_px, camera.width_px) for camera in self._hardware.cameras}

    def _confirm_fault(self) -> bool:
        """Returns whether a person has confirmed that an earlier fault is over; False if there was none.

        Raises:
            UsageError: there was a fault, and no person has confirmed that it is over.
        """
        fault = read_fault(self._output)
        if not fault:
            return self._options.confirm_fault
        warn(f"the last run into {self._output} ended with a fault: {fault}")
        if self._options.confirm_fault:
            return True
        if self._keys is not None:
            say("Look at arm, gripper, cameras and table. y: all is well, go on; any other key: not yet.")
            if self._keys.next() == "y":
                return True
        raise UsageError("nobody has confirmed that the fault is over; look at the arm, then add --confirm-fault")

    def _enter_arm(self, opened: ExitStack, confirmed: bool) -> None:
        """Opens the arm. Cleans an error of the controller if a person has confirmed that this is safe."""
        from srpo_robot.arm.xarm7.controller_codes import ControllerFault

        try:
            opened.enter_context(self._arm)
        except ControllerFault as error:
            if not (confirmed or self._asked_to_recover(error)):
                raise
            self._arm.recover(confirmed=True)
            opened.enter_context(self._arm)

    def _asked_to_recover(self, error: ArmError) -> bool:
        if self._keys is None:
            return False
        say(f"{one_line(error)}\nEnter cleans it, once you have looked; nothing moves yet. Any other key ends.")
        return self._keys.next() == GO

    def _note(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves a note for the next run if the session ended with a fault. Called after the arm has been stopped."""
        if error is None or isinstance(error, Quit):
            clear_fault(self._output)
            return
        ended = {KeyboardInterrupt: "ended by Ctrl-C", SystemExit: "ended by a signal"}
        reason = ended.get(type(error)) or one_line(error)
        try:
            note_fault(self._output, reason, self._trial)
        except OSError:
            warn(f"{self._output}: what happened could not be noted; the note from before the run stays")


class _Terminated:
    """While open, SIGTERM and a lost terminal end the program through an exception, so that the arm is stopped."""

    def __enter__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._before[number] = signal.signal(number, self._end)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)


def lay_out_by_hand(task: TaskRecipe, seed: int) -> Mapping[str, object]:
    """Returns the instructions by which a person lays out the scene for a seed.

    If the mock cell has the task, they are its layout for that seed, in words.
    """
    from srpo_robot.mock.tasks import layout, task_named

    try:
        scene = layout(task, seed)
    except RecipeError:
        return {"seed": seed, "steps": [f"Lay out the scene for: {task.instruction} (layout {seed})"]}
    place = task_named(task.name).furniture(task).place
    steps = [f"{scene.instruction} (layout {seed}); metres forward of the base and to its left:"]
    for item in (*scene.fixtures, *scene.objects):
        steps.append(f"{item.name}: {_place(item.x_m, item.y_m, item.yaw_rad)}")
    steps.append(f"{place}: {_place(*scene.plate_m, scene.plate_yaw_rad)}")
    if scene.marks_m:
        steps.append("draw a stroke or two on it")
    if scene.swap_at_s is not None:
        steps.append(f"{scene.swap_at_s:.0f} s after the start let {scene.objects[0].name} and another change places")
    return scene.as_json() | {"steps": steps}


def _place(x_m: float, y_m: float, yaw_rad: float) -> str:
    turned = f", turned {math.degrees(yaw_rad):.0f}°" if yaw_rad else ""
    return f"{x_m:.2f} forward, {y_m:+.2f} left{turned}"


def _check_disk(output: Path) -> None:
    """Raises ArmError if the disk is almost full: the recording of a trial must not be lost."""
    free = shutil.disk_usage(output).free
    if free < _FREE_BYTES:
        raise ArmError(f"{output}: {free / 1e6:.0f} MB are free, a trial wants {_FREE_BYTES / 1e6:.0f}; make room")


def _move_aside(folder: Path) -> None:
    """Renames the folder of an earlier attempt at this trial, so that its files are kept."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}_before_{number}")).exists():
        number += 1
    folder.rename(aside)
