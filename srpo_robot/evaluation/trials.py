"""The journal of a run: trials.jsonl, one row a trial, flushed and synced before the next trial begins.

Beside it, while an arm may move and after a run that did not end well, lies fault.json: what happened. It is written
before the first move, so that a kill or a full disk leaves it too, and removed when a run has ended as it should.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from srpo_robot.errors import DatasetError
from srpo_robot.files import write_whole
from srpo_robot.records import Trial
from srpo_robot.renames import TRIAL_KEYS, current_keys

JOURNAL = "trials.jsonl"
FAULT = "fault.json"
CUT_OFF = "the run did not end by itself: it was killed, or the machine went down"


def append_trial(folder: Path, trial: Trial) -> None:
    """Write one row and wait until it is on the disk. A last row that a crash has cut is replaced."""
    with (folder / JOURNAL).open("a+b") as file:
        _mend(file)
        file.write(json.dumps(asdict(trial), default=str).encode() + b"\n")
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
    lines = path.read_bytes().splitlines()
    trials = []
    for number, line in enumerate(lines, start=1):
        trial = _parsed(line)
        if trial is None and number < len(lines):
            raise DatasetError(f"{path}, line {number} is not a trial; restore the file from a copy")
        if trial is not None:
            trials.append(trial)
    return trials


def _parsed(line: bytes) -> Trial | None:
    try:
        return Trial(**current_keys(json.loads(line), TRIAL_KEYS))
    except (ValueError, TypeError, AttributeError):
        return None


def _mend(file: BinaryIO) -> None:
    """Leave whole rows only: what is appended to half a row would be lost with it."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if not lines:
        return
    if _parsed(lines[-1]) is None:
        file.truncate(sum(map(len, lines[:-1])))
    elif not lines[-1].endswith(b"\n"):
        file.write(b"\n")


def note_fault(folder: Path, what: str = CUT_OFF, trial: int | None = None) -> None:
    """Leave word of a fault, on the disk when it returns. Raises OSError where it cannot; what was there stays."""
    content = {"what": what, "trial": trial, "at": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_whole(folder / FAULT, json.dumps(content) + "\n", sync=True)


def read_fault(folder: Path) -> str:
    """How the last run in `folder` ended where it did not end well, in a line; "" where it did."""
    path = folder / FAULT
    if not path.is_file():
        return ""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        where = "" if noted["trial"] is None else f" in trial {noted['trial']}"
        return f"{noted['what']} ({noted['at']}{where})"
    except (ValueError, KeyError, TypeError):
        return CUT_OFF


def clear_fault(folder: Path) -> None:
    """A run has ended as it should."""
    (folder / FAULT).unlink(missing_ok=True)
