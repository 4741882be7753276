"""Shows weights before they train: how many frames carry the gradient, and which, over a grid of beta and w_max.

numpy in, numpy out. The advice warns of weights like those that did not learn on the mock cell. Its limits come from
single training runs, so they are hints and not laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_robot.awr.weights import Weights, awr_weights
from srpo_robot.records import Episode

PHASES = 10  # tenths of an episode
TOP = 0.01  # share of the frames that counts as "a handful"
# From a prototype on the mock cell, one training run each. At beta 1 a ratio of 2.9 (2.3 against 0.8) learned no better
# than SFT, and ratios of 3.8 and more did. An effective sample of 32 % learned well. 39 % at the cap did worse than
# 26 %.
LEAST_RATIO = 3.2
LEAST_EFFECTIVE = 0.2
MOST_IN_TOP = 0.2
MOST_CLIPPED = 0.3
# On put-apple the approach phase of successes had 8 % of their mean weight; one run with such weights was behind SFT.
LEAST_IN_PART = 0.15
# On wipe-board the last tenth of successes, in which the arm leaves, had 1.7 times their mean weight, and pi0-FAST left
# too early. On the other tasks of the mock cell it had at most 1.03 times.
MOST_AT_END = 1.5
LABELS = {True: "success", False: "failure", None: "unlabelled"}


@dataclass(frozen=True, eq=False)
class Frames:
    """Label, task and phase of a dataset's frames, each (N,) in dataset order.

    Attributes:
        label: "success", "failure" or "unlabelled".
        task: the instruction.
        phase: number of the part of the episode, from 0; an episode has PHASES equal parts.
    """

    label: np.ndarray
    task: np.ndarray
    phase: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """How the weights for one beta and w_max are spread. A mean over no frames is left out.

    Attributes:
        beta: temperature of the weights.
        w_max: cap of the weights.
        effective: effective sample size as a share of the frames.
        clipped: share of the frames with an advantage that are at the cap.
        top: share of the total weight on the heaviest TOP of the frames.
        by_label: mean weight by label.
        by_task: by task, mean weight by label, and under "all".
        by_phase: by label, mean weight in each part of the episode (PHASES numbers, NaN for a part without frames).
    """

    beta: float
    w_max: float
    effective: float
    clipped: float
    top: float
    by_label: dict[str, float]
    by_task: dict[str, dict[str, float]]
    by_phase: dict[str, tuple[float, ...]]

    @property
    def ratio(self) -> float:
        """Mean weight of successes over that of failures. NaN if one is missing, infinite if failures weigh 0."""
        if "success" not in self.by_label or "failure" not in self.by_label:
            return math.nan
        success, failure = self.by_label["success"], self.by_label["failure"]
        return success / failure if failure else math.inf

    @property
    def sound(self) -> bool:
        """Whether there is no advice against these weights."""
        return not advice(self)


def frames_of(episodes: Sequence[Episode]) -> Frames:
    """Returns label, task and phase of every frame of `episodes`."""
    lengths = [episode.length for episode in episodes]
    phase = [np.arange(length) * PHASES // max(length, 1) for length in lengths]
    label = np.repeat(np.array([LABELS[e.success] for e in episodes], dtype=object), lengths)
    return Frames(label, np.repeat(np.array([e.task for e in episodes], dtype=object), lengths), np.concatenate(phase))


def view(weights: Weights, frames: Frames, beta: float, w_max: float) -> GridCell:
    """Returns how `weights`, computed with `beta` and `w_max`, are spread over `frames`."""
    values = weights.values
    heaviest = np.sort(values)[-math.ceil(TOP * len(values)) :]
    labels = [name for name in LABELS.values() if (frames.label == name).any()]
    return GridCell(
        beta=beta,
        w_max=w_max,
        effective=weights.effective_sample_size / len(values),
        clipped=weights.clipped_fraction,
        top=float(heaviest.sum() / values.sum()),
        by_label={name: float(values[frames.label == name].mean()) for name in labels},
        by_task={str(task): _of_task(values, frames, task) for task in dict.fromkeys(frames.task)},
        by_phase={name: _by_phase(values, frames, name) for name in labels},
    )


def weight_grid(
    advantage: np.ndarray, frames: Frames, betas: Sequence[float], caps: Sequence[float]
) -> tuple[GridCell, ...]:
    """Returns a cell for every beta and, within it, every cap. `advantage`: (N,), NaN if undefined.

    Raises:
        UsageError, TrainingError: see `weights.awr_weights`.
    """
    return tuple(view(awr_weights(advantage, b, w), frames, b, w) for b in betas for w in caps)


def advice(cell: GridCell, grid: Sequence[GridCell] = ()) -> tuple[str, ...]:
    """Returns the doubts about a set of weights, each with something to try; () if there are none."""
    lines = []
    if cell.top > MOST_IN_TOP or cell.effective < LEAST_EFFECTIVE:
        lines.append(
            f"a handful of frames carries the gradient: the heaviest {TOP:.0%} have {cell.top:.0%} of the weight, and "
            f"all together count as much as {cell.effective:.0%} of them would if alike; try a larger beta or a "
            "smaller w_max"
        )
    if cell.ratio < LEAST_RATIO:
        means = f"{cell.by_label['success']:.2f} against {cell.by_label['failure']:.2f} on average"
        lines.append(
            f"the weights hardly tell successes from failures: {means}; at 2.3 against 0.8 a prototype learned no "
            "better than SFT: try a smaller beta, a longer horizon, or some kappa"
        )
    if cell.clipped > MOST_CLIPPED:
        lines.append(
            f"{cell.clipped:.0%} of the frames are at the cap, so they are told apart no more; try a larger beta or "
            "w_max"
        )
    starved = _starved(cell)
    if starved:
        lines.append(
            f"parts of the successes hardly train: {', '.join(starved)} of the episode; a slow phase gains little "
            "however well it is done: try a larger beta, some kappa, or baseline value"
        )
    end, mean = cell.by_phase.get("success", (math.nan,))[-1], cell.by_label.get("success", math.nan)
    if end > MOST_AT_END * mean:
        lines.append(
            f"the end of the successes trains most: their last {100 // PHASES} % weigh {end / mean:.1f} times their "
            "mean; progress jumps there, and a policy may learn to finish too early: try tail raw, a longer horizon, "
            "or a larger beta with more kappa"
        )
    if lines and grid:
        lines.append(_way_out(grid))
    return tuple(lines)


def _starved(cell: GridCell) -> list[str]:
    """Names the tenths of successes whose mean weight is below LEAST_IN_PART of the mean over all their frames."""
    if "success" not in cell.by_label:
        return []
    least = LEAST_IN_PART * cell.by_label["success"]
    share = 100 // PHASES
    weights = enumerate(cell.by_phase.get("success", ()))
    return [f"{share * number} to {share * (number + 1)} %" for number, weight in weights if weight < least]


def _way_out(grid: Sequence[GridCell]) -> str:
    """Names the cell without doubts that has the most effective frames."""
    sound = [cell for cell in grid if cell.sound]
    if not sound:
        return "no beta and w_max of the grid is without such doubts; look at the scores: srpo-robot audit"
    best = max(sound, key=lambda cell: cell.effective)
    ratio = "" if math.isnan(best.ratio) else f", successes to failures {best.ratio:.1f}"
    return (
        f"of the grid, --beta {best.beta:g} --w-max {best.w_max:g} has none of this: effective sample size "
        f"{best.effective:.0%}, {best.clipped:.0%} at the cap{ratio}"
    )


def _of_task(values: np.ndarray, frames: Frames, task: str) -> dict[str, float]:
    of_task = frames.task == task
    means = {"all": float(values[of_task].mean())}
    for name in LABELS.values():
        if (of_task & (frames.label == name)).any():
            means[name] = float(values[of_task & (frames.label == name)].mean())
    return means


def _by_phase(values: np.ndarray, frames: Frames, label: str) -> tuple[float, ...]:
    of_label = frames.label == label
    parts = [values[of_label & (frames.phase == phase)] for phase in range(PHASES)]
    return tuple(float(part.mean()) if len(part) else math.nan for part in parts)
