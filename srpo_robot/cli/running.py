"""`srpo-robot record`, `run` and `serve`: the same loop, with a scripted demonstrator or a trained policy.

Recipes, folders and options are checked before torch, lerobot or the simulator is imported.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srpo_robot.arm.actions import ActionSpace, make_action_space
from srpo_robot.arm.arm import Workcell
from srpo_robot.arm.limits import Limits
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.cli.inputs import check_arm_options, check_policy, load_recipes
from srpo_robot.cli.options import RecordOptions, RunOptions, ServeOptions
from srpo_robot.cli.sessions import LiveSession, Session, make_session
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.operator import Quit
from srpo_robot.evaluation.policy import Policy, TrainedPolicy
from srpo_robot.evaluation.runtime import Outcome, Setup, run_episode
from srpo_robot.evaluation.served_policy import PolicyServer, ServedPolicy, describe
from srpo_robot.evaluation.trials import FAULT, append_trial, read_trials
from srpo_robot.interrupts import ending
from srpo_robot.recipes import HardwareRecipe, TaskRecipe
from srpo_robot.records import Trial
from srpo_robot.renames import SHEET_KEYS, current_keys

if TYPE_CHECKING:
    from srpo_robot.buffer.recorder import Recorder

DISTURBANCE_M = 0.006  # noise in demonstrations, so that they show how to recover
WIDE_STARTS = 0.6  # share of demonstrations that start anywhere over the table
TRIAL_WIDE_STARTS = 0.0  # trials start near home, as on the arm
DEMONSTRATION_LIMIT_S = 20.0
COMMIT_EVERY = 20  # a kill -9 may cost the last 19, but scripted demonstrations can be recorded again
_SETTINGS = "run.json"  # in a run's folder: arm, task, policy and seed of the run
_FINGERPRINT = "fingerprint"  # key in run.json that identifies a served policy


def open_cell(
    hardware: HardwareRecipe, task: TaskRecipe, wide_starts: float, disturbance_m: float, randomization: float
) -> tuple[Any, Workcell, ActionSpace]:
    """Returns the mock arm (not yet open), its workcell and the task's action space."""
    from srpo_robot.mock.arm import make_mock

    arm, workcell = make_mock(
        hardware, task, wide_starts=wide_starts, disturbance_m=disturbance_m, randomization=randomization
    )
    return arm, workcell, make_action_space(task.action_space, arm.limits, arm.home_rad)


def recipe_space(hardware: HardwareRecipe, task: TaskRecipe) -> ActionSpace:
    """Returns the task's action space for an arm that is not at hand: limits and home are the recipe's."""
    limits = Limits.from_recipe(hardware.limits, hardware.tcp_offset_m, 1.0 / hardware.fps)
    return make_action_space(task.action_space, limits, np.array(hardware.home_rad))


def make_recorder(
    root: Path, hardware: HardwareRecipe, task: TaskRecipe, space: ActionSpace, commit_every: int = 1
) -> Recorder:
    """Returns a recorder for this arm, task and action space. Raises DatasetError if `root` does not fit them."""
    from srpo_robot.buffer.recorder import Recorder, dataset_features
    from srpo_robot.mock.truth import FEATURES

    cameras = {c.name: (c.height_px, c.width_px) for c in hardware.cameras if c.name in task.cameras}
    features = dataset_features(cameras, space.state_names, space.names)
    features |= FEATURES if hardware.kind == "mock" else {}  # a real arm does not know the truth
    return Recorder(root, hardware.fps, features, hardware.name, commit_every)


def record_demonstrations(options: RecordOptions) -> Recorder:
    """Records scripted demonstrations, labelled by the physics.

    Raises:
        RecipeError, DatasetError: see `load_recipes` and `Recorder`.
        UsageError: `randomization` is outside 0 to 1, or the arm is not a mock arm.
    """
    hardware, task = load_recipes(options.arm, options.task)
    if hardware.kind != "mock":
        raise UsageError(
            f"{options.arm}: demonstrations are scripted on the mock arm; a real one is for lerobot-record"
        )
    recorder = make_recorder(options.root, hardware, task, recipe_space(hardware, task), COMMIT_EVERY)
    arm, workcell, space = open_cell(hardware, task, WIDE_STARTS, DISTURBANCE_M, options.randomization)
    from srpo_robot.mock.demonstrator import Demonstrator

    outcomes: list[Outcome] = []
    with recorder, arm, bar("recording", options.episodes, "episode") as progress:
        demonstrator = Demonstrator(arm.sim, failure_rate=options.failure_rate)
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
        for episode in range(first, first + options.episodes):
            outcome = run_episode(setup, demonstrator, options.seed + episode, recorder)
            outcomes.append(outcome)
            progress.advance(note=f"{sum(bool(o.success) for o in outcomes)} successes")
    successes, frames = sum(bool(o.success) for o in outcomes), sum(o.steps for o in outcomes)
    say(
        f"{options.root}: {len(outcomes)} episodes added ({successes} successes, {frames} frames); "
        f"{recorder.episodes} in all."
    )
    return recorder


