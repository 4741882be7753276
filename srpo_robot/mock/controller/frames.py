"""The controller's wire format as pure functions: requests and replies, Modbus-RTU to the gripper, report frames.

A request is `transaction u16 | protocol u16 | length u16 | function u8 | params`. Its reply has a status byte before
the data. u16 and s16 are big-endian, f32 and s32 little-endian. Exceptions are noted in the code.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import ArmError

MODBUS, HEARTBEAT, PRIVATE, PRIVATE_ALIVE = range(4)  # protocol identifiers; the last one is 2 with heartbeats
HAS_ERROR, HAS_WARNING, CANNOT_MOVE, INVALID = 0x40, 0x20, 0x10, 0x08  # bits of a reply's status byte
_HEAD = struct.Struct(">HHH")


class Malformed(ArmError):
    """Bytes that are no frame, or a frame that lacks parameters of its function."""


# --- requests and replies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One command as received. The reply repeats the client's transaction number and the protocol."""

    transaction: int
    protocol: int
    function: int
    params: bytes = b""


@dataclass(frozen=True)
class Reply:
    """The controller's answer. `status` is an OR of HAS_ERROR, HAS_WARNING, CANNOT_MOVE and INVALID."""

    status: int
    data: bytes = b""


def encode_request(request: Request) -> bytes:
    """Returns the bytes of a request."""
    body = bytes([request.function]) + request.params
    return _HEAD.pack(request.transaction, request.protocol, len(body)) + body


class RequestReader:
    """Cuts a TCP byte stream into requests, however the stream is split."""

    def __init__(self) -> None:
        # True after an unknown protocol or a request of zero length: the rest of the stream cannot be split.
        self.broken = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Request]:
        """Returns the requests that `data` completes and keeps the rest for later. Returns none once `broken`."""
        self._buffer += data
        requests: list[Request] = []
        while len(self._buffer) >= _HEAD.size and not self.broken:
            transaction, protocol, length = _HEAD.unpack_from(self._buffer)
            if protocol > PRIVATE_ALIVE or length == 0:
                self.broken = True
                break
            if len(self._buffer) < _HEAD.size + length:
                break
            body = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
            del self._buffer[: _HEAD.size + length]
            requests.append(Request(transaction, protocol, body[0], body[1:]))
        return requests


def encode_reply(request: Request, reply: Reply) -> bytes:
    """Returns the bytes of the reply to `request`."""
    body = bytes([request.function, reply.status]) + reply.data
    return _HEAD.pack(request.transaction, request.protocol, len(body)) + body


def decode_reply(frame: bytes) -> tuple[Request, Reply]:
    """Returns a reply and its request, without the request's params.

    Raises:
        Malformed: the frame is too short, or its length field is wrong.
    """
    if len(frame) < _HEAD.size + 2:
        raise Malformed(f"a reply of {len(frame)} bytes; the shortest has {_HEAD.size + 2}")
    transaction, protocol, length = _HEAD.unpack_from(frame)
    if len(frame) != _HEAD.size + length:
        raise Malformed(f"a reply of {len(frame)} bytes says it has {_HEAD.size + length}")
    return Request(transaction, protocol, frame[6]), Reply(frame[7], frame[8:])


def illegal_function(request: Request) -> bytes:
    """Returns the standard Modbus TCP exception 1, because the emulator has no Modbus registers."""
    function = request.params[0] if request.params else 0
    return _HEAD.pack(request.transaction, MODBUS, 3) + bytes([request.function, function | 0x80, 1])


