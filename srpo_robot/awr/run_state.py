"""The record of a training run, the checks of its weights, and whether a run may be resumed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot import __version__
from srpo_robot.awr.checks import check_output, last_checkpoint
from srpo_robot.awr.policies import read_record
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import TrainingError, UsageError
from srpo_robot.recipes import PolicyRecipe
from srpo_robot.renames import RECIPE_KEYS, STEP_VALUES, current_keys

# Keys that a resumed run may change without changing the result: a step's samples and noise do not depend on them.
_FREE = {"steps", "save_every", "cache_gb", "batch_size", "accumulate"}


def check_weights(weights: np.ndarray, frames: int) -> np.ndarray:
    """Returns `weights` as float64 (N,). Raises TrainingError if they cannot train a dataset of `frames` frames."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (frames,):
        raise TrainingError(f"{weights.shape} weights for {frames} frames; make them anew from this dataset")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise TrainingError(f"{len(bad)} weights are negative, NaN or infinite, the first at frame {bad[0]}")
    if not weights.any():
        raise TrainingError("every weight is zero, so nothing can be learnt; look at the scores and at beta")
    return weights


def check_action_weights(weights: np.ndarray, frames: int, chunk: int) -> np.ndarray:
    """Returns `weights` as float64 (N, chunk). Raises TrainingError if they cannot train `frames` such chunks."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (frames, chunk):
        raise TrainingError(f"{weights.shape} weights for {frames} chunks of {chunk} actions; make them anew")
    bad = np.flatnonzero((~np.isfinite(weights) | (weights < 0)).any(axis=1))
    if len(bad):
        raise TrainingError(f"weights of {len(bad)} chunks are negative, NaN or infinite, the first at frame {bad[0]}")
    if not weights.any():
        raise TrainingError("every weight is zero, so nothing can be learnt; look at the scores and at beta")
    return weights


def trained_weights(weights: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Scales `weights` (N,) so that trained frames have the mean of all frames: holding out changes no step size.

    Args:
        weights: (N,) from `check_weights`.
        trained: (N,) bool, False for frames of held-out episodes.

    Raises:
        TrainingError: only held-out frames have weight.
    """
    if trained.all():
        return weights
    mean = weights[trained].mean()
    if mean == 0:
        raise TrainingError("every frame with weight is held out; set validation_share to 0, or change seed")
    return weights * (weights.mean() / mean)


def resolve_steps(recipe: PolicyRecipe, steps: int | None) -> int:
    """Returns the optimizer steps of a run: `steps`, or the recipe's. Raises UsageError if that is not positive."""
    total = recipe.steps if steps is None else steps
    if total < 1:
        raise UsageError(f"{total} steps; give a positive number")
    return total


def run_record(
    buffer: Buffer, recipe: PolicyRecipe, weights: np.ndarray, provenance: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """Returns the content of srpo.json, in the form in which JSON reads it back, for comparison with a stored one."""
    content = {
        "version": __version__,
        "git_commit": _git_commit(),
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "processes": processes,
        "samples_per_step": recipe.batch_size * recipe.accumulate * processes,
        "dataset": {"name": buffer.root.name, "fingerprint": buffer.fingerprint, "frames": buffer.total_frames},
        "weights": hashlib.sha256(weights.tobytes()).hexdigest()[:16],
        "provenance": dict(provenance),
    }
    return json.loads(json.dumps(content, default=str))


def _git_commit() -> str | None:
    """The commit of this checkout, None for an installed wheel."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def open_run(
    output: Path, record: dict[str, Any], resume: bool, total: int, steps_given: bool
) -> tuple[Path | None, int]:
    """Returns the checkpoint to go on from (None: a new run), and the number of steps in all.

    Raises:
        UsageError: `output` exists without `resume`; or the run to resume was made from something else, or is done.
    """
    if not resume:
        check_output(output)
        return None, total
    start = last_checkpoint(output)
    stored = read_record(start / "pretrained_model")
    differences = _differences(stored, record)
    if differences:
        raise UsageError(f"{output} was made with another {'; '.join(differences)}; start a new run: --output DIR")
    total = total if steps_given else int(stored["total_steps"])
    if total <= int(stored["step"]):
        raise UsageError(f"{output} is trained to step {stored['step']}; give --steps above that to go on")
    return start, total


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names the inputs that differ between a stored run and the run that would resume it."""
    if "recipe" not in stored:
        return ["trainer"]
    old, new = _current_recipe(stored["recipe"]), now["recipe"]
    names = [
        f"{name} (then {old.get(name)!r}, now {new[name]!r})"
        for name in sorted(new.keys() - _FREE)
        if old.get(name) != new[name]
    ]
    names += ["dataset"] if stored["dataset"]["fingerprint"] != now["dataset"]["fingerprint"] else []
    names += ["set of weights"] if stored["weights"] != now["weights"] else []
    if stored["samples_per_step"] != now["samples_per_step"]:
        names.append(
            f"number of samples per step (then {stored['samples_per_step']}, now {now['samples_per_step']}: "
            "batch_size x accumulate x processes)"
        )
    return names


def _current_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe under today's names. A key that did not exist then gets its default, which changes nothing."""
    defaults = {f.name: f.default for f in fields(PolicyRecipe) if f.default is not MISSING}
    renamed = current_keys(recipe, RECIPE_KEYS)
    return defaults | renamed | {"value": STEP_VALUES.get(renamed.get("value", ""), renamed.get("value", ""))}
