"""Checks that must hold before an arm moves: one line each, PASS, FAIL or SKIP, with the finding and the remedy.

Pure functions from readings to lines. `srpo-robot check` reads, asks and prints (`cli.checking`). A check that was not
made never counts as passed: it is a SKIP with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.arm.limits import Limits, limit
from srpo_robot.arm.xarm7 import controller_setup, motion
from srpo_robot.arm.xarm7.controller_codes import ControllerFault
from srpo_robot.arm.xarm7.controller_setup import Identity, StoredSettings
from srpo_robot.arm.xarm7.motion import MotionLimits
from srpo_robot.errors import SrpoRobotError, one_line
from srpo_robot.recipes import CameraRecipe, HardwareRecipe
from srpo_robot.records import ActionChunk, ArmCommand

FREE_BYTES = 5_000_000_000  # films, logs and episodes of a day of trials
_RTT_SHARE = 0.5  # fraction of a set point's period; 99 of 100 round trips must be faster
_GRIPPER_M = 0.003  # largest difference between the commanded and the measured opening
_RATE_SHARE = 0.9  # fraction of the control rate that a camera must reach
_CHANGED_SHARE = 0.5  # fraction of a chunk's actions; above it, the executed actions no longer represent the policy
_STREAM = ("http://", "https://")


class CheckResult(StrEnum):
    """Result of one check."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Attributes:
        name: the subject of the check.
        verdict: PASS, FAIL, or SKIP if the check was not made.
        found: the reading, or the reason for a SKIP.
        todo: the remedy of a FAIL, else "".
    """

    name: str
    verdict: CheckResult
    found: str
    todo: str = ""


def passed(name: str, finding: str) -> Check:
    """Returns a line that passes."""
    return Check(name, CheckResult.PASS, finding)


def failed(name: str, finding: str, todo: str) -> Check:
    """Returns a line that fails, with its remedy `todo`."""
    return Check(name, CheckResult.FAIL, finding, todo)


def skipped(name: str, reason: str) -> Check:
    """Returns a line for a check that was not made."""
    return Check(name, CheckResult.SKIP, reason)


def refused(name: str, error: SrpoRobotError) -> Check:
    """Returns the failing line of an error. Its message gives the problem, then, after a semicolon, the remedy."""
    finding, _, todo = one_line(error).partition("; ")
    return failed(name, finding, todo)


def attempt(name: str, look: Callable[[], Check]) -> Check:
    """Returns the line of `look`. If it raises, that line fails and the list goes on."""
    try:
        return look()
    except SrpoRobotError as error:
        return refused(name, error)


# --- the controller -----------------------------------------------------------------------------------------------


def socket_files() -> Check:
    """Checks that no controller's socket file exists: programs with the vendor's SDK would take it for the arm."""
    controller_setup.refuse_socket_files()
    return passed("socket files", "none of a controller")


def identity(answer: Identity, sdk: str, serial: str) -> Check:
    """Reports the arm that answers and its versions. `controller_setup.identify` has already refused wrong arms.

    Args:
        answer: identity of the controller.
        sdk: version of the vendor's SDK on this machine.
        serial: the recipe's serial number, "" for any.
    """
    firmware = ".".join(map(str, answer.firmware))
    match = "as in the recipe" if serial else "any would do: controller.serial is empty"
    box = f"box {answer.box_serial}, firmware {firmware}, SDK {sdk}"
    return passed("arm", f"xArm {answer.axes}, {answer.serial} ({match}), {box}")


def joint_range(recipe: HardwareRecipe, answer: Identity) -> Check:
    """Checks the recipe's joint range against this generation of the arm. Raises RecipeError if it is wider."""
    controller_setup.joint_range(recipe, answer)
    return passed("joint range", f"the recipe's is inside that of {answer.serial[:6]}")


def round_trips(seconds: np.ndarray, stream_hz: float) -> Check:
    """Checks that replies arrive well before the next set point is due. `seconds`: (n,) of a read-only command."""
    p50, p99, longest = 1000 * np.percentile(seconds, [50, 99, 100])
    most = 1000 * _RTT_SHARE / stream_hz
    finding = f"p50 {p50:.2f}, p99 {p99:.2f}, max {longest:.2f} ms of {len(seconds)}"
    if p99 <= most:
        return passed("round trips", finding)
    todo = f"99 of 100 below {most:g} ms are needed at {stream_hz:g} Hz: a cable straight to the control box, no busy"
    return failed("round trips", finding, f'{todo} machine; or controller.stream = "online"')


