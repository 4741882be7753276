"""Wraps the vendor's SDK for one xArm 7. Callers see rad, m, kg, s and exceptions only.

The link lives in the streamer's process. It holds three connections: one for commands, one for the stop (a call that
waits for a lost reply blocks its own connection), and one for the gripper. It never changes a baud rate, cleans an
error or moves the arm by itself. Euler angles do not leave this file.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from srpo_robot.arm.xarm7 import controller_setup, wire
from srpo_robot.arm.xarm7.controller_codes import CLOSED, NO_REPLY, ControllerFault, reply
from srpo_robot.arm.xarm7.controller_setup import Identity, StoredSettings
from srpo_robot.errors import ArmError
from srpo_robot.recipes import ControllerRecipe

_MM = 1000.0
_PULSES_PER_M = 10_000.0  # the xArm gripper: 850 pulses are 85 mm
_GRIPPER_BAUD = 2_000_000
_PATIENT_S = 2.0  # the SDK's own time limit, for calls outside the stream
_STOP_S = 0.3  # time limit of a stop before it is sent on a fresh connection
_MAX_SPEED_FACTOR = 1.2  # the vendor's default for the servo speed limit: 1.2 m/s
_HOME_ACCELERATION_RAD_S2 = 1.0
# baud_checkset: if True, the SDK cleans errors and makes the arm ready by itself when a baud rate differs.
_SAFE = {"is_radian": True, "forbid_uds": True, "check_joint_limit": True, "baud_checkset": False}
_QUICK_GRIPPER = {"wait": False, "wait_motion": False, "check_baud": False, "check_err": False}


class ControllerLink:
    """The controller of one arm. Codes of the SDK become `ArmError`. Every number is in rad, m, kg or s."""

    def __init__(self, recipe: ControllerRecipe, load_sdk: Callable[[int], Any]) -> None:
        """Identifies the controller, then connects.

        Args:
            recipe: the recipe's [controller].
            load_sdk: returns the vendor's SDK for a command port; see `driver.load_sdk`.

        Raises:
            ArmError: a controller's socket file exists, no controller answers, it is the wrong arm, or another client
                moves it.
        """
        controller_setup.refuse_socket_files()
        self.recipe = recipe
        self.identity = self._identify()
        self.status_s, self.error, self.warning = -np.inf, 0, 0  # from the 5 Hz report, which has the error byte
        self._sdk = load_sdk(recipe.command_port)
        self._commands = self._connect(enable_report=True, report_type="rich")
        self._stop = self._connect(enable_report=False, timed_comm=False)
        self._stop.set_timeout(_STOP_S)
        self._gripper = self._connect(enable_report=False, timed_comm=False) if recipe.gripper == "xarm" else None
        socket.setdefaulttimeout(None)  # the SDK sets one second for the whole process
        self._commands.register_report_callback(self._on_report, report_cartesian=False, report_joints=False)
        self._wait_for_reports(1)
        if self._commands.arm.is_simulation_robot:
            raise ArmError("the controller simulates its arm; leave simulation in the vendor's studio")

    def close(self) -> None:
        """Closes all connections. The arm stays as it is."""
        for api in (self._commands, self._stop, self._gripper):
            if api is not None:
                api.disconnect()

    # --- before motion ------------------------------------------------------------------------------------------------

    def settings(self) -> StoredSettings:
        """Returns the controller's stored settings, from its last 5 Hz report and function 53. Raises as `_check`."""
        api = self._commands
        code, states = api.get_reduced_states()
        _check(code, "read the reduced mode")
        reduced, box_mm, tcp_mm_s, joint_rad_s, ranges, fence, _ = states
        kg, centre_mm = api.tcp_load
        self_collision, tool_model, _ = api.self_collision_params
        return StoredSettings(
            tcp_offset_m=_metres(api.tcp_offset[:3]),
            tcp_turn_rad=tuple(api.tcp_offset[3:]),
            payload_kg=kg,
            payload_centre_m=_metres(centre_mm),
            collision_sensitivity=api.collision_sensitivity,
            self_collision=self_collision,
            tool_model=tool_model,
            fence=fence,
            fence_box_m=_metres(box_mm),
            reduced=reduced,
            reduced_tcp_speed_m_s=tcp_mm_s / _MM,
            reduced_joint_speed_rad_s=joint_rad_s,
            reduced_range_rad=tuple(ranges),
        )

    def set_up(self, recipe_settings: StoredSettings) -> None:
        """Stores each setting of `recipe_settings` that differs, then reads all of them back.

        Raises:
            ControllerFault: the controller has an error.
            ArmError: the controller refused a setting, or reads back another value.
        """
        self.check_errors()
        mismatches = controller_setup.differences(recipe_settings, self.settings())
        if mismatches:
            try:
                for action, call in self._setters(recipe_settings):
                    _check(call(), action)
            finally:
                self.halt()  # setting the collision sensitivity makes the arm ready by itself
            self._wait_for_reports(2)  # the first report may have been sent before the settings
            mismatches = controller_setup.differences(recipe_settings, self.settings())
        if mismatches:
            raise ArmError(f"the controller did not keep its settings: {'; '.join(mismatches)}; set them in its studio")
        self._check_speed_factor()
        if self._gripper is not None:
            self._set_up_gripper()

    def check_errors(self) -> None:
        """Raises ControllerFault if the controller has an error."""
        error, _ = self.errors()
        if error:
            raise ControllerFault(error)

    def errors(self) -> tuple[int, int]:
        """Returns the current error and warning, read on the stop connection. Raises ArmError if it does not answer."""
        code, answer = self._stop.get_err_warn_code()
        _check(code, "say its error")
        error, warning = answer
        return error, warning

    def recover(self) -> None:
        """Runs the vendor's sequence after an error: clean, enable, mode 0, ready, stop. Needs a person's confirmation.

        Raises:
            ControllerFault: the error remains (a pressed emergency stop, for example).
        """
        api = self._commands
        api.clean_error()
        api.clean_warn()
        self.check_errors()
        if self._gripper is not None:
            self._check_gripper(self._gripper.clean_gripper_error(check_baud=False), "clean the gripper's error")
        _check(api.motion_enable(True), "switch the motors on")
        _check(api.set_mode(0), "enter mode 0")
        _check(api.set_state(0), "get ready")
        self.check_errors()
        self.halt()

    # --- moving -------------------------------------------------------------------------------------------------------

    def make_ready(self, mode: int) -> None:
        """Switches the motors on, enters `mode` and gets ready. Moves nothing. Raises ArmError if a step is refused."""
        api = self._commands
        api.set_timeout(_PATIENT_S)
        _check(api.motion_enable(True), "switch the motors on")
        _check(api.set_mode(mode), f"enter mode {mode}")
        _check(api.set_state(0), "get ready")
        if mode != 0:
            api.set_timeout(self.recipe.command_timeout_s)

    def servo(self, joints_rad: np.ndarray) -> int:
        """Sends a set point in mode 1. Returns the SDK's code, 0 if it was accepted."""
        return self._outcome(self._commands.set_servo_angle_j(joints_rad.tolist(), is_radian=True))

    def online(self, joints_rad: np.ndarray, speed_rad_s: float, acceleration_rad_s2: float) -> int:
        """Sends a target in mode 6, which replaces the previous one. Returns the SDK's code, 0 if it was accepted."""
        self._needs_fresh_status()
        options = {"speed": speed_rad_s, "mvacc": acceleration_rad_s2, "is_radian": True, "wait": False}
        return self._outcome(self._commands.set_servo_angle(angle=joints_rad.tolist(), **options))

    def move_home(self, joints_rad: np.ndarray) -> None:
        """Begins the slow planned move of mode 0. Raises ArmError if it is refused."""
        options = {"speed": self.recipe.home_speed_rad_s, "mvacc": _HOME_ACCELERATION_RAD_S2, "wait": False}
        self._needs_fresh_status()
        _check(self._commands.set_servo_angle(angle=joints_rad.tolist(), is_radian=True, **options), "go home")

    def halt(self) -> None:
        """Stops the arm on the stop connection and waits for confirmation. Falls back to a fresh connection.

        Raises:
            ArmError: neither connection answers, or the arm does not stop.
        """
        deadline_s = time.monotonic() + _STOP_S
        while self._stop.set_state(wire.STOPPED) == 0 and time.monotonic() < deadline_s:
            code, state = self._stop.get_state()
            if code == 0 and state >= wire.STOPPED:
                return
        address = self.recipe.address, self.recipe.command_port
        wire.stop(*address, _STOP_S)
        if wire.ask(*address, wire.STATE, timeout_s=_STOP_S)[0] < wire.STOPPED:
            raise ArmError("the controller does not stop the arm")

    # --- the gripper, on its own connection and from its own thread ---------------------------------------------------

    @property
    def has_gripper(self) -> bool:
        """Whether the recipe has a gripper."""
        return self._gripper is not None

    def gripper_opening(self) -> float:
        """Returns the measured opening [m].

        Raises:
            ControllerFault: the gripper has an error; carries the gripper's own code.
            ArmError: the gripper's bus does not answer.
        """
        assert self._gripper is not None
        answer = self._gripper.get_gripper_position(check_baud=False)
        # After a failure the SDK returns a bare code.
        code, pulses = answer if isinstance(answer, tuple) else (answer, None)
        self._check_gripper(code, "read the gripper")
        if pulses is None:
            raise ArmError("the gripper does not say where it is; check its cable")
        return pulses / _PULSES_PER_M

    def move_gripper(self, opening_m: float) -> None:
        """Sends the gripper to `opening_m` without waiting. Raises as `gripper_opening`."""
        assert self._gripper is not None
        self._check_gripper(
            self._gripper.set_gripper_position(round(opening_m * _PULSES_PER_M), **_QUICK_GRIPPER), "move the gripper"
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _identify(self) -> Identity:
        recipe = self.recipe
        address = recipe.address, recipe.command_port
        identity = controller_setup.identify(
            wire.ask(*address, wire.VERSION, timeout_s=recipe.connect_timeout_s), recipe
        )
        state = wire.ask(*address, wire.STATE, timeout_s=recipe.connect_timeout_s)
        queued = wire.ask(*address, wire.QUEUED, timeout_s=recipe.connect_timeout_s)
        if state[:1] == bytes([wire.MOVING]) or any(queued[:2]):
            raise ArmError("another client moves the arm; end it (the vendor's studio, another program) and try again")
        return identity

    def _connect(self, **options: Any) -> Any:
        """Opens one connection with TCP_NODELAY, so that a set point never waits for another packet."""
        try:
            api = self._sdk.XArmAPI(
                self.recipe.address,
                is_radian=True,
                forbid_uds=True,
                baud_checkset=False,
                check_joint_limit=True,
                **options,
            )
        except Exception as error:  # the SDK raises nothing more specific
            raise ArmError(
                f"the xArm at {self.recipe.address} took no connection of the vendor's SDK ({error})"
            ) from None
        api.arm.arm_cmd.arm_port.com.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return api

    def _on_report(self, item: dict[str, Any]) -> None:
        self.error, self.warning, self.status_s = item["error_code"], item["warn_code"], time.monotonic()

    def _wait_for_reports(self, count: int) -> None:
        """Waits for `count` more of the 5 Hz reports. Raises ArmError if they do not arrive."""
        deadline_s, last_s = time.monotonic() + 3.0, self.status_s
        while count:
            if time.monotonic() > deadline_s:
                raise ArmError("the controller's 5 Hz report does not come (port 30002); let the network pass it")
            time.sleep(0.005)
            if self.status_s != last_s:
                last_s, count = self.status_s, count - 1

    def _outcome(self, code: int) -> int:
        """Returns the code of a set point. The SDK says "no reply in time" even if the connection broke meanwhile."""
        return CLOSED if code == NO_REPLY and not self._commands.connected else int(code)

    def _needs_fresh_status(self) -> None:
        """Raises ArmError if the 5 Hz report is silent, because the SDK's planned moves would then wait forever."""
        if time.monotonic() - self.status_s > 1.0:
            raise ArmError("the controller's 5 Hz report is silent; check the network")

    def _setters(self, settings: StoredSettings) -> list[tuple[str, Callable[[], Any]]]:
        """Returns the calls that store the settings, in a working order: only a ready arm accepts the payload."""
        api = self._commands
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("switch the motors on", lambda: api.motion_enable(True)),
            ("enter mode 0", lambda: api.set_mode(0)),
            (
                "set the TCP offset",
                lambda: api.set_tcp_offset([*_millimetres(settings.tcp_offset_m), 0, 0, 0], wait=False),
            ),
            ("get ready", lambda: api.set_state(0)),
            ("set the payload", lambda: api.set_tcp_load(settings.payload_kg, _millimetres(settings.payload_centre_m))),
            (
                "set the collision sensitivity",
                lambda: api.set_collision_sensitivity(int(settings.collision_sensitivity)),
            ),
            ("set self-collision", lambda: api.set_self_collision_detection(bool(settings.self_collision))),
            ("set the tool's model", lambda: api.set_collision_tool_model(int(settings.tool_model))),
            ("switch the rebound off", lambda: api.set_collision_rebound(False)),
        ]
        if settings.reduced:
            speed_mm_s = _MM * (settings.reduced_tcp_speed_m_s or 0.0)
            steps += [
                ("set the reduced TCP speed", lambda: api.set_reduced_max_tcp_speed(speed_mm_s)),
                (
                    "set the reduced joint speed",
                    lambda: api.set_reduced_max_joint_speed(settings.reduced_joint_speed_rad_s),
                ),
                (
                    "set the reduced joint range",
                    lambda: api.set_reduced_joint_range(list(settings.reduced_range_rad or ())),
                ),
            ]
        if settings.fence_box_m is not None:
            box_mm = [round(v) for v in _millimetres(settings.fence_box_m)]
            steps.append(("set the safety boundary", lambda: api.set_reduced_tcp_boundary(box_mm)))
        return [
            *steps,
            ("switch reduced mode", lambda: api.set_reduced_mode(bool(settings.reduced))),
            ("switch the fence", lambda: api.set_fence_mode(bool(settings.fence))),
        ]

    def _check_speed_factor(self) -> None:
        if self.identity.firmware < (2, 3, 0):
            return
        code, factor = self._commands.get_linear_spd_limit_factor()
        _check(code, "read the speed factor")
        if factor > _MAX_SPEED_FACTOR + 1e-3:
            raise ArmError(
                f"another program raised the controller's speed factor: wanted {_MAX_SPEED_FACTOR} at most, got "
                f"{factor:.2f}; power the control box off and on"
            )

    def _set_up_gripper(self) -> None:
        api: Any = self._gripper
        code, baud = api.get_rs485_baudrate()
        self._check_gripper(code, "read the gripper's bus")
        if baud != _GRIPPER_BAUD:
            raise ArmError(f"the tool's bus runs at {baud} baud, wanted {_GRIPPER_BAUD}; set it in the vendor's studio")
        self._check_gripper(api.set_gripper_mode(0), "set the gripper's mode")
        self._check_gripper(api.set_gripper_enable(True), "switch the gripper on")
        self._check_gripper(api.set_gripper_speed(self.recipe.gripper_rpm), "set the gripper's speed")

    def _check_gripper(self, code: int, action: str) -> None:
        if code == 0:
            return
        api: Any = self._gripper
        answer, gripper_error = api.get_gripper_err_code(check_baud=False)
        if answer == 0 and gripper_error:
            raise ControllerFault(gripper_error, gripper=True)
        self.check_errors()
        _check(code, action)


def _check(code: Any, action: str) -> None:
    code = code[0] if isinstance(code, list | tuple) else code  # a few calls return a list
    if code != 0:
        raise ArmError(f"the controller did not {action}: {reply(code)}")


def _metres(values_mm: Any) -> tuple[float, ...]:
    return tuple(float(v) / _MM for v in values_mm)


def _millimetres(values_m: tuple[float, ...]) -> list[float]:
    return [_MM * v for v in values_m]
