"""xArm 7 kinematics from its modified DH parameters: forward, Jacobian, damped least-squares inverse. numpy only.

Source: the vendor's published xArm 7 table (modified DH, Craig's convention). At zero angles the flange is at
(0.206, 0, 0.1205) m and the tool axis points down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo_robot.records import JOINTS

DH_ALPHA = np.array([0.0, -90.0, 90.0, 90.0, 90.0, 90.0, -90.0]) * np.pi / 180.0  # [rad]
DH_A = np.array([0.0, 0.0, 0.0, 0.0525, 0.0775, 0.0, 0.076])  # [m]
DH_D = np.array([0.267, 0.0, 0.293, 0.0, 0.3425, 0.0, 0.097])  # [m]
TOOL_DOWN = np.diag([1.0, -1.0, -1.0])  # R_base_tool of a gripper that points at the table, fingers along y


def frames(joints_rad: np.ndarray) -> np.ndarray:
    """Returns the poses T_base_i of base and joint frames, the flange last: (..., 7) -> (..., 8, 4, 4)."""
    joints = np.asarray(joints_rad, dtype=np.float64)
    poses = np.zeros((*joints.shape[:-1], JOINTS + 1, 4, 4))
    poses[..., 0, :, :] = np.eye(4)
    links = _links(joints)
    for i in range(JOINTS):
        poses[..., i + 1, :, :] = poses[..., i, :, :] @ links[..., i, :, :]
    return poses


def _links(joints: np.ndarray) -> np.ndarray:
    """Returns the transforms from each joint frame to the next: (..., 7) -> (..., 7, 4, 4)."""
    ca, sa, ct, st = np.cos(DH_ALPHA), np.sin(DH_ALPHA), np.cos(joints), np.sin(joints)
    links = np.zeros((*joints.shape, 4, 4))
    links[..., 0, 0], links[..., 0, 1], links[..., 0, 3] = ct, -st, DH_A
    links[..., 1, 0], links[..., 1, 1], links[..., 1, 2], links[..., 1, 3] = st * ca, ct * ca, -sa, -sa * DH_D
    links[..., 2, 0], links[..., 2, 1], links[..., 2, 2], links[..., 2, 3] = st * sa, ct * sa, ca, ca * DH_D
    links[..., 3, 3] = 1.0
    return links


def tcp_pose(joints_rad: np.ndarray, tcp_offset_m: np.ndarray) -> np.ndarray:
    """Returns T_base_tcp, (4, 4). `tcp_offset_m` (3,) is the tool centre point in the flange frame [m]."""
    pose = frames(joints_rad)[-1].copy()
    pose[:3, 3] += pose[:3, :3] @ np.asarray(tcp_offset_m)
    return pose


def tcp_position(joints_rad: np.ndarray, tcp_offset_m: np.ndarray) -> np.ndarray:
    """Returns the position of the tool centre point in the base frame, (3,) [m]."""
    return tcp_pose(joints_rad, tcp_offset_m)[:3, 3]


def jacobian(joints_rad: np.ndarray, tcp_offset_m: np.ndarray) -> np.ndarray:
    """Returns the geometric Jacobian of the TCP in the base frame, (6, 7): linear [m/rad] above angular [rad/rad]."""
    poses = frames(joints_rad)
    tcp = poses[-1][:3, 3] + poses[-1][:3, :3] @ np.asarray(tcp_offset_m)
    axes, origins = poses[1:, :3, 2], poses[1:, :3, 3]  # each joint turns about the z axis of its own frame
    return np.vstack([np.cross(axes, tcp - origins).T, axes.T])


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of inverse kinematics. `reached` is False if the residual stayed above the tolerance."""

    joints_rad: np.ndarray  # (7,)
    residual_m: float  # position error [m]
    residual_rad: float  # orientation error [rad]
    reached: bool


@dataclass(frozen=True)
class SolverOptions:
    """Options of the inverse kinematics solver.

    Attributes:
        iterations: most steps of the solver.
        tolerance_m: position error at which it stops [m]. Twice this error still counts as reached.
        tolerance_rad: orientation error at which it stops [rad]. Twice this error still counts as reached.
    """

    iterations: int = 50
    tolerance_m: float = 5e-4
    tolerance_rad: float = 2e-3


_DEFAULT_OPTIONS = SolverOptions()


def inverse(
    position_m: np.ndarray,
    rotation: np.ndarray,
    start_rad: np.ndarray,
    tcp_offset_m: np.ndarray,
    joint_min_rad: np.ndarray,
    joint_max_rad: np.ndarray,
    posture_rad: np.ndarray | None = None,
    options: SolverOptions = _DEFAULT_OPTIONS,
) -> Solution:
    """Returns joint angles near `start_rad` that put the TCP at `position_m` (3,) with `rotation` (3, 3).

    Uses damped least squares (Nakamura and Hanafusa 1986) inside the joint range. A null-space pull towards
    `posture_rad` keeps the elbow of the redundant arm near its taught posture; None means the start. Never raises: the
    caller decides how to treat an unreached target.
    """
    joints = np.clip(np.asarray(start_rad, dtype=np.float64), joint_min_rad, joint_max_rad)
    posture = joints if posture_rad is None else np.asarray(posture_rad)
    offset = np.asarray(tcp_offset_m)
    eye = np.eye(JOINTS)
    for _ in range(options.iterations):
        pose = tcp_pose(joints, offset)
        error = np.concatenate([position_m - pose[:3, 3], _rotation_vector(rotation @ pose[:3, :3].T)])
        if np.linalg.norm(error[:3]) < options.tolerance_m and np.linalg.norm(error[3:]) < options.tolerance_rad:
            break
        j = jacobian(joints, offset)
        damped = j.T @ np.linalg.inv(j @ j.T + 1e-5 * np.eye(6))
        step = damped @ error + (eye - damped @ j) @ (0.1 * (posture - joints))
        joints = np.clip(joints + np.clip(step, -0.3, 0.3), joint_min_rad, joint_max_rad)
    pose = tcp_pose(joints, offset)
    residual_m = float(np.linalg.norm(position_m - pose[:3, 3]))
    residual_rad = float(np.linalg.norm(_rotation_vector(rotation @ pose[:3, :3].T)))
    reached = residual_m < 2 * options.tolerance_m and residual_rad < 2 * options.tolerance_rad
    return Solution(joints, residual_m, residual_rad, reached)


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Returns axis times angle of a rotation matrix, (3,) [rad], valid up to pi."""
    cosine = np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0)
    angle = np.arccos(cosine)
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if angle < 1e-7:
        return skew / 2.0
    if np.pi - angle < 1e-4:  # the skew part vanishes, so the axis is read from the symmetric part
        axis = np.sqrt(np.maximum((np.diag(rotation) + 1.0) / 2.0, 0.0))
        k = int(np.argmax(axis))
        axis = (rotation[:, k] + rotation[k, :]) / (4.0 * axis[k])
        axis[k] = np.sqrt(max((rotation[k, k] + 1.0) / 2.0, 0.0))
        return angle * axis / np.linalg.norm(axis)
    return angle * skew / (2.0 * np.sin(angle))
