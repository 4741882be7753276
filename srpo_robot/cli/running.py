"""`srpo-robot record` and `srpo-robot run`: the same loop, with a demonstrator or a trained policy."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.arm.actions import ActionSpace, make_action_space
from srpo_robot.arm.arm import Workcell
from srpo_robot.arm.limits import Limits
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.cli.sessions import LiveOptions, LiveSession, Session, make_session
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.evaluation.operator import Quit
from srpo_robot.evaluation.policy import Policy, TrainedPolicy
from srpo_robot.evaluation.runtime import Outcome, Setup, run_episode
from srpo_robot.evaluation.served_policy import PolicyServer, ServedPolicy, describe
from srpo_robot.evaluation.statistics import success_rate
from srpo_robot.evaluation.trials import FAULT, append_trial, read_trials
from srpo_robot.interrupts import ending
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import Trial

DISTURBANCE_M = 0.006  # of demonstrations: they then show how to come back
WIDE_STARTS = 0.6  # share of demonstrations that start anywhere over the table
TRIAL_WIDE_STARTS = 0.0  # trials start near home, as on the arm
DEMONSTRATION_LIMIT_S = 20.0
COMMIT_EVERY = 20  # scripted demonstrations can be made anew: a kill -9 may cost the last 19


def load_recipes(arm: str, task: str) -> tuple[HardwareRecipe, TaskRecipe]:
    """The two recipes of a run.

    Raises:
        RecipeError: unknown or wrong recipe, a camera that the arm does not have.
    """
    hardware, task = load(HardwareRecipe, "hardware", arm), load(TaskRecipe, "datasets", task)
    have = [camera.name for camera in hardware.cameras]
    missing = [name for name in task.cameras if name not in have]
    if missing:
        raise RecipeError(f"task {task.name} needs camera {', '.join(missing)}; {arm} has: {', '.join(have)}")
    return hardware, task


def open_cell(
    hardware: HardwareRecipe, task: TaskRecipe, wide_starts: float, disturbance_m: float, randomization: float
) -> tuple[Any, Workcell, ActionSpace]:
    """Arm (not yet open), workcell and action space of a run."""
    from srpo_robot.mock.arm import make_mock

    arm, workcell = make_mock(
        hardware, task, wide_starts=wide_starts, disturbance_m=disturbance_m, randomization=randomization
    )
    return arm, workcell, make_action_space(task.action_space, arm.limits, arm.home_rad)


def make_recorder(
    root: Path, hardware: HardwareRecipe, task: TaskRecipe, space: ActionSpace, commit_every: int = 1
) -> Recorder:
    """A recorder for this arm, task and action space. Raises DatasetError where `root` does not fit."""
    from srpo_robot.mock.truth import FEATURES

    cameras = {c.name: (c.height_px, c.width_px) for c in hardware.cameras if c.name in task.cameras}
    features = dataset_features(cameras, space.state_names, space.names)
    features |= FEATURES if hardware.kind == "mock" else {}  # a real arm does not know the truth
    return Recorder(root, hardware.fps, features, hardware.name, commit_every)


def record_demonstrations(
    arm_name: str, task_name: str, root: Path, episodes: int, failure_rate: float, seed: int, randomization: float = 0.0
) -> Recorder:
    """Record scripted demonstrations, labelled by the physics. `randomization`: visual randomization.

    Raises:
        RecipeError, DatasetError: see `load_recipes` and `Recorder`.
        UsageError: `randomization` outside 0 to 1; an arm that is not the mock's.
    """
    from srpo_robot.mock.demonstrator import Demonstrator

    hardware, task = load_recipes(arm_name, task_name)
    if hardware.kind != "mock":
        raise UsageError(f"{arm_name}: demonstrations are scripted on the mock arm; a real one is for lerobot-record")
    arm, workcell, space = open_cell(hardware, task, WIDE_STARTS, DISTURBANCE_M, randomization)
    recorder = make_recorder(root, hardware, task, space, COMMIT_EVERY)
    outcomes: list[Outcome] = []
    with recorder, arm, bar("recording", episodes, "episode") as progress:
        demonstrator = Demonstrator(arm.sim, failure_rate=failure_rate)
        setup = Setup(
            arm=arm,
            workcell=workcell,
            space=space,
            instruction=task.instruction,
            time_limit_s=DEMONSTRATION_LIMIT_S,
            cameras=task.cameras,
            stop_on_success=False,
        )
        first = recorder.episodes
        for number_ in range(first, first + episodes):
            outcome = run_episode(setup, demonstrator, seed + number_, recorder)
            outcomes.append(outcome)
            progress.advance(note=f"{sum(bool(o.success) for o in outcomes)} successes")
    successes, frames = sum(bool(o.success) for o in outcomes), sum(o.steps for o in outcomes)
    say(f"{root}: {len(outcomes)} episodes added ({successes} successes, {frames} frames); {recorder.episodes} in all.")
    return recorder


@dataclass(frozen=True)
class RunOptions:
    """What `srpo-robot run` was asked for; `live` is for an arm that moves for real."""

    arm: str
    task: str
    policy: str
    trials: int
    live: LiveOptions
    record_to: Path | None = None
    seed: int = 10_000
    device: str = "auto"
    json_path: Path | None = None
    randomization: float = 0.0


def run_trials(options: RunOptions) -> list[Trial]:
    """Run trials of a policy and print the success rate; nothing but checks where it is a dry run.

    A run that was interrupted goes on: trials in OUTPUT/trials.jsonl are not run again.

    Raises:
        UsageError: OUTPUT belongs to another run, or is no folder of a run; options that do not go together.
        RecipeError, CheckpointError, DatasetError: see what is loaded.
        ArmError, PolicyError: a fault; what was recorded before is on disk.
    """
    hardware, task = load_recipes(options.arm, options.task)
    output = options.live.output
    session = make_session(
        hardware, task, options.live, wide_starts=TRIAL_WIDE_STARTS, randomization=options.randomization
    )
    policy = load_any_policy(options.policy, session.space, task, options.device)
    if isinstance(session, LiveSession) and options.live.dry_run:
        with session:
            session.dry_run(policy, options.seed)
        return []
    recorder = make_recorder(options.record_to or output / "dataset", hardware, task, session.space)
    settings = {"arm": options.arm, "task": task.name, "policy": options.policy, "seed": options.seed}
    done = _begin_run(output, settings | {"randomization": options.randomization} | _served(policy))
    try:
        with recorder:
            recorder.begin()  # takes seconds: not while an arm waits
            with session:
                _go_on(session, recorder, policy, task, options, done)
    except Quit:
        say(f"Ended after {len(done)} trials; the same command goes on from there.")
    print_trials(done, f"{task.name} on {options.arm}, {policy.name}", task.success)
    say(f"Journal: {output / 'trials.jsonl'}; episodes: {recorder.root}")
    rate = success_rate(done)
    write_json(options.json_path, {"success_rate": rate._asdict(), "trials": [asdict(trial) for trial in done]})
    return done


def _go_on(
    session: Session, recorder: Recorder, policy: Policy, task: TaskRecipe, options: RunOptions, done: list[Trial]
) -> None:
    """Run the trials that are missing; each is in the journal, and in `done`, before the next begins."""
    is_live = isinstance(session, LiveSession)  # its operator needs the screen: lines instead of a bar
    with nullcontext() if is_live else bar("trials", options.trials, "trial") as progress:
        if progress is not None:
            progress.at(len(done))
        for number_ in range(len(done), options.trials):
            seed = options.seed + number_
            if is_live:
                say(f"\n[bold]trial {number_ + 1} of {options.trials}[/]: {task.name}")
            outcome = session.run(number_, policy, seed, recorder)
            trial = _journal(options.live.output, number_, task, policy, seed, outcome)
            done.append(trial)
            session.settle(outcome)
            if progress is not None:
                progress.advance(note=f"{sum(bool(t.success) for t in done)} successes")
            else:
                verdict = {True: "success", False: "failure", None: "void"}[trial.success]
                say(f"{verdict}, {number(trial.seconds, 1)} s, {trial.steps} steps, {trial.late} of them late")


def load_any_policy(name: str, space: ActionSpace, task: TaskRecipe, device: str, shown: str = "") -> Policy:
    """A checkpoint, or with http://HOST:PORT one that another machine serves; checked against arm and task.

    `shown`: what the screen calls it, where its name must not be told.

    Raises:
        CheckpointError: not there, or made for something else.
        PolicyError: nobody serves it.
    """
    with waiting(f"loading {shown or name}"):
        if "://" in name:
            return ServedPolicy(name, space, task.instruction, task.cameras)
        policy = TrainedPolicy(name, space, task.instruction, task.cameras, resolve(device))
    if policy.provenance.get("tiny"):
        few_threads()
    return policy


def serve_policy(arm: str, task: str, checkpoint: str, host: str, port: int, device: str) -> None:
    """Serve a checkpoint to `run --policy http://HOST:PORT` until Ctrl-C.

    Raises:
        RecipeError, CheckpointError: see what is loaded.
        ArmError: the port is taken.
    """
    hardware, task = load_recipes(arm, task)
    limits = Limits.from_recipe(hardware.limits, hardware.tcp_offset_m, 1.0 / hardware.fps)
    space = make_action_space(task.action_space, limits, np.array(hardware.home_rad))
    policy = load_any_policy(checkpoint, space, task, device)
    with PolicyServer(policy, describe(policy, space, task.cameras), host, port) as server, ending() as ended:
        say(f"Serving {policy.name} at {server.url}; on the robot's machine: --policy {server.url}")
        say("Everybody who reaches this port can use it: keep it inside the lab. Ctrl-C ends.")
        ended.wait()


def _served(policy: Policy) -> dict[str, object]:
    """A served policy is another one where its fingerprint is, though the address is the same."""
    return {"fingerprint": policy.metadata.fingerprint} if isinstance(policy, ServedPolicy) else {}


def _begin_run(output: Path, settings: dict[str, object]) -> list[Trial]:
    """Open a run's folder; the trials that are in it already, where it is the same run."""
    path = output / "run.json"
    if path.is_file():
        if json.loads(path.read_text()) != settings:
            raise UsageError(f"{output} holds another run; give another --output")
        return read_trials(output) if (output / "trials.jsonl").is_file() else []
    if output.exists() and not all(_is_a_runs(child) for child in output.iterdir()):
        raise UsageError(f"{output} exists and is not a run; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    return []


def _is_a_runs(child: Path) -> bool:
    """Whether a run leaves this before its run.json: a dataset, one that was cut off, word of a fault."""
    return child.name == FAULT or child.name.split(".")[0] == "dataset"


def _journal(output: Path, trial_number: int, task: TaskRecipe, policy: Policy, seed: int, outcome: Outcome) -> Trial:
    trial = outcome.as_trial(trial_number, task.instruction, policy.name, seed)
    append_trial(output, trial)
    if outcome.note:
        what = "is void" if outcome.success is None else "ended early and counts"
        warn(f"trial {trial_number} {what}: {outcome.note}")
    return trial


def print_trials(trials: list[Trial], title: str, rule: str) -> None:
    """Success rate with its Wilson interval, and what the limits changed."""
    rate = success_rate(trials)
    made = table(title, "success", "trials", "rate", "95 % interval (Wilson)", "void", "mean length")
    made.add_row(
        str(rate.successes),
        str(rate.trials),
        "undefined" if rate.trials == 0 else f"{rate.rate:.0%}",
        f"{rate.low:.0%} to {rate.high:.0%}",
        str(len(trials) - rate.trials),
        f"{number(sum(t.seconds for t in trials) / max(len(trials), 1), 1)} s",
    )
    console.print(made)
    say(f"Success means: {rule}.")
    limited_by: dict[str, int] = {}
    for trial in trials:
        for layer, count in trial.limited_by.items():
            limited_by[layer] = limited_by.get(layer, 0) + count
    steps, late = sum(trial.steps for trial in trials), sum(trial.late for trial in trials)
    if late:
        say(f"The policy was late at {late} of {steps} steps; the arm held meanwhile.")
    if limited_by:
        say("Commands changed by a limit: " + ", ".join(f"{k} {v} of {steps}" for k, v in sorted(limited_by.items())))
