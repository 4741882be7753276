"""Moves a setpoint to a target with bounded speed and acceleration, one time step per call. No state is kept."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.controller import poses

_TURN_SPEED_RAD_S = 1.5  # turning speed of the tool in a straight-line move that mostly turns


def stopping_speed(distance: np.ndarray | float, acceleration: np.ndarray | float, dt_s: float) -> np.ndarray:
    """Returns the highest speed from which braking with `acceleration` stops within `distance`, in steps of `dt_s`."""
    half = np.asarray(acceleration) * dt_s / 2.0
    return np.sqrt(half**2 + 2.0 * np.asarray(acceleration) * distance) - half


def approach(
    position: np.ndarray,
    velocity: np.ndarray,
    target: np.ndarray,
    speed: np.ndarray | float,
    acceleration: np.ndarray | float,
    dt_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns position and velocity one step later, per component, braking so that it stops at `target`.

    From rest it overshoots the target by at most acceleration * dt_s^2 / 8, because the last step seldom fits.
    """
    error = target - position
    fastest = np.minimum(speed, stopping_speed(np.abs(error), acceleration, dt_s))
    target_velocity = np.sign(error) * np.minimum(fastest, np.abs(error) / dt_s)
    change = np.asarray(acceleration) * dt_s
    velocity = velocity + np.clip(target_velocity - velocity, -change, change)
    return position + velocity * dt_s, velocity


def approach_pose(
    pose: np.ndarray, velocity: np.ndarray, target: np.ndarray, speed: float, acceleration: float, dt_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the next pose (4, 4) and velocity (3,) [m/s], straight to `target` from rest. The tool turns along."""
    error = target[:3, 3] - pose[:3, 3]
    distance = float(np.linalg.norm(error))
    if distance > 0.0:
        target_velocity = (
            error * min(speed, float(stopping_speed(distance, acceleration, dt_s)), distance / dt_s) / distance
        )
    else:
        target_velocity = np.zeros(3)
    change = target_velocity - velocity
    size = float(np.linalg.norm(change))
    velocity = velocity + change * min(1.0, acceleration * dt_s / size if size > 0.0 else 1.0)
    next_pose = pose.copy()
    next_pose[:3, 3] += velocity * dt_s
    turn = poses.rotation_vector(target[:3, :3] @ pose[:3, :3].T)
    angle = float(np.linalg.norm(turn))
    if angle > 0.0:
        share = float(np.linalg.norm(velocity)) * dt_s / distance if distance > 1e-6 else 1.0
        next_pose[:3, :3] = poses.turned(pose[:3, :3], turn * min(share, 1.0, _TURN_SPEED_RAD_S * dt_s / angle))
    return next_pose, velocity
