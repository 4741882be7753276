"""The function codes: decode parameters (in millimetres), call the `Controller`, and encode the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srpo_robot.mock.controller import poses
from srpo_robot.mock.controller.frames import (
    CANNOT_MOVE,
    HAS_ERROR,
    HAS_WARNING,
    INVALID,
    Malformed,
    Params,
    Reply,
    Request,
    decode_rtu,
    encode_floats,
)
from srpo_robot.mock.controller.poses import MM
from srpo_robot.mock.controller.state import (
    JOINT_LIMIT,
    KINEMATICS,
    MOVING,
    TOOL_BUS,
    Controller,
)
from srpo_robot.records import JOINTS

_TOOL_HOST = 9  # the RS485 bus of the tool
_SPEED_FACTOR = 1  # the only common parameter that is emulated
# The SDK indexes into replies before it checks their status, so this is as long as its longest reply.
_UNKNOWN = bytes(79)
_DONE = Reply(0)


def execute(controller: Controller, request: Request) -> Reply:
    """Carries out a request and returns the reply. Its status describes the controller after the request."""
    handler = HANDLERS.get(request.function)
    if handler is None:
        reply = Reply(INVALID, _UNKNOWN)
    else:
        try:
            reply = handler(controller, Params(request.params))
        except Malformed:
            reply = Reply(INVALID)
    status = reply.status | (HAS_ERROR if controller.error else 0) | (HAS_WARNING if controller.warning else 0)
    return Reply(status | (0 if controller.ready else CANNOT_MOVE), reply.data)


# --- identity, states, errors -----------------------------------------------------------------------------------------


def _version(c: Controller, _: Params) -> Reply:
    firmware = c.firmware
    text = f"{JOINTS},7,{firmware.serial},{firmware.box_serial},{firmware.version}"
    return Reply(0, text.encode("ascii").ljust(40, b"\0") + b"\0")  # the SDK needs the final zero


def _serial(c: Controller, _: Params) -> Reply:
    return Reply(0, f"{c.firmware.serial}\0{c.firmware.box_serial}\0".encode("ascii").ljust(40, b"\0"))


def _enable(c: Controller, p: Params) -> Reply:
    return _accept_if(c.enable(p.u8(), bool(p.u8())))


def _set_state(c: Controller, p: Params) -> Reply:
    return _accept_if(c.set_state(p.u8()))


def _set_mode(c: Controller, p: Params) -> Reply:
    return _accept_if(c.set_mode(p.u8()))


def _clean_error(c: Controller, _: Params) -> Reply:
    c.clean_error()
    return _DONE


def _clean_warning(c: Controller, _: Params) -> Reply:
    c.warning = 0
    return _DONE


# --- moves ------------------------------------------------------------------------------------------------------------


def _move_joints(c: Controller, p: Params) -> Reply:
    """7f, speed, acceleration, time or radius [+ check]."""
    target, (speed, acceleration, _) = p.floats(JOINTS), p.finite(3)
    return _joints(c, target, speed, acceleration, p)


def _move_home(c: Controller, p: Params) -> Reply:
    """Speed, acceleration, time [+ check]."""
    speed, acceleration, _ = p.finite(3)
    return _joints(c, np.zeros(JOINTS), speed, acceleration, p)


def _joints(c: Controller, target: np.ndarray, speed: float, acceleration: float, p: Params) -> Reply:
    if not p.remaining:
        return _move_reply(c.move_joints(target, speed, acceleration))
    if p.u8():
        inside = c.in_range(np.where(np.isinf(target), c.end_joints(), target))
        return Reply(0, bytes([0, 0, 0 if inside else JOINT_LIMIT]))
    return _move_reply(c.move_joints(target, speed, acceleration), bytes(3))


def _move_line(c: Controller, p: Params) -> Reply:
    """6f, speed, acceleration, time, radius + frame, axis-angle, check [+ kind]. Older: without radius and bytes."""
    new = p.remaining >= 43
    wire, (speed, acceleration) = p.floats(6), p.finite(2)
    p.finite(2 if new else 1)
    in_tool, axis_angle, check = (p.u8(), p.u8(), p.u8()) if new else (0, 0, 0)
    return _line(c, _target(c, wire, bool(in_tool), bool(axis_angle)), speed, acceleration, check, bytes(3 * new))


def _move_relative(c: Controller, p: Params) -> Reply:
    """7f, speed, acceleration, time, radius + joint move, axis-angle [+ check]."""
    by, (speed, acceleration, _, _) = p.finite(JOINTS), p.finite(4)
    joint_move, axis_angle = p.u8(), p.u8()
    if joint_move:
        return _joints(c, c.end_joints() + by, speed, acceleration, p)
    check, data = (p.u8(), bytes(3)) if p.remaining else (0, b"")
    return _line(c, _moved_by(c.end_tcp(), by[:6], bool(axis_angle)), speed, acceleration, check, data)


def _line(c: Controller, target: np.ndarray, speed: float, acceleration: float, check: int, data: bytes) -> Reply:
    if check:
        has_solution = c.inverse(target, c.end_joints()) is not None
        return Reply(0, bytes([0, 0, 0 if has_solution else KINEMATICS]))
    return _move_reply(c.move_pose(target, speed / MM, acceleration / MM), data)


def _servo_joints(c: Controller, p: Params) -> Reply:
    """7f and three numbers that the firmware ignores."""
    target = p.floats(JOINTS)
    p.floats(3)
    return _move_reply(c.servo_joints(target))


def _servo_pose(c: Controller, p: Params) -> Reply:
    """6f, speed, acceleration, frame (0 base, 1 tool), all float."""
    wire, (_, _, frame) = p.finite(6), p.finite(3)
    return _move_reply(c.servo_pose(_target(c, wire, frame == 1.0, False, c.forward(c.setpoint))))


def _servo_axis_angle(c: Controller, p: Params) -> Reply:
    """6f, speed, acceleration, frame (s32: 0 base, 1 tool), relative (byte)."""
    wire, _, (frame,), relative = p.finite(6), p.finite(2), p.s32s(1), p.u8()
    current = c.forward(c.setpoint)
    if relative and not frame:
        return _move_reply(c.servo_pose(_moved_by(current, wire, True)))
    return _move_reply(c.servo_pose(_target(c, wire, bool(frame), True, current)))


def _target(
    c: Controller, wire: np.ndarray, in_tool: bool, axis_angle: bool, current: np.ndarray | None = None
) -> np.ndarray:
    """Returns T_base_tcp of a target on the wire. An infinite number of an absolute target keeps the current value."""
    current = c.end_tcp() if current is None else current
    if not in_tool and not axis_angle:
        wire = np.where(np.isinf(wire), poses.to_rpy(current), wire)
    if not np.all(np.abs(wire) <= 1e4):
        raise Malformed("a pose that is not finite")
    pose = poses.from_axis_angle(wire) if axis_angle else poses.from_rpy(wire)
    return current @ pose if in_tool else pose


def _moved_by(current: np.ndarray, by: np.ndarray, axis_angle: bool) -> np.ndarray:
    """Returns T_base_tcp shifted along the base's axes, and turned about them by axis-angle or by roll, pitch, yaw."""
    if not axis_angle:
        return poses.from_rpy(poses.to_rpy(current) + by)
    pose = current.copy()
    pose[:3, 3] += by[:3] / MM
    pose[:3, :3] = poses.turned(current[:3, :3], by[3:])
    return pose


