"""Sends a steady stream of set points to the controller, whatever the rest of the program does: loop and threads.

The loop sends set points and watches the reports. The stop has its own thread, its own connection and its own channel
into the process. The gripper has its own thread and connection too, because its bus is slow. Every fault (a code, a
state, an error, an old report, a target that is not finite, the death of the parent program) ends with the arm at rest:
it brakes if it can and stops if it must. Nothing here restarts motion.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from srpo_robot.arm.xarm7 import controller_setup, motion, wire
from srpo_robot.arm.xarm7.controller_codes import NOT_READY, ControllerFault, reply
from srpo_robot.arm.xarm7.controller_link import ControllerLink
from srpo_robot.arm.xarm7.set_points import LOG, Deadlines, SetPoints, bits_of_layers
from srpo_robot.arm.xarm7.streamer_process import NOT_STOPPED, STOP, STOPPED, StreamerConfig
from srpo_robot.errors import ArmError, CommandRefused, SrpoRobotError
from srpo_robot.records import JOINTS, ArmCommand

GRIPPER_PERIOD_S = 0.1  # between commands on the tool's bus; faster ones are known to break it
_GRIPPER_READ_S = 0.2
_GRIPPER_STEP_M = 1e-4  # smaller changes are not sent
_FROZEN_S, _FROZEN_RAD = 0.3, 0.02  # fault: reports repeat this long while the set points moved this far
_BEHIND_RAD = 0.35  # fault: the arm is this far behind its set points
_STATUS_AGE = 10  # the 5 Hz report may be this many times older than the 100 Hz one
_IDLE_AGE_S = 1.0  # largest age of the report while nothing moves
_READY_S = 3.0
_THERE_RAD = 2e-3
_ORPHAN_S = 1.0  # from the death of the program to a stop that does not wait for the loop
_BACKLOG = 60_000  # ticks that are kept while the log is not read


class StreamerState(IntEnum):
    """State of the streamer. It is also in the log."""

    IDLE = 0
    STREAM = 1
    HOME = 2
    STOPPED = 3
    FAULT = 4


@dataclass(frozen=True)
class Channels:
    """IPC channels to the parent process: messages, stop socket, log pipe. See `streamer_process`."""

    messages: Connection
    stop: socket.socket
    log: int  # file descriptor


class Streamer:
    """The loop and its threads around a `ControllerLink`. Use `run`."""

    def __init__(self, config: StreamerConfig, link: ControllerLink, channels: Channels) -> None:
        """Raises ArmError if the reports or the gripper do not answer, and RecipeError as `joint_range`."""
        controller = link.recipe
        self._link, self._controller, self._dry = link, controller, config.dry_run
        limits = controller_setup.motion_limits(config.recipe, controller)
        joints = controller_setup.joint_range(config.recipe, link.identity)
        self._limits = replace(limits, joint_min_rad=joints[:, 0], joint_max_rad=joints[:, 1])
        self._tick_s = 1.0 / controller.stream_hz
        self._mode = controller_setup.MODES[controller.stream]
        self._messages, self._stop_channel, self._log_pipe = channels.messages, channels.stop, channels.log
        self._reports = wire.Reports(controller.address, controller.connect_timeout_s)
        self._state = StreamerState.IDLE
        self._points: SetPoints | None = None
        self._home = np.zeros(JOINTS)
        self._home_until_s = 0.0
        self._backlog: deque[bytes] = deque(maxlen=_BACKLOG)
        self._row = np.zeros((), LOG)
        self._orphan = threading.Event()
        self._ended = threading.Event()
        self._stops = self._confirmed_stops = 0  # number of stops, now and at the last order
        self._gripper_target_m: float | None = None
        self._gripper_m = self._opening()
        self._gripper_error: ArmError | None = None

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, info: dict[str, Any]) -> None:
        """Reports "ready" with `info`, then streams until it is told to end or the parent dies. The arm stands then."""
        self._reports.wait(self._controller.connect_timeout_s)
        for target in (self._serve_stop, self._serve_gripper):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        deadlines = Deadlines(time.monotonic(), self._tick_s)
        self._tick(time.monotonic(), 0.0, 0)
        self._notify("ready", info)
        try:
            while not self._ended.is_set():
                time.sleep(max(deadlines.next_s - time.monotonic(), 0.0))
                became_ready = self._receive()
                now_s = time.monotonic()
                if became_ready:  # getting ready takes a while, so the stream begins now
                    deadlines = Deadlines(now_s, self._tick_s)
                late_s, missed = deadlines.begin(now_s)
                self._tick(now_s, late_s, missed)
        except BaseException:  # the arm must stand, whatever went wrong here
            self._halt()
            raise
        self._flush()

    def _tick(self, now_s: float, late_s: float, missed: int) -> None:
        row = self._row = np.zeros((), LOG)
        row["time_s"], row["late_s"], row["missed"], row["target"] = now_s, late_s, missed, -1
        for name in ("asked_rad", "sent_rad", "asked_gripper_m", "gripper_m", "reply_s"):
            row[name] = np.nan
        report = self._reports.latest
        assert report is not None
        row["reported_rad"], row["report_s"] = report.joints_rad, report.time_s
        row["gripper_reported_m"] = self._gripper_m
        row["state"], row["mode"] = report.state, report.mode
        row["error"], row["warning"] = self._link.error, self._link.warning
        try:
            self._watch(now_s, report)
            if self._state is StreamerState.STREAM:
                self._stream(now_s)
            elif self._state is StreamerState.HOME:
                self._go_home(now_s, report)
        except ArmError as error:
            self._fail(error)
        row["phase"] = self._state
        self._backlog.append(row.tobytes())
        self._flush()

    def _stream(self, now_s: float) -> None:
        points, row = self._points, self._row
        assert points is not None
        if self._orphan.is_set():
            points.brake()
        target = points.target_at(now_s)
        limited_by = points.advance(now_s)
        set_point = points.motion.joints_rad if self._mode == controller_setup.MODES["servo"] else points.resting_place
        row["target"], row["limited_by"] = points.number, bits_of_layers(limited_by)
        row["asked_rad"], row["asked_gripper_m"] = target.joints_rad, target.gripper_m
        row["gripper_m"] = self._gripper_target_m = points.motion.gripper_m
        row["sent_rad"] = set_point
        if not self._dry:
            self._send(set_point)
        if self._orphan.is_set() and points.motion.at_rest:
            self._end()

    def _send(self, joints_rad: np.ndarray) -> None:
        began_s = time.monotonic()
        if self._mode == controller_setup.MODES["servo"]:
            code = self._link.servo(joints_rad)
        else:
            limits = self._limits
            code = self._link.online(joints_rad, limits.joint_speed_rad_s, limits.joint_acceleration_rad_s2)
        self._row["reply_s"], self._row["code"] = time.monotonic() - began_s, code
        if code != 0 and not self._was_stopped():
            if code == NOT_READY:
                raise _lost_control()
            raise ArmError(f"the controller did not take a set point: {reply(code)}; the arm has stopped")

    def _watch(self, now_s: float, report: wire.Report) -> None:
        """Raises ArmError if the arm must not go on. Registers a stop."""
        if self._was_stopped():
            self._state, self._points = StreamerState.STOPPED, None
        if self._orphan.is_set() and self._state is not StreamerState.STREAM:
            self._end()
            return
        moving = self._state in (StreamerState.STREAM, StreamerState.HOME)
        if self._state is StreamerState.FAULT:
            return
        if self._reports.error:
            raise ArmError(
                f"the report's connection broke ({self._reports.error}); the arm has stopped: check the cable"
            )
        if self._gripper_error is not None:
            raise self._gripper_error
        age_s = now_s - report.time_s
        if age_s > (self._controller.max_report_age_s if moving and not self._dry else _IDLE_AGE_S):
            raise ArmError(
                f"no report from the controller for {1000 * age_s:.0f} ms; the arm has stopped: check the cable"
            )
        if moving and not self._dry:
            self._watch_moving(now_s, report)

    def _watch_moving(self, now_s: float, report: wire.Report) -> None:
        if self._link.error:
            raise ControllerFault(self._link.error)
        if report.state not in (wire.MOVING, wire.READY):
            raise _lost_control()
        if report.mode != (self._mode if self._state is StreamerState.STREAM else 0):
            raise _lost_control()
        if now_s - self._link.status_s > _STATUS_AGE * self._controller.max_report_age_s:
            raise ArmError("the controller's 5 Hz report has stopped; the arm has stopped: check the network")
        if self._points is not None:
            lag_rad = float(np.abs(self._points.motion.joints_rad - report.joints_rad).max())
            if lag_rad > _FROZEN_RAD and report.time_s - report.changed_s > _FROZEN_S:
                raise ArmError(
                    "the reports repeat themselves while the arm should move; it has stopped: restart the box"
                )
            if lag_rad > _BEHIND_RAD:
                raise ArmError(
                    f"the arm is {lag_rad:.2f} rad behind its set points; it has stopped: is something in its way?"
                )

    def _fail(self, error: ArmError) -> None:
        """Stops the arm, then looks for the cause and reports it."""
        self._state, self._points = StreamerState.FAULT, None
        try:
            self._halt()
        except ArmError:
            error = ArmError(f"{error} - AND THE STOP WAS NOT CONFIRMED: press the emergency stop")
        else:
            error = self._find_cause(error)
        self._notify("fault", error)

    def _find_cause(self, error: ArmError) -> ArmError:
        """Returns the controller's own error if it has one, because it is more precise than the symptom."""
        if not isinstance(error, ControllerFault):
            try:
                self._link.check_errors()
            except ControllerFault as cause:
                return cause
            except ArmError:
                pass  # the controller does not answer
        return error

    def _end(self) -> None:
        try:
            if self._state in (StreamerState.STREAM, StreamerState.HOME):
                self._halt()
        finally:
            self._state = StreamerState.IDLE
            self._ended.set()

    def _halt(self) -> None:
        if not self._dry:
            self._link.halt()

    def _was_stopped(self) -> bool:
        return self._stops != self._confirmed_stops and self._state in (StreamerState.STREAM, StreamerState.HOME)

    # --- messages from the parent -------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Handles the pending messages. Returns True if one of them was an order to move."""
        got_order = False
        try:
            while self._messages.poll():
                kind, *values = self._messages.recv()
                if kind == "aim":
                    self._aim(*values)
                elif kind == "end":
                    self._end()
                else:
                    self._order(kind, *values)
                    got_order = True
        except (EOFError, OSError):
            self._orphan.set()
        return got_order

    def _aim(self, number: int, joints_rad: np.ndarray, gripper_m: float, due_s: float, pace: float) -> None:
        if self._points is None:
            return  # stopped meanwhile; the sender learns the reason from another message
        try:
            self._points.aim(number, ArmCommand(joints_rad, gripper_m), time.monotonic(), due_s, pace)
        except CommandRefused as error:
            self._notify("refused", error)

    def _order(self, kind: str, stops: int, *values: Any) -> None:
        """Gets ready for the stream ("arm"), or goes home first ("home"). A person must have confirmed it."""
        try:
            if self._state is StreamerState.FAULT:
                raise ArmError("the arm has a fault; confirm its recovery first")
            if stops != self._stops:
                raise ArmError("the arm was stopped meanwhile; confirm again")
            self._confirmed_stops = stops
            self._state, self._points = StreamerState.IDLE, None
            if kind == "home":
                self._begin_home(*values)
            else:
                self._begin_stream()
                self._notify("armed", None)
        except SrpoRobotError as error:
            with contextlib.suppress(ArmError):  # the arm may be ready already, without a stream
                self._halt()
            self._state = StreamerState.FAULT if self._state is StreamerState.FAULT else StreamerState.IDLE
            self._notify("armed", error)

    def _begin_stream(self) -> None:
        if not self._dry:
            self._make_ready(self._mode)
        report = self._reports.latest
        assert report is not None
        start = motion.at_rest(report.joints_rad, self._gripper_m, self._limits)
        self._points = SetPoints(start, self._limits, self._tick_s)
        self._state = StreamerState.STREAM

    def _make_ready(self, mode: int) -> None:
        """Enters a mode and waits until it is reported. A stop that came meanwhile stays in force."""
        self._link.check_errors()
        self._link.make_ready(mode)
        deadline_s = time.monotonic() + _READY_S
        while (report := self._reports.latest) is None or report.mode != mode or report.state != wire.READY:
            if self._stops != self._confirmed_stops or time.monotonic() > deadline_s:
                break
            time.sleep(0.002)
        else:
            if self._stops == self._confirmed_stops:
                return
        self._link.halt()
        if self._stops != self._confirmed_stops:
            raise ArmError("the arm was stopped meanwhile; confirm again")
        self._link.check_errors()
        raise ArmError(f"the controller does not report mode {mode} and ready; look at it in the vendor's studio")

    def _begin_home(self, joints_rad: np.ndarray) -> None:
        report = self._reports.latest
        assert report is not None
        path = np.linspace(report.joints_rad, joints_rad, 64)
        broken = set(motion.broken_layers(path, self._limits)) & {"table", "joint_range"}
        if broken:
            raise ArmError(
                f"the way home leads out of the limits ({', '.join(sorted(broken))}); move the arm up by hand first"
            )
        distance_rad = float(np.abs(path[-1] - path[0]).max())
        if not self._dry:
            self._make_ready(0)
            self._link.move_home(joints_rad)
            self._state = StreamerState.HOME
        self._home, self._home_until_s = (
            joints_rad,
            time.monotonic() + 5.0 + 2.0 * distance_rad / self._controller.home_speed_rad_s,
        )
        if self._dry:
            self._begin_stream()
            self._notify("armed", None)

    def _go_home(self, now_s: float, report: wire.Report) -> None:
        if report.state == wire.READY and np.abs(report.joints_rad - self._home).max() < _THERE_RAD:
            self._state = StreamerState.IDLE
            self._order("arm", self._confirmed_stops)
        elif now_s > self._home_until_s:
            raise ArmError("the arm did not come home in time; it has stopped: look what holds it")

    # --- threads ------------------------------------------------------------------------------------------------------

    def _serve_stop(self) -> None:
        """Stops on request. If the other end closes, makes sure that the arm stands soon."""
        while True:
            try:
                order = self._stop_channel.recv(1)
            except OSError:
                order = b""
            if order != STOP:
                break
            self._stops += 1
            try:
                self._halt()
                answer = STOPPED
            except Exception:  # of any kind: the other end must learn that the stop failed
                answer = NOT_STOPPED
            with contextlib.suppress(OSError):  # the next `recv` detects a closed socket
                self._stop_channel.sendall(answer)
        self._orphan.set()
        if not self._ended.wait(_ORPHAN_S):  # the loop hangs in a call
            try:
                self._halt()
            finally:
                os._exit(1)

    def _serve_gripper(self) -> None:
        if not self._link.has_gripper:
            return
        sent_m, read_s = np.nan, 0.0
        while not self._ended.wait(GRIPPER_PERIOD_S):
            target = self._gripper_target_m
            try:
                if self._state is not StreamerState.STREAM or self._dry:
                    target = None
                if target is not None and not abs(target - sent_m) < _GRIPPER_STEP_M:
                    self._link.move_gripper(target)
                    sent_m = target
                if time.monotonic() - read_s > _GRIPPER_READ_S:
                    read_s = time.monotonic()
                    self._gripper_m = self._link.gripper_opening()
            except ArmError as error:
                self._gripper_error = error
                return
            except Exception as error:  # of the SDK; a silently dying thread would leave the gripper uncontrolled
                self._gripper_error = ArmError(f"the gripper's thread failed ({error!r}); the arm has stopped")
                return

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _opening(self) -> float:
        return self._link.gripper_opening() if self._link.has_gripper else self._limits.gripper_max_m

    def _notify(self, kind: str, value: Any) -> None:
        try:
            self._messages.send((kind, value))
        except OSError:
            self._orphan.set()

    def _flush(self) -> None:
        """Writes as much of the log as the pipe takes now."""
        while self._backlog:
            try:
                os.write(self._log_pipe, self._backlog[0])  # shorter than a pipe's atomic size: all or nothing
            except BlockingIOError:
                return
            except OSError:
                self._orphan.set()
                self._backlog.clear()
                return
            self._backlog.popleft()

    def give_up(self, *_: object) -> None:
        """Handles SIGTERM: the loop brakes, stops and ends."""
        self._orphan.set()


def _lost_control() -> ArmError:
    return ArmError(
        "another client, or the studio, stopped the arm or changed its mode; it stands: end that client, then confirm"
    )
