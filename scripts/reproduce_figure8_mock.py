"""Reproduces the paper's figure 8 on the mock cell: SFT, filtered cloning, RA-BC and AWR by SRPO progress, by task.

Each task has demonstrations of which a part fails, scored by progress. As in the paper, the study compares
fine-tunings. A base is trained once per task and policy with uniform weights on all demonstrations, and every cell of
the study continues from it (--base-steps 0: from fresh weights). Each method and training seed gets one fine-tuning and
one set of trials. The layouts of the trials are the same for all and differ from those of the demonstrations. Frames
are drawn in proportion to their weights, and every method sees the good demonstrations equally often. A method that
draws more of them therefore takes fewer steps. Executed steps and optimisation are the same for all. Choices are made
with --tuning, which uses other training seeds and other layouts. The script resumes: results on disk are not computed
again.

    python scripts/reproduce_figure8_mock.py STUDY --prepare
    python scripts/reproduce_figure8_mock.py STUDY --part 0 2 &
    python scripts/reproduce_figure8_mock.py STUDY --part 1 2
    python scripts/reproduce_figure8_mock.py STUDY --json figure8.json --figure figure8.png

A table of cells (--cells FILE) carries results from one machine to another. Cells in the table are not computed again,
and new cells are added to it. A base that another machine trains is either equal bit for bit or a different policy. The
table names bases by a hash of their parameters. Bases can differ by more than methods do, so a method is compared with
another one only from the same base. If a base comes out differently, finish the task on the machine that began it, or
compute all of its methods again. The cells of the README's figure and of LOG.md are in figure8_mock.csv. To use them
without computing anything:

    python scripts/reproduce_figure8_mock.py STUDY --steps 3000 --learning-rate 1e-3 \\
        --method sft bc rabc awr-short awr --cells scripts/figure8_mock.csv --only-done --figure figure8.png

put-apple with pi0-tiny takes about 100 minutes of one core. A step of pi0-fast-tiny takes half as long again. Results
on the mock cell say nothing about a real arm.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student

from srpo_robot.awr.tables import (
    Weighting,
    baseline_weights,
    mean_weight_by_label,
    rabc_buffer_weights,
    total_advantage,
)
from srpo_robot.awr.train import train
from srpo_robot.awr.weights import Weights, awr_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.running import TRIAL_WIDE_STARTS, load_recipes, open_cell, record_demonstrations
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.policy import TrainedPolicy
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.mock.truth import read_truth, true_windows
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.evidence.baselines import PixelMean
from srpo_robot.progress.pipeline import ScoreSettings, combined, embed, progress_columns
from srpo_robot.progress.score import Rules, WindowEmbeddings, score
from srpo_robot.progress.windows import parse_windows
from srpo_robot.recipes import PolicyRecipe, digest, load
from srpo_robot.report.figures import MUTED, save

TASKS = ("put-apple", "put-pear", "wipe-board", "fold-towel", "select-poker")
POLICIES = ("pi0-tiny", "pi0-fast-tiny")
DATA_SEED, TUNING_SEED, TRIAL_SEED = 100_000, 400_000, 500_000  # far apart, so layouts never repeat
TUNING_RUNS = 100  # first training seed of --tuning
_STYLES = {  # label and colour in the figure
    "sft": ("SFT on all", "#cbd5e1"),
    "bc": ("filtered cloning", "#93c5fd"),
    "rabc": ("RA-BC", "#fcd34d"),
    "awr-short": ("AWR, first weighting", "#c4b5fd"),
    "awr": ("AWR", "#34d399"),
    "awr-long": ("AWR, longer horizon", "#86efac"),
}
_MORE_COLOURS = ("#fca5a5", "#fdba74", "#a5f3fc")

# Chosen by looking at the weights: failures keep .05 to .11 of a mean of 1, and the slow approach keeps its share.
SHORT = Weighting(horizon=20, beta=1.0, kappa=2.0, baseline="value")
# Chosen after pi0-fast-tiny fell behind filtered cloning with the first (LOG.md): flatter, and calm at episode ends.
LONG = Weighting(horizon=40, beta=2.0, kappa=4.0, tail="raw", baseline="value")
CHOSEN = {"pi0-tiny": SHORT, "pi0-fast-tiny": LONG}


@dataclass(frozen=True)
class Method:
    """Weighting of frames, and for AWR also the score (profile `loo`, camera `front`)."""

    scheme: Literal["uniform", "success", "rabc", "awr"]
    scorer: Literal["embedded", "pixel", "true"] = "embedded"
    references: str = ""
    value: str = "knn-return"
    weighting: Weighting | None = None  # None: the entry of the policy in `CHOSEN`

    def of(self, policy: str) -> Weighting:
        """Returns the weighting for training `policy`."""
        return self.weighting or CHOSEN[policy]


SIZES = ("episodes", "failure_rate", "trials", "base_steps", "steps", "learning_rate")
Cell = tuple[str, str, str, int]  # task, policy, method, training seed
OnBase = dict[str, int]  # successes, by the base of the fine-tuning

PAPER = Weighting(horizon=1, shift=0, tail="raw")
METHODS = {
    "sft": Method("uniform"),
    "bc": Method("success"),
    "rabc": Method("rabc"),
    "awr": Method("awr"),
    "awr-short": Method("awr", weighting=SHORT),
    "awr-long": Method("awr", weighting=LONG),
    "awr-strict": Method("awr", weighting=replace(LONG, kappa=8.0, w_max=1e4)),  # failures keep .1 %, not 2 %
    "awr-mean": Method("awr", weighting=replace(SHORT, baseline="mean")),
    "awr-steps": Method("awr", weighting=Weighting(horizon=20, beta=0.3, baseline="value")),
    "awr-sharp": Method(
        "awr", weighting=Weighting(horizon=20, beta=0.3)
    ),  # steps only: no trajectory term, no baseline
    "awr-phase": Method("awr", value="knn-time"),
    "awr-paper": Method("awr", value="progress", weighting=PAPER),  # exactly appendix G: single steps, beta 1
    "awr-chunk": Method("awr", value="progress", weighting=Weighting(horizon=20)),  # chunk advantage, beta 1
    "awr-nearest": Method("awr", references="nearest", value="progress"),
    "awr-clusters": Method("awr", references="dbscan-auto", value="progress"),
    "awr-pixel": Method("awr", scorer="pixel"),
    "awr-true": Method("awr", scorer="true"),  # a perfect encoder
} | {
    f"awr-b{beta:g}-h{horizon}-k{kappa:g}": Method("awr", weighting=Weighting(horizon=horizon, beta=beta, kappa=kappa))
    for beta in (0.1, 0.3, 1.0)
    for horizon in (10, 20, 30)
    for kappa in (0.0, 1.0, 2.0)
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Folder and sizes of a study."""

    root: Path
    episodes: int
    failure_rate: float
    trials: int
    base_steps: int
    steps: int
    learning_rate: float | None
    tuning: bool = False

    def claim(self) -> None:
        """Writes the sizes at the first call. Raises UsageError if the folder holds a study of other sizes."""
        sizes = {key: value for key, value in asdict(self).items() if key not in ("root", "tuning", "trials")}
        path = self.root / "study.json"
        if path.is_file() and json.loads(path.read_text()) != sizes:
            raise UsageError(
                f"{self.root} holds a study of other sizes, {path.read_text().strip()}; give another folder"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sizes) + "\n")

    @property
    def cells(self) -> Path:
        """Returns the folder of runs and trials. --tuning has its own."""
        return self.root / "tuning" if self.tuning else self.root

    def buffer(self, task: str) -> Buffer:
        """Returns the task's demonstrations. Records them if they are missing."""
        root = self.root / "data" / task
        with alone(root):
            done = len(open_buffer(root).episodes) if (root / "meta" / "info.json").is_file() else 0
            if done < self.episodes:
                record_demonstrations("mock", task, root, self.episodes - done, self.failure_rate, DATA_SEED)
        return open_buffer(root)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Locks `path` against other processes. Waits if another process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is making {path}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- weights ------------------------------------------------------------------------------------------------------


