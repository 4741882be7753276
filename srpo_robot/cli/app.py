"""Typer: the commands and their options. Parses, calls, prints; the work is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from srpo_robot import __version__
from srpo_robot.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Score robot episodes by self-reference (SRPO), fine-tune a policy by advantage, evaluate it on the arm.",
)

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


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _names(text: str) -> tuple[str, ...]:
    """What stands between the commas."""
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


@app.command(
    epilog="Example: srpo-robot record --arm mock --task put-apple --episodes 40 --root data/apple --failure-rate 0.5"
)
def record(
    root: Annotated[Path, typer.Option(help="Dataset folder: new, or one to append to.")],
    episodes: Annotated[int, typer.Option(help="Episodes to add.", min=1)],
    task: TaskName,
    arm: ArmName = "mock",
    failure_rate: Annotated[
        float, typer.Option(help="Share of episodes that fail on purpose.", min=0.0, max=1.0)
    ] = 0.5,
    seed: Seed = 0,
    randomization: Randomization = 0.0,
) -> None:
    """Record demonstrations into a buffer. On the mock arm: scripted, with chosen failures."""
    from srpo_robot.cli.running import record_demonstrations

    record_demonstrations(arm, task, root, episodes, failure_rate, seed, randomization)


@app.command(epilog="Example: srpo-robot repair data/apple")
def repair(root: Annotated[Path, typer.Argument(help="The dataset's folder.")]) -> None:
    """Bring a dataset whose recording was cut off back to its finished episodes; the rest is moved aside."""
    from srpo_robot.cli.lab import repair_dataset

    repair_dataset(root)


@app.command(epilog="Example: srpo-robot label data/apple --csv labels.csv")
def label(
    dataset: Dataset,
    csv: Annotated[
        Path | None, typer.Option(help="episode_index,success[,group] with a header.", dir_okay=False)
    ] = None,
    all_success: Annotated[bool, typer.Option("--all-success", help="Every unlabelled episode is a success.")] = False,
    camera: Annotated[str | None, typer.Option(help="Whose frames to show; the first by default.")] = None,
    relabel: Annotated[bool, typer.Option("--relabel", help="With keys: show labelled episodes too.")] = False,
) -> None:
    """Say which episodes are successes: by keys (the last frame and a strip are shown), by CSV, or by rule."""
    from srpo_robot.cli.labelling import label_dataset

    label_dataset(dataset, csv, all_success, camera, relabel)


@app.command(
    "score-dataset", epilog="Example: srpo-robot score-dataset data/apple --encoder facebook/vjepa2-vitl-fpc64-256"
)
def score_dataset(
    dataset: Dataset,
    encoder: Annotated[
        str, typer.Option(help="V-JEPA 2: a Hub id (facebook/vjepa2-vitl-fpc64-256), a folder, or embedded (a demo).")
    ] = "embedded",
    camera: Annotated[
        list[str] | None, typer.Option(help="Which camera, the first by default; repeated: their distances combined.")
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            help="dense (every frame, the paper), stride:K (K times cheaper; rms difference of progress to dense .009 "
            "at 2, .016 at 4, .026 at 8) or nested (70 times cheaper, .15); measured on 336 frames, see the README."
        ),
    ] = "stride:4",
    window_shape: Annotated[
        str, typer.Option(help="prefix (frames 0..t, the paper) or recent (the last ones).")
    ] = "prefix",
    min_window: Annotated[int, typer.Option(help="Last frame of the first window, t0.", min=1)] = 10,
    frames_per_clip: Annotated[
        int | None, typer.Option(help="Frames of a clip, even; the encoder's by default.")
    ] = None,
    profile: Annotated[
        Literal["paper", "paper-literal", "siirl", "loo"],
        typer.Option(help="How distance becomes progress and reward; loo: leave-one-out, success and failure alike."),
    ] = "paper",
    references: Annotated[
        str,
        typer.Option(
            help="dbscan-auto, a number (DBSCAN eps), mean, nearest, knn3, medoid, hdbscan, siirl, external; "
            "by default the profile's."
        ),
    ] = "",
    reference: Annotated[str | None, typer.Option(help="Another dataset whose successes are the references.")] = None,
    value: Annotated[
        str, typer.Option(help="Step value that trains: progress (the paper, default), reward, knn-time or knn-return.")
    ] = "",
    skip_task: Annotated[list[str] | None, typer.Option(help="Leave this task out; may be repeated.")] = None,
    skip_bad_episodes: Annotated[
        bool, typer.Option("--skip-bad-episodes", help="Leave out episodes that cannot be decoded, and list them.")
    ] = False,
    compare: Annotated[str, typer.Option(help="Show where profiles disagree, for example paper,siirl,loo.")] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Print windows, TFLOP, time and disk, and stop.")] = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the encoder; pays on a GPU only.")] = False,
    json: Json = None,
) -> None:
    """Embed growing windows, measure progress by the task's own successes, and write DATASET/srpo/.

    Changing profile, references or value never embeds again. Under `accelerate launch -m srpo_robot.cli` or torchrun
    the episodes are dealt to the processes.
    """
    from srpo_robot.cli.scoring import ScoreOptions, score_command

    score_command(
        ScoreOptions(
            dataset=dataset,
            encoder=encoder,
            cameras=tuple(camera or ()),
            windows=windows,
            window_shape=window_shape,
            min_window=min_window,
            frames_per_clip=frames_per_clip,
            profile=profile,
            references=references,
            value=value,
            reference=reference,
            skip_tasks=tuple(skip_task or ()),
            skip_bad=skip_bad_episodes,
            compare=_names(compare),
            plan=plan,
            device=device,
            dtype=dtype,
            attention=attention,
            compile=compile,
            json_path=json,
        )
    )


@app.command(epilog="Example: srpo-robot store data/apple --prune")
def store(
    dataset: Dataset,
    prune: Annotated[bool, typer.Option("--prune", help="Remove embeddings of videos that are gone.")] = False,
) -> None:
    """List the embeddings that a dataset has."""
    from srpo_robot.cli.scoring import list_store

    list_store(dataset, prune)


Encoder = Annotated[str | None, typer.Option(help="Another encoder than the score's.")]
Cameras = Annotated[list[str] | None, typer.Option("--camera", help="Other cameras than the score's; may be repeated.")]
WindowKind = Annotated[str | None, typer.Option("--windows", help="Other windows than the score's.")]
WindowShape = Annotated[str | None, typer.Option(help="Another shape than the score's: prefix or recent.")]
MinWindow = Annotated[int | None, typer.Option(help="Another first window than the score's.", min=1)]
ClipFrames = Annotated[int | None, typer.Option("--frames-per-clip", help="Another clip length than the score's.")]
Dtype = Annotated[str | None, typer.Option(help="Another dtype than the score's.")]
Horizon = Annotated[int, typer.Option(help="Frames of a chunk, for the step values.", min=1)]
Resamples = Annotated[int, typer.Option(help="Of the bootstrap and of the permutations.", min=0)]


@app.command(
    "benchmark-progress", epilog="Example: srpo-robot benchmark-progress data/apple --image facebook/dinov2-small"
)
def benchmark_progress(
    dataset: Dataset,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="Which others to put beside the score: pixel, image, pixel-last10, pixel-mean, shuffled, reversed, "
            "frozen-tail, noise, length, time; may be repeated. All by default; none: the score alone."
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="An image encoder of transformers, by Hub id or folder.")] = None,
    ablate: Annotated[
        str, typer.Option(help="Ablations, for example nearest,external,alpha (external needs --reference).")
    ] = "",
    reference: Annotated[str | None, typer.Option(help="Another dataset, for the ablation external.")] = None,
    policies: Annotated[
        Path | None, typer.Option(help="CSV episode_index,policy: are policies ranked as by success?", dir_okay=False)
    ] = None,
    episode: Annotated[int | None, typer.Option(help="Which one the figure shows; a success by default.")] = None,
    counterfactuals: Annotated[
        int, typer.Option(help="Of how many successes to make wrong endings: what does the score pay for them?", min=0)
    ] = 0,
    swap_colours: Annotated[
        str,
        typer.Option(
            help="With --counterfactuals: target and distractor exchange their colours, R,G,B:R,G,B as they look.",
            metavar="COLOURS",
        ),
    ] = "",
    encoder: Encoder = None,
    camera: Cameras = None,
    windows: WindowKind = None,
    window_shape: WindowShape = None,
    min_window: MinWindow = None,
    frames_per_clip: ClipFrames = None,
    horizon: Horizon = 10,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    latex: Annotated[bool, typer.Option("--latex", help="Also write the table for a paper.")] = False,
    json: Json = None,
) -> None:
    """The paper's benchmark (SC, Mono, MMD, JS, SMD) and ROC-AUC on your episodes.

    Negative controls and baselines stand beside the score."""
    from srpo_robot.cli.benchmarking import BenchmarkOptions, UnderTest, benchmark_command

    test = UnderTest(
        dataset, encoder, tuple(camera or ()), windows, window_shape, min_window, frames_per_clip, device, dtype
    )
    ablations = _names(ablate)
    benchmark_command(
        BenchmarkOptions(
            test,
            tuple(scorer or ()),
            image,
            ablations,
            reference,
            policies,
            episode,
            counterfactuals,
            swap_colours,
            horizon,
            resamples,
            seed,
            latex,
            json,
        )
    )


@app.command(epilog="Example: srpo-robot audit data/apple")
def audit(
    dataset: Dataset,
    level: Annotated[float, typer.Option(help="Largest p that counts as separated.")] = 0.05,
    encoder: Encoder = None,
    camera: Cameras = None,
    windows: WindowKind = None,
    window_shape: WindowShape = None,
    min_window: MinWindow = None,
    frames_per_clip: ClipFrames = None,
    horizon: Horizon = 10,
    resamples: Resamples = 2000,
    device: Device = "auto",
    dtype: Dtype = None,
    json: Json = None,
) -> None:
    """The gate before training: does the score tell success from failure, and better than its negative controls?"""
    from srpo_robot.cli.benchmarking import UnderTest, audit_command

    test = UnderTest(
        dataset, encoder, tuple(camera or ()), windows, window_shape, min_window, frames_per_clip, device, dtype
    )
    if not audit_command(test, level, horizon, resamples, json).passed:
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


WeightsPolicy = Annotated[
    str | None, typer.Option("--policy", help="A recipe of policies/ whose keys make the weights, for example pi0.")
]
Beta = Annotated[float | None, typer.Option(help="Temperature of exp(A / beta).")]
WMax = Annotated[float | None, typer.Option(help="Cap on exp(A / beta).")]
ChunkHorizon = Annotated[int | None, typer.Option(help="Frames of the chunk advantage.", min=1)]
Shift = Annotated[
    int | None,
    typer.Option(help="1: the gain after frame t, which its action caused; 0: one frame earlier.", min=0, max=1),
]
Tail = Annotated[
    Literal["divide", "raw", "drop"] | None, typer.Option(help="How a horizon cut by the episode's end counts.")
]
Kappa = Annotated[float | None, typer.Option(help="Share of the trajectory advantage.", min=0.0)]
Baseline = Annotated[
    Literal["mean", "value"] | None,
    typer.Option(help="What a gain is compared with: all gains, or those of chunks that start from a like value."),
]


@app.command(epilog="Example: srpo-robot weights data/apple --policy pi0-tiny")
def weights(
    dataset: Dataset,
    policy: WeightsPolicy = None,
    beta: Beta = None,
    w_max: WMax = None,
    horizon: ChunkHorizon = None,
    shift: Shift = None,
    tail: Tail = None,
    kappa: Kappa = None,
    baseline: Baseline = None,
    betas: Annotated[str, typer.Option(help="Of the grid.")] = "0.1,0.3,1,3",
    caps: Annotated[str, typer.Option(help="Values of w_max of the grid.")] = "5,20,100",
    csv: Annotated[Path | None, typer.Option(help="Also write the grid as CSV.", dir_okay=False)] = None,
    json: Json = None,
) -> None:
    """Look at AWR's weights before training: who carries the gradient, by label, task and part of the episode."""
    from srpo_robot.cli.weighing import WeightingOptions, parse_numbers, weights_command

    options = WeightingOptions(policy, beta, w_max, horizon, shift, tail, kappa, baseline)
    grid = parse_numbers(betas, "--betas"), parse_numbers(caps, "--caps")
    weights_command(dataset, options, *grid, csv, json)