class Params:
    """Reads a request's parameters from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def remaining(self) -> int:
        """Number of bytes that were not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes. Raises Malformed if there are fewer."""
        if self.remaining < count:
            raise Malformed(f"{self.remaining} bytes of parameters left, {count} needed")
        self._at += count
        return self._data[self._at - count : self._at]

    def u8(self) -> int:
        """Returns the next byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Returns the next two bytes, big-endian."""
        return int.from_bytes(self.take(2), "big")

    def s32s(self, count: int) -> list[int]:
        """Returns `count` integers of four bytes, little-endian."""
        return list(struct.unpack(f"<{count}i", self.take(4 * count)))

    def floats(self, count: int) -> np.ndarray:
        """Returns `count` float32, little-endian, as float64. NaN and infinity pass."""
        return np.frombuffer(self.take(4 * count), "<f4").astype(np.float64)

    def finite(self, count: int, limit: float = 1e5) -> np.ndarray:
        """Returns `count` floats. Raises Malformed if one is not finite or beyond `limit`, in the wire's unit."""
        values = self.floats(count)
        if not np.all(np.abs(values) <= limit):  # also false for NaN
            raise Malformed(f"a parameter is not finite or beyond {limit:g}")
        return values


def encode_floats(*parts: np.ndarray | float) -> bytes:
    """Returns float32, little-endian, one after the other."""
    return b"".join(np.atleast_1d(part).astype("<f4").tobytes() for part in parts)


# --- Modbus-RTU to the gripper (function 124): without checksum, all big-endian ---------------------------------------

_READ, _WRITE = 0x03, 0x10


@dataclass(frozen=True)
class RegisterRead:
    """Reads `count` registers of 16 bits, starting at `address`."""

    device: int
    address: int
    count: int


@dataclass(frozen=True)
class RegisterWrite:
    """Writes `values`, each 0 to 65535, starting at `address`."""

    device: int
    address: int
    values: tuple[int, ...]


def encode_rtu(command: RegisterRead | RegisterWrite) -> bytes:
    """Returns the RTU frame of a command."""
    if isinstance(command, RegisterRead):
        return struct.pack(">BBHH", command.device, _READ, command.address, command.count)
    count = len(command.values)
    head = struct.pack(">BBHHB", command.device, _WRITE, command.address, count, 2 * count)
    return head + struct.pack(f">{count}H", *command.values)


def decode_rtu(frame: bytes) -> RegisterRead | RegisterWrite:
    """Returns the command in an RTU frame. Raises Malformed if it is neither a read (0x03) nor a write (0x10)."""
    params = Params(frame)
    device, function, address, count = params.u8(), params.u8(), params.u16(), params.u16()
    if function == _READ and 0 < count <= 125 and params.remaining == 0:
        return RegisterRead(device, address, count)
    if function == _WRITE and 0 < count <= 123 and params.u8() == 2 * count == params.remaining:
        return RegisterWrite(device, address, struct.unpack(f">{count}H", params.take(2 * count)))
    raise Malformed("no RTU read or write of registers")


def encode_rtu_reply(command: RegisterRead | RegisterWrite, values: tuple[int, ...] = ()) -> bytes:
    """Returns the gripper's answer: the values that were read, or the address and count that were written."""
    if isinstance(command, RegisterRead):
        return struct.pack(f">BBB{len(values)}H", command.device, _READ, 2 * len(values), *values)
    return struct.pack(">BBHH", command.device, _WRITE, command.address, len(command.values))


def words(value: int) -> tuple[int, int]:
    """Splits a signed 32-bit number into two registers, the high one first."""
    high, low = struct.unpack(">HH", struct.pack(">i", value))
    return high, low


def number(high: int, low: int) -> int:
    """Joins two registers to a signed 32-bit number."""
    return struct.unpack(">i", struct.pack(">HH", high, low))[0]


# --- report frames: a length first, then fields at fixed places -------------------------------------------------------

