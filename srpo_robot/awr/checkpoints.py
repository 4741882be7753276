"""Writes and reads checkpoints in lerobot's layout. A checkpoint is either whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from srpo_robot.awr.losses import LossOptions, per_sample_loss
from srpo_robot.awr.policies import WEIGHTS, plain_policy, write_record
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import CheckpointError, TrainingError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from accelerate import Accelerator, DistributedType  # noqa: E402  (after quiet_lerobot)
from lerobot.common.train_utils import (  # noqa: E402
    gather_fsdp_state_dicts,
    get_step_checkpoint_dir,
    load_fsdp_optimizer_state,
    load_training_state,
    save_checkpoint,
    update_last_checkpoint,
)
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402

RAW_WEIGHTS = "raw_weights.safetensors"  # the trained weights, if pretrained_model/ holds averaged or merged ones


class LossModule(nn.Module):
    """A policy whose forward pass returns its per-sample loss, because DDP and FSDP only act on `forward`.

    Attributes:
        policy: lerobot's policy, or peft's wrapper around it.
    """

    def __init__(self, policy: nn.Module, options: LossOptions) -> None:
        super().__init__()
        self.policy = policy
        self._options = options

    def forward(self, batch: dict[str, Any], action_weights: Tensor | None = None) -> Tensor:
        """Returns the losses (B,) of a preprocessed batch; see `per_sample_loss`."""
        return per_sample_loss(self.policy, batch, self._options, action_weights)


@dataclass(eq=False, kw_only=True)
class Run:
    """The parts of a training run, and everything that its checkpoints hold."""

    accelerator: Accelerator
    recipe: PolicyRecipe
    record: dict[str, Any]  # content of srpo.json
    output: Path
    loss_module: Any  # LossModule in accelerate's wrapper
    preprocessor: Any
    postprocessor: Any
    optimizer: Any
    scheduler: Any
    ema: Ema | None
    config: TrainPipelineConfig
    first_step: int  # 0, or the step to resume from

    @property
    def policy(self) -> Any:
        """The policy without the wrappers."""
        return self.accelerator.unwrap_model(self.loss_module).policy

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights (FSDP)."""
        return self.accelerator.distributed_type is DistributedType.FSDP


class Ema:
    """Exponential moving average of a policy's trainable weights.

    The decay grows as (1 + t) / (10 + t) up to its final value, so a short run does not average in its random start.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters: list[Tensor] = [p for p in policy.parameters() if p.requires_grad]
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the weights after `step`."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._average, self._parameters, step)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Gives the policy the averaged weights while the context is open."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._parameters, self._average, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


def averaged(run: Run) -> Any:
    """Returns a context in which the policy has the weights of a checkpoint: the averages if there are any."""
    return nullcontext() if run.ema is None else run.ema.swapped()


# --- writing ------------------------------------------------------------------------------------------------------


def save(run: Run, step: int, total: int) -> Path:
    """Writes a checkpoint to a temporary folder and moves it into place. Every process must call this.

    Returns:
        OUTPUT/checkpoints/STEP.

    Raises:
        TrainingError: it cannot be written (a full disk). Earlier checkpoints stay unchanged.
    """
    place = get_step_checkpoint_dir(run.output, total, step)
    weights, moments = _gathered(run) if run.sharded else (None, None)
    why = ""
    if run.accelerator.is_main_process:
        try:
            _write(run, place, step, weights, moments)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(_part(place), ignore_errors=True)
            why = one_line(error)[:200]
    if any_process(run.accelerator, bool(why)):
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {place.parent} ({why or 'see the main process'}); "
            "those before it are whole: free some space and go on with --resume"
        )
    return place


def _part(place: Path) -> Path:
    return place.with_name(f".partial-{place.name}")


def _gathered(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gathers the weights and the optimizer's state on the main process from the parts on every process."""
    weights, moments = gather_fsdp_state_dicts(run.loss_module, run.optimizer)
    return {name.removeprefix("policy."): tensor for name, tensor in weights.items()}, moments


def _write(run: Run, place: Path, step: int, weights: Any, moments: Any) -> None:
    for stale in place.parent.glob(".partial-*"):
        shutil.rmtree(stale)
    part = _part(place)
    with averaged(run):
        policy, merged = plain_policy(run.policy)
        save_checkpoint(
            part,
            step,
            run.config,
            policy,
            run.optimizer,
            run.scheduler,
            run.preprocessor,
            run.postprocessor,
            num_processes=run.accelerator.num_processes,
            batch_size=run.recipe.batch_size,
            model_state_dict=merged if weights is None else weights,
            optim_state_dict=moments,
        )
    if run.ema is not None or run.recipe.lora_rank:
        save_file(_trained(run.policy), part / "training_state" / RAW_WEIGHTS)
    assert (part / "pretrained_model" / WEIGHTS).is_file()
    write_record(part / "pretrained_model", run.preprocessor, run.record | {"step": step})
    if place.exists():  # left by a run that got further and was then resumed from an earlier step
        shutil.rmtree(place)
    os.replace(part, place)
    update_last_checkpoint(place)


def _trained(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in policy.named_parameters() if p.requires_grad}


# --- reading ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def load_trained(policy: nn.Module, path: Path) -> None:
    """Loads the trained weights of `RAW_WEIGHTS` into the policy, in place.

    Raises:
        CheckpointError: the file cannot be read, or holds other weights.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unusable(path.parent.parent, error) from None
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if stored.keys() != trained.keys():
        raise _unusable(path.parent.parent, ValueError(f"{path.name} is of other weights"))
    for name, parameter in trained.items():
        parameter.copy_(stored[name])


def load_state(start: Path, optimizer: Any, scheduler: Any, sharded: bool) -> int:
    """Loads the scheduler's state, and the optimizer's state unless it is `sharded`, in place. Returns their step.

    Raises:
        CheckpointError: the folder is damaged.
    """
    try:
        return load_training_state(start, optimizer, scheduler, load_optimizer=not sharded)[0]
    except Exception as error:  # lerobot's readers raise many kinds of errors on a half-copied folder
        raise _unusable(start, error) from None


def load_sharded_optimizer(run: Run, start: Path) -> None:
    """Under FSDP, shards the optimizer's state over the processes. Call it after accelerate has prepared the run."""
    load_fsdp_optimizer_state(run.loss_module, run.optimizer, start)


def _unusable(start: Path, error: Exception) -> CheckpointError:
    why = one_line(error)[:120]
    return CheckpointError(f"{start} cannot be resumed ({why}); delete it to go on from the one before")


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Returns whether `flag` is set on any process. Every process must call this."""
    if accelerator.num_processes == 1:
        return flag
    flags = torch.tensor([float(flag)], device=accelerator.device)
    return float(accelerator.reduce(flags, "sum")) > 0  # type: ignore[arg-type]
