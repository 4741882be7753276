"""Compares our training loop with lerobot's on the same tiny policy: steps per second and peak memory.

Both train pi0-tiny, or --policy, on the same synthetic frames in memory. Speed: rounds of both loops alternate in one
process, and the ratio is the median over rounds. Memory: each loop runs alone. The ratio compares the bytes that torch
holds at the peak of a step, minus the bytes it held before (on a GPU this number matters). The growth of resident
memory is also printed, as a median over processes. Single runs of it differ by 10 % or more because of glibc's
allocator. A tiny policy makes this a strict comparison: with a larger policy, the loop's own cost is a smaller part.

python scripts/bench_training.py --json bench.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srpo_robot.awr.policies import build_policy
from srpo_robot.awr.train import train
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.buffer.training import TrainingSet, collate
from srpo_robot.recipes import PolicyRecipe, load

NAMES = ("tcp.x", "tcp.y", "tcp.z", "gripper")
PIXELS = 64


def record(root: Path, episodes: int = 4, length: int = 64) -> Buffer:
    """Records random walks with images of one colour."""
    random = np.random.default_rng(0)
    features = dataset_features({"front": (PIXELS, PIXELS), "wrist": (PIXELS, PIXELS)}, NAMES, NAMES)
    with Recorder(root, 10.0, features, "bench") as recorder:
        for _ in range(episodes):
            recorder.begin()
            for _ in range(length):
                image = np.full((PIXELS, PIXELS, 3), random.integers(256), np.uint8)
                state = random.normal(0, 1, len(NAMES))
                recorder.add({"front": image, "wrist": image}, state, state, "put the apple on the plate")
            recorder.end(True)
    return open_buffer(root)


def ours(buffer: Buffer, recipe: PolicyRecipe, root: Path, rounds: int, steps: int) -> Iterator[float]:
    """Yields the seconds of each round of `steps` steps of `train`.

    `train` is a loop with a callback, so it runs in a thread. The thread waits between rounds.
    """
    import queue
    import threading

    go: queue.Queue[None] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()
    start = 0.0

    def on_step(step: int, *_: Any) -> None:
        nonlocal start
        if step % steps == 0:
            done.put(time.perf_counter() - start)
            go.get()
            start = time.perf_counter()

    recipe = replace(recipe, steps=(rounds + 1) * steps, save_every=0)

    def run() -> None:
        train(buffer, recipe, np.ones(buffer.total_frames), root, device="cpu", on_step=on_step)

    threading.Thread(target=run, daemon=True).start()
    done.get()  # the first round includes the cost of building everything
    for _ in range(rounds):
        go.put(None)
        yield done.get()
    go.put(None)


def stock(buffer: Buffer, recipe: PolicyRecipe, rounds: int, steps: int) -> Iterator[float]:
    """Yields the same for lerobot's `update_policy`, called as in its `train`: batch, preprocessor, update, metrics."""
    from accelerate import Accelerator
    from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
    from lerobot.utils.utils import cycle
    from torch.utils.data import DataLoader

    accelerator: Any = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    policy: Any
    policy, preprocessor, _ = build_policy(recipe, buffer)
    policy.train()
    optimizer: Any = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    total = (rounds + 1) * steps
    schedule = CosineDecayWithWarmupSchedulerConfig(
        num_warmup_steps=recipe.warmup_steps,
        num_decay_steps=total,
        peak_lr=recipe.learning_rate,
        decay_lr=recipe.final_learning_rate,
    )
    scheduler = schedule.build(optimizer, total)
    samples: Any = TrainingSet(buffer, policy.config.chunk_size)
    order = torch.Generator().manual_seed(0)
    collated: Any = collate
    loader = DataLoader(samples, recipe.batch_size, shuffle=True, generator=order, collate_fn=collated)
    policy, optimizer, loader, scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
    batches = cycle(loader)
    meters = {name: AverageMeter(name, ":.3f") for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
    tracker = MetricsTracker(
        recipe.batch_size, buffer.total_frames, len(buffer.episodes), meters, accelerator=accelerator
    )

    def step() -> None:
        batch = preprocessor(next(batches))
        update_policy(tracker, policy, batch, optimizer, recipe.grad_clip_norm, accelerator, scheduler)
        tracker.step()

    for number in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if number:
            yield time.perf_counter() - start
        else:
            yield 0.0  # warm-up round


def speed(buffer: Buffer, recipe: PolicyRecipe, rounds: int, steps: int, root: Path) -> dict[str, Any]:
    """Runs rounds of both loops in turn and swaps the order each time."""
    first, second = ours(buffer, recipe, root / "ours", rounds, steps), stock(buffer, recipe, rounds, steps)
    next(second)
    ours_s, stock_s = [], []
    loops: list[tuple[list[float], Iterator[float]]] = [(ours_s, first), (stock_s, second)]
    for number in range(rounds):
        for times, loop in loops if number % 2 else reversed(loops):
            times.append(next(loop))
    ratios = [theirs / mine for mine, theirs in zip(ours_s, stock_s, strict=True)]
    return {
        "ours_steps_per_s": steps / statistics.median(ours_s),
        "stock_steps_per_s": steps / statistics.median(stock_s),
        "steps_per_s_ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def growth(which: str, buffer: Buffer, recipe: PolicyRecipe, steps: int, root: Path) -> int:
    """Returns the growth of this process's peak resident memory, from before a loop to its last step [bytes].

    The loop saves no checkpoint and uses no thread, because a thread has its own heap.
    """
    before, peak = _resident(), 0

    def on_step(*_: Any) -> None:
        nonlocal peak
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    if which == "ours":
        recipe = replace(recipe, steps=steps, save_every=0)
        train(buffer, recipe, np.ones(buffer.total_frames), root, device="cpu", on_step=on_step)
    else:
        for _ in stock(buffer, recipe, steps - 1, 1):
            on_step()
    return peak - before


def tensors(which: str, buffer: Buffer, recipe: PolicyRecipe, root: Path) -> int:
    """Returns the bytes that torch's allocator holds at the peak of three steps, minus the bytes held before."""
    from torch.profiler import ProfilerActivity, profile

    profiler: Any = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_step(step: int, *_: Any) -> None:
        if step == 3:
            profiler.start()
        if step == 6:
            profiler.stop()

    if which == "ours":
        recipe = replace(recipe, steps=7, save_every=0)
        train(buffer, recipe, np.ones(buffer.total_frames), root, device="cpu", on_step=on_step)
    else:
        for number, _ in enumerate(stock(buffer, recipe, 6, 1)):
            on_step(number + 1)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def alone(which: str, measured: str, policy: str, steps: int) -> int:
    """Runs `growth` or `tensors` of one loop in a separate process."""
    command = [sys.executable, __file__, "--alone", which, measured, "--policy", policy, "--steps", str(steps)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory(policy: str, steps: int, processes: int) -> dict[str, Any]:
    """Measures the peaks of both loops: torch's bytes once, and the median growth over `processes` processes each."""
    mine, theirs = (alone(which, "tensors", policy, steps) for which in ("ours", "stock"))
    pairs = [tuple(alone(which, "growth", policy, steps) for which in ("ours", "stock")) for _ in range(processes)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "ours_peak_bytes": mine,
        "stock_peak_bytes": theirs,
        "peak_memory_ratio": mine / theirs,
        "resident_growth_bytes": pairs,
        "resident_growth_ratio": medians[0] / medians[1],
    }


def main() -> None:
    """Compares the loops, prints the result and writes the --json file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="pi0-tiny")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--processes", type=int, default=5, help="of each loop, for the resident memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # lerobot does not average the weights. Both loops do everything else.
    recipe = replace(load(PolicyRecipe, "policies", options.policy), ema_decay=0.0, padding="trained")
    with tempfile.TemporaryDirectory() as folder:
        buffer = record(Path(folder) / "data")
        if options.alone and options.alone[1] == "tensors":
            print(tensors(options.alone[0], buffer, recipe, Path(folder) / "run"))
        elif options.alone:
            print(growth(options.alone[0], buffer, recipe, 4 * options.steps, Path(folder) / "run"))
        else:
            result = speed(buffer, recipe, options.rounds, options.steps, Path(folder))
            result |= memory(options.policy, options.steps, options.processes)
            mine, theirs = result["ours_peak_bytes"], result["stock_peak_bytes"]
            result |= {"policy": options.policy, "batch_size": recipe.batch_size, "torch_threads": 1}
            print(
                f"{options.policy}, batch {recipe.batch_size}: ours {result['ours_steps_per_s']:.2f} steps/s, lerobot "
                f"{result['stock_steps_per_s']:.2f}; ratio {result['steps_per_s_ratio']:.3f} (at least 0.95 wanted)\n"
                f"peak memory of a step: ours {mine / 1e6:.1f} MB, lerobot {theirs / 1e6:.1f} MB; ratio "
                f"{result['peak_memory_ratio']:.3f} (at most 1 wanted); growth of the resident memory: ratio "
                f"{result['resident_growth_ratio']:.3f}"
            )
            if options.json:
                options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
