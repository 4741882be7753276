"""Tasks of the mock cell: the layout for a seed, and the success rule. Pure functions without physics.

To add a task, add a `Task` to `TASKS`, its expert to `demonstrator.SCRIPTS` and its recipe to datasets/.
"""

from __future__ import annotations

import difflib

from srpo_robot.errors import RecipeError
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.tasks.base import PLATE_JITTER_M, PLATE_M, SceneFacts, Task
from srpo_robot.mock.tasks.fold import FOLD
from srpo_robot.mock.tasks.put import (
    PUT_FRUIT,
    REGION_MAX_M,
    REGION_MIN_M,
    SELECT_CARD,
    SPACING_M,
    held,
    in_tray,
    on_plate,
)
from srpo_robot.mock.tasks.wipe import WIPE
from srpo_robot.recipes import TaskRecipe

__all__ = [
    "PLATE_JITTER_M",
    "PLATE_M",
    "REGION_MAX_M",
    "REGION_MIN_M",
    "SPACING_M",
    "SUCCESS_HOLD_S",
    "TASKS",
    "SceneFacts",
    "Task",
    "held",
    "in_tray",
    "layout",
    "on_plate",
    "task_named",
]

SUCCESS_HOLD_S = 0.5  # how long the success rule must hold

TASKS: dict[str, Task] = {
    "put-apple": PUT_FRUIT,
    "put-pear": PUT_FRUIT,
    "wipe-board": WIPE,
    "fold-towel": FOLD,
    "select-poker": SELECT_CARD,
}


def layout(recipe: TaskRecipe, seed: int) -> Layout:
    """Returns the scene for `seed`. The same seed always gives the same scene.

    Raises:
        RecipeError: the mock cell does not have the recipe's task or one of its objects.
    """
    return task_named(recipe.name).lay_out(recipe, seed)


def task_named(name: str) -> Task:
    """Returns the rules of the task `name`.

    Raises:
        RecipeError: there is no such task. The message lists the tasks.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise RecipeError(f"the mock cell has no task {name!r}{hint} It has: {', '.join(TASKS)}")
    return TASKS[name]
