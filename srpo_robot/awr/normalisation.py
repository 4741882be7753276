"""Statistics of state and action from the dataset's columns, in the form that lerobot's normalizer takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import DatasetError

quiet_lerobot()

from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep  # noqa: E402  (after quiet_lerobot)
from lerobot.utils.constants import ACTION, OBS_STATE  # noqa: E402

_FLAT_ACTION = 1e-4  # [action units] floor of an action's std: a constant dimension must not amplify rounding
_FLAT_STATE = 1e-4  # [state units] below it a dimension counts as constant and is not scaled
_QUANTILES = (1, 10, 50, 90, 99)  # in percent, for lerobot's normalization modes
_RANGES = (("min", "max"), ("q01", "q99"), ("q10", "q90"))  # bounds that those modes map to -1 and 1


def normalisation_stats(buffer: Buffer, config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Computes statistics of state and action over the whole dataset for lerobot's normalizer. Images are not scaled.

    With relative actions, the action's statistics are over relative chunks, which the policy then predicts.

    Raises:
        DatasetError: a state or an action holds NaN or infinity.
    """
    state, action = buffer.column(OBS_STATE), buffer.column(ACTION)
    stats = {OBS_STATE: column_stats(state)}
    if relative_actions(config):
        bounds = [(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
        mask = relative_mask(config, action.shape[1])
        stats[ACTION] = relative_stats(action, state, bounds, config.chunk_size, mask)
    else:
        stats[ACTION] = column_stats(action)
    for key in (OBS_STATE, ACTION):
        if not np.isfinite(stats[key]["mean"]).all():
            raise DatasetError(f"{buffer.root.name}: {key} holds NaN or infinity; record those episodes again")
    spread = stats[OBS_STATE]["std"]
    stats[OBS_STATE]["std"] = np.where(spread < _FLAT_STATE, 1.0, spread)
    stats[ACTION]["std"] = np.maximum(stats[ACTION]["std"], _FLAT_ACTION)
    for low, high in _RANGES:
        for key, flat, half in ((OBS_STATE, _FLAT_STATE, 1.0), (ACTION, 2 * _FLAT_ACTION, _FLAT_ACTION)):
            _span_rare_values(stats[key], low, high, flat)
            _widen(stats[key], low, high, flat, half)
    return stats


def _span_rare_values(stats: dict[str, np.ndarray], low: str, high: str, flat: float) -> None:
    """Replaces equal quantiles of a dimension that moves rarely by its minimum and maximum: a gripper that opens once.

    Bounds widened as for a constant would put the rare values hundreds of units outside.
    """
    met = (stats[high] - stats[low] < flat) & (stats["max"] - stats["min"] >= flat)
    stats[low] = np.where(met, stats["min"], stats[low])
    stats[high] = np.where(met, stats["max"], stats[high])


def _widen(stats: dict[str, np.ndarray], low: str, high: str, flat: float, half: float) -> None:
    """Moves two bounds that are closer than `flat` to `half` on either side of their middle."""
    middle, narrow = (stats[low] + stats[high]) / 2, stats[high] - stats[low] < flat
    stats[low] = np.where(narrow, middle - half, stats[low])
    stats[high] = np.where(narrow, middle + half, stats[high])


def relative_actions(config: Any) -> bool:
    """Returns whether the policy predicts actions minus the state; families without the setting never do."""
    return bool(getattr(config, "use_relative_actions", False))


def column_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns mean, std (population), min, max and the quantiles of lerobot's modes of (N, D) values, (D,) each."""
    values = np.asarray(values, dtype=np.float64)
    return {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        **_quantiles(values),
    }


def _quantiles(values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in _QUANTILES}


def relative_stats(
    action: np.ndarray, state: np.ndarray, bounds: list[tuple[int, int]], chunk: int, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes statistics of a[t+k] - state[t] over all t and all k < chunk that stay inside the episode of t.

    lerobot's `compute_relative_action_stats` leaves out chunks that start near the episode's end. They are trained on,
    so they count here.

    Args:
        action: (N, A) absolute actions.
        state: (N, S) states, S >= A. Their first A values belong to the action's values.
        bounds: first frame and one past the last, per episode.
        chunk: length of a chunk.
        mask: (A,) True for values that become relative; the others stay absolute.

    Returns:
        The statistics of `column_stats`, (A,) each.
    """
    action, state = np.asarray(action, dtype=np.float64), np.asarray(state, dtype=np.float64)
    offset = state[:, : action.shape[1]] * mask
    end = np.zeros(len(action), dtype=np.int64)
    for first, last in bounds:
        end[first:last] = last
    start = np.arange(len(action))
    inside = [
        start[start + k < end] for k in range(chunk)
    ]  # one lag at a time, because (N, chunk, A) may not fit into memory
    lags = [(k, rows) for k, rows in enumerate(inside) if len(rows)]

    def relative() -> Iterator[np.ndarray]:
        return (action[rows + k] - offset[rows] for k, rows in lags)

    count = sum(len(rows) for _, rows in lags)
    mean = np.sum([part.sum(axis=0) for part in relative()], axis=0) / count
    variance = np.sum([((part - mean) ** 2).sum(axis=0) for part in relative()], axis=0) / count
    low = np.min([part.min(axis=0) for part in relative()], axis=0)
    high = np.max([part.max(axis=0) for part in relative()], axis=0)
    each = [_quantiles(np.concatenate([part[:, d] for part in relative()])) for d in range(action.shape[1])]
    quantiles = {name: np.array([dimension[name] for dimension in each]) for name in each[0]}
    return {"mean": mean, "std": np.sqrt(variance), "min": low, "max": high, **quantiles}


def normalised_chunks(buffer: Buffer, config: Any, stats: dict[str, dict[str, np.ndarray]], most: int) -> np.ndarray:
    """Returns normalised action chunks (n, chunk, A) of at most `most` frames, spread evenly over the dataset."""
    action, state = buffer.column(ACTION), buffer.column(OBS_STATE)
    end = np.zeros(len(action), dtype=np.int64)
    for episode in buffer.episodes:
        end[episode.first_frame : episode.first_frame + episode.length] = episode.first_frame + episode.length
    rows = np.unique(np.linspace(0, len(action) - 1, min(most, len(action))).astype(np.int64))
    chunks = action[np.minimum(rows[:, None] + np.arange(config.chunk_size), end[rows, None] - 1)]
    if relative_actions(config):
        width = action.shape[1]
        chunks = chunks - (state[rows, :width] * relative_mask(config, width))[:, None]
    step = NormalizerProcessorStep(config.output_features, config.normalization_mapping, stats)
    return step._normalize_action(torch.from_numpy(chunks.astype(np.float32)), inverse=False).numpy()


def relative_mask(config: Any, width: int) -> np.ndarray:
    """Returns (width,) True for the action values that are relative to the state, by lerobot's own step."""
    step = RelativeActionsProcessorStep(True, config.relative_exclude_joints, config.action_feature_names)
    return np.array(step._build_mask(width))
