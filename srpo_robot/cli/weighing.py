"""`srpo-robot weights`: shows AWR's weights before they train. `weigh` computes the weights of other commands too."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.awr.weight_grid import GridCell, advice, frames_of, view, weight_grid
from srpo_robot.awr.weighting import BufferWeights, Chunk, Scheme, check_horizon, resolve, weights_of
from srpo_robot.awr.weights import check_temperature
from srpo_robot.awr.weights_table import TABLE, write_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.console import console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.weighting_options import WeightingOverrides, WeightsOptions
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.numerics import cell
from srpo_robot.recipes import PolicyRecipe, Weighting, load

FIGURE = "weights.png"
TASKS_SHOWN = 10


# --- computing ----------------------------------------------------------------------------------------------------


def load_weighting(policy: str | None, overrides: WeightingOverrides) -> Weighting | PolicyRecipe:
    """Returns the policy's recipe, or the default weighting, with the options of the command line.

    Raises:
        RecipeError: there is no such recipe, or it is wrong.
        UsageError: beta or w_max is not positive.
    """
    recipe = overrides.apply(load(PolicyRecipe, "policies", policy) if policy else Weighting())
    check_temperature(recipe.beta, recipe.w_max)
    return recipe


def weigh(
    buffer: Buffer, recipe: Weighting | PolicyRecipe, scheme: Scheme = "awr"
) -> tuple[Table | None, BufferWeights]:
    """Reads the score if the scheme needs one, and computes the weights. Writes nothing.

    Returns:
        The progress table, None for a scheme that needs no score; and the weights.

    Raises:
        StaleTable: the score is missing, out of date, or of another step value than the recipe trains on.
        UsageError: no episode is as long as the horizon.
        SrpoRobotError: as `weighting.weights_of`.
    """
    if scheme in ("uniform", "success"):
        return None, weights_of(buffer, None, recipe, scheme)
    from srpo_robot.progress.pipeline import read_progress

    progress = read_progress(buffer)
    chunk = None
    if isinstance(recipe, PolicyRecipe):
        check_value(buffer, recipe)
        chunk = _chunk(recipe, scheme)
    if scheme == "awr":
        check_horizon(buffer, resolve(recipe, chunk).horizon)
    return progress, weights_of(buffer, progress, recipe, scheme, chunk)


def _chunk(recipe: PolicyRecipe, scheme: Scheme) -> Chunk | None:
    """Returns the policy's chunk if the weights depend on it. A size may be known only from the base's checkpoint."""
    needed = ["chunk_size"] if scheme == "rabc" or recipe.action_weights else []
    needed += ["n_action_steps"] if scheme == "awr" and not recipe.horizon else []
    if not needed:
        return None
    from srpo_robot.awr.policies import chunk_of

    return chunk_of(recipe, needed)


def check_value(buffer: Buffer, recipe: PolicyRecipe) -> None:
    """Raises StaleTable if the recipe trains on another step value than the buffer was scored with."""
    from srpo_robot.progress.pipeline import read_provenance

    value = read_provenance(buffer).config.value_name
    if recipe.value not in ("", value):
        raise StaleTable(
            f"{recipe.name} trains on the value {recipe.value!r}, the score has {value!r}; "
            f"run: srpo-robot score-dataset {buffer.root} --value {recipe.value}"
        )


# --- the command --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSummary:
    """Weights as `weights` shows them.

    Attributes:
        weights: weights of the buffer.
        chosen: how they are spread over labels, tasks and parts of an episode.
        grid: the same for every beta and cap of the grid.
        advice: doubts about the weights, one line each.
    """

    weights: BufferWeights
    chosen: GridCell
    grid: tuple[GridCell, ...]
    advice: tuple[str, ...]


def weights_command(options: WeightsOptions) -> WeightSummary:
    """Prints how the weights are spread, also over a grid of beta and w_max. Writes their table and a figure.

    The files are DATASET/srpo/advantage.parquet and DATASET/srpo/weights.png.

    Raises:
        StaleTable: the scores are missing, or of another state of the data or its labels.
        UsageError, TrainingError: see `weigh` and `weights.awr_weights`.
    """
    betas, caps = parse_numbers(options.betas, "--betas"), parse_numbers(options.caps, "--caps")
    recipe = load_weighting(options.policy, options.weighting)
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
        progress, weights = weigh(buffer, recipe)
        assert progress is not None
        summary = summarise(buffer, weights, betas, caps)
    print_summary(buffer, summary)
    warn_about(buffer, summary)
    write_weights(buffer, progress, weights)
    say(f"Table: {buffer.sidecar / TABLE}")
    draw(buffer, summary)
    if options.csv is not None:
        write_csv(options.csv, summary.grid)
        say(f"Grid: {options.csv}")
    write_json(options.json, as_json(buffer, summary))
    return summary


def summarise(buffer: Buffer, weights: BufferWeights, betas: Sequence[float], caps: Sequence[float]) -> WeightSummary:
    """Returns how AWR's weights are spread, also over a grid of `betas` and `caps`. Raises as `awr_weights`."""
    assert weights.advantages is not None
    frames, weighting = frames_of(buffer.episodes), weights.weighting
    chosen = view(weights.frames, frames, weighting.beta, weighting.w_max)
    grid = weight_grid(weights.advantages.total, frames, betas, caps)
    return WeightSummary(weights=weights, chosen=chosen, grid=grid, advice=advice(chosen, grid))


def warn_about(buffer: Buffer, summary: WeightSummary) -> None:
    """Prints the doubts about the weights, and how many episodes are too short for the horizon."""
    for line in summary.advice:
        warn(line)
    horizon = summary.weights.weighting.horizon
    short = sum(episode.length <= horizon for episode in buffer.episodes)
    if short:
        warn(f"{short} of {len(buffer.episodes)} episodes are no longer than the horizon of {horizon}")


