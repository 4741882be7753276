"""`srpo-robot label`: labels episodes by keys while their frames are shown, by a CSV file, or by rule."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.style import Style
from rich.text import Text

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.console import console, say, table, waiting
from srpo_robot.cli.options import LabelOptions
from srpo_robot.errors import UsageError
from srpo_robot.records import Episode

if TYPE_CHECKING:
    from srpo_robot.buffer.episodes import Buffer

KEYS = "s success, f failure, space skip, b back, q quit"
STRIP_FRAMES = 6  # spread evenly over the episode, before the last frame


def label_dataset(options: LabelOptions) -> None:
    """Sets labels in one of the three ways and prints the number of labelled episodes.

    Raises:
        UsageError: two ways were given, or keys were asked for without a terminal.
        DatasetError: see `parse_csv` and `open_buffer`.
    """
    if options.csv is not None and options.all_success:
        raise UsageError("--csv and --all-success exclude each other; give one")
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
    from srpo_robot.buffer.labels import Label, parse_csv, write_labels

    if options.csv is not None:
        write_labels(buffer, parse_csv(options.csv, len(buffer.episodes)))
    elif options.all_success:
        write_labels(buffer, {e.index: Label(True, "") for e in buffer.episodes if e.success is None})
    else:
        if not sys.stdin.isatty():
            raise UsageError("labelling by keys needs a terminal; without one give --csv FILE or --all-success")
        show = window_shower() or terminal_shower()
        todo = [e for e in buffer.episodes if options.relabel or e.success is None]
        label_by_keys(buffer, todo, buffer.camera(options.camera), read_key, show)
    _print_labels(open_buffer(options.dataset))


def label_by_keys(
    buffer: Buffer,
    todo: list[Episode],
    camera: str,
    next_key: Callable[[], str],
    show: Callable[[Episode, np.ndarray], None],
) -> dict[int, bool]:
    """Shows each episode and takes one key for it. Each answer is on disk before the next episode is shown.

    Args:
        next_key: returns one character.
        show: shows frames of an episode, uint8 (n, H, W, 3). The last of them is the episode's last frame.

    Returns:
        the answers by episode index: True for a success.
    """
    from srpo_robot.buffer.labels import Label, write_labels

    answers: dict[int, bool] = {}
    at = 0
    while at < len(todo):
        episode = todo[at]
        show(episode, film_strip(buffer.frames(episode, camera)))
        say(f"episode {episode.index} ({at + 1} of {len(todo)}), {episode.length / episode.fps:.1f} s: {episode.task}")
        say(f"  {KEYS}")
        key = next_key().lower()
        if key in ("q", "\x03", "\x04", ""):
            break
        if key == "b":
            at = max(at - 1, 0)
            continue
        if key in ("s", "f"):
            answers[episode.index] = key == "s"
            write_labels(buffer, {episode.index: Label(key == "s", "")})
        elif key != " ":
            say(f"  {key!r} is no answer")
            continue
        at += 1
    return answers


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Returns frames spread evenly over an episode, and its last one: (n, H, W, 3) from (T, H, W, 3)."""
    picks = np.unique(np.linspace(0, len(frames) - 1, STRIP_FRAMES + 1).round().astype(int))
    return frames[picks]


def shrink(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resizes uint8 (H, W, 3) to (rows, columns, 3). Each new pixel is the mean of the pixels that it replaces."""
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX))


def half_blocks(image: np.ndarray) -> Text:
    """Returns an image, uint8 (2n, W, 3), as n lines of text: two pixels a character, in 24-bit colour."""
    text = Text(no_wrap=True)
    for y in range(0, len(image) - 1, 2):
        for upper, lower in zip(image[y], image[y + 1], strict=True):
            text.append("▀", Style(color=f"#{bytes(upper).hex()}", bgcolor=f"#{bytes(lower).hex()}"))
        text.append("\n")
    return text


def terminal_shower() -> Callable[[Episode, np.ndarray], None]:
    """Returns a function that shows frames in the terminal: a strip, and below it the last frame, larger."""

    def show(episode: Episode, frames: np.ndarray) -> None:
        columns = max(min(console.width, 160), 40)
        aspect = frames.shape[1] / frames.shape[2]
        cell = (columns - len(frames) + 1) // len(frames)
        rows = max(2, round(cell * aspect / 2) * 2)
        gap = np.zeros((rows, 1, 3), dtype=np.uint8)
        strip = np.concatenate([part for f in frames for part in (shrink(f, rows, cell), gap)][:-1], axis=1)
        width = min(columns, 72)
        last = shrink(frames[-1], max(2, round(width * aspect / 2) * 2), width)
        console.print(half_blocks(strip), end="")
        console.print(half_blocks(last), end="")

    return show


def window_shower() -> Callable[[Episode, np.ndarray], None] | None:
    """Returns a function that shows frames in a window, or None if the machine has no display or no tkinter."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        import tkinter
    except ImportError:
        return None
    try:
        tkinter.Tk().destroy()  # fails if no server answers at DISPLAY
    except tkinter.TclError:
        return None
    import matplotlib

    matplotlib.use("TkAgg")
    from matplotlib import pyplot

    def show(episode: Episode, frames: np.ndarray) -> None:
        figure = pyplot.figure("srpo-robot label", figsize=(11, 7), clear=True)
        grid = figure.add_gridspec(2, len(frames), height_ratios=[1, 4])
        for column, frame in enumerate(frames):
            axes = figure.add_subplot(grid[0, column])
            axes.imshow(frame)
            axes.axis("off")
        axes = figure.add_subplot(grid[1, :])
        axes.imshow(frames[-1])
        axes.axis("off")
        axes.set_title(f"episode {episode.index}, last frame: {episode.task}")
        pyplot.show(block=False)
        pyplot.pause(0.05)

    return show


def read_key() -> str:
    """Reads one key from the terminal, without Enter."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        return os.read(descriptor, 1).decode(errors="replace")  # unbuffered: keys typed too early were flushed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _print_labels(buffer: Buffer) -> None:
    result = table(str(buffer.root), "task", "episodes", "success", "failure", "unlabelled")
    for task in sorted({e.task for e in buffer.episodes}):
        labels = [e.success for e in buffer.episodes if e.task == task]
        counts = (len(labels), labels.count(True), labels.count(False), labels.count(None))
        result.add_row(task, *map(str, counts))
    console.print(result)
