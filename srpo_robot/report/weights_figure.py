"""The figure of `srpo-robot weights`: weights by label, the grid of betas and caps, weights along the episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.axes
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srpo_robot.awr.weight_grid import PHASES, GridCell
from srpo_robot.report.figures import FAILURE, MUTED, SUCCESS, save, weight_histogram

COLOURS = {"success": SUCCESS, "failure": FAILURE, "unlabelled": MUTED}


def draw_weighting(
    weights: Mapping[str, np.ndarray], cell: GridCell, grid: Sequence[GridCell], path: Path, note: str
) -> None:
    """Writes the figure as PNG: histogram by label, effective sample size over the grid, mean weight along the episode.

    Args:
        weights: weights of the frames by label, at the beta and cap of `cell`.
        cell: entry of the grid to highlight.
        grid: entries for all pairs of beta and cap.
        note: text under the figure, the source of the weights.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.1))
    weight_histogram(left, weights)
    left.set_title(f"weights at beta {cell.beta:g}, w_max {cell.w_max:g}", loc="left", fontsize=10)
    _grid(middle, cell, grid)
    _along_the_episode(right, cell)
    figure.supxlabel(note, fontsize=8, color=MUTED, x=0.01, ha="left", parse_math=False)
    save(figure, path)


def _grid(axes: matplotlib.axes.Axes, cell: GridCell, grid: Sequence[GridCell]) -> None:
    betas, caps = sorted({entry.beta for entry in grid}), sorted({entry.w_max for entry in grid})
    share = np.full((len(betas), len(caps)), np.nan)
    for entry in grid:
        row, column = betas.index(entry.beta), caps.index(entry.w_max)
        share[row, column] = entry.effective
        ratio = "" if np.isnan(entry.ratio) else f"\nS/F {entry.ratio:.1f}"
        text = f"{entry.effective:.0%}\n{entry.clipped:.0%} at cap{ratio}"
        chosen = (entry.beta, entry.w_max) == (cell.beta, cell.w_max)
        colour = "white" if entry.effective > 0.55 else "black"
        weight = "bold" if chosen else "normal"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
        if chosen:
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, linewidth=2))
    axes.imshow(share, cmap="Greens", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(caps)), [f"{cap:g}" for cap in caps])
    axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlabel("w_max")
    axes.set_ylabel("beta")
    axes.set_title("effective sample size (S/F: success to failure)", loc="left", fontsize=10)


def _along_the_episode(axes: matplotlib.axes.Axes, cell: GridCell) -> None:
    middles = (np.arange(PHASES) + 0.5) / PHASES
    for label, means in cell.by_phase.items():
        axes.plot(middles, means, marker="o", markersize=3, color=COLOURS[label], label=label)
    axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("part of the episode")
    axes.set_ylabel("mean weight of a frame")
    axes.set_title("along the episode", loc="left", fontsize=10)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
