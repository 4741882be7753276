"""The gate before a week of robot time: does the score tell success from failure, and better than its own nulls?

Evidence first (numbers, with intervals), then a verdict that is a pure function of evidence and level: training may ask
for another level than the one that was printed, and gets its own verdict from the same evidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.errors import ScoringError, StaleTable, UsageError
from srpo_robot.files import write_whole
from srpo_robot.numerics import without_nan
from srpo_robot.progress.evidence.metrics import Estimate, Resampling, auc_difference, separation
from srpo_robot.records import Episode

FILE = "audit.json"
FORMAT = 1
LEVEL = 0.05
CONTROLS = ("shuffled", "reversed", "frozen-tail", "pixel-mean", "pixel-last10")  # what the real score must beat
FEW = 10  # episodes of a label below which more of them is the first thing to try

_ADVICE = {
    "shuffled": "the order of frames hardly matters to this score: try --window-shape recent, or an encoder that sees "
    "motion",
    "reversed": "the score does not depend on how episodes end: try --window-shape recent, or another camera",
    "frozen-tail": "the last third of the episodes adds nothing to the score, which is right where all is decided "
    "before: else try --window-shape recent, or a camera that sees where the task ends",
    "pixel-mean": "a mean image does as well, so the encoder adds nothing here: try another --encoder or --camera",
    "pixel-last10": "the mean of the last 10 frames does as well, so the encoder adds nothing here: try another "
    "--encoder, --camera or --window-shape recent",
}


@dataclass(frozen=True)
class Contrast:
    """The real score against one control, on the same episodes: AUC of the control, and the paired difference."""

    name: str
    auc: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class TaskEvidence:
    """What the labels say about the score of one task.

    Attributes:
        task: its name.
        successes, failures: episodes with a final progress in profile `loo`.
        auc, low, high: ROC-AUC of it, and its interval; NaN with `reason`.
        p: of the permutation test; NaN where there is none.
        reason: why the AUC is undefined.
        contrasts: one for each control.
    """

    task: str
    successes: int
    failures: int
    auc: float
    low: float
    high: float
    p: float
    reason: str
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class ValueEvidence:
    """What the labels say about a step value: does the worst chunk of an episode tell failures from successes?

    Attributes:
        name: of `value.VALUES`.
        auc, low, high, p: of the most negative chunk gain, higher in successes; NaN where it is undefined.
        difference, low_difference: AUC less that of `progress`, and the lower end of its paired interval.
    """

    name: str
    auc: float
    low: float
    high: float
    p: float
    difference: float
    low_difference: float


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict follows from."""

    tasks: tuple[TaskEvidence, ...]
    values: tuple[ValueEvidence, ...] = ()


@dataclass(frozen=True)
class AuditResult:
    """What it comes to.

    Attributes:
        passed: the score may train.
        lines: what was found, a line each, PASS or FAIL first.
        advice: what to do about what failed, most promising first.
        value: the step value that the evidence supports; "" where it supports none.
    """

    passed: bool
    lines: tuple[str, ...]
    advice: tuple[str, ...]
    value: str


# --- evidence -----------------------------------------------------------------------------------------------------


def gather(
    episodes: Sequence[Episode],
    real: np.ndarray,
    controls: Mapping[str, np.ndarray],
    gains: Mapping[str, np.ndarray] | None = None,
    resampling: Resampling | None = None,
) -> Evidence:
    """The evidence of a dataset.

    Args:
        episodes: all labelled.
        real: (E,) final progress of the score under test, profile `loo`; NaN where it is undefined.
        controls: by name, (E,) the same of each control.
        gains: by step value, (E,) most negative chunk gain (see `benchmark.worst_gains`); None: values are not judged.

    Raises:
        UnlabelledError: an episode has no label.
        ScoringError: no episode has a final progress.
    """
    if not np.isfinite(real).any():
        raise ScoringError("no episode has a progress in profile loo; record successes of more than one group")
    tasks = []
    for task in dict.fromkeys(e.task for e in episodes):
        rows = np.array([i for i, e in enumerate(episodes) if e.task == task])
        if np.isfinite(real[rows]).any():  # a task that was left out is not judged
            own = {name: values[rows] for name, values in controls.items()}
            tasks.append(_task_evidence(task, [episodes[i].success for i in rows], real[rows], own, resampling))
    success = [e.success for e in episodes]
    return Evidence(tuple(tasks), _value_evidence(success, gains or {}, resampling))


def _task_evidence(
    task: str,
    success: Sequence[bool | None],
    real: np.ndarray,
    controls: Mapping[str, np.ndarray],
    resampling: Resampling | None,
) -> TaskEvidence:
    table = separation(real, success, resampling, task)
    found = table.estimates["auc"]
    contrasts = []
    for name, values in controls.items():
        alone = separation(values, success, Resampling(0, 0), task).estimates["auc"]
        apart = auc_difference(real, values, success, resampling)
        contrasts.append(Contrast(name, alone.value, apart.value, apart.low, apart.high))
    return TaskEvidence(
        task,
        table.successes,
        table.failures,
        found.value,
        found.low,
        found.high,
        found.p,
        found.reason,
        tuple(contrasts),
    )


