"""Tests if training by advantage learns the good behaviour when half of the demonstrations go wrong.

The dataset is synthetic. It has four states, and the good action is half the state. Half of the episodes do the
opposite, and their score hardly rises. AWR and SFT train the same tiny policy for the same steps with the same noise,
and differ only in the weights. The script prints the error of the first action for both, with a 95 % interval of the
difference over seeds. These weights are very clear, so the result says nothing about scores of real video.

python scripts/learns_from_scores.py --seeds 5 --json learns.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from srpo_robot.awr.advantage import advantages
from srpo_robot.awr.policies import load_policy
from srpo_robot.awr.train import train
from srpo_robot.awr.weights import awr_weights, uniform_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.errors import UndecodableActions
from srpo_robot.recipes import PolicyRecipe

STATES = np.array([(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
TASK = "go half way"
NAMES = ("x", "y")
PIXELS, LENGTH, CHUNK = 32, 8, 4
_SIZES = {"width": 32, "depth": 2, "mlp": 32, "head_dim": 4, "vision_width": 16, "vision_depth": 1}
_SIZES |= {"vision_heads": 2, "vision_mlp": 16, "patch": 16}
_CONFIG = {"chunk_size": CHUNK, "n_action_steps": CHUNK, "image_resolution": [32, 32], "max_state_dim": 2}
_CONFIG |= {"max_action_dim": 2, "use_relative_actions": False}
_TRAINING: dict[str, Any] = {"batch_size": 16, "learning_rate": 5e-3, "final_learning_rate": 5e-4, "warmup_steps": 10}
_TRAINING |= {"save_every": 0, "steps": 250}
_MAPPING = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "MEAN_STD"}
RECIPES = {
    "pi0": PolicyRecipe(
        name="pi0-toy",
        family="pi0",
        config={**_CONFIG, "num_inference_steps": 4, "tokenizer_max_length": 8},
        tiny={**_SIZES, "expert_width": 32, "vocab": 16},
        **_TRAINING,
    ),
    "pi0_fast": PolicyRecipe(
        name="pi0-fast-toy",
        family="pi0_fast",
        config={**_CONFIG, "max_action_tokens": 40, "max_decoding_steps": 40, "tokenizer_max_length": 32}
        | {"fast_skip_tokens": 0, "normalization_mapping": _MAPPING},
        tiny={**_SIZES, "vocab": 420},
        **_TRAINING,
    ),
}


def record(root: Path, episodes: int, seed: int) -> Buffer:
    """Records episodes in pairs, a good one and its opposite, from each state in turn."""
    random = np.random.default_rng(seed)
    with Recorder(root, 10.0, dataset_features({"front": (PIXELS, PIXELS)}, NAMES, NAMES), "toy") as recorder:
        for number in range(episodes):
            good, state = number % 2 == 0, STATES[number // 2 % len(STATES)]
            recorder.begin()
            for _ in range(LENGTH):
                action = (0.5 if good else -0.5) * state + random.normal(0, 0.02, 2)
                recorder.add({"front": np.full((PIXELS, PIXELS, 3), 90, np.uint8)}, state, action, TASK)
            recorder.end(good)
    return open_buffer(root)


def scored_weights(buffer: Buffer, seed: int) -> np.ndarray:
    """Computes AWR weights (N,) for a score that rises to 1 in good episodes and to 0.2 in others, with noise."""
    random = np.random.default_rng([seed, 1])
    rise = [np.linspace(0, 1.0 if e.success else 0.2, e.length) for e in buffer.episodes]
    values = [curve + random.normal(0, 0.02, len(curve)) for curve in rise]
    return awr_weights(advantages(values, CHUNK).chunk, 1.0, 20.0).values


def action_error(checkpoint: Path) -> float:
    """Computes the root mean square error of the first action over all states [action units].

    If the policy's tokens do not decode to an action (pi0-FAST), the arm stands still: action 0.
    """
    policy, preprocessor, postprocessor, _ = load_policy(checkpoint)
    errors = []
    for state in STATES:
        image = torch.full((3, PIXELS, PIXELS), 90 / 255)
        batch = {"observation.images.front": image, "observation.state": torch.tensor(state).float(), "task": TASK}
        try:
            torch.manual_seed(0)
            action = postprocessor(policy.predict_action_chunk(preprocessor(batch)))[0, 0].numpy()
        except UndecodableActions:
            action = np.zeros(2)
        errors.append(((action - 0.5 * state) ** 2).mean())
    return float(np.sqrt(np.mean(errors)))


@dataclass(frozen=True)
class WeightingComparison:
    """Errors by seed, and the mean difference SFT - AWR with its 95 % interval (Student's t over seeds)."""

    awr: tuple[float, ...]
    sft: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        """Returns the content of the JSON file. The interval is None for a single seed."""
        gain = np.subtract(self.sft, self.awr)
        result: dict[str, Any] = {"awr": self.awr, "sft": self.sft, "gain": float(gain.mean()), "interval": None}
        if len(gain) > 1:
            half = float(student.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)))
            result["interval"] = [result["gain"] - half, result["gain"] + half]
        return result


def compare(family: str, seeds: int, steps: int, episodes: int, root: Path) -> WeightingComparison:
    """Trains AWR and SFT on one dataset per seed."""
    errors: dict[str, list[float]] = {"awr": [], "sft": []}
    for seed in range(seeds):
        folder = root / f"{family}-{seed}"
        buffer = record(folder / "data", episodes, seed)
        recipe = replace(RECIPES[family], steps=steps, seed=seed)
        schemes = {"awr": scored_weights(buffer, seed), "sft": uniform_weights(buffer.total_frames).values}
        for name, weights in schemes.items():
            errors[name].append(action_error(train(buffer, recipe, weights, folder / name, device="cpu")))
        print(f"{family} seed {seed}: error AWR {errors['awr'][-1]:.3f}, SFT {errors['sft'][-1]:.3f}")
    return WeightingComparison(tuple(errors["awr"]), tuple(errors["sft"]))


def main() -> None:
    """Compares the families, prints the result and writes the --json file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(RECIPES), action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    summaries = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in options.family or sorted(RECIPES):
            result = compare(family, options.seeds, options.steps, options.episodes, Path(folder))
            summaries[family] = summary = result.summary()
            spread = "" if summary["interval"] is None else " [{:.3f}, {:.3f}]".format(*summary["interval"])
            print(f"{family}: SFT's error is {summary['gain']:.3f}{spread} above AWR's")
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