def run_trials(options: RunOptions) -> list[Trial]:
    """Runs trials of a policy and prints the success rate. A dry run only checks.

    A run that was interrupted goes on: trials in OUTPUT/trials.jsonl are not run again.

    Raises:
        UsageError: OUTPUT belongs to another run or is not a run's folder; options that do not go together.
        RecipeError, CheckpointError, DatasetError: a recipe, the checkpoint or the dataset does not fit.
        ArmError, PolicyError: a fault. The trials before it are on disk.
    """
    hardware, task = load_recipes(options.arm, options.task)
    settings = {"arm": options.arm, "task": task.name, "policy": options.policy, "seed": options.seed}
    settings["randomization"] = options.randomization
    if not options.live.dry_run:
        _check_output(options.output, settings)
    check_arm_options(hardware, options.live, options.randomization)
    check_policy(options.policy, options.device)
    session = make_session(
        hardware,
        task,
        options.output,
        options.live,
        wide_starts=TRIAL_WIDE_STARTS,
        randomization=options.randomization,
    )
    policy = load_any_policy(options.policy, session.space, task, options.device)
    if isinstance(session, LiveSession) and options.live.dry_run:
        with session:
            session.dry_run(policy, options.seed)
        return []
    recorder = make_recorder(options.record_to or options.output / "dataset", hardware, task, session.space)
    done = _begin_run(options.output, settings | _served(policy))
    try:
        with recorder:
            recorder.begin()  # takes seconds, so do it before an arm waits
            with session:
                _run_missing(session, recorder, policy, task, options, done)
    except Quit:
        say(f"Ended after {len(done)} trials; the same command goes on from there.")
    _print_result(done, f"{task.name} on {options.arm}, {policy.name}", task.success)
    say(f"Journal: {options.output / 'trials.jsonl'}; episodes: {recorder.root}")
    _write_trials(options.json_path, done)
    return done


def _write_trials(path: Path | None, trials: list[Trial]) -> None:
    from srpo_robot.evaluation.statistics import success_rate

    rate = success_rate(trials)
    write_json(path, {"success_rate": rate._asdict(), "trials": [asdict(trial) for trial in trials]})


def _run_missing(
    session: Session, recorder: Recorder, policy: Policy, task: TaskRecipe, options: RunOptions, done: list[Trial]
) -> None:
    """Runs the trials that are missing. Each is in the journal, and in `done`, before the next one begins."""
    is_live = isinstance(session, LiveSession)  # its operator needs the screen: lines instead of a bar
    with nullcontext() if is_live else bar("trials", options.trials, "trial") as progress:
        if progress is not None:
            progress.at(len(done))
        for trial_number in range(len(done), options.trials):
            seed = options.seed + trial_number
            if is_live:
                say(f"\n[bold]trial {trial_number + 1} of {options.trials}[/]: {task.name}")
            outcome = session.run(trial_number, policy, seed, recorder)
            trial = outcome.as_trial(trial_number, task.instruction, policy.name, seed)
            _add_to_journal(options.output, trial)
            done.append(trial)
            session.settle(outcome)
            if progress is not None:
                progress.advance(note=f"{sum(bool(t.success) for t in done)} successes")
            else:
                verdict = {True: "success", False: "failure", None: "void"}[trial.success]
                say(f"{verdict}, {number(trial.seconds, 1)} s, {trial.steps} steps, {trial.late} of them late")


def load_any_policy(name: str, space: ActionSpace, task: TaskRecipe, device: str, shown: str = "") -> Policy:
    """Loads a checkpoint, or connects to http://HOST:PORT, and checks the policy against arm and task.

    Args:
        shown: the policy's name on the screen, if its real name must not be told.

    Raises:
        CheckpointError: the checkpoint does not exist, or was made for another arm or task.
        PolicyError: no policy is served at that address.
    """
    with waiting(f"loading {shown or name}"):
        if "://" in name:
            return ServedPolicy(name, space, task.instruction, task.cameras)
        policy = TrainedPolicy(name, space, task.instruction, task.cameras, resolve(device))
    if policy.provenance.get("tiny"):
        few_threads()
    return policy


