"""`srpo-robot train-awr`: from a scored buffer to a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from srpo_robot.buffer.episodes import Buffer, open_buffer
from srpo_robot.cli.benchmarking import gate
from srpo_robot.cli.console import bar, console, number, say, table, waiting
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.errors import StaleTable
from srpo_robot.recipes import PolicyRecipe, load


@dataclass(frozen=True)
class TrainOverrides:
    """Options of the command line over the recipe's keys; None leaves the recipe's."""

    steps: int | None = None
    batch_size: int | None = None
    beta: float | None = None
    w_max: float | None = None
    horizon: int | None = None
    seed: int | None = None

    def apply(self, recipe: PolicyRecipe) -> PolicyRecipe:
        """The recipe with what was given on the command line."""
        return replace(recipe, **{key: value for key, value in asdict(self).items() if value is not None})


def train_command(
    dataset: str,
    policy: str,
    output: Path,
    scheme: Literal["awr", "uniform", "success"],
    overrides: TrainOverrides,
    device: str,
    resume: bool,
    accept_audit: bool = False,
) -> Path:
    """Weigh the frames, train, and return the last checkpoint.

    Raises:
        TrainingError, StaleTable: the audit failed or is missing, and `accept_audit` is not given; see `gate`.
        SrpoRobotError: as `train` and `weigh_buffer`.
    """
    recipe = overrides.apply(load(PolicyRecipe, "policies", policy))
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
    return train_buffer(buffer, recipe, scheme, output, device, resume, accept_audit)


def train_buffer(
    buffer: Buffer,
    recipe: PolicyRecipe,
    scheme: Literal["awr", "uniform", "success"],
    output: Path,
    device: str = "auto",
    resume: bool = False,
    accept_audit: bool = False,
) -> Path:
    """See `train_command`, with the buffer and the recipe at hand."""
    from srpo_robot.awr.policies import check_columns, executed_steps
    from srpo_robot.awr.tables import Weighting, baseline_weights, mean_weight_by_label, weigh_buffer
    from srpo_robot.awr.train import train
    from srpo_robot.progress.pipeline import read_progress

    check_columns(buffer)
    provenance: dict[str, object] = {"dataset": str(buffer.root), "fingerprint": buffer.fingerprint, "weights": scheme}
    if scheme == "awr":
        check_value(buffer, recipe)
        horizon = recipe.horizon or executed_steps(recipe)
        weighting = Weighting(horizon, recipe.shift, recipe.tail, recipe.beta, recipe.w_max, recipe.kappa)
        weighted = weigh_buffer(buffer, read_progress(buffer), weighting)
        weights = weighted.weights
        gate(buffer, recipe.audit_level, accept_audit)
        provenance |= {"progress": weighted.table.metadata["parent"], "weighting": asdict(weighting)}
    else:
        weights = baseline_weights(buffer, scheme)
    made = table(f"weights: {scheme}", "frames", "effective sample size", "at the cap", "undefined (weight 0)")
    made.add_row(
        str(buffer.total_frames),
        f"{weights.effective_sample_size:.0f} ({weights.effective_sample_size / buffer.total_frames:.0%})",
        f"{weights.clipped_fraction:.1%}",
        str(weights.undefined),
    )
    console.print(made)
    means = mean_weight_by_label(buffer, weights)
    say("mean weight of a frame: " + ", ".join(f"{kind} {number(mean, 2)}" for kind, mean in means.items()))
    if recipe.tiny:
        few_threads()
    where = "cpu" if resolve(device) == "cpu" else "auto"  # accelerate places each process on its own GPU
    with bar(f"training, {scheme}", recipe.steps, "step") as progress:

        def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
            progress.at(step, f"loss {metrics['loss']:.3f}")

        last = train(
            buffer, recipe, weights.values, output, device=where, resume=resume, on_step=on_step, provenance=provenance
        )
    say(f"Checkpoint: {last}")
    return last


def check_value(buffer: Buffer, recipe: PolicyRecipe) -> None:
    """Raise StaleTable where the recipe asks for another step value than the buffer was scored with."""
    from srpo_robot.progress.pipeline import read_settings

    have = read_settings(buffer).rules.value_name
    if recipe.value not in ("", have):
        raise StaleTable(
            f"{recipe.name} trains on the value {recipe.value!r}, the score has {have!r}; "
            f"run: srpo-robot score-dataset {buffer.root} --value {recipe.value}"
        )
