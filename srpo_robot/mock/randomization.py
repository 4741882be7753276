"""Visual randomization of the mock cell: light, colours and camera poses. Pure functions without physics.

A policy or a score that fits one brightness or one camera pose does not transfer to a lab. An appearance never moves a
joint or an object, so a seed gives the same episode with every amount of randomization.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.mock.scene import AMBIENT, CAMERAS, DIFFUSE, TABLE_RGB

_STREAM = 5  # random stream of a seed (0 is the layout, 1 the start, 2 the disturbance, 3 and 4 the demonstrator)
# Largest changes in either direction at amount 1.
_BRIGHTNESS = 0.40
_CONTRAST = 0.40  # fraction of the ambient light that moves between ambient and diffuse light
_TINT = 0.12
_OBJECT_GAIN = 0.15
_SHIFT_M = 0.020
_TURN_RAD = np.radians(2.0)
_FOVY = 0.05
_TABLE_SATURATION = 0.45  # maximum, because a table as red as the apple would hide it
_TABLE_VALUE = (0.15, 0.70)  # range, always darker than the plate


@dataclass(frozen=True)
class CameraOffset:
    """The offset of one camera from its nominal mount.

    Attributes:
        shift_m: shift along the axes of the camera's parent body [m].
        turn_rad: tilt, pan and roll about the image's right, up and backward axes [rad].
        fovy_factor: ratio of the vertical field of view to the nominal one.
    """

    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_rad: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fovy_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The appearance of one trial. The defaults are the nominal values.

    Attributes:
        ambient: light from all directions, 0 to slightly above 1.
        diffuse: light from the camera, which falls off with the angle to the surface.
        tint: colour of both lights, RGB factors.
        table_rgb: colour of the table, 0 to 1.
        object_gain: RGB factors on the colours of the objects and the plate.
        cameras: offsets of `scene.CAMERAS`, in that order.
    """

    ambient: float = AMBIENT
    diffuse: float = DIFFUSE
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    table_rgb: tuple[float, float, float] = TABLE_RGB
    object_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cameras: tuple[CameraOffset, ...] = (CameraOffset(),) * len(CAMERAS)


NOMINAL = Appearance()


def check_randomization(amount: float) -> float:
    """Returns `amount`.

    Raises:
        UsageError: `amount` is outside 0 to 1, or not a number.
    """
    if not 0.0 <= amount <= 1.0:
        raise UsageError(f"randomization is {amount}; give 0 (always the same) to 1 (clearly varied)")
    return amount


def draw_appearance(seed: int, amount: float) -> Appearance:
    """Draws the appearance for `seed`.

    With amount 0, every seed gives `NOMINAL`. With amount 1, appearances vary clearly but the task stays visible:
    brightness 0.6 to 1.4, tint +-12 %, object colours +-15 %, a table of any muted colour, cameras +-2 cm and +-2
    degrees per axis, fovy +-5 %. All values are drawn at amount 1 and then scaled, so that a seed gives the same kind
    of change at every amount.

    Raises:
        UsageError: `amount` is outside 0 to 1.
    """
    check_randomization(amount)
    rng = np.random.default_rng([seed, _STREAM])
    brightness, contrast = 1.0 + amount * rng.uniform([-_BRIGHTNESS, -_CONTRAST], [_BRIGHTNESS, _CONTRAST])
    moved = AMBIENT * (
        1.0 - contrast
    )  # from ambient to diffuse light, so that a surface that faces the camera keeps its brightness
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
