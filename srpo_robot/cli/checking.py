"""`srpo-robot check`: reads what `arm.preflight` judges, asks the person at the keys, and prints the list.

It looks, and moves nothing by itself: settings are stored with --set-up or after a key, the gripper travels with --move
or after a key, and an error is cleaned only in the test of the emergency stop, after the person has released it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from srpo_robot.arm.actions import make_action_space
from srpo_robot.arm.cameras import Cameras, Frame, check_references
from srpo_robot.arm.xarm7 import controller_setup, preflight, wire
from srpo_robot.arm.xarm7.controller_codes import ControllerFault
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.arm.xarm7.inspection import Inspection
from srpo_robot.arm.xarm7.motion import MotionLimits
from srpo_robot.arm.xarm7.preflight import CameraReading, Check, CheckResult, attempt, failed, refused, skipped
from srpo_robot.cli.console import console, say, waiting, write_json
from srpo_robot.cli.operator import TerminalKeys
from srpo_robot.errors import ArmError, SrpoRobotError, UsageError, one_line
from srpo_robot.evaluation.operator import GO, Keys
from srpo_robot.recipes import CameraRecipe, ControllerRecipe, HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

ESTOP_S = 30.0  # to press it
_EMERGENCY = (1, 2, 3)
_ROUND_TRIPS = 200
_WATCH_S = 1.5  # of the cameras
_TRAVEL_S = 8.0  # of the gripper, one way
_STILL_S = 0.8  # after which it has arrived, or is held
_STILL_M = 5e-4
_COLOURS = {CheckResult.PASS: "green", CheckResult.FAIL: "bold red", CheckResult.SKIP: "yellow"}
_ON_THE_LINK = ("round trips", "errors", "emergency stop", *preflight.SETTINGS, "pose", "gripper", "gripper travel")
_BY_POLICY = ("policy", "first chunk")


@dataclass(frozen=True)
class CheckOptions:
    """What `srpo-robot check` was asked for.

    Attributes:
        arm: recipe of hardware/.
        policy, task: checkpoint or URL, and the recipe of datasets/ that it is for; "" leaves its lines out.
        set_up: store the recipe's settings; motors on.
        move: open and close the gripper without asking.
        estop: ask for the emergency stop, where there is a terminal.
        pictures: folder for what the cameras see.
    """

    arm: str
    policy: str = ""
    task: str = ""
    set_up: bool = False
    move: bool = False
    estop: bool = True
    pictures: Path | None = None
    device: str = "auto"
    json_path: Path | None = None


def check_command(options: CheckOptions) -> bool:
    """Look at everything, print the list; whether nothing failed.

    Raises:
        RecipeError: a recipe that contradicts itself (a box that excludes home).
        UsageError: a policy without a task.
    """
    if bool(options.policy) != bool(options.task):
        raise UsageError("--policy and --task go together: the task says which cameras and actions a policy needs")
    hardware = load(HardwareRecipe, "hardware", options.arm)
    XArm7(hardware)  # refuses recipes that cannot be
    task = load(TaskRecipe, "datasets", options.task) if options.task else None
    with _keys(hardware) as keys:
        checks = run_checks(hardware, task, options, keys)
    _print(checks, options.arm)
    good = all(check.verdict is not CheckResult.FAIL for check in checks)
    content = {"arm": options.arm, "passed": good, "checks": [asdict(check) for check in checks]}
    write_json(options.json_path, content)
    return good


def run_checks(
    hardware: HardwareRecipe, task: TaskRecipe | None, options: CheckOptions, keys: Keys | None
) -> list[Check]:
    """Every line of the list, in its order. `keys` None: nobody can be asked."""
    with waiting("looking"):
        checks = [attempt("socket files", preflight.socket_files)]
    checks += _look_at_controller(hardware, options, keys)
    with waiting("cameras"):
        checks += look_through_cameras(hardware, options.pictures)
    checks += _look_at_policy(hardware, task, options, checks)
    return [*checks, preflight.disk(shutil.disk_usage(Path.cwd()).free)]


@contextmanager
def _keys(hardware: HardwareRecipe) -> Iterator[Keys | None]:
    """The terminal's keys, None where this is no terminal; space stops the arm."""
    controller = hardware.controller
    if not sys.stdin.isatty() or controller is None:
        yield None
        return
    with TerminalKeys(lambda: wire.stop(controller.address, controller.command_port)) as keys:
        yield keys


