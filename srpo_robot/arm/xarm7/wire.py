"""The part of the controller's protocol that must work without the vendor's SDK: identity, stop, and reports.

The SDK waits minutes for a controller that accepts a connection and stays silent, and its 100 Hz report thread polls a
thousand times a second. Function codes and layouts are from the vendor's protocol pages (private TCP protocol).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import ArmError
from srpo_robot.records import JOINTS

VERSION, SET_STATE, STATE, QUEUED = 1, 12, 13, 14  # function codes
MOVING, READY, PAUSED, STOPPED = 1, 2, 3, 4  # run states
REPORT_PORT = 30003  # joints, state and mode at 100 Hz, without an error byte
_PROTOCOL = 2
_JOINTS_AT = 7  # offset of the 7 x f32 in a report


def ask(address: str, port: int, function: int, params: bytes = b"", timeout_s: float = 1.0) -> bytes:
    """Sends one request on a new connection and returns the data of the controller's answer.

    Raises:
        ArmError: the connection is refused, or no answer arrives within `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    request = struct.pack(">HHHB", 1, _PROTOCOL, 1 + len(params), function) + params
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall(request)
            _, _, length = struct.unpack(">HHH", _read(link, 6, deadline_s))
            return _read(link, length, deadline_s)[2:]
    except OSError as error:
        raise ArmError(
            f"no xArm controller answers at {address}:{port} within {timeout_s:g} s ({_reason(error)}); check "
            "controller.address, the network cable and that the control box is on"
        ) from None


def stop(address: str, port: int, timeout_s: float = 1.0) -> None:
    """Stops the arm on a new connection, the last resort if the streamer is gone. Raises ArmError as `ask`."""
    ask(address, port, SET_STATE, bytes([STOPPED]), timeout_s)


def _read(link: socket.socket, count: int, deadline_s: float) -> bytes:
    data = b""
    while len(data) < count:
        link.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        part = link.recv(count - len(data))
        if not part:
            raise ConnectionResetError("it closed the connection")
        data += part
    return data


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return error.strerror or str(error) or type(error).__name__


@dataclass(frozen=True, eq=False)
class Report:
    """One frame of the 100 Hz report, and its arrival time (`time.monotonic`)."""

    time_s: float
    joints_rad: np.ndarray  # (7,) measured
    state: int
    mode: int
    changed_s: float  # time of the last change of the joints; a frozen controller repeats itself


class Reports:
    """Reads the 100 Hz report in a thread. `latest` is the newest. A broken link ends the thread and sets `error`."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Connects and starts the thread. Raises ArmError if the connection is refused."""
        try:
            self._link = socket.create_connection((address, REPORT_PORT), timeout=timeout_s)
        except OSError as error:
            raise ArmError(
                f"the xArm at {address} takes no connection for reports on port {REPORT_PORT} ({_reason(error)}); "
                "let the network pass ports 502 and 30000 to 30003"
            ) from None
        self._link.settimeout(1.0)
        self.latest: Report | None = None
        self.error = ""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="xarm-reports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and the connection."""
        self._closing = True
        with contextlib.suppress(OSError):  # the peer closed first
            self._link.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._link.close()

    def wait(self, timeout_s: float) -> Report:
        """Waits for the first report and returns it. Raises ArmError if none arrives."""
        deadline_s = time.monotonic() + timeout_s
        while (report := self.latest) is None:
            if self.error or time.monotonic() > deadline_s:
                raise ArmError(f"no report comes from the xArm ({self.error or 'silence'}); restart its control box")
            time.sleep(0.002)
        return report

    def _run(self) -> None:
        try:
            (size,) = struct.unpack(">I", self._exactly(4))
            while not self._closing:
                frame = self._exactly(size - 4)
                self.latest = decode(frame, time.monotonic(), self.latest)
                self._exactly(4)
        except (OSError, struct.error) as error:
            self.error = str(error) or type(error).__name__

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and not self._closing:
            try:
                part = self._link.recv(count - len(data))
            except TimeoutError:
                continue  # the report's age is checked elsewhere
            if not part:
                raise ConnectionResetError("the report's connection was closed")
            data += part
        return data


def decode(frame: bytes, now_s: float, before: Report | None) -> Report:
    """Decodes the bytes after the length field. `before`, the previous report, gives the time of the last change."""
    state_mode = frame[0]
    joints = np.frombuffer(frame, "<f4", JOINTS, _JOINTS_AT - 4).astype(np.float64)
    same = before is not None and np.array_equal(joints, before.joints_rad)
    changed_s = before.changed_s if before is not None and same else now_s
    return Report(now_s, joints, state_mode & 0x0F, state_mode >> 4, changed_s)
