"""Sizes of a training run, computed before weights are loaded or anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from srpo_robot.awr import policies
from srpo_robot.awr.sampling import held_out
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.training import cached_bytes
from srpo_robot.recipes import PolicyRecipe


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Sizes of a run.

    Attributes:
        parameters: number of parameters of the policy, LoRA's among them.
        trained: number of parameters that train.
        memory: [bytes] of one process by content; every data-parallel process holds all of it.
        cached_frames: [bytes] of decoded frames that each process keeps in main memory; 0 if they do not fit.
        steps: number of optimizer steps.
        samples_per_step: number of samples over all passes and processes.
        batch: the factors of `samples_per_step`, in words.
        trained_frames: number of frames in the episodes that are not held out.
        held_out: number of held-out episodes.
        episodes: number of all episodes.
        checkpoints: number of checkpoints that are written.
        checkpoint_bytes: [bytes] of one checkpoint.
    """

    parameters: int
    trained: int
    memory: dict[str, int]
    cached_frames: int
    steps: int
    samples_per_step: int
    batch: str
    trained_frames: int
    held_out: int
    episodes: int
    checkpoints: int
    checkpoint_bytes: int

    @property
    def epochs(self) -> float:
        """How often each frame is drawn on average."""
        return self.steps * self.samples_per_step / self.trained_frames


def plan_training(buffer: Buffer, recipe: PolicyRecipe, processes: int = 1) -> TrainingPlan:
    """Returns the sizes of training `recipe` on `buffer` with `processes` processes. Reads and makes no weights.

    Raises:
        SrpoRobotError: as `build_policy` and `sampling.held_out`.
    """
    policy = policies.outline(recipe, buffer)
    memory = memory_of(policy, recipe.ema_decay > 0)
    excluded = held_out(buffer.episodes, recipe.validation_share, recipe.seed)
    decoded = cached_bytes(buffer)
    checkpoint = memory["weights"] + memory["AdamW's two moments"] + memory.get("weights' average", 0)
    return TrainingPlan(
        parameters=sum(p.numel() for p in policy.parameters()),
        trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
        memory=memory,
        cached_frames=decoded if decoded <= recipe.cache_gb * 1e9 else 0,
        steps=recipe.steps,
        samples_per_step=recipe.batch_size * recipe.accumulate * processes,
        batch=f"batch_size {recipe.batch_size} x accumulate {recipe.accumulate} x {processes} processes",
        trained_frames=sum(e.length for e in buffer.episodes if e.index not in excluded),
        held_out=len(excluded),
        episodes=len(buffer.episodes),
        checkpoints=math.ceil(recipe.steps / recipe.save_every) if recipe.save_every > 0 else 1,
        checkpoint_bytes=checkpoint,
    )


def memory_of(policy: nn.Module, averaged: bool) -> dict[str, int]:
    """Returns the bytes that training `policy` holds from step to step, by content. Activations are not included.

    As in torch, a gradient and AdamW's moments have the dtype of their weight.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    sizes = {"weights": weights, "gradients": trained, "AdamW's two moments": 2 * trained}
    return sizes | ({"weights' average": trained} if averaged else {})
