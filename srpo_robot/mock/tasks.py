"""Tasks of the mock cell: where things lie for a seed, and when a task is done. Pure functions, no physics.

A new task is a `Task` entry in `TASKS`: how it is laid out, when it has succeeded, and an oracle of its progress.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from srpo_robot.errors import RecipeError
from srpo_robot.mock.objects import PLATE_RADIUS_M, PLATE_TOP_M, THINGS
from srpo_robot.recipes import TaskRecipe

REGION_MIN_M = (0.355, -0.010)  # objects lie in this 13 x 15 cm rectangle (x, y), base frame
REGION_MAX_M = (0.485, 0.140)
SPACING_M = 0.078  # between the centres of two objects: an open finger fits beside each
PLATE_M = (0.420, -0.190)  # nominal centre of the plate
PLATE_JITTER_M = 0.030
SUCCESS_HOLD_S = 0.5  # how long the success rule must hold

_INSIDE_M = PLATE_RADIUS_M - 0.020  # an object's centre counts as on the plate up to here
_HEIGHT_TOLERANCE_M = 0.010
_REST_SPEED_M_S = 0.03
_OPEN_M = 0.065  # an opening that holds nothing of what is on the table
_AWAY_M = 0.070  # fingertips to the object's centre
_LIFTED_M = 0.010
_REACH_M = 0.35  # the oracle's distance at which approach and transport begin to count


@dataclass(frozen=True)
class Placement:
    """Where an object starts: centre (x, y) [m], base frame, and its turn about the vertical [rad]."""

    name: str
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True)
class Layout:
    """The scene of one trial. `swapped`: target and first distractor changed places."""

    task: str
    target: str
    seed: int
    objects: tuple[Placement, ...]
    plate_m: tuple[float, float]
    swapped: bool

    def as_json(self) -> dict[str, object]:
        """The layout as JSON-able values."""
        return asdict(self) | {"objects": [asdict(item) for item in self.objects], "plate_m": list(self.plate_m)}


@dataclass(frozen=True, eq=False)
class SceneFacts:
    """What the simulator knows at one instant. Positions (3,) [m] in the base frame, speeds [m/s]."""

    tcp_m: np.ndarray
    gripper_m: float
    objects_m: dict[str, np.ndarray]
    speeds_m_s: dict[str, float]
    plate_m: np.ndarray  # (2,) centre


@dataclass(frozen=True)
class Task:
    """The rules of one task."""

    lay_out: Callable[[TaskRecipe, int], Layout]
    succeeded: Callable[[SceneFacts, str], bool]  # (facts, target), at one instant
    stage: Callable[[SceneFacts, str], float]  # oracle of progress in [0, 1]


def layout(recipe: TaskRecipe, seed: int) -> Layout:
    """The scene for `seed`; the same seed always gives the same scene.

    Raises:
        RecipeError: a task or an object that the mock cell does not have.
    """
    return task_named(recipe.name).lay_out(recipe, seed)


def task_named(name: str) -> Task:
    """The rules of the task `name`.

    Raises:
        RecipeError: none such; the message lists those there are.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise RecipeError(f"the mock cell has no task {name!r}{hint} It has: {', '.join(TASKS)}")
    return TASKS[name]


# --- put an object on the plate -----------------------------------------------------------------------------------


def on_plate(facts: SceneFacts, name: str) -> bool:
    """Whether the object `name` lies on the plate: inside its rim, at its height."""
    position = facts.objects_m[name]
    height = position[2] - PLATE_TOP_M - THINGS[name].rest_m
    return bool(np.linalg.norm(position[:2] - facts.plate_m) < _INSIDE_M and abs(height) < _HEIGHT_TOLERANCE_M)


def held(facts: SceneFacts, name: str) -> bool:
    """Whether the object is between the fingertips and off the table."""
    position = facts.objects_m[name]
    grasp = position + np.array([0.0, 0.0, THINGS[name].grasp_m])
    lifted = position[2] - THINGS[name].rest_m > _LIFTED_M
    return bool(lifted and np.linalg.norm(facts.tcp_m - grasp) < 0.035 and facts.gripper_m < _OPEN_M)


def _placed(facts: SceneFacts, target: str) -> bool:
    away = np.linalg.norm(facts.tcp_m - facts.objects_m[target]) > _AWAY_M
    at_rest = facts.speeds_m_s[target] < _REST_SPEED_M_S
    return bool(on_plate(facts, target) and at_rest and facts.gripper_m > _OPEN_M and away)


def _place_stage(facts: SceneFacts, target: str) -> float:
    """Up to 0.4 for reaching the target, 0.45 to 0.90 for carrying it to the plate, 0.95 on it, 1 when let go."""
    if _placed(facts, target):
        return 1.0
    if on_plate(facts, target):
        return 0.95
    position = facts.objects_m[target]
    if held(facts, target):
        return 0.45 + 0.45 * _nearness(float(np.linalg.norm(position[:2] - facts.plate_m)))
    return 0.4 * _nearness(float(np.linalg.norm(facts.tcp_m - position)))


def _nearness(distance_m: float) -> float:
    return float(np.clip(1.0 - distance_m / _REACH_M, 0.0, 1.0))


def _lay_out_place(recipe: TaskRecipe, seed: int) -> Layout:
    """Target, first distractor, and up to two of the others; the target nearer the plate unless swapped."""
    names = (recipe.target, *recipe.distractors)
    unknown = [name for name in names if name not in THINGS]
    if unknown:
        raise RecipeError(f"the mock cell has no object {unknown[0]!r}; it has: {', '.join(THINGS)}")
    rng = np.random.default_rng([seed, 0])
    plate = np.array(PLATE_M) + rng.uniform(-PLATE_JITTER_M, PLATE_JITTER_M, 2)
    others = recipe.distractors[1:]
    extra = rng.permutation(len(others))[: rng.integers(0, min(2, len(others)) + 1)]
    present = [*names[:2], *(others[i] for i in extra)]
    points = _scatter(len(present), rng)
    pair = points[:2]
    points[:2] = pair[np.argsort(np.linalg.norm(pair - plate, axis=1))]
    swapped = bool(len(present) > 1 and rng.random() < recipe.swap_probability)
    if swapped:
        points[:2] = points[1::-1].copy()
    turns = rng.uniform(-0.3, 0.3, len(present))
    where = np.column_stack([points, turns]).tolist()
    objects = tuple(Placement(name, *spot) for name, spot in zip(present, where, strict=True))
    return Layout(recipe.name, recipe.target, seed, objects, (float(plate[0]), float(plate[1])), swapped)


def _scatter(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points of the region, (count, 2) [m], at least `SPACING_M` apart; drawn until they are."""
    while True:
        points = rng.uniform(REGION_MIN_M, REGION_MAX_M, (count, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count)
        if gaps.min() >= SPACING_M:
            return points


TASKS: dict[str, Task] = {"put-apple": Task(_lay_out_place, _placed, _place_stage)}