def print_summary(buffer: Buffer, summary: WeightSummary) -> None:
    """Prints the weights over all frames, by part of the episode, by task if there are several, and the grid."""
    print_all_frames(buffer, summary)
    print_thirds(buffer, summary)
    if len(summary.chosen.by_task) > 1:
        print_tasks(summary.chosen)
    print_grid(summary.grid)


def print_all_frames(buffer: Buffer, summary: WeightSummary) -> None:
    """Prints one row: how the weights are spread over all frames."""
    w, chosen = summary.weights.weighting, summary.chosen
    row = table(
        f"weights of {buffer.root}: beta {w.beta:g}, w_max {w.w_max:g}, horizon {w.horizon}, shift {w.shift}, "
        f"tail {w.tail}, kappa {w.kappa:g}, baseline {w.baseline}",
        "frames", "effective", "at the cap", "weight of the top 1 %", "undefined (weight 0)",
    )  # fmt: skip
    row.add_row(
        str(buffer.total_frames),
        f"{chosen.effective * buffer.total_frames:.0f} ({chosen.effective:.0%})",
        f"{chosen.clipped:.1%}",
        f"{chosen.top:.0%}",
        str(summary.weights.frames.undefined),
    )
    console.print(row)


def print_thirds(buffer: Buffer, summary: WeightSummary) -> None:
    """Prints the mean weight by label and third of the episode."""
    values, label = summary.weights.frames.values, frames_of(buffer.episodes).label
    third = np.concatenate([np.arange(e.length) * 3 // e.length for e in buffer.episodes])
    rows = table("mean weight of a frame", "label", "all", "first third", "second third", "last third")
    for name, mean in summary.chosen.by_label.items():
        parts = [values[(label == name) & (third == place)] for place in range(3)]
        means = [float(part.mean()) if len(part) else math.nan for part in parts]
        rows.add_row(name, *(number(x, 2) for x in (mean, *means)))
    console.print(rows)


def print_tasks(entry: GridCell) -> None:
    """Prints the mean weight by task and label, of at most TASKS_SHOWN tasks."""
    labels = list(entry.by_label)
    rows = table("mean weight of a frame by task", "task", "all", *labels)
    for task, means in list(entry.by_task.items())[:TASKS_SHOWN]:
        rows.add_row(task, *(cell(means.get(name), 2) for name in ("all", *labels)))
    console.print(rows)
    if len(entry.by_task) > TASKS_SHOWN:
        say(f"... and {len(entry.by_task) - TASKS_SHOWN} more tasks; all of them: --json FILE")


def print_grid(grid: Sequence[GridCell]) -> None:
    """Prints one row per beta and cap."""
    rows = table("the grid", "beta", "w_max", "effective", "at the cap", "top 1 %", "success", "failure", "ratio")
    for entry in grid:
        means = (entry.by_label.get(name, math.nan) for name in ("success", "failure"))
        rows.add_row(
            f"{entry.beta:g}",
            f"{entry.w_max:g}",
            f"{entry.effective:.0%}",
            f"{entry.clipped:.1%}",
            f"{entry.top:.0%}",
            *(cell(mean, 2) for mean in means),
            cell(entry.ratio, 1),
        )
    console.print(rows)


# --- files --------------------------------------------------------------------------------------------------------


def draw(buffer: Buffer, summary: WeightSummary) -> None:
    """Writes DATASET/srpo/weights.png."""
    from srpo_robot.report.weights_figure import draw_weighting

    w, label = summary.weights.weighting, frames_of(buffer.episodes).label
    by_label = {name: summary.weights.frames.values[label == name] for name in summary.chosen.by_label}
    note = f"{buffer.root.name}: horizon {w.horizon}, shift {w.shift}, tail {w.tail}, kappa {w.kappa:g}"
    note += f", baseline {w.baseline}"
    draw_weighting(by_label, summary.chosen, summary.grid, buffer.sidecar / FIGURE, note)
    say(f"Figure: {buffer.sidecar / FIGURE}")


def as_json(buffer: Buffer, summary: WeightSummary) -> dict[str, Any]:
    """Returns everything that is printed, for every task and every tenth of an episode."""
    return {
        "dataset": str(buffer.root),
        "frames": buffer.total_frames,
        "weighting": asdict(summary.weights.weighting),
        "undefined": summary.weights.frames.undefined,
        "chosen": _cell_as_json(summary.chosen),
        "grid": [_cell_as_json(entry) for entry in summary.grid],
        "advice": list(summary.advice),
    }


def _cell_as_json(entry: GridCell) -> dict[str, Any]:
    return asdict(entry) | {"ratio": entry.ratio}


def write_csv(path: Path, grid: Sequence[GridCell]) -> None:
    """Writes the grid as CSV, one row per beta and cap. A mean that does not exist is empty."""
    plain = ("beta", "w_max", "effective", "clipped", "top", "ratio")
    labels = ("success", "failure", "unlabelled")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*plain, *(f"mean_{name}" for name in labels)])
        for entry in grid:
            values = [getattr(entry, name) for name in plain] + [entry.by_label.get(name, math.nan) for name in labels]
            writer.writerow(["" if math.isnan(value) else repr(float(value)) for value in values])


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Returns the numbers between the commas of an option. Raises UsageError if one is not a positive number."""
    try:
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (math.nan,)
    if not numbers or not all(0 < value < math.inf for value in numbers):
        raise UsageError(f"{option} is {text!r}; give positive numbers with commas between them, for example 0.3,1,3")
    return numbers