def errors(error: int, warning: int) -> Check:
    """Checks that the controller has no error and no warning."""
    if error:
        fault = ControllerFault(error)
        return failed("errors", one_line(fault).partition(";")[0], fault.remedy)
    if warning:
        return failed("errors", f"warning W{warning}", "look why in the vendor's studio, and clean it there")
    return passed("errors", "no error, no warning")


# Lines of the list: the stored settings of each, and the recipe's key (if any) that may switch the check off.
_SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "TCP offset": (("tcp_offset_m", "tcp_turn_rad"), ""),
    "payload": (("payload_kg", "payload_centre_m"), ""),
    "collision sensitivity": (("collision_sensitivity",), ""),
    "self-collision": (("self_collision", "tool_model"), "self_collision"),
    "fence": (("fence", "fence_box_m"), "fence"),
    "reduced mode": (
        ("reduced", "reduced_tcp_speed_m_s", "reduced_joint_speed_rad_s", "reduced_range_rad"),
        "reduced",
    ),
}
SETTINGS = tuple(_SETTINGS)


def settings(expected: StoredSettings, stored: StoredSettings) -> tuple[Check, ...]:
    """Compares the stored settings with the recipe's. Returns one line for each of `SETTINGS`."""
    mismatches = {line.partition(":")[0]: line for line in controller_setup.differences(expected, stored)}
    lines = []
    for name, (keys, switch) in _SETTINGS.items():
        problem = "; ".join(
            mismatches[key] if key in _SHOWN_KEYS else f"{key} differs" for key in keys if key in mismatches
        )
        if problem:
            lines.append(failed(name, problem, "store the recipe's: add --set-up; a run does so at its start"))
        elif switch and not getattr(expected, switch):
            lines.append(skipped(name, f"controller.{switch} = false in the recipe"))
        else:
            lines.append(passed(name, ", ".join(f"{key} {_format(stored, key)}" for key in keys if key in _SHOWN_KEYS)))
    return tuple(lines)


# The other two keys are long, and always the same.
_SHOWN_KEYS = {field.name for field in fields(StoredSettings)} - {"tcp_turn_rad", "reduced_range_rad"}


def _format(stored: StoredSettings, key: str) -> str:
    value = getattr(stored, key)
    if key in ("self_collision", "fence", "reduced"):
        return "on" if value else "off"
    return " ".join(f"{v:.3g}" for v in np.atleast_1d(np.round(np.asarray(value, dtype=np.float64), 6)))


def pose(joints_rad: np.ndarray, gripper_m: float, limits: MotionLimits) -> Check:
    """Checks that the arm is inside joint range and box and above the table. Raises CommandRefused if it is not."""
    motion.at_rest(joints_rad, gripper_m, limits)
    low, high = limits.joint_min_rad, limits.joint_max_rad
    nearest = int(np.argmin(np.minimum(joints_rad - low, high - joints_rad)))
    gap = np.rad2deg(min(joints_rad[nearest] - low[nearest], high[nearest] - joints_rad[nearest]))
    return passed("pose", f"inside joint range, box and table; joint {nearest + 1} is {gap:.0f}° from its limit")


def gripper_reading(opening_m: float, limits: MotionLimits) -> Check:
    """Checks that the gripper's reading is within the recipe's range."""
    finding = f"reads {1000 * opening_m:.1f} mm"
    if limits.gripper_min_m - _GRIPPER_M <= opening_m <= limits.gripper_max_m + _GRIPPER_M:
        return passed("gripper", finding)
    return failed("gripper", finding, "set limits.gripper_min_m and gripper_max_m to this gripper's stroke")


def gripper_travel(opened_m: float, closed_m: float, limits: MotionLimits) -> Check:
    """Checks the measured openings after the gripper was opened and closed."""
    finding = f"opened to {1000 * opened_m:.1f} mm, closed to {1000 * closed_m:.1f} mm"
    off = max(abs(opened_m - limits.gripper_max_m), abs(closed_m - limits.gripper_min_m))
    if off <= _GRIPPER_M:
        return passed("gripper travel", finding)
    todo = f"it should reach {1000 * limits.gripper_max_m:g} and {1000 * limits.gripper_min_m:g} mm: take out what is"
    return failed("gripper travel", finding, f"{todo} between the fingers, or correct the recipe's stroke")


# --- cameras ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CameraReading:
    """Reading of a camera: new pictures a second [Hz], largest age of the newest one [s], size (height, width)."""

    rate_hz: float
    age_s: float
    size_px: tuple[int, int]


