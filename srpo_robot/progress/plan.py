"""Estimates the cost of scoring a dataset before it starts. Pure: no file, no clock, no device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import Geometry, tflop_per_clip
from srpo_robot.progress.store import entry_bytes
from srpo_robot.progress.windows import clip_lengths
from srpo_robot.records import Episode


@dataclass(frozen=True)
class Plan:
    """The remaining work.

    Attributes:
        windows: number of windows of all episodes and cameras.
        windows_stored: number of those that are already embedded.
        tflop: cost of embedding the others [TFLOP].
        seconds: the same at the given rate [s], without decoding; None without a rate.
        bytes: upper bound of the growth of the store.
    """

    windows: int
    windows_stored: int
    tflop: float
    seconds: float | None
    bytes: int


def plan(
    episodes: Sequence[Episode],
    config: ScoringConfig,
    geometry: Geometry,
    keys: Mapping[int, Sequence[str]],
    stored: Container[str],
    tflops: float | None = None,
) -> Plan:
    """Counts the windows of `episodes` and the cost of those that are not stored yet.

    Args:
        config: with its clip length filled in (`ScoringConfig.resolved`).
        geometry: geometry of the encoder.
        keys: by episode index, the store keys of the episode, one per camera; an episode without keys is left out.
        stored: keys in the store, or the store itself.
        tflops: rate of the machine [TFLOP/s], see `encoder.measured_tflops`.

    Raises:
        ValueError: the config has no clip length.
    """
    total = already = size = 0
    missing: Counter[int] = Counter()
    for episode in episodes:
        lengths = clip_lengths(episode.length, config)
        for key in keys.get(episode.index, ()):
            total += len(lengths)
            if key in stored:
                already += len(lengths)
                continue
            missing.update(lengths.tolist())
            size += entry_bytes(len(lengths), geometry.hidden)
    tflop = sum(count * tflop_per_clip(geometry, frames) for frames, count in missing.items())
    return Plan(total, already, tflop, None if tflops is None else tflop / tflops, size)