# --- measurements and kinematics --------------------------------------------------------------------------------------


def _joint_positions(c: Controller, p: Params) -> Reply:
    """[count]: 1 gives positions, 2 adds speeds, 3 adds torques."""
    count = p.u8() & 0x0F if p.remaining else 1
    rows = [c.joints, c.velocity, np.zeros(JOINTS)]
    if not 1 <= count <= len(rows):
        raise Malformed(f"joint states come in 1 to 3 rows, not {count}")
    return Reply(0, encode_floats(*rows[:count]))


def _forward(c: Controller, p: Params) -> Reply:
    return Reply(0, encode_floats(poses.to_rpy(c.forward(p.finite(JOINTS, 100.0)))))


def _inverse(c: Controller, p: Params) -> Reply:
    """6f [+ limited [+ 7f start]]."""
    target = _target(c, p.finite(6), False, False)
    limited = bool(p.u8()) if p.remaining else True
    near = p.finite(JOINTS, 100.0) if p.remaining else c.joints
    joints = c.inverse(target, near, limited)
    return Reply(INVALID, bytes(4 * JOINTS)) if joints is None else Reply(0, encode_floats(joints))


def _is_joint_limit(c: Controller, p: Params) -> Reply:
    return Reply(0, bytes([not c.in_range(p.floats(JOINTS))]))