@app.command(epilog="Example: srpo-robot export data/apple --to rabc")
def export(
    dataset: Dataset,
    to: Annotated[
        Literal["rabc", "weights", "recap"],
        typer.Option(
            help="rabc: progress for lerobot-train --sample_weighting.type=rabc; weights: AWR's, for the plugin "
            "lerobot_policy_srpo_awr; recap: is a frame's advantage positive, as pi*0.6 is conditioned."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The parquet file; a place in the dataset's folder by default.", dir_okay=False)
    ] = None,
    policy: WeightsPolicy = None,
    beta: Beta = None,
    w_max: WMax = None,
    horizon: ChunkHorizon = None,
    shift: Shift = None,
    tail: Tail = None,
    kappa: Kappa = None,
    baseline: Baseline = None,
    positive: Annotated[
        float, typer.Option(help="recap: share of each task's frames that is positive.", min=0.0, max=1.0)
    ] = 0.3,
) -> None:
    """Hand the scores to another trainer as a file beside the recorded data, by frame index."""
    from srpo_robot.cli.exporting import export_command
    from srpo_robot.cli.weighing import WeightingOptions

    options = WeightingOptions(policy, beta, w_max, horizon, shift, tail, kappa, baseline)
    export_command(dataset, to, output, options, positive)


@app.command("train-awr", epilog="Example: srpo-robot train-awr data/apple --policy pi0-tiny --output outputs/awr")
def train_awr(
    dataset: Dataset,
    policy: Annotated[str, typer.Option(help="A recipe of policies/, for example pi0-tiny.")],
    output: Annotated[Path, typer.Option(help="New folder for checkpoints and metrics.")],
    weights: Annotated[
        Literal["awr", "uniform", "success", "rabc"],
        typer.Option(help="awr: by advantage; uniform: SFT; success: filtered behaviour cloning; rabc: as lerobot's."),
    ] = "awr",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of the recipe's.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a pass, instead of the recipe's.", min=1)] = None,
    beta: Beta = None,
    w_max: WMax = None,
    horizon: ChunkHorizon = None,
    shift: Shift = None,
    tail: Tail = None,
    kappa: Kappa = None,
    baseline: Baseline = None,
    weights_as: Annotated[
        Literal["loss", "sampling"] | None,
        typer.Option(help="A frame's weight multiplies its loss, or says how often it is drawn."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.", min=0)] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")] = False,
    accept_audit: Annotated[
        bool, typer.Option("--accept-audit", help="Train although the audit failed, or was never made.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory and steps, and write nothing.")
    ] = False,
    track: Annotated[str, typer.Option(help="Metrics also go to tensorboard, wandb, or both: tensorboard,wandb.")] = "",
) -> None:
    """Fine-tune a policy on a scored buffer, each frame weighted by its advantage.

    The options stand in for the recipe's keys of the same names. Under `accelerate launch -m srpo_robot.cli` or
    torchrun the batch is dealt to the processes.
    """
    from srpo_robot.cli.training import TrainOptions, TrainOverrides, train_command

    overrides = TrainOverrides(steps, batch_size, beta, w_max, horizon, shift, tail, kappa, baseline, weights_as, seed)
    options = TrainOptions(output, device, resume, accept_audit, dry_run, _names(track))
    train_command(dataset, policy, weights, overrides, options)


PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        help="A checkpoint: a training's output folder, or one checkpoint in it; http://HOST:PORT: one that is served.",
    ),
]


