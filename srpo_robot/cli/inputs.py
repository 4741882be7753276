"""Checks recipes, checkpoints, runs and devices before torch, lerobot or the simulator is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srpo_robot.cli.devices import check_device
from srpo_robot.cli.options import LiveOptions
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load


def load_recipes(arm: str, task: str) -> tuple[HardwareRecipe, TaskRecipe]:
    """Returns the two recipes of a run.

    Raises:
        RecipeError: a recipe is unknown or wrong, or the arm lacks a camera that the task needs.
    """
    hardware, task_recipe = load(HardwareRecipe, "hardware", arm), load(TaskRecipe, "datasets", task)
    available = [camera.name for camera in hardware.cameras]
    missing = [name for name in task_recipe.cameras if name not in available]
    if missing:
        raise RecipeError(
            f"task {task_recipe.name} needs camera {', '.join(missing)}; {arm} has: {', '.join(available)}"
        )
    return hardware, task_recipe


def check_arm_options(hardware: HardwareRecipe, live: LiveOptions, randomization: float) -> None:
    """Raises UsageError if this kind of arm does not have an option that was given."""
    if hardware.kind != "mock" and randomization:
        raise UsageError("--randomization is for the mock arm; leave it out for a real arm")
    if hardware.kind == "mock" and (live.dry_run or live.by_hand or live.confirm_fault or live.first_pace != 1.0):
        raise UsageError("--dry-run, --by-hand, --confirm-fault and --first-pace are for an arm that moves for real")


def check_policy(policy: str, device: str) -> None:
    """Checks the files of a checkpoint and the name of a device. An http://HOST:PORT is left to the connection.

    Raises:
        CheckpointError: no such checkpoint, or a file of it is missing.
        UsageError: no device has such a name.
    """
    from srpo_robot.awr.checkpoint_files import check_checkpoint

    check_device(device)
    if "://" not in policy:
        check_checkpoint(policy)


def check_runs(folders: Sequence[Path]) -> None:
    """Raises DatasetError if one of `folders` has no journal of trials, or a damaged one."""
    from srpo_robot.evaluation.trials import read_trials

    for folder in folders:
        read_trials(folder)
