"""Arithmetic that more than one room needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def standardise(values: np.ndarray) -> np.ndarray:
    """(x - mu)/sigma with mu and sigma (population) over the finite entries; 0 where sigma is 0; NaN stays NaN."""
    return standardise_by(values, values)


def standardise_by(values: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(x - mu)/sigma with mu and sigma (population) over the finite entries of `pool`; 0 where sigma is 0.

    NaN stays NaN, and everything is NaN where `pool` has no finite entry.
    """
    finite = pool[np.isfinite(pool)]
    if len(finite) == 0:
        return np.full(len(values), np.nan)
    sigma = finite.std()
    # A constant's computed sigma is a rounding residue, not 0: compare it with the values' own magnitude.
    if sigma <= 1e-12 * float(np.abs(finite).max()):
        return np.where(np.isfinite(values), 0.0, np.nan)
    return (values - finite.mean()) / sigma


def cell(value: float | None, digits: int = 3, dash: str = "-") -> str:
    """Formats a number for a table, or returns `dash` if it is None or NaN."""
    return dash if value is None or math.isnan(value) else f"{value:.{digits}f}"


def without_nan(content: Any) -> Any:
    """JSON-able `content` with null for every NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
