"""The journal of a run: trials.jsonl, one row a trial, flushed and synced before the next trial begins."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from srpo_robot.errors import DatasetError
from srpo_robot.records import Trial

JOURNAL = "trials.jsonl"


def append_trial(folder: Path, trial: Trial) -> None:
    """Write one row and wait until it is on the disk."""
    with (folder / JOURNAL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial), default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_trials(folder: Path) -> list[Trial]:
    """All trials of a run, in order; a last line cut by a crash is left out.

    Raises:
        DatasetError: no journal there, or a row in its middle that is not a trial.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise DatasetError(f"{folder} has no {JOURNAL}; give the output folder of 'srpo-robot run'")
    lines = path.read_text(encoding="utf-8").splitlines()
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            trials.append(Trial(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            if number == len(lines):
                break
            raise DatasetError(f"{path}, line {number} is not a trial; restore the file from a copy") from None
    return trials