def _is_tcp_limit(c: Controller, p: Params) -> Reply:
    return Reply(0, bytes([c.inverse(_target(c, p.finite(6), False, False), c.joints) is None]))


# --- settings ---------------------------------------------------------------------------------------------------------


def _tcp_offset(c: Controller, p: Params) -> Reply:
    c.set_tool(poses.from_rpy(p.finite(6, 2000.0)))
    return _DONE


def _payload(c: Controller, p: Params) -> Reply:
    kg, *centre_mm = p.finite(4)
    c.settings.payload_kg, c.settings.payload_centre_m = float(kg), np.array(centre_mm) / MM
    return _DONE  # no reset: the SDK counts this command among the moves, and reports "not ready" as code 9


def _collision_sensitivity(c: Controller, p: Params) -> Reply:
    c.settings.collision_sensitivity = _between(p.u8(), 0, 5)
    return _reset(c)


def _teach_sensitivity(c: Controller, p: Params) -> Reply:
    c.settings.teach_sensitivity = _between(p.u8(), 1, 5)
    return _reset(c)


def _gravity(c: Controller, p: Params) -> Reply:
    c.settings.gravity = p.finite(3)
    return _reset(c)


def _self_collision(c: Controller, p: Params) -> Reply:
    c.settings.self_collision = bool(p.u8())
    return _DONE


