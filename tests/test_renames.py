"""Tests of old names: each works and warns once with the new name. Recorded data is read without a warning."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused

from srpo_robot.errors import RecipeError
from srpo_robot.evaluation.protocol import read_protocol
from srpo_robot.evaluation.trial_log import STEPS, read_log
from srpo_robot.evaluation.trials import append_trial, read_trials
from srpo_robot.progress.pipeline import read_provenance
from srpo_robot.recipes import PolicyRecipe, digest, load, packaged_folder
from srpo_robot.records import Trial
from srpo_robot.renames import OPTIONS, RECIPE_KEYS, REFERENCES, STEP_VALUES, RenamedWarning, current, current_keys

TABLES = (OPTIONS, STEP_VALUES, REFERENCES, RECIPE_KEYS)


def check_warning(err: str, old: str, new: str) -> None:
    """Asserts that exactly one warning line mentions `old`, and that it names `new`."""
    lines = [line for line in err.splitlines() if repr(old) in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("warning:") and repr(new) in lines[0]


@pytest.mark.parametrize(("old", "new"), [pair for table in TABLES for pair in table.items()])
def test_an_old_name_becomes_the_new_one_with_a_warning(old: str, new: str):
    (table,) = [table for table in TABLES if old in table]
    with pytest.warns(RenamedWarning, match=new):
        assert current(old, table) == new


@pytest.mark.parametrize("table", TABLES)
def test_new_and_unknown_names_pass_without_a_warning(table: dict[str, str]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (*table.values(), "progress", "--seed", ""):
            assert current(name, table) == name


def test_no_new_name_is_also_an_old_name():
    for table in TABLES:
        assert not table.keys() & set(table.values())


def test_keys_of_recorded_data_are_renamed_without_a_warning():
    row = {"looks": 0.5, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current_keys(row, {"looks": "randomization"}) == {"randomization": 0.5, "seed": 3}
    assert row == {"looks": 0.5, "seed": 3}


def test_a_journal_with_the_old_key_is_read_without_a_warning(tmp_path: Path):
    trial = Trial(
        trial=0, task="put the apple", policy="sft", seed=1, success=True, steps=10, seconds=1.0, limited_by={"box": 2}
    )
    append_trial(tmp_path, trial)
    path = tmp_path / "trials.jsonl"
    row = json.loads(path.read_text())
    row["clips"] = row.pop("limited_by")
    path.write_text(json.dumps(row) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_trials(tmp_path) == [trial]


# --- on the command line ------------------------------------------------------------------------------------------


def write_sheet(cli, path: Path, *options: str) -> str:
    common = ("--task", "put-apple", "--policy", "sft", "--policy", "awr", "--trials", 2, "--output", path)
    code, _, err = cli("protocol", *common, *options)
    assert code == 0, err
    return err


@pytest.mark.parametrize("options", [("--looks", "0.5"), ("--looks=0.5",)])
def test_an_old_option_works_and_warns_once(cli, tmp_path: Path, options: tuple[str, ...]):
    check_warning(write_sheet(cli, tmp_path / "sheet.json", *options), "--looks", "--randomization")
    assert read_protocol(tmp_path / "sheet.json").sheet.randomization == 0.5


def test_the_new_option_does_not_warn(cli, tmp_path: Path):
    assert "warning" not in write_sheet(cli, tmp_path / "sheet.json", "--randomization", "0.5")


def test_the_value_of_an_old_option_is_checked_like_that_of_the_new_one(cli, tmp_path: Path):
    code, _, err = cli("record", "--task", "put-apple", "--episodes", 1, "--root", tmp_path / "d", "--looks", "2")
    assert code == 2
    assert "--randomization" in err


def test_a_sheet_with_the_old_key_is_read_without_a_warning(cli, tmp_path: Path):
    path = tmp_path / "sheet.json"
    write_sheet(cli, path, "--randomization", "0.25")
    content = json.loads(path.read_text())
    content["looks"] = content.pop("randomization")
    path.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_protocol(path).sheet.randomization == 0.25


def test_a_study_keeps_the_digest_that_it_was_begun_with(cli, tmp_path: Path):
    path = tmp_path / "sheet.json"
    write_sheet(cli, path, "--randomization", "0.25")
    protocol = read_protocol(path)
    content = asdict(protocol.sheet)
    content["looks"] = content.pop("randomization")
    assert protocol.digest == digest({"sheet": content, "policies": protocol.policies})


def test_a_run_begun_under_the_old_key_goes_on(cli, tmp_path: Path):
    output = tmp_path / "run"
    output.mkdir()
    settings = {"arm": "mock", "task": "put-apple", "policy": "./x", "seed": 10_000, "looks": 0.0}
    (output / "run.json").write_text(json.dumps(settings))
    run = ("run", "--task", "put-apple", "--policy", "./x", "--output", output)
    refused(cli(*run), "no checkpoint ./x")  # the run itself is accepted
    refused(cli(*run, "--randomization", "0.5"), "holds another run")


def test_a_log_with_the_old_column_is_read(tmp_path: Path):
    pq.write_table(pa.table({"step": [0, 1], "clips": ["", "joint_step"]}), tmp_path / "steps.parquet")
    assert read_log(tmp_path, STEPS)["limited_by"].tolist() == ["", "joint_step"]


def test_old_step_values_references_and_recipe_keys_work_and_warn_once(
    cli, squares_copy: Path, tiny_encoder_folder: Path, tmp_path: Path
):
    from srpo_robot.buffer.opening import open_buffer

    score = ("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)
    code, _, err = cli(*score, "--value", "phase", "--references", "nn2")
    assert code == 0, err
    check_warning(err, "phase", "knn-time")
    check_warning(err, "nn2", "dbscan-auto")
    config = read_provenance(open_buffer(squares_copy)).config
    assert (config.value_name, config.references) == ("knn-time", "dbscan-auto")
    metadata = pq.read_schema(squares_copy / "srpo" / "progress.parquet").metadata[b"srpo"]
    assert b"phase" not in metadata and b"nn2" not in metadata

    recipe = tmp_path / "old.toml"
    recipe_text = (packaged_folder("policies") / "pi0_tiny.toml").read_text()
    recipe.write_text('timestep_weights = true\nvalue = "phase"\n' + recipe_text)
    code, _, err = cli("weights", squares_copy, "--policy", recipe)
    assert code == 0, err
    check_warning(err, "timestep_weights", "action_weights")
    check_warning(err, "phase", "knn-time")


def test_an_unknown_name_is_not_treated_as_an_old_name(cli, squares_copy: Path):
    refused(cli("score-dataset", squares_copy, "--value", "phases"), "no value 'phases'", "knn-time")


def test_a_recipe_with_both_names_of_a_key_is_refused(tmp_path: Path):
    recipe = tmp_path / "both.toml"
    recipe.write_text('name = "x"\nfamily = "pi0"\ntimestep_weights = true\naction_weights = false\n')
    with pytest.raises(RecipeError, match="'timestep_weights' is the old name of 'action_weights'"):
        load(PolicyRecipe, "policies", str(recipe))
