"""Audit of a score before training: does it separate success from failure, and does it beat its negative controls?

The evidence (numbers with intervals) is stored. The verdict is a pure function of evidence and level, so training can
judge the same evidence at another level.
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
FORMAT = 2  # 1: named the encoder, without its weights and precision
LEVEL = 0.05
AUDIT_CONTROLS = ("shuffled", "reversed", "frozen-tail", "pixel-mean", "pixel-last10")  # the score must beat each one
FEW = 10  # with fewer episodes of a label, the first advice is to record more

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
    """The real score against one negative control on the same episodes.

    Attributes:
        name: name of the control.
        auc: AUC of the control.
        difference: AUC of the real score minus AUC of the control, paired by episode.
        low, high: bootstrap interval of the difference.
    """

    name: str
    auc: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TaskEvidence:
    """Evidence from the labels of one task.

    Attributes:
        task: name of the task.
        successes, failures: number of episodes that have a final progress in profile `loo`.
        auc, low, high: ROC-AUC of the final progress, and its interval. NaN if undefined; `reason` says why.
        p: p value of the permutation test. NaN if the test was not run.
        reason: why the AUC is undefined.
        contrasts: one contrast per negative control.
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


@dataclass(frozen=True, kw_only=True)
class ValueEvidence:
    """Evidence for one step value: does the worst chunk of an episode separate failures from successes?

    Attributes:
        name: name of the step value, one of `value.VALUES`.
        auc, low, high, p: ROC-AUC of the most negative chunk gain (higher in successes), its interval and its
            permutation p value. NaN if undefined.
        difference, low_difference: AUC minus the AUC of `progress`, and the lower end of the paired interval.
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
    """The complete input of a verdict."""

    tasks: tuple[TaskEvidence, ...]
    values: tuple[ValueEvidence, ...] = ()


@dataclass(frozen=True)
class AuditResult:
    """The verdict of an audit.

    Attributes:
        passed: True if the score may be used for training.
        lines: one line per check; each starts with PASS or FAIL.
        advice: remedies for the failed checks, most promising first.
        value: the step value that the evidence supports. Empty if it supports none.
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
    """Collects the evidence of a dataset.

    Args:
        episodes: labelled episodes.
        real: (E,) final progress of the score under test in profile `loo`. NaN if undefined.
        controls: by name of the negative control, (E,) its final progress.
        gains: by step value, (E,) most negative chunk gain (see `benchmark.worst_gains`). If None, step values are
            not judged.

    Raises:
        UnlabelledError: an episode has no label.
        ScoringError: no episode has a final progress.
    """
    if not np.isfinite(real).any():
        raise ScoringError("no episode has a progress in profile loo; record successes of more than one group")
    tasks = []
    for task in dict.fromkeys(e.task for e in episodes):
        rows = np.array([i for i, e in enumerate(episodes) if e.task == task])
        if np.isfinite(real[rows]).any():  # skipped tasks are not judged
            task_controls = {name: values[rows] for name, values in controls.items()}
            labels = [episodes[i].success for i in rows]
            tasks.append(_task_evidence(task, labels, real[rows], task_controls, resampling))
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
    auc = table.estimates["auc"]
    contrasts = []
    for name, values in controls.items():
        alone = separation(values, success, Resampling(0, 0), task).estimates["auc"]
        difference = auc_difference(real, values, success, resampling)
        contrasts.append(Contrast(name, alone.value, difference.value, difference.low, difference.high))
    return TaskEvidence(
        task=task,
        successes=table.successes,
        failures=table.failures,
        auc=auc.value,
        low=auc.low,
        high=auc.high,
        p=auc.p,
        reason=auc.reason,
        contrasts=tuple(contrasts),
    )


def _value_evidence(
    success: Sequence[bool | None], gains: Mapping[str, np.ndarray], resampling: Resampling | None
) -> tuple[ValueEvidence, ...]:
    rows = []
    for name, worst in gains.items():
        auc: Estimate = separation(worst, success, resampling, name).estimates["auc"]
        difference = low_difference = math.nan
        if "progress" in gains:
            paired = auc_difference(worst, gains["progress"], success, resampling)
            difference, low_difference = paired.value, paired.low
        rows.append(
            ValueEvidence(
                name=name,
                auc=auc.value,
                low=auc.low,
                high=auc.high,
                p=auc.p,
                difference=difference,
                low_difference=low_difference,
            )
        )
    return tuple(rows)


# --- the verdict --------------------------------------------------------------------------------------------------


def judge(evidence: Evidence, level: float = LEVEL) -> AuditResult:
    """Returns the verdict at a level.

    The audit passes if two conditions hold for every task. Success and failure separate with p at most `level`, and
    the paired interval of the AUC difference to every negative control is above 0. All conditions must hold, so there
    is no correction for their number.

    Raises:
        UsageError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"the level {level} must be between 0 and 1, for example 0.05")
    lines: list[str] = []
    advice: dict[str, None] = {}  # an ordered set
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
    """Returns the step value whose worst chunk separates the labels.

    This is `progress`, unless the paired interval of another value's advantage over `progress` is above 0.
    """
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
    """Writes evidence and verdict as JSON in one atomic step. Returns the verdict.

    Args:
        origin: source of the evidence (dataset, labels, encoder, windows ...). `read_audit` compares it.
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
    """Reads the evidence of a dataset's audit.

    Raises:
        StaleTable: the file is absent, unreadable or has another origin. The message names the command `refresh`.
    """
    if not path.is_file():
        raise StaleTable(f"this score was never audited; run: {refresh}")
    try:
        content = json.loads(path.read_text())
        audited, version = content["origin"], content["format"]
        rows = content["evidence"]["tasks"]
        contrasts = [tuple(Contrast(**_nan_for_null(c)) for c in row.pop("contrasts")) for row in rows]
        tasks = tuple(TaskEvidence(**_nan_for_null(r), contrasts=c) for r, c in zip(rows, contrasts, strict=True))
        values = tuple(ValueEvidence(**_nan_for_null(row)) for row in content["evidence"]["values"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise StaleTable(f"{path} cannot be read; run: {refresh}") from None
    if version != FORMAT:
        raise StaleTable(f"{path} has format {version}, this version reads {FORMAT}; run: {refresh}")
    changed = [name for name, value in origin.items() if audited.get(name) != value]
    if changed:
        raise StaleTable(f"{path} is of another {changed[0]} than the score; run: {refresh}")
    return Evidence(tasks, values)


def _nan_for_null(row: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
