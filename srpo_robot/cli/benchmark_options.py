"""Options of `benchmark-progress` and `audit`. Light imports only: `srpo-robot --help` reads this module."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from srpo_robot.cli.command import COMMAS
from srpo_robot.cli.devices import check_device
from srpo_robot.cli.options import Dataset, Device, Json, Seed
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder_names import check_dtype, check_encoder

Horizon = Annotated[int, typer.Option(help="Frames of a chunk, for the step values.", min=1)]
Resamples = Annotated[int, typer.Option(help="Of the bootstrap and of the permutations.", min=0)]
Dtype = Annotated[str | None, typer.Option(help="Another dtype than the score's.")]


@dataclass(frozen=True, kw_only=True)
class UnderTest:
    """Options that change the score under test.

    None (or no camera) means the setting that the dataset was scored with, or the default of score-dataset if it was
    never scored.
    """

    encoder: Annotated[str | None, typer.Option(help="Another encoder than the score's.")] = None
    cameras: Annotated[
        tuple[str, ...], typer.Option("--camera", help="Other cameras than the score's; may be repeated.")
    ] = ()
    windows: Annotated[str | None, typer.Option(help="Other windows than the score's.")] = None
    window_shape: Annotated[str | None, typer.Option(help="Another shape than the score's: prefix or recent.")] = None
    min_window: Annotated[int | None, typer.Option(help="Another first window than the score's.", min=1)] = None
    frames_per_clip: Annotated[int | None, typer.Option(help="Another clip length than the score's.")] = None

    def applied(self, config: ScoringConfig) -> ScoringConfig:
        """Returns `config` with these options. Raises UsageError for an impossible value."""
        names = ("cameras", "windows", "window_shape", "min_window", "frames_per_clip")
        options = {name: getattr(self, name) for name in names}
        return replace(config, **{name: value for name, value in options.items() if value not in (None, ())})

    def check(self) -> None:
        """Checks the names without importing torch. Raises UsageError or CheckpointError."""
        self.applied(ScoringConfig())
        if self.encoder is not None:
            check_encoder(self.encoder)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `srpo-robot benchmark-progress`."""

    dataset: Dataset
    scorers: Annotated[
        tuple[str, ...],
        typer.Option(
            "--scorer",
            help="Which others to put beside the score: pixel, image, pixel-last10, pixel-mean, shuffled, reversed, "
            "frozen-tail, noise, length, time; may be repeated. All by default; none: the score alone.",
        ),
    ] = ()
    image: Annotated[str | None, typer.Option(help="An image encoder of transformers, by Hub id or folder.")] = None
    ablate: Annotated[
        tuple[str, ...],
        typer.Option(help="Ablations, for example nearest,external,alpha (external needs --reference)."),
        COMMAS,
    ] = ()
    reference: Annotated[str | None, typer.Option(help="Another dataset, for the ablation external.")] = None
    policies: Annotated[
        Path | None, typer.Option(help="CSV episode_index,policy: are policies ranked as by success?", dir_okay=False)
    ] = None
    episode: Annotated[int | None, typer.Option(help="Which one the figure shows; a success by default.")] = None
    counterfactuals: Annotated[
        int, typer.Option(help="Of how many successes to make wrong endings: what does the score pay for them?", min=0)
    ] = 0
    swap_colours: Annotated[
        str,
        typer.Option(
            help="With --counterfactuals: target and distractor exchange their colours, R,G,B:R,G,B as they look.",
            metavar="COLOURS",
        ),
    ] = ""
    score: UnderTest = field(default_factory=UnderTest)
    horizon: Horizon = 10
    resamples: Resamples = 1000
    seed: Seed = 0
    device: Device = "auto"
    dtype: Dtype = None
    latex: Annotated[bool, typer.Option("--latex", help="Also write the table for a paper.")] = False
    json: Json = None


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of `srpo-robot audit`."""

    dataset: Dataset
    level: Annotated[float, typer.Option(help="Largest p that counts as separated.")] = 0.05
    score: UnderTest = field(default_factory=UnderTest)
    horizon: Horizon = 10
    resamples: Resamples = 2000
    device: Device = "auto"
    dtype: Dtype = None
    json: Json = None


def check(options: BenchmarkOptions | AuditOptions) -> None:
    """Checks the dataset's folder and the names that select the score, before torch is imported.

    Raises:
        DatasetError, UsageError, CheckpointError: the folder or a name is wrong.
    """
    from srpo_robot.buffer.opening import check_dataset

    check_dataset(options.dataset)
    options.score.check()
    check_device(options.device)
    if options.dtype is not None:
        check_dtype(options.dtype)