@app.command(
    epilog="Example: srpo-robot run --arm mock --policy outputs/awr --task put-apple --trials 20 --output outputs/run"
)
def run(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="New folder for trials.jsonl, logs and the recorded trials.")],
    policy: PolicyName = "",
    task: TaskName = "",
    protocol: Annotated[
        Path | None,
        typer.Option(help="A sheet of srpo-robot protocol, which says all that is run; goes on where it stopped."),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="With --protocol: letters instead of the policies' names until its end.")
    ] = False,
    arm: ArmName = "mock",
    trials: Annotated[int, typer.Option(help="Number of trials.", min=1)] = 20,
    record_to: Annotated[
        Path | None, typer.Option(help="Append the trials to this dataset instead of OUTPUT/dataset.")
    ] = None,
    seed: Seed = 10_000,
    randomization: Randomization = 0.0,
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Real arm: check everything, move nothing, record nothing.")
    ] = False,
    confirm_fault: Annotated[
        bool, typer.Option("--confirm-fault", help="Real arm: somebody has looked after a fault; errors are cleaned.")
    ] = False,
    first_pace: Annotated[
        float, typer.Option(help="Real arm: share of the speed caps in the first chunk, for example 0.1.")
    ] = 1.0,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Mock lab: label by keys, although it has a judge.")
    ] = False,
    json: Json = None,
) -> None:
    """Evaluation runs: each trial is a row in trials.jsonl and an episode with the executed actions and the verdict.

    On a real arm a person stands at the keys: Enter sends it home and starts the policy, space stops it, s, f and r
    label the trial or have it redone, q ends the run.
    """
    from srpo_robot.cli.running import RunOptions, run_trials
    from srpo_robot.cli.sessions import LiveOptions

    live = LiveOptions(output, first_pace, confirm_fault, by_hand, dry_run)
    theirs = ("policy", "task", "arm", "trials", "record_to", "seed", "randomization")
    given = [name for name in theirs if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if protocol is not None and given:
        raise UsageError(f"the protocol says that already; leave out --{given[0].replace('_', '-')}")
    if protocol is not None:
        from srpo_robot.cli.protocols import run_protocol

        run_protocol(protocol, live, blind, device, json)
        return
    if blind or not (policy and task):
        raise UsageError("--blind needs --protocol" if blind else "give --policy and --task, or --protocol")
    run_trials(RunOptions(arm, task, policy, trials, live, record_to, seed, device, json, randomization))


@app.command(epilog="Example: srpo-robot check --arm xarm7 --policy outputs/awr --task put-apple")
def check(
    arm: ArmName = "xarm7",
    policy: Annotated[str, typer.Option(help="A checkpoint, or http://HOST:PORT: its first chunk is checked.")] = "",
    task: Annotated[str, typer.Option(help="With --policy: what it is for, a recipe of datasets/.")] = "",
    set_up: Annotated[
        bool, typer.Option("--set-up", help="Store the recipe's settings in the controller: motors on, nothing moves.")
    ] = False,
    move: Annotated[bool, typer.Option("--move", help="Open and close the gripper without asking; sets up.")] = False,
    estop: Annotated[bool, typer.Option("--estop/--no-estop", help="Ask for the emergency stop.")] = True,
    pictures: Annotated[
        Path | None, typer.Option(help="Write what the cameras see into this folder.", file_okay=False)
    ] = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """The list before an arm moves, PASS, FAIL or SKIP line by line with what to do; exit code 1 where one fails.

    Looks only, unless --set-up, --move or a person at the keys says otherwise. The arm itself never moves.
    """
    from srpo_robot.cli.checking import CheckOptions, check_command

    if not check_command(CheckOptions(arm, policy, task, set_up, move, estop, pictures, device, json)):
        raise typer.Exit(1)


@app.command(epilog="Example: srpo-robot serve --policy outputs/awr --task put-apple --arm xarm7 --host 0.0.0.0")
def serve(
    policy: Annotated[str, typer.Option(help="A checkpoint.")],
    task: TaskName,
    arm: ArmName = "xarm7",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    device: Device = "auto",
) -> None:
    """Serve a policy to a robot's machine, which runs it with --policy http://HOST:PORT."""
    from srpo_robot.cli.running import serve_policy

    serve_policy(arm, task, policy, host, port, device)


@app.command("mock-lab", epilog="Example: srpo-robot mock-lab --task put-apple")
def mock_lab(
    task: TaskName,
    recipe: Annotated[Path, typer.Option(help="The hardware recipe to write, for run --arm FILE.")] = Path(
        "mock_lab.toml"
    ),
    host: Annotated[str, typer.Option(help="A loopback address; a free one by default.")] = "",
    port: Annotated[
        int, typer.Option(help="Command port; the real one, 502, needs privileges. 0: a free one.", min=0, max=65535)
    ] = 0,
    seed: Seed = 0,
    randomization: Randomization = 0.0,
) -> None:
    """An emulated xArm 7 with cameras on loopback, for the real driver: a lab in a terminal."""
    from srpo_robot.cli.mock_lab import mock_lab as open_lab

    open_lab(task, recipe, host, port, seed, randomization)


@app.command(
    epilog="Example: srpo-robot protocol --task put-apple --policy outputs/sft --policy outputs/awr --output study.json"
)
def protocol(
    output: Annotated[Path, typer.Option(help="The sheet, a new file; its key is written beside it.", dir_okay=False)],
    policy: Annotated[list[str], typer.Option(help="As of run; repeated. The first is what others are compared with.")],
    task: Annotated[list[str], typer.Option(help="A recipe of datasets/; may be repeated.")],
    trials: Annotated[int, typer.Option(help="Layouts a task; every policy is tried once on each.", min=1)] = 30,
    arm: ArmName = "mock",
    seed: Seed = 0,
    by_task: Annotated[
        bool, typer.Option("--by-task", help="One task after the other, instead of a layout of each in turn.")
    ] = False,
    randomization: Randomization = 0.0,
) -> None:
    """Write a trial protocol: layouts, swaps and the order of the policies, drawn before the first trial."""
    from srpo_robot.cli.protocols import new_protocol

    new_protocol(output, arm, tuple(task), tuple(policy), trials, seed, by_task, randomization)


Runs = Annotated[list[Path], typer.Argument(help="Output folders of srpo-robot run.", show_default=False)]
Alpha = Annotated[float, typer.Option(help="Chance of a false alarm; intervals hold with 1 minus it.")]


@app.command(epilog="Example: srpo-robot compare outputs/run_sft outputs/run_awr")
def compare(
    runs: Runs,
    baseline: Annotated[str, typer.Option(help="The policy that others are compared with; the first by default.")] = "",
    task: Annotated[str, typer.Option(help="This task alone.")] = "",
    dataset: Annotated[
        Path | None, typer.Option(help="Where the trials were recorded, for progress; RUN/dataset by default.")
    ] = None,
    difference: Annotated[
        float, typer.Option(help="How many more trials does one of this size need? 0.2: 20 points.")
    ] = 0.2,
    power: Annotated[float, typer.Option(help="With which chance it is then to be shown.")] = 0.8,
    alpha: Alpha = 0.05,
    margin: Annotated[
        float | None, typer.Option(help="Smaller differences do not matter: say stop when none larger is possible.")
    ] = None,
    unblind: Annotated[
        bool, typer.Option("--unblind", help="Name the policies of a blind protocol before its end.")
    ] = False,
    json: Json = None,
) -> None:
    """Policies side by side: intervals, paired and stratified exact tests, when to stop, how many more trials."""
    from srpo_robot.cli.comparing import CompareOptions, compare_command

    compare_command(
        CompareOptions(tuple(runs), baseline, task, dataset, difference, power, alpha, margin, unblind, json)
    )


@app.command(epilog="Example: srpo-robot append data/apple outputs/round_0 outputs/round_1")
def append(
    dataset: Annotated[Path, typer.Argument(help="The buffer's folder: a dataset, or a new one.")],
    runs: Annotated[list[Path], typer.Argument(help="Runs with their recorded trials, or datasets.")],
) -> None:
    """Put the recorded trials of runs back into the buffer: the next round is scored and trained with them."""
    from srpo_robot.cli.rounds import append_command

    append_command(dataset, tuple(runs))


@app.command(epilog="Example: srpo-robot rounds outputs/round_0 outputs/round_1 outputs/round_2")
def rounds(runs: Runs, alpha: Alpha = 0.05, json: Json = None) -> None:
    """Success rate by round of the flywheel: the runs in their order, each against the first."""
    from srpo_robot.cli.rounds import rounds_command

    rounds_command(tuple(runs), alpha, json)


@app.command(epilog="Example: srpo-robot demo --root demo")
def demo(
    root: Annotated[Path, typer.Option(help="Where everything goes; a second call goes on from what is there.")] = Path(
        "demo"
    ),
    episodes: Annotated[int, typer.Option(help="Episodes in the buffer.", min=4)] = 40,
    steps: Annotated[int, typer.Option(help="Training steps for each of AWR and SFT.", min=2)] = 700,
    trials: Annotated[int, typer.Option(help="Trials for each.", min=1)] = 10,
) -> None:
    """The whole loop on the mock cell, small and offline: record, score, train, run, report."""
    from srpo_robot.cli.demo import run_demo

    run_demo(root, episodes, steps, trials)
