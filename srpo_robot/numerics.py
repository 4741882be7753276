"""Arithmetic that several subpackages share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def standardise(values: np.ndarray) -> np.ndarray:
    """Standardises `values` by the mean and deviation of their own finite entries. See `standardise_by`."""
    return standardise_by(values, values)


def standardise_by(values: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Computes (x - mu) / sigma with mu and population sigma of the finite entries of `pool`.

    If sigma is 0, finite values become 0. NaN stays NaN. If `pool` has no finite entry, everything is NaN.
    """
    finite = pool[np.isfinite(pool)]
    if len(finite) == 0:
        return np.full(len(values), np.nan)
    sigma = finite.std()
    # The computed sigma of a constant is a rounding residue, not 0, so it is compared with the values' magnitude.
    if sigma <= 1e-12 * float(np.abs(finite).max()):
        return np.where(np.isfinite(values), 0.0, np.nan)
    return (values - finite.mean()) / sigma


def cell(value: float | None, digits: int = 3, dash: str = "-") -> str:
    """Formats a number for a table, or returns `dash` if it is None or NaN."""
    return dash if value is None or math.isnan(value) else f"{value:.{digits}f}"


def without_nan(content: Any) -> Any:
    """Returns JSON-able `content` with None for every NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
