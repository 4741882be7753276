"""Tests of `srpo-robot train-awr` on the command line: options, dry runs, and invalid requests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SQUARES, record_squares, refused

RECIPE = """
name = "smaller-than-tiny"
family = "pi0"
steps = 3
batch_size = 4
learning_rate = 1e-3
warmup_steps = 1
save_every = 2
{more}
[config]
chunk_size = 4
n_action_steps = 2
num_inference_steps = 2
image_resolution = [16, 16]
max_state_dim = 4
max_action_dim = 4
tokenizer_max_length = 8
[tiny]
width = 16
expert_width = 16
depth = 1
mlp = 16
head_dim = 4
vision_width = 16
vision_depth = 1
vision_heads = 2
vision_mlp = 16
patch = 8
vocab = 16
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_encoder_folder) -> Path:
    """A scored dataset. Tests must not change its progress.parquet."""
    import sys

    from srpo_robot.cli import main

    root = record_squares(tmp_path_factory.mktemp("scored") / "data", SQUARES)
    before = sys.argv
    sys.argv = ["srpo-robot", "score-dataset", str(root), "--encoder", str(tiny_encoder_folder), "--min-window", "6"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    finally:
        sys.argv = before
    return root


@pytest.fixture
def recipe(tmp_path):
    def write(more: str = "") -> Path:
        path = tmp_path / "smaller.toml"
        path.write_text(RECIPE.format(more=more))
        return path

    return write


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def made_from(output: Path) -> dict:
    return json.loads((output / "checkpoints" / "last" / "pretrained_model" / "srpo.json").read_text())


def test_a_dry_run_prints_sizes_and_writes_nothing(cli, dataset, recipe, tmp_path):
    train = ("train-awr", dataset, "--policy", recipe("validation_share = 0.25\naccumulate = 2"), "--dry-run")
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    code, out, err = cli(*train, "--output", tmp_path / "out")
    assert code == 0, err
    text = " ".join(out.split())
    for words in (
        "(100.0%)", "AdamW's two moments", "Not in it: activations",
        "3 optimizer steps of 8 samples (batch_size 4 x accumulate 2 x 1 processes)", "1 of 4 episodes held out",
        "2 checkpoints", "nothing was written",
    ):  # fmt: skip
        assert words in text, words
    assert not (tmp_path / "out").exists()
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    code, out, err = cli(*train[:2], "--policy", recipe("lora_rank = 2"), "--dry-run", "--output", tmp_path / "out")
    assert code == 0, err
    assert "(100.0%)" not in out


def test_options_override_recipe_keys_and_are_recorded(cli, dataset, recipe, tmp_path):
    options = ("--beta", 0.5, "--w-max", 7, "--horizon", 5, "--shift", 0, "--tail", "raw", "--kappa", 0.25)
    options += ("--baseline", "value", "--weights-as", "sampling")
    train = ("train-awr", dataset, "--policy", recipe(), "--accept-audit", "--output", tmp_path / "out")
    code, _, err = cli(*train, *options, "--track", "tensorboard", "--steps", 2)
    assert code == 0, err
    weighting = made_from(tmp_path / "out")["provenance"]["weighting"]
    want = {"beta": 0.5, "w_max": 7.0, "horizon": 5, "shift": 0, "tail": "raw", "kappa": 0.25}
    want |= {"baseline": "value"}
    assert {key: weighting[key] for key in want} == want
    assert made_from(tmp_path / "out")["recipe"]["weights_as"] == "sampling"
    assert list((tmp_path / "out" / "tensorboard").rglob("events.*"))


@pytest.mark.parametrize("scheme", ["rabc", "success", "uniform"])
def test_other_weights_need_no_audit(cli, dataset, recipe, tmp_path, scheme):
    train = ("train-awr", dataset, "--policy", recipe(), "--weights", scheme, "--output", tmp_path / "out")
    code, out, err = cli(*train, "--steps", 2)
    assert code == 0, err
    assert f"weights: {scheme}" in out
    assert made_from(tmp_path / "out")["provenance"]["weights"] == scheme
    assert [line["mean_weight"] == 1.0 for line in lines(tmp_path / "out")] == [scheme == "uniform"] * 2


def test_action_weights_can_be_trained(cli, dataset, recipe, tmp_path):
    train = ("train-awr", dataset, "--policy", recipe("action_weights = true"), "--output", tmp_path / "out")
    code, _, err = cli(*train, "--accept-audit")
    assert code == 0, err
    assert len(lines(tmp_path / "out")) == 3
    refused(cli(*train, "--weights", "rabc"), "action_weights are AWR's", "--weights awr")


def test_lora_trains_adapters_only_and_resumes(cli, dataset, recipe, tmp_path):
    from safetensors.torch import load_file

    from srpo_robot.awr.policies import load_policy

    train = ("train-awr", dataset, "--policy", recipe("lora_rank = 2"), "--weights", "uniform")
    code, _, err = cli(*train, "--output", tmp_path / "whole")
    assert code == 0, err
    raw = load_file(tmp_path / "whole" / "checkpoints" / "last" / "training_state" / "raw_weights.safetensors")
    assert raw
    assert all(".lora_" in name for name in raw)
    load_policy(tmp_path / "whole")
    assert cli(*train, "--output", tmp_path / "parts", "--steps", 3)[0] == 0
    last = tmp_path / "parts" / "checkpoints"
    for name in ("000003", "last"):  # the state after a crash at step 2
        (last / name).rename(tmp_path / name)
    code, _, err = cli(*train, "--output", tmp_path / "parts", "--resume")
    assert code == 0, err
    one, two = (load_file(tmp_path / run / "checkpoints" / "000003" / "training_state" / "raw_weights.safetensors")
                for run in ("whole", "parts"))  # fmt: skip
    assert all((one[name] == two[name]).all() for name in one)


REFUSALS = """
import json, sys
from srpo_robot.cli import main
for line in json.loads(sys.argv.pop()):
    sys.argv[1:] = line
    try:
        main()
    except SystemExit as stop:
        assert stop.code, line
print(sorted({"torch", "lerobot", "transformers", "accelerate", "pandas"} & set(sys.modules)))
"""


def test_typos_are_reported_before_torch_and_lerobot_are_imported(recipe, tmp_path):
    """These imports take seconds, and a typo must not wait for them."""
    blind = tmp_path / "blind"
    (blind / "meta").mkdir(parents=True)
    features = {"observation.state": {"dtype": "float32"}, "action": {"dtype": "float32"}}
    (blind / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "features": features}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    train = ["train-awr", str(tmp_path / "nowhere"), "--policy", str(recipe()), "--output", str(tmp_path / "out")]
    requests = {
        "no folder": train,
        "did you mean 'pi0-tiny'": [*train, "--policy", "pi0-tinny"],
        "no observation.images": ["train-awr", str(blind), *train[2:]],
        "no tracker 'x'": [*train, "--track", "x"],
        "beta 0.0": [*train, "--beta", "0"],
        "accumulate 0": [*train, "--policy", str(tmp_path / "wrong.toml")],
        "has no checkpoint to resume": [*train, "--resume"],
        "exists; go on": [*train, "--output", str(tmp_path / "full")],
        "no recipe 'pi'": ["weights", str(tmp_path / "nowhere"), "--policy", "pi"],
        "--betas is 'x'": ["weights", str(tmp_path / "nowhere"), "--betas", "x"],
        "w_max -1.0": ["export", str(tmp_path / "nowhere"), "--to", "weights", "--w-max", "-1"],
        "does not end in .parquet": ["export", str(tmp_path / "nowhere"), "--to", "rabc", "--output", "w.csv"],
        "the positive share is 1": ["export", str(tmp_path / "nowhere"), "--to", "recap", "--positive", "1"],
    }
    (tmp_path / "wrong.toml").write_text(RECIPE.format(more="accumulate = 0"))
    command = [sys.executable, "-c", REFUSALS, json.dumps(list(requests.values()))]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip().endswith("[]")
    message = " ".join(process.stderr.split())
    for words in requests:
        assert words in message, words


def test_invalid_recipes_are_refused_before_anything_is_written(cli, dataset, recipe, tmp_path):
    train = ("train-awr", dataset, "--policy", recipe(), "--output", tmp_path / "out", "--accept-audit")
    refused(cli(*train, "--horizon", 500), "horizon 500 is longer than every episode")
    refused(cli(*train, "--beta", 0), "must be positive")
    refused(cli(*train, "--w-max", -1), "must be positive")
    refused(cli(*train, "--track", "paper"), "no tracker 'paper'", "tensorboard, wandb")
    refused(cli(*train[:2], "--policy", recipe("accumulate = 0"), *train[4:]), "accumulate 0 must be at least 1")
    assert not (tmp_path / "out").exists()
