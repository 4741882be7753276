"""Options of the commands: each dataclass is what Typer shows and parses, and what the command receives.

Imports must stay light: `srpo-robot --help` reads this module. See `command.py` for how a field becomes an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

# --- options of more than one command -----------------------------------------------------------------------------

Dataset = Annotated[str, typer.Argument(help="A LeRobot v3.0 dataset: a folder, or a Hub id like user/name.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the results here, for scripts.", dir_okay=False)]
ArmName = Annotated[str, typer.Option("--arm", help="A recipe of hardware/, for example mock.")]
TaskName = Annotated[str, typer.Option("--task", help="A recipe of datasets/, for example put-apple.")]
Randomization = Annotated[
    float,
    typer.Option(
        help="Mock arm: how much light, colours and cameras vary between episodes, 0 (always the same) to 1 (clearly).",
        min=0.0,
        max=1.0,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of layouts and choices.", min=0)]
Device = Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda, cuda:1, ...")]
Runs = Annotated[tuple[Path, ...], typer.Argument(help="Output folders of srpo-robot run.", show_default=False)]
Alpha = Annotated[float, typer.Option(help="Chance of a false alarm; intervals hold with 1 minus it.")]


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Options of `srpo-robot record`."""

    root: Annotated[Path, typer.Option(help="Dataset folder: new, or one to append to.")]
    episodes: Annotated[int, typer.Option(help="Episodes to add.", min=1)]
    task: TaskName
    arm: ArmName = "mock"
    failure_rate: Annotated[float, typer.Option(help="Share of episodes that fail on purpose.", min=0.0, max=1.0)] = 0.5
    seed: Seed = 0
    randomization: Randomization = 0.0


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options of `srpo-robot label`."""

    dataset: Dataset
    csv: Annotated[Path | None, typer.Option(help="episode_index,success[,group] with a header.", dir_okay=False)] = (
        None
    )
    all_success: Annotated[bool, typer.Option("--all-success", help="Every unlabelled episode is a success.")] = False
    camera: Annotated[str | None, typer.Option(help="Whose frames to show; the first by default.")] = None
    relabel: Annotated[bool, typer.Option("--relabel", help="With keys: show labelled episodes too.")] = False


# --- trials -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """Options of `srpo-robot run` for an arm that moves for real."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Real arm: check everything, move nothing, record nothing.")
    ] = False
    confirm_fault: Annotated[
        bool, typer.Option("--confirm-fault", help="Real arm: somebody has looked after a fault; errors are cleaned.")
    ] = False
    first_pace: Annotated[
        float, typer.Option(help="Real arm: share of the speed caps in the first chunk, for example 0.1.")
    ] = 1.0
    by_hand: Annotated[bool, typer.Option("--by-hand", help="Mock lab: label by keys, although it has a judge.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `srpo-robot run`."""

    output: Annotated[Path, typer.Option(help="New folder for trials.jsonl, logs and the recorded trials.")]
    policy: Annotated[
        str,
        typer.Option(
            help="A checkpoint: a training's output folder, or one checkpoint in it; http://HOST:PORT: one that is "
            "served.",
        ),
    ] = ""
    task: TaskName = ""
    protocol: Annotated[
        Path | None,
        typer.Option(help="A sheet of srpo-robot protocol, which says all that is run; goes on where it stopped."),
    ] = None
    blind: Annotated[
        bool, typer.Option("--blind", help="With --protocol: letters instead of the policies' names until its end.")
    ] = False
    arm: ArmName = "mock"
    trials: Annotated[int, typer.Option(help="Number of trials.", min=1)] = 20
    record_to: Annotated[
        Path | None, typer.Option(help="Append the trials to this dataset instead of OUTPUT/dataset.")
    ] = None
    seed: Seed = 10_000
    randomization: Randomization = 0.0
    device: Device = "auto"
    live: LiveOptions = LiveOptions()
    json_path: Json = None


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of `srpo-robot check`."""

    arm: ArmName = "xarm7"
    policy: Annotated[str, typer.Option(help="A checkpoint, or http://HOST:PORT: its first chunk is checked.")] = ""
    task: Annotated[str, typer.Option(help="With --policy: what it is for, a recipe of datasets/.")] = ""
    set_up: Annotated[
        bool, typer.Option("--set-up", help="Store the recipe's settings in the controller: motors on, nothing moves.")
    ] = False
    move: Annotated[bool, typer.Option("--move", help="Open and close the gripper without asking; sets up.")] = False
    estop: Annotated[bool, typer.Option("--estop/--no-estop", help="Ask for the emergency stop.")] = True
    pictures: Annotated[
        Path | None, typer.Option(help="Write what the cameras see into this folder.", file_okay=False)
    ] = None
    device: Device = "auto"
    json_path: Json = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `srpo-robot serve`."""

    policy: Annotated[str, typer.Option(help="A checkpoint.")]
    task: TaskName
    arm: ArmName = "xarm7"
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class MockLabOptions:
    """Options of `srpo-robot mock-lab`."""

    task: TaskName
    recipe: Annotated[Path, typer.Option(help="The hardware recipe to write, for run --arm FILE.")] = Path(
        "mock_lab.toml"
    )
    host: Annotated[str, typer.Option(help="A loopback address; a free one by default.")] = ""
    port: Annotated[
        int, typer.Option(help="Command port; the real one, 502, needs privileges. 0: a free one.", min=0, max=65535)
    ] = 0
    seed: Seed = 0
    randomization: Randomization = 0.0


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Options of `srpo-robot protocol`."""

    output: Annotated[Path, typer.Option(help="The sheet, a new file; its key is written beside it.", dir_okay=False)]
    policies: Annotated[
        tuple[str, ...],
        typer.Option("--policy", help="As of run; repeated. The first is what others are compared with."),
    ]
    tasks: Annotated[tuple[str, ...], typer.Option("--task", help="A recipe of datasets/; may be repeated.")]
    trials: Annotated[int, typer.Option(help="Layouts a task; every policy is tried once on each.", min=1)] = 30
    arm: ArmName = "mock"
    seed: Seed = 0
    by_task: Annotated[
        bool, typer.Option("--by-task", help="One task after the other, instead of a layout of each in turn.")
    ] = False
    randomization: Randomization = 0.0


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `srpo-robot compare`."""

    runs: Runs
    baseline: Annotated[str, typer.Option(help="The policy that others are compared with; the first by default.")] = ""
    task: Annotated[str, typer.Option(help="This task alone.")] = ""
    dataset: Annotated[
        Path | None, typer.Option(help="Where the trials were recorded, for progress; RUN/dataset by default.")
    ] = None
    difference: Annotated[
        float, typer.Option(help="How many more trials does one of this size need? 0.2: 20 points.")
    ] = 0.2
    power: Annotated[float, typer.Option(help="With which chance it is then to be shown.")] = 0.8
    alpha: Alpha = 0.05
    margin: Annotated[
        float | None, typer.Option(help="Smaller differences do not matter: say stop when none larger is possible.")
    ] = None
    unblind: Annotated[
        bool, typer.Option("--unblind", help="Name the policies of a blind protocol before its end.")
    ] = False
    json_path: Json = None


@dataclass(frozen=True, kw_only=True)
class RoundsOptions:
    """Options of `srpo-robot rounds`."""

    runs: Runs
    alpha: Alpha = 0.05
    json_path: Json = None


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `srpo-robot demo`."""

    root: Annotated[Path, typer.Option(help="Where everything goes; a second call goes on from what is there.")] = Path(
        "demo"
    )
    episodes: Annotated[int, typer.Option(help="Episodes in the buffer.", min=4)] = 40
    steps: Annotated[int, typer.Option(help="Training steps for each of AWR and SFT.", min=2)] = 700
    trials: Annotated[int, typer.Option(help="Trials for each.", min=1)] = 10