# --- the controller -----------------------------------------------------------------------------------------------


def _look_at_controller(hardware: HardwareRecipe, options: CheckOptions, keys: Keys | None) -> list[Check]:
    controller = hardware.controller
    assert controller is not None
    try:
        answer = wire.ask(
            controller.address, controller.command_port, wire.VERSION, timeout_s=controller.connect_timeout_s
        )
        found = controller_setup.identify(answer, controller)
    except ArmError as error:
        return [refused("arm", error), *_skip("no arm to look at", "joint range", *_ON_THE_LINK)]
    lines = [
        preflight.identity(found, importlib.metadata.version("xarm-python-sdk"), controller.serial),
        attempt("joint range", lambda: preflight.joint_range(hardware, found)),
    ]
    limits = controller_setup.motion_limits(hardware, controller)
    try:
        with waiting("connecting"), ExitStack() as opened:
            inspection = opened.enter_context(Inspection(controller))
            stay = opened.pop_all()
    except ArmError as error:
        return [*lines, refused("connection", error), *_skip("no connection", *_ON_THE_LINK)]
    with stay:
        lines += _look_through_sdk(_Looker(inspection, hardware, controller, limits, keys), options)
    return lines


def _skip(why: str, *names: str) -> list[Check]:
    return [skipped(name, why) for name in names]


def _look_through_sdk(looker: _Looker, options: CheckOptions) -> list[Check]:
    lines = [looker.round_trips(), looker.errors(), looker.emergency_stop(options.estop), *looker.set_up(options)]
    gripper = [looker.gripper(), looker.gripper_travel(options)]
    return [*lines, *looker.settings(), looker.pose(), *gripper]