def windows_of(buffer: Buffer, scorer: str) -> Sequence[WindowEmbeddings | None]:
    """Returns embedded windows of every episode, camera `front`. Uses the store if they are in it."""
    spec = parse_windows("stride:4", "prefix", 10, None)
    if scorer == "true":
        return true_windows(read_truth(buffer), buffer.episodes, spec)
    encoder: Any = load_encoder("embedded") if scorer == "embedded" else PixelMean()
    spec = spec.resolved(encoder.frames_per_clip)
    if scorer == "pixel":
        spec = replace(spec, shape="recent")  # the mean of the last 10 frames: the negative control to beat
    settings = ScoreSettings(scorer, (buffer.camera("front"),), spec)
    return combined(embed(buffer, encoder, settings))


def weigh(buffer: Buffer, method: Method, policy: str) -> Weights:
    """Computes the weight of every frame for training `policy` with the method."""
    if method.scheme in ("uniform", "success"):
        return baseline_weights(buffer, method.scheme)  # type: ignore[arg-type]
    rules = Rules("loo", method.references, method.value)
    scores = score(buffer.episodes, windows_of(buffer, method.scorer), rules)
    table = Table(progress_columns(buffer.episodes, scores), {"dataset": buffer.fingerprint})
    if method.scheme == "rabc":
        return rabc_buffer_weights(buffer, table, chunk_of(policy))
    weighting = method.of(policy)
    _, advantage = total_advantage(buffer, table, weighting)
    return awr_weights(advantage, weighting.beta, weighting.w_max)


