"""The audit gate: verdicts follow from evidence and level, and the evidence agrees with the labels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.errors import ScoringError, StaleTable, UnlabelledError, UsageError
from srpo_robot.progress.evidence.audit import (
    Contrast,
    Evidence,
    TaskEvidence,
    ValueEvidence,
    gather,
    judge,
    read_audit,
    supported_value,
    write_audit,
)
from srpo_robot.progress.evidence.metrics import Resampling
from srpo_robot.records import Episode

QUICK = Resampling(300, 300)


def episodes(success: list[bool | None], task: str = "go") -> list[Episode]:
    return [
        Episode(index=i, task=task, length=20, fps=10.0, first_frame=20 * i, cameras=("front",), success=label)
        for i, label in enumerate(success)
    ]


def task(p: float = 0.01, low: float = 0.1, auc: float = 0.9, name: str = "go") -> TaskEvidence:
    contrast = Contrast("shuffled", 0.5, 0.4, low, 0.6)
    return TaskEvidence(
        task=name, successes=20, failures=20, auc=auc, low=0.8, high=1.0, p=p, reason="", contrasts=(contrast,)
    )


def value(name: str, auc: float, p: float, low_difference: float = 0.0) -> ValueEvidence:
    return ValueEvidence(
        name=name, auc=auc, low=auc - 0.1, high=auc + 0.1, p=p, difference=0.0, low_difference=low_difference
    )


def test_a_score_that_separates_and_beats_its_negative_controls_passes():
    verdict = judge(Evidence((task(),)))
    assert verdict.passed
    assert [line[:4] for line in verdict.lines] == ["PASS", "PASS"]
    assert verdict.advice == ()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (task(p=0.06), "do not separate"),
        (task(auc=0.1), "do not separate"),  # significant, but in the wrong direction
        (task(low=0.0), "does not beat shuffled"),
    ],
)
def test_one_failed_line_of_one_task_fails_the_audit_and_says_what_to_try(bad, says):
    verdict = judge(Evidence((task(name="other"), bad)))
    assert not verdict.passed
    assert next(line for line in verdict.lines if line.startswith("FAIL")).count(says) == 1
    assert verdict.advice


@given(p=st.floats(0.001, 0.999), level=st.floats(0.001, 0.999))
def test_the_verdict_follows_the_level(p, level):
    assert judge(Evidence((task(p=p),)), level).passed == (p <= level)


def test_no_evidence_does_not_pass():
    assert not judge(Evidence(())).passed


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_an_invalid_level_is_refused(level):
    with pytest.raises(UsageError, match="level"):
        judge(Evidence(()), level)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([value("progress", 0.8, 0.01), value("knn-time", 0.9, 0.01, -0.05)], "progress"),  # not surely better
        ([value("progress", 0.8, 0.01), value("knn-time", 0.9, 0.01, 0.02)], "knn-time"),
        ([value("progress", 0.4, 0.9), value("knn-time", 0.7, 0.01, -0.01)], "knn-time"),  # progress has no information
        ([value("progress", 0.6, 0.2), value("knn-time", 0.6, 0.2)], ""),
        ([value("progress", math.nan, math.nan)], ""),
        ([], ""),
    ],
)
def test_progress_is_supported_unless_another_value_is_better_by_its_interval(rows, expected):
    assert supported_value(rows) == expected


def test_evidence_of_an_informed_and_of_a_random_score():
    success: list[bool | None] = [i < 15 for i in range(30)]
    rng = np.random.default_rng(0)
    knows = np.where(np.array(success, dtype=bool), 0.9, 0.2) + rng.normal(0, 0.05, 30)
    blind = rng.uniform(0, 1, 30)
    good = judge(gather(episodes(success), knows, {"shuffled": blind}, resampling=QUICK))
    assert good.passed
    bad = judge(gather(episodes(success), blind, {"shuffled": blind}, resampling=QUICK))
    assert not bad.passed
    assert any("does not beat shuffled" in line for line in bad.lines)


def test_a_single_class_fails_and_names_the_missing_class():
    evidence = gather(episodes([True] * 5), np.linspace(0.5, 0.9, 5), {}, resampling=QUICK)
    verdict = judge(evidence)
    assert not verdict.passed
    assert "cannot be compared" in verdict.lines[0]
    assert "too few failures" in verdict.advice[0]


def test_an_excluded_task_is_not_judged():
    rows = [
        *episodes([True, False, True, False]),
        Episode(index=4, task="out", length=9, fps=10.0, first_frame=80, cameras=("front",), success=True),
    ]
    evidence = gather(rows, np.array([0.9, 0.1, 0.8, 0.2, math.nan]), {}, resampling=QUICK)
    assert [row.task for row in evidence.tasks] == ["go"]


def test_unlabelled_and_unscored_episodes_are_errors():
    with pytest.raises(UnlabelledError):
        gather(episodes([True, None]), np.array([0.5, 0.5]), {}, resampling=QUICK)
    with pytest.raises(ScoringError, match="more than one group"):
        gather(episodes([True, False]), np.full(2, math.nan), {}, resampling=QUICK)


def test_an_audit_round_trips_through_disk_as_strict_json(tmp_path):
    path, origin = tmp_path / "srpo" / "audit.json", {"dataset": "a", "windows": {"kind": "dense"}}
    evidence = Evidence((task(p=math.nan),), (value("progress", 0.5, math.nan),))
    verdict = write_audit(path, evidence, 0.05, origin)
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    back = read_audit(path, origin, "audit")
    assert repr(back) == repr(evidence)  # NaN is not equal to itself
    assert judge(back).lines == verdict.lines


def test_an_audit_of_another_state_is_refused(tmp_path):
    path = tmp_path / "audit.json"
    with pytest.raises(StaleTable, match="never audited; run: again"):
        read_audit(path, {}, "again")
    write_audit(path, Evidence((task(),)), 0.05, {"labels": "a"})
    with pytest.raises(StaleTable, match="another labels"):
        read_audit(path, {"labels": "b"}, "again")
    path.write_text("{}")
    with pytest.raises(StaleTable, match="cannot be read"):
        read_audit(path, {}, "again")
