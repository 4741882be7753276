"""Checks before the arm moves: that it is the right arm, and that its settings read back as in the recipe.

Pure functions of values that were read from the controller. Lengths in m, angles in rad; `controller_link` converts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from srpo_robot.arm.xarm7.motion import MotionLimits
from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.recipes import ControllerRecipe, HardwareRecipe
from srpo_robot.records import JOINTS

MODES = {"servo": 1, "online": 6}  # the controller's modes, by `ControllerRecipe.stream`
# Lowest firmware for each stream: before 1.5.20 the SDK itself keeps account of readiness; mode 6 came with 1.10.0.
_FIRMWARE = {"servo": (1, 5, 20), "online": (1, 10, 0)}
_SOCKET_FILES = "xarmcontroller_uds_*"
_INSIDE_RAD = 1e-4  # margin of set points to the controller's joint range, because float32 on the wire rounds
_CLOSE_RAD = 1e-3  # a recipe's range may be a rounded copy of the vendor's table
# Joint range of the xArm 7 by serial number (characters 3 to 6), from the vendor's tables: up to 1304, and from 1305
# on.
_WIDE_DEG = ((-360, 360), (-118, 120), (-360, 360), (-11, 225), (-360, 360), (-97, 180), (-360, 360))
_NARROW_DEG = ((-360, 360), (-117, 116), (-360, 360), (-6, 225), (-360, 360), (-97, 180), (-360, 360))


@dataclass(frozen=True)
class Identity:
    """Identity of the controller: serial numbers of arm and control box, firmware (major, minor, revision)."""

    axes: int
    serial: str
    box_serial: str
    firmware: tuple[int, int, int]

    @property
    def joint_range_rad(self) -> np.ndarray:
        """(7, 2) lowest and highest angle of this generation of the arm."""
        return np.deg2rad(np.array(_NARROW_DEG if int(self.serial[2:6]) >= 1305 else _WIDE_DEG, dtype=np.float64))


def identify(answer: bytes, recipe: ControllerRecipe) -> Identity:
    """Returns the identity in the controller's answer to VERSION ("7,7,XI1304...,AC1300...,v2.5.0").

    Raises:
        ArmError: the arm is no xArm 7, its serial number is malformed or not the recipe's, or its firmware is too old
            for the mode.
    """
    text = answer.split(b"\0")[0].decode("ascii", errors="replace")
    controller = f"the controller at {recipe.address}"
    match = re.search(r"(\d+),(\d+),([^,]*),([^,]*),.*?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise ArmError(f"{controller} says its version is {text!r}, which is no xArm's; check controller.address")
    axes, _, serial, box_serial, *firmware = match.groups()
    identity = Identity(
        int(axes), serial.strip(), box_serial.strip(), (int(firmware[0]), int(firmware[1]), int(firmware[2]))
    )
    if identity.axes != JOINTS:
        raise ArmError(
            f"{controller} drives an arm of {identity.axes} axes ({identity.serial}); this driver is for the xArm 7"
        )
    if not re.fullmatch(r"[A-Z]{2}\d{4}\w+", identity.serial):
        raise ArmError(
            f"{controller} gives the serial number {identity.serial!r}, which tells no generation (XI1304... expected) "
            "and so no joint range; enter the arm's number in the vendor's studio"
        )
    if recipe.serial and recipe.serial != identity.serial:
        raise ArmError(f"wanted the arm {recipe.serial}, got {identity.serial} at {recipe.address}; correct the recipe")
    minimum = _FIRMWARE[recipe.stream]
    if identity.firmware < minimum:
        raise ArmError(
            f"firmware {_dotted(identity.firmware)} is too old for controller.stream = {recipe.stream!r}: it needs "
            f"{_dotted(minimum)} or newer; update it in the vendor's studio"
        )
    return identity


def refuse_socket_files(folders: Sequence[Path] = (Path(tempfile.gettempdir()), Path("/tmp"))) -> None:
    """Raises ArmError if a controller's socket file exists: the SDK prefers it to the arm, whatever the address."""
    for folder in folders:
        for path in sorted(folder.glob(_SOCKET_FILES)):
            raise ArmError(
                f"{path} lies there: programs with the vendor's SDK talk to it instead of the arm; delete it"
            )


