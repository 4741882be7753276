"""Draws figures off-screen and saves them as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.axes
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from srpo_robot.records import Curve, Episode

SUCCESS, FAILURE, MUTED = "#1b7f5c", "#c2452d", "#6b7280"


def png(figure: Figure) -> bytes:
    """Returns `figure` as PNG. Does not use pyplot, which would need global state."""
    FigureCanvasAgg(figure)
    packed = io.BytesIO()
    with warnings.catch_warnings():  # a task's name may have characters that the font lacks; they are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(packed, dpi=110, facecolor="white")
    return packed.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def draw_curves(episodes: Sequence[Episode], curves: Sequence[Curve], path: Path, note: str) -> None:
    """Draws progress over time for successes and failures, with the median over normalised time.

    Args:
        note: text under the figure, the source of the curves.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, success, colour in ((panels[0], True, SUCCESS), (panels[1], False, FAILURE)):
        members = [(e, c) for e, c in zip(episodes, curves, strict=True) if e.success is success]
        shown = [(e, c) for e, c in members if np.isfinite(c.progress).all()]
        for episode, curve in shown:
            _curve(axes, episode, curve, colour)
        if len(shown) > 2:
            _median(axes, shown)
        undefined = len(members) - len(shown)
        title = f"{'successes' if success else 'failures'} ({len(members)})"
        axes.set_title(title + (f", {undefined} undefined" if undefined else ""), loc="left", color=colour)
        axes.set_xlabel("time [s]")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("progress")
    figure.supxlabel(note, fontsize=8, color=MUTED, x=0.01, ha="left")
    save(figure, path)


def _curve(axes: matplotlib.axes.Axes, episode: Episode, curve: Curve, colour: str) -> None:
    scored = np.flatnonzero(curve.scored)
    seconds = np.arange(episode.length) / episode.fps
    start = scored[0] if len(scored) else 0  # skip the held part before the first window
    axes.plot(seconds[start:], curve.progress[start:], color=colour, linewidth=1.0, alpha=0.55)
    axes.plot(seconds[-1], curve.progress[-1], "o", color=colour, markersize=3)


def _median(axes: matplotlib.axes.Axes, shown: Sequence[tuple[Episode, Curve]]) -> None:
    start = max(np.flatnonzero(c.scored)[0] / (e.length - 1) for e, c in shown)  # skip the held part
    grid = np.linspace(start, 1, 100)
    resampled = np.stack([np.interp(grid, np.linspace(0, 1, len(c.progress)), c.progress) for _, c in shown])
    span_s = float(np.median([(e.length - 1) / e.fps for e, _ in shown]))
    axes.plot(grid * span_s, np.median(resampled, axis=0), color="black", linewidth=1.8, label="median")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw_losses(losses: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draws training losses, name -> (steps, losses), smoothed over 20 steps."""
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, (steps, values)), colour in zip(losses.items(), (SUCCESS, MUTED, FAILURE), strict=False):
        width = min(20, len(values))
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, label=name, color=colour, linewidth=1.4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, mean of 20 steps")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def draw_weights(weights: Mapping[str, np.ndarray]) -> bytes:
    """Returns histograms of the positive frame weights by label ("success", "failure") on a logarithmic axis, as PNG.

    Raises:
        ValueError: no weight is positive.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    weight_histogram(figure.subplots(), weights)
    return png(figure)


def weight_histogram(axes: matplotlib.axes.Axes, weights: Mapping[str, np.ndarray]) -> None:
    """Draws the histogram of `draw_weights` into `axes`. Raises the same."""
    positive = {name: values[values > 0] for name, values in weights.items()}
    everything = np.concatenate(list(positive.values()))
    if len(everything) == 0:
        raise ValueError("no positive weight to draw")
    edges = np.geomspace(everything.min() / 1.05, everything.max() * 1.05, 41)
    for name, values in positive.items():
        colour = {"success": SUCCESS, "failure": FAILURE}.get(name, MUTED)
        axes.hist(values, edges, color=colour, alpha=0.25)
        axes.hist(values, edges, color=colour, histtype="step", linewidth=1.4, label=f"{name} ({len(values)} frames)")
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("weight of a frame (the mean is 1)")
    axes.set_ylabel("frames")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
