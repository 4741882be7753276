"""`srpo-robot weights`: what AWR's weights would be, seen before they train."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.console import console, number, say, table, waiting, warn, write_json
from srpo_robot.errors import UsageError
from srpo_robot.numerics import cell
from srpo_robot.recipes import PolicyRecipe, load

if TYPE_CHECKING:
    from srpo_robot.awr.tables import Weighting
    from srpo_robot.awr.weight_grid import GridCell

FIGURE = "weights.png"
TASKS_SHOWN = 10


@dataclass(frozen=True)
class WeightingOptions:
    """How the weights are made: a policy's recipe, and options over its keys; None leaves the recipe's or default."""

    policy: str | None = None
    beta: float | None = None
    w_max: float | None = None
    horizon: int | None = None
    shift: int | None = None
    tail: str | None = None
    kappa: float | None = None
    baseline: str | None = None

    def resolve(self, buffer: Buffer) -> Weighting:
        """The weighting asked for.

        Raises:
            StaleTable: the recipe trains on another step value than the buffer was scored with.
            UsageError: no episode is as long as the horizon.
        """
        from srpo_robot.awr.tables import Weighting, check_horizon

        found = self._of_the_recipe(buffer) if self.policy else Weighting()
        given = {k: v for k, v in asdict(self).items() if k != "policy" and v is not None}
        found = replace(found, **given)
        check_horizon(buffer, found.horizon)
        return found

    def _of_the_recipe(self, buffer: Buffer) -> Weighting:
        from srpo_robot.awr.policies import executed_steps
        from srpo_robot.awr.tables import Weighting
        from srpo_robot.cli.training import check_value

        recipe = load(PolicyRecipe, "policies", str(self.policy))
        check_value(buffer, recipe)
        return Weighting.of(recipe, recipe.horizon or executed_steps(recipe))


@dataclass(frozen=True, eq=False)
class WeightSummary:
    """A buffer's weights as `weights_command` shows them."""

    weighting: Weighting
    values: np.ndarray  # (N,)
    undefined: int
    view: GridCell
    grid: tuple[GridCell, ...]
    advice: tuple[str, ...]


def weights_command(
    dataset: str,
    options: WeightingOptions,
    betas: tuple[float, ...] = (),
    caps: tuple[float, ...] = (),
    csv_path: Path | None = None,
    json_path: Path | None = None,
) -> WeightSummary:
    """Print how the weights are spread, over a grid of `betas` and `caps`, and draw DATASET/srpo/weights.png.

    Nothing that another command reads is written.

    Raises:
        StaleTable: the scores are missing, or of another state of the data or its labels.
        UsageError, TrainingError: see `WeightingOptions.resolve` and `weights.awr_weights`.
    """
    from srpo_robot.progress.pipeline import read_progress

    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
        progress = read_progress(buffer)
        seen = see(buffer, progress, options.resolve(buffer), betas, caps)
    print_view(buffer, seen)
    print_grid(seen)
    for line in seen.advice:
        warn(line)
    short = sum(episode.length <= seen.weighting.horizon for episode in buffer.episodes)
    if short:
        warn(f"{short} of {len(buffer.episodes)} episodes are no longer than the horizon of {seen.weighting.horizon}")
    draw(buffer, seen)
    if csv_path is not None:
        write_csv(csv_path, seen.grid)
        say(f"Grid: {csv_path}")
    write_json(json_path, as_json(buffer, seen))
    return seen


def see(
    buffer: Buffer,
    progress: Table,
    weighting: Weighting,
    betas: tuple[float, ...] = (),
    caps: tuple[float, ...] = (),
) -> WeightSummary:
    """The weights of a scored buffer and their views; raises as `weights_command`."""
    from srpo_robot.awr import weight_grid as wg
    from srpo_robot.awr.tables import total_advantage
    from srpo_robot.awr.weights import awr_weights

    _, advantage = total_advantage(buffer, progress, weighting)
    frames = wg.frames_of(buffer.episodes)
    weights = awr_weights(advantage, weighting.beta, weighting.w_max)
    view = wg.view(weights, frames, weighting.beta, weighting.w_max)
    grid = wg.weight_grid(advantage, frames, betas or wg.BETAS, caps or wg.CAPS)
    return WeightSummary(weighting, weights.values, weights.undefined, view, grid, wg.advice(view, grid))


