"""Advantage -> weight of a frame: exp(A / beta), capped, scaled to mean 1 (Peng et al. 2019, arXiv 1910.00177)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo_robot.errors import TrainingError, UsageError


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a dataset's frames.

    Attributes:
        values: (N,) in dataset order, mean 1 over all frames; 0 where the advantage is undefined.
        clipped_fraction: share of weighted frames at the cap.
        effective_sample_size: (sum w)^2 / sum w^2, in frames.
        undefined: frames without an advantage.
    """

    values: np.ndarray
    clipped_fraction: float
    effective_sample_size: float
    undefined: int


def awr_weights(advantage: np.ndarray, beta: float, w_max: float) -> Weights:
    """w = min(exp(A / beta), w_max), then scaled to mean 1. `advantage`: (N,), NaN where undefined (weight 0).

    Raises:
        UsageError: beta or w_max is not positive.
        TrainingError: no frame has an advantage.
    """
    if not (beta > 0 and w_max > 0):
        raise UsageError(f"beta {beta} and w_max {w_max} must be positive")
    defined = np.isfinite(advantage)
    if np.isinf(advantage).any() or not defined.any():
        raise TrainingError("no finite advantage to train on; look at the scores: srpo-robot score-dataset")
    exponent = advantage / beta
    cap = np.log(w_max)
    clipped = defined & (exponent > cap)
    raw = np.where(
        defined, np.exp(np.where(defined, np.minimum(exponent, cap), 0.0)), 0.0
    )  # cap before exp: no overflow
    return _scaled(raw, float(clipped.sum() / defined.sum()), int((~defined).sum()))


def uniform_weights(frames: int) -> Weights:
    """Every frame counts alike: SFT through the same code."""
    return _scaled(np.ones(frames), 0.0, 0)


def success_weights(success: np.ndarray) -> Weights:
    """Only frames of successes count: filtered behaviour cloning. `success`: (N,) bool per frame.

    Raises:
        TrainingError: no success.
    """
    if not success.any():
        raise TrainingError("no success to clone; label one, or train with --weights uniform")
    return _scaled(success.astype(np.float64), 0.0, 0)


def _scaled(raw: np.ndarray, clipped_fraction: float, undefined: int) -> Weights:
    if raw.mean() == 0.0:
        raise TrainingError("every weight is zero; beta is too small for these advantages, try --beta 1")
    values = raw / raw.mean()
    ess = float(values.sum() ** 2 / (values**2).sum())
    return Weights(values, clipped_fraction, ess, undefined)
