"""Advantage-weighted fine-tuning: a short loop on accelerate, with lerobot's sampler, optimizer and checkpoint layout.

The frames and the noise of a step depend on (seed, step) only, see `sampling`. So a resumed run repeats an
uninterrupted one, and neither gradient accumulation nor the number of processes changes the update beyond rounding.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srpo_robot import interrupts
from srpo_robot.awr import policies
from srpo_robot.awr.augment import Augmentation
from srpo_robot.awr.checkpoints import (
    RAW_WEIGHTS,
    Ema,
    LossModule,
    Run,
    any_process,
    load_sharded_optimizer,
    load_state,
    load_trained,
    save,
)
from srpo_robot.awr.checks import check_recipe, check_trackers
from srpo_robot.awr.data import HeldOut, TrainingData
from srpo_robot.awr.losses import LossOptions, awr_loss
from srpo_robot.awr.run_state import check_weights, open_run, resolve_steps, run_record
from srpo_robot.awr.sampling import FlowNoise, SampleOrder, Split, seed_pass
from srpo_robot.awr.tracking import MetricsLog
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import RecipeError, TrainingError, UsageError
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType  # noqa: E402  (after quiet_lerobot)
from accelerate.utils import ProjectConfiguration, gather_object  # noqa: E402
from lerobot.common.train_utils import should_save_checkpoint  # noqa: E402
from lerobot.configs.default import DatasetConfig  # noqa: E402
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig  # noqa: E402

NAN_BATCH = "nan_batch.json"
OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the training loop runs. Apart from `steps` (and rounding on another device) nothing here changes the policy.

    Attributes:
        resume: go on from the last checkpoint of the output folder.
        steps: optimizer steps in all; None: `recipe.steps`, and on resume the number that the run was started with.
        device: "auto" (the device that accelerate finds) or "cpu".
        track: where metrics go beside metrics.jsonl: "tensorboard", "wandb".
        provenance: hashes of the tables that the weights were made from; stored in srpo.json.
        on_step: called as on_step(step, total, metrics) after every step, on the main process.
    """

    resume: bool = False
    steps: int | None = None
    device: str = "auto"
    track: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    on_step: OnStep | None = None


def train(
    buffer: Buffer,
    recipe: PolicyRecipe,
    weights: np.ndarray,
    output: Path,
    options: LoopOptions | None = None,
    *,
    action_weights: np.ndarray | None = None,
) -> Path:
    """Fine-tunes a policy on `buffer`. A frame's weight multiplies its loss, or says how often the frame is drawn.

    Args:
        buffer: dataset with cameras, observation.state and action.
        recipe: policy and optimisation. Everything random follows from `recipe.seed`.
        weights: (N,) non-negative, by global frame index. A frame of weight 0 is drawn but contributes nothing. With
            the recipe's `weights_as = "sampling"` it is never drawn.
        output: folder of the run. It is new, or with `options.resume` the folder of an interrupted run.
        options: default `LoopOptions()`.
        action_weights: (N, chunk) non-negative, one weight per action of a frame's chunk. `weights` then only goes
            into the run's record.

    Returns:
        The last checkpoint's folder, OUTPUT/checkpoints/STEP. It holds pretrained_model/ (which `load_policy` takes)
        and training_state/.

    Raises:
        UsageError: `output` exists without `resume`; the run to resume was made from something else; or a number of
            the recipe, a tracker or the way of launching is not possible.
        TrainingError: the weights are unusable; a loss or gradient is not finite (its frames are then listed in
            OUTPUT/nan_batch.json); or a checkpoint cannot be written. Earlier checkpoints stay.
        DatasetError, RecipeError, CheckpointError: as `build_policy`.
        KeyboardInterrupt: the run was interrupted. The checkpoint of the current step has been written.
    """
    options = options or LoopOptions()
    check_recipe(recipe)
    check_trackers(options.track)
    weights = check_weights(weights, buffer.total_frames)
    accelerator = _accelerator(recipe, options.device, output, options.track)
    if accelerator.device.type == "cpu":
        _keep_freed_memory()
    record = run_record(buffer, recipe, weights, options.provenance, accelerator.num_processes)
    steps = resolve_steps(recipe, options.steps)
    start, total = open_run(output, record, options.resume, steps, options.steps is not None)
    accelerator.wait_for_everyone()  # every process checks the folder before one of them writes
    run = _assemble(buffer, recipe, record | {"total_steps": total}, output, start, accelerator)
    data = TrainingData(buffer, recipe, run.policy.config.chunk_size, weights, action_weights)
    augment = Augmentation(buffer, recipe, run.policy.config)
    updates, held_out, checkpoint = _Updates(run, data, augment), HeldOut(run, data), start
    log = MetricsLog(output, run.first_step, accelerator, options.track)
    with interrupts.deferred() as interrupted, log:
        log.open_trackers(asdict(recipe))
        for step in range(run.first_step + 1, total + 1):
            metrics = updates.make(step)
            saving = should_save_checkpoint(step, recipe.save_every, total)
            if saving:
                metrics |= held_out.loss()
            log.write(step, metrics)
            try:
                if options.on_step is not None and accelerator.is_main_process:
                    options.on_step(step, total, metrics)
            except KeyboardInterrupt:
                interrupted.set()
            stop = any_process(accelerator, interrupted.is_set())
            if saving or stop:
                checkpoint = save(run, step, total)
            if stop:
                raise KeyboardInterrupt
    assert checkpoint is not None
    return checkpoint