def motion_limits(recipe: HardwareRecipe, controller: ControllerRecipe) -> MotionLimits:
    """Returns the limits that hold at every set point. Raises RecipeError if the numbers contradict each other."""
    limits = recipe.limits
    return MotionLimits(
        joint_min_rad=np.array(limits.joint_min_rad),
        joint_max_rad=np.array(limits.joint_max_rad),
        joint_speed_rad_s=limits.max_joint_speed_rad_s,
        joint_acceleration_rad_s2=controller.max_joint_acceleration_rad_s2,
        tcp_speed_m_s=controller.max_tcp_speed_m_s,
        box_min_m=np.array(limits.box_min_m),
        box_max_m=np.array(limits.box_max_m),
        table_m=controller.table_m,
        tcp_offset_m=np.array(recipe.tcp_offset_m),
        gripper_min_m=limits.gripper_min_m,
        gripper_max_m=limits.gripper_max_m,
        gripper_speed_m_s=limits.max_gripper_speed_m_s,
    )


def joint_range(recipe: HardwareRecipe, identity: Identity) -> np.ndarray:
    """Returns the recipe's joint range (7, 2), kept just inside the arm's.

    Raises:
        RecipeError: the recipe allows angles that this generation of the arm does not.
    """
    arm = identity.joint_range_rad
    low, high = np.array(recipe.limits.joint_min_rad), np.array(recipe.limits.joint_max_rad)
    for i in np.flatnonzero((low < arm[:, 0] - _CLOSE_RAD) | (high > arm[:, 1] + _CLOSE_RAD)):
        raise RecipeError(
            f"limits allow joint {i + 1} {low[i]:.4f} to {high[i]:.4f} rad, the arm {identity.serial} only "
            f"{arm[i, 0]:.4f} to {arm[i, 1]:.4f}; narrow limits.joint_min_rad and joint_max_rad"
        )
    return np.stack([np.maximum(low, arm[:, 0] + _INSIDE_RAD), np.minimum(high, arm[:, 1] - _INSIDE_RAD)], axis=1)


@dataclass(frozen=True, kw_only=True)
class StoredSettings:
    """Settings stored in the controller, from a recipe or as read back. None: the recipe leaves a setting as it is."""

    tcp_offset_m: tuple[float, ...]
    tcp_turn_rad: tuple[float, ...]  # rotation of the tool against the flange, zero here
    payload_kg: float
    payload_centre_m: tuple[float, ...]
    collision_sensitivity: float
    self_collision: float
    tool_model: float
    fence: float
    fence_box_m: tuple[float, ...] | None  # x+, x-, y+, y-, z+, z-, whole millimetres
    reduced: float
    reduced_tcp_speed_m_s: float | None
    reduced_joint_speed_rad_s: float | None
    reduced_range_rad: tuple[float, ...] | None  # (14,) lowest and highest angle of each joint


def recipe_settings(recipe: HardwareRecipe, controller: ControllerRecipe) -> StoredSettings:
    """Returns the recipe's settings. Raises RecipeError if a value cannot be set."""
    if not 1 <= controller.collision_sensitivity <= 5:
        raise RecipeError(f"controller.collision_sensitivity is {controller.collision_sensitivity}; it is 1 to 5")
    if len(controller.payload_centre_m) != 3:
        raise RecipeError(f"controller.payload_centre_m has {len(controller.payload_centre_m)} numbers, expected 3")
    limits, margin = recipe.limits, controller.fence_margin_m
    edges = np.stack([np.array(limits.box_max_m) + margin, np.array(limits.box_min_m) - margin], axis=1)
    ranges = np.stack([limits.joint_min_rad, limits.joint_max_rad], axis=1)
    return StoredSettings(
        tcp_offset_m=recipe.tcp_offset_m,
        tcp_turn_rad=(0.0, 0.0, 0.0),
        payload_kg=controller.payload_kg,
        payload_centre_m=controller.payload_centre_m,
        collision_sensitivity=controller.collision_sensitivity,
        self_collision=controller.self_collision,
        tool_model=controller.tool_model,
        fence=controller.fence,
        fence_box_m=tuple(np.rint(edges.ravel() * 1000) / 1000) if controller.fence else None,
        reduced=controller.reduced,
        reduced_tcp_speed_m_s=controller.reduced_tcp_speed_m_s if controller.reduced else None,
        reduced_joint_speed_rad_s=controller.reduced_joint_speed_rad_s if controller.reduced else None,
        reduced_range_rad=tuple(ranges.ravel()) if controller.reduced else None,
    )


def differences(expected: StoredSettings, stored: StoredSettings) -> tuple[str, ...]:
    """Returns one line for each setting that reads back differently, with both values."""
    lines = []
    for field in fields(StoredSettings):
        expected_value, stored_value = getattr(expected, field.name), getattr(stored, field.name)
        if expected_value is not None and not np.allclose(expected_value, stored_value, atol=_CLOSE_RAD, rtol=0):
            lines.append(f"{field.name}: wanted {_short(expected_value)}, got {_short(stored_value)}")
    return tuple(lines)


def _short(value: float | tuple[float, ...]) -> str:
    return np.array2string(np.asarray(value, dtype=np.float64), precision=4, max_line_width=1000)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
