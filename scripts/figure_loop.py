"""Draws the picture of the loop at the top of the README from the folder of a finished demo.

python scripts/figure_loop.py demo .github/loop.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import read_table
from srpo_robot.progress.pipeline import read_curves
from srpo_robot.report.figures import FAILURE, MUTED, SUCCESS, save

STAGES = ("record", "score-dataset", "weights", "train-awr", "run")
SAYS = (
    "episodes, failures included",
    "progress by V-JEPA 2 windows",
    "advantage of each chunk",
    "each frame's loss, weighted",
    "trials with a verdict",
)


def main(demo: Path, target: Path) -> None:
    """Draws five panels from left to right, and the arrow back."""
    buffer, trials = open_buffer(demo / "dataset"), open_buffer(demo / "run_awr" / "dataset")
    figure = Figure(figsize=(13, 3.3))
    panels = figure.subplots(
        1, 5, gridspec_kw={"left": 0.03, "right": 0.99, "top": 0.80, "bottom": 0.24, "wspace": 0.28}
    )
    success = next(e for e in buffer.episodes if e.success)
    panels[0].imshow(_strip(buffer.frames(success, buffer.cameras[0]), 4))
    for episode, curve in zip(buffer.episodes, read_curves(buffer), strict=True):
        at = np.flatnonzero(curve.scored)[0]
        colour = SUCCESS if episode.success else FAILURE
        panels[1].plot(
            np.arange(at, episode.length) / episode.fps, curve.progress[at:], color=colour, lw=0.7, alpha=0.6
        )
    weight = read_table(buffer.sidecar / "advantage.parquet", refresh="srpo-robot weights")["weight"]
    labels = np.repeat([bool(e.success) for e in buffer.episodes], [e.length for e in buffer.episodes])
    bins = np.linspace(0, 4, 25)
    for kind, colour in ((True, SUCCESS), (False, FAILURE)):
        panels[2].hist(np.clip(weight[labels == kind], 0, 4), bins=bins, color=colour, alpha=0.6)
    losses = [json.loads(line)["loss"] for line in (demo / "awr" / "metrics.jsonl").read_text().splitlines()]
    panels[3].plot(np.convolve(losses, np.ones(20) / 20, mode="valid"), color=SUCCESS, lw=1.2)
    panels[4].imshow(_strip(trials.frames(trials.episodes[0], trials.cameras[0]), 4))
    for axes, stage, says in zip(panels, STAGES, SAYS, strict=True):
        axes.set_title(stage, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel(says, fontsize=9, color=MUTED, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#d1d5db")
    _arrow_back(figure)
    save(figure, target)


def _strip(frames: np.ndarray, count: int) -> np.ndarray:
    """Arranges four of the frames in a 2 x 2 grid with a gap: about (2H, 2W, 3)."""
    picks = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    picks = np.pad(picks, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(picks[:2], axis=1), np.concatenate(picks[2:], axis=1)], axis=0)


def _arrow_back(figure: Figure) -> None:
    arrow = FancyArrowPatch(
        (0.92, 0.13), (0.08, 0.13), connectionstyle="arc3,rad=-0.06", arrowstyle="-|>", mutation_scale=14, color=MUTED,
        transform=figure.transFigure,
    )  # fmt: skip
    figure.add_artist(arrow)
    says = "the trials join the buffer: the next round scores them too"
    figure.text(0.5, 0.045, says, ha="center", va="center", fontsize=9, color=MUTED, backgroundcolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
