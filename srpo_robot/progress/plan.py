"""What scoring a dataset would cost, before it starts. Pure: no file, no clock, no device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from srpo_robot.progress.encoder import Geometry, tflop_per_clip
from srpo_robot.progress.store import entry_bytes
from srpo_robot.progress.windows import WindowSpec, clip_lengths
from srpo_robot.records import Episode


@dataclass(frozen=True)
class Plan:
    """The work that is left.

    Attributes:
        windows: of all episodes and cameras.
        windows_stored: of these, already embedded.
        tflop: to embed the others [TFLOP].
        seconds: the same at the given rate [s], decoding not counted; None without a rate.
        bytes: that the store will grow by at most.
    """

    windows: int
    windows_stored: int
    tflop: float
    seconds: float | None
    bytes: int


def plan(
    episodes: Sequence[Episode],
    spec: WindowSpec,
    geometry: Geometry,
    keys: Mapping[int, Sequence[str]],
    stored: Container[str],
    tflops: float | None = None,
) -> Plan:
    """Count the windows of `episodes` and what those not yet stored cost.

    Args:
        spec: with its clip length filled in (`WindowSpec.resolved`).
        geometry: the encoder's.
        keys: store keys of an episode, one per camera, by episode index; an episode without any is left out.
        stored: keys in the store, or the store itself.
        tflops: the machine's rate [TFLOP/s], see `encoder.measured_tflops`.

    Raises:
        ValueError: the spec has no clip length.
    """
    total = already = size = 0
    missing: Counter[int] = Counter()
    for episode in episodes:
        lengths = clip_lengths(episode.length, spec)
        for key in keys.get(episode.index, ()):
            total += len(lengths)
            if key in stored:
                already += len(lengths)
                continue
            missing.update(lengths.tolist())
            size += entry_bytes(len(lengths), geometry.hidden)
    tflop = sum(count * tflop_per_clip(geometry, frames) for frames, count in missing.items())
    return Plan(total, already, tflop, None if tflops is None else tflop / tflops, size)
