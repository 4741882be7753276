"""Wipe the ink off a board that lies on the table. The score is the erased share."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.furniture.board import Board
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import BOARD_HALF_M, BOARD_TOP_M, ERASER_REACH_M, ERASING_N, MARKS
from srpo_robot.mock.tasks.base import SceneFacts, Task, nearness
from srpo_robot.recipes import TaskRecipe

BOARD_M = (0.415, -0.045)  # nominal centre
BOARD_JITTER_M = (0.015, 0.025)
CLEAN = 0.95  # erased share that counts as a clean board
OFF_BOARD_M = BOARD_TOP_M + ERASER_REACH_M + 0.030  # of the fingertips' height: the eraser is clear of the board

_MARGIN_M = 0.020  # ink keeps this far from the edge
_STROKES = 3
_DAB_PITCH_M = 0.012
_INKS = ((0.08, 0.10, 0.45), (0.70, 0.06, 0.08), (0.05, 0.40, 0.15), (0.08, 0.08, 0.10))


def pressed(facts: SceneFacts, name: str) -> bool:
    """Whether the eraser is pressed down hard enough to take ink off."""
    return facts.measured["pressure_n"] > ERASING_N


def clean(facts: SceneFacts, name: str) -> bool:
    """Whether the board counts as clean."""
    return facts.measured["erased"] >= CLEAN


def _wiped(facts: SceneFacts, target: str) -> bool:
    return bool(clean(facts, target) and facts.tcp_m[2] > OFF_BOARD_M)


def _stage(facts: SceneFacts, target: str) -> float:
    """Up to 0.15 for reaching the ink, then with the erased share to 0.95; 1 with the eraser off a clean board."""
    if _wiped(facts, target):
        return 1.0
    if facts.measured["erased"] == 0.0:
        return 0.15 * nearness(float(np.linalg.norm(facts.tcp_m - facts.objects_m[target])))
    return 0.15 + 0.80 * facts.measured["erased"]


def _lay_out(recipe: TaskRecipe, seed: int) -> Layout:
    """Three wavy strokes of one colour somewhere on the board."""
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
    """Dabs along a curve that stays on the board, (MARKS / strokes, 2) [m] from its centre; drawn until it does."""
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
    score=lambda facts, target: facts.measured["erased"],
    stage=_stage,
    held=pressed,
    placed=clean,
)
