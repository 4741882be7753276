"""Old names that still work for one version. Each use warns with one line that gives the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

OPTIONS = {"--looks": "--randomization"}  # of the command line
STEP_VALUES = {"eq5": "reward", "phase": "knn-time", "return": "knn-return"}
REFERENCES = {"nn2": "dbscan-auto"}
RECIPE_KEYS = {"timestep_weights": "action_weights"}
SHEET_KEYS = {"looks": "randomization"}  # of a trial protocol, and of run.json
TRIAL_KEYS = {"clips": "limited_by"}  # of trials.jsonl and of the logs of a trial


class RenamedWarning(FutureWarning):
    """An old name was used. The command line prints it as one warning line."""


def current(name: str, renamed: Mapping[str, str]) -> str:
    """Returns the new name of `name`, or `name` itself if it was never renamed. Warns if `name` is an old one."""
    if name not in renamed:
        return name
    warnings.warn(f"{name!r} is now called {renamed[name]!r}; the old name goes in the next version", RenamedWarning, 3)
    return renamed[name]


def current_keys(row: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Returns `row` with its old keys renamed, without a warning: recorded data keeps the keys it was written with."""
    return {renamed.get(key, key): value for key, value in row.items()}
