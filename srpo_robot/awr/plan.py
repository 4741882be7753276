"""What a training would take, before anything is loaded or written."""

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
        parameters: of the policy, LoRA's among them.
        trained: of them, those that train.
        memory: [bytes] of one process by what they hold; data-parallel processes hold all of it each.
        cached_frames: [bytes] of decoded frames kept in main memory, by each process; 0 where they do not fit.
        steps: optimizer steps.
        samples_per_step: over all passes and processes.
        dealt: how those come about, in words.
        trained_frames: frames of the episodes that are not held out.
        held_out: episodes that are.
        episodes: all.
        checkpoints: number that is written.
        checkpoint_bytes: [bytes] of one.
    """

    parameters: int
    trained: int
    memory: dict[str, int]
    cached_frames: int
    steps: int
    samples_per_step: int
    dealt: str
    trained_frames: int
    held_out: int
    episodes: int
    checkpoints: int
    checkpoint_bytes: int

    @property
    def epochs(self) -> float:
        """How often each frame is drawn."""
        return self.steps * self.samples_per_step / self.trained_frames


def plan_training(buffer: Buffer, recipe: PolicyRecipe, processes: int = 1) -> TrainingPlan:
    """The plan of training `recipe` on `buffer` with `processes` processes.

    Raises:
        SrpoRobotError: as `build_policy` and `sampling.held_out`; no weights are read or made.
    """
    policy = policies.outline(recipe, buffer)
    memory = memory_of(policy, recipe.ema_decay > 0)
    kept = held_out(buffer.episodes, recipe.validation_share, recipe.seed)
    decoded = cached_bytes(buffer)
    written = memory["weights"] + memory["AdamW's two moments"] + memory.get("weights' average", 0)
    return TrainingPlan(
        parameters=sum(p.numel() for p in policy.parameters()),
        trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
        memory=memory,
        cached_frames=decoded if decoded <= recipe.cache_gb * 1e9 else 0,
        steps=recipe.steps,
        samples_per_step=recipe.batch_size * recipe.accumulate * processes,
        dealt=f"batch_size {recipe.batch_size} x accumulate {recipe.accumulate} x {processes} processes",
        trained_frames=sum(e.length for e in buffer.episodes if e.index not in kept),
        held_out=len(kept),
        episodes=len(buffer.episodes),
        checkpoints=math.ceil(recipe.steps / recipe.save_every) if recipe.save_every > 0 else 1,
        checkpoint_bytes=written,
    )


def memory_of(policy: nn.Module, averaged: bool) -> dict[str, int]:
    """Bytes that training `policy` holds from step to step, by what they are; activations are not among them.

    A gradient and AdamW's moments have the dtype of their weight, as torch makes them.
    """
    held = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    found = {"weights": held, "gradients": trained, "AdamW's two moments": 2 * trained}
    return found | ({"weights' average": trained} if averaged else {})
