"""Advantage -> weight of a frame: exp(A / beta), capped, scaled to mean 1 (Peng et al. 2019, arXiv 1910.00177).

The schemes for comparison are here too: all frames alike, successes only, and RA-BC as in lerobot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import TrainingError, UsageError


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a dataset's frames.

    Attributes:
        values: (N,) in dataset order, mean 1 over all frames; 0 if the advantage is undefined.
        clipped_fraction: share of the frames with an advantage that are at the cap.
        effective_sample_size: (sum w)^2 / sum w^2 [frames].
        undefined: number of frames without an advantage.
    """

    values: np.ndarray
    clipped_fraction: float
    effective_sample_size: float
    undefined: int


def check_temperature(beta: float, w_max: float) -> None:
    """Raises UsageError if the temperature or the cap is not a positive number."""
    if not (0 < beta < np.inf and 0 < w_max < np.inf):
        raise UsageError(f"beta {beta} and w_max {w_max} must be positive; Peng et al. use beta 1 and w_max 20")


def awr_weights(advantage: np.ndarray, beta: float, w_max: float) -> Weights:
    """Returns w = min(exp(A / beta), w_max), scaled to mean 1. `advantage`: (N,), NaN if undefined (weight 0).

    Raises:
        UsageError: beta or w_max is not positive.
        TrainingError: no frame has an advantage.
    """
    defined = np.isfinite(advantage)
    raw, clipped = _exponentials(advantage, beta, w_max)
    return _scaled(raw, float(clipped.sum() / defined.sum()), int((~defined).sum()))


def action_weights(advantage: np.ndarray, lengths: Sequence[int], chunk: int, beta: float, w_max: float) -> np.ndarray:
    """Returns one weight per action of every chunk: (N, chunk) float32.

    The entry (t, k) weighs the action of frame t + k by that action's own advantage, min(exp(A_{t+k} / beta), w_max),
    the same in every chunk. Entries past the episode's end are 0; the mean of the others is 1. They replace the frame
    weights: a sample's loss is the mean of w * l over the valid steps of its chunk, and its frame then counts once.

    Args:
        advantage: (N,) advantage of each frame's action, NaN if undefined (weight 0).
        lengths: length of each episode, in order; they add up to N.
        chunk: number of actions of a sample.
        beta: temperature.
        w_max: cap.

    Raises:
        UsageError, TrainingError: as `awr_weights`. UsageError also if the chunk is shorter than 1.
    """
    if chunk < 1:
        raise UsageError(f"a chunk of {chunk} actions cannot be weighed; chunk_size is at least 1")
    raw, _ = _exponentials(advantage, beta, w_max)
    ends = np.repeat(np.cumsum(lengths), lengths)
    ahead = np.arange(len(raw))[:, None] + np.arange(chunk)
    valid = ahead < ends[:, None]
    weights = np.where(valid, raw[np.minimum(ahead, len(raw) - 1)], 0.0)
    mean = weights[valid].mean()
    _refuse_zero(mean)
    return (weights / mean).astype(np.float32)


def _exponentials(advantage: np.ndarray, beta: float, w_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns min(exp(A / beta), w_max), 0 if A is NaN, and whether each one is at the cap; both (N,)."""
    check_temperature(beta, w_max)
    defined = np.isfinite(advantage)
    if np.isinf(advantage).any() or not defined.any():
        raise TrainingError("no finite advantage to train on; look at the scores: srpo-robot score-dataset")
    exponent = np.where(defined, advantage / beta, 0.0)
    cap = np.log(w_max)
    raw = np.where(defined, np.exp(np.minimum(exponent, cap)), 0.0)  # cap before exp: no overflow
    return raw, defined & (exponent > cap)


def uniform_weights(frames: int) -> Weights:
    """Returns equal weights: SFT through the same code."""
    return _scaled(np.ones(frames), 0.0, 0)


def success_weights(success: np.ndarray) -> Weights:
    """Returns equal weights for frames of successes and 0 for the others: filtered behaviour cloning.

    Args:
        success: (N,) bool per frame.

    Raises:
        TrainingError: there is no success.
    """
    if not success.any():
        raise TrainingError("no success to clone; label one, or train with --weights uniform")
    return _scaled(success.astype(np.float64), 0.0, 0)


def rabc_weights(
    progress: Sequence[np.ndarray], chunk: int, kappa: float = 0.01, epsilon: float = 1e-6, undefined: float = 1.0
) -> Weights:
    """Returns RA-BC's weights (Chen et al. 2025, arXiv 2509.25358, eq. 8 and 9) like lerobot's `RABCWeights`.

    r_t = p[min(t + chunk, T-1)] - p[t] over single-precision progress. w_t = 1 if r > kappa, 0 if r < 0, and between
    them clip((r - (mu - 2 sigma)) / (4 sigma + epsilon), 0, 1), with mu (not below 0) and sigma of r over all frames.
    The weights are scaled to mean 1 over the dataset. lerobot scales each batch to its own mean instead.

    Args:
        progress: (T,) progress of each episode, NaN if undefined.
        chunk: number of frames that r looks ahead; in lerobot the policy's chunk_size.
        kappa: gain above which a frame counts fully [progress]; lerobot's default.
        epsilon: lerobot's guard against sigma 0, and its smallest sigma.
        undefined: weight of a frame whose r is NaN, before scaling. lerobot's rule is 1, unlike `awr_weights`' 0.

    Raises:
        UsageError: chunk, kappa, epsilon or `undefined` is out of range.
        TrainingError: every weight is 0.
    """
    if chunk < 1 or not (kappa >= 0 and epsilon > 0 and undefined >= 0):
        raise UsageError(
            f"rabc takes a chunk of at least 1, kappa and the weight of undefined frames not below 0, epsilon above 0; "
            f"they are {chunk}, {kappa}, {undefined} and {epsilon}"
        )
    gain = np.concatenate([_gain_ahead(np.asarray(p, dtype=np.float32).astype(np.float64), chunk) for p in progress])
    defined = np.isfinite(gain)
    mu = max(float(gain[defined].mean()), 0.0) if defined.any() else 0.0
    sigma = max(float(gain[defined].std()), epsilon) if defined.any() else epsilon
    soft = np.clip((gain - (mu - 2 * sigma)) / (4 * sigma + epsilon), 0.0, 1.0)
    single = gain.astype(
        np.float32
    )  # single precision as in lerobot, so that a frame is on the same side of the threshold
    raw = np.where(single > np.float32(kappa), 1.0, np.where(single >= 0, soft, 0.0))
    return _scaled(np.where(defined, raw, undefined), 0.0, int((~defined).sum()))


def _gain_ahead(progress: np.ndarray, chunk: int) -> np.ndarray:
    start = np.arange(len(progress))
    return progress[np.minimum(start + chunk, len(progress) - 1)] - progress


def effective_sample_size(values: np.ndarray) -> float:
    """Returns (sum w)^2 / sum w^2 [frames] of weights that are not all 0: N if all are equal, 1 if one counts."""
    return float(values.sum() ** 2 / (values**2).sum())


def _scaled(raw: np.ndarray, clipped_fraction: float, undefined: int) -> Weights:
    mean = raw.mean()
    _refuse_zero(mean)
    values = raw / mean
    return Weights(values, clipped_fraction, effective_sample_size(values), undefined)


def _refuse_zero(mean: float) -> None:
    if mean == 0.0:
        raise TrainingError("every weight is zero, so nothing can be learnt; try a larger beta, or look at the scores")