def _value_evidence(
    success: Sequence[bool | None], gains: Mapping[str, np.ndarray], resampling: Resampling | None
) -> tuple[ValueEvidence, ...]:
    rows = []
    for name, worst in gains.items():
        found: Estimate = separation(worst, success, resampling, name).estimates["auc"]
        apart = auc_difference(worst, gains["progress"], success, resampling) if "progress" in gains else None
        more = (math.nan, math.nan) if apart is None else (apart.value, apart.low)
        rows.append(ValueEvidence(name, found.value, found.low, found.high, found.p, *more))
    return tuple(rows)


# --- the verdict --------------------------------------------------------------------------------------------------


def judge(evidence: Evidence, level: float = LEVEL) -> AuditResult:
    """The verdict at a level.

    Passed means, for every task: success and failure separate with p at most `level`, and the real score is better
    than every control by more than the paired interval. All must hold, so nothing is corrected for their number.

    Raises:
        UsageError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"the level {level} must be between 0 and 1, for example 0.05")
    lines: list[str] = []
    advice: dict[str, None] = {}  # in order, each once
    for task in evidence.tasks:
        _judge_separation(task, level, lines, advice)
        if math.isfinite(task.auc):
            _judge_controls(task, lines, advice)
    value = supported_value(evidence.values, level)
    passed = bool(evidence.tasks) and not any(line.startswith("FAIL") for line in lines)
    if not passed and value not in ("", "progress"):
        advice[f"as a step value {value} tells more on these episodes: score with --value {value}"] = None
    return AuditResult(passed, tuple(lines), tuple(advice), value)


def supported_value(values: Sequence[ValueEvidence], level: float = LEVEL) -> str:
    """The step value whose worst chunk separates the labels: `progress` unless another is better by its interval."""
    good = [row for row in values if math.isfinite(row.p) and row.p <= level and row.auc > 0.5]
    better = [row for row in good if row.name != "progress" and row.low_difference > 0.0]
    if better:
        return max(better, key=lambda row: row.auc).name
    if any(row.name == "progress" for row in good):
        return "progress"
    return max(good, key=lambda row: row.auc).name if good else ""


def _judge_separation(task: TaskEvidence, level: float, lines: list[str], advice: dict[str, None]) -> None:
    counts = f"{task.successes} successes, {task.failures} failures"
    if not math.isfinite(task.auc):
        lines.append(f"FAIL {task.task!r}: success and failure cannot be compared ({task.reason}; {counts})")
        missing = "failures: label them, or record some" if task.successes else "successes: record more of them"
        advice[f"{task.task!r} has too few {missing}"] = None
        return
    good = task.p <= level and task.auc > 0.5
    shown = f"AUC {task.auc:.2f} ({task.low:.2f} to {task.high:.2f}), p {task.p:.3f}, level {level:g}; {counts}"
    word = "PASS" if good else "FAIL"
    lines.append(f"{word} {task.task!r}: success and failure {'separate' if good else 'do not separate'}: {shown}")
    if good:
        return
    if min(task.successes, task.failures) < FEW:
        advice[f"{task.task!r} has {counts}: label or record at least {FEW} of each, then audit again"] = None
    advice["another --camera, --window-shape recent or another --encoder may see what these do not"] = None


def _judge_controls(task: TaskEvidence, lines: list[str], advice: dict[str, None]) -> None:
    for row in task.contrasts:
        beaten = row.low > 0.0
        shown = f"AUC {row.auc:.2f}, difference {row.difference:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        word = "PASS" if beaten else "FAIL"
        lines.append(f"{word} {task.task!r}: {'beats' if beaten else 'does not beat'} {row.name}: {shown}")
        if not beaten:
            advice[_ADVICE.get(row.name, f"it is no better than {row.name}")] = None


# --- on disk ------------------------------------------------------------------------------------------------------


def write_audit(path: Path, evidence: Evidence, level: float, origin: Mapping[str, Any]) -> AuditResult:
    """Write evidence and verdict as JSON, whole or not at all, and return the verdict.

    Args:
        origin: what the evidence is of (dataset, labels, encoder, windows ...), compared by `read_audit`.
    """
    verdict = judge(evidence, level)
    content = {
        "format": FORMAT,
        "origin": dict(origin),
        "level": level,
        **asdict(verdict),
        "evidence": asdict(evidence),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")
    return verdict


def read_audit(path: Path, origin: Mapping[str, Any], refresh: str) -> Evidence:
    """The evidence of a dataset's audit.

    Raises:
        StaleTable: absent, unreadable, or of another state than `origin`; says which command refreshes it.
    """
    if not path.is_file():
        raise StaleTable(f"this score was never audited; run: {refresh}")
    try:
        content = json.loads(path.read_text())
        found, version = content["origin"], content["format"]
        rows = content["evidence"]["tasks"]
        contrasts = [tuple(Contrast(**_nan_for_null(c)) for c in row.pop("contrasts")) for row in rows]
        tasks = tuple(TaskEvidence(**_nan_for_null(r), contrasts=c) for r, c in zip(rows, contrasts, strict=True))
        values = tuple(ValueEvidence(**_nan_for_null(row)) for row in content["evidence"]["values"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise StaleTable(f"{path} cannot be read; run: {refresh}") from None
    if version != FORMAT:
        raise StaleTable(f"{path} has format {version}, this version reads {FORMAT}; run: {refresh}")
    changed = [name for name, value in origin.items() if found.get(name) != value]
    if changed:
        raise StaleTable(f"{path} is of another {changed[0]} than the score; run: {refresh}")
    return Evidence(tasks, values)


def _nan_for_null(row: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