_Field = tuple[str, str] | tuple[str, str, int]
_MOTION: list[_Field] = [
    ("size", ">u4"), ("state_mode", "u1"), ("queued", ">u2"),
    ("joints", "<f4", 7), ("pose", "<f4", 6), ("torques", "<f4", 7),
]  # fmt: skip
_STATUS: list[_Field] = [
    ("brakes", "u1"), ("enabled", "u1"), ("error", "u1"), ("warning", "u1"), ("tcp_offset", "<f4", 6),
    ("payload", "<f4", 4), ("collision_sensitivity", "u1"), ("teach_sensitivity", "u1"), ("gravity", "<f4", 3),
]  # fmt: skip
_FORCES: list[_Field] = [("external_force", "<f4", 6), ("raw_force", "<f4", 6)]
_DETAIL: list[_Field] = [
    ("type", "u1"), ("axes", "u1"), ("ids", "u1", 4), ("version", "S30"),
    ("tcp_limits", "<f4", 5), ("joint_limits", "<f4", 5), ("rotation_limits", "<f4", 2),
    ("servo_codes", "u1", 14), ("tool_board", "u1", 2), ("temperatures", "i1", 7),
    ("tcp_speed", "<f4"), ("joint_speeds", "<f4", 7), ("counter", ">u4"), ("world_offset", "<f4", 6),
    ("reset_outputs", "u1", 2), ("simulation", "u1"), ("self_collision", "u1"), ("tool_model", "u1"),
    ("tool_size", "<f4", 6), ("voltages", ">u2", 7), ("currents", "<f4", 7),
    ("box_state", "u1", 2), ("box_io", ">u2", 8), ("box_io_roles", "u1", 32), *_FORCES,
    ("identification", "u1"), ("axis_angle", "<f4", 3), ("flags", "u1"), ("reduced", "u1"), ("box", ">i2", 6),
    ("reduced_tcp_speed", "<f4"), ("reduced_joint_speed", "<f4"), ("reduced_range", "<f4", 14),
    ("fence", "u1"), ("rebound", "u1"), ("alarm", ">u4"), ("force_sensor", "u1"),
    ("monitor", "u1", 2), ("monitor_values", ">i2", 3),
]  # fmt: skip
_CYCLE: list[_Field] = [
    ("size", ">u4"), ("time_us", ">u8"), ("state_mode", "u1"), ("queued", ">u2"), ("pad0", "u1", 17),
    ("target_joints", "<f4", 7), ("target_speeds", "<f4", 7), ("target_accelerations", "<f4", 7),
    ("joints", "<f4", 7), ("joint_speeds", "<f4", 7), ("joint_accelerations", "<f4", 7),
    ("currents", "<f4", 7), ("torques", "<f4", 7), ("pad1", "<f4", 42),
    ("target_pose", "<f4", 6), ("target_velocity", "<f4", 6), ("pose_aa", "<f4", 6), ("velocity", "<f4", 6),
    ("tcp_torques", "<f4", 6), ("target_acceleration", "<f4", 6), ("acceleration", "<f4", 6), ("pad2", "<f4", 24),
    ("raw_force", "<f4", 6), ("external_force", "<f4", 6), ("monitor", "u1", 2), ("monitor_values", ">i2", 3),
    ("pad3", "u1", 40), ("box_digital", ">i2", 2), ("box_analog", ">i2", 4), ("tool_digital", ">i2", 2),
    ("tool_analog", ">i2", 2),
]  # fmt: skip

REPORTS: dict[int, np.dtype] = {  # by port
    30000: np.dtype(_CYCLE),
    30001: np.dtype(_MOTION + _STATUS),
    30002: np.dtype(_MOTION + _STATUS + _DETAIL),
    30003: np.dtype(_MOTION + _FORCES),
}


def encode_report(port: int, values: Mapping[str, object]) -> bytes:
    """Returns the frame of a report port. Missing fields are zero, and fields that the port does not have are ignored.

    Values are in the wire's units: mm, rad, mm/s, kg.
    """
    layout = REPORTS[port]
    frame = np.zeros((), layout)
    for name in layout.names or ():
        if name in values:
            frame[name] = values[name]
    frame["size"] = layout.itemsize
    return frame.tobytes()


def decode_report(port: int, frame: bytes) -> np.void:
    """Returns the fields of a report frame, a structured scalar in the wire's units.

    Raises:
        Malformed: the frame does not have the port's length, or its length field is wrong.
    """
    layout = REPORTS[port]
    if len(frame) != layout.itemsize or int.from_bytes(frame[:4], "big") != layout.itemsize:
        raise Malformed(f"a report of {len(frame)} bytes on port {port}, expected {layout.itemsize}")
    return np.frombuffer(frame, layout)[0]
