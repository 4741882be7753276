"""Options of the commands that weigh frames: `weights`, `export` and `train-awr`. Light imports only."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from srpo_robot.cli.command import COMMAS
from srpo_robot.cli.options import Dataset, Device, Json
from srpo_robot.recipes import PolicyRecipe, Weighting

WeightsPolicy = Annotated[
    str | None, typer.Option(help="A recipe of policies/ whose keys make the weights, for example pi0.")
]


@dataclass(frozen=True, kw_only=True)
class WeightingOverrides:
    """Options that take the place of a recipe's weighting keys; None keeps the recipe's value, or the default."""

    beta: Annotated[float | None, typer.Option(help="Temperature of exp(A / beta).")] = None
    w_max: Annotated[float | None, typer.Option(help="Cap on exp(A / beta).")] = None
    horizon: Annotated[int | None, typer.Option(help="Frames of the chunk advantage.", min=1)] = None
    shift: Annotated[
        int | None,
        typer.Option(help="1: the gain after frame t, which its action caused; 0: one frame earlier.", min=0, max=1),
    ] = None
    tail: Annotated[
        Literal["divide", "raw", "drop"] | None, typer.Option(help="How a horizon cut by the episode's end counts.")
    ] = None
    kappa: Annotated[float | None, typer.Option(help="Share of the trajectory advantage.", min=0.0)] = None
    baseline: Annotated[
        Literal["mean", "value"] | None,
        typer.Option(help="What a gain is compared with: all gains, or those of chunks that start from a like value."),
    ] = None

    def apply[R: Weighting](self, recipe: R) -> R:
        """Returns `recipe` with the options that were given on the command line."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(recipe, **{key: value for key, value in options.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Options of `weights`."""

    dataset: Dataset
    policy: WeightsPolicy = None
    weighting: WeightingOverrides = WeightingOverrides()
    betas: Annotated[str, typer.Option(help="Of the grid.")] = "0.1,0.3,1,3"
    caps: Annotated[str, typer.Option(help="Values of w_max of the grid.")] = "5,20,100"
    csv: Annotated[Path | None, typer.Option(help="Also write the grid as CSV.", dir_okay=False)] = None
    json: Json = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export`."""

    dataset: Dataset
    to: Annotated[
        Literal["rabc", "weights", "recap"],
        typer.Option(
            help="rabc: progress for lerobot-train --sample_weighting.type=rabc; weights: AWR's, for the plugin "
            "lerobot_policy_srpo_awr; recap: is a frame's advantage positive, as pi*0.6 is conditioned."
        ),
    ]
    output: Annotated[
        Path | None, typer.Option(help="The parquet file; a place in the dataset's folder by default.", dir_okay=False)
    ] = None
    policy: WeightsPolicy = None
    weighting: WeightingOverrides = WeightingOverrides()
    positive: Annotated[
        float, typer.Option(help="recap: share of each task's frames that is positive.", min=0.0, max=1.0)
    ] = 0.3


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `train-awr`. Those whose default is None take the place of the recipe's keys of the same names."""

    dataset: Dataset
    policy: Annotated[str, typer.Option(help="A recipe of policies/, for example pi0-tiny.")]
    output: Annotated[Path, typer.Option(help="New folder for checkpoints and metrics.")]
    weights: Annotated[
        Literal["awr", "uniform", "success", "rabc"],
        typer.Option(help="awr: by advantage; uniform: SFT; success: filtered behaviour cloning; rabc: as lerobot's."),
    ] = "awr"
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of the recipe's.", min=1)] = None
    batch_size: Annotated[int | None, typer.Option(help="Samples a pass, instead of the recipe's.", min=1)] = None
    weighting: WeightingOverrides = WeightingOverrides()
    weights_as: Annotated[
        Literal["loss", "sampling"] | None,
        typer.Option(help="A frame's weight multiplies its loss, or says how often it is drawn."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.", min=0)] = None
    device: Device = "auto"
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")] = False
    accept_audit: Annotated[
        bool, typer.Option("--accept-audit", help="Train although the audit failed, or was never made.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory and steps, and write nothing.")
    ] = False
    track: Annotated[
        tuple[str, ...],
        typer.Option(help="Metrics also go to tensorboard, wandb, or both: tensorboard,wandb."),
        COMMAS,
    ] = ()

    def apply(self, recipe: PolicyRecipe) -> PolicyRecipe:
        """Returns `recipe` with the options that were given on the command line."""
        options = {key: getattr(self, key) for key in ("steps", "batch_size", "weights_as", "seed")}
        return replace(self.weighting.apply(recipe), **{key: v for key, v in options.items() if v is not None})