def print_view(buffer: Buffer, seen: WeightSummary) -> None:
    """The weights of the chosen setting: in all, by task and by part of the episode."""
    w, view = seen.weighting, seen.view
    labels = list(view.by_label)
    made = table(
        f"weights of {buffer.root}: beta {w.beta:g}, w_max {w.w_max:g}, horizon {w.horizon}, shift {w.shift}, "
        f"tail {w.tail}, kappa {w.kappa:g}, baseline {w.baseline}",
        "frames", "effective", "at the cap", "weight of the top 1 %", "undefined (weight 0)",
    )  # fmt: skip
    made.add_row(
        str(buffer.total_frames),
        f"{view.effective * buffer.total_frames:.0f} ({view.effective:.0%})",
        f"{view.clipped:.1%}",
        f"{view.top:.0%}",
        str(seen.undefined),
    )
    console.print(made)
    thirds = table("mean weight of a frame", "label", "all", "first third", "second third", "last third")
    for label in labels:
        thirds.add_row(label, number(view.by_label[label], 2), *(number(x, 2) for x in _thirds(buffer, seen, label)))
    console.print(thirds)
    if len(view.by_task) == 1:
        return
    tasks = table("mean weight of a frame by task", "task", "all", *labels)
    for task, means in list(view.by_task.items())[:TASKS_SHOWN]:
        tasks.add_row(task, *(cell(means.get(name), 2) for name in ("all", *labels)))
    console.print(tasks)
    if len(view.by_task) > TASKS_SHOWN:
        say(f"... and {len(view.by_task) - TASKS_SHOWN} more tasks; all of them: --json FILE")


def _thirds(buffer: Buffer, seen: WeightSummary, label: str) -> list[float]:
    from srpo_robot.awr.weight_grid import frames_of

    own = frames_of(buffer.episodes).label == label
    third = np.concatenate([np.arange(e.length) * 3 // e.length for e in buffer.episodes])
    parts = [seen.values[own & (third == number)] for number in range(3)]
    return [float(part.mean()) if len(part) else math.nan for part in parts]


def print_grid(seen: WeightSummary) -> None:
    """One row for every beta and cap."""
    made = table("the grid", "beta", "w_max", "effective", "at the cap", "top 1 %", "success", "failure", "ratio")
    for one in seen.grid:
        means = (one.by_label.get(name, math.nan) for name in ("success", "failure"))
        made.add_row(
            f"{one.beta:g}",
            f"{one.w_max:g}",
            f"{one.effective:.0%}",
            f"{one.clipped:.1%}",
            f"{one.top:.0%}",
            *(cell(mean, 2) for mean in means),
            cell(one.ratio, 1),
        )
    console.print(made)


def draw(buffer: Buffer, seen: WeightSummary) -> None:
    """DATASET/srpo/weights.png."""
    from srpo_robot.awr.weight_grid import frames_of
    from srpo_robot.report.weights_figure import draw_weighting

    w, label = seen.weighting, frames_of(buffer.episodes).label
    by_label = {name: seen.values[label == name] for name in seen.view.by_label}
    note = f"{buffer.root.name}: horizon {w.horizon}, shift {w.shift}, tail {w.tail}, kappa {w.kappa:g}"
    note += f", baseline {w.baseline}"
    draw_weighting(by_label, seen.view, seen.grid, buffer.sidecar / FIGURE, note)
    say(f"Figure: {buffer.sidecar / FIGURE}")


def as_json(buffer: Buffer, seen: WeightSummary) -> dict[str, Any]:
    """Everything that was shown, and every task and tenth."""
    return {
        "dataset": str(buffer.root),
        "frames": buffer.total_frames,
        "weighting": asdict(seen.weighting),
        "undefined": seen.undefined,
        "chosen": _of(seen.view),
        "grid": [_of(one) for one in seen.grid],
        "advice": list(seen.advice),
    }


def _of(view: GridCell) -> dict[str, Any]:
    return asdict(view) | {"ratio": view.ratio}


def write_csv(path: Path, grid: tuple[GridCell, ...]) -> None:
    """The grid as CSV, one row for every beta and cap; what does not exist is empty."""
    plain = ("beta", "w_max", "effective", "clipped", "top", "ratio")
    labels = ("success", "failure", "unlabelled")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*plain, *(f"mean_{name}" for name in labels)])
        for one in grid:
            values = [getattr(one, name) for name in plain] + [one.by_label.get(name, math.nan) for name in labels]
            writer.writerow(["" if math.isnan(value) else repr(float(value)) for value in values])


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers between the commas of an option. Raises UsageError where one is none, or not positive."""
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (math.nan,)
    if not all(0 < value < math.inf for value in found):
        raise UsageError(f"{option} is {text!r}; give positive numbers with commas between them, for example 0.3,1,3")
    return found
