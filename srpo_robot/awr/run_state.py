"""What a training run is made from: its record, whether it may be resumed, and the numbers that are checked first."""

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

# What a resumed run may change: the result is the same. A step's samples and noise do not depend on how they are dealt.
_FREE = {"steps", "save_every", "cache_gb", "batch_size", "accumulate"}


def check_weights(weights: np.ndarray, frames: int) -> np.ndarray:
    """`weights` as float64 (N,); TrainingError where they cannot train a dataset of `frames` frames."""
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
    """`weights` as float64 (N, chunk); TrainingError where they cannot train `frames` chunks of `chunk` actions."""
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
    """`weights` (N,) scaled to the mean over all frames, now over the trained ones: holding out changes no step size.

    Args:
        weights: (N,) as `check_weights` returns them.
        trained: (N,) bool, False in the episodes that are held out.

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
    """Optimizer steps of a run: `steps`, else the recipe's. Raises UsageError where that is not positive."""
    total = recipe.steps if steps is None else steps
    if total < 1:
        raise UsageError(f"{total} steps; give a positive number")
    return total


def run_record(
    buffer: Buffer, recipe: PolicyRecipe, weights: np.ndarray, provenance: Mapping[str, Any], processes: int
) -> dict[str, Any]:
    """What srpo.json says about how a checkpoint was made, as JSON reads it back: comparable with a stored one."""
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
    """The commit of this checkout; None for an installed wheel."""
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
    """The checkpoint to go on from (None: a new run) and the steps in all.

    Raises:
        UsageError: `output` exists without `resume`, or the run to resume was made from something else, or is done.
    """
    if not resume:
        check_output(output)
        return None, total
    start = last_checkpoint(output)
    made = read_record(start / "pretrained_model")
    differences = _differences(made, record)
    if differences:
        raise UsageError(f"{output} was made with another {'; '.join(differences)}; start a new run: --output DIR")
    total = total if steps_given else int(made["total_steps"])
    if total <= int(made["step"]):
        raise UsageError(f"{output} is trained to step {made['step']}; give --steps above that to go on")
    return start, total


def _differences(made: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run would change under the feet of its first part."""
    if "recipe" not in made:
        return ["trainer"]
    old, new = _current_recipe(made["recipe"]), now["recipe"]
    names = [
        f"{name} (then {old.get(name)!r}, now {new[name]!r})"
        for name in sorted(new.keys() - _FREE)
        if old.get(name) != new[name]
    ]
    names += ["dataset"] if made["dataset"]["fingerprint"] != now["dataset"]["fingerprint"] else []
    names += ["set of weights"] if made["weights"] != now["weights"] else []
    if made["samples_per_step"] != now["samples_per_step"]:
        names.append(
            f"number of samples per step (then {made['samples_per_step']}, now {now['samples_per_step']}: "
            "batch_size x accumulate x processes)"
        )
    return names


def _current_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe under today's names. A key that did not exist then is at its default: it changed nothing."""
    defaults = {f.name: f.default for f in fields(PolicyRecipe) if f.default is not MISSING}
    renamed = current_keys(recipe, RECIPE_KEYS)
    return defaults | renamed | {"value": STEP_VALUES.get(renamed.get("value", ""), renamed.get("value", ""))}
