"""Draws the picture of the five tasks in the README: the scripted demonstrator, both cameras, four moments each.

python scripts/figure_tasks.py .github/tasks.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from srpo_robot.cli.running import DEMONSTRATION_LIMIT_S, load_recipes, open_cell
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.mock.demonstrator import Demonstrator
from srpo_robot.mock.tasks import TASKS
from srpo_robot.report.figures import MUTED, save

SEED = 3
MOMENTS = (0.0, 0.4, 0.7, 1.0)  # as fractions of the episode


class Frames:
    """A `FrameSink` that keeps the pictures."""

    def __init__(self) -> None:
        self.images: list[dict[str, np.ndarray]] = []
        self.task = ""

    def begin(self) -> None:
        self.images = []

    def add(
        self,
        images: dict[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        truth: Mapping[str, np.ndarray | str],
    ) -> None:
        self.images.append(images)
        self.task = task

    def end(self, success: bool | None) -> int:
        assert success, "the demonstrator failed; take another seed"
        return 0


def strip(task: str) -> tuple[str, np.ndarray]:
    """Runs one demonstration. Returns its instruction and its pictures in one row: front, then wrist, (H, 8 W, 3)."""
    hardware, task_recipe = load_recipes("mock", task)
    arm, workcell, space = open_cell(hardware, task_recipe, 0.0, 0.0, 0.0)
    frames = Frames()
    setup = Setup(
        arm=arm,
        workcell=workcell,
        space=space,
        instruction=task_recipe.instruction,
        time_limit_s=DEMONSTRATION_LIMIT_S,
        cameras=task_recipe.cameras,
        stop_on_success=False,
    )
    with arm:
        run_episode(setup, Demonstrator(arm.sim, failure_rate=0.0), SEED, frames)
    picks = [frames.images[round(moment * (len(frames.images) - 1))] for moment in MOMENTS]
    white = np.full((picks[0]["front"].shape[0], 2, 3), 255, np.uint8)
    parts = [np.concatenate([pick[camera], white], axis=1) for camera in task_recipe.cameras for pick in picks]
    return frames.task, np.concatenate(parts, axis=1)


def main(target: Path) -> None:
    """Draws one row per task."""
    figure = Figure(figsize=(11, 1.62 * len(TASKS)))
    panels = figure.subplots(len(TASKS), 1, gridspec_kw={"left": 0.01, "right": 0.99, "top": 0.97, "bottom": 0.01})
    for axes, task in zip(panels, TASKS, strict=True):
        instruction, picture = strip(task)
        axes.imshow(picture)
        axes.set_title(f"{task}: “{instruction}”", loc="left", fontsize=10, color=MUTED)
        axes.set_axis_off()
    save(figure, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