def chunk_of(policy: str) -> int:
    """Returns the number of actions in a chunk."""
    return load(PolicyRecipe, "policies", policy).config["chunk_size"]


def kept_weights(study: Study, task: str, policy: str, name: str) -> np.ndarray:
    """Returns the weights of `weigh`. They are cached in the study's folder under a hash of their inputs."""
    buffer, method = study.buffer(task), METHODS[name]
    inputs = digest([asdict(method), asdict(method.of(policy)), chunk_of(policy), buffer.fingerprint])
    path = study.root / "weights" / task / f"{name}-{inputs}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npy")
        np.save(part, weigh(buffer, method, policy).values)
        part.replace(path)  # another process may be reading it
    return np.load(path)


def weights_table(study: Study, task: str, policy: str, names: Sequence[str]) -> dict[str, Any]:
    """Prints and returns statistics of each method's weights, before any training."""
    buffer = study.buffer(task)
    rows = {}
    for name in names:
        weights = weigh(buffer, METHODS[name], policy)
        rows[name] = {
            "effective": weights.effective_sample_size / buffer.total_frames,
            "clipped": weights.clipped_fraction,
            "undefined": weights.undefined,
            **mean_weight_by_label(buffer, weights),
        }
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in rows[name].items())
        print(f"{task} {policy:14s} {name:22s} {numbers}")
    return rows


# --- training and trials ------------------------------------------------------------------------------------------


def base_of(study: Study, task: str, policy: str) -> Path:
    """Returns the base checkpoint of a task and policy. Trains it if it is missing or incomplete."""
    recipe = replace(load(PolicyRecipe, "policies", policy), steps=study.base_steps, seed=0)
    output = study.root / "base" / task / policy
    with alone(output):
        if not has_base(study, task, policy):
            buffer = study.buffer(task)
            _train(buffer, recipe, np.ones(buffer.total_frames), output, "base")
    return output / "checkpoints" / f"{study.base_steps:06d}" / "pretrained_model"


