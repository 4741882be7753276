"""The definition of a task of the mock cell: its layouts, success rule, score and progress. No physics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from srpo_robot.mock.furniture.base import Furniture
from srpo_robot.mock.layout import Layout
from srpo_robot.recipes import TaskRecipe

OPEN_M = 0.065  # opening beyond which the fingers hold no object of the table
REACH_M = 0.35  # distance at which approach and transport begin to count as progress
PLATE_M = (0.420, -0.190)  # nominal centre of the plate or tray
PLATE_JITTER_M = 0.030


@dataclass(frozen=True, eq=False, kw_only=True)
class SceneFacts:
    """The simulator's ground truth at one instant. Positions (3,) [m] in the base frame, speeds [m/s].

    Attributes:
        tcp_m: position of the fingertips.
        gripper_m: opening of the gripper.
        objects_m: positions of the layout's objects and of the furniture's: "marks" (middle of the remaining ink),
            "hem" of the towel.
        speeds_m_s: speeds of the same objects.
        plate_m: (2,) centre of the goal: plate, tray, board, or the towel's fold.
        measurements: values from the furniture: "erased" (0 to 1) and "pressure_n" of the board; "fold_rad" and
            "hem_m" (thickness of the hem) of the towel.
        marks_m: (n, 2) positions of the remaining ink.
    """

    tcp_m: np.ndarray
    gripper_m: float
    objects_m: Mapping[str, np.ndarray]
    speeds_m_s: Mapping[str, float]
    plate_m: np.ndarray
    measurements: Mapping[str, float] = field(default_factory=dict)
    marks_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


Fact = Callable[[SceneFacts, str], bool]  # (facts, name of an object) -> bool, at one instant
Amount = Callable[[SceneFacts, str], float]  # (facts, name of an object) -> 0 to 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """The rules of one task. The rules take the target's name, except for `held` and `placed`, which take any object.

    Attributes:
        things: names of the free objects in the scene, from `objects.THINGS`.
        furniture: furniture class for a recipe. The recipe may choose the material.
        strategies: names of the expert's strategies.
        failures: failures that the expert can perform, by the names of `demonstrator.Failure`.
        lay_out: returns the scene for a seed.
        succeeded: the success rule, which must hold for half a second.
        score: how well the task is done, 0 to 1. A success scores 1. Tasks without partial success score 0 or 1.
        stage: ground-truth progress, 0 to 1.
        held: whether the gripper holds, pinches or presses the object.
        placed: whether the object is at the target's goal.
    """

    things: tuple[str, ...]
    furniture: Callable[[TaskRecipe], type[Furniture]]
    strategies: tuple[str, ...]
    failures: tuple[str, ...]
    lay_out: Callable[[TaskRecipe, int], Layout]
    succeeded: Fact
    score: Amount
    stage: Amount
    held: Fact
    placed: Fact


def nearness(distance_m: float) -> float:
    """Returns 1 at distance 0, falling linearly to 0 at `REACH_M` [m]."""
    return float(np.clip(1.0 - distance_m / REACH_M, 0.0, 1.0))
