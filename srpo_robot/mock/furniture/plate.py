"""The plate, and the rack and tray for the cards. Their state never changes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from srpo_robot.mock.furniture.base import Furniture
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import (
    CARD_HALF_M,
    CARDS,
    PLATE_RADIUS_M,
    PLATE_RIM_M,
    PLATE_TOP_M,
    RACK_PITCH_M,
    TRAY_HALF_M,
    TRAY_TOP_M,
)
from srpo_robot.mock.scene import Parts, text
from srpo_robot.recipes import HardwareRecipe

_SLOT_PLAY_M = 0.0015  # clearance between a card and the walls of its slot, on either side
_WALL_HALF_M = (0.002, 0.018, 0.009)  # slot wall, narrower than a card, so that the fingers reach the card's edges
_TRAY_RIM_M = 0.018


class Plate(Furniture):
    """A disc with a rim of 24 short capsules. It is a mocap body, so that a layout can move it."""

    bodies = ("plate",)

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """See `Furniture.parts`."""
        angles = np.arange(25) * (2 * np.pi / 24)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * PLATE_RADIUS_M
        z, attributes = PLATE_RIM_M - 0.005, 'size="0.005" rgba="0.80 0.84 0.90 1"'
        rim = "".join(
            f'<geom type="capsule" fromto="{text([*a, z])} {text([*b, z])}" {attributes}/>' for a, b in pairwise(ring)
        )
        return Parts(f"""<body name="plate" mocap="true" pos="0.4 -0.2 0">
      <geom name="plate" type="cylinder" size="{PLATE_RADIUS_M} {PLATE_TOP_M / 2}" pos="0 0 {PLATE_TOP_M / 2}"
            rgba="0.96 0.96 0.94 1" condim="6" friction="1 0.02 0.003"/>{rim}
    </body>""")


class RackAndTray(Furniture):
    """A tray, and a rack of five slots in a row in which cards stand on edge."""

    place = "tray"
    bodies = ("tray", "rack")

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """See `Furniture.parts`."""
        x, y = TRAY_HALF_M
        rim = [(x, 0.0, 0.004, y + 0.004), (-x, 0.0, 0.004, y + 0.004), (0.0, y, x, 0.004), (0.0, -y, x, 0.004)]
        walls = "".join(
            f'<geom type="box" pos="{px} {py} {_TRAY_RIM_M / 2}" size="{hx} {hy} {_TRAY_RIM_M / 2}"'
            ' rgba="0.80 0.84 0.90 1"/>'
            for px, py, hx, hy in rim
        )
        to_wall = CARD_HALF_M[0] + _SLOT_PLAY_M + _WALL_HALF_M[0]
        middles = (np.arange(len(CARDS)) - (len(CARDS) - 1) / 2) * RACK_PITCH_M
        slots = "".join(
            f'<geom type="box" pos="{text([middle + side * to_wall, 0.0, _WALL_HALF_M[2]])}"'
            f' size="{text(_WALL_HALF_M)}" rgba="0.50 0.42 0.34 1" friction="0.3 0.005 0.0001"/>'
            for middle in middles
            for side in (-1, 1)
        )
        return Parts(f"""<body name="tray" mocap="true" pos="0.4 -0.2 0">
      <geom type="box" size="{x} {y} {TRAY_TOP_M / 2}" pos="0 0 {TRAY_TOP_M / 2}" rgba="0.30 0.32 0.36 1"
            condim="6" friction="1 0.02 0.003"/>{walls}
    </body>
    <body name="rack" mocap="true" pos="0.4 0.1 0">{slots}</body>""")

    def lay_out(self, layout: Layout) -> None:
        """See `Furniture.lay_out`."""
        super().lay_out(layout)
        (rack,) = layout.fixtures
        self._data.mocap_pos[1] = [rack.x_m, rack.y_m, 0.0]
