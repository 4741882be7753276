"""Measures the speed of the mock cell: physics steps per second and camera pairs per second, for each task.

    python scripts/bench_cell.py --json cell.json

The arm runs a demonstration, so that the physics has contacts. Physics is timed alone. Pictures are timed with the
scene of each control step. Both are measured in wall-clock time and in processor time of all threads, which depends
less on the load of the machine. SRPO_RENDERER forces a renderer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from srpo_robot.arm.actions import make_action_space
from srpo_robot.mock import rendering
from srpo_robot.mock.arm import make_mock
from srpo_robot.mock.demonstrator import Demonstrator, Failure
from srpo_robot.mock.scene import CAMERAS, TIMESTEP_S
from srpo_robot.mock.tasks import TASKS
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, load


class Timer:
    """Context manager that sums wall-clock seconds and processor seconds over its blocks."""

    def __init__(self) -> None:
        self.seconds = np.zeros(2)

    def __enter__(self) -> None:
        self._start = np.array([time.perf_counter(), time.process_time()])

    def __exit__(self, *_: object) -> None:
        self.seconds += np.array([time.perf_counter(), time.process_time()]) - self._start


def measure(task: str, size_px: int, episodes: int) -> dict[str, Any]:
    """Runs `episodes` demonstrations of one task. Returns the median rates of physics and pictures."""
    hardware = load(HardwareRecipe, "hardware", "mock")
    cameras = tuple(CameraRecipe(name, size_px, size_px) for name in CAMERAS)
    recipe = load(TaskRecipe, "datasets", task)
    arm, cell = make_mock(dataclasses.replace(hardware, cameras=cameras), recipe)
    space, expert = make_action_space(recipe.action_space, arm.limits, arm.home_rad), Demonstrator(arm.sim)
    rates, steps_per_period = [], round(arm.period_s / TIMESTEP_S)
    with arm:
        cell.reset(0)
        arm.observe()  # the first picture creates the renderer
        for seed in range(episodes):
            cell.reset(seed)
            expert.reset(seed, Failure.NONE)
            physics, pictures, count = Timer(), Timer(), 0
            while True:
                with pictures:
                    observation = arm.observe()
                if (chunk := expert.act(observation)) is None:
                    break
                command = space.command(chunk.actions[0], arm.reference()).command
                with physics:
                    arm.send(command)
                count += 1
            rates.append([count * steps_per_period / physics.seconds, (count + 1) / pictures.seconds])
    steps, pairs = np.median(rates, axis=0)
    return {
        "task": task,
        "physics_steps_per_s": float(steps[0]),
        "pairs_per_s": float(pairs[0]),
        "physics_steps_per_cpu_s": float(steps[1]),
        "pairs_per_cpu_s": float(pairs[1]),
        "episodes": episodes,
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Prints one line per task."""
    result = Table(title=title, title_justify="left")
    for column in ("task", "physics steps/s", "of the processor", "camera pairs/s", "of the processor"):
        result.add_column(column, justify="left" if column == "task" else "right")
    for row in rows:
        keys = ("physics_steps_per_s", "physics_steps_per_cpu_s", "pairs_per_s", "pairs_per_cpu_s")
        result.add_row(row["task"], *(f"{row[key]:.0f}" for key in keys))
    Console(highlight=False).print(result)


def main() -> None:
    """Reads the options, measures, prints the table and writes the --json file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="all five by default")
    parser.add_argument("--size", type=int, default=224, help="height and width of a picture [px]")
    parser.add_argument("--episodes", type=int, default=3, help="of each task; medians over them")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    rows = [measure(task, options.size, options.episodes) for task in options.tasks]
    backend = rendering.backend()
    show(rows, f"two cameras of {options.size} x {options.size} px, renderer {backend}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        slowest = {key: min(row[key] for row in rows) for key in ("pairs_per_s", "pairs_per_cpu_s")}
        content = {"renderer": backend, "size_px": options.size} | slowest
        options.json.write_text(json.dumps(content | {"tasks": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
