"""Checks of a training's inputs that need neither torch nor lerobot, so that a command can refuse them at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_robot.errors import DatasetError, UsageError
from srpo_robot.recipes import PolicyRecipe

ACTION, STATE = "action", "observation.state"  # lerobot's names
TRACKERS = ("tensorboard", "wandb")


def check_recipe(recipe: PolicyRecipe) -> None:
    """Raises UsageError if a number in the training part of `recipe` is out of range."""
    for name in ("batch_size", "accumulate"):
        if getattr(recipe, name) < 1:
            raise UsageError(f"recipe {recipe.name}: {name} {getattr(recipe, name)} must be at least 1")
    if not recipe.grad_clip_norm > 0:
        raise UsageError(f"recipe {recipe.name}: grad_clip_norm {recipe.grad_clip_norm} must be positive")
    if not 0 <= recipe.ema_decay < 1:
        raise UsageError(f"recipe {recipe.name}: ema_decay {recipe.ema_decay} must be at least 0 and below 1")
    if not 0 <= recipe.image_shift < 0.5:
        raise UsageError(f"recipe {recipe.name}: image_shift {recipe.image_shift} must be at least 0 and below 0.5")
    if not 0 <= recipe.state_noise < 1:
        raise UsageError(f"recipe {recipe.name}: state_noise {recipe.state_noise} must be at least 0 and below 1")
    if recipe.action_weights and recipe.weights_as == "sampling":
        raise UsageError(
            f"recipe {recipe.name}: action_weights weigh the actions of a frame, which is drawn whole; "
            'set weights_as to "loss"'
        )


def check_trackers(track: Sequence[str]) -> None:
    """Raises UsageError if one of `track` is unknown or its package is not installed."""
    for name in track:
        if name not in TRACKERS:
            raise UsageError(f"no tracker {name!r}; there are: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--track {name} needs a package: pip install srpo-robot[tracking]")


def check_features(dataset: str, features: Mapping[str, Any]) -> None:
    """Raises DatasetError if a policy cannot learn from a dataset with these features. The message names the gaps.

    Args:
        dataset: name of the dataset, for the message.
        features: `features` of its meta/info.json.
    """
    missing = [key for key in (ACTION, STATE) if key not in features]
    if not any(feature.get("dtype") in ("image", "video") for feature in features.values()):
        missing.append("observation.images.*")
    if missing:
        raise DatasetError(
            f"{dataset} has no {' and no '.join(missing)}; a policy learns from cameras, observation.state "
            "and action: record with 'srpo-robot record', or use a dataset that has them (scoring needs only cameras)"
        )


def check_output(output: Path) -> None:
    """Raises UsageError if `output` cannot become a new run's folder because something is there."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists; go on with it: --resume, or write elsewhere: --output DIR")


def last_checkpoint(output: Path) -> Path:
    """Returns the newest whole checkpoint of a run, OUTPUT/checkpoints/STEP. Raises UsageError if there is none."""
    folder = output / "checkpoints"
    whole = [path for path in folder.glob("*") if path.name.isdigit() and (path / "training_state").is_dir()]
    if not whole:
        raise UsageError(f"{output} has no checkpoint to resume; start without --resume")
    return max(whole, key=lambda path: int(path.name))
