"""`srpo-robot report`: writes the HTML page of a scored dataset."""

from __future__ import annotations

from pathlib import Path

from srpo_robot.buffer.opening import check_dataset, open_buffer
from srpo_robot.cli.console import bar, say, waiting

PAGE = "report.html"


def report_dataset(dataset: str, output: Path | None) -> None:
    """Writes the page to `output` (None: DATASET/srpo/report.html) and prints its path.

    Raises:
        DatasetError: `dataset` is no dataset.
        StaleTable: the dataset was not scored, or has changed since. The message names the command to run.
    """
    check_dataset(dataset)
    with waiting(f"opening {dataset}"):
        from srpo_robot.report.dataset_page import make_report

        buffer = open_buffer(dataset)
    episodes = len(buffer.episodes)
    # Only some episodes of a large dataset are decoded.
    with bar("decoding for the page", episodes, "episode") as progress:

        def on_episode(done: int, of: int) -> None:
            progress.at(round(done / of * episodes))

        page = make_report(buffer, output or buffer.sidecar / PAGE, on_episode)
    say(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB, opens without a network)")
