"""Options of the commands: each dataclass is what Typer shows and parses, and what the command receives.

Imports must stay light: `srpo-robot --help` reads this module. See `command.py` for how a field becomes an option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# --- options of more than one command -----------------------------------------------------------------------------

Dataset = Annotated[str, typer.Argument(help="A LeRobot v3.0 dataset: a folder, or a Hub id like user/name.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the results here, for scripts.", dir_okay=False)]
Seed = Annotated[int, typer.Option(help="Seed of layouts and choices.", min=0)]
Device = Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda, cuda:1, ...")]
