"""Limits on every command, as one pure function. Its result is always inside the limits.

The layers, in order: finite (refused, never repaired), joint range, gripper range, step caps, workspace box by forward
kinematics. The result names each layer that changed the command, so a run can count and show them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.recipes import LimitsRecipe
from srpo_robot.records import JOINTS, ArmCommand

LAYERS = ("joint_range", "gripper_range", "joint_step", "gripper_step", "workspace_box")
_BOX_TOLERANCE_M = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class Limits:
    """Bounds for one control period. Angles [rad], lengths [m]. A step cap is the recipe's speed times the period."""

    joint_min_rad: np.ndarray  # (7,)
    joint_max_rad: np.ndarray  # (7,)
    joint_step_rad: float
    box_min_m: np.ndarray  # (3,) TCP, base frame
    box_max_m: np.ndarray  # (3,)
    gripper_min_m: float
    gripper_max_m: float
    gripper_step_m: float
    tcp_offset_m: np.ndarray  # (3,) flange frame

    @classmethod
    def from_recipe(cls, recipe: LimitsRecipe, tcp_offset_m: tuple[float, ...], period_s: float) -> Limits:
        """Builds the limits of one period. Raises RecipeError if a bound has the wrong length or an empty range."""
        lengths = {"joint_min_rad": JOINTS, "joint_max_rad": JOINTS, "box_min_m": 3, "box_max_m": 3}
        for name, length in lengths.items():
            if len(getattr(recipe, name)) != length:
                raise RecipeError(f"limits.{name} has {len(getattr(recipe, name))} numbers, expected {length}")
        if len(tcp_offset_m) != 3:
            raise RecipeError(f"tcp_offset_m has {len(tcp_offset_m)} numbers, expected 3")
        limits = cls(
            joint_min_rad=np.array(recipe.joint_min_rad),
            joint_max_rad=np.array(recipe.joint_max_rad),
            joint_step_rad=recipe.max_joint_speed_rad_s * period_s,
            box_min_m=np.array(recipe.box_min_m),
            box_max_m=np.array(recipe.box_max_m),
            gripper_min_m=recipe.gripper_min_m,
            gripper_max_m=recipe.gripper_max_m,
            gripper_step_m=recipe.max_gripper_speed_m_s * period_s,
            tcp_offset_m=np.array(tcp_offset_m),
        )
        if not (
            np.all(limits.joint_min_rad < limits.joint_max_rad)
            and np.all(limits.box_min_m < limits.box_max_m)
            and limits.gripper_min_m < limits.gripper_max_m
            and limits.joint_step_rad > 0
            and limits.gripper_step_m > 0
        ):
            raise RecipeError("limits: every minimum must lie below its maximum and every speed above zero")
        return limits

    def inside_box(self, joints_rad: np.ndarray) -> bool:
        """Returns whether the TCP at `joints_rad` (7,) lies in the workspace box."""
        position = kinematics.tcp_position(joints_rad, self.tcp_offset_m)
        return bool(
            np.all(position >= self.box_min_m - _BOX_TOLERANCE_M)
            and np.all(position <= self.box_max_m + _BOX_TOLERANCE_M)
        )


@dataclass(frozen=True, eq=False)
class Limited:
    """A command inside the limits, and the layers that changed it: entries of `LAYERS`, in order."""

    command: ArmCommand
    limited_by: tuple[str, ...]


def limit(command: ArmCommand, previous: ArmCommand, limits: Limits) -> Limited:
    """Returns `command` brought inside `limits`, stepping from `previous`, the command that was executed last.

    A joint step that is too long is scaled as a whole, so its direction stays the same. A step that would leave the
    workspace box goes as far along its path as the box allows. From outside the box, only steps that end inside pass.

    Raises:
        CommandRefused: a value is not finite. Such a command is never repaired, because its source is broken.
    """
    if not (np.isfinite(command.joints_rad).all() and np.isfinite(command.gripper_m)):
        raise CommandRefused("a command with NaN or infinity was refused; the arm holds. Check the policy's output")
    limited_by: list[str] = []

    def note_change(layer: str, before: np.ndarray | float, after: np.ndarray | float) -> None:
        if np.any(before != after):
            limited_by.append(layer)

    joints = np.clip(command.joints_rad, limits.joint_min_rad, limits.joint_max_rad)
    note_change("joint_range", command.joints_rad, joints)
    gripper = float(np.clip(command.gripper_m, limits.gripper_min_m, limits.gripper_max_m))
    note_change("gripper_range", command.gripper_m, gripper)

    delta = joints - previous.joints_rad
    longest = float(np.abs(delta).max())
    if longest > limits.joint_step_rad:
        delta = delta * (limits.joint_step_rad / longest)
        limited_by.append("joint_step")
    joints = previous.joints_rad + delta

    step = float(np.clip(gripper - previous.gripper_m, -limits.gripper_step_m, limits.gripper_step_m))
    note_change("gripper_step", gripper - previous.gripper_m, step)
    gripper = previous.gripper_m + step

    if not limits.inside_box(joints):
        limited_by.append("workspace_box")
        joints = previous.joints_rad + _share_inside(previous.joints_rad, delta, limits) * delta
    return Limited(ArmCommand(joints, gripper), tuple(limited_by))


def _share_inside(start_rad: np.ndarray, delta_rad: np.ndarray, limits: Limits) -> float:
    """Returns the largest fraction of a step that ends inside the box (by bisection), or 0 if the start is outside."""
    if not limits.inside_box(start_rad):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2.0
        low, high = (middle, high) if limits.inside_box(start_rad + middle * delta_rad) else (low, middle)
    return low