class _Looker:
    """The lines that need a connection. Most of it is asking a person."""

    def __init__(
        self,
        inspection: Inspection,
        hardware: HardwareRecipe,
        controller: ControllerRecipe,
        limits: MotionLimits,
        keys: Keys | None,
    ) -> None:
        self._controller, self._limits, self._keys, self._asks = controller, limits, keys, inspection
        self._wanted = controller_setup.recipe_settings(hardware, controller)
        self._has_gripper = controller.gripper != "none"
        self._is_set_up = False
        self._error = 0

    def round_trips(self) -> Check:
        with waiting("round trips"):
            return attempt(
                "round trips",
                lambda: preflight.round_trips(self._asks.round_trips(_ROUND_TRIPS), self._controller.stream_hz),
            )

    def errors(self) -> Check:
        def line() -> Check:
            self._error, warning = self._asks.errors()
            return preflight.errors(self._error, warning)

        return attempt("errors", line)

    def emergency_stop(self, asked: bool) -> Check:
        name = "emergency stop"
        if not asked:
            return skipped(name, "left out with --no-estop")
        if self._keys is None:
            return skipped(name, "this is no terminal: nobody can be asked to press it")
        if self._error:
            return skipped(name, "the controller has an error already")
        return attempt(name, self._test_emergency_stop)

    def _test_emergency_stop(self) -> Check:
        assert self._keys is not None
        say(f"Press the [bold]emergency stop[/] now ({ESTOP_S:g} s). Enter leaves this test out.")
        self._keys.forget()
        pressed, end_s = 0, time.monotonic() + ESTOP_S
        while not pressed and time.monotonic() < end_s:
            if self._keys.pressed() == GO:
                return skipped("emergency stop", "left out by a key")
            error, _ = self._asks.errors()
            pressed = error if error in _EMERGENCY else 0
            time.sleep(0.05)
        if not pressed:
            return preflight.emergency_stop(0, False)
        say(f"C{pressed} is seen. Release the stop, then press Enter: that cleans the error, nothing moves.")
        self._keys.forget()
        while self._keys.next() != GO:
            continue
        try:
            self._asks.recover()
        except ControllerFault as fault:
            self._error = fault.code
        return preflight.emergency_stop(pressed, self._error == 0)

    def set_up(self, options: CheckOptions) -> list[Check]:
        """Store the recipe's settings, where asked; no line where that was not wanted, or worked."""
        try:
            self._is_set_up = not controller_setup.differences(self._wanted, self._asks.settings())
            ask = "Stored settings differ from the recipe's. Enter stores these: motors on, nothing moves. Else: no."
            wanted = options.set_up or options.move
            if not self._error and (wanted or (not self._is_set_up and self._agreed(ask))):
                with waiting("storing settings"):
                    self._asks.set_up(self._wanted)
                self._is_set_up = True
        except ArmError as error:
            return [refused("set-up", error)]
        return []

    def settings(self) -> Sequence[Check]:
        try:
            return preflight.settings(self._wanted, self._asks.settings())
        except ArmError as error:
            return [refused(name, error) for name in preflight.SETTINGS]

    def pose(self) -> Check:
        def line() -> Check:
            reports = wire.Reports(self._controller.address, self._controller.connect_timeout_s)
            try:
                joints = reports.wait(self._controller.connect_timeout_s).joints_rad
            finally:
                reports.close()
            return preflight.pose(joints, self._limits.gripper_max_m, self._limits)

        return attempt("pose", line)

    def gripper(self) -> Check:
        if not self._has_gripper:
            return skipped("gripper", 'controller.gripper = "none" in the recipe')
        return attempt("gripper", lambda: preflight.gripper_reading(self._asks.gripper_opening(), self._limits))

    def gripper_travel(self, options: CheckOptions) -> Check:
        name = "gripper travel"
        if not self._has_gripper:
            return skipped(name, 'controller.gripper = "none" in the recipe')
        if self._error or not self._is_set_up:
            return skipped(name, "the controller is not set up, see the other lines")
        if not (options.move or self._agreed("Enter opens and closes the gripper; fingers away. Any other key: no.")):
            return skipped(name, "it moves only after a key, or with --move")
        with waiting("gripper"):
            return attempt(name, self._travel)

    def _travel(self) -> Check:
        limits = self._limits
        self._asks.set_up(self._wanted)  # also switches the gripper on
        opened, closed = self._send_gripper(limits.gripper_max_m), self._send_gripper(limits.gripper_min_m)
        self._asks.move_gripper(limits.gripper_max_m)
        return preflight.gripper_travel(opened, closed, limits)

    def _send_gripper(self, target_m: float) -> float:
        """Where it came to rest [m]."""
        self._asks.move_gripper(target_m)
        last, end_s = np.nan, time.monotonic() + _TRAVEL_S
        moved_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s and now_s - moved_s < _STILL_S:
            time.sleep(0.2)
            opening = self._asks.gripper_opening()
            moved_s = moved_s if abs(opening - last) < _STILL_M else time.monotonic()
            last = opening
        return last

    def _agreed(self, question: str) -> bool:
        if self._keys is None:
            return False
        say(question)
        self._keys.forget()
        return self._keys.next() == GO


# --- cameras ------------------------------------------------------------------------------------------------------


def look_through_cameras(hardware: HardwareRecipe, pictures: Path | None = None) -> list[Check]:
    """A line for each camera, all of them open at once, and one for what they see; `pictures`: folder to keep it in."""
    if not hardware.cameras:
        return [skipped("cameras", "the recipe has none")]
    lines: dict[str, Check] = {}
    with ExitStack() as opened:
        watched: dict[str, Cameras] = {}
        for recipe in hardware.cameras:
            try:
                watched[recipe.name] = opened.enter_context(Cameras([recipe]))
            except SrpoRobotError as error:
                lines[recipe.name] = refused(f"camera {recipe.name}", error)
        recipes = {recipe.name: recipe for recipe in hardware.cameras if recipe.name in watched}
        frames, found = _watch(watched, recipes, hardware.fps)
    lines |= found
    if pictures is not None:
        _save(frames, pictures)
    seen = [recipes[name] for name in frames]
    views = attempt("camera views", lambda: preflight.camera_views(seen, check_references(seen, frames)))
    return [*(lines[recipe.name] for recipe in hardware.cameras), views]


