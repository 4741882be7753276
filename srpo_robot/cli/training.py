"""`srpo-robot train-awr`: from a scored buffer to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.benchmarking import gate
from srpo_robot.cli.console import Bar, bar, console, number, say, table, waiting
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.recipes import PolicyRecipe, load

if TYPE_CHECKING:
    from srpo_robot.awr.plan import TrainingPlan
    from srpo_robot.awr.tables import Scheme
    from srpo_robot.awr.weights import Weights


@dataclass(frozen=True)
class TrainOverrides:
    """Options of the command line over the recipe's keys; None leaves the recipe's."""

    steps: int | None = None
    batch_size: int | None = None
    beta: float | None = None
    w_max: float | None = None
    horizon: int | None = None
    shift: int | None = None
    tail: Literal["divide", "raw", "drop"] | None = None
    kappa: float | None = None
    baseline: Literal["mean", "value"] | None = None
    weights_as: Literal["loss", "sampling"] | None = None
    seed: int | None = None

    def apply(self, recipe: PolicyRecipe) -> PolicyRecipe:
        """The recipe with what was given on the command line."""
        return replace(recipe, **{key: value for key, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class TrainOptions:
    """How a training is run; what it learns is the recipe's and the weights' affair."""

    output: Path
    device: str = "auto"
    resume: bool = False
    accept_audit: bool = False
    dry_run: bool = False
    track: tuple[str, ...] = ()


def train_command(
    dataset: str, policy: str, scheme: Scheme, overrides: TrainOverrides, options: TrainOptions
) -> Path | None:
    """Weigh the frames, train, and return the last checkpoint (None of a dry run).

    Raises:
        TrainingError, StaleTable: the audit failed or is missing, and `accept_audit` is not given; see `gate`.
        SrpoRobotError: as `train` and `weigh_buffer`.
    """
    recipe = overrides.apply(load(PolicyRecipe, "policies", policy))
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
    return train_buffer(buffer, recipe, scheme, options)


def train_buffer(buffer: Buffer, recipe: PolicyRecipe, scheme: Scheme, options: TrainOptions) -> Path | None:
    """See `train_command`, with the buffer and the recipe at hand."""
    from srpo_robot.awr.policies import check_columns
    from srpo_robot.awr.run_state import check_recipe
    from srpo_robot.awr.tracking import check_trackers

    check_recipe(recipe)
    check_trackers(options.track)
    check_columns(buffer)
    console.quiet = not _first_process()
    if options.dry_run:
        _weigh(buffer, recipe, scheme, write=False)
        with waiting("measuring the policy"):
            from srpo_robot.awr.plan import plan_training

            made = plan_training(buffer, recipe, int(os.environ.get("WORLD_SIZE", 1)))
        _print_plan(made)
        return None
    weights, timestep, provenance = _weigh(buffer, recipe, scheme)
    if scheme == "awr":
        gate(buffer, recipe.audit_level, options.accept_audit)
    return _train(buffer, recipe, scheme, weights, timestep, provenance, options)


def _train(
    buffer: Buffer,
    recipe: PolicyRecipe,
    scheme: str,
    weights: Weights,
    timestep: np.ndarray | None,
    provenance: dict[str, Any],
    options: TrainOptions,
) -> Path:
    from srpo_robot.awr.train import train

    if recipe.tiny:
        few_threads()
    with _progress(scheme, recipe.steps) as progress:

        def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
            held_out = metrics.get("validation_loss")
            note = "" if held_out is None else f", held out {held_out:.3f}"
            progress.at(step, f"loss {metrics['loss']:.3f}{note}")

        last = train(
            buffer,
            recipe,
            weights.values,
            options.output,
            action_weights=timestep,
            device="cpu" if resolve(options.device) == "cpu" else "auto",  # accelerate places each process on its GPU
            resume=options.resume,
            on_step=on_step,
            provenance=provenance,
            track=options.track,
        )
    say(f"Checkpoint: {last}")
    return last


def _first_process() -> bool:
    """Whether this is the process that speaks, where several were launched."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _progress(scheme: str, total: int) -> Iterator[Bar]:
    if not _first_process():
        yield Bar(None, None)  # type: ignore[arg-type]  # never called: on_step is the main process's
        return
    with bar(f"training, {scheme}", total, "step") as progress:
        yield progress