def _tool_model(c: Controller, p: Params) -> Reply:
    c.settings.tool_model = p.u8()
    size = p.finite(_between(p.remaining // 4, 0, 6))
    c.settings.tool_size = np.pad(size, (0, 6 - len(size)))
    return _DONE


def _box(c: Controller, p: Params) -> Reply:
    """x+, x-, y+, y-, z+, z- as whole millimetres."""
    edges = np.array(p.s32s(6), dtype=np.float64).reshape(3, 2)
    if np.abs(edges).max() > 9999:
        raise Malformed("a boundary beyond 9999 mm")
    c.settings.box_m = np.sort(edges, axis=1) / MM
    return _DONE


def _fence(c: Controller, p: Params) -> Reply:
    c.settings.fence = bool(p.u8())
    return _DONE


def _rebound(c: Controller, p: Params) -> Reply:
    c.settings.rebound = bool(p.u8())
    return _DONE


def _reduced(c: Controller, p: Params) -> Reply:
    c.settings.reduced = bool(p.u8())
    return _DONE


def _reduced_tcp_speed(c: Controller, p: Params) -> Reply:
    c.settings.reduced_tcp_speed_m_s = _positive(p) / MM
    return _DONE


def _reduced_joint_speed(c: Controller, p: Params) -> Reply:
    c.settings.reduced_joint_speed_rad_s = _positive(p)
    return _DONE


def _reduced_range(c: Controller, p: Params) -> Reply:
    c.settings.reduced_range_rad = p.finite(2 * JOINTS).reshape(JOINTS, 2)
    return _DONE


def _reduced_states(c: Controller, _: Params) -> Reply:
    """on, box (6 s16, big-endian), TCP speed, joint speed, joint range (14f), fence, rebound: 79 bytes."""
    s = c.settings
    speeds = encode_floats(s.reduced_tcp_speed_m_s * MM, s.reduced_joint_speed_rad_s, s.reduced_range_rad.ravel())
    box = box_mm(s.box_m).astype(">i2").tobytes()
    return Reply(0, bytes([s.reduced]) + box + speeds + bytes([s.fence, s.rebound]))


def box_mm(box_m: np.ndarray) -> np.ndarray:
    """Returns x+, x-, y+, y-, z+, z- (6,) in whole millimetres of a box (3, 2) lowest, highest [m]."""
    return np.rint(box_m[:, ::-1].ravel() * MM).astype(int)


def _set_common(c: Controller, p: Params) -> Reply:
    if p.u8() != _SPEED_FACTOR:
        return Reply(INVALID)
    c.settings.speed_factor = _positive(p)
    return _DONE


def _get_common(c: Controller, p: Params) -> Reply:
    return Reply(0, encode_floats(c.settings.speed_factor)) if p.u8() == _SPEED_FACTOR else Reply(INVALID, bytes(4))


# --- the tool's RS485 bus ---------------------------------------------------------------------------------------------


def _rtu(c: Controller, p: Params) -> Reply:
    """Host, then an RTU frame without checksum. The answer has the same form."""
    host = _between(p.u8(), _TOOL_HOST, _TOOL_HOST)
    if c.bus_dead:
        c.fault(TOOL_BUS)
        return Reply(0, bytes([host]))
    return Reply(0, bytes([host]) + c.gripper.answer(decode_rtu(p.take(p.remaining))))


def _read_tool(c: Controller, p: Params) -> Reply:
    """Host, register. The answer is a big-endian s32."""
    _between(p.u8(), _TOOL_HOST, _TOOL_HOST)
    if c.bus_dead:
        c.fault(TOOL_BUS)
    return Reply(0, c.tool_registers.get(p.u16(), 0).to_bytes(4, "big", signed=True))


def _write_tool(c: Controller, p: Params) -> Reply:
    """Host, register, value as float. 0x1A0B sets the value of 0x0A0B: the save bit is not part of the address."""
    _between(p.u8(), _TOOL_HOST, _TOOL_HOST)
    if c.bus_dead:
        c.fault(TOOL_BUS)
    address, value = p.u16() & 0x0FFF, p.finite(1)[0]
    c.tool_registers[address] = int(value)
    return _DONE


# --- helpers ----------------------------------------------------------------------------------------------------------


def _accept_if(accepted: bool) -> Reply:
    return _DONE if accepted else Reply(INVALID)


def _move_reply(accepted: bool, data: bytes = b"") -> Reply:
    return Reply(0 if accepted else CANNOT_MOVE, data)


def _reset(c: Controller) -> Reply:
    c.system_reset()
    return _DONE


def _ignore(_: Controller, __: Params) -> Reply:
    return _DONE


def _between(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise Malformed(f"{value} is not between {low} and {high}")
    return value


def _positive(p: Params) -> float:
    value = float(p.finite(1)[0])
    if value <= 0.0:
        raise Malformed(f"{value} is not above zero")
    return value


HANDLERS: dict[int, Callable[[Controller, Params], Reply]] = {
    1: _version,
    2: _serial,
    11: _enable,
    12: _set_state,
    13: lambda c, _: Reply(0, bytes([c.state])),
    14: lambda c, _: Reply(0, c.queued.to_bytes(2, "big")),
    15: lambda c, _: Reply(0, bytes([c.error, c.warning])),
    16: _clean_error,
    17: _clean_warning,
    19: _set_mode,
    21: _move_line,
    23: _move_joints,
    24: _move_joints,
    25: _move_home,
    29: _servo_joints,
    30: _servo_pose,
    31: _ignore,  # jerk and acceleration limits: no move depends on them
    32: _ignore,
    33: _ignore,
    34: _ignore,
    35: _tcp_offset,
    36: _payload,
    37: _collision_sensitivity,
    38: _teach_sensitivity,
    39: _ignore,  # forget or save the configuration: it lives as long as the server
    40: _ignore,
    41: lambda c, _: Reply(0, encode_floats(poses.to_rpy(c.tcp))),
    42: _joint_positions,
    43: _inverse,
    44: _forward,
    45: _is_joint_limit,
    46: _is_tcp_limit,
    47: _reduced_tcp_speed,
    48: _reduced_joint_speed,
    49: lambda c, _: Reply(0, bytes([c.settings.reduced])),
    50: _reduced,
    51: _gravity,
    52: _box,
    53: _reduced_states,
    55: lambda c, _: Reply(0, encode_floats(np.zeros(JOINTS))),
    58: _reduced_range,
    59: _fence,
    60: _rebound,
    69: lambda c, _: Reply(0, bytes([c.state == MOVING])),
    77: _self_collision,
    78: _tool_model,
    83: _move_relative,
    91: lambda c, _: Reply(0, encode_floats(poses.to_axis_angle(c.tcp))),
    93: _servo_axis_angle,
    124: _rtu,
    125: lambda c, _: Reply(0, bytes([c.gripper.error, 0])),
    127: _write_tool,
    128: _read_tool,
    232: _set_common,
    233: _get_common,
    253: _ignore,  # feedback is not emulated, so the SDK polls the state
    254: _ignore,
}
