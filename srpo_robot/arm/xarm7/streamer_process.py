"""The parent's side of the streamer: starts the process, sends it targets, and receives its log and faults.

There are three channels: messages in both directions, a stop that nothing can delay, and the log, tick by tick. There
are no threads: the log waits in the streamer until it is read. If this process dies, the streamer sees its channels
close, brakes, stops the arm and ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import numpy as np

from srpo_robot.arm.xarm7 import wire
from srpo_robot.arm.xarm7.set_points import LOG, layers_of_bits
from srpo_robot.errors import ArmError, CommandRefused
from srpo_robot.recipes import ControllerRecipe, HardwareRecipe
from srpo_robot.records import ArmCommand

STOP, STOPPED, NOT_STOPPED = b"s", b"k", b"x"  # on the stop channel
KEPT_TICKS = 200_000  # length of the kept log, more than half an hour at 100 Hz
_START_S = 20.0  # beyond the connection's own time limit: settings are stored and read back
_STOP_ANSWER_S = 2.0
_END_S = 3.0


@dataclass(frozen=True)
class StreamerConfig:
    """Task of the streamer. `task` "recover": clean the controller's error and end."""

    recipe: HardwareRecipe
    dry_run: bool
    task: str = "stream"


class StreamerProcess:
    """One streamer. `stop` may be called from any thread, everything else from one thread only."""

    def __init__(self, config: StreamerConfig, controller: ControllerRecipe) -> None:
        self.fault: ArmError | None = None  # reason for stopping the arm
        self.stops = 0  # number of stops by this process
        self.newest: np.void | None = None  # newest tick
        self._config, self._controller = config, controller
        self._process: subprocess.Popen[bytes] | None = None
        self._rows: deque[np.ndarray] = deque()
        self._kept = self._limited_bits = 0
        self._partial = b""
        self._events: deque[tuple[str, Any]] = deque()
        self._stop_lock = threading.Lock()

    # --- start and end ------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it was started and not closed. The process may still have died."""
        return self._process is not None

    def start(self, until: str = "ready") -> Any:
        """Starts the process, waits until it sends the message `until`, and returns that message's value.

        Raises:
            ArmError, RecipeError: as `controller_link.ControllerLink`. The process is gone.
        """
        self._messages, child_messages = Pipe()
        log_pipe, child_log = os.pipe()
        self._stop_channel, child_stop = socket.socketpair()
        child_stop.setblocking(True)  # the SDK sets a default timeout, which would make the socket non-blocking
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process, closed in `close`)
        fds = (child_messages.fileno(), child_stop.fileno(), child_log)
        command = [sys.executable, "-W", "ignore", "-m", "srpo_robot.arm.xarm7.streamer", *map(str, fds)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for this process, which stops the arm
            )
        finally:
            child_messages.close()
            child_stop.close()
            os.close(child_log)
        self._log_pipe = log_pipe
        os.set_blocking(log_pipe, False)
        self._messages.send(self._config)
        try:
            return self.wait(until, self._controller.connect_timeout_s + _START_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the process, and kills it if it does not end in time. It is safe to call twice."""
        with self._stop_lock:
            process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):  # the process has already ended
            self._messages.send(("end",))
        try:
            deadline_s = time.monotonic() + _END_S
            while process.poll() is None and time.monotonic() < deadline_s:
                self._read_log()
                time.sleep(0.005)
            if process.poll() is None:
                process.kill()
            process.wait()
            self._read_log()
        finally:
            self._messages.close()
            self._stop_channel.close()
            self._stderr.close()
            os.close(self._log_pipe)

    # --- orders -------------------------------------------------------------------------------------------------------

    def tell(self, kind: str, *values: Any) -> None:
        """Sends a message. An order to move is void if the arm was stopped after its `stops` was read.

        Raises:
            ArmError: the streamer has ended.
        """
        try:
            self._messages.send((kind, *values))
        except OSError:
            self.poll()
            raise self._ended() from None

    def aim(self, number: int, command: ArmCommand, due_s: float, pace: float) -> None:
        """Sends a target and its due time (`time.monotonic`). Raises ArmError as `tell`."""
        self.tell("aim", number, command.joints_rad, command.gripper_m, due_s, pace)

    def stop(self) -> bool:
        """Stops the arm now and returns whether the controller confirmed it. Safe from any thread, at any time."""
        with self._stop_lock:
            if self._process is None:
                return True
            if self._process.poll() is not None:
                return self._stop_directly()
            self.stops += 1
            try:
                self._stop_channel.settimeout(_STOP_ANSWER_S)
                self._stop_channel.sendall(STOP)
                answer = self._stop_channel.recv(1)
            except OSError:
                answer = b""
            return True if answer == STOPPED else self._stop_directly()

    # --- messages from the streamer -----------------------------------------------------------------------------------

    def poll(self) -> None:
        """Reads the pending log and messages.

        Raises:
            ArmError: the streamer stopped the arm, or has ended.
        """
        is_there = self._read()
        if self.fault is not None:
            raise self.fault
        if not is_there:
            self._stop_directly()
            raise self._ended()

    def wait(self, kind: str, timeout_s: float) -> Any:
        """Waits for the message `kind` and returns its value.

        Raises:
            ArmError: as `poll`, or the message does not arrive in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            is_there = self._read()
            for event in self._events:
                if event[0] == kind:
                    self._events.remove(event)
                    return event[1]
            if not is_there or self.fault is not None:
                self.poll()
            if time.monotonic() > deadline_s:
                raise ArmError(f"the streamer did not say {kind!r} within {timeout_s:g} s; start again")
            self._messages.poll(0.02)

    def watch(self, until_s: float) -> None:
        """Waits until `until_s` and reacts to faults meanwhile. Raises ArmError as `poll`."""
        self.poll()
        while (left_s := until_s - time.monotonic()) > 0:
            if self._messages.poll(min(left_s, 0.05)):
                self.poll()
        self.poll()

    def take_log(self) -> np.ndarray:
        """Returns all ticks since the last call, oldest first: structured array of `set_points.LOG`."""
        if self._process is not None:
            self._read_log()
        rows = np.concatenate(self._rows) if self._rows else np.zeros(0, LOG)
        self._rows.clear()
        self._kept = 0
        return rows

    def take_limited_by(self) -> tuple[str, ...]:
        """Returns the layers of `motion.LAYERS` that held the set points back since the last call."""
        bits, self._limited_bits = self._limited_bits, 0
        return layers_of_bits(bits)

    def take_refusal(self) -> CommandRefused | None:
        """Returns the refusal of a target once, or None. After a refusal the arm brakes and holds."""
        for event in self._events:
            if event[0] == "refused":
                self._events.remove(event)
                return event[1]
        return None

    # --- inside -------------------------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Reads log and messages. Returns False if the streamer has ended."""
        self._read_log()
        try:
            while self._messages.poll():
                self._handle(self._messages.recv())
        except (EOFError, OSError):
            return False
        return True

    def _read_log(self) -> None:
        while True:
            try:
                data = os.read(self._log_pipe, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                return
            self._partial += data
            whole = len(self._partial) // LOG.itemsize * LOG.itemsize
            rows, self._partial = np.frombuffer(self._partial[:whole], LOG), self._partial[whole:]
            if not len(rows):
                continue
            self.newest = rows[-1]
            self._limited_bits |= int(np.bitwise_or.reduce(rows["limited_by"]))
            self._rows.append(rows)
            self._kept += len(rows)
            while self._kept > KEPT_TICKS:
                self._kept -= len(self._rows.popleft())

    def _handle(self, message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "failed":
            raise value
        if kind == "fault":
            self.fault = value
        else:
            self._events.append(message)

    def _stop_directly(self) -> bool:
        """Stops the arm on a fresh connection, because the streamer is gone or silent."""
        if self._config.dry_run:
            return True
        try:
            wire.stop(self._controller.address, self._controller.command_port)
        except ArmError:
            return False
        return True

    def _ended(self) -> ArmError:
        self._stderr.seek(0)
        last_line = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        code = self._process.poll() if self._process is not None else None
        return ArmError(
            f"the streamer ended ({last_line[0] if last_line else f'exit code {code}'}); the arm was told to stop"
        )
