"""The driver of the xArm 7, as the rest of the program uses it. The only file that imports the vendor's SDK.

A separate process (`streamer`) drives the controller. A slow policy therefore cannot make the arm stutter, and a
crashed program cannot leave it running. Nothing moves before `go_home` or the first `send`. After a stop or a fault,
nothing moves until a person has confirmed it (`go_home`, `resume`, `recover`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from srpo_robot.arm.arm import Arm
from srpo_robot.arm.cameras import Cameras
from srpo_robot.arm.limits import Limited
from srpo_robot.arm.xarm7 import controller_setup, motion
from srpo_robot.arm.xarm7.set_points import LOG
from srpo_robot.arm.xarm7.streamer_process import StreamerConfig, StreamerProcess
from srpo_robot.errors import ArmError, CommandRefused, RecipeError
from srpo_robot.recipes import ControllerRecipe, HardwareRecipe
from srpo_robot.records import ArmCommand, ArmState, Observation

_ANSWER_S = 10.0  # time limit for getting ready
_SILENCE_S = 0.6  # time beyond the longest call after which the streamer's log counts as dead
_CATCH_UP_S = 10.0  # time limit for reading the log of a pause
_FRESH_S = 0.05  # a tick of at most this age counts as the newest
_LATE = 0.25  # fraction of a control period: a command later than this begins a new schedule


class XArm7(Arm):
    """An xArm 7 with its gripper and cameras. Use it as a context manager; leaving the block stops the arm.

    Args:
        recipe: a recipe of kind "xarm7" with a [controller].
        dry_run: connect, read and check everything, and compute every set point, but send none.
        first_pace: fraction of the speed caps in use until `pace` is set to 1.0 (after the first live chunk).

    Attributes:
        info: serial numbers, firmware and settings of the controller, once open.
        late: number of commands that came too late for the schedule of control periods. The arm held meanwhile.
    """

    def __init__(self, recipe: HardwareRecipe, *, dry_run: bool = False, first_pace: float = 1.0) -> None:
        """Raises RecipeError if the recipe is not for an xArm 7, or contradicts itself."""
        super().__init__(recipe)
        if recipe.kind != "xarm7" or recipe.controller is None:
            raise RecipeError(f"{recipe.name}: an xArm 7 needs kind = 'xarm7' and a [controller] with its address")
        self._controller: ControllerRecipe = recipe.controller
        _check_stream(self._controller)
        controller_setup.recipe_settings(recipe, self._controller)
        limits = controller_setup.motion_limits(recipe, self._controller)
        try:
            motion.at_rest(self.home_rad, limits.gripper_max_m, limits)
        except CommandRefused as error:
            raise RecipeError(f"{recipe.name}: home_rad: {error}") from None
        self._full_limits = self.limits
        self.pace = first_pace
        self.dry_run = dry_run
        self.info: dict[str, Any] = {}
        self.late = 0
        self._cameras = Cameras(recipe.cameras) if recipe.cameras else None
        self._streamer: StreamerProcess | None = None
        self._log: list[np.ndarray] = []
        self._ready_at: int | None = None  # number of stops at the time of the last get-ready; None: never ready yet
        self._needs_person = False
        self._due_s = 0.0
        self._number = 0

    @property
    def pace(self) -> float:
        """Fraction of the speed caps that is used, above 0 to 1."""
        return self._pace

    @pace.setter
    def pace(self, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise RecipeError(f"a pace is a share of the speed caps, above 0 to 1, not {share}")
        self._pace, full = share, self._full_limits
        steps = {"joint_step_rad": share * full.joint_step_rad, "gripper_step_m": share * full.gripper_step_m}
        self.limits = replace(full, **steps)

    # --- the contract -------------------------------------------------------------------------------------------------

    def send(self, command: ArmCommand) -> Limited:
        """Does the same as `Arm.send`. Returns at the end of the control period.

        If the set points were held back (TCP speed, box, table), the newest set point counts as the executed command.
        The result then also names the layers that held it back.
        """
        limited = super().send(command)
        process = self._process()
        held = tuple(layer for layer in process.take_limited_by() if layer not in limited.limited_by)
        newest = process.newest
        if not held or newest is None or np.isnan(newest["sent_rad"]).any():
            return limited
        self.commanded = ArmCommand(newest["sent_rad"], float(newest["gripper_m"]))
        return Limited(self.commanded, (*limited.limited_by, *held))

    def observe(self, images: bool = True) -> Observation:
        """Returns the newest report and pictures. The cameras are checked at every step, even if `images` is False.

        Raises:
            ArmError: the streamer stopped the arm, or is silent.
            CameraError: a picture is missing, old or frozen.
        """
        row = self._newest_tick()
        state = ArmState(float(row["report_s"]), row["reported_rad"], float(row["gripper_reported_m"]))
        frames = self._cameras.read() if self._cameras is not None else {}
        pictures = {name: frame.image for name, frame in frames.items()}
        return Observation(state, self.commanded or ArmCommand(state.joints_rad, state.gripper_m), pictures)

    def stop(self) -> None:
        """Stops motion immediately, ahead of all pending messages. It is safe from any thread, at any time, also twice.

        Nothing moves again before `go_home` or `resume`.

        Raises:
            ArmError: the controller did not confirm the stop.
        """
        self.commanded = None
        if self._streamer is not None and not self._streamer.stop():
            raise ArmError("the controller did not confirm the stop: PRESS THE EMERGENCY STOP, then check the network")

    # --- moves that a person must have confirmed ----------------------------------------------------------------------

    def go_home(self) -> None:
        """Moves home slowly on a straight line in joint space, then gets ready. A person must have confirmed the way.

        Raises:
            ArmError: the way leaves the limits, the arm has a fault, or it was stopped.
        """
        distance_rad = float(np.abs(self.observe().state.joints_rad - self.home_rad).max())
        stops = self._process().stops
        self._get_ready("home", stops, 10.0 + 2.0 * distance_rad / self._controller.home_speed_rad_s, self.home_rad)

    def resume(self) -> None:
        """Gets ready at the current pose after a stop. A person must have confirmed it. Raises as `go_home`."""
        self._get_ready("arm", self._process().stops, _ANSWER_S)

    def recover(self, *, confirmed: bool) -> None:
        """Cleans the controller's error with the vendor's sequence, whether open or not.

        The arm stands still until `go_home` or `resume`.

        Raises:
            ArmError: no person has confirmed it, or the error remains.
        """
        if not confirmed:
            raise ArmError("an error is cleaned only after a person has looked and confirmed")
        was_open = self._streamer is not None and self._streamer.is_open
        self._close_streamer()
        config = StreamerConfig(self.recipe, False, "recover")
        with contextlib.closing(StreamerProcess(config, self._controller)) as process:
            process.start("recovered")
        if was_open:
            self._open_streamer()
            self._needs_person = True

    def take_log(self) -> np.ndarray:
        """Returns every tick of the streamer since the last call: structured array of `set_points.LOG`."""
        if self._streamer is not None:
            self._log.append(self._streamer.take_log())
        rows, self._log = np.concatenate([np.zeros(0, LOG), *self._log]), []
        return rows

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._cameras is not None:
            self._cameras.open()
        try:
            self._open_streamer()
        except BaseException:
            if self._cameras is not None:
                self._cameras.close()
            raise

    def _close(self) -> None:
        try:
            self._close_streamer()
        finally:
            if self._cameras is not None:
                self._cameras.close()

    def _drive(self, command: ArmCommand) -> None:
        process = self._process()
        if self._ready_at is None and not self._needs_person:
            self._get_ready("arm", 0, _ANSWER_S)  # refused if the arm was stopped since it was opened
        if self._ready_at != process.stops:
            raise ArmError("the arm was stopped; go_home or resume it after a person has confirmed")
        now_s = time.monotonic()
        on_time = now_s <= self._due_s + _LATE * self.period_s
        self.late += 0 if on_time or self._due_s == 0.0 else 1
        self._due_s = (self._due_s if on_time else now_s) + self.period_s
        self._number += 1
        process.take_limited_by()
        process.aim(self._number, command, self._due_s, self._pace)
        process.watch(self._due_s)
        refusal = process.take_refusal()
        if refusal is not None:
            raise refusal

    def _newest_tick(self) -> np.void:
        """Returns the newest tick. After a pause (a person at the keys) the log is behind and arrives in pieces."""
        process, now_s = self._process(), time.monotonic()
        give_up_s, oldest_s = now_s + _CATCH_UP_S, self._controller.command_timeout_s + _SILENCE_S
        last_row, last_change_s = None, now_s
        while True:
            process.poll()
            row, now_s = process.newest, time.monotonic()
            if row is not last_row:
                last_row, last_change_s = row, now_s
            if row is not None:
                age_s = now_s - row["time_s"]
                # An idle log means that the streamer waits for a reply: this is the newest tick.
                log_is_idle = now_s - last_change_s > _FRESH_S
                if age_s <= _FRESH_S or (log_is_idle and age_s <= oldest_s):
                    return row
            if now_s > give_up_s:
                raise ArmError("the streamer is silent; the arm is being stopped: start again")
            time.sleep(0.002)

    def _get_ready(self, order: str, stops: int, timeout_s: float, *values: Any) -> None:
        """Gives an order and waits for it. It is void after more than `stops` stops, now or meanwhile."""
        process = self._process()
        self.commanded, self._due_s = None, 0.0
        process.tell(order, stops, *values)
        error = process.wait("armed", timeout_s)
        if error is not None:
            raise error
        self._ready_at, self._needs_person = stops, False

    def _open_streamer(self) -> None:
        self._ready_at, self._needs_person = None, False
        self._streamer = StreamerProcess(StreamerConfig(self.recipe, self.dry_run), self._controller)
        self.info = self._streamer.start()

    def _close_streamer(self) -> None:
        if self._streamer is not None and self._streamer.is_open:
            self._streamer.close()
            self._log.append(self._streamer.take_log())

    def _process(self) -> StreamerProcess:
        if self._streamer is None or not self._streamer.is_open:
            raise ArmError("the arm is not open; use it as a context manager: with arm: ...")
        return self._streamer


def load_sdk(command_port: int) -> Any:
    """Returns the vendor's SDK, silenced and set to the command port.

    The SDK creates a folder in the home directory on import, so it gets a temporary home.
    """
    with tempfile.TemporaryDirectory() as home, _home(home), contextlib.redirect_stdout(None):
        import xarm.wrapper as sdk
        from xarm.core.config.x_config import XCONF
        from xarm.core.utils import log
    for logger in (log.logger, log.origin_logger):
        logger.setLevel(logging.CRITICAL + 1)
    socket_settings: Any = XCONF.SocketConf  # the SDK takes another port in no other way
    socket_settings.TCP_CONTROL_PORT = command_port
    return sdk


@contextlib.contextmanager
def _home(folder: str) -> Iterator[None]:
    before = os.environ.get("HOME")
    os.environ["HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before


def _check_stream(controller: ControllerRecipe) -> None:
    low, high = {"servo": (30.0, 250.0), "online": (20.0, 50.0)}[controller.stream]
    if not low <= controller.stream_hz <= high:
        raise RecipeError(
            f"controller.stream_hz is {controller.stream_hz:g}; with stream = {controller.stream!r} it is {low:g} to "
            f"{high:g}"
        )
