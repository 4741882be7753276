"""Records demonstrations of all five tasks of the mock cell, successes and failures, from a seed.

    python scripts/make_demo_data.py data/demo --episodes 40 --failure-rate 0.5

Writes one dataset per task, or one dataset of all tasks with --together. The same options give the same episodes, so
the data need not be kept. `srpo-robot record` can add to it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.console import say
from srpo_robot.cli.options import RecordOptions
from srpo_robot.cli.running import record_demonstrations
from srpo_robot.errors import UsageError
from srpo_robot.mock.tasks import TASKS, task_named


def make(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Records every task. Returns episodes, successes, frames and seconds by task.

    Raises:
        UsageError: the folder is not empty.
        RecipeError: a task is unknown.
    """
    if options.root.exists() and any(options.root.iterdir()):
        raise UsageError(f"{options.root} is not empty; give a new folder, or add to a dataset with srpo-robot record")
    for task in options.tasks:
        task_named(task)
    counts = {}
    for task in options.tasks:
        root = options.root if options.together else options.root / task
        start, before = time.perf_counter(), len(open_buffer(root).episodes) if root.exists() else 0
        record_demonstrations(
            RecordOptions(
                root=root,
                episodes=options.episodes,
                task=task,
                failure_rate=options.failure_rate,
                seed=options.seed,
                randomization=options.randomization,
            )
        )
        seconds, episodes = time.perf_counter() - start, open_buffer(root).episodes[before:]
        counts[task] = {
            "episodes": len(episodes),
            "successes": sum(bool(episode.success) for episode in episodes),
            "frames": sum(episode.length for episode in episodes),
            "seconds": round(seconds, 2),
        }
    return counts


def main() -> None:
    """Reads the options, records, prints a summary and writes the --json file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="new folder")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="all five by default")
    parser.add_argument("--episodes", type=int, default=40, help="of each task")
    parser.add_argument("--failure-rate", type=float, default=0.5, help="share that fails on purpose")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode of every task")
    parser.add_argument(
        "--randomization", "--looks", type=float, default=1.0, help="how much light, colours and cameras vary, 0 to 1"
    )
    parser.add_argument("--together", action="store_true", help="one dataset of all tasks")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    counts = make(options)
    total = {key: sum(row[key] for row in counts.values()) for key in ("episodes", "successes", "frames", "seconds")}
    say(f"{options.root}: {total['episodes']} episodes, {total['successes']} successes, {total['seconds']:.0f} s.")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"tasks": counts, "total": total}, indent=2) + "\n")


if __name__ == "__main__":
    main()
