"""Tests of the trial protocol: the sheet, the crash-safe journal, and runs on the mock arm."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srpo_robot.arm.actions import TCP_NAMES
from srpo_robot.cli.options import RunOptions
from srpo_robot.errors import ArmError, DatasetError, UsageError
from srpo_robot.evaluation.protocol import (
    ATTEMPTS,
    PlannedTrial,
    Protocol,
    Study,
    begin_study,
    begin_trial,
    draw_protocol,
    end_trial,
    key_path,
    open_study,
    read_protocol,
    void_trial,
    write_protocol,
)
from srpo_robot.evaluation.trials import JOURNAL
from srpo_robot.records import ActionChunk, Observation, Trial

POLICIES = ("outputs/sft", "outputs/awr")


def draw(tasks=("put-apple", "put-pear"), policies=POLICIES, trials=3, seed=0, **options) -> Protocol:
    def scene(task: str, layout_seed: int) -> dict:
        return {"task": task, "seed": layout_seed, "swapped": layout_seed % 2 == 0}

    return draw_protocol("mock", tasks, policies, trials, seed, scene, **options)


def result(study: Study, row: PlannedTrial, success: bool | None, note: str = "") -> Trial:
    return replace(void_trial(study, row, note), success=success, steps=9)


def carry_out(study: Study, rows: int, success: bool = True) -> None:
    for row in study.pending()[:rows]:
        begin_trial(study, row)
        end_trial(study, result(study, row, success))


# --- the sheet


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_every_policy_is_tried_once_on_every_layout_one_after_the_other(tasks, policies, trials, seed, by_task):
    names = [f"task-{i}" for i in range(tasks)]
    protocol = draw(names, [f"p{i}" for i in range(policies)], trials, seed, by_task=by_task)
    rows = protocol.sheet.rows
    assert Counter((row.layout, row.policy) for row in rows) == Counter(
        (layout.name, letter) for layout in protocol.sheet.layouts for letter in protocol.policies
    )
    assert [row.trial for row in rows] == list(range(tasks * policies * trials))
    layouts = [row.layout for row in rows]
    assert all(len(set(layouts[i : i + policies])) == 1 for i in range(0, len(rows), policies))
    order = [protocol.sheet.layout(row).task for row in rows][::policies]
    if by_task:
        assert sum(a != b for a, b in pairwise(order)) == tasks - 1
    else:  # after any round, all tasks had equally many trials
        assert all(sorted(order[i : i + tasks]) == names for i in range(0, len(order), tasks))
    assert len({layout.seed for layout in protocol.sheet.layouts}) == tasks * trials


def test_the_seed_determines_the_sheet_and_letters_are_balanced():
    assert draw(seed=4) == draw(seed=4)
    assert draw(seed=4).digest != draw(seed=5).digest
    first = Counter(draw(trials=1, seed=seed).policies["A"] for seed in range(200))
    assert min(first[name] for name in POLICIES) > 70
    turns = Counter(draw(("t",), trials=1, seed=seed).sheet.rows[0].policy for seed in range(200))
    assert min(turns["A"], turns["B"]) > 70


def test_a_sheet_survives_a_round_trip_and_is_never_overwritten(tmp_path):
    protocol, path = draw(), tmp_path / "a" / "study.json"
    write_protocol(path, protocol)
    assert read_protocol(path) == protocol
    assert read_protocol(path).digest == protocol.digest
    assert not any(name in path.read_text() for name in POLICIES)  # the operator may read it
    with pytest.raises(UsageError, match="never overwritten"):
        write_protocol(path, protocol)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"layout": "put-apple-1"', '"layout": "put-aple-1"'), "unknown layout 'put-aple-1'; did you mean 'put-app"),
        (('"layout": "put-apple-1"', '"layout": "x"'), "unknown layout 'x'; there are 6: put-apple-1"),
        (('"policy": "A"', '"policy": "C"'), "has policy 'C'; there are: "),
        (('"trial": 3', '"trial": 7'), "row 3 is numbered 7"),
        (('"format": 1', '"format": 9'), "format 9, this version reads 1"),
        (('"randomization"', '"randomisation"'), "unknown key 'randomisation'; did you mean 'randomization'?"),
        (('"arm": "mock"', '"arm": 3'), "arm is 3; expected str"),
        (('"key": "', '"key": "0'), "does not belong to"),
        (('"name": "put-apple-1"', '"name": "put-apple-2"'), "two layouts share a name"),
        (("{", "["), "cannot be read as a protocol's sheet"),
    ],
)
def test_invalid_sheets_are_refused(tmp_path, change, says):
    path = tmp_path / "study.json"
    write_protocol(path, draw())
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(UsageError, match=re.escape(says)):
        read_protocol(path)


def test_a_layout_twice_for_one_policy_no_rows_and_no_key(tmp_path):
    path = tmp_path / "study.json"
    protocol = draw()
    rows = protocol.sheet.rows
    twice = (*rows, replace(rows[0], trial=len(rows)))
    for number, (odd, says) in enumerate(((twice, "repeats policy"), ((), "has no rows"))):
        place = tmp_path / f"{number}.json"
        write_protocol(place, replace(protocol, sheet=replace(protocol.sheet, rows=odd)))
        with pytest.raises(UsageError, match=says):
            read_protocol(place)
    with pytest.raises(UsageError, match="no sheet at"):
        read_protocol(path)
    write_protocol(path, protocol)
    key_path(path).unlink()
    with pytest.raises(UsageError, match="no key at"):
        read_protocol(path)


def test_an_empty_protocol_is_refused():
    with pytest.raises(UsageError, match="--policy outputs/sft is given twice"):
        draw(policies=("outputs/sft", "outputs/sft"))
    with pytest.raises(UsageError, match="at least one --task"):
        draw(tasks=())
    with pytest.raises(UsageError, match="at most 26 policies"):
        draw(policies=[f"p{i}" for i in range(27)])


# --- the journal


def test_a_study_resumes_after_its_last_trial(tmp_path):
    protocol = draw()
    study = begin_study(tmp_path / "out", protocol, blind=False)
    carry_out(study, 5)
    again = begin_study(tmp_path / "out", protocol, blind=False)
    assert [row.trial for row in again.pending()] == list(range(5, 12))
    carry_out(again, 99)
    assert again.pending() == []
    assert [trial.trial for trial in again.trials()] == list(range(12))
    assert open_study(tmp_path / "out") == again


def test_a_protocol_may_be_edited_only_before_its_first_trial(tmp_path):
    protocol, other = draw(), draw(seed=1)
    begin_study(tmp_path, protocol, blind=False)
    study = begin_study(tmp_path, other, blind=False)
    assert study.protocol == other
    begin_trial(study, study.pending()[0])  # the protocol is fixed from here on
    for variant in (protocol, replace(other, policies=dict(zip(other.policies, POLICIES[::-1], strict=True)))):
        if variant != other:
            with pytest.raises(UsageError, match="edited after its first trial"):
                begin_study(tmp_path, variant, blind=False)
    carry_out(begin_study(tmp_path, other, blind=False), 2)
    with pytest.raises(UsageError, match="edited after its first trial"):
        begin_study(tmp_path, protocol, blind=False)
    sheet = tmp_path / "protocol.json"
    sheet.write_text(sheet.read_text().replace('"swapped": true', '"swapped": false', 1))
    with pytest.raises(UsageError, match="edited after its first trial; restore"):
        open_study(tmp_path)


def test_a_folder_with_other_files_is_refused_unchanged(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not a run"):
        begin_study(tmp_path, draw(), blind=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "run.json").write_text('{"arm": "mock"}')
    with pytest.raises(UsageError, match="a run without a protocol"):
        begin_study(tmp_path, draw(), blind=False)
    assert open_study(tmp_path) is None


def test_an_interrupted_trial_is_void_with_that_reason_and_run_again(tmp_path):
    protocol = draw()
    study = begin_study(tmp_path, protocol, blind=False)
    carry_out(study, 2)
    for cut in range(ATTEMPTS + 2):  # an interruption does not use up a layout's attempts
        begin_trial(study, study.pending()[0])
        study = begin_study(tmp_path, protocol, blind=False)
        last = study.trials()[-1]
        assert (last.trial, last.success, last.note) == (2, None, "interrupted: the run ended during this trial")
        assert len(study.trials()) == 3 + cut
        assert study.pending()[0].trial == 2
    assert len(begin_study(tmp_path, protocol, blind=False).trials()) == 3 + cut  # each only once
    carry_out(study, 1)
    assert study.pending()[0].trial == 3


def test_a_trial_that_is_in_the_journal_was_not_interrupted(tmp_path):
    study = begin_study(tmp_path, draw(), blind=False)
    row = study.pending()[0]
    begin_trial(study, row)
    note = (tmp_path / "begun.json").read_text()
    end_trial(study, result(study, row, True))
    (tmp_path / "begun.json").write_text(note)  # killed after the journal entry, before the note was removed
    assert [trial.success for trial in begin_study(tmp_path, draw(), blind=False).trials()] == [True]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_study_resumes_from_a_journal_cut_at_any_byte(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("torn")
    protocol = draw(trials=1)
    study = begin_study(folder, protocol, blind=False)
    carry_out(study, 2)
    row = study.pending()[0]
    begin_trial(study, row)
    whole = (folder / JOURNAL).read_bytes()
    end_trial(study, result(study, row, False))
    begin_trial(study, study.pending()[0])  # so that a note of a begun trial exists, for any trial
    longer = (folder / JOURNAL).read_bytes()
    cut = data.draw(st.integers(len(whole), len(longer)))
    (folder / JOURNAL).write_bytes(longer[:cut])
    again = begin_study(folder, protocol, blind=False)
    carry_out(again, 99)
    trials = again.trials()
    assert [trial.trial for trial in trials if trial.success is not None] == [0, 1, 2, 3]
    is_whole = cut >= len(longer) - 1  # all but the line's end
    assert [trial.success for trial in trials if trial.trial == 2][-1] is (not is_whole)
    assert len((folder / JOURNAL).read_text().splitlines()) == len(trials)


def test_a_void_trial_needs_a_reason_and_a_label_must_be_valid(tmp_path):
    study = begin_study(tmp_path, draw(), blind=False)
    row = study.pending()[0]
    begin_trial(study, row)
    with pytest.raises(DatasetError, match="trial 0 is void without a reason"):
        end_trial(study, result(study, row, None, note=" "))
    with pytest.raises(DatasetError, match="trial 0 has the label 'maybe'; choices: true, false, or null"):
        end_trial(study, result(study, row, "maybe"))  # type: ignore[arg-type]
    assert study.trials() == []


def test_a_row_stays_void_after_too_many_attempts(tmp_path):
    study = begin_study(tmp_path, draw(), blind=False)
    for attempt in range(ATTEMPTS):
        row = study.pending()[0]
        assert row.trial == 0, attempt
        begin_trial(study, row)
        end_trial(study, result(study, row, None, "the object fell off the table"))
    assert study.pending()[0].trial == 1


def test_a_row_of_another_protocol_is_detected(tmp_path):
    study = begin_study(tmp_path, draw(), blind=False)
    carry_out(study, 1)
    path = tmp_path / JOURNAL
    row = json.loads(path.read_text())
    for change in ({"seed": 5}, {"trial": 99}, {"policy": "Z"}):
        path.write_text(json.dumps(row | change) + "\n")
        with pytest.raises(DatasetError, match="is not the sheet's"):
            study.trials()


def test_a_blind_study_reveals_the_letters_only_at_its_end(tmp_path):
    protocol = draw(trials=1)
    study = begin_study(tmp_path, protocol, blind=True)
    carry_out(study, 3)
    study = begin_study(tmp_path, protocol, blind=False)  # the study stays blind
    assert [study.name(letter) for letter in "AB"] == ["A", "B"]
    assert study.name("A", unblind=True) == protocol.policies["A"]
    assert "outputs" not in (tmp_path / JOURNAL).read_text()
    carry_out(study, 1)
    assert {study.name(letter) for letter in "AB"} == set(POLICIES)


def test_a_study_that_began_with_names_cannot_become_blind(tmp_path):
    assert begin_study(tmp_path, draw(), blind=False).blind is False
    study = begin_study(tmp_path, draw(), blind=True)  # no trial was run yet
    assert study.blind
    other = begin_study(tmp_path / "b", draw(), blind=False)
    carry_out(other, 1)
    with pytest.raises(UsageError, match="names shown"):
        begin_study(tmp_path / "b", draw(), blind=True)


# --- the command, on the mock arm


class Still:
    """A policy that holds its position for three control steps."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reset(self, seed: int) -> None:
        self._steps_left = 3

    def act(self, observation: Observation) -> ActionChunk | None:
        self._steps_left -= 1
        bad = np.nan if "nan" in self.name else 0.04
        return ActionChunk(np.array([[0.40, 0.0, 0.25, bad]]), TCP_NAMES) if self._steps_left >= 0 else None


@pytest.fixture
def still(monkeypatch):
    """Replaces checkpoints by policies that do not move. The mock arm and the recording are real."""
    from srpo_robot.cli import protocols

    screens: list[str] = []

    def load(name: str, space, work, device: str, screen: str) -> Still:
        screens.append(screen)
        return Still(name)

    monkeypatch.setattr(protocols, "load_any_policy", load)
    return screens


def write_sheet(cli, path: Path, *policies: str, trials: int = 2) -> None:
    options = [word for name in policies for word in ("--policy", name)]
    code, out, err = cli("protocol", "--task", "put-apple", *options, "--trials", trials, "--output", path)
    assert code == 0, err
    assert f"{trials * len(policies)} trials" in out


def test_a_protocol_runs_stops_and_resumes_on_the_mock(cli, tmp_path, still, monkeypatch):
    from srpo_robot.buffer.opening import open_buffer
    from srpo_robot.cli import protocols
    from srpo_robot.cli.protocols import run_protocol

    path, output = tmp_path / "study.json", tmp_path / "out"
    write_sheet(cli, path, "sft", "awr")
    run = protocols.ProtocolRunner.run

    def cut(bench, row, layout):
        if row.trial == 2 and not (output / "cut").exists():
            (output / "cut").touch()
            with monkeypatch.context() as patch:
                patch.setattr(Still, "act", interrupted)
                return run(bench, row, layout)
        return run(bench, row, layout)

    def interrupted(self, observation):
        raise KeyboardInterrupt

    monkeypatch.setattr(protocols.ProtocolRunner, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        run_protocol(RunOptions(output=output, protocol=path, blind=True, device="cpu"))
    study = open_study(output)
    assert study is not None
    assert [(t.trial, t.success) for t in study.trials()] == [(0, False), (1, False), (2, None)]
    assert study.trials()[-1].note == "interrupted: ended by hand"
    code, out, err = cli("run", "--protocol", path, "--output", output, "--json", tmp_path / "run.json")
    assert code == 0, err
    trials = study.trials()
    assert [(t.trial, t.success) for t in trials[3:]] == [(2, False), (3, False)]
    assert set(still) == {"A", "B"}  # the operator's screen shows no name
    assert "sft" in out  # the names are shown at the end
    buffer = open_buffer(output / "dataset")
    assert len(buffer.episodes) == 4
    assert [t.episode_index for t in trials if t.success is not None] == [0, 1, 2, 3]
    for trial in trials:
        layout = next(x for x in study.protocol.sheet.layouts if x.seed == trial.seed)
        assert {key: trial.layout[key] for key in layout.scene} == layout.scene
    assert len(json.loads((tmp_path / "run.json").read_text())["trials"]) == 5
    refused(cli("run", "--protocol", path, "--output", output, "--seed", 4), "leave out --seed")


def test_a_nan_policy_is_void_three_times_and_the_study_continues(cli, tmp_path, still):
    path, output = tmp_path / "study.json", tmp_path / "out"
    write_sheet(cli, path, "nan", "awr", trials=1)
    code, _, err = cli("run", "--protocol", path, "--output", output)
    assert code == 0, err
    study = open_study(output)
    assert study is not None
    assert Counter(t.success for t in study.trials()) == {None: ATTEMPTS, False: 1}
    assert all("NaN" in t.note for t in study.trials() if t.success is None)
    refused(cli("compare", output), "no trial that counts")


def test_a_fault_is_the_reason_of_a_void_trial(cli, tmp_path, still, monkeypatch):
    path, output = tmp_path / "study.json", tmp_path / "out"
    write_sheet(cli, path, "sft", trials=1)

    def fault(self, observation):
        raise ArmError("controller error 31: collision")

    with monkeypatch.context() as patch:
        patch.setattr(Still, "act", fault)
        code, _, err = cli("run", "--protocol", path, "--output", output)
    assert code == 1
    assert "collision" in err
    study = open_study(output)
    assert study is not None
    assert [(t.success, t.note) for t in study.trials()] == [(None, "controller error 31: collision")]
    assert cli("run", "--protocol", path, "--output", output)[0] == 0
    assert [t.success for t in study.trials()] == [None, False]


def test_a_recipe_with_another_scene_is_detected_before_the_first_trial(cli, tmp_path, still, monkeypatch):
    from srpo_robot.recipes import packaged_folder

    path = tmp_path / "study.json"
    write_sheet(cli, path, "sft")
    (tmp_path / "datasets").mkdir()
    text = (packaged_folder("datasets") / "put_apple.toml").read_text()
    odd = re.sub(r"distractors = \[[^]]*\]", 'distractors = ["cube", "can"]', text)
    assert odd != text
    (tmp_path / "datasets" / "put_apple.toml").write_text(odd)
    monkeypatch.chdir(tmp_path)
    refused(cli("run", "--protocol", path, "--output", tmp_path / "out"), "is not what the task put-apple lays out")
    assert not (tmp_path / "out").exists()


def test_conflicting_options_are_refused(cli, tmp_path):
    refused(cli("run", "--output", tmp_path / "o", "--blind"), "--blind needs --protocol")
    refused(cli("run", "--output", tmp_path / "o", "--policy", "x"), "give --policy and --task, or --protocol")
    refused(
        cli("run", "--output", tmp_path / "o", "--protocol", tmp_path / "no.json"), "no sheet at", "srpo-robot prot"
    )
    both = ("--policy", "a", "--policy", "a", "--task", "put-apple", "--output", tmp_path / "s.json")
    refused(cli("protocol", *both), "--policy a is given twice")
    odd = ("--policy", "a", "--task", "fold-laundry", "--output", tmp_path / "s.json")
    refused(cli("protocol", *odd), "no recipe 'fold-laundry'")
    assert list(tmp_path.iterdir()) == []


# --- the command with a person, on the real driver and the mock lab


@pytest.mark.real_time
def test_a_trial_redone_by_a_person_is_void_with_a_listed_reason(cli, tmp_path, monkeypatch):
    from test_mock_lab import CELL, TASK, XARM
    from test_run_xarm7 import Hands, Nudge

    from srpo_robot.cli import protocols, sessions
    from srpo_robot.mock.lab import MockLab
    from srpo_robot.recipes import dump

    path, output = tmp_path / "study.json", tmp_path / "out"
    hands = Hands(
        {
            "Enter sends the arm home": ["\n", "\n", "q"],
            "Enter starts the policy": ["\n", "\n"],
            "Why is it void?": ["x"],
            "'x' is no answer": ["t"],
        }
    )
    pressed = iter("rs")  # during the first trial, and during its repetition
    nudge = Nudge(lambda: hands.press(next(pressed)), steps=40)
    monkeypatch.setattr(protocols, "load_any_policy", lambda *_: nudge)
    monkeypatch.setattr(sessions, "say", hands.hear)
    stdin = os.fdopen(os.dup(hands.program))
    monkeypatch.setattr("sys.stdin", stdin)
    with MockLab(CELL, TASK) as lab:
        (tmp_path / "lab.toml").write_text(dump(lab.recipe(XARM)))
        sheet = ("--task", "put-apple", "--policy", "secret-policy", "--trials", 2, "--arm", tmp_path / "lab.toml")
        assert cli("protocol", *sheet, "--output", path)[0] == 0
        code, out, err = cli("run", "--protocol", path, "--output", output, "--by-hand", "--blind")
    stdin.close()
    hands.close()
    assert code == 0, err
    study = open_study(output)
    assert study is not None
    assert [(t.trial, t.success, t.note) for t in study.trials()] == [
        (0, None, "redone by hand: somebody or something touched arm, objects or table"),
        (0, True, ""),
        (1, None, "interrupted: ended by hand"),
    ]
    assert any("'x' is no answer; choices: l, t, c, a, k" in line for line in hands.messages)
    assert "1 trials are left" in out
    assert "secret-policy" not in "".join(out.split())  # blind
    assert (output / "trials" / "000_before_1").is_dir()
