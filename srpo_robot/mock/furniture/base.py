"""What a task puts on the table beside the free objects, and what there is to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srpo_robot.mock.layout import Layout
from srpo_robot.mock.scene import Parts
from srpo_robot.recipes import HardwareRecipe


@dataclass(frozen=True, eq=False)
class Observed:
    """What the furniture adds to `SceneFacts`: see there."""

    objects_m: Mapping[str, np.ndarray] = field(default_factory=dict)
    speeds_m_s: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    marks_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


class Furniture:
    """A mocap body that a layout moves. Subclasses add what changes while the arm works.

    Attributes:
        place: what a person calls the thing at a layout's `plate_m`.
        bodies: those whose colours an appearance changes.
        every: physics steps between two calls of `step`; 0: it is never called.
    """

    place = "plate"
    bodies: tuple[str, ...] = ()
    every = 0

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """Its MJCF."""
        raise NotImplementedError

    def __init__(self, model: Any, data: Any) -> None:
        """Bind it to a model compiled from `parts`, and its state."""
        self._model, self._data = model, data

    def lay_out(self, layout: Layout) -> None:
        """Put it where `layout` says, as new. The caller computes positions afterwards."""
        self._data.mocap_pos[0] = [*layout.plate_m, 0.0]

    def step(self) -> None:
        """What happens beside physics, after every `every` steps."""

    def observe(self) -> Observed:
        """What there is to know at this instant."""
        return Observed()

    def dress(self) -> None:
        """Colours that say what has happened, again after an appearance has changed them all."""
