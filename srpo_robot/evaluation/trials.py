"""The journal of a run: trials.jsonl, one row per trial, flushed and synced before the next trial begins.

fault.json beside it describes a fault. It is written before the first move, so that it exists even after a kill or with
a full disk, and removed when a run ends normally.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from srpo_robot.errors import DatasetError
from srpo_robot.records import Trial
from srpo_robot.renames import TRIAL_KEYS, current_keys

JOURNAL = "trials.jsonl"
FAULT = "fault.json"
CUT_OFF = "the run did not end by itself: it was killed, or the machine went down"


def append_trial(folder: Path, trial: Trial) -> None:
    """Writes one row and syncs it to disk. Replaces a last row that a crash has cut."""
    with (folder / JOURNAL).open("a+b") as file:
        _mend(file)
        file.write(json.dumps(asdict(trial), default=str).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_trials(folder: Path) -> list[Trial]:
    """Returns all trials of a run in order. Skips a last line that a crash has cut.

    Raises:
        DatasetError: the folder has no journal, or a row before the last one is not a trial.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise DatasetError(f"{folder} has no {JOURNAL}; give the output folder of 'srpo-robot run'")
    lines = path.read_bytes().splitlines()
    trials = []
    for number, line in enumerate(lines, start=1):
        trial = _parse(line)
        if trial is None and number < len(lines):
            raise DatasetError(f"{path}, line {number} is not a trial; restore the file from a copy")
        if trial is not None:
            trials.append(trial)
    return trials


def _parse(line: bytes) -> Trial | None:
    try:
        return Trial(**current_keys(json.loads(line), TRIAL_KEYS))
    except (ValueError, TypeError, AttributeError):
        return None


def _mend(file: BinaryIO) -> None:
    """Removes a cut last row, because a row appended to it would be unreadable. Completes a missing newline."""
    file.seek(0)
    lines = file.read().splitlines(keepends=True)
    if not lines:
        return
    if _parse(lines[-1]) is None:
        file.truncate(sum(map(len, lines[:-1])))
    elif not lines[-1].endswith(b"\n"):
        file.write(b"\n")


def note_fault(folder: Path, message: str = CUT_OFF, trial: int | None = None) -> None:
    """Writes fault.json and syncs it to disk. Raises OSError if it cannot, and keeps an earlier file."""
    part = folder / f"{FAULT}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"what": message, "trial": trial, "at": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / FAULT)


def read_fault(folder: Path) -> str:
    """Returns one line about the fault of the last run in `folder`, or "" if it ended normally."""
    path = folder / FAULT
    if not path.is_file():
        return ""
    try:
        fault = json.loads(path.read_text(encoding="utf-8"))
        place = "" if fault["trial"] is None else f" in trial {fault['trial']}"
        return f"{fault['what']} ({fault['at']}{place})"
    except (ValueError, KeyError, TypeError):
        return CUT_OFF


def clear_fault(folder: Path) -> None:
    """Removes fault.json after a run that ended normally."""
    (folder / FAULT).unlink(missing_ok=True)
