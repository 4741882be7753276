"""Advantage-weighted fine-tuning: a short loop on accelerate, over lerobot's sampler, optimizer and checkpoint layout.

The randomness of a step is a function of (seed, step, process), the order of the data one of (seed, epoch): a resumed
run repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from srpo_robot import __version__, interrupts
from srpo_robot.awr.losses import awr_loss, per_sample_loss
from srpo_robot.awr.policies import (
    WEIGHTS,
    build_policy,
    checkpoint_folder,
    load_weights,
    read_record,
    tiny_sizes,
    weights_dtype,
    write_record,
)
from srpo_robot.buffer.episodes import Buffer, quiet_lerobot
from srpo_robot.buffer.training import TrainingSet, collate
from srpo_robot.errors import CheckpointError, RecipeError, TrainingError, UsageError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType  # noqa: E402  (after quiet_lerobot)
from lerobot.common.train_utils import (  # noqa: E402
    get_step_checkpoint_dir,
    load_training_state,
    save_checkpoint,
    should_save_checkpoint,
    update_last_checkpoint,
)
from lerobot.configs.default import DatasetConfig  # noqa: E402
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402
from lerobot.datasets.sampler import EpisodeAwareSampler, compute_sampler_state  # noqa: E402
from lerobot.optim.factory import make_optimizer_and_scheduler  # noqa: E402
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig  # noqa: E402

METRICS = "metrics.jsonl"
RAW_WEIGHTS = "raw_weights.safetensors"
OnStep = Callable[[int, int, dict[str, float]], None]


def train(
    buffer: Buffer,
    recipe: PolicyRecipe,
    weights: np.ndarray,
    output: Path,
    *,
    resume: bool = False,
    steps: int | None = None,
    on_step: OnStep | None = None,
    provenance: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """Fine-tune a policy on `buffer`, each frame's loss weighted by `weights`.

    Args:
        buffer: dataset with cameras, observation.state and action.
        recipe: policy and optimisation; everything random follows from `recipe.seed`.
        weights: (N,) non-negative, by global frame index. A frame of weight 0 is drawn and contributes nothing.
        output: folder of the run; new, or with `resume` that of an interrupted one.
        resume: go on from the last checkpoint of `output`.
        steps: optimizer steps in all; default `recipe.steps`, and on resume what the run was started with.
        on_step: called as on_step(step, total, metrics) after every step, on the main process.
        provenance: what the weights were made from (hashes of parents); stored in srpo.json.
        device: "auto" (what accelerate finds) or "cpu".

    Returns:
        The last checkpoint's folder, OUTPUT/checkpoints/STEP. It holds pretrained_model/ (what `load_policy` takes) and
        training_state/.

    Raises:
        UsageError: `output` exists without `resume`, or the run to resume was made from something else.
        TrainingError: unusable weights, or a loss or gradient that is not finite.
        DatasetError, RecipeError, CheckpointError: as `build_policy`.
        KeyboardInterrupt: after the checkpoint of the step that was under way has been written.
    """
    weights = check_weights(weights, buffer.total_frames)
    if recipe.ema_decay and weights_dtype(recipe) != "float32":
        raise RecipeError(
            f"recipe {recipe.name}: ema_decay needs dtype 'float32'; the average of bfloat16 weights stalls"
        )
    accelerator = _accelerator(recipe, device)
    if accelerator.device.type == "cpu":
        _keep_freed_memory()
    record = _record(buffer, recipe, weights, dict(provenance or {}), accelerator.num_processes)
    start, total = _open_run(output, record, resume, resolve_steps(recipe, steps), steps is not None)
    accelerator.wait_for_everyone()  # every process has looked at the folder before one of them writes
    run = _assemble(buffer, recipe, record | {"total_steps": total}, output, start, accelerator)
    checkpoint = start
    table = torch.from_numpy(weights.astype(np.float32))
    with interrupts.deferred() as interrupted, _MetricsLog(output, run.first_step, accelerator.is_main_process) as log:
        batches = _forever(run.loader)
        for step in range(run.first_step + 1, total + 1):
            began = time.perf_counter()
            metrics = _step(run, next(batches), table, step)
            metrics["seconds"] = time.perf_counter() - began  # with the loading of its batch
            log.write(step, metrics)
            try:
                if on_step is not None and accelerator.is_main_process:
                    on_step(step, total, metrics)
            except KeyboardInterrupt:
                interrupted.set()
            stop = _any_process(accelerator, interrupted.is_set())
            if stop or should_save_checkpoint(step, recipe.save_every, total):
                checkpoint = _save(run, step, total)
            if stop:
                raise KeyboardInterrupt
    assert checkpoint is not None
    return checkpoint


# --- what a run starts from ---------------------------------------------------------------------------------------


def check_weights(weights: np.ndarray, frames: int) -> np.ndarray:
    """`weights` as float64 (N,); TrainingError where they cannot train a dataset of `frames` frames."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (frames,):
        raise TrainingError(f"{weights.shape} weights for {frames} frames; make them anew from this dataset")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise TrainingError(f"{len(bad)} weights are negative, NaN or infinite, the first at frame {bad[0]}")
    if not weights.any():
        raise TrainingError("every weight is zero, so nothing can be learnt; look at the scores and at beta")
    return weights


