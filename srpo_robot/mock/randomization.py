"""How the mock cell looks in a trial: light, colours, cameras that were mounted by hand. Pure functions, no physics.

A score or a policy that has learnt one brightness or one camera pose is worth nothing in a lab. What an appearance changes
never moves a joint or an object: the same seed gives the same episode, whatever it looks like.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.mock.scene import AMBIENT, CAMERAS, DIFFUSE, TABLE_RGB

_STREAM = 5  # of a seed's random numbers; 0 layout, 1 start, 2 disturbance, 3 and 4 demonstrator
_BRIGHTNESS = 0.40  # all of these: greatest change, either way, at amount 1
_CONTRAST = 0.40  # share of the ambient light that becomes diffuse light, or comes from it
_TINT = 0.12
_OBJECT_GAIN = 0.15
_SHIFT_M = 0.020
_TURN_RAD = np.radians(2.0)
_FOVY = 0.05
_TABLE_SATURATION = 0.45  # at most: a table as red as the apple would hide it
_TABLE_VALUE = (0.15, 0.70)  # never as bright as the plate


@dataclass(frozen=True)
class CameraOffset:
    """How one camera stands beside its nominal mount.

    Attributes:
        shift_m: along the axes of what it is mounted on [m].
        turn_rad: tilt, pan and roll, about the image's right, its up, and backwards [rad].
        fovy_factor: its vertical field of view over the nominal one.
    """

    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fovy_factor: float = 1.0


@dataclass(frozen=True)
class Appearance:
    """The appearance of one trial; the defaults are the nominal ones.

    Attributes:
        ambient: light from everywhere, 0 to 1 and a little above.
        diffuse: light from the camera, which falls off with the angle to the surface.
        tint: colour of both, RGB factors.
        table_rgb: colour of the table, 0 to 1.
        object_gain: RGB factors on the colours of the objects and the plate.
        cameras: one for each of `scene.CAMERAS`, in that order.
    """

    ambient: float = AMBIENT
    diffuse: float = DIFFUSE
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    table_rgb: tuple[float, float, float] = TABLE_RGB
    object_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cameras: tuple[CameraOffset, ...] = (CameraOffset(),) * len(CAMERAS)


NOMINAL = Appearance()


def check_randomization(amount: float) -> float:
    """`amount` if it is one.

    Raises:
        UsageError: outside 0 to 1, or not a number.
    """
    if not 0.0 <= amount <= 1.0:
        raise UsageError(f"randomization is {amount}; give 0 (always the same) to 1 (clearly varied)")
    return amount


def draw_appearance(seed: int, amount: float) -> Appearance:
    """The appearance for `seed`. `amount` 0 is `NOMINAL` for every seed; 1 is clearly varied, with the task still visible.

    Everything is drawn at amount 1 and scaled, so that a seed keeps its character at every amount. At 1: brightness 0.6
    to 1.4, tint and colours +-12 and +-15 %, any muted table, cameras +-2 cm and +-2 degrees an axis, fovy +-5 %.

    Raises:
        UsageError: `amount` outside 0 to 1.
    """
    check_randomization(amount)
    rng = np.random.default_rng([seed, _STREAM])
    brightness, contrast = 1.0 + amount * rng.uniform([-_BRIGHTNESS, -_CONTRAST], [_BRIGHTNESS, _CONTRAST])
    moved = AMBIENT * (1.0 - contrast)  # from ambient to diffuse: a surface that faces the camera stays as bright
    tint, gain = 1.0 + amount * rng.uniform(-1.0, 1.0, (2, 3)) * [[_TINT], [_OBJECT_GAIN]]
    hue, saturation, value = rng.uniform([0.0, 0.0, _TABLE_VALUE[0]], [1.0, _TABLE_SATURATION, _TABLE_VALUE[1]])
    table = np.array(TABLE_RGB) + amount * (np.array(colorsys.hsv_to_rgb(hue, saturation, value)) - TABLE_RGB)
    return Appearance(
        ambient=float(brightness * (AMBIENT - moved)),
        diffuse=float(brightness * (DIFFUSE + moved)),
        tint=_triple(tint),
        table_rgb=_triple(table),
        object_gain=_triple(gain),
        cameras=tuple(_camera(rng, amount) for _ in CAMERAS),
    )


def _camera(rng: np.random.Generator, amount: float) -> CameraOffset:
    shift, turn = amount * rng.uniform(-1.0, 1.0, (2, 3)) * [[_SHIFT_M], [_TURN_RAD]]
    return CameraOffset(_triple(shift), _triple(turn), float(1.0 + amount * rng.uniform(-_FOVY, _FOVY)))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
