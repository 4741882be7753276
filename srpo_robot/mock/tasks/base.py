"""What a task of the mock cell is: where things lie for a seed, when it is done, how far it is. No physics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from srpo_robot.mock.furniture.base import Furniture
from srpo_robot.mock.layout import Layout
from srpo_robot.recipes import TaskRecipe

OPEN_M = 0.065  # an opening that holds nothing of what is on the table
REACH_M = 0.35  # the oracle's distance at which approach and transport begin to count
PLATE_M = (0.420, -0.190)  # nominal centre of what an object is carried to
PLATE_JITTER_M = 0.030


@dataclass(frozen=True, eq=False)
class SceneFacts:
    """What the simulator knows at one instant. Positions (3,) [m] in the base frame, speeds [m/s].

    Attributes:
        tcp_m: fingertips.
        gripper_m: opening.
        objects_m: the layout's objects, and the furniture's: "marks" (middle of the ink left), "hem" of the towel.
        speeds_m_s: of the same.
        plate_m: (2,) centre of where the task ends.
        measured: by the furniture: "erased" 0 to 1 and "pressure_n" of the board; "fold_rad" of the towel, and
            "hem_m", how thick its hem is.
        marks_m: (n, 2) ink that is left.
    """

    tcp_m: np.ndarray
    gripper_m: float
    objects_m: Mapping[str, np.ndarray]
    speeds_m_s: Mapping[str, float]
    plate_m: np.ndarray
    measured: Mapping[str, float] = field(default_factory=dict)
    marks_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


Fact = Callable[[SceneFacts, str], bool]  # (facts, name of an object), at one instant
Amount = Callable[[SceneFacts, str], float]  # the same, 0 to 1


@dataclass(frozen=True)
class Task:
    """The rules of one task. Where they take a name, it is the target's unless said otherwise.

    Attributes:
        things: free objects its scene has, of `objects.THINGS`.
        furniture: what else is on the table; by the recipe, which may say what it is made of.
        strategies: ways in which the expert can do it.
        failures: what the expert can get wrong, by the names of `demonstrator.Failure`.
        lay_out: the scene for a seed.
        succeeded: the success rule, which must hold for half a second.
        score: how well it is done, 0 to 1; 1 for a success. Of tasks that are done or not, nothing in between.
        stage: oracle of progress, 0 to 1.
        held: whether an object, any, is in the gripper's hands: held, pinched or pressed.
        placed: whether an object, any, is where the target should go.
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
    """1 at distance 0, falling to 0 at `REACH_M` [m]."""
    return float(np.clip(1.0 - distance_m / REACH_M, 0.0, 1.0))