def resolve_steps(recipe: PolicyRecipe, steps: int | None) -> int:
    """Optimizer steps of a run: `steps`, else the recipe's. Raises UsageError where that is not positive."""
    total = recipe.steps if steps is None else steps
    if total < 1:
        raise UsageError(f"{total} steps; give a positive number")
    return total


def _record(
    buffer: Buffer, recipe: PolicyRecipe, weights: np.ndarray, provenance: dict[str, Any], processes: int
) -> dict[str, Any]:
    """What srpo.json says about how a checkpoint was made, as JSON reads it back: comparable with a stored one."""
    content = {
        "version": __version__,
        "git_commit": _git_commit(),
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "processes": processes,
        "dataset": {"name": buffer.root.name, "fingerprint": buffer.fingerprint, "frames": buffer.total_frames},
        "weights": hashlib.sha256(weights.tobytes()).hexdigest()[:16],
        "provenance": provenance,
    }
    return json.loads(json.dumps(content, default=str))


def _git_commit() -> str | None:
    """The commit of this checkout; None for an installed wheel."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _open_run(
    output: Path, record: dict[str, Any], resume: bool, total: int, steps_given: bool
) -> tuple[Path | None, int]:
    """The checkpoint to go on from (None: a new run) and the steps in all."""
    if not resume:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(f"{output} exists; go on with it: --resume, or write elsewhere: --output DIR")
        return None, total
    start = last_checkpoint(output)
    made = read_record(start / "pretrained_model")
    differences = _differences(made, record)
    if differences:
        raise UsageError(f"{output} was made with another {'; '.join(differences)}; start a new run: --output DIR")
    total = total if steps_given else int(made["total_steps"])
    if total <= int(made["step"]):
        raise UsageError(f"{output} is trained to step {made['step']}; give --steps above that to go on")
    return start, total


def last_checkpoint(output: Path) -> Path:
    """The newest whole checkpoint of a run, OUTPUT/checkpoints/STEP.

    Raises:
        UsageError: there is none.
    """
    folder = output / "checkpoints"
    whole = [path for path in folder.glob("*") if path.name.isdigit() and (path / "training_state").is_dir()]
    if not whole:
        raise UsageError(f"{output} has no checkpoint to resume; start without --resume")
    return max(whole, key=lambda path: int(path.name))


def _differences(made: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run would change under the feet of its first part."""
    if "recipe" not in made:
        return ["trainer"]
    old, new = made["recipe"], now["recipe"]
    compared = sorted(new.keys() - {"steps", "save_every", "cache_gb"})  # these may change: the result does not
    names = [f"{name} (then {old.get(name)!r}, now {new[name]!r})" for name in compared if old.get(name) != new[name]]
    names += ["dataset"] if made["dataset"]["fingerprint"] != now["dataset"]["fingerprint"] else []
    names += ["set of weights"] if made["weights"] != now["weights"] else []
    if made["processes"] != now["processes"]:
        names.append(f"number of processes (then {made['processes']}, now {now['processes']})")
    return names


