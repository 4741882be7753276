"""Computes set points from targets, tick by tick. No target can lead them out of the limits.

Every tick keeps one invariant: braking at the acceleration cap from the current set point stays inside joint range,
workspace box, table and TCP speed. A step towards the target is taken as far as the invariant allows. If no step is
allowed, the arm brakes, which the invariant of the previous tick has shown to be safe. By induction the limits hold for
any sequence of targets, and the set points never jump. Pure functions of numpy arrays: no clock, no arm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.records import JOINTS, ArmCommand

PATH_LAYERS = ("joint_range", "tcp_speed", "workspace_box", "table")  # in the order of the columns of `_broken`
LAYERS = (*PATH_LAYERS, "gripper_range")
# Points of the arm that may hit a table: (joint frame, position in its axes, radius), [m]. Elbow, forearm, wrist and
# flange from the vendor's drawings, rounded up. The workspace box covers the gripper.
BODY: tuple[tuple[int, tuple[float, float, float], float], ...] = (
    (4, (0.0, 0.0, 0.0), 0.07),
    (5, (0.0, 0.0, 0.0), 0.07),
    (5, (0.0, 0.0, -0.17), 0.06),
    (6, (0.0, 0.0, 0.0), 0.06),
    (7, (0.0, 0.0, 0.0), 0.05),
)
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class MotionLimits:
    """Limits that hold at every tick.

    Attributes:
        joint_min_rad, joint_max_rad: (7,) joint range.
        joint_speed_rad_s, joint_acceleration_rad_s2: caps for every joint.
        tcp_speed_m_s: cap for the tool centre point, as a chord from tick to tick.
        box_min_m, box_max_m: (3,) workspace box of the TCP, base frame.
        table_m: height that no part of `BODY` goes below, base frame.
        tcp_offset_m: (3,) TCP in the flange frame.
        gripper_min_m, gripper_max_m, gripper_speed_m_s: opening between the fingers.

    Raises:
        RecipeError: a speed or an acceleration is not positive and finite, or a minimum is not below its maximum.
    """

    joint_min_rad: np.ndarray
    joint_max_rad: np.ndarray
    joint_speed_rad_s: float
    joint_acceleration_rad_s2: float
    tcp_speed_m_s: float
    box_min_m: np.ndarray
    box_max_m: np.ndarray
    table_m: float
    tcp_offset_m: np.ndarray
    gripper_min_m: float
    gripper_max_m: float
    gripper_speed_m_s: float

    def __post_init__(self) -> None:
        rates = (self.joint_speed_rad_s, self.joint_acceleration_rad_s2, self.tcp_speed_m_s, self.gripper_speed_m_s)
        if not all(np.isfinite(rate) and rate > 0 for rate in rates):
            raise RecipeError(f"speeds and accelerations {rates} must be positive numbers")
        if not (
            np.all(self.joint_min_rad < self.joint_max_rad)
            and np.all(self.box_min_m < self.box_max_m)
            and self.gripper_min_m < self.gripper_max_m
        ):
            raise RecipeError("limits: every minimum must lie below its maximum")


@dataclass(frozen=True, eq=False)
class Motion:
    """State of the set points: `joints_rad` (7,), `speed_rad_s` (7,), `gripper_m`. Starts at the measured pose."""

    joints_rad: np.ndarray
    speed_rad_s: np.ndarray
    gripper_m: float

    @property
    def at_rest(self) -> bool:
        """Whether all joint speeds are zero."""
        return not self.speed_rad_s.any()


def at_rest(joints_rad: np.ndarray, gripper_m: float, limits: MotionLimits) -> Motion:
    """Returns a motion at rest at the measured pose.

    Raises:
        CommandRefused: the pose is outside the limits. The message names the broken layers.
    """
    joints = np.asarray(joints_rad, dtype=np.float64)
    if joints.shape != (JOINTS,) or not (np.isfinite(joints).all() and np.isfinite(gripper_m)):
        raise CommandRefused(f"a start of {JOINTS} finite joint angles and an opening is needed, got {joints.tolist()}")
    names = broken_layers(joints[None], limits)
    if names:
        raise CommandRefused(
            f"the arm stands outside its limits ({', '.join(names)}); move it inside by hand or from the vendor's "
            "studio, or widen the recipe's limits"
        )
    gripper = float(np.clip(gripper_m, limits.gripper_min_m, limits.gripper_max_m))
    return Motion(joints.copy(), np.zeros(JOINTS), gripper)


def broken_layers(path_rad: np.ndarray, limits: MotionLimits) -> tuple[str, ...]:
    """Returns the entries of `PATH_LAYERS` that a path (n, 7) breaks anywhere. Its speed is not checked."""
    broken = _broken(path_rad[None], limits, np.inf)[0]
    return tuple(layer for layer, is_broken in zip(PATH_LAYERS, broken, strict=True) if is_broken)


def advance(
    motion: Motion, target: ArmCommand, limits: MotionLimits, tick_s: float, pace: float = 1.0
) -> tuple[Motion, tuple[str, ...]]:
    """Returns the motion one tick closer to `target`, and the layers (of `LAYERS`) that kept it from the target.

    Args:
        motion: result of `at_rest`, or of an earlier `advance` with these limits and this tick.
        target: pose to approach.
        limits: limits that hold at every tick.
        tick_s: time of one set point [s], the same throughout.
        pace: fraction of the speed caps that is used, above 0 to 1. The first live chunk runs at a tenth.

    Raises:
        CommandRefused: a value of `target` is not finite. Use `brake` then.
    """
    if not (np.isfinite(target.joints_rad).all() and np.isfinite(target.gripper_m)):
        raise CommandRefused("a target with NaN or infinity was refused; the arm brakes. Check the policy's output")
    limited_by: list[str] = []
    goal = np.clip(target.joints_rad, limits.joint_min_rad, limits.joint_max_rad)
    if np.any(goal != target.joints_rad):
        limited_by.append("joint_range")
    gripper, clipped = _gripper_step(motion.gripper_m, target.gripper_m, limits, tick_s)
    limited_by += ["gripper_range"] if clipped else []
    speed = _approach(motion, goal, limits, tick_s, pace)
    braking_speed = _braked(motion.speed_rad_s, limits.joint_acceleration_rad_s2 * tick_s)
    broken = _broken_after(motion.joints_rad, speed[None], limits, tick_s)[0]
    if broken.any():
        limited_by += [layer for layer, is_broken in zip(PATH_LAYERS, broken, strict=True) if is_broken]
        share = _largest_share(motion.joints_rad, braking_speed, speed, limits, tick_s)
        speed = braking_speed + share * (speed - braking_speed)
    return Motion(motion.joints_rad + speed * tick_s, speed, gripper), tuple(dict.fromkeys(limited_by))


def brake(motion: Motion, limits: MotionLimits, tick_s: float) -> Motion:
    """Returns the motion after one tick of braking at the acceleration cap. It is safe after any `advance`.

    The gripper stays at its opening.
    """
    speed = _braked(motion.speed_rad_s, limits.joint_acceleration_rad_s2 * tick_s)
    return Motion(motion.joints_rad + speed * tick_s, speed, motion.gripper_m)


# --- inside -------------------------------------------------------------------------------------------------------


def _approach(motion: Motion, goal: np.ndarray, limits: MotionLimits, tick_s: float, pace: float) -> np.ndarray:
    """Returns joint speeds (7,) for one tick straight towards the goal that can still stop there, within both caps."""
    distance = goal - motion.joints_rad
    longest = float(np.abs(distance).max())
    acceleration = limits.joint_acceleration_rad_s2
    speed = np.zeros(JOINTS)
    if longest > 0.0:
        # v * tick + v^2 / (2 a) = distance: the speed from which braking ends at the goal.
        stopping = acceleration * (np.sqrt(tick_s**2 + 2.0 * longest / acceleration) - tick_s)
        speed = distance / longest * min(limits.joint_speed_rad_s * pace, stopping)
    change = speed - motion.speed_rad_s
    largest, largest_change = float(np.abs(change).max()), acceleration * tick_s
    return motion.speed_rad_s + (change * (largest_change / largest) if largest > largest_change else change)


def _braked(speed_rad_s: np.ndarray, change: float) -> np.ndarray:
    """Returns the speeds after one tick of braking, in proportion, so that the path stays straight in joint space."""
    fastest = float(np.abs(speed_rad_s).max())
    return speed_rad_s * (1.0 - change / fastest) if fastest > change else np.zeros(JOINTS)


def _broken_after(joints_rad: np.ndarray, speeds_rad_s: np.ndarray, limits: MotionLimits, tick_s: float) -> np.ndarray:
    """Returns which of `PATH_LAYERS` a tick at each of the speeds (m, 7), followed by braking, would break: (m, 4)."""
    change = limits.joint_acceleration_rad_s2 * tick_s
    fastest = np.abs(speeds_rad_s).max(axis=1, keepdims=True)
    ticks = np.arange(int(np.ceil(fastest.max() / change)) + 1)
    fraction = np.maximum(1.0 - ticks * change / np.maximum(fastest, change * 1e-9), 0.0)  # (m, ticks) of the speed
    offsets = np.cumsum(fraction, axis=1)[..., None] * speeds_rad_s[:, None] * tick_s
    start = np.broadcast_to(joints_rad, (len(speeds_rad_s), 1, JOINTS))
    return _broken(np.concatenate([start, joints_rad + offsets], axis=1), limits, tick_s)


def _largest_share(
    joints_rad: np.ndarray, braking_speed: np.ndarray, full_speed: np.ndarray, limits: MotionLimits, tick_s: float
) -> float:
    """Returns the largest safe step from braking (0) to full speed (1), in 64ths, tested 8 at a time."""
    share = 0.0
    for width in (1 / 8, 1 / 64):
        candidates = share + width * np.arange(1, 8)
        speeds = braking_speed + candidates[:, None] * (full_speed - braking_speed)
        fits = ~_broken_after(joints_rad, speeds, limits, tick_s).any(axis=1)
        share = float(candidates[fits].max(initial=share))
    return share


def _broken(paths: np.ndarray, limits: MotionLimits, tick_s: float) -> np.ndarray:
    """Returns which of `PATH_LAYERS` each of several paths of set points (m, n, 7) breaks: (m, 4) bool."""
    poses = kinematics.frames(paths)
    tcp = poses[..., -1, :3, 3] + poses[..., -1, :3, :3] @ limits.tcp_offset_m
    steps = np.linalg.norm(np.diff(tcp, axis=1), axis=2).max(axis=1, initial=0.0)
    beyond = (paths < limits.joint_min_rad - _TOLERANCE) | (paths > limits.joint_max_rad + _TOLERANCE)
    outside = (tcp < limits.box_min_m - _TOLERANCE) | (tcp > limits.box_max_m + _TOLERANCE)
    return np.stack(
        [
            beyond.any(axis=(1, 2)),
            steps > limits.tcp_speed_m_s * tick_s + _TOLERANCE,
            outside.any(axis=(1, 2)),
            _heights(poses).min(axis=1) < limits.table_m - _TOLERANCE,
        ],
        axis=1,
    )


def lowest(poses: np.ndarray) -> float:
    """Returns the height of the lowest part of the arm's body [m] for joint frames (..., 8, 4, 4)."""
    return float(_heights(poses).min())


def _heights(poses: np.ndarray) -> np.ndarray:
    """Returns the lowest height of `BODY` [m] in each set of joint frames: (..., 8, 4, 4) -> (...)."""
    return np.min(
        [poses[..., frame, 2, :3] @ np.array(at) + poses[..., frame, 2, 3] - radius for frame, at, radius in BODY],
        axis=0,
    )


def _gripper_step(now_m: float, target_m: float, limits: MotionLimits, tick_s: float) -> tuple[float, bool]:
    goal = float(np.clip(target_m, limits.gripper_min_m, limits.gripper_max_m))
    step = limits.gripper_speed_m_s * tick_s
    return now_m + float(np.clip(goal - now_m, -step, step)), goal != target_m
