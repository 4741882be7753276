"""A board with ink, and a spring-loaded eraser in the hand that removes the ink under it when it is pressed down."""

from __future__ import annotations

from typing import Any

import numpy as np

from srpo_robot.mock.furniture.base import Furniture, FurnitureState
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import (
    BOARD_HALF_M,
    BOARD_TOP_M,
    ERASER_HALF_M,
    ERASER_REACH_M,
    ERASER_SPRING_N_M,
    ERASING_N,
    HANDLE_M,
    MARKS,
)
from srpo_robot.mock.scene import TIMESTEP_S, Parts, text
from srpo_robot.recipes import HardwareRecipe

_TRAVEL_M = 0.035  # travel of the eraser's spring
_DAB_HALF_M = (0.006, 0.006, 0.0003)


class Board(Furniture):
    """A board whose ink is `MARKS` flat dabs. Erased dabs are invisible, which works in all renderers."""

    place = "board"
    bodies = ("board", "eraser")
    every = round(0.010 / TIMESTEP_S)  # the hand moves 4 mm between two calls, a sixth of the eraser

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """See `Furniture.parts`."""
        x, y = BOARD_HALF_M
        flat = 'contype="0" conaffinity="0"'
        # Do not compile the dabs at the body's origin: MuJoCo would then never read their positions again.
        dabs = "".join(
            f'<geom name="mark{i}" type="box" pos="0 0 {BOARD_TOP_M}" size="{text(_DAB_HALF_M)}" {flat}/>'
            for i in range(MARKS)
        )
        world = f"""<body name="board" mocap="true" pos="0.42 0 0">
      <geom type="box" size="{x + 0.008} {y + 0.008} 0.003" pos="0 0 0.003" rgba="0.45 0.47 0.50 1" {flat}/>
      <geom name="board" type="box" size="{x} {y} {BOARD_TOP_M / 2}" pos="0 0 {BOARD_TOP_M / 2}"
            rgba="0.95 0.95 0.93 1" friction="0.3 0.005 0.0001" solref="0.01 1"/>{dabs}
    </body>"""
        return Parts(world, _eraser(hardware.tcp_offset_m[2]), _SECTIONS)

    def __init__(self, model: Any, data: Any) -> None:
        """See `Furniture`."""
        super().__init__(model, data)
        self._marks = np.array([model.geom(f"mark{i}").id for i in range(MARKS)])
        self._erased = np.zeros(MARKS, dtype=bool)
        self._ink = np.zeros(3)

    def lay_out(self, layout: Layout) -> None:
        """See `Furniture.lay_out`."""
        super().lay_out(layout)
        self._model.geom_pos[self._marks, :2] = layout.marks_m
        self._model.geom_pos[self._marks, 2] = BOARD_TOP_M + _DAB_HALF_M[2]
        self._model.geom_rgba[self._marks, :3] = layout.ink_rgb
        self._erased[:] = False
        self._ink = self._model.geom_rgba[self._marks, :3].copy()
        self.repaint()

    def step(self) -> None:
        """Erases the ink under the eraser if it is pressed down."""
        if self._force() < ERASING_N:
            return
        body = self._data.body("eraser")
        off = (self._data.geom_xpos[self._marks] - body.xpos) @ body.xmat.reshape(3, 3)
        under = (np.abs(off[:, :2]) < ERASER_HALF_M[:2]).all(axis=1) & ~self._erased
        if under.any():
            self._erased |= under
            self.repaint()

    def observe(self) -> FurnitureState:
        """Returns the remaining ink, its mean position as the object "marks", the erased fraction and the force [N]."""
        dabs = self._data.geom_xpos[self._marks]
        remaining = dabs[~self._erased]
        middle = remaining.mean(axis=0) if len(remaining) else dabs.mean(axis=0)
        return FurnitureState(
            objects_m={"marks": middle},
            speeds_m_s={"marks": 0.0},
            measurements={"erased": float(self._erased.mean()), "pressure_n": self._force()},
            marks_m=remaining[:, :2].copy(),
        )

    def repaint(self) -> None:
        """Hides the erased ink and shows the remaining ink."""
        self._model.geom_rgba[self._marks, 3] = ~self._erased

    def _force(self) -> float:
        return float(self._data.sensor("pressure").data[0])


_SECTIONS = """<sensor><touch name="pressure" site="felt"/></sensor>
  <contact>
    <exclude body1="eraser" body2="finger_left"/><exclude body1="eraser" body2="finger_right"/>
  </contact>"""


def _eraser(reach_m: float) -> str:
    """Returns the MJCF of an eraser below the fingertips on an upward spring. Its origin is the middle of the felt."""
    x, y, z = ERASER_HALF_M
    middle = reach_m + ERASER_REACH_M - z
    return f"""
      <body name="eraser" pos="0 0 {middle}" gravcomp="1">
        <joint name="eraser" type="slide" axis="0 0 1" range="{-_TRAVEL_M} 0" stiffness="{ERASER_SPRING_N_M}"
               damping="15" armature="0.02"/>
        <geom type="box" size="{x} {y} {z}" rgba="0.90 0.50 0.10 1" mass="0.05" friction="0.3 0.005 0.0001"/>
        <geom type="box" size="0.008 {HANDLE_M / 2} 0.022" pos="0 0 {-z - 0.022}" rgba="0.20 0.22 0.60 1" mass="0.01"
              contype="0" conaffinity="0"/>
        <site name="felt" type="box" size="{x + 0.01} {y + 0.01} {z + 0.01}" rgba="0 0 0 0"/>
      </body>"""
