"""A towel of two panels with a hinge and a stiff hem to pinch. It models folding at the cost of one joint."""

from __future__ import annotations

from typing import Any

import numpy as np

from srpo_robot.mock.furniture.base import Furniture, FurnitureState
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import FOLD_M, FOLDED_RAD, HEM_M, HEM_RADIUS_M, TOWEL_HALF_M
from srpo_robot.mock.scene import Parts
from srpo_robot.recipes import HardwareRecipe


class Towel(Furniture):
    """One panel lies on the table and the other turns about the fold. Angle 0 is open, `FOLDED_RAD` is folded."""

    place = "towel"
    bodies = ("towel", "flap")

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """See `Furniture.parts`."""
        half, long = TOWEL_HALF_M, HEM_M - 0.008
        flat = 'contype="0" conaffinity="0"'
        return Parts(f"""<body name="towel" mocap="true" pos="0.4 0 0">
      <geom type="box" size="{half} {HEM_M / 2} 0.002" pos="0 {-HEM_M / 2} 0.002" rgba="0.10 0.55 0.60 1" {flat}/>
      <body name="flap" pos="0 0 {FOLD_M}">
        <joint name="fold" axis="1 0 0" range="0 {FOLDED_RAD}" damping="0.01" frictionloss="0.004" armature="0.0002"/>
        <geom type="box" size="{half} {long / 2} 0.002" pos="0 {long / 2} 0.0015" rgba="0.10 0.55 0.60 1" mass="0.03"
              {flat}/>
        <geom type="box" size="{half} {long / 2} 0.002" pos="0 {long / 2} -0.0025" rgba="0.95 0.55 0.15 1" mass="0.03"
              {flat}/>
        <geom name="hem" type="capsule" fromto="{-half} {HEM_M} 0 {half} {HEM_M} 0" size="{HEM_RADIUS_M}"
              rgba="0.98 0.90 0.30 1" mass="0.02" condim="6" friction="1 0.02 0.003"/>
        <site name="hem" pos="0 {HEM_M} 0" size="0.002" rgba="0 0 0 0"/>
      </body>
    </body>""")

    def __init__(self, model: Any, data: Any) -> None:
        """See `Furniture`."""
        super().__init__(model, data)
        self._hem, self._fold = data.site("hem"), data.joint("fold")

    def lay_out(self, layout: Layout) -> None:
        """See `Furniture.lay_out`."""
        super().lay_out(layout)
        half = layout.plate_yaw_rad / 2.0
        self._data.mocap_quat[0] = [np.cos(half), 0.0, 0.0, np.sin(half)]

    def observe(self) -> FurnitureState:
        """Returns the hem's middle as the object "hem", the hem's thickness [m], and the fold angle [rad]."""
        speed = abs(float(self._fold.qvel[0])) * HEM_M
        return FurnitureState(
            {"hem": self._hem.xpos.copy()},
            {"hem": speed},
            {"fold_rad": float(self._fold.qpos[0]), "hem_m": 2 * HEM_RADIUS_M},
        )