# --- assembling a run ---------------------------------------------------------------------------------------


def _accelerator(recipe: PolicyRecipe, device: str, output: Path, track: Sequence[str]) -> Accelerator:
    half = policies.weights_dtype(recipe) == "bfloat16"
    if recipe.ema_decay and half:
        raise RecipeError(
            f"recipe {recipe.name}: ema_decay needs dtype 'float32'; the average of bfloat16 weights stalls"
        )
    accelerator = Accelerator(
        cpu=device == "cpu",
        step_scheduler_with_optimizer=False,  # one scheduler step per optimizer step for any number of processes
        mixed_precision="bf16" if half else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # pi0's language heads are unused
        log_with=list(track) or None,
        project_config=ProjectConfiguration(logging_dir=str(output / "tensorboard")),
    )
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        raise UsageError("DeepSpeed is not supported here; launch with DDP, or with FSDP (fsdp_version: 1)")
    if accelerator.distributed_type is DistributedType.FSDP:
        _check_sharding(accelerator, recipe)
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UsageError("FSDP needs several GPUs, and accelerate found one process or no GPU; launch without it")
    return accelerator


def _check_sharding(accelerator: Accelerator, recipe: PolicyRecipe) -> None:
    if accelerator.is_fsdp2:
        raise UsageError("lerobot gathers FSDP version 1 only; set fsdp_version: 1 in accelerate's config")
    if recipe.ema_decay:
        raise UsageError(f"recipe {recipe.name}: ema_decay keeps whole weights, which FSDP has nowhere; set it to 0")
    if recipe.lora_rank:
        raise UsageError(f"recipe {recipe.name}: LoRA fits one GPU and is not sharded; launch with DDP")


def _keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next step. Without it, a tiny pi0 spends 14 % of a step on allocation."""
    with suppress(OSError, AttributeError):  # the C library is not glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 * 1024**2)  # M_MMAP_THRESHOLD, its largest value


def _assemble(
    buffer: Buffer,
    recipe: PolicyRecipe,
    record: dict[str, Any],
    output: Path,
    start: Path | None,
    accelerator: Accelerator,
) -> Run:
    source, base = recipe, recipe.base
    if start is not None and not recipe.lora_rank:  # LoRA starts from its base again and loads its adapters below
        source, base = replace(recipe, base=str(start), tiny={}), str(start)
    policy, preprocessor, postprocessor = policies.build_policy(source, buffer, accelerator.device.type)
    sizes = policies.tiny_sizes(source, policies.checkpoint_folder(base) if base else None)
    policy = policies.apply_lora(policy, recipe)
    policy.train()
    ema = Ema(policy, recipe.ema_decay) if recipe.ema_decay else None  # on resume: the checkpoint's averaged weights
    config = _lerobot_config(buffer, recipe, policy.config, output, record["total_steps"])
    optimizer, scheduler = _optimizer(config, policy, record["total_steps"])
    sharded = accelerator.distributed_type is DistributedType.FSDP
    first_step = 0
    if start is not None:
        if ema is not None or recipe.lora_rank:
            load_trained(policy, start / "training_state" / RAW_WEIGHTS)
        first_step = load_state(start, optimizer, scheduler, sharded)
    loss_module = LossModule(policy, LossOptions(recipe.padding, recipe.token_balance))
    loss_module, optimizer, scheduler = accelerator.prepare(loss_module, optimizer, scheduler)
    run = Run(
        accelerator=accelerator,
        recipe=recipe,
        record=record | {"tiny": sizes},
        output=output,
        loss_module=loss_module,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        config=config,
        first_step=first_step,
    )
    if sharded and start is not None:
        load_sharded_optimizer(run, start)
    return run


def _lerobot_config(buffer: Buffer, recipe: PolicyRecipe, policy: Any, output: Path, total: int) -> TrainPipelineConfig:
    """Returns lerobot's config of this run, for its optimizer and for train_config.json."""
    config = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=f"local/{buffer.root.name}", root=str(buffer.root)),
        policy=policy,
        output_dir=output,
        job_name=recipe.name,
        seed=recipe.seed,
        num_workers=0,
        batch_size=recipe.batch_size,
        steps=total,
        save_freq=recipe.save_every,
        log_freq=1,
    )
    config.optimizer = policy.get_optimizer_preset()
    # If a run is shorter than the recipe's, lerobot shrinks warmup and cosine together. A longer run stretches the
    # cosine.
    config.scheduler = CosineDecayWithWarmupSchedulerConfig(
        num_warmup_steps=recipe.warmup_steps,
        num_decay_steps=max(total, recipe.steps),
        peak_lr=recipe.learning_rate,
        decay_lr=recipe.final_learning_rate,
    )
    return config


