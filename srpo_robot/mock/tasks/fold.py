"""The towel-folding task: carry the hem over to the other edge. The score is the angle of the fold."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.furniture.base import Furniture
from srpo_robot.mock.furniture.cloth import Cloth
from srpo_robot.mock.furniture.towel import Towel
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import FOLDED_RAD
from srpo_robot.mock.tasks.base import OPEN_M, SceneFacts, Task, nearness
from srpo_robot.recipes import TaskRecipe

FOLD_AT_M = (0.415, -0.050)  # nominal middle of the fold
FOLD_JITTER_M = (0.025, 0.025)
YAW_RAD = 0.12  # largest rotation of the towel, in either direction
FLAT_RAD = 2.70  # beyond this angle the towel counts as folded

_REST_SPEED_M_S = 0.03
_AWAY_M = 0.060  # distance from the fingertips to the hem beyond which the hem is released
_PINCHED_M = 0.030  # opening below which the fingers may hold the hem
_LIFTED_RAD = 0.10  # angle beyond which the hem is off the table


def pinched(facts: SceneFacts, name: str) -> bool:
    """Returns True if the hem is between the fingertips and off the table."""
    near = np.linalg.norm(np.delete(facts.tcp_m - facts.objects_m[name], 0)) < 0.030  # anywhere along the hem
    return bool(near and facts.gripper_m < _PINCHED_M and facts.measurements["fold_rad"] > _LIFTED_RAD)


def folded(facts: SceneFacts, name: str) -> bool:
    """Returns True if the towel counts as folded, whether or not it is held."""
    return facts.measurements["fold_rad"] > FLAT_RAD


def fold_fraction(facts: SceneFacts, target: str) -> float:
    """Returns the angle of the fold relative to a flat fold, 0 to 1."""
    return float(np.clip(facts.measurements["fold_rad"] / FOLDED_RAD, 0.0, 1.0))


def _done(facts: SceneFacts, target: str) -> bool:
    away = np.linalg.norm(facts.tcp_m - facts.objects_m[target]) > _AWAY_M
    at_rest = facts.speeds_m_s[target] < _REST_SPEED_M_S
    return bool(folded(facts, target) and at_rest and away and facts.gripper_m > OPEN_M)


def _stage(facts: SceneFacts, target: str) -> float:
    """Returns up to 0.3 for reaching the hem, 0.35 to 0.95 by the angle while it is up, 1 if folded and released."""
    if _done(facts, target):
        return 1.0
    if pinched(facts, target) or folded(facts, target):
        return 0.35 + 0.60 * fold_fraction(facts, target)
    return 0.3 * nearness(float(np.linalg.norm(facts.tcp_m - facts.objects_m[target])))


def _lay_out(recipe: TaskRecipe, seed: int) -> Layout:
    """Draws the pose of an open towel. Its fold is roughly along x, with the hem on the side away from the goal."""
    rng = np.random.default_rng([seed, 0])
    middle = np.array(FOLD_AT_M) + rng.uniform(-1.0, 1.0, 2) * FOLD_JITTER_M
    return Layout(
        task=recipe.name,
        target="hem",
        seed=seed,
        objects=(),
        plate_m=(float(middle[0]), float(middle[1])),
        swapped=False,
        instruction=recipe.instruction_for(recipe.target),
        plate_yaw_rad=float(rng.uniform(-YAW_RAD, YAW_RAD)),
    )


def _furniture(recipe: TaskRecipe) -> type[Furniture]:
    return Cloth if recipe.material == "cloth" else Towel


FOLD = Task(
    things=(),
    furniture=_furniture,
    strategies=("lay", "flip", "corner"),
    failures=("miss", "drop", "stop"),
    lay_out=_lay_out,
    succeeded=_done,
    score=fold_fraction,
    stage=_stage,
    held=pinched,
    placed=folded,
)
