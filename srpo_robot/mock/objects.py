"""The objects of the mock cell: shapes, sizes and colours. Physics, layouts, success rules and the expert share them.

An object whose origin is `rest_m` above a surface just touches the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

FRUIT = ("apple", "pear", "cube", "can")
CARDS = ("ace of spades", "queen of hearts", "ten of diamonds", "jack of clubs", "joker")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A free object. Lengths [m], mass [kg]. `geoms` is MJCF relative to the object's origin."""

    rest_m: float  # height of the origin above the supporting surface
    grasp_m: float  # height of the fingertips relative to the origin when they close on the object
    width_m: float  # opening of fingers that hold the object
    geoms: str
    carry_m: float = 0.130  # height of the fingertips while they carry the object over other objects
    spread_m: float = 0.24  # distance within which an object that is dropped on the way comes to rest (fruit rolls on)


# Torsional and rolling friction [m] keep a round object from rolling over the table for seconds. Real fruit does not.
_SOFT = 'condim="6" friction="1 0.02 0.003"'

# A card stands on edge with its face towards +x, the side of the front camera. The fingers hold its two side edges.
CARD_HALF_M = (0.0025, 0.028, 0.044)  # thickness, width, height
_PROUD_M = CARD_HALF_M[0] + 0.0004  # the paint stands out by 0.4 mm, because flush paint would flicker
_PAINT = 'mass="0" contype="0" conaffinity="0"'
_PIP_Z_M = 0.012  # height of the pip's middle above the card's (in a row only the upper parts of cards are visible)
# A four-colour deck, so that suits differ even if a card is ten pixels wide.
_BLACK, _RED, _BLUE, _GREEN = "0.08 0.08 0.10", "0.85 0.05 0.08", "0.08 0.25 0.85", "0.05 0.55 0.15"
_PURPLE, _YELLOW = "0.55 0.10 0.60", "0.95 0.75 0.05"


def _disc(y: float, z: float, radius: float, rgb: str) -> str:
    """Returns the MJCF of a flat disc on both faces of a card, at (y, z) from the pip's middle."""
    line = f"{-_PROUD_M} {y} {_PIP_Z_M + z} {_PROUD_M} {y} {_PIP_Z_M + z}"
    return f'<geom type="cylinder" fromto="{line}" size="{radius}" rgba="{rgb} 1" {_PAINT}/>'


def _tile(z: float, half_y: float, half_z: float, turn_rad: float, rgb: str, above_m: float = 0.0) -> str:
    """Returns the MJCF of a flat rectangle on both faces of a card, rotated about their normal.

    `above_m`: height of the paint above other paint.
    """
    pose = f'size="{_PROUD_M + above_m} {half_y} {half_z}" pos="0 0 {_PIP_Z_M + z}" euler="{turn_rad} 0 0"'
    return f'<geom type="box" {pose} rgba="{rgb} 1" {_PAINT}/>'


_DIAMOND_RAD = 0.7854
_PIPS = {
    "ace of spades": _tile(0.004, 0.011, 0.011, _DIAMOND_RAD, _BLACK)
    + _disc(0.008, -0.004, 0.009, _BLACK)
    + _disc(-0.008, -0.004, 0.009, _BLACK)
    + _tile(-0.014, 0.003, 0.008, 0.0, _BLACK),
    "queen of hearts": _tile(-0.004, 0.012, 0.012, _DIAMOND_RAD, _RED)
    + _disc(0.0085, 0.005, 0.0115, _RED)
    + _disc(-0.0085, 0.005, 0.0115, _RED),
    "ten of diamonds": _tile(0.0, 0.016, 0.016, _DIAMOND_RAD, _BLUE),
    "jack of clubs": _disc(0.0, 0.009, 0.010, _GREEN)
    + _disc(0.010, -0.005, 0.010, _GREEN)
    + _disc(-0.010, -0.005, 0.010, _GREEN)
    + _tile(-0.014, 0.003, 0.009, 0.0, _GREEN),
    "joker": _disc(0.0, 0.0, 0.021, _PURPLE) + _tile(0.0, 0.009, 0.009, 0.0, _YELLOW, 0.0004),
}


def _card(name: str) -> Thing:
    half = " ".join(map(str, CARD_HALF_M))
    body = f'<geom type="box" size="{half}" rgba="0.97 0.97 0.95 1" mass="0.03" condim="6" friction="0.6 0.01 0.001"/>'
    return Thing(
        rest_m=CARD_HALF_M[2],
        grasp_m=0.012,
        width_m=2 * CARD_HALF_M[1],
        geoms=body + _PIPS[name],
        carry_m=0.190,
        spread_m=0.15,
    )


THINGS: dict[str, Thing] = {
    "apple": Thing(
        rest_m=0.030,
        grasp_m=-0.010,
        width_m=0.060,
        geoms=f"""
        <geom type="sphere" size="0.030" rgba="0.80 0.06 0.08 1" mass="0.10" {_SOFT}/>
        <geom type="capsule" fromto="0 0 0.028 0.004 0 0.040" size="0.003" rgba="0.30 0.18 0.08 1" mass="0.0001"
              contype="0" conaffinity="0"/>""",
    ),
    "pear": Thing(
        rest_m=0.027,
        grasp_m=-0.008,
        width_m=0.054,
        # The neck is almost massless, so that the pear rights itself.
        geoms=f"""
        <geom type="sphere" size="0.027" rgba="0.68 0.80 0.12 1" mass="0.10" {_SOFT}/>
        <geom type="capsule" fromto="0 0 0.018 0 0 0.036" size="0.015" rgba="0.68 0.80 0.12 1" mass="0.002"
              {_SOFT}/>""",
    ),
    "cube": Thing(
        rest_m=0.022,
        grasp_m=-0.006,
        width_m=0.044,
        geoms=f"""
        <geom type="box" size="0.022 0.022 0.022" rgba="0.10 0.25 0.80 1" mass="0.08" {_SOFT}/>""",
    ),
    "can": Thing(
        rest_m=0.028,
        grasp_m=-0.008,
        width_m=0.048,
        geoms=f"""
        <geom type="cylinder" size="0.024 0.028" rgba="0.45 0.15 0.60 1" mass="0.10" {_SOFT}/>""",
    ),
    **{name: _card(name) for name in CARDS},
}

PLATE_TOP_M = 0.006  # height of the plate's upper face above the table
PLATE_RADIUS_M = 0.080  # radius to the middle of the rim
PLATE_RIM_M = 0.014  # height of the rim above the table

RACK_PITCH_M = 0.045  # distance between two slots, along x
TRAY_HALF_M = (0.105, 0.065)  # half of the space inside the rim, along x and y
TRAY_TOP_M = PLATE_TOP_M  # the tray is as thick as the plate

BOARD_HALF_M = (0.115, 0.135)
BOARD_TOP_M = 0.008
MARKS = 36  # number of dabs of ink on the board
ERASER_HALF_M = (0.028, 0.022, 0.012)
ERASER_REACH_M = 0.048  # distance from the fingertips to the eraser's felt without load
ERASER_SPRING_N_M = 300.0
ERASING_N = 1.0  # smallest force that erases ink
HANDLE_M = 0.024  # thickness of the eraser's handle between the fingers

HEM_M = 0.130  # distance from the fold to the hem
TOWEL_HALF_M = 0.075  # half of the towel's width, along the fold
FOLD_M = 0.014  # height of the fold and of the hem above the table
HEM_RADIUS_M = 0.009  # rolled and stiff, so that the fingers grasp it even if they are 1 cm too high
FOLDED_RAD = 3.05  # angle of a towel that is folded flat
