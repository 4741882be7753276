"""`srpo-robot report`: the page of a scored dataset."""

from __future__ import annotations

from pathlib import Path

from srpo_robot.buffer.opening import check_dataset, open_buffer
from srpo_robot.cli.console import bar, say, waiting

PAGE = "report.html"


def report_dataset(dataset: str, output: Path | None) -> None:
    """Write the page to `output` (None: DATASET/srpo/report.html) and say where it is.

    Raises:
        DatasetError: no dataset there.
        StaleTable: it was not scored, or has changed since; names the command.
    """
    check_dataset(dataset)
    with waiting(f"opening {dataset}"):
        from srpo_robot.report.dataset_page import make_report

        buffer = open_buffer(dataset)
    episodes = len(buffer.episodes)
    with bar("decoding for the page", episodes, "episode") as progress:  # a large dataset decodes only some of them

        def on_episode(done: int, of: int) -> None:
            progress.at(round(done / of * episodes))

        page = make_report(buffer, output or buffer.sidecar / PAGE, on_episode)
    say(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB, opens without a network)")
