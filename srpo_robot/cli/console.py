"""The terminal: one console, one progress bar, one way to say what went wrong."""

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
    """Work done per second, in the bar's own unit."""

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
def bar(what: str, total: float, unit: str) -> Iterator[Bar]:
    """A progress bar with a rate and an ETA, on standard error."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=errors) as progress:
        yield Bar(progress, progress.add_task(what, total=total, unit=unit, note=""))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner beside `what`: importing lerobot alone takes seconds."""
    with errors.status(what):
        yield


def warn(text: str) -> None:
    """One line of warning on standard error."""
    errors.print(f"[yellow]warning:[/] {text}", soft_wrap=True)


def say(text: str) -> None:
    """One line on standard output, never wrapped: a script may read it."""
    console.print(text, soft_wrap=True)


def table(title: str, *columns: str) -> Table:
    """An empty table; the first column is text, the others numbers."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right")
    return made


def number(value: float, digits: int = 3) -> str:
    """A number for a table; undefined is said, not shown as 0."""
    return "undefined" if value != value else f"{value:.{digits}f}"  # NaN is the only value unlike itself


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write `content` where --json asked for it; what is undefined is null."""
    if path is not None:
        from srpo_robot.numerics import without_nan  # imports numpy

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(without_nan(content), indent=2, default=str, allow_nan=False) + "\n")


def shortened(names: Sequence[str]) -> list[str]:
    """Names of checkpoints for a table: folders that all of them begin or end with are left out.

    runs/sft/0 and runs/awr/0 become sft and awr; names that would become empty or alike stay as they are.
    """
    parts = [name.split("/") for name in names]
    least = min(map(len, parts))
    first = next((i for i in range(least) if len({part[i] for part in parts}) > 1), 0)
    last = next((i for i in range(least - first) if len({part[-1 - i] for part in parts}) > 1), 0)
    short = ["/".join(part[first : len(part) - last]) for part in parts]
    return short if len(set(short)) == len(set(names)) and all(short) else list(names)
