"""The mock cell's MJCF: an xArm 7 of capsules from the DH table, a parallel gripper, two cameras, a task's parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_robot.arm.kinematics import DH_A, DH_ALPHA, DH_D
from srpo_robot.errors import RecipeError
from srpo_robot.mock.objects import THINGS
from srpo_robot.recipes import HardwareRecipe
from srpo_robot.records import JOINTS

TIMESTEP_S = 0.002
CAMERAS = ("front", "wrist")
AMBIENT, DIFFUSE = 0.45, 0.55  # nominal light with sum 1, so that a surface that faces the camera shows its own colour
TABLE_RGB = (0.42, 0.36, 0.30)  # nominal

# MuJoCo Menagerie's xArm 7: position gain [Nm/rad], velocity gain [Nm s/rad], torque limit [Nm], damping [Nm s/rad].
_GAINS = [(1500, 150, 50, 10)] * 2 + [(1000, 100, 30, 5)] * 3 + [(800, 80, 20, 2)] * 2
_LINK_RADIUS_M = (0.052, 0.052, 0.047, 0.045, 0.042, 0.038, 0.034)
_LINK_MASS_KG = (2.5, 1.9, 1.7, 1.8, 1.5, 1.3, 0.5)  # estimates (the arm weighs 13.7 kg)
_FINGER_THICK_M = 0.004  # half of the thickness, along the closing direction
_FINGER_LONG_M = 0.062
# Stiffer than MuJoCo's default, with which 15 N press the pads millimetres into a light apple. With priority 1, the
# pad's values apply to the contact.
_PAD = 'condim="6" friction="1.5 0.05 0.003" solref="0.004 1" priority="1"'


@dataclass(frozen=True)
class Parts:
    """MJCF that a task adds: bodies on the table, bodies of the hand, and sections besides <worldbody>."""

    world: str
    hand: str = ""
    sections: str = ""


def mjcf(hardware: HardwareRecipe, parts: Parts, things: Sequence[str]) -> str:
    """Returns the model as MJCF text, with `things` of `THINGS` as free objects. A layout parks unused objects.

    Raises:
        RecipeError: the recipe has a camera that the cell does not have, or a tool that is not straight ahead of the
            flange.
    """
    unknown = [camera.name for camera in hardware.cameras if camera.name not in CAMERAS]
    if unknown:
        raise RecipeError(f"the mock cell has no camera {unknown[0]!r}; it has: {', '.join(CAMERAS)}")
    x, y, reach = hardware.tcp_offset_m
    if x != 0.0 or y != 0.0 or reach < _FINGER_LONG_M:
        raise RecipeError(f"the mock gripper needs tcp_offset_m [0, 0, z], z >= {_FINGER_LONG_M}, not {[x, y, reach]}")
    height = max((camera.height_px for camera in hardware.cameras), default=1)
    width = max((camera.width_px for camera in hardware.cameras), default=1)
    return f"""<mujoco model="srpo_mock_cell">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <statistic center="0.4 0 0.1" extent="1"/>
  <visual>
    <global offwidth="{width}" offheight="{height}"/>
    <quality shadowsize="0" offsamples="2" numslices="16" numstacks="10"/>
    <map znear="0.01" zfar="10"/>
    <headlight ambient="{text([AMBIENT] * 3)}" diffuse="{text([DIFFUSE] * 3)}" specular="0 0 0"/>
  </visual>
  <worldbody>
    <geom name="table" type="plane" size="2 2 0.1" rgba="{text(list(TABLE_RGB))} 1" condim="6"
          friction="1 0.02 0.003"/>
    {_camera("front", np.array([0.86, -0.06, 0.64]), np.array([0.385, -0.06, 0.06]), np.array([0.0, 0.0, 1.0]), 37)}
    <geom type="cylinder" fromto="0 0 0 0 0 0.16" size="0.06" rgba="0.75 0.77 0.80 1" contype="0" conaffinity="0"/>
    {_arm(hardware, parts.hand)}
    {parts.world}
    {"".join(_free_body(name) for name in things)}
  </worldbody>
  <equality><joint joint1="finger_right" joint2="finger_left" polycoef="0 1 0 0 0" solref="0.005 1"/></equality>
  <actuator>{_actuators(hardware)}</actuator>
  {parts.sections}