def _watch(
    watched: dict[str, Cameras], recipes: dict[str, CameraRecipe], fps: float
) -> tuple[dict[str, Frame], dict[str, Check]]:
    """The last frame of each camera that works, and a line for each."""
    began_s = time.monotonic()
    times: dict[str, set[float]] = {name: set() for name in watched}
    ages: dict[str, float] = dict.fromkeys(watched, 0.0)
    frames: dict[str, Frame] = {}
    lines: dict[str, Check] = {}
    while (now_s := time.monotonic()) < began_s + _WATCH_S:
        for name in set(watched) - set(lines):
            try:
                frames[name] = watched[name].read()[name]
            except SrpoRobotError as error:
                lines[name] = refused(f"camera {name}", error)
                frames.pop(name, None)
                continue
            times[name].add(frames[name].time_s)
            ages[name] = max(ages[name], now_s - frames[name].time_s)
        time.sleep(0.005)
    for name, frame in frames.items():
        size = (frame.image.shape[0], frame.image.shape[1])
        reading = CameraReading(
            (len(times[name]) - 1) / (max(times[name]) - min(times[name]) or np.inf), ages[name], size
        )
        lines[name] = preflight.camera(recipes[name], reading, fps)
    return frames, lines


def _save(frames: dict[str, Frame], folder: Path) -> None:
    """What each camera sees as FOLDER/NAME.png, to look at and to keep as its reference."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        path = folder / f"{name}.png"
        path.write_bytes(cv2.imencode(".png", frame.image[..., ::-1])[1].tobytes())
        say(f"Picture of camera {name}: {path}")


# --- the policy ---------------------------------------------------------------------------------------------------


def _look_at_policy(
    hardware: HardwareRecipe, task: TaskRecipe | None, options: CheckOptions, before: Sequence[Check]
) -> list[Check]:
    """The lines of a policy; its first chunk is computed by the driver of a run, which sends nothing."""
    if task is None:
        return _skip("no --policy is given", *_BY_POLICY)
    try:
        return _ask_policy(hardware, task, options, any(check.verdict is CheckResult.FAIL for check in before))
    except SrpoRobotError as error:
        return [refused("policy", error), *_skip("no answer of the policy", "first chunk")]
    except Exception as error:  # whatever a model throws is a line of the list
        crash = failed("policy", f"crashed: {type(error).__name__}: {one_line(error)}", "look at its checkpoint")
        return [crash, *_skip("no answer of the policy", "first chunk")]


def _ask_policy(hardware: HardwareRecipe, task: TaskRecipe, options: CheckOptions, has_failed: bool) -> list[Check]:
    from srpo_robot.cli.running import load_any_policy, load_recipes

    load_recipes(options.arm, options.task)  # refuses a task whose cameras the arm does not have
    arm = XArm7(hardware, dry_run=True)
    space = make_action_space(task.action_space, arm.limits, arm.home_rad)
    policy = load_any_policy(options.policy, space, task, options.device)
    if has_failed:
        fits = preflight.passed("policy", f"{policy.name} fits arm and task")
        return [fits, *_skip("asked once the other lines pass", "first chunk")]
    with arm:
        seen = arm.observe()
        policy.reset(0)
        policy.act(seen)  # the first answer of a model takes longer
        began_s = time.monotonic()
        chunk = policy.act(seen)
        took_s = time.monotonic() - began_s
    if chunk is None:
        done = failed("first chunk", "the policy has nothing to do", "look at what its cameras see: --pictures DIR")
        return [preflight.passed("policy", f"answers in {took_s:.2f} s"), done]
    limits = controller_setup.motion_limits(hardware, _controller(hardware))
    start = ArmCommand(seen.state.joints_rad, seen.state.gripper_m)
    return [
        preflight.answer_time(took_s, len(chunk.actions), hardware.fps),
        attempt("first chunk", lambda: preflight.first_chunk(chunk, space, start, arm.limits, limits)),
    ]


def _controller(hardware: HardwareRecipe) -> ControllerRecipe:
    assert hardware.controller is not None
    return hardware.controller


def _print(checks: Sequence[Check], arm: str) -> None:
    made = Table(title=f"{arm}: before it moves", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    made.add_column("", no_wrap=True)
    made.add_column("check", no_wrap=True)
    made.add_column("found", overflow="fold")
    made.add_column("what to do", overflow="fold")
    for check in checks:
        colour = _COLOURS[check.verdict]
        made.add_row(f"[{colour}]{check.verdict}[/]", check.name, _plain(check.found), _plain(check.todo))
    console.print(made)
    counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in CheckResult}
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def _plain(text: str) -> str:
    """Text whose square brackets are no markup."""
    return text.replace("[", "\\[")