def has_base(study: Study, task: str, policy: str) -> bool:
    """Returns True if `base_of` has nothing to train."""
    checkpoints = study.root / "base" / task / policy / "checkpoints"
    return not study.base_steps or (checkpoints / f"{study.base_steps:06d}" / "training_state").is_dir()


def base_name(study: Study, task: str, policy: str) -> str:
    """Returns the name of a base: a hash of its parameters. Trains the base if it is missing."""
    if not study.base_steps:
        return "fresh"
    return hashlib.sha256((base_of(study, task, policy) / "model.safetensors").read_bytes()).hexdigest()[:8]


def recipe_of(study: Study, task: str, policy: str, seed: int, steps: int) -> PolicyRecipe:
    """Returns the recipe for the fine-tuning of one cell."""
    recipe = load(PolicyRecipe, "policies", policy)
    peak = study.learning_rate or recipe.learning_rate
    recipe = replace(
        recipe,
        steps=steps,
        seed=seed,
        save_every=min(recipe.save_every, steps),
        weights_as="sampling",
        learning_rate=peak,
        final_learning_rate=peak / 50,
        warmup_steps=max(1, round(0.05 * study.steps)),
    )
    return replace(recipe, base=str(base_of(study, task, policy)), tiny={}) if study.base_steps else recipe


def steps_for(full: int, weights: np.ndarray, good: np.ndarray) -> int:
    """Returns the number of steps that draws good frames as often as `full` steps of uniform draws."""
    return max(1, round(full * good.mean() / (weights[good].sum() / weights.sum())))


def checkpoint_of(study: Study, task: str, policy: str, name: str, seed: int) -> Path:
    """Returns the trained policy of one cell of the study. Trains it if it is missing or incomplete."""
    output = study.cells / "runs" / task / policy / name / str(seed)
    buffer = study.buffer(task)
    weights = kept_weights(study, task, policy, name)
    good = np.repeat([bool(e.success) for e in buffer.episodes], [e.length for e in buffer.episodes])
    steps = steps_for(study.steps, weights, good)
    last = output / "checkpoints" / f"{steps:06d}"
    if (last / "training_state").is_dir():
        return last
    return _train(buffer, recipe_of(study, task, policy, seed, steps), weights, output, name)


def _train(buffer: Buffer, recipe: PolicyRecipe, weights: np.ndarray, output: Path, name: str) -> Path:
    resume = any((output / "checkpoints").glob("0*"))
    if not resume and output.exists():
        (output / "metrics.jsonl").unlink(missing_ok=True)
    return train(buffer, recipe, weights, output, resume=resume, device="cpu", provenance={"method": name})


def trials_of(study: Study, task: str, policy: str, name: str, seed: int) -> list[bool]:
    """Returns the verdicts of the cell's trials from its journal. Runs the missing trials."""
    path = journal_of(study, task, policy, name, seed)
    with alone(path):
        return _trials(study, task, policy, name, seed, path)


def journal_of(study: Study, task: str, policy: str, name: str, seed: int) -> Path:
    """Returns the path of the cell's journal, one line per trial."""
    return study.cells / "trials" / task / policy / name / f"{seed}.jsonl"


def _verdicts(path: Path) -> list[bool]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["success"] for line in lines]


def _trials(study: Study, task: str, policy: str, name: str, seed: int, path: Path) -> list[bool]:
    verdicts = _verdicts(path)
    if len(verdicts) >= study.trials:
        return verdicts[: study.trials]
    checkpoint = checkpoint_of(study, task, policy, name, seed)
    hardware, recipe = load_recipes("mock", task)
    arm, workcell, space = open_cell(hardware, recipe, TRIAL_WIDE_STARTS, 0.0, 0.0)
    trained = TrainedPolicy(str(checkpoint), space, recipe.instruction, recipe.cameras, "cpu")
    setup = Setup(
        arm=arm,
        workcell=workcell,
        space=space,
        instruction=recipe.instruction,
        time_limit_s=recipe.time_limit_s,
        cameras=recipe.cameras,
    )
    with arm, path.open("a", encoding="utf-8") as journal:
        for number in range(len(verdicts), study.trials):
            layout = (TUNING_SEED if study.tuning else TRIAL_SEED) + number
            outcome = run_episode(setup, trained, layout)
            verdicts.append(bool(outcome.success))
            row = {"seed": layout, "success": verdicts[-1], "score": outcome.score, "steps": outcome.steps}
            journal.write(json.dumps(row) + "\n")
            journal.flush()
    return verdicts