# --- putting a run together ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Run:
    accelerator: Accelerator
    recipe: PolicyRecipe
    record: dict[str, Any]
    output: Path
    policy: Any  # as accelerate wraps it
    preprocessor: Any
    postprocessor: Any
    optimizer: Any
    scheduler: Any
    loader: Any
    ema: _Ema | None
    config: TrainPipelineConfig
    first_step: int


def _accelerator(recipe: PolicyRecipe, device: str) -> Accelerator:
    accelerator = Accelerator(
        cpu=device == "cpu",
        step_scheduler_with_optimizer=False,  # one scheduler step an optimizer step, whatever the number of processes
        mixed_precision="bf16" if weights_dtype(recipe) == "bfloat16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # pi0's language heads are unused
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UsageError(
            f"{accelerator.distributed_type} is not supported here; launch with plain data parallelism (DDP)"
        )
    return accelerator


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, which the next step takes again: 14 % of the time of a tiny pi0's step."""
    with suppress(OSError, AttributeError):  # another C library
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
) -> _Run:
    source, base = recipe, recipe.base
    if start is not None:
        source, base = replace(recipe, base=str(start), tiny={}), str(start)
    policy, preprocessor, postprocessor = build_policy(source, buffer, accelerator.device)
    sizes = tiny_sizes(source, checkpoint_folder(base) if base else None)
    policy.train()
    ema = _Ema(policy, recipe.ema_decay) if recipe.ema_decay else None  # on resume: the checkpoint's averaged weights
    config = _lerobot_config(buffer, recipe, policy.config, output, record["total_steps"])
    optimizer, scheduler = make_optimizer_and_scheduler(config, policy)
    first_step = 0
    if start is not None:
        if ema is not None:
            load_weights(policy, start / "training_state" / RAW_WEIGHTS)
        first_step, optimizer, scheduler = _load_state(start, optimizer, scheduler)
    loader = _loader(buffer, recipe, policy.config.chunk_size, first_step, accelerator.num_processes)
    policy, optimizer, loader, scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
    return _Run(
        accelerator=accelerator,
        recipe=recipe,
        record=record | {"tiny": sizes},
        output=output,
        policy=policy,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        ema=ema,
        config=config,
        first_step=first_step,
    )


def _load_state(start: Path, optimizer: Any, scheduler: Any) -> tuple[int, Any, Any]:
    try:
        return load_training_state(start, optimizer, scheduler)
    except Exception as error:  # whatever a half-copied folder makes lerobot's readers raise
        why = one_line(error)[:120]
        raise CheckpointError(f"{start} cannot be resumed ({why}); delete it to go on from the one before") from None


def _loader(buffer: Buffer, recipe: PolicyRecipe, chunk: int, first_step: int, processes: int) -> DataLoader:
    samples = TrainingSet(buffer, chunk, recipe.cache_gb)
    first = [episode.first_frame for episode in buffer.episodes]
    last = [episode.first_frame + episode.length for episode in buffer.episodes]
    sampler = EpisodeAwareSampler(first, last, shuffle=True, seed=recipe.seed)
    sampler.load_state_dict(compute_sampler_state(first_step, len(samples), recipe.batch_size, processes))
    workers = 0 if samples.in_memory else decoding_workers()
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=recipe.batch_size,
        sampler=sampler,
        collate_fn=collate,  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,  # video decoders do not survive a fork
        pin_memory=torch.cuda.is_available(),
    )


def decoding_workers() -> int:
    """Processes that decode frames beside the training, where they do not fit into memory."""
    return max(1, min(8, (os.cpu_count() or 1) - 1))


