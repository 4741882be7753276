"""Scores a large dataset with and without kill -9 at random moments, and checks that tables are equal and memory flat.

    srpo-robot record --arm mock --task put-apple --episodes 2000 --root data/many
    python scripts/stress_scoring.py data/many --kills 5 --json stress.json

It uses two copies (hard links) of the dataset in --scratch and the real command. A kill comes after a random number of
embedded episodes, plus a random delay of up to half a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from srpo_robot.buffer.tables import read_table
from srpo_robot.progress.pipeline import STORE
from srpo_robot.progress.store import INFO, EmbeddingStore

TABLES = ("progress.parquet",)
COMPUTED = (STORE, *TABLES, "advantage.parquet")
SAMPLE_EVERY_S = 0.25


@dataclass
class RunTrace:
    """One run of the command.

    Attributes:
        code: exit code.
        samples: (seconds, episodes in the store, resident memory [MB]) over time.
    """

    code: int = 0
    samples: list[tuple[float, int, float]] = field(default_factory=list)


def linked_copy(dataset: Path, target: Path) -> Path:
    """Copies the recorded files and labels of `dataset` to `target` by hard links, without embeddings and tables."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(dataset, target, copy_function=os.link, ignore=shutil.ignore_patterns(*COMPUTED))
    return target


def embedded(root: Path) -> int:
    """Returns the number of episodes in the store, 0 if there is no store yet."""
    path = root / "srpo" / STORE
    return len(EmbeddingStore(path)) if (path / INFO).is_file() else 0


def score(root: Path, options: list[str], kill_at: int | None, wait_s: float = 0.0) -> RunTrace:
    """Runs `score-dataset`, and kills it with SIGKILL `wait_s` seconds after `kill_at` episodes are in the store."""
    command = [sys.executable, "-m", "srpo_robot.cli", "score-dataset", str(root), *options]
    trace = RunTrace()
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                memory = psutil.Process(process.pid).memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                break
            count = embedded(root)
            trace.samples.append((time.monotonic() - start, count, memory))
            if kill_at is not None and count >= kill_at:
                time.sleep(wait_s)
                process.kill()
                break
            time.sleep(SAMPLE_EVERY_S)
        _, errors = process.communicate()
        trace.code = process.returncode
    if trace.code not in (0, -9):
        raise SystemExit(errors)
    return trace


def memory_by_part(trace: RunTrace, parts: int = 5) -> list[float]:
    """Returns the median resident memory [MB] in each fifth of the embedding, by number of embedded episodes."""
    rows = np.array([row for row in trace.samples if row[1] > 0])
    if len(rows) == 0:
        return []
    edges = np.linspace(rows[:, 1].min(), rows[:, 1].max() + 1e-9, parts + 1)
    inside = [rows[(rows[:, 1] >= low) & (rows[:, 1] <= high), 2] for low, high in pairwise(edges)]
    return [float(np.median(part)) if len(part) else float("nan") for part in inside]


def contents(root: Path) -> dict[str, str]:
    """Returns the content hash of each table. The hashes of the two runs are compared."""
    return {name: read_table(root / "srpo" / name, refresh="score-dataset").metadata["content"] for name in TABLES}


def stress(dataset: Path, scratch: Path, kills: int, seed: int, options: list[str]) -> dict[str, Any]:
    """Returns all numbers, ready for JSON."""
    rng = np.random.default_rng(seed)
    calm, killed = linked_copy(dataset, scratch / "calm"), linked_copy(dataset, scratch / "killed")
    undisturbed = score(calm, options, None)
    total = embedded(calm)
    moments = []
    for target in np.sort(rng.choice(np.arange(1, total), kills, replace=False)):
        run = score(killed, options, int(target), float(rng.uniform(0, 0.5)))
        moments.append({"asked": int(target), "embedded": embedded(killed), "killed": run.code == -9})
    score(killed, options, None)
    return {
        "episodes": total,
        "seconds": undisturbed.samples[-1][0],
        "memory_mb_by_fifth": memory_by_part(undisturbed),
        "peak_memory_mb": max(row[2] for row in undisturbed.samples),
        "kills": moments,
        "equal": contents(calm) == contents(killed),
        "tables": contents(calm),
    }


def main() -> None:
    """Runs the test, prints the numbers and writes the --json file. Exits with code 1 if the tables differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", type=Path, help="a labelled dataset's folder")
    parser.add_argument("--scratch", type=Path, required=True, help="where the two copies go, on the same disk")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every number here")
    options, passed_on = parser.parse_known_args()
    result = stress(options.dataset, options.scratch, options.kills, options.seed, passed_on)
    console = Console(highlight=False)
    for name, value in result.items():
        console.print(f"{name}: {value}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    raise SystemExit(0 if result["equal"] and all(kill["killed"] for kill in result["kills"]) else 1)


if __name__ == "__main__":
    main()