def serve_policy(options: ServeOptions) -> None:
    """Serves a checkpoint to `run --policy http://HOST:PORT` until Ctrl-C.

    Raises:
        RecipeError, CheckpointError: a recipe or the checkpoint does not fit.
        ArmError: the port is taken.
    """
    hardware, task = load_recipes(options.arm, options.task)
    check_policy(options.policy, options.device)
    space = recipe_space(hardware, task)
    policy = load_any_policy(options.policy, space, task, options.device)
    metadata = describe(policy, space, task.cameras)
    with PolicyServer(policy, metadata, options.host, options.port) as server, ending() as ended:
        say(f"Serving {policy.name} at {server.url}; on the robot's machine: --policy {server.url}")
        say("Everybody who reaches this port can use it: keep it inside the lab. Ctrl-C ends.")
        ended.wait()


# --- the folder of a run ------------------------------------------------------------------------------------------


def _served(policy: Policy) -> dict[str, object]:
    """Returns a served policy's fingerprint: the same address may serve another policy later."""
    return {_FINGERPRINT: policy.metadata.fingerprint} if isinstance(policy, ServedPolicy) else {}


def _check_output(output: Path, settings: dict[str, object]) -> None:
    """Raises UsageError if `output` holds another run, or is not a run's folder.

    Without a fingerprint in `settings` any policy served at the same address passes.
    """
    path = output / _SETTINGS
    if path.is_file():
        recorded = current_keys(json.loads(path.read_text()), SHEET_KEYS)
        if _FINGERPRINT not in settings:
            recorded.pop(_FINGERPRINT, None)
        if recorded != settings:
            raise UsageError(f"{output} holds another run; give another --output")
    elif output.exists() and not all(_is_from_run(child) for child in output.iterdir()):
        raise UsageError(f"{output} exists and is not a run; give another --output")


def _begin_run(output: Path, settings: dict[str, object]) -> list[Trial]:
    """Opens a run's folder and returns the trials in its journal. Raises as `_check_output`."""
    _check_output(output, settings)
    path = output / _SETTINGS
    if path.is_file():
        return read_trials(output) if (output / "trials.jsonl").is_file() else []
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    return []


def _is_from_run(child: Path) -> bool:
    """Returns whether a run leaves this file before its run.json: a dataset, one that was cut off, a noted fault."""
    return child.name == FAULT or child.name.split(".")[0] == "dataset"


def _add_to_journal(output: Path, trial: Trial) -> None:
    append_trial(output, trial)
    if trial.note:
        consequence = "is void" if trial.success is None else "ended early and counts"
        warn(f"trial {trial.trial} {consequence}: {trial.note}")


# --- printing -----------------------------------------------------------------------------------------------------


def _print_result(trials: list[Trial], title: str, rule: str) -> None:
    _print_rate(trials, title)
    say(f"Success means: {rule}.")
    _print_interventions(trials)


def _print_rate(trials: list[Trial], title: str) -> None:
    """Prints the success rate with its Wilson interval."""
    from srpo_robot.evaluation.statistics import success_rate

    rate = success_rate(trials)
    result = table(title, "success", "trials", "rate", "95 % interval (Wilson)", "void", "mean length")
    result.add_row(
        str(rate.successes),
        str(rate.trials),
        "undefined" if rate.trials == 0 else f"{rate.rate:.0%}",
        f"{rate.low:.0%} to {rate.high:.0%}",
        str(len(trials) - rate.trials),
        f"{number(sum(t.seconds for t in trials) / max(len(trials), 1), 1)} s",
    )
    console.print(result)


def _print_interventions(trials: list[Trial]) -> None:
    """Prints at how many steps the policy was late, and how many commands each limit changed."""
    steps, late = sum(trial.steps for trial in trials), sum(trial.late for trial in trials)
    if late:
        say(f"The policy was late at {late} of {steps} steps; the arm held meanwhile.")
    limited_by: Counter[str] = Counter()
    for trial in trials:
        limited_by.update(trial.limited_by)
    if limited_by:
        say("Commands changed by a limit: " + ", ".join(f"{k} {v} of {steps}" for k, v in sorted(limited_by.items())))