# --- the table of cells -------------------------------------------------------------------------------------------


def read_cells(study: Study, path: Path) -> dict[Cell, OnBase]:
    """Reads the successes of the cells that have this study's sizes. Returns none if there is no table yet.

    Raises UsageError if the file is not such a table, or if two rows of a cell and base disagree.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cells: dict[Cell, OnBase] = {}
    others = 0
    for number, row in enumerate(rows, 2):
        try:
            cell, base = (row["task"], row["policy"], row["method"], int(row["seed"])), row["base"]
            successes, same_sizes = int(row["successes"]), all(row[key] == _size(study, key) for key in SIZES)
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{path}, line {number}: not a row of a table that --cells wrote") from None
        if not same_sizes:
            others += 1
        elif cells.setdefault(cell, {}).setdefault(base, successes) != successes:
            raise UsageError(f"{path}, line {number}: {' '.join(map(str, cell))} is there twice; delete one")
    if others:
        print(f"{path}: {others} cells are of other sizes and left out")
    return cells


def add_cell(study: Study, path: Path, cell: Cell, base: str, successes: int) -> None:
    """Appends one cell as a whole row, under a lock against other processes."""
    task, policy, method, seed = cell
    row = {"policy": policy, "task": task, "base": base, "method": method, "seed": seed, "successes": successes}
    row |= {key: _size(study, key) for key in SIZES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, [*row], lineterminator="\n")
        if os.fstat(file.fileno()).st_size == 0:
            writer.writeheader()
        writer.writerow(row)


def _size(study: Study, key: str) -> str:
    value = getattr(study, key)
    return "recipe" if value is None else f"{value:g}"


# --- results ------------------------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float], least: float = 0.0) -> dict[str, Any]:
    """Computes the mean over training seeds and its 95 % interval.

    The interval is Student's t over seeds, so it covers the chance of both seeds and trials. It is clipped to `least`
    and 1. `least` is 0 for a rate and -1 for a difference of rates.
    """
    n = len(values)
    if n == 0:
        return {"mean": None, "interval": None, "seeds": []}
    mean = float(np.mean(values))
    if n == 1:
        return {"mean": mean, "interval": None, "seeds": list(values)}
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"mean": mean, "interval": [max(mean - half, least), min(mean + half, 1.0)], "seeds": list(values)}


def summarise(rates: dict[Cell, dict[str, float]]) -> dict[str, Any]:
    """Returns, by policy, each method's rate by task and over tasks, and AWR's difference to each other method.

    Args:
        rates: success rate of each cell, by base.
    """
    summary: dict[str, Any] = {}
    for policy in dict.fromkeys(key[1] for key in rates):
        cells = {(task, name, seed): by_base for (task, p, name, seed), by_base in rates.items() if p == policy}
        tasks, names = list(dict.fromkeys(key[0] for key in cells)), list(dict.fromkeys(key[1] for key in cells))
        groups = (tasks, *([task] for task in tasks))
        methods = {name: _over_tasks(tasks, [_by_seed(cells, group, name) for group in groups]) for name in names}
        summary[policy] = {"methods": methods}
        for other in (name for name in names if "awr" in names and name != "awr"):
            gains = [_by_seed(cells, group, "awr", other) for group in groups]
            summary[policy][f"awr_minus_{other}"] = _over_tasks(tasks, gains, -1.0)
    return summary


def _over_tasks(tasks: Sequence[str], values: Sequence[Sequence[float]], least: float = 0.0) -> dict[str, Any]:
    """Summarises values by seed. The first entry of `values` is over all tasks, then one entry per task follows."""
    by_task = {task: over_seeds(of_task, least) for task, of_task in zip(tasks, values[1:], strict=True)}
    return over_seeds(values[0], least) | {"tasks": by_task}


def _by_seed(
    rates: dict[tuple[str, str, int], dict[str, float]], tasks: Sequence[str], name: str, other: str | None = None
) -> list[float]:
    """Returns a method's mean rate over `tasks`, or its difference to the rate of `other` from the same base.

    There is one value for each training seed that has all tasks. Several bases of a cell count as their mean.
    """
    values = []
    for seed in sorted({seed for _, _, seed in rates}):
        cells = []
        for task in tasks:
            first = rates.get((task, name, seed), {})
            second = rates.get((task, other, seed), {}) if other else dict.fromkeys(first, 0.0)
            cells.append([first[base] - second[base] for base in first.keys() & second.keys()])
        if all(cells):
            values.append(float(np.mean([np.mean(of_task) for of_task in cells])))
    return values


def show(summary: dict[str, Any]) -> None:
    """Prints the table."""
    for policy, result in summary.items():
        gains = {key: row for key, row in result.items() if key.startswith("awr_minus")}
        for name, row in (result["methods"] | gains).items():
            print(f"{policy:14s} {name:22s} {_text(row)}")
            for task, of_task in row["tasks"].items() if len(row["tasks"]) > 1 else ():
                print(f"{'':14s}   {task:20s} {_text(of_task)}")


def _text(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "no seed is whole yet"
    spread = "" if row["interval"] is None else " [{:.0%}, {:.0%}]".format(*row["interval"])
    return f"{row['mean']:.0%}{spread}   seeds {' '.join(f'{value:.0%}' for value in row['seeds'])}"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws one row per policy: bars by task and method, intervals over training seeds, and a dot per seed."""
    most = max(len(row["tasks"]) for result in summary.values() for row in result["methods"].values())
    figure = Figure(figsize=(3.5 + 1.3 * most, 3.1 * len(summary)))
    rows = np.atleast_1d(figure.subplots(len(summary), 1, sharey=True))
    for axes, (policy, result) in zip(rows, summary.items(), strict=True):
        names = list(result["methods"])
        tasks = list(result["methods"][names[0]]["tasks"])
        mean_of = f"mean of {len(tasks)}"
        groups = [mean_of, *tasks] if len(tasks) > 1 else tasks
        width = 0.8 / len(names)
        others = (name for name in names if name not in _STYLES)
        styles = _STYLES | {name: (name, colour) for name, colour in zip(others, cycle(_MORE_COLOURS), strict=False)}
        for number, name in enumerate(names):
            row = result["methods"][name]
            bars = [row if group == mean_of else row["tasks"][group] for group in groups]
            places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(groups))]
            _bars(axes, places, bars, 0.9 * width, *styles[name])
        axes.set_xticks(range(len(groups)), groups)
        axes.set_title(policy, loc="left", fontsize=11)
        axes.set_ylim(0, 1.03)  # so that the dot of a rate of 1 is visible
        axes.set_ylabel("success rate")
    handles = {text: handle for axes in rows for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    rows[0].legend(
        [*handles.values()], [*handles], ncol=5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8
    )
    figure.tight_layout()
    save(figure, path)


def _bars(axes: Any, places: list[float], rows: list[dict[str, Any]], width: float, name: str, colour: str) -> None:
    run = [(place, row) for place, row in zip(places, rows, strict=True) if row["seeds"]]
    axes.bar([place for place, _ in run], [row["mean"] for _, row in run], color=colour, width=width, label=name)
    for place in (place for place, row in zip(places, rows, strict=True) if not row["seeds"]):
        axes.text(place, 0.02, "not run", rotation=90, ha="center", va="bottom", fontsize=6, color=MUTED)
    for place, row in run:
        axes.plot([place] * len(row["seeds"]), row["seeds"], "o", color=MUTED, markersize=2.5)
        if row["interval"]:
            axes.vlines(place, *row["interval"], color="#1f2937", lw=1.2)


def main() -> None:
    """Computes the missing cells, task by task and seed by seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--method", nargs="+", choices=sorted(METHODS), default=["sft", "bc", "rabc", "awr"])
    parser.add_argument("--seeds", type=int, default=5, help="training seeds of each method")
    parser.add_argument("--episodes", type=int, default=360, help="demonstrations of each task")
    parser.add_argument("--failure-rate", type=float, default=0.5)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--base-steps", type=int, default=8000, help="of the bases; 0: none, fresh weights")
    parser.add_argument("--steps", type=int, default=3000, help="of SFT; other methods: see above")
    parser.add_argument("--learning-rate", type=float, help="peak of the fine-tuning instead of the recipe's")
    parser.add_argument("--tuning", action="store_true", help="training seeds and layouts to make choices by")
    parser.add_argument("--part", type=int, nargs=2, metavar=("I", "N"), default=(0, 1), help="cells I, I + N, ...")
    parser.add_argument("--prepare", action="store_true", help="record, score, train bases, print mean weights")
    parser.add_argument("--cells", type=Path, help="a table of cells to read from and to add to")
    parser.add_argument("--only-done", action="store_true", help="table and figure of what is there; make nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(**{key: getattr(options, key.replace("root", "study")) for key in Study.__dataclass_fields__})
    study.claim()
    if options.prepare:
        result: dict[str, Any] = {
            task: {policy: weights_table(study, task, policy, options.method) for policy in options.policy}
            for task in options.task
        }
        for task in options.task if study.base_steps else ():
            for policy in options.policy:
                print(base_of(study, task, policy))
    else:
        result = summarise(_rates(study, options))
        show(result)
        if options.figure:
            draw(result, options.figure)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _rates(study: Study, options: argparse.Namespace) -> dict[Cell, dict[str, float]]:
    """Returns the success rate, by base, of every requested cell. Computes it if table and folder both lack it."""
    first, parts = options.part
    if not 0 <= first < parts:
        raise UsageError(f"--part {first} {parts}: the first number is 0 to {parts - 1}")
    if study.tuning and options.cells:
        raise UsageError("--cells is for the study's own cells; runs of --tuning stay in the study's folder")
    known = read_cells(study, options.cells) if options.cells else {}
    seeds = range(TUNING_RUNS, TUNING_RUNS + options.seeds) if study.tuning else range(options.seeds)
    cells = [(t, p, m, s) for s in seeds for t in options.task for p in options.policy for m in options.method]
    rates: dict[Cell, dict[str, float]] = {}
    for cell in cells[first::parts]:
        here = len(_verdicts(journal_of(study, *cell))) >= study.trials
        if here and options.only_done and not has_base(study, *cell[:2]):
            print(" ".join(map(str, cell)), "is left out: the folder has lost the base that its trials go back to")
            here = False
        on_base = known.get(cell, {})
        if here or not (on_base or options.only_done):
            base, successes = base_name(study, *cell[:2]), sum(trials_of(study, *cell))
            if options.cells and base not in on_base:
                add_cell(study, options.cells, cell, base, successes)
            on_base[base] = successes
        if on_base:
            rates[cell] = {base: successes / study.trials for base, successes in on_base.items()}
            print(" ".join(map(str, cell)) + ":", *(f"{rate:.0%}" for rate in rates[cell].values()), flush=True)
    if not rates:
        raise UsageError(f"none of these cells is done in {options.cells or study.root}; leave --only-done out")
    order = {name: number for number, name in enumerate(options.method)}
    return {cell: rates[cell] for cell in sorted(rates, key=lambda cell: order[cell[2]])}


if __name__ == "__main__":
    main()
