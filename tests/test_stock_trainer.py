"""Compares our trainer with lerobot's: with uniform weights, the losses equal those of lerobot's `train`.

lerobot's loop runs unchanged on the same dataset, checkpoint, seed and batch size, except for its random numbers.
lerobot draws noise and time from torch's global generator. Here they come from `FlowNoise`, as a function of the step.
pi0-FAST draws no noise, so only the loss is recorded.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from lerobot.scripts import lerobot_train
from test_policies import FAST, RECIPE, record_dataset

from srpo_robot.awr.families import family
from srpo_robot.awr.policies import build_policy, load_policy, write_record
from srpo_robot.awr.processors import in_lerobot, saved_tokenizers
from srpo_robot.awr.sampling import FlowNoise
from srpo_robot.awr.tiny import architecture
from srpo_robot.awr.train import LoopOptions, train
from srpo_robot.recipes import PolicyRecipe

STEPS = 20
FRAMES = (11, 9)  # 20 frames in batches of 4, since lerobot cuts a batch at an epoch's end and ours continues it


def plain(recipe: PolicyRecipe) -> PolicyRecipe:
    """Returns `recipe` with every option off that lerobot does not have."""
    same = {"padding": "trained", "token_balance": "batch", "ema_decay": 0.0, "steps": STEPS, "warmup_steps": 3}
    rates = {"learning_rate": 1e-3, "final_learning_rate": 1e-4}
    config = recipe.config | {"use_relative_actions": False}
    if "normalization_mapping" in config:  # lerobot estimates a dataset's quantiles from those of its episodes
        config |= {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}}
    return replace(recipe, **same, **rates, config=config)


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("stock") / "walks", FRAMES)


def starting_point(buffer, recipe, root: Path) -> Path:
    """Writes a checkpoint with fresh weights from which both trainers start. lerobot's config names the tokenizer."""
    policy, preprocessor, postprocessor = build_policy(recipe, buffer)
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(root)
    write_record(root, preprocessor, {"tiny": recipe.tiny})
    path = root / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    for step in content["steps"]:
        if step.get("registry_name") == "tokenizer_processor":
            step["config"]["tokenizer_name"] = str(root / "tokenizer")
        if step.get("registry_name") == "action_tokenizer_processor":  # lerobot does not save this file
            step["config"]["fast_skip_tokens"] = recipe.config["fast_skip_tokens"]
    path.write_text(json.dumps(content))
    return root


def stock_losses(buffer, recipe, start: Path, output: Path, monkeypatch) -> list[float]:
    """Returns the losses of `lerobot_train.train`, step by step."""
    policy, *_ = load_policy(start)
    config = policy.config
    config.pretrained_path, config.push_to_hub = start, False
    run = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="local/walks", root=str(buffer.root)),
        policy=config,
        output_dir=output,
        seed=recipe.seed,
        num_workers=0,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        save_checkpoint=False,
        log_freq=0,
        use_policy_training_preset=False,
        optimizer=config.get_optimizer_preset(),
        scheduler=CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=recipe.warmup_steps,
            num_decay_steps=recipe.steps,
            peak_lr=recipe.learning_rate,
            decay_lr=recipe.final_learning_rate,
        ),
    )
    losses: list[float] = []
    real = lerobot_train.update_policy

    def record_loss(metrics: Any, policy: Any, *rest: Any, **options: Any) -> Any:
        noise = FlowNoise(policy).rows((recipe.seed, len(losses) + 1), 0, recipe.batch_size)
        with noise:
            result = real(metrics, policy, *rest, **options)
        losses.append(metrics.loss.val)
        return result

    monkeypatch.setattr(lerobot_train, "update_policy", record_loss)
    monkeypatch.setattr(sys, "argv", ["lerobot-train"])
    kind, tokenizers = family(recipe.family), saved_tokenizers(start)
    with in_lerobot(kind, tokenizers), architecture(recipe.tiny, 16):  # sizes and tokenizers, no code
        lerobot_train.train(run)
    return losses


def our_losses(buffer, recipe, start: Path, output: Path) -> list[float]:
    train(
        buffer,
        replace(recipe, base=str(start), tiny={}),
        np.ones(buffer.total_frames),
        output,
        LoopOptions(device="cpu"),
    )
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("small_recipe", [RECIPE, FAST], ids=lambda recipe: recipe.family)
def test_plain_training_equals_lerobots_trainer(buffer, tmp_path, monkeypatch, small_recipe):
    recipe = plain(small_recipe)
    start = starting_point(buffer, recipe, tmp_path / "start")
    losses = our_losses(buffer, recipe, start, tmp_path / "ours")
    stock = stock_losses(buffer, recipe, start, tmp_path / "stock", monkeypatch)
    assert len(stock) == STEPS
    assert losses == pytest.approx(stock, rel=1e-4)
    assert np.ptp(stock) > 0.05 * np.mean(stock)  # steps differ by far more than the tolerance
    assert torch.get_default_dtype() is torch.float32
