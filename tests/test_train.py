"""The training loop on a tiny real pi0: exact resume, exact seeds, whole checkpoints, refusals."""

import json
import math
import os
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.datasets.sampler import EpisodeAwareSampler
from safetensors.torch import load_file
from test_policies import RECIPE, record_dataset

from srpo_robot.awr import train as training
from srpo_robot.awr.losses import per_sample_loss
from srpo_robot.awr.policies import build_policy, load_policy
from srpo_robot.awr.train import last_checkpoint, train
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import TrainingError, UsageError


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("train") / "walks")


@pytest.fixture(scope="module")
def weights(buffer):
    return np.random.default_rng(0).exponential(size=buffer.total_frames)


@pytest.fixture(scope="module")
def finished(buffer, weights, tmp_path_factory):
    """A run of four steps; twelve frames in batches of four, so that it crosses an epoch. Read-only by agreement."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train(buffer, RECIPE, weights, output, provenance={"advantage": "abc"}, device="cpu")
    return output


def metrics(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def interrupt_after(step):
    def on_step(now, *_):
        if now == step:
            raise KeyboardInterrupt

    return on_step


def test_a_run_leaves_lerobots_layout_and_our_record(buffer, weights, finished):
    checkpoint = last_checkpoint(finished)
    assert checkpoint.name == "000004"
    assert (finished / "checkpoints" / "last").resolve() == checkpoint.resolve()
    model, state = checkpoint / "pretrained_model", checkpoint / "training_state"
    for name in ("config.json", "model.safetensors", "train_config.json", "policy_preprocessor.json", "srpo.json"):
        assert (model / name).is_file(), name
    assert (state / "optimizer_state.safetensors").is_file()
    assert not list((finished / "checkpoints").glob(".partial*"))
    record = json.loads((model / "srpo.json").read_text())
    assert record["recipe"]["learning_rate"] == RECIPE.learning_rate
    assert (record["tiny"], record["seed"], record["step"]) == (RECIPE.tiny, 5, 4)
    assert record["dataset"]["fingerprint"] == buffer.fingerprint
    assert record["provenance"] == {"advantage": "abc"}
    policy, *_ = load_policy(finished)
    assert policy.config.use_relative_actions


def test_metrics_are_one_line_a_step(finished):
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[0]["lr"] == pytest.approx(RECIPE.learning_rate / 2)  # the first of one warmup step
    assert lines[3]["lr"] < lines[1]["lr"] <= RECIPE.learning_rate
    assert len({line["mean_weight"] for line in lines}) > 1


def test_the_loss_is_the_weighted_one(buffer, finished, weights):
    policy, preprocessor, _ = build_policy(RECIPE, buffer)
    rows = list(EpisodeAwareSampler([0, 7], [7, 12], shuffle=True, seed=5))[:4]
    training.seed_step(5, 1, 0)
    losses = per_sample_loss(policy, preprocessor(TrainingSet(buffer, 4).__getitems__(rows)))
    want = float((losses.detach().numpy() * weights[rows]).mean())
    assert metrics(finished)[0]["loss"] == pytest.approx(want, rel=1e-5)
    assert metrics(finished)[0]["mean_weight"] == pytest.approx(weights[rows].mean(), rel=1e-5)


def test_same_seed_same_run_whatever_was_drawn_before(buffer, weights, finished, tmp_path):
    torch.manual_seed(123)
    train(buffer, RECIPE, weights, tmp_path / "again", device="cpu")
    assert metrics(tmp_path / "again") == metrics(finished)
    train(buffer, replace(RECIPE, seed=6), weights, tmp_path / "other", steps=1, device="cpu")
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(finished)[0]["loss"]


@pytest.mark.parametrize("ema_decay", [0.9, 0.0], ids=["ema", "no ema"])
def test_resume_repeats_an_uninterrupted_run_exactly(buffer, weights, tmp_path, ema_decay):
    recipe = replace(RECIPE, ema_decay=ema_decay)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(buffer, recipe, weights, whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(buffer, recipe, weights, parts, device="cpu", on_step=interrupt_after(2))
    assert last_checkpoint(parts).name == "000002"
    with (parts / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 9}\n{"step": 4, "lo')  # what a crash leaves
    torch.manual_seed(77)
    train(buffer, recipe, weights, parts, resume=True, device="cpu")
    assert metrics(parts) == metrics(whole)
    for name in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        one, other = (load_file(last_checkpoint(run) / name) for run in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_more_steps_can_be_added(buffer, weights, tmp_path):
    train(buffer, RECIPE, weights, tmp_path / "run", steps=1, device="cpu")
    with pytest.raises(UsageError, match="is trained to step 1; give --steps above that"):
        train(buffer, RECIPE, weights, tmp_path / "run", resume=True, device="cpu")
    train(buffer, RECIPE, weights, tmp_path / "run", resume=True, steps=2, device="cpu")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_the_checkpoint_carries_the_average(finished):
    averaged = load_file(last_checkpoint(finished) / "pretrained_model" / "model.safetensors")
    raw = load_file(last_checkpoint(finished) / "training_state" / "raw_weights.safetensors")
    assert averaged.keys() == raw.keys()
    assert not torch.equal(averaged["model.state_proj.weight"], raw["model.state_proj.weight"])


def test_average_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    ema = training._Ema(layer, 0.3)
    for step, value in ((1, 2.0), (1000, 4.0)):
        torch.nn.init.constant_(layer.weight, value)
        ema.update(step)
    first = 1.0 * 2 / 11 + 2.0 * 9 / 11  # (1 + t) / (10 + t) is below 0.3 at the first step
    assert float(ema.state_dict(layer)["weight"]) == pytest.approx(0.3 * first + 0.7 * 4.0)


def test_ctrl_c_finishes_the_step_and_saves_it(buffer, weights, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press(step, *_):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(buffer, RECIPE, weights, tmp_path / "run", on_step=press, device="cpu")
    assert last_checkpoint(tmp_path / "run").name == "000002"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_crash_while_saving_leaves_the_checkpoint_before(buffer, weights, tmp_path, monkeypatch):
    recipe, real = replace(RECIPE, save_every=1), training.write_record

    def crash_at_2(folder, preprocessor, record):
        if record["step"] == 2:
            raise OSError("disk full")
        real(folder, preprocessor, record)

    monkeypatch.setattr(training, "write_record", crash_at_2)
    with pytest.raises(OSError, match="disk full"):
        train(buffer, recipe, weights, tmp_path / "run", device="cpu")
    assert last_checkpoint(tmp_path / "run").name == "000001"
    monkeypatch.setattr(training, "write_record", real)
    train(buffer, recipe, weights, tmp_path / "run", resume=True, device="cpu")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "000001", "000002", "000003", "000004", "last",
    ]  # fmt: skip


def test_output_that_exists_is_not_overwritten(buffer, weights, finished):
    with pytest.raises(UsageError, match=r"exists; go on with it: --resume, or write elsewhere: --output"):
        train(buffer, RECIPE, weights, finished, device="cpu")


def test_resume_with_something_else_is_refused(buffer, weights, finished, tmp_path):
    again = {"resume": True, "steps": 9, "device": "cpu"}
    with pytest.raises(UsageError, match=r"another learning_rate \(then 0.01, now 0.02\); start a new run"):
        train(buffer, replace(RECIPE, learning_rate=0.02), weights, finished, **again)
    with pytest.raises(UsageError, match="another set of weights"):
        train(buffer, RECIPE, weights + 1, finished, **again)
    with pytest.raises(UsageError, match="has no checkpoint to resume"):
        train(buffer, RECIPE, weights, tmp_path / "nothing", **again)
    other = record_dataset(tmp_path / "other", (6, 6))
    with pytest.raises(UsageError, match="another dataset"):
        train(other, RECIPE, weights, finished, **again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], "11,.* weights for 12 frames"),
        (lambda w: w * 0, "every weight is zero"),
        (lambda w: np.where(np.arange(12) == 3, np.nan, w), "1 weights are negative, NaN .* frame 3"),
        (lambda w: np.where(np.arange(12) > 4, -1.0, w), "7 weights .* frame 5"),
    ],
)
def test_unusable_weights(buffer, weights, tmp_path, change, message):
    with pytest.raises(TrainingError, match=message):
        train(buffer, RECIPE, change(weights), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_frames_of_weight_zero_teach_nothing(buffer, tmp_path):
    """Two datasets' worth of weights that differ only in frames of weight zero cannot be told apart by the loss."""
    only = np.zeros(buffer.total_frames)
    only[0] = 12.0
    train(buffer, RECIPE, only, tmp_path / "run", steps=3, device="cpu")
    lines = metrics(tmp_path / "run")
    assert sum(line["mean_weight"] for line in lines) == pytest.approx(3.0)  # one epoch: frame 0 is drawn once
    assert [line["loss"] > 0 for line in lines] == [line["mean_weight"] > 0 for line in lines]


def test_a_loss_that_is_not_finite_stops_the_run(buffer, weights, tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30, warmup_steps=0, steps=40)
    with pytest.raises(TrainingError, match="NaN or infinite"):
        train(buffer, recipe, weights, tmp_path / "run", device="cpu")


def test_frames_read_from_disk_train_alike(buffer, weights, finished, tmp_path, monkeypatch):
    pickle.dumps(TrainingSet(buffer, 4, cache_gb=0.0))  # spawned workers need that; starting one takes 10 s
    monkeypatch.setattr(training, "decoding_workers", lambda: 0)
    train(buffer, replace(RECIPE, cache_gb=0.0), weights, tmp_path / "disk", device="cpu")
    assert metrics(tmp_path / "disk") == metrics(finished)
