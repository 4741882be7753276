"""Terminal output: the two consoles, the progress bar, tables, warnings and the --json file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class RateColumn(ProgressColumn):
    """Shows the work done per second, in the bar's own unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "it")
        if speed is None:
            return Text(f"- {unit}/s", style="progress.data.speed")
        text = f"{speed:.1f} {unit}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s/{unit}"
        return Text(text, style="progress.data.speed")


class Bar:
    """One running progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, by: float = 1.0, note: str = "") -> None:
        self._progress.update(self._task, advance=by, note=note)

    def at(self, completed: float, note: str = "") -> None:
        self._progress.update(self._task, completed=completed, note=note)


@contextmanager
def bar(label: str, total: float, unit: str) -> Iterator[Bar]:
    """Shows a progress bar with a rate and an ETA on standard error."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=errors) as progress:
        yield Bar(progress, progress.add_task(label, total=total, unit=unit, note=""))


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Shows a spinner beside `label`: importing lerobot alone takes seconds."""
    with errors.status(label):
        yield


def warn(text: str) -> None:
    """Prints one line of warning on standard error."""
    errors.print(f"[yellow]warning:[/] {text}", soft_wrap=True)


def say(text: str) -> None:
    """Prints one line on standard output. It is never wrapped, because a script may read it."""
    console.print(text, soft_wrap=True)


def table(title: str, *columns: str) -> Table:
    """Returns an empty table. The first column is aligned as text, the others as numbers."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number == 0 else "right")
    return result


def number(value: float, digits: int = 3) -> str:
    """Returns a number as text for a table; "undefined" if it is NaN, never 0."""
    return "undefined" if value != value else f"{value:.{digits}f}"  # NaN is the only value unlike itself


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Writes `content` to `path`, which --json gave (None: write nothing). NaN and infinity become null."""
    if path is not None:
        from srpo_robot.numerics import without_nan  # imports numpy

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(without_nan(content), indent=2, default=str, allow_nan=False) + "\n")


def shortened(names: Sequence[str]) -> list[str]:
    """Shortens names of checkpoints for a table: leaves out the folders that all of them begin or end with.

    runs/sft/0 and runs/awr/0 become sft and awr. If a name would become empty, or two would become equal, all stay as
    they are.
    """
    parts = [name.split("/") for name in names]
    shortest = min(map(len, parts))
    first = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), 0)
    last = next((i for i in range(shortest - first) if len({part[-1 - i] for part in parts}) > 1), 0)
    short = ["/".join(part[first : len(part) - last]) for part in parts]
    return short if len(set(short)) == len(set(names)) and all(short) else list(names)