# --- weights ------------------------------------------------------------------------------------------------------


def _weigh(
    buffer: Buffer, recipe: PolicyRecipe, scheme: Scheme, write: bool = True
) -> tuple[Weights, np.ndarray | None, dict[str, Any]]:
    """Weights of the frames, of their chunks' actions or None, and where they come from; prints what they look like.

    Raises:
        UsageError: per-action weights of a scheme that has none.
    """
    from srpo_robot.awr.tables import baseline_weights, mean_weight_by_label

    provenance: dict[str, Any] = {"dataset": str(buffer.root), "fingerprint": buffer.fingerprint, "weights": scheme}
    timestep = None
    if recipe.action_weights and scheme != "awr":
        raise UsageError(f"recipe {recipe.name}: action_weights are AWR's; set it to false, or train --weights awr")
    if scheme == "awr":
        weights, timestep, found = _advantage_weights(buffer, recipe, write)
        provenance |= found
    elif scheme == "rabc":
        weights, found = _rabc_weights(buffer, recipe)
        provenance |= found
    else:
        weights = baseline_weights(buffer, scheme)
    made = table(f"weights: {scheme}", "frames", "effective sample size", "at the cap", "undefined")
    made.add_row(
        str(buffer.total_frames),
        f"{weights.effective_sample_size:.0f} ({weights.effective_sample_size / buffer.total_frames:.0%})",
        f"{weights.clipped_fraction:.1%}",
        str(weights.undefined),
    )
    console.print(made)
    means = mean_weight_by_label(buffer, weights)
    say("mean weight of a frame: " + ", ".join(f"{kind} {number(mean, 2)}" for kind, mean in means.items()))
    return weights, timestep, provenance


def _advantage_weights(
    buffer: Buffer, recipe: PolicyRecipe, write: bool
) -> tuple[Weights, np.ndarray | None, dict[str, Any]]:
    from srpo_robot.awr.policies import executed_steps
    from srpo_robot.awr.tables import Weighting, buffer_action_weights, check_horizon, total_advantage, weigh_buffer
    from srpo_robot.awr.weights import awr_weights
    from srpo_robot.progress.pipeline import read_progress

    check_value(buffer, recipe)
    weighting = Weighting.of(recipe, recipe.horizon or executed_steps(recipe))
    progress = read_progress(buffer)
    check_horizon(buffer, weighting.horizon)
    chunk = _chunk_size(recipe) if recipe.action_weights else None
    found = {"progress": progress.metadata["content"], "weighting": asdict(weighting)}
    if not write:  # a dry run leaves advantage.parquet alone
        _, advantage = total_advantage(buffer, progress, weighting)
        timestep = None if chunk is None else buffer_action_weights(buffer, progress, weighting, chunk)
        return awr_weights(advantage, weighting.beta, weighting.w_max), timestep, found
    weighted = weigh_buffer(buffer, progress, weighting, chunk)
    return weighted.weights, weighted.timestep, found


def _rabc_weights(buffer: Buffer, recipe: PolicyRecipe) -> tuple[Weights, dict[str, Any]]:
    from srpo_robot.awr.tables import rabc_buffer_weights
    from srpo_robot.progress.pipeline import read_progress

    check_value(buffer, recipe)
    progress = read_progress(buffer)
    return rabc_buffer_weights(buffer, progress, _chunk_size(recipe)), {"progress": progress.metadata["content"]}


def _chunk_size(recipe: PolicyRecipe) -> int:
    from srpo_robot.awr.plan import chunk_size

    return chunk_size(recipe)


def check_value(buffer: Buffer, recipe: PolicyRecipe) -> None:
    """Raise StaleTable where the recipe asks for another step value than the buffer was scored with."""
    from srpo_robot.progress.pipeline import read_provenance

    have = read_provenance(buffer).config.value_name
    if recipe.value not in ("", have):
        raise StaleTable(
            f"{recipe.name} trains on the value {recipe.value!r}, the score has {have!r}; "
            f"run: srpo-robot score-dataset {buffer.root} --value {recipe.value}"
        )


# --- plan ---------------------------------------------------------------------------------------------------------


def _print_plan(plan: TrainingPlan) -> None:
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
        f"{plan.steps:,} optimizer steps of {plan.samples_per_step} samples ({plan.dealt}), "
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
