"""The wiping task: erase the ink on a board that lies on the table. The score is the erased fraction."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.furniture.board import Board
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import BOARD_HALF_M, BOARD_TOP_M, ERASER_REACH_M, ERASING_N, MARKS
from srpo_robot.mock.tasks.base import SceneFacts, Task, nearness
from srpo_robot.recipes import TaskRecipe

BOARD_M = (0.415, -0.045)  # nominal centre
BOARD_JITTER_M = (0.015, 0.025)
CLEAN = 0.95  # erased fraction from which the board counts as clean
OFF_BOARD_M = BOARD_TOP_M + ERASER_REACH_M + 0.030  # height of the fingertips above which the eraser is off the board

_MARGIN_M = 0.020  # smallest distance of the ink from the edge
_STROKES = 3
_DAB_PITCH_M = 0.012
_INKS = ((0.08, 0.10, 0.45), (0.70, 0.06, 0.08), (0.05, 0.40, 0.15), (0.08, 0.08, 0.10))


def pressed(facts: SceneFacts, name: str) -> bool:
    """Returns True if the eraser is pressed down hard enough to erase ink."""
    return facts.measurements["pressure_n"] > ERASING_N


def clean(facts: SceneFacts, name: str) -> bool:
    """Returns True if the board counts as clean."""
    return facts.measurements["erased"] >= CLEAN


def _wiped(facts: SceneFacts, target: str) -> bool:
    return bool(clean(facts, target) and facts.tcp_m[2] > OFF_BOARD_M)


def _stage(facts: SceneFacts, target: str) -> float:
    """Returns up to 0.15 for reaching the ink, then up to 0.95 by the erased fraction, 1 if clean and lifted."""
    if _wiped(facts, target):
        return 1.0
    if facts.measurements["erased"] == 0.0:
        return 0.15 * nearness(float(np.linalg.norm(facts.tcp_m - facts.objects_m[target])))
    return 0.15 + 0.80 * facts.measurements["erased"]


def _lay_out(recipe: TaskRecipe, seed: int) -> Layout:
    """Draws three wavy strokes of one colour on the board."""
    rng = np.random.default_rng([seed, 0])
    board = np.array(BOARD_M) + rng.uniform(-1.0, 1.0, 2) * BOARD_JITTER_M
    ink = _INKS[int(rng.integers(len(_INKS)))]
    marks = np.concatenate([_stroke(rng) for _ in range(_STROKES)])
    return Layout(
        task=recipe.name,
        target="marks",
        seed=seed,
        objects=(),
        plate_m=(float(board[0]), float(board[1])),
        swapped=False,
        instruction=recipe.instruction_for(recipe.target),
        marks_m=tuple((float(x), float(y)) for x, y in marks),
        ink_rgb=ink,
    )


def _stroke(rng: np.random.Generator) -> np.ndarray:
    """Draws the dabs of a curve, (MARKS / strokes, 2) [m] from the board's centre, until all are on the board."""
    count = MARKS // _STROKES
    room = np.array(BOARD_HALF_M) - _MARGIN_M
    while True:
        turn, bend = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-0.25, 0.25)
        heading = turn + bend * np.arange(count)
        points = np.cumsum(_DAB_PITCH_M * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        points += rng.uniform(-room, room) - points.mean(axis=0)
        if (np.abs(points) <= room).all():
            return points


WIPE = Task(
    things=(),
    furniture=lambda recipe: Board,
    strategies=("rows", "columns", "ink"),
    failures=("miss", "drop", "stop"),
    lay_out=_lay_out,
    succeeded=_wiped,
    score=lambda facts, target: facts.measurements["erased"],
    stage=_stage,
    held=pressed,
    placed=clean,
)
