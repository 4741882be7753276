"""Draws strategy maps: the plane of a task's episodes, and a film strip of each cluster's medoid."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.axes
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import UndecodableFrame
from srpo_robot.progress.score import Scores, WindowEmbeddings
from srpo_robot.records import Episode
from srpo_robot.report.figures import FAILURE, MUTED, SUCCESS, save
from srpo_robot.report.frames import film_strip
from srpo_robot.report.strategy import OUTSIDE, StrategyMap, strategy_map

FOLDER = "strategy"  # DATASET/srpo/strategy/<task>.png
MAX_MAPS = 12  # tasks, the largest first
MAX_STRIPS = 6  # most film strips of one map
MAX_DECODED = 36  # most episodes decoded for all maps together; more would take minutes
STRIP_FRAMES = 6
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#6f4fb3")  # distinct for most colour-blind readers
MAP_WIDTH_IN, MAP_HEIGHT_IN, STRIP_WIDTH_IN = 4.7, 5.2, 7.6


@dataclass(frozen=True, eq=False)
class Film:
    """The film strip of one cluster beside the map: a picture uint8 (H, W, 3), or the reason `why` there is none."""

    title: str
    picture: np.ndarray | None
    why: str = ""


def draw_strategy_maps(
    buffer: Buffer, scores: Scores, windows: Sequence[WindowEmbeddings | None], camera: str
) -> list[Path]:
    """Draws a figure for each of the `MAX_MAPS` largest tasks into DATASET/srpo/strategy/. Returns their paths.

    Removes the figures of earlier scores. If a video cannot be decoded, its figure says so.

    Args:
        scores, windows: scores and windows of the buffer's episodes, as in `Scored`.
        camera: feature key whose frames are shown.
    """
    folder = buffer.sidecar / FOLDER
    for old in folder.glob("*.png"):
        old.unlink()
    sizes = {task: sum(e.task == task for e in buffer.episodes) for task in scores.references}
    chosen = sorted(sizes, key=lambda task: (-sizes[task], task))[:MAX_MAPS]
    names = file_names(sorted({e.task for e in buffer.episodes}))
    paths = []
    for task in chosen:
        rows = [
            (e, episode_windows.embeddings[-1])
            for i, e in enumerate(buffer.episodes)
            if e.task == task and (episode_windows := windows[i]) is not None
        ]
        if not rows:
            continue
        task_map = strategy_map(
            task,
            np.array([e.index for e, _ in rows]),
            np.array([bool(e.success) for e, _ in rows]),
            np.stack([h for _, h in rows]),
            scores.references[task],
            scores.reference_episodes[task],
        )
        count = min(MAX_STRIPS, max(1, MAX_DECODED // len(chosen)))
        films = [_film(buffer, camera, task_map, [e for e, _ in rows], number, count) for number in range(count)]
        path = folder / names[task]
        draw_strategy_map(task_map, [film for film in films if film is not None], path)
        paths.append(path)
    return paths


def file_names(tasks: Sequence[str]) -> dict[str, str]:
    """Returns a file name for each task, for example "put_the_apple.png". Repeated names get a number."""
    names: dict[str, str] = {}
    for task in tasks:
        slug = re.sub(r"\W+", "_", task.lower()).strip("_")[:60] or "task"
        number, name = 1, f"{slug}.png"
        while name in names.values():
            number += 1
            name = f"{slug}_{number}.png"
        names[task] = name
    return names


def _film(
    buffer: Buffer, camera: str, task_map: StrategyMap, episodes: Sequence[Episode], number: int, shown: int
) -> Film | None:
    if number >= len(task_map.strips):
        return None
    strip = task_map.strips[number]
    episode = episodes[strip.medoid]
    title = f"{_strip_name(task_map, number)} ({episode.length / episode.fps:.1f} s)"
    columns = (
        STRIP_FRAMES if min(len(task_map.strips), shown) > 1 else STRIP_FRAMES // 2
    )  # a single strip is twice as large
    try:
        frames = buffer.frames(episode, camera)
    except UndecodableFrame as error:
        return Film(title, None, str(error).split(";")[0])
    return Film(title, film_strip(frames, STRIP_FRAMES, columns, 200))


def _strip_name(task_map: StrategyMap, number: int) -> str:
    strip = task_map.strips[number]
    index = task_map.episodes[strip.medoid]
    if strip.size == 1:
        return f"alone: episode {index}"
    if not task_map.clustered:
        return f"most central of {strip.size} successes: episode {index}"
    return f"cluster {number + 1}: {strip.size} successes, medoid episode {index}"


def draw_strategy_map(task_map: StrategyMap, films: Sequence[Film], path: Path) -> None:
    """Writes the figure of one task. `films` belong to the first strips of the map."""
    width = MAP_WIDTH_IN + (STRIP_WIDTH_IN if films else 0.0)
    figure = Figure(figsize=(width, _height(films)), layout="constrained")
    title = (
        "\n".join(textwrap.wrap(task_map.task, 110 if films else 45, max_lines=3, placeholder=" …"))
        or "(no instruction)"
    )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12, parse_math=False)
    widths = [MAP_WIDTH_IN, STRIP_WIDTH_IN] if films else [MAP_WIDTH_IN]
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    left = figure.add_subfigure(grid[0, 0])
    if films:
        _draw_films(figure.add_subfigure(grid[0, 1]), task_map, films)
    if (below := figure.get_figheight() - MAP_HEIGHT_IN) > 1.0:  # beside many strips the map keeps its size, at the top
        left = left.add_subfigure(left.add_gridspec(2, 1, height_ratios=[MAP_HEIGHT_IN, below])[0, 0])
    _draw_plane(left, task_map, len(films))
    save(figure, path)


def _height(films: Sequence[Film]) -> float:
    """Returns the height of the figure [inch]: enough for the strips at their width, and for the map."""
    shapes = [film.picture.shape for film in films if film.picture is not None]
    needed = sum(STRIP_WIDTH_IN * shape[0] / shape[1] + 0.32 for shape in shapes) + 0.5 * (len(films) - len(shapes))
    return max(MAP_HEIGHT_IN, needed + 1.0)


def _draw_films(figure: SubFigure, task_map: StrategyMap, films: Sequence[Film]) -> None:
    hidden = task_map.strips[len(films) :]
    rest = [f"{sum(s.size > 1 for s in hidden)} more clusters", f"{sum(s.size == 1 for s in hidden)} more alone"]
    rest = [text for text in rest if not text.startswith("0 ")]
    note = "first frame to last" + (f"; {' and '.join(rest)} not shown" if rest else "")
    figure.suptitle(note, x=0.01, ha="left", fontsize=9, color=MUTED)
    heights = [0.5 if f.picture is None else STRIP_WIDTH_IN * f.picture.shape[0] / f.picture.shape[1] for f in films]
    panels = np.atleast_1d(figure.subplots(len(films), 1, height_ratios=heights))
    for number, (axes, film) in enumerate(zip(panels, films, strict=True)):
        axes.set_title(film.title, loc="left", fontsize=10, color=_colour(task_map, number))
        axes.axis("off")
        axes.set_anchor("NW")
        if film.picture is None:
            axes.text(0, 0.5, "\n".join(textwrap.wrap(film.why, 95)), fontsize=9, color=MUTED, va="center")
        else:
            axes.imshow(film.picture)


def _colour(task_map: StrategyMap, number: int) -> str:
    if not task_map.clustered:
        return SUCCESS
    return COLOURS[number % len(COLOURS)] if task_map.strips[number].size > 1 else MUTED


def _draw_plane(figure: SubFigure, task_map: StrategyMap, films: int) -> None:
    axes = figure.subplots()
    axes.set_title("\n".join(textwrap.wrap(" ".join(task_map.notes), 62)), loc="left", fontsize=8.5, color=MUTED)
    if len(task_map.episodes) < 3 or not np.isfinite(task_map.shares).all():
        equal = len(task_map.episodes) > 2
        text = "All embeddings are equal" if equal else f"{len(task_map.episodes)} scored episode(s)"
        axes.text(0.5, 0.5, f"{text}: there is nothing to map.", ha="center", va="center", transform=axes.transAxes)
        axes.axis("off")
        return
    _scatter(axes, task_map)
    for number, strip in enumerate(task_map.strips[:films]):
        _ring(axes, task_map, strip.medoid, _colour(task_map, number))
    axes.set_xlabel(f"first principal axis ({task_map.shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second ({task_map.shares[1]:.0%})")
    axes.margins(0.12)
    axes.locator_params(nbins=6)
    axes.tick_params(labelsize=9)
    axes.set_aspect("equal", adjustable="datalim")  # equal distances in all directions
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8, handletextpad=0.3, columnspacing=1.2)


def _scatter(axes: matplotlib.axes.Axes, task_map: StrategyMap) -> None:
    failed = task_map.points[~task_map.success]
    if len(failed):
        axes.plot(*failed.T, "x", color=FAILURE, markersize=4.5, alpha=0.7, label=f"failures ({len(failed)})")
    lonely = task_map.points[task_map.success & (task_map.cluster == OUTSIDE)]
    if len(lonely):
        label, colour = ("successes alone", "#9ca3af") if task_map.clustered else ("successes", SUCCESS)
        axes.plot(*lonely.T, "o", color=colour, markersize=5.5, alpha=0.8, label=f"{label} ({len(lonely)})")
    for number in range(task_map.cluster.max() + 1):
        inside = task_map.points[task_map.cluster == number]
        label = f"cluster {number + 1} ({len(inside)})" if number < MAX_STRIPS else None
        axes.plot(*inside.T, "o", color=COLOURS[number % len(COLOURS)], markersize=5.5, alpha=0.8, label=label)
    if len(task_map.centres):
        star = {"markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 0.9}
        axes.plot(*task_map.centres.T, "*", markersize=10, label=f"references ({len(task_map.centres)})", **star)


def _ring(axes: matplotlib.axes.Axes, task_map: StrategyMap, row: int, colour: str) -> None:
    """Draws a ring around a medoid, with its episode number on the side away from the map's middle."""
    point = task_map.points[row]
    outward = np.where(point >= task_map.points.mean(axis=0), 1, -1)
    axes.plot(*point, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6)
    axes.annotate(
        str(task_map.episodes[row]),
        tuple(point),
        xytext=tuple(9 * outward),
        textcoords="offset points",
        ha="left" if outward[0] > 0 else "right",
        va="bottom" if outward[1] > 0 else "top",
        fontsize=9,
        fontweight="bold",
        color=colour,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )
