"""`srpo-robot compare`: pairing of trials, reported statistics, and refusals."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import record_squares, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact

from srpo_robot.cli.comparing import score_effect
from srpo_robot.cli.console import shortened
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.comparison import (
    Contender,
    amount_effect,
    compare,
    how_many,
    in_order,
    matched,
    unresolved,
)
from srpo_robot.evaluation.protocol import begin_study, begin_trial, draw_protocol, end_trial, void_trial
from srpo_robot.evaluation.statistics import Pairs
from srpo_robot.evaluation.trials import append_trial
from srpo_robot.records import Trial


def trial(number: int, success: bool | None, seed: int | None = None, task: str = "apple", note: str = "") -> Trial:
    layout_seed = number if seed is None else seed
    return Trial(
        trial=number,
        task="go",
        policy="p",
        seed=layout_seed,
        success=success,
        steps=9,
        seconds=1.0,
        layout={"task": task},
        note=note,
        episode_index=number,
    )


def side(name: str, successes: Sequence[bool | None], first_seed: int = 0, task: str = "apple") -> Contender:
    rows = [trial(n, s, first_seed + n, task, "" if s is not None else "cable") for n, s in enumerate(successes)]
    return Contender(name, tuple(rows))


def write_run(folder: Path, successes: Sequence[bool | None], policy: str, **options) -> Path:
    folder.mkdir(parents=True)
    for row in side(policy, successes, **options).trials:
        append_trial(folder, replace(row, policy=policy))
    return folder


WORSE = [True] * 4 + [False] * 16
BETTER = [True] * 3 + [False] + [True] * 10 + [False] * 6


# --- the core


def test_equal_layouts_are_paired_by_hand():
    result = compare(side("sft", WORSE), side("awr", BETTER))
    assert result.pairs == Pairs(3, 1, 10, 6)
    assert result.by_layout
    assert result.effect.difference == pytest.approx(9 / 20)
    assert result.effect.p == pytest.approx(binomtest(10, 11).pvalue)
    assert result.unpaired.p == pytest.approx(fisher_exact([[4, 16], [13, 7]])[1])
    assert (result.rates[0].successes, result.rates[1].successes) == (4, 13)


def test_different_layouts_are_not_paired():
    result = compare(side("sft", WORSE), side("awr", BETTER, first_seed=500))
    assert result.paired is None
    assert not result.by_layout
    assert result.effect == result.unpaired
    assert result.interim.pairs == 20  # paired in order, because no layouts match


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=12), st.data())
def test_the_order_of_trials_does_not_matter_and_swapping_turns_the_sign(successes, data):
    a = side("a", [*successes, True])
    b = side("b", data.draw(st.lists(st.sampled_from([True, False]), min_size=len(a.trials), max_size=len(a.trials))))
    b_in_other_order = Contender("b", tuple(data.draw(st.permutations(b.trials))))
    forward, other_order, back = compare(a, b), compare(a, b_in_other_order), compare(b, a)
    assert other_order == forward
    assert back.effect.p == pytest.approx(forward.effect.p)
    assert back.effect[:3] == pytest.approx((-forward.effect[0], -forward.effect[2], -forward.effect[1]), abs=1e-6)
    assert back.interim.p == pytest.approx(forward.interim.p)


def test_void_trials_are_not_paired_and_a_repeated_one_is_not_missing():
    a = Contender("a", (trial(0, None, 5, note="cable"), trial(1, True, 5), trial(2, None, 6, note="cable")))
    b = Contender("b", (trial(0, True, 5), trial(1, True, 6)))
    assert [(x.trial, y.trial) for x, y in matched(a.trials, b.trials)] == [(1, 0)]
    assert [t.seed for t in unresolved(a.trials)] == [6]
    result = compare(a, b)
    assert result.void == (1, 0)
    assert result.if_void_failed is not None
    assert result.if_void_failed.difference == pytest.approx(1 / 2)  # 5: both, 6: b alone


def test_a_layout_tried_twice_makes_two_pairs_of_one_task_only():
    a = (trial(0, True, 5), trial(1, False, 5), trial(2, True, 5, task="pear"))
    b = (trial(0, False, 5), trial(1, False, 5))
    assert [(x.trial, y.trial) for x, y in matched(a, b)] == [(0, 0), (1, 1)]
    assert len(in_order(a, b)) == 2


def test_tasks_are_strata():
    a = Contender("a", side("a", WORSE).trials + side("a", BETTER, task="pear").trials)
    b = Contender("b", side("b", BETTER).trials + side("b", BETTER, task="pear").trials)
    result = compare(a, b)
    assert [row.task for row in result.tasks] == ["apple", "pear"]
    assert result.tasks[1].pairs == Pairs(13, 0, 0, 7)
    assert result.unpaired.difference == pytest.approx(9 / 40)


def test_runs_that_cannot_be_compared():
    with pytest.raises(UsageError, match="b has no trial that counts"):
        compare(side("a", WORSE), side("b", [None, None]))
    with pytest.raises(UsageError, match="different tasks: a was run on apple, b on pear; compare them on one with"):
        compare(side("a", WORSE), side("b", WORSE, task="pear"))


def test_how_many_more_trials_are_needed():
    estimate = how_many(compare(side("sft", WORSE), side("awr", BETTER)), 0.3)
    assert estimate.base == pytest.approx(6 / 24)
    assert estimate.total is not None
    assert estimate.more == estimate.total - 20
    assert estimate.sequential is not None
    assert estimate.sequential > estimate.total
    no_more = how_many(compare(side("a", [True, False] * 100), side("b", [True, False] * 100)), 0.3)
    assert no_more.more == 0


def test_an_amount_is_compared_if_it_is_known_and_stratified_by_task():
    a = side("a", [False, False, None, False]).trials
    b = side("b", [False, False, False, False]).trials
    b = tuple(replace(t, episode_index=10 + t.episode_index) for t in b)
    final = {0: 0.1, 1: 0.2, 2: 0.9, 3: math.nan, 10: 0.4, 11: 0.3, 12: 0.5, 13: 0.6}

    def progress(trial):
        return final.get(trial.episode_index, math.nan)

    effect, count = amount_effect(a, b, progress, by_layout=True)
    assert count == 2  # the third is void, the fourth has no progress
    assert effect.difference == pytest.approx((0.3 + 0.1) / 2)
    effect, count = amount_effect(a, b, progress, by_layout=False)
    assert count == 6
    assert effect.difference == pytest.approx((0.4 + 0.3 + 0.5 + 0.6) / 4 - 0.15)
    with pytest.raises(ValueError, match="no task"):
        amount_effect(a, b, lambda _: math.nan, by_layout=True)


def test_a_score_in_between_is_compared_and_one_that_repeats_success_is_not():
    def with_scores(name, scores):
        contender = side(name, [score == 1.0 for score in scores])
        trials = tuple(replace(t, score=score) for t, score in zip(contender.trials, scores, strict=True))
        return replace(contender, trials=trials)

    a, b = with_scores("a", [0.2, 0.4, 1.0]), with_scores("b", [0.5, 0.6, 1.0])
    effect = score_effect(a, b, compare(a, b), 0.05)
    assert effect is not None
    assert effect[0].difference == pytest.approx(0.5 / 3)
    assert effect[1] == 3
    a, b = with_scores("a", [0.0, 1.0]), with_scores("b", [1.0, 1.0])
    assert score_effect(a, b, compare(a, b), 0.05) is None
    assert score_effect(side("a", WORSE), side("b", BETTER), compare(side("a", WORSE), side("b", BETTER)), 0.05) is None


# --- the command


def test_two_runs_side_by_side(cli, tmp_path):
    sft = write_run(tmp_path / "sft", WORSE, "outputs/sft")
    awr = write_run(tmp_path / "awr", [*BETTER[:-1], None], "outputs/awr")
    code, out, err = cli("compare", sft, awr, "--json", tmp_path / "c.json")
    assert code == 0, err
    flat = " ".join(out.split())
    assert "awr succeeds 47 points more often than sft" in flat
    assert "go on, nothing is decided yet (p 0.064" in flat  # 10 wins of 11: 11! 12 / (10! 2^11)
    assert "To show 20 points from 25% with a chance of 80%:" in flat
    assert "Progress is not compared: where the trials were recorded is not known; give --dataset" in flat
    assert "void and never made good: 0 of sft, 1 of awr" in " ".join(err.split())
    row = json.loads((tmp_path / "c.json").read_text())["comparisons"][0]
    assert row["pairs"] == {"both": 3, "only_a": 1, "only_b": 10, "neither": 5}
    assert row["effect"]["p"] == pytest.approx(binomtest(10, 11).pvalue)
    assert row["needed"]["difference"] == 0.2


def test_three_runs_are_compared_with_the_baseline_and_adjusted(cli, tmp_path):
    runs = [write_run(tmp_path / name, rows, name) for name, rows in (("a", WORSE), ("b", BETTER), ("c", WORSE))]
    code, out, err = cli("compare", *runs, "--baseline", "b", "--json", tmp_path / "c.json")
    assert code == 0, err
    assert "p (Holm)" in " ".join(out.split())
    assert "a succeeds 45 points less often than b" in " ".join(out.split())
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["baseline"] == "b"
    p = binomtest(10, 11).pvalue
    assert [row["p_adjusted"] for row in content["comparisons"]] == pytest.approx([2 * p, 2 * p])
    refused(cli("compare", *runs, "--baseline", "z"), "no policy 'z' in these runs; there are: a, b, c")


def test_two_runs_of_one_policy_get_different_names(cli, tmp_path):
    runs = [write_run(tmp_path / name, WORSE, "outputs/awr") for name in ("a", "b")]
    code, out, err = cli("compare", *runs)
    assert code == 0, err
    assert "No difference between awr #2 and awr #1 is shown" in " ".join(out.split())
    refused(cli("compare", runs[0], runs[0]), "the same run is given twice")


def test_runs_of_different_tasks(cli, tmp_path):
    two_tasks = write_run(tmp_path / "both", WORSE, "a")
    for row in side("a", BETTER, task="pear").trials:
        append_trial(two_tasks, replace(row, policy="a"))
    one_task = write_run(tmp_path / "one", WORSE, "b")
    refused(cli("compare", two_tasks, one_task), "different tasks: a was run on apple, pear, b on apple", "--task")
    assert cli("compare", two_tasks, one_task, "--task", "apple")[0] == 0
    refused(cli("compare", two_tasks, one_task, "--task", "card"), "no trial of task 'card'; there are: apple, pear")


def test_bad_input_is_one_line(cli, tmp_path):
    good = write_run(tmp_path / "good", WORSE, "a")
    (tmp_path / "none").mkdir()
    refused(cli("compare", good, tmp_path / "none"), "no trials.jsonl")
    (tmp_path / "none" / "trials.jsonl").touch()
    refused(cli("compare", good, tmp_path / "none"), "has no trials yet")
    refused(cli("compare", good, write_run(tmp_path / "void", [None, None], "b")), "no trial that counts")
    refused(cli("compare", good), "a alone cannot be compared; give a second run")
    path = write_run(tmp_path / "odd", WORSE, "b") / "trials.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"success": true', '"success": "yes"', 1))
    refused(cli("compare", good, path.parent), "trial 0 has the label 'yes'; choices: true, false, or null")
    path.write_text(text.replace('"success": true', '"success": null', 1))
    refused(cli("compare", good, path.parent), "trial 0 is void without a reason")
    path.write_text(text.replace('"success": true', '"sucess": true', 1))
    refused(cli("compare", good, path.parent), "line 1 is not a trial")
    for option, value in (("--alpha", 0), ("--power", 1.5), ("--difference", 20)):
        refused(cli("compare", good, good, option, value), f"{option} is", "between 0 and 1")


def test_a_difference_that_is_too_large_gets_a_hint(cli, tmp_path):
    runs = [write_run(tmp_path / name, [True, False] * 5, name) for name in "ab"]
    code, out, _ = cli("compare", *runs, "--difference", 0.6)
    assert code == 0
    assert "give a smaller --difference" in out


# --- protocols


def study_of(folder: Path, blind: bool, rows: int) -> Path:
    """Makes a study of two policies on ten layouts. "better" succeeds on all of them, "worse" on none."""
    protocol = draw_protocol("mock", ["apple"], ["worse", "better"], 10, 3, lambda task, seed: {"task": task})
    study = begin_study(folder, protocol, blind)
    for row in study.pending()[:rows]:
        begin_trial(study, row)
        result = replace(void_trial(study, row, ""), success=protocol.policies[row.policy] == "better")
        end_trial(study, replace(result, episode_index=row.trial))
    return folder


def test_a_blind_study_keeps_its_names_to_itself_until_its_end(cli, tmp_path):
    code, out, err = cli("compare", study_of(tmp_path / "half", True, 12))
    assert code == 0, err
    assert "better" not in out
    assert "worse" not in out
    assert "100 points" in out
    assert "better succeeds 100 points more often" in cli("compare", tmp_path / "half", "--unblind")[1]
    code, out, _ = cli("compare", study_of(tmp_path / "whole", True, 20))
    assert code == 0
    assert "better succeeds 100 points more often than worse" in out  # the policy named first is the baseline
    assert "stop, the difference is shown, since number 8" in out  # 2^8 / 9 > 20


def test_an_edited_protocol_is_not_compared(cli, tmp_path):
    folder = study_of(tmp_path / "s", False, 20)
    key = folder / "protocol.key.json"
    key.write_text(key.read_text().replace("better", "best"))
    refused(cli("compare", folder), "does not belong to")


# --- progress


@pytest.fixture(scope="module")
def scored_study(tmp_path_factory, tiny_encoder_folder) -> Path:
    """Twelve recorded trials of a study, scored: the policy on odd rows goes further each time."""
    root = tmp_path_factory.mktemp("scored") / "data"
    reaches = [(0.3 + 0.05 * (n % 3)) if n % 2 else (0.75 + 0.02 * n) for n in range(12)]
    record_squares(root, [("go right", 14, reach, n in (0, 2, 4)) for n, reach in enumerate(reaches)], commit_every=12)
    return root


def test_progress_is_the_second_outcome(cli, tmp_path, scored_study, tiny_encoder_folder):
    run_folder = write_run(tmp_path / "run", [False, True] * 6, "x")
    rows = [json.loads(line) for line in (run_folder / "trials.jsonl").read_text().splitlines()]
    (run_folder / "trials.jsonl").write_text(
        "".join(
            json.dumps(row | {"policy": "near" if n % 2 else "far", "seed": n // 2}) + "\n"
            for n, row in enumerate(rows)
        )
    )
    shutil.copytree(scored_study, run_folder / "dataset")
    code, out, err = cli("compare", run_folder)
    assert code == 0, err
    assert "progress.parquet does not exist; run: srpo-robot score-dataset" in " ".join(out.split())
    score = ("--encoder", tiny_encoder_folder, "--min-window", 6, "--profile", "loo")
    assert cli("score-dataset", run_folder / "dataset", *score)[0] == 0
    code, out, err = cli("compare", run_folder, "--json", tmp_path / "c.json")
    assert code == 0, err
    assert "Final progress: near -" in out
    progress = json.loads((tmp_path / "c.json").read_text())["comparisons"][0]["progress"]
    assert progress["trials"] == 6
    assert progress["profile"] == "loo"
    assert progress["difference"] < 0
    assert progress["p"] == pytest.approx(2 / 64, abs=0.02)  # all six pairs have one sign
    unscored_run = write_run(tmp_path / "other", [False] * 6, "y")
    (unscored_run / "dataset").mkdir()
    out = cli("compare", run_folder, unscored_run)[1]
    assert "recorded to different datasets" in " ".join(out.split())
    assert np.isfinite(progress["low"])


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/sft/0", "runs/awr/0"], ["sft", "awr"]),
        (["runs/sft/0", "runs/sft/1"], ["0", "1"]),
        (["a/x", "b/y", "b/x"], ["a/x", "b/y", "b/x"]),
        (["runs/awr", "runs/awr/checkpoints/000100"], ["runs/awr", "runs/awr/checkpoints/000100"]),
        (["runs/awr"], ["runs/awr"]),
        (["A", "B"], ["A", "B"]),
    ],
)
def test_long_names_lose_their_common_part(names, short):
    assert shortened(names) == short
