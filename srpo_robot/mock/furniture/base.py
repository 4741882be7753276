"""The base class of furniture: the equipment that a task puts on the table besides the free objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srpo_robot.mock.layout import Layout
from srpo_robot.mock.scene import Parts
from srpo_robot.recipes import HardwareRecipe


@dataclass(frozen=True, eq=False)
class FurnitureState:
    """The furniture's part of `SceneFacts`. See `SceneFacts` for the fields."""

    objects_m: Mapping[str, np.ndarray] = field(default_factory=dict)
    speeds_m_s: Mapping[str, float] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)
    marks_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


class Furniture:
    """A mocap body that a layout moves. Subclasses add the effects that happen while the arm works.

    Attributes:
        place: name, for a person, of the thing at a layout's `plate_m`.
        bodies: names of the bodies whose colours an appearance changes.
        every: number of physics steps between two calls of `step`. With 0, `step` is never called.
    """

    place = "plate"
    bodies: tuple[str, ...] = ()
    every = 0

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """Returns the furniture's MJCF."""
        raise NotImplementedError

    def __init__(self, model: Any, data: Any) -> None:
        """Binds the furniture to a model compiled from `parts`, and to the model's state."""
        self._model, self._data = model, data

    def lay_out(self, layout: Layout) -> None:
        """Resets the furniture and moves it to its place in `layout`. The caller recomputes positions afterwards."""
        self._data.mocap_pos[0] = [*layout.plate_m, 0.0]

    def step(self) -> None:
        """Applies effects that physics does not model. Called after every `every` physics steps."""

    def observe(self) -> FurnitureState:
        """Returns the current state of the furniture."""
        return FurnitureState()

    def repaint(self) -> None:
        """Restores colours that show the state of the furniture, after an appearance has changed all colours."""
