"""`srpo-robot record` and `srpo-robot run`: the same loop, with a demonstrator or a trained policy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo_robot.arm.actions import ActionSpace, make_action_space
from srpo_robot.arm.arm import Workcell
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import few_threads, resolve
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.evaluation.policy import Policy, TrainedPolicy
from srpo_robot.evaluation.runtime import Outcome, Setup, run_episode
from srpo_robot.evaluation.statistics import success_rate
from srpo_robot.evaluation.trials import append_trial, read_trials
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
        RecipeError: unknown or wrong recipe, a camera that the arm does not have, an arm without a driver.
    """
    hardware, work = load(HardwareRecipe, "hardware", arm), load(TaskRecipe, "datasets", task)
    if hardware.kind != "mock":
        raise RecipeError(f"{arm}: this version drives the mock arm only; take --arm mock")
    have = [camera.name for camera in hardware.cameras]
    missing = [name for name in work.cameras if name not in have]
    if missing:
        raise RecipeError(f"task {work.name} needs camera {', '.join(missing)}; {arm} has: {', '.join(have)}")
    return hardware, work


def open_cell(
    hardware: HardwareRecipe, work: TaskRecipe, wide_starts: float, disturbance_m: float, looks: float
) -> tuple[Any, Workcell, ActionSpace]:
    """Arm (not yet open), workcell and action space of a run."""
    from srpo_robot.mock.arm import make_mock

    arm, workcell = make_mock(hardware, work, wide_starts=wide_starts, disturbance_m=disturbance_m, looks=looks)
    return arm, workcell, make_action_space(work.action_space, arm.limits, arm.home_rad)


def make_recorder(
    root: Path, hardware: HardwareRecipe, work: TaskRecipe, space: ActionSpace, commit_every: int = 1
) -> Recorder:
    """A recorder for this arm, task and action space. Raises DatasetError where `root` does not fit."""
    from srpo_robot.mock.truth import FEATURES

    cameras = {c.name: (c.height_px, c.width_px) for c in hardware.cameras if c.name in work.cameras}
    features = dataset_features(cameras, space.state_names, space.names)
    features |= FEATURES if hardware.kind == "mock" else {}  # a real arm does not know the truth
    return Recorder(root, hardware.fps, features, hardware.name, commit_every)


def record_demonstrations(
    arm_name: str, task_name: str, root: Path, episodes: int, failure_rate: float, seed: int, looks: float = 0.0
) -> Recorder:
    """Record scripted demonstrations, labelled by the physics. `looks`: how much they vary in light and cameras.

    Raises:
        RecipeError, DatasetError: see `load_recipes` and `Recorder`.
        UsageError: `looks` outside 0 to 1.
    """
    from srpo_robot.mock.demonstrator import Demonstrator

    hardware, work = load_recipes(arm_name, task_name)
    arm, workcell, space = open_cell(hardware, work, WIDE_STARTS, DISTURBANCE_M, looks)
    recorder = make_recorder(root, hardware, work, space, COMMIT_EVERY)
    outcomes: list[Outcome] = []
    with recorder, arm, bar("recording", episodes, "episode") as progress:
        demonstrator = Demonstrator(arm.sim, failure_rate=failure_rate)
        setup = Setup(
            arm, workcell, space, work.instruction, DEMONSTRATION_LIMIT_S, work.cameras, stop_on_success=False
        )
        first = recorder.episodes
        for number_ in range(first, first + episodes):
            outcome = run_episode(setup, demonstrator, seed + number_, recorder)
            outcomes.append(outcome)
            progress.advance(note=f"{sum(bool(o.success) for o in outcomes)} successes")
    successes, frames = sum(bool(o.success) for o in outcomes), sum(o.steps for o in outcomes)
    say(f"{root}: {len(outcomes)} episodes added ({successes} successes, {frames} frames); {recorder.episodes} in all.")
    return recorder


def run_trials(
    arm_name: str,
    task_name: str,
    checkpoint: str,
    output: Path,
    trials: int,
    record_to: Path | None,
    seed: int,
    device: str,
    json_path: Path | None,
    looks: float = 0.0,
) -> list[Trial]:
    """Run `trials` trials of a checkpoint and print the success rate.

    A run that was interrupted goes on: trials in OUTPUT/trials.jsonl are not run again.

    Raises:
        UsageError: OUTPUT belongs to another run, or is no folder of a run; `looks` outside 0 to 1.
        RecipeError, CheckpointError, DatasetError: see what is loaded.
    """
    hardware, work = load_recipes(arm_name, task_name)
    arm, workcell, space = open_cell(hardware, work, TRIAL_WIDE_STARTS, 0.0, looks)
    with waiting(f"loading {checkpoint}"):
        policy = TrainedPolicy(checkpoint, space, work.instruction, work.cameras, resolve(device))
    if policy.provenance.get("tiny"):
        few_threads()
    recorder = make_recorder(record_to or output / "dataset", hardware, work, space)
    settings = {"arm": arm_name, "task": work.name, "policy": str(checkpoint), "seed": seed, "looks": looks}
    done = _begin_run(output, settings)
    with recorder, arm, bar("trials", trials, "trial") as progress:
        progress.at(len(done))
        setup = Setup(arm, workcell, space, work.instruction, work.time_limit_s, work.cameras)
        for trial_number in range(len(done), trials):
            outcome = run_episode(setup, policy, seed + trial_number, recorder)
            done.append(_journal(output, trial_number, work, policy, seed + trial_number, outcome))
            progress.advance(note=f"{sum(bool(t.success) for t in done)} successes")
    print_trials(done, f"{work.name} on {arm_name}, {policy.name}", work.success)
    say(f"Journal: {output / 'trials.jsonl'}; episodes: {recorder.root}")
    rate = success_rate(done)
    write_json(json_path, {"success_rate": rate._asdict(), "trials": [asdict(trial) for trial in done]})
    return done


def _begin_run(output: Path, settings: dict[str, object]) -> list[Trial]:
    """Open a run's folder; the trials that are in it already, where it is the same run."""
    path = output / "run.json"
    if path.is_file():
        if json.loads(path.read_text()) != settings:
            raise UsageError(f"{output} holds another run; give another --output")
        return read_trials(output) if (output / "trials.jsonl").is_file() else []
    if output.exists() and any(child.name != "dataset" for child in output.iterdir()):
        raise UsageError(f"{output} exists and is not a run; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    return []


def _journal(output: Path, trial_number: int, work: TaskRecipe, policy: Policy, seed: int, outcome: Outcome) -> Trial:
    trial = Trial(
        trial=trial_number,
        task=work.instruction,
        policy=policy.name,
        seed=seed,
        success=outcome.success,
        steps=outcome.steps,
        seconds=outcome.seconds,
        clips=outcome.clips,
        layout=outcome.layout,
        note=outcome.note,
    )
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
    clips: dict[str, int] = {}
    for trial in trials:
        for layer, count in trial.clips.items():
            clips[layer] = clips.get(layer, 0) + count
    steps = sum(trial.steps for trial in trials)
    if clips:
        say("Commands changed by a limit: " + ", ".join(f"{k} {v} of {steps}" for k, v in sorted(clips.items())))