def camera(recipe: CameraRecipe, reading: CameraReading, fps: float) -> Check:
    """Checks a camera's rate against the control rate, the age of its pictures, and that its exposure is fixed."""
    name = f"camera {recipe.name}"
    is_stream = recipe.source.startswith(_STREAM)
    height, width = reading.size_px
    finding = f"{reading.rate_hz:.1f} Hz, {1000 * reading.age_s:.0f} ms old at most, {width} x {height}"
    if reading.rate_hz < _RATE_SHARE * fps:
        return failed(name, finding, f"the arm is controlled at {fps:g} Hz: more light, another port, or a lower fps")
    if reading.age_s > recipe.max_age_s:
        return failed(
            name, finding, f"pictures must be {1000 * recipe.max_age_s:g} ms old at most: a faster port or mode"
        )
    if not is_stream and not {"auto_exposure", "exposure"} <= set(recipe.fixed):
        todo = "fix it in the recipe: fixed = {auto_exposure = 1, exposure = ...}, values as v4l2-ctl -L lists them"
        return failed(name, f"{finding}; its exposure is not fixed", todo)
    exposure = "set where the stream comes from" if is_stream else f"{recipe.fixed['exposure']:g}, read back"
    return passed(name, f"{finding}; exposure {exposure}")


def camera_views(recipes: Sequence[CameraRecipe], problems: Sequence[str]) -> Check:
    """Checks the cameras against their reference pictures. `problems`: lines of `cameras.check_references`."""
    checked = [recipe.name for recipe in recipes if recipe.reference]
    if problems:
        finding, todo = zip(*(line.partition("; ")[::2] for line in problems), strict=True)
        return failed("camera views", "; ".join(finding), "; ".join(dict.fromkeys(todo)))
    if not checked:
        return skipped(
            "camera views", "no camera has a reference: take pictures with --pictures, name them in the recipe"
        )
    return passed("camera views", f"{', '.join(checked)} as in their references")


# --- the policy ---------------------------------------------------------------------------------------------------


def first_chunk(
    chunk: ActionChunk, space: ActionSpace, start: ArmCommand, limits: Limits, motion_limits: MotionLimits
) -> Check:
    """Passes a policy's first actions through the limits, starting at the current pose. Nothing moves.

    Raises:
        CommandRefused: an action is not finite, or has the wrong length.
    """
    previous, counts, changed = start, dict[str, int](), 0
    path = [start.joints_rad]
    for row in chunk.actions:
        requested = space.command(row, previous)
        limited = limit(requested.command, previous, limits)
        layers = {*requested.limited_by, *limited.limited_by}
        changed += bool(layers)
        for layer in layers:
            counts[layer] = counts.get(layer, 0) + 1
        previous = limited.command
        path.append(previous.joints_rad)
    if "table" in motion.broken_layers(np.array(path), motion_limits):
        counts["table"] = sum("table" in motion.broken_layers(at[None], motion_limits) for at in path[1:])
    listed = ", ".join(f"{layer} {count}" for layer, count in sorted(counts.items())) or "none"
    finding = f"{changed} of {len(chunk.actions)} actions changed by a limit ({listed})"
    if "table" in counts or changed > _CHANGED_SHARE * len(chunk.actions):
        return failed(
            "first chunk", finding, "look at the policy's normalisation and cameras; go on with --first-pace 0.1"
        )
    return passed("first chunk", finding)


def answer_time(seconds: float, actions: int, fps: float) -> Check:
    """Checks that the policy answers before the actions of its last answer run out. Otherwise the arm holds."""
    lasts_s = actions / fps
    finding = f"answers in {seconds:.2f} s, for {actions} actions that last {lasts_s:.2f} s"
    if seconds <= lasts_s:
        return passed("policy", finding)
    return failed(
        "policy", finding, "the arm would stand most of the time: a faster machine, served with srpo-robot serve"
    )


# --- the machine --------------------------------------------------------------------------------------------------


def disk(free_bytes: int) -> Check:
    """Checks that there is room for the recordings."""
    finding = f"{free_bytes / 1e9:.1f} GB free"
    if free_bytes >= FREE_BYTES:
        return passed("disk", finding)
    return failed("disk", finding, f"make room: {FREE_BYTES / 1e9:g} GB for a day of trials")


def emergency_stop(pressed: int, released: bool) -> Check:
    """Reports the emergency stop test.

    Args:
        pressed: error code while the button was pressed, 0 if there was none.
        released: whether the error could be cleared after the release.
    """
    name = "emergency stop"
    if not pressed:
        return failed(name, "pressed, and the controller saw nothing", "check its cable; the arm must not move before")
    if not released:
        return failed(name, f"C{pressed} seen, and it stays", "release the button (turn it), then check again")
    return passed(name, f"C{pressed} seen while pressed, gone after the release; the arm is stopped")
