"""Draws one episode under several scorers with its film strip below, as figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from srpo_robot.errors import UsageError
from srpo_robot.records import Curve, Episode
from srpo_robot.report.figures import FAILURE, MUTED, SUCCESS, save
from srpo_robot.report.frames import spread

STRIP = 8  # frames under the curves
COLOURS = (SUCCESS, FAILURE, MUTED)


def example_episode(episodes: Sequence[Episode], index: int | None = None) -> Episode:
    """Returns the episode with this index, None: the success whose length is the median of all successes.

    Raises:
        UsageError: there is no such episode, or no success to choose from.
    """
    if index is not None:
        matches = [episode for episode in episodes if episode.index == index]
        if not matches:
            raise UsageError(f"no episode {index}; there are 0 to {len(episodes) - 1}")
        return matches[0]
    wins = sorted((e for e in episodes if e.success), key=lambda e: (e.length, e.index))
    if not wins:
        raise UsageError("no success to show; name an episode: --episode N")
    return wins[len(wins) // 2]


def draw_example(episode: Episode, curves: Mapping[str, Curve], frames: np.ndarray, path: Path) -> None:
    """Writes the figure as PNG.

    Args:
        curves: curves by scorer name, at most three.
        frames: all frames of the episode, uint8 (T, H, W, 3).
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, STRIP, height_ratios=(2.6, 1.0))
    axes = figure.add_subplot(grid[0, :])
    seconds = np.arange(episode.length) / episode.fps
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        scored = np.flatnonzero(curve.scored)
        start = scored[0] if len(scored) else 0
        axes.plot(seconds[start:], curve.progress[start:], color=colour, linewidth=1.6, label=name)
    label = "success" if episode.success else "failure"
    axes.set_title(f"episode {episode.index}, {label}: {episode.task}", loc="left", fontsize=10)
    axes.set_xlim(0, seconds[-1])
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("time [s]")
    axes.set_ylabel("progress")
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    for place, t in enumerate(spread(len(frames), STRIP)):
        below = figure.add_subplot(grid[1, place])
        below.imshow(frames[t])
        below.set_title(f"{seconds[t]:.1f} s", fontsize=8, color=MUTED)
        below.axis("off")
    save(figure, path)