</mujoco>"""


def _arm(hardware: HardwareRecipe, tool: str) -> str:
    """Returns nested bodies, one per joint. Body i's frame at zero angle is frame i of `kinematics.frames`."""
    opening, closing = "", ""
    low, high = hardware.limits.joint_min_rad, hardware.limits.joint_max_rad
    for i in range(JOINTS):
        ca, sa = np.cos(DH_ALPHA[i] / 2), np.sin(DH_ALPHA[i] / 2)
        damping = _GAINS[i][3]
        opening += (
            f'<body name="link{i + 1}" pos="{text(_link_vector(i))}" quat="{ca:.9f} {sa:.9f} 0 0" gravcomp="1">'
            f'<joint name="joint{i + 1}" axis="0 0 1" range="{low[i]} {high[i]}" armature="0.1" damping="{damping}"/>'
            f"{_link_geom(i)}"
        )
        closing += "</body>"
    return opening + _hand(hardware.tcp_offset_m[2], hardware.limits.gripper_max_m, tool) + closing


def _link_vector(i: int) -> np.ndarray:
    """Returns the origin of frame i + 1 in frame i, (3,) [m], by modified DH (Craig)."""
    return np.array([DH_A[i], -np.sin(DH_ALPHA[i]) * DH_D[i], np.cos(DH_ALPHA[i]) * DH_D[i]])


def _link_geom(i: int) -> str:
    """Returns link i + 1 as a capsule to the next joint, or a ball if the axes intersect. It has no collisions."""
    radius = _LINK_RADIUS_M[i]
    attributes = f'rgba="0.75 0.77 0.80 1" mass="{_LINK_MASS_KG[i]}" contype="0" conaffinity="0"'
    end = _link_vector(i + 1) if i + 1 < JOINTS else np.zeros(3)
    if np.linalg.norm(end) < 1e-6:
        return f'<geom type="sphere" size="{radius}" {attributes}/>'
    return f'<geom type="capsule" fromto="0 0 0 {text(end)}" size="{radius}" {attributes}/>'


def _hand(reach_m: float, opening_m: float, tool: str) -> str:
    """Returns palm, wrist camera, TCP site and two fingers that slide along the tool's y. At opening 0 the pads touch.

    The frame is the flange's. `tool` is the MJCF of another tool on the flange.
    """
    palm_end, half = reach_m - _FINGER_LONG_M, _FINGER_LONG_M / 2
    fingers = ""
    for name, side in (("left", 1), ("right", -1)):
        fingers += f"""
      <body name="finger_{name}" pos="0 {side * _FINGER_THICK_M} {palm_end}" gravcomp="1">
        <joint name="finger_{name}" type="slide" axis="0 {side} 0" range="0 {opening_m / 2}" armature="0.05"
               damping="5"/>
        <geom name="pad_{name}" type="box" size="0.010 {_FINGER_THICK_M} {half}" pos="0 0 {half}"
              rgba="0.12 0.12 0.13 1" mass="0.05" {_PAD}/>
      </body>"""
    # The camera is on the side away from the arm, tilted by 20 degrees: the fingertips are below the image's centre.
    lens = np.array([0.080, 0.0, palm_end - 0.045])
    camera = _camera("wrist", lens, lens + np.array([-0.342, 0.0, 0.940]), np.array([1.0, 0.0, 0.0]), 80)
    return f"""
    <body name="hand" gravcomp="1">
      <geom name="palm" type="box" size="0.015 0.052 {palm_end / 2}" pos="0 0 {palm_end / 2}"
            rgba="0.25 0.26 0.28 1" mass="0.6"/>
      <site name="tcp" pos="0 0 {reach_m}" size="0.002" rgba="0 0 0 0"/>
      {camera}{fingers}{tool}
    </body>"""


def _free_body(name: str) -> str:
    return f'<body name="{name}"><freejoint name="{name}"/>{THINGS[name].geoms}</body>'


def _actuators(hardware: HardwareRecipe) -> str:
    arm = "".join(
        f'<position name="joint{i + 1}" joint="joint{i + 1}" kp="{kp}" kv="{kv}" forcerange="-{torque} {torque}"/>'
        for i, (kp, kv, torque, _) in enumerate(_GAINS)
    )
    fingers = "".join(
        f'<position name="finger_{name}" joint="finger_{name}" kp="1000" kv="15" forcerange="-15 15"/>'
        for name in ("left", "right")
    )
    return arm + fingers


def _camera(name: str, position: np.ndarray, target: np.ndarray, up: np.ndarray, fovy_deg: float) -> str:
    """Returns a camera at `position` that looks at `target` (parent frame). `up` is roughly up in the image."""
    back = position - target
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right = right / np.linalg.norm(right)
    axes = text([*right, *np.cross(back, right)])
    return f'<camera name="{name}" pos="{text(position)}" xyaxes="{axes}" fovy="{fovy_deg}"/>'


def text(numbers: np.ndarray | Sequence[float]) -> str:
    """Formats numbers for MJCF."""
    return " ".join(f"{number:.9g}" for number in numbers)
