"""What a full-size training step takes on a GPU: peak memory and steps per second, for full, expert-only and LoRA.

Needs CUDA, and no download: the weights are random and the tokenizers are fitted on the spot, which changes neither
number but for a few tokens of text. The table has not been made by the authors: they had no GPU.

python scripts/bench_memory_gpu.py --batch 1 8 32 --json memory.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_training import record

from srpo_robot.awr import policies
from srpo_robot.awr.plan import memory_of
from srpo_robot.awr.train import LoopOptions, train
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import RecipeError, UsageError, one_line
from srpo_robot.recipes import PolicyRecipe, load

VOCABULARY = 4096  # of the fitted tokenizers; the policy's own, 257,152 words, is lerobot's
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "expert only": {"config": {"train_expert_only": True}},
    "LoRA, rank 16": {"lora_rank": 16},
}


@dataclass(frozen=True)
class MemoryRow:
    """One way of training at one batch size; what went wrong instead of numbers where it did (no memory).

    Attributes:
        held: [bytes] of weights, gradients and moments, computed.
        peak: [bytes] at most allocated, measured; None where it failed.
        steps_per_s: measured; None where it failed.
    """

    policy: str
    way: str
    batch: int
    held: int
    peak: int | None
    steps_per_s: float | None
    problem: str = ""


def recipe_of(policy: str, way: str, batch: int) -> PolicyRecipe:
    """The packaged recipe with random weights, trained `way`. Raises RecipeError where the family has no such way."""
    recipe = load(PolicyRecipe, "policies", policy)
    if way == "expert only" and recipe.family == "pi0_fast":
        raise RecipeError("pi0-FAST has no action expert to train alone")
    change = WAYS[way]
    config = recipe.config | change.get("config", {})
    rest = {key: value for key, value in change.items() if key != "config"}
    return replace(recipe, base="", batch_size=batch, save_every=0, ema_decay=0.0, config=config, **rest)


@contextmanager
def fitted_tokenizers() -> Iterator[None]:
    """While open, a policy of full size is built with tokenizers fitted on the dataset, as tiny ones are."""
    original = policies.own_tokenizers
    policies.own_tokenizers = lambda kind, sizes, *rest: original(kind, sizes or {"vocab": VOCABULARY}, *rest)
    try:
        yield
    finally:
        policies.own_tokenizers = original


def measure(buffer: Buffer, policy: str, way: str, batch: int, steps: int, root: Path) -> MemoryRow:
    """Train `steps` steps after two to warm up; running out of memory is a row, not an end."""
    recipe = replace(recipe_of(policy, way, batch), steps=steps + 2)
    held = sum(memory_of(policies.outline(recipe, buffer), averaged=False).values())
    times: list[float] = []
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        with fitted_tokenizers():
            loop = LoopOptions(on_step=lambda *_: times.append(time.perf_counter()))
            train(buffer, recipe, np.ones(buffer.total_frames), root, loop)
    except torch.cuda.OutOfMemoryError as error:
        return MemoryRow(policy, way, batch, held, None, None, one_line(error)[:80])
    rate = (len(times) - 2) / (times[-1] - times[1])
    return MemoryRow(policy, way, batch, held, torch.cuda.max_memory_allocated(), rate)


def table(rows: Sequence[MemoryRow]) -> str:
    """The rows as Markdown; GB are 10^9 bytes."""
    lines = [
        "| policy | trained | batch | weights, gradients, moments | peak | steps/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "out of memory" if row.peak is None else f"{row.peak / 1e9:.1f} GB"
        rate = "-" if row.steps_per_s is None else f"{row.steps_per_s:.2f}"
        lines.append(f"| {row.policy} | {row.way} | {row.batch} | {row.held / 1e9:.1f} GB | {peak} | {rate} |")
    return "\n".join(lines)


def main() -> None:
    """Measure everything that was asked for and print the table after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="+", default=["pi0", "pi0-fast"])
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise UsageError("this measures GPU memory and torch finds no CUDA; train-awr --dry-run estimates without one")
    rows: list[MemoryRow] = []
    with tempfile.TemporaryDirectory() as folder:
        buffer = record(Path(folder) / "data")
        for policy in asked.policy:
            for way in asked.way:
                for batch in asked.batch:
                    try:
                        place = Path(folder) / f"run-{len(rows)}"
                        rows.append(measure(buffer, policy, way, batch, asked.steps, place))
                    except RecipeError as error:
                        print(f"{policy}, {way}: {one_line(error)}")
                        break
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if asked.json:
        content = {"device": torch.cuda.get_device_name(), "rows": [vars(row) for row in rows]}
        asked.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