def _optimizer(config: TrainPipelineConfig, policy: torch.nn.Module, total: int) -> tuple[Any, Any]:
    """Returns lerobot's optimizer over the weights that train, and its scheduler."""
    assert config.optimizer is not None
    assert config.scheduler is not None
    optimizer: Any = config.optimizer.build([p for p in policy.parameters() if p.requires_grad])
    return optimizer, config.scheduler.build(optimizer, total)


# --- steps --------------------------------------------------------------------------------------------------------


class _Updates:
    """Makes the updates of a run, one per step."""

    def __init__(self, run: Run, data: TrainingData, augment: Augmentation) -> None:
        recipe, accelerator = run.recipe, run.accelerator
        self._run, self._data, self._augment = run, data, augment
        self._split = Split(recipe.batch_size, recipe.accumulate, accelerator.num_processes, accelerator.process_index)
        order = SampleOrder(data.trained, recipe.seed, self._split, run.first_step, data.drawn_by)
        self._batches = iter(data.loader(order))
        self._noise = FlowNoise(run.loss_module)
        self._passes: list[dict[str, Any]] = []  # frames and losses of the current step

    def make(self, step: int) -> dict[str, float]:
        """Makes the update of `step` and returns its metrics, averaged over passes and processes."""
        began = time.perf_counter()
        run, passes = self._run, self._split.passes
        self._passes = []
        infos = [self._pass(step, number) for number in range(passes)]
        norm = run.accelerator.clip_grad_norm_(run.loss_module.parameters(), run.recipe.grad_clip_norm)
        if norm is None or not torch.isfinite(norm):
            self._give_up(step, f"the gradient of step {step} is NaN or infinite; lower learning_rate")
        rate = run.scheduler.get_last_lr()[0]
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.scheduler.step()
        if run.ema is not None:
            run.ema.update(step)
        means = self._means(infos)
        samples = step * self._split.samples
        return means | {
            "lr": rate,
            "grad_norm": float(norm),  # type: ignore[arg-type]
            "epoch": samples / self._data.frames,
            "seconds": time.perf_counter() - began,  # includes loading the batch
        }

    def _pass(self, step: int, number: int) -> dict[str, float]:
        """Does one forward and backward pass, which adds its share of the gradient. Returns the loss and its parts."""
        run, split = self._run, self._split
        accelerator, seed, first = run.accelerator, run.recipe.seed, split.first(number)
        batch = self._augment(next(self._batches), step, first, split.samples)
        weights, action_weights = self._data.weights(batch["index"], accelerator.device)
        if self._data.drawn_by is not None:
            weights = torch.ones_like(weights)  # the weight already decides how often the frame is drawn
        # Between passes the processes need not agree on the gradient. FSDP would have to keep whole gradients for that.
        unsynced = number < split.passes - 1 and not run.sharded
        with accelerator.no_sync(run.loss_module) if unsynced else nullcontext():
            seed_pass(seed, step, first)
            with accelerator.autocast(), self._noise.rows((seed, step), first, split.samples):
                per_sample = run.loss_module(run.preprocessor(batch), action_weights)
            self._note(batch, per_sample)
            problem, loss, info = "", per_sample.sum(), {}
            try:
                loss, info = awr_loss(per_sample, weights, batch["index"])
            except TrainingError as error:
                problem = str(error)
            if any_process(accelerator, bool(problem)):
                self._give_up(step, problem or "the loss is NaN or infinite on another process")
            accelerator.backward(loss / split.passes)
        return info

    def _means(self, infos: Sequence[dict[str, float]]) -> dict[str, float]:
        accelerator, names = self._run.accelerator, list(infos[0])
        values = torch.tensor([[info[name] for name in names] for info in infos], device=accelerator.device).mean(0)
        if accelerator.num_processes > 1:
            values: Any = accelerator.reduce(values, "mean")
        return dict(zip(names, values.tolist(), strict=True))

    def _note(self, batch: dict[str, Any], per_sample: Tensor) -> None:
        """Keeps the frames and losses of a pass, in case this step fails."""
        self._passes.append({"index": batch["index"], "episode": batch["episode_index"], "loss": per_sample.detach()})

    def _give_up(self, step: int, why: str) -> None:
        """Writes OUTPUT/nan_batch.json and raises TrainingError. Every process calls this at the same pass."""
        samples: list[Any] = [
            {"index": int(index), "episode": int(episode), "loss": _plain(float(loss))}
            for part in self._passes
            for index, episode, loss in zip(part["index"], part["episode"], part["loss"].float(), strict=True)
        ]
        samples = gather_object(samples)
        path = self._run.output / NAN_BATCH
        if self._run.accelerator.is_main_process:
            content = {"step": step, "why": why, "samples": samples}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        raise TrainingError(f"{why}; the frames of step {step} are in {path}")


def _plain(value: float) -> float | str:
    """Returns NaN and infinity as words, because JSON has neither."""
    return value if math.isfinite(value) else str(value)
