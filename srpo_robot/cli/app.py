"""The commands as Typer functions. Each passes its options to the module beside this one that does the work.

The docstrings of the functions are the help pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srpo_robot import __version__
from srpo_robot.cli.benchmark_options import AuditOptions, BenchmarkOptions
from srpo_robot.cli.command import command
from srpo_robot.cli.inputs import check_runs
from srpo_robot.cli.options import (
    CheckOptions,
    CompareOptions,
    Dataset,
    DemoOptions,
    LabelOptions,
    MockLabOptions,
    ProtocolOptions,
    RecordOptions,
    RoundsOptions,
    RunOptions,
    ServeOptions,
)
from srpo_robot.cli.scoring_options import ScoreOptions
from srpo_robot.cli.weighting_options import ExportOptions, TrainOptions, WeightsOptions
from srpo_robot.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Score robot episodes by self-reference (SRPO), fine-tune a policy by advantage, evaluate it on the arm.",
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


def _names(text: str) -> tuple[str, ...]:
    """Returns the names between the commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command(epilog="Example: srpo-robot init my-lab")
def init(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Put the packaged recipes (tasks, policies, hardware) into a folder of your own, to edit."""
    from srpo_robot.cli.lab import init_lab

    init_lab(folder)


@command(
    app, example="srpo-robot record --arm mock --task put-apple --episodes 40 --root data/apple --failure-rate 0.5"
)
def record(options: RecordOptions) -> None:
    """Record demonstrations into a buffer. On the mock arm: scripted, with chosen failures."""
    from srpo_robot.cli.running import record_demonstrations

    record_demonstrations(options)


@app.command(epilog="Example: srpo-robot repair data/apple")
def repair(root: Annotated[Path, typer.Argument(help="The dataset's folder.")]) -> None:
    """Bring a dataset whose recording was cut off back to its finished episodes; the rest is moved aside."""
    from srpo_robot.cli.lab import repair_dataset

    repair_dataset(root)


@command(app, example="srpo-robot label data/apple --csv labels.csv")
def label(options: LabelOptions) -> None:
    """Say which episodes are successes: by keys (the last frame and a strip are shown), by CSV, or by rule."""
    from srpo_robot.cli.labelling import label_dataset

    label_dataset(options)


@command(app, "score-dataset", example="srpo-robot score-dataset data/apple --encoder facebook/vjepa2-vitl-fpc64-256")
def score_dataset(options: ScoreOptions) -> None:
    """Embed growing windows, measure progress by the task's own successes, and write DATASET/srpo/.

    Changing profile, references or value never embeds again. Under `accelerate launch -m srpo_robot.cli` or torchrun
    the episodes are dealt to the processes.
    """
    from srpo_robot.cli.scoring import score_command

    score_command(options)


@app.command(epilog="Example: srpo-robot store data/apple --prune")
def store(
    dataset: Dataset,
    prune: Annotated[bool, typer.Option("--prune", help="Remove embeddings of videos that are gone.")] = False,
) -> None:
    """List the embeddings that a dataset has."""
    from srpo_robot.cli.scoring import list_store

    list_store(dataset, prune)


@command(app, "benchmark-progress", example="srpo-robot benchmark-progress data/apple --image facebook/dinov2-small")
def benchmark_progress(options: BenchmarkOptions) -> None:
    """The paper's benchmark (SC, Mono, MMD, JS, SMD) and ROC-AUC on your episodes,
    beside negative controls and baselines."""
    from srpo_robot.cli.benchmarking import benchmark_command

    benchmark_command(options)


@command(app, example="srpo-robot audit data/apple")
def audit(options: AuditOptions) -> None:
    """The gate before training: does the score tell success from failure, and better than its negative controls?"""
    from srpo_robot.cli.benchmarking import audit_command

    if not audit_command(options).passed:
        raise typer.Exit(1)


@app.command(epilog="Example: srpo-robot report data/apple")
def report(
    dataset: Dataset,
    output: Annotated[
        Path | None, typer.Option(help="The page; DATASET/srpo/report.html by default.", dir_okay=False)
    ] = None,
) -> None:
    """One HTML page of a scored dataset: curves, film strips, strategy maps, where it failed, weights, the audit."""
    from srpo_robot.cli.reporting import report_dataset

    report_dataset(dataset, output)


@command(app, example="srpo-robot weights data/apple --policy pi0-tiny")
def weights(options: WeightsOptions) -> None:
    """Look at AWR's weights before training: who carries the gradient, by label, task and part of the episode."""
    from srpo_robot.cli.weighing import weights_command

    weights_command(options)


@command(app, example="srpo-robot export data/apple --to rabc")
def export(options: ExportOptions) -> None:
    """Hand the scores to another trainer as a file beside the recorded data, by frame index."""
    from srpo_robot.cli.exporting import export_command

    export_command(options)


@command(app, "train-awr", example="srpo-robot train-awr data/apple --policy pi0-tiny --output outputs/awr")
def train_awr(options: TrainOptions) -> None:
    """Fine-tune a policy on a scored buffer, each frame weighted by its advantage.

    The options stand in for the recipe's keys of the same names. Under `accelerate launch -m srpo_robot.cli` or
    torchrun the batch is dealt to the processes.
    """
    from srpo_robot.cli.training import train_command

    train_command(options)


@command(
    app, example="srpo-robot run --arm mock --policy outputs/awr --task put-apple --trials 20 --output outputs/run"
)
def run(context: typer.Context, options: RunOptions) -> None:
    """Evaluation runs: each trial is a row in trials.jsonl and an episode with the executed actions and the verdict.

    On a real arm a person stands at the keys: Enter sends it home and starts the policy, space stops it, s, f and r
    label the trial or have it redone, q ends the run.
    """
    if options.protocol is not None:
        _refuse_beside_protocol(context)
        from srpo_robot.cli.protocols import run_protocol

        run_protocol(options)
        return
    if options.blind or not (options.policy and options.task):
        raise UsageError("--blind needs --protocol" if options.blind else "give --policy and --task, or --protocol")
    from srpo_robot.cli.running import run_trials

    run_trials(options)


def _refuse_beside_protocol(context: typer.Context) -> None:
    """Raises UsageError if an option was given that the sheet of a protocol already says."""
    for name in ("policy", "task", "arm", "trials", "record_to", "seed", "randomization"):
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE":
            raise UsageError(f"the protocol says that already; leave out --{name.replace('_', '-')}")


@command(app, example="srpo-robot check --arm xarm7 --policy outputs/awr --task put-apple")
def check(options: CheckOptions) -> None:
    """The list before an arm moves, PASS, FAIL or SKIP line by line with what to do; exit code 1 where one fails.

    Looks only, unless --set-up, --move or a person at the keys says otherwise. The arm itself never moves.
    """
    from srpo_robot.cli.checking import check_command

    if not check_command(options):
        raise typer.Exit(1)


@command(app, example="srpo-robot serve --policy outputs/awr --task put-apple --arm xarm7 --host 0.0.0.0")
def serve(options: ServeOptions) -> None:
    """Serve a policy to a robot's machine, which runs it with --policy http://HOST:PORT."""
    from srpo_robot.cli.running import serve_policy

    serve_policy(options)


@command(app, "mock-lab", example="srpo-robot mock-lab --task put-apple")
def mock_lab(options: MockLabOptions) -> None:
    """An emulated xArm 7 with cameras on loopback, for the real driver: a lab in a terminal."""
    from srpo_robot.cli.mock_lab import mock_lab as open_lab

    open_lab(options)


@command(
    app, example="srpo-robot protocol --task put-apple --policy outputs/sft --policy outputs/awr --output study.json"
)
def protocol(options: ProtocolOptions) -> None:
    """Write a trial protocol: layouts, swaps and the order of the policies, drawn before the first trial."""
    from srpo_robot.cli.protocols import new_protocol

    new_protocol(options)


@command(app, example="srpo-robot compare outputs/run_sft outputs/run_awr")
def compare(options: CompareOptions) -> None:
    """Policies side by side: intervals, paired and stratified exact tests, when to stop, how many more trials."""
    check_runs(options.runs)
    from srpo_robot.cli.comparing import compare_command

    compare_command(options)


@app.command(epilog="Example: srpo-robot append data/apple outputs/round_0 outputs/round_1")
def append(
    dataset: Annotated[Path, typer.Argument(help="The buffer's folder: a dataset, or a new one.")],
    runs: Annotated[list[Path], typer.Argument(help="Runs with their recorded trials, or datasets.")],
) -> None:
    """Put the recorded trials of runs back into the buffer: the next round is scored and trained with them."""
    from srpo_robot.cli.rounds import append_command

    append_command(dataset, tuple(runs))


@command(app, example="srpo-robot rounds outputs/round_0 outputs/round_1 outputs/round_2")
def rounds(options: RoundsOptions) -> None:
    """Success rate by round of the flywheel: the runs in their order, each against the first."""
    check_runs(options.runs)
    from srpo_robot.cli.rounds import rounds_command

    rounds_command(options)


@command(app, example="srpo-robot demo --root demo")
def demo(options: DemoOptions) -> None:
    """The whole loop on the mock cell, small and offline: record, score, train, run, report."""
    from srpo_robot.cli.demo import run_demo

    run_demo(options)
