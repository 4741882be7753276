"""Writes a run's metrics to metrics.jsonl, and on request to TensorBoard and Weights & Biases through accelerate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

METRICS = "metrics.jsonl"
PROJECT = "srpo-robot"  # project name in W&B, and folder in OUTPUT/tensorboard


class MetricsLog:
    """OUTPUT/metrics.jsonl, one line per step. On resume, lines after the checkpoint are removed: the steps run again.

    The trackers get the same numbers. If a step runs again, TensorBoard drops its old value and W&B keeps it.
    """

    def __init__(self, output: Path, first_step: int, accelerator: Accelerator, track: Sequence[str] = ()) -> None:
        self._accelerator, self._path, self._track = accelerator, output / METRICS, list(track)
        self._main = accelerator.is_main_process
        if self._main:
            output.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            self._kept = [line for line in lines if _step_of(line) <= first_step]

    def open_trackers(self, config: Mapping[str, Any]) -> None:
        """Starts the trackers. They show `config` as the run's settings."""
        if self._track:
            output = self._path.parent.resolve()
            identity = hashlib.sha256(str(output).encode()).hexdigest()[:16]
            wandb = {"name": output.name, "dir": str(output), "id": identity, "resume": "allow"}
            flat = {key: value for key, value in config.items() if isinstance(value, bool | int | float | str)}
            kwargs = {"wandb": wandb} if "wandb" in self._track else {}
            self._accelerator.init_trackers(PROJECT, config=flat, init_kwargs=kwargs)

    def __enter__(self) -> MetricsLog:
        if self._main:
            self._path.write_text("".join(f"{line}\n" for line in self._kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._file.close()
        for tracker in self._accelerator.trackers:  # not end_training(), which also closes the process group
            tracker.finish()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the line of `step`."""
        if self._main:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
        if self._track:
            self._accelerator.log(dict(metrics), step=step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut by a crash
