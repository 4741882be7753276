"""Measures full-size training on a GPU: peak memory and steps per second for full, expert-only and LoRA training.

Needs CUDA but no download. The weights are random and the tokenizers are fitted on the dataset. This changes the
numbers only by a few tokens of text. The authors had no GPU, so they have not run this script.

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
from srpo_robot.awr.plan import memory_of, outline
from srpo_robot.awr.train import train
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import RecipeError, UsageError, one_line
from srpo_robot.recipes import PolicyRecipe, load

VOCABULARY = 4096  # of the fitted tokenizers; lerobot's tokenizer of the policy has 257,152 words
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "expert only": {"config": {"train_expert_only": True}},
    "LoRA, rank 16": {"lora_rank": 16},
}


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One way of training at one batch size.

    Attributes:
        policy, way, batch: name of the recipe, key in `WAYS`, batch size.
        held: computed size of weights, gradients and moments [bytes].
        peak: measured peak of allocated memory [bytes]. None if training failed.
        steps_per_s: measured. None if training failed.
        problem: why training failed, for example for lack of memory.
    """

    policy: str
    way: str
    batch: int
    held: int
    peak: int | None
    steps_per_s: float | None
    problem: str = ""


def recipe_of(policy: str, way: str, batch: int) -> PolicyRecipe:
    """Returns the packaged recipe with random weights, trained `way`. Raises RecipeError if the family cannot do so."""
    recipe = load(PolicyRecipe, "policies", policy)
    if way == "expert only" and recipe.family == "pi0_fast":
        raise RecipeError("pi0-FAST has no action expert to train alone")
    change = WAYS[way]
    config = recipe.config | change.get("config", {})
    rest = {key: value for key, value in change.items() if key != "config"}
    return replace(recipe, base="", batch_size=batch, save_every=0, ema_decay=0.0, config=config, **rest)


@contextmanager
def fitted_tokenizers() -> Iterator[None]:
    """Makes full-size policies fit their tokenizers on the dataset, as tiny policies do, while the context is open."""
    original = policies.own_tokenizers
    policies.own_tokenizers = lambda kind, sizes, *rest: original(kind, sizes or {"vocab": VOCABULARY}, *rest)
    try:
        yield
    finally:
        policies.own_tokenizers = original


def measure(buffer: Buffer, policy: str, way: str, batch: int, steps: int, root: Path) -> MemoryRow:
    """Trains `steps` steps after two steps of warm-up. Running out of memory gives a row with a problem."""
    recipe = replace(recipe_of(policy, way, batch), steps=steps + 2)
    held = sum(memory_of(outline(recipe, buffer), averaged=False).values())
    times: list[float] = []
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        with fitted_tokenizers():
            train(
                buffer, recipe, np.ones(buffer.total_frames), root, on_step=lambda *_: times.append(time.perf_counter())
            )
    except torch.cuda.OutOfMemoryError as error:
        problem = one_line(error)[:80]
        return MemoryRow(policy=policy, way=way, batch=batch, held=held, peak=None, steps_per_s=None, problem=problem)
    rate, peak = (len(times) - 2) / (times[-1] - times[1]), torch.cuda.max_memory_allocated()
    return MemoryRow(policy=policy, way=way, batch=batch, held=held, peak=peak, steps_per_s=rate)


def table(rows: Sequence[MemoryRow]) -> str:
    """Returns the rows as a Markdown table. 1 GB is 10^9 bytes."""
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
    """Measures all requested combinations, prints each row and then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", nargs="+", default=["pi0", "pi0-fast"])
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise UsageError("this measures GPU memory and torch finds no CUDA; train-awr --dry-run estimates without one")
    rows: list[MemoryRow] = []
    with tempfile.TemporaryDirectory() as folder:
        buffer = record(Path(folder) / "data")
        for policy in options.policy:
            for way in options.way:
                for batch in options.batch:
                    try:
                        place = Path(folder) / f"run-{len(rows)}"
                        rows.append(measure(buffer, policy, way, batch, options.steps, place))
                    except RecipeError as error:
                        print(f"{policy}, {way}: {one_line(error)}")
                        break
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if options.json:
        content = {"device": torch.cuda.get_device_name(), "rows": [vars(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
