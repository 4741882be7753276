"""Fills the fields of the report frames from a `Controller`, in the wire's units."""

from __future__ import annotations

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.mock.controller import poses
from srpo_robot.mock.controller.commands import box_mm
from srpo_robot.mock.controller.frames import encode_report
from srpo_robot.mock.controller.poses import MM
from srpo_robot.mock.controller.state import (
    MAX_JOINT_ACCELERATION_RAD_S2,
    MAX_JOINT_SPEED_RAD_S,
    MAX_TCP_ACCELERATION_M_S2,
    MAX_TCP_SPEED_M_S,
    Controller,
)
from srpo_robot.records import JOINTS

CYCLE, NORMAL, RICH, REAL = 30000, 30001, 30002, 30003  # ports; the SDK knows them by these numbers
PERIODS_S = {CYCLE: 0.004, NORMAL: 0.2, RICH: 0.2, REAL: 0.01}

_TCP_LIMITS = (1e5, 0.1, MAX_TCP_ACCELERATION_M_S2 * MM, 0.1, MAX_TCP_SPEED_M_S * MM)  # jerk, acc and speed, low, high
_JOINT_LIMITS = (500.0, 0.01, MAX_JOINT_ACCELERATION_RAD_S2, 0.0001, MAX_JOINT_SPEED_RAD_S)


def report(c: Controller, port: int) -> bytes:
    """Returns the current frame of report `port`."""
    values = _motion(c)
    if port == CYCLE:
        values |= _cycle(c)
    if port in (NORMAL, RICH):
        values |= _status(c)
    if port == RICH:
        values |= _detail(c)
    return encode_report(port, values)


def _motion(c: Controller) -> dict[str, object]:
    return {
        "state_mode": c.state | c.mode << 4,
        "queued": c.queued,
        "joints": c.joints,
        "pose": poses.to_rpy(c.tcp),
    }


def _status(c: Controller) -> dict[str, object]:
    s = c.settings
    return {
        "brakes": c.enabled_bits,
        "enabled": c.enabled_bits,
        "error": c.error,
        "warning": c.warning,
        "tcp_offset": poses.to_rpy(s.tool),
        "payload": [s.payload_kg, *(s.payload_centre_m * MM)],
        "collision_sensitivity": s.collision_sensitivity,
        "teach_sensitivity": s.teach_sensitivity,
        "gravity": s.gravity,
    }


def _detail(c: Controller) -> dict[str, object]:
    s = c.settings
    return {
        "type": 7,
        "axes": JOINTS,
        "version": c.firmware.version.encode("ascii"),
        "tcp_limits": _TCP_LIMITS,
        "joint_limits": _JOINT_LIMITS,
        "temperatures": [30] * JOINTS,
        "tcp_speed": float(np.linalg.norm(_tcp_velocity(c)[:3])) * MM,
        "joint_speeds": c.velocity,
        "self_collision": s.self_collision,
        "tool_model": s.tool_model,
        "tool_size": s.tool_size,
        "voltages": [4800] * JOINTS,  # 48.00 V
        "axis_angle": poses.to_axis_angle(c.tcp)[3:],
        "flags": s.reduced | s.fence << 1,
        "reduced": s.reduced,
        "box": box_mm(s.box_m),
        "reduced_tcp_speed": s.reduced_tcp_speed_m_s * MM,
        "reduced_joint_speed": s.reduced_joint_speed_rad_s,
        "reduced_range": s.reduced_range_rad.ravel(),
        "fence": s.fence,
        "rebound": s.rebound,
    }


def _cycle(c: Controller) -> dict[str, object]:
    target_pose = c.forward(c.setpoint)
    velocity = _tcp_velocity(c) * np.repeat([MM, 1.0], 3)
    return {
        "time_us": round(c.time_s * 1e6),
        "target_joints": c.setpoint,
        "target_speeds": c.velocity,
        "joint_speeds": c.velocity,
        "target_pose": poses.to_axis_angle(target_pose),
        "target_velocity": velocity,
        "pose_aa": poses.to_axis_angle(c.tcp),
        "velocity": velocity,
    }


def _tcp_velocity(c: Controller) -> np.ndarray:
    """Returns the TCP velocity of the setpoint, (6,) [m/s], [rad/s], base frame."""
    return kinematics.jacobian(c.setpoint, c.settings.tool[:3, 3]) @ c.velocity