def _lerobot_config(buffer: Buffer, recipe: PolicyRecipe, policy: Any, output: Path, total: int) -> TrainPipelineConfig:
    """lerobot's description of this run, for its optimizer factory and for train_config.json."""
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
    # Where a run is shorter than the recipe's, lerobot shrinks warmup and cosine together; a longer one stretches the
    # cosine.
    config.scheduler = CosineDecayWithWarmupSchedulerConfig(
        num_warmup_steps=recipe.warmup_steps,
        num_decay_steps=max(total, recipe.steps),
        peak_lr=recipe.learning_rate,
        decay_lr=recipe.final_learning_rate,
    )
    return config


# --- one step -----------------------------------------------------------------------------------------------------


def _forever(loader: Any) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def _step(run: _Run, batch: dict[str, Any], weights: torch.Tensor, step: int) -> dict[str, float]:
    accelerator, index = run.accelerator, batch["index"]
    seed_step(run.recipe.seed, step, accelerator.process_index)
    with accelerator.autocast():
        per_sample = per_sample_loss(run.policy, run.preprocessor(batch))
    loss, info = awr_loss(per_sample, weights[index.cpu()].to(per_sample.device), index)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(run.policy.parameters(), run.recipe.grad_clip_norm)
    if norm is None or not torch.isfinite(norm):
        raise TrainingError(f"the gradient of step {step} is NaN or infinite; lower learning_rate")
    rate = run.scheduler.get_last_lr()[0]
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.scheduler.step()
    if run.ema is not None:
        run.ema.update(step)
    if accelerator.num_processes > 1:
        values = torch.tensor(list(info.values()), device=accelerator.device)
        means: Any = accelerator.reduce(values, "mean")
        info = dict(zip(info, means.tolist(), strict=True))
    return info | {"lr": rate, "grad_norm": float(norm)}


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed torch for one step on one process: the noise that a step draws does not depend on what came before."""
    state = np.random.SeedSequence([seed, step, process]).generate_state(1, dtype=np.uint64)
    torch.manual_seed(int(state[0]))


class _Ema:
    """Exponential moving average of a policy's trainable weights.

    The decay grows as (1 + t) / (10 + t) up to its value, so a short run does not average in its random start.
    """

    def __init__(self, policy: torch.nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self._average.values()), list(self._parameters.values()), step)

    def state_dict(self, policy: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The state dict of `policy` with the averages in place of its trainable weights."""
        return {**policy.state_dict(), **self._average}


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    flags = torch.tensor([float(flag)], device=accelerator.device)
    return float(accelerator.reduce(flags, "sum")) > 0  # type: ignore[arg-type]


# --- writing ------------------------------------------------------------------------------------------------------


class _MetricsLog:
    """OUTPUT/metrics.jsonl, one line a step. On resume the lines after the checkpoint go: those steps are redone."""

    def __init__(self, output: Path, first_step: int, main: bool) -> None:
        self._main, self._path = main, output / METRICS
        if main:
            output.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            self._kept = [line for line in lines if _step_of(line) <= first_step]

    def __enter__(self) -> _MetricsLog:
        if self._main:
            self._path.write_text("".join(f"{line}\n" for line in self._kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._file.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._main:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut by a crash


def _save(run: _Run, step: int, total: int) -> Path:
    """Write a checkpoint beside its place and move it there: it is whole or absent."""
    place = get_step_checkpoint_dir(run.output, total, step)
    if run.accelerator.is_main_process:
        for stale in place.parent.glob(".partial-*"):
            shutil.rmtree(stale)
        part = place.with_name(f".partial-{place.name}")
        policy = run.accelerator.unwrap_model(run.policy)
        averaged = run.ema.state_dict(policy) if run.ema is not None else None
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
            model_state_dict=averaged,
        )
        if averaged is not None:
            save_model(policy, str(part / "training_state" / RAW_WEIGHTS))
        assert (part / "pretrained_model" / WEIGHTS).is_file()
        write_record(part / "pretrained_model", run.preprocessor, run.record | {"step": step})
        if place.exists():  # left by a run that went further and was resumed before it
            shutil.rmtree(place)
        os.replace(part, place)
        update_last_checkpoint(place)
    run.accelerator.wait_for_everyone()
    return place
