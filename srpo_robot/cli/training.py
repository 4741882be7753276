"""`srpo-robot train-awr`: trains a policy on a scored buffer and writes checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_robot.awr.checks import check_features, check_output, check_recipe, check_trackers, last_checkpoint
from srpo_robot.awr.weighting import BufferWeights, check_scheme, mean_weight_by_label
from srpo_robot.awr.weights import check_temperature
from srpo_robot.awr.weights_table import write_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import CODEBASE, INFO, open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.console import Bar, bar, console, number, say, table, waiting
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.cli.weighing import weigh
from srpo_robot.cli.weighting_options import TrainOptions
from srpo_robot.recipes import PolicyRecipe, load

if TYPE_CHECKING:
    from srpo_robot.awr.plan import TrainingPlan


def train_command(options: TrainOptions) -> Path | None:
    """Weighs the frames, trains, and returns the last checkpoint (None for a dry run).

    Raises:
        TrainingError, StaleTable: the audit failed or is missing, and `accept_audit` is not given; see `gate`.
        SrpoRobotError: as `check_options`, `weigh` and `train`.
    """
    recipe = options.apply(load(PolicyRecipe, "policies", options.policy))
    check_options(options, recipe)
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
    return train_buffer(buffer, recipe, options)


def check_options(options: TrainOptions, recipe: PolicyRecipe) -> None:
    """Refuses impossible requests before lerobot is imported, which takes seconds.

    Raises:
        UsageError: an option or a number of the recipe is out of range, or the output folder cannot be used.
        DatasetError: the dataset lacks cameras, states or actions.
    """
    check_recipe(recipe)
    check_scheme(recipe, options.weights)
    if options.weights == "awr":
        check_temperature(recipe.beta, recipe.w_max)
    check_trackers(options.track)
    _check_columns(Path(options.dataset))
    if options.resume and not options.dry_run:
        last_checkpoint(options.output)
    elif not options.dry_run:
        check_output(options.output)
    if options.device not in ("auto", "cpu"):
        resolve(options.device)


def _check_columns(root: Path) -> None:
    """Checks the columns of a dataset in a folder. `open_buffer` reports everything else that is wrong with it."""
    try:
        info = json.loads((root / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(info, dict) and info.get("codebase_version") == CODEBASE and isinstance(info.get("features"), dict):
        check_features(root.name, info["features"])


def train_buffer(buffer: Buffer, recipe: PolicyRecipe, options: TrainOptions) -> Path | None:
    """Does the work of `train_command` on an open buffer; does not use `options.dataset` and `options.policy`."""
    check_features(buffer.root.name, buffer.meta.features)
    console.quiet = not _first_process()
    progress, weights = weigh(buffer, recipe, options.weights)
    if progress is not None and weights.advantages is not None and not options.dry_run:
        write_weights(buffer, progress, weights)
    print_weights(buffer, weights)
    if options.dry_run:
        with waiting("measuring the policy"):
            from srpo_robot.awr.plan import plan_training

            plan = plan_training(buffer, recipe, int(os.environ.get("WORLD_SIZE", 1)))
        print_plan(plan)
        return None
    if options.weights == "awr":
        from srpo_robot.cli.benchmarking import gate

        gate(buffer, recipe.audit_level, options.accept_audit)
    return _train(buffer, recipe, weights, provenance_of(buffer, progress, weights), options)


def provenance_of(buffer: Buffer, progress: Table | None, weights: BufferWeights) -> dict[str, Any]:
    """Returns the sources of the weights, for the checkpoint's srpo.json."""
    content: dict[str, Any] = {
        "dataset": str(buffer.root),
        "fingerprint": buffer.fingerprint,
        "weights": weights.scheme,
    }
    if progress is not None:
        content["progress"] = progress.metadata["content"]
    if weights.scheme == "awr":
        content["weighting"] = asdict(weights.weighting)
    return content


def _train(
    buffer: Buffer, recipe: PolicyRecipe, weights: BufferWeights, provenance: dict[str, Any], options: TrainOptions
) -> Path:
    from srpo_robot.awr.train import LoopOptions, train

    if recipe.tiny:
        few_threads()
    with _progress_bar(options.weights, recipe.steps) as progress:

        def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
            held_out = metrics.get("validation_loss")
            note = "" if held_out is None else f", held out {held_out:.3f}"
            progress.at(step, f"loss {metrics['loss']:.3f}{note}")

        loop = LoopOptions(
            resume=options.resume,
            device="cpu" if resolve(options.device) == "cpu" else "auto",  # accelerate places each process on its GPU
            track=options.track,
            provenance=provenance,
            on_step=on_step,
        )
        values = weights.frames.values
        checkpoint = train(buffer, recipe, values, options.output, loop, action_weights=weights.actions)
    say(f"Checkpoint: {checkpoint}")
    return checkpoint


def _first_process() -> bool:
    """Whether this process prints, if several were launched."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _progress_bar(scheme: str, total: int) -> Iterator[Bar]:
    if not _first_process():
        yield Bar(None, None)  # type: ignore[arg-type]  # never used: only the main process calls on_step
        return
    with bar(f"training, {scheme}", total, "step") as progress:
        yield progress


def print_weights(buffer: Buffer, weights: BufferWeights) -> None:
    """Prints one row on the weights, and their mean by label."""
    frames = weights.frames
    row = table(f"weights: {weights.scheme}", "frames", "effective sample size", "at the cap", "undefined")
    row.add_row(
        str(buffer.total_frames),
        f"{frames.effective_sample_size:.0f} ({frames.effective_sample_size / buffer.total_frames:.0%})",
        f"{frames.clipped_fraction:.1%}",
        str(frames.undefined),
    )
    console.print(row)
    means = mean_weight_by_label(buffer, frames.values)
    say("mean weight of a frame: " + ", ".join(f"{kind} {number(mean, 2)}" for kind, mean in means.items()))


# --- plan ---------------------------------------------------------------------------------------------------------


def print_plan(plan: TrainingPlan) -> None:
    """Prints the sizes of a run that would start now."""
    sizes = table("policy", "parameters", "in all", "trained")
    sizes.add_row("number", f"{plan.parameters:,}", f"{plan.trained:,} ({plan.trained / plan.parameters:.1%})")
    console.print(sizes)
    memory = table("memory of one process", "part", "bytes")
    for part, size in plan.memory.items():
        memory.add_row(part, _size(size))
    memory.add_row("together", _size(sum(plan.memory.values())))
    console.print(memory)
    say(
        "Not in it: activations and logits (they grow with batch_size; gradient_checkpointing trades them for time), "
        f"the CUDA context, decoded frames in main memory ({_size(plan.cached_frames)})."
    )
    say(
        f"{plan.steps:,} optimizer steps of {plan.samples_per_step} samples ({plan.batch}), "
        f"{plan.epochs:.1f} epochs over {plan.trained_frames:,} frames"
        + (f"; {plan.held_out} of {plan.episodes} episodes held out" if plan.held_out else "")
        + f"; {plan.checkpoints} checkpoints of about {_size(plan.checkpoint_bytes)}"
    )
    say("Dry run: nothing was written.")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
