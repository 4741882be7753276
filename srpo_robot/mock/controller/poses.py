"""Converts poses between the wire and the emulator.

Wire: six numbers, position [mm] and either fixed-axis roll, pitch, yaw or axis-angle. Inside: T, (4, 4), metres.
Fixed axes: R = Rz(yaw) Ry(pitch) Rx(roll).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

MM = 1000.0  # millimetres in a metre


def from_rpy(wire: np.ndarray) -> np.ndarray:
    """Returns T, (4, 4), of x, y, z [mm], roll, pitch, yaw [rad]."""
    return _pose(wire[:3], Rotation.from_euler("xyz", wire[3:]))


def to_rpy(pose: np.ndarray) -> np.ndarray:
    """Returns x, y, z [mm], roll, pitch, yaw [rad] of T. At pitch = +-pi/2 the roll is zero."""
    r = pose[:3, :3]
    flat = np.hypot(r[0, 0], r[1, 0])
    if flat > 1e-9:
        roll, yaw = np.arctan2(r[2, 1], r[2, 2]), np.arctan2(r[1, 0], r[0, 0])
    else:
        roll, yaw = 0.0, np.arctan2(-r[0, 1], r[1, 1])
    return np.array([*(pose[:3, 3] * MM), roll, np.arctan2(-r[2, 0], flat), yaw])


def from_axis_angle(wire: np.ndarray) -> np.ndarray:
    """Returns T, (4, 4), of x, y, z [mm] and axis times angle [rad]."""
    return _pose(wire[:3], Rotation.from_rotvec(wire[3:]))


def to_axis_angle(pose: np.ndarray) -> np.ndarray:
    """Returns x, y, z [mm] and axis times angle [rad] of T."""
    return np.concatenate([pose[:3, 3] * MM, rotation_vector(pose[:3, :3])])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Returns axis times angle of a rotation matrix, (3,) [rad]."""
    return Rotation.from_matrix(rotation).as_rotvec()


def turned(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Returns `rotation` turned about the base's axes by axis times angle `vector` [rad]."""
    return Rotation.from_rotvec(vector).as_matrix() @ rotation


def inverse(pose: np.ndarray) -> np.ndarray:
    """Returns the inverse of a pose."""
    back = np.eye(4)
    back[:3, :3] = pose[:3, :3].T
    back[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return back


def _pose(position_mm: np.ndarray, rotation: Rotation) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = rotation.as_matrix()
    pose[:3, 3] = np.asarray(position_mm) / MM
    return pose
