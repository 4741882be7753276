"""Options of `score-dataset`. Light imports only: `srpo-robot --help` reads this module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from srpo_robot.cli.command import COMMAS
from srpo_robot.cli.devices import check_device
from srpo_robot.cli.options import Dataset, Device, Json
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder_names import EMBEDDED, check_attention, check_dtype, check_encoder


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Options of `srpo-robot score-dataset`; `config` describes the score, the others describe the run."""

    dataset: Dataset
    encoder: Annotated[
        str, typer.Option(help="V-JEPA 2: a Hub id (facebook/vjepa2-vitl-fpc64-256), a folder, or embedded (a demo).")
    ] = EMBEDDED
    config: ScoringConfig = field(default_factory=ScoringConfig)
    skip_bad_episodes: Annotated[
        bool, typer.Option("--skip-bad-episodes", help="Leave out episodes that cannot be decoded, and list them.")
    ] = False
    compare: Annotated[
        tuple[str, ...], typer.Option(help="Show where profiles disagree, for example paper,siirl,loo."), COMMAS
    ] = ()
    plan: Annotated[bool, typer.Option("--plan", help="Print windows, TFLOP, time and disk, and stop.")] = False
    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32"
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa"
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the encoder; pays on a GPU only.")] = False
    json: Json = None

    def check(self) -> None:
        """Checks the names of encoder, precision, attention, device and profiles without importing torch.

        Raises:
            UsageError, CheckpointError: a name is unknown, or the folder of the encoder is incomplete.
        """
        check_encoder(self.encoder)
        check_dtype(self.dtype)
        check_attention(self.attention)
        check_device(self.device)
        for profile in self.compare:
            ScoringConfig(profile=profile)  # type: ignore[arg-type]  # the config names the profiles
