"""The frames and the noise of each step, as functions of (seed, step) and the place in the step's batch.

Neither depends on how the batch is split over forward passes and processes. One process with a batch of 32, four passes
of 8, or two GPUs with 16 each see the same frames under the same noise, so they make the same update up to rounding.
A resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import UsageError
from srpo_robot.records import Episode

quiet_lerobot()

from lerobot.datasets.sampler import EpisodeAwareSampler  # noqa: E402  (after quiet_lerobot)

_HELD_OUT, _NOISE, _TIME, _OTHER, _ORDER, AUGMENTATION = 1, 2, 3, 4, 5, 6  # one random stream per purpose


# --- frames -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """How a step's batch is split: `per_pass` samples in each of `passes` forward passes on each of `processes`."""

    per_pass: int
    passes: int = 1
    processes: int = 1
    process: int = 0

    @property
    def samples(self) -> int:
        """Number of samples of a step, over all passes and processes."""
        return self.per_pass * self.passes * self.processes

    def first(self, number: int) -> int:
        """Returns the place in the step's batch of the first sample of this process's forward pass `number`."""
        return (number * self.processes + self.process) * self.per_pass


class SampleOrder:
    """Endless batches of global frame indices for this process; use it as DataLoader's `batch_sampler`.

    The order is that of lerobot's EpisodeAwareSampler, epoch after epoch: each frame once per epoch, shuffled by (seed,
    epoch). Unlike there, a batch continues into the next epoch instead of being cut short, so every step has
    `split.samples` samples. With `weights`, an epoch has as many draws, in proportion to weight: see `WeightedSampler`.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        seed: int,
        split: Split,
        first_step: int = 0,
        weights: np.ndarray | None = None,
    ) -> None:
        """`weights`: (N,) non-negative, by global frame index of the dataset; None: every frame once per epoch."""
        self._split, self._first_step = split, first_step
        first = [episode.first_frame for episode in episodes]
        last = [episode.first_frame + episode.length for episode in episodes]
        self._sampler: EpisodeAwareSampler | WeightedSampler
        if weights is None:
            self._sampler = EpisodeAwareSampler(first, last, shuffle=True, seed=seed)
        else:
            frames = np.concatenate([np.arange(*span) for span in zip(first, last, strict=True)])
            self._sampler = WeightedSampler(frames, weights[frames], seed)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = divmod(self._first_step * self._split.samples, len(self._sampler))
        self._sampler.load_state_dict({"epoch": epoch, "start_index": start})
        frames = self._frames()
        while True:
            batch = list(islice(frames, self._split.samples))
            for number in range(self._split.passes):
                first = self._split.first(number)
                yield batch[first : first + self._split.per_pass]

    def _frames(self) -> Iterator[int]:
        while True:
            yield from self._sampler


class WeightedSampler:
    """Draws frames in proportion to their weights, with lerobot's protocol for samplers.

    The unweighted loss of such draws has the same expectation as the weighted loss of uniform draws: the objective is
    the same. But no pass is spent on a frame of weight 0, and a batch does not depend on its few heaviest frames (An,
    Ying and Zhu, "Why resampling outperforms reweighting", arXiv 2009.13447). An epoch of N frames has N draws by
    systematic resampling: a frame of weight w (mean 1) is drawn floor(w) or ceil(w) times, w on average.
    """

    def __init__(self, frames: np.ndarray, weights: np.ndarray, seed: int) -> None:
        """`frames` (N,): indices to draw. `weights` (N,): non-negative, not all 0, on any scale."""
        self._frames, self._seed = frames, seed
        self._shares = np.cumsum(weights) * (len(frames) / weights.sum())
        self._epoch = self._start = 0

    def __len__(self) -> int:
        return len(self._frames)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues in `epoch` at its draw `start_index`."""
        self._epoch, self._start = state["epoch"], state["start_index"]

    def __iter__(self) -> Iterator[int]:
        start, epoch = self._start, self._epoch
        self._start, self._epoch = 0, epoch + 1
        yield from self.epoch(epoch)[start:].tolist()

    def epoch(self, number: int) -> np.ndarray:
        """Returns the draws (N,) of epoch `number`, a function of (seed, number)."""
        random = np.random.default_rng([self._seed, number, _ORDER])
        ticks = np.arange(len(self._frames)) + random.random()
        # By rounding, the last tick may reach the last share. It then belongs to the last frame that has weight.
        places = np.minimum(np.searchsorted(self._shares, ticks, side="right"), self._last)
        return random.permutation(self._frames[places])

    @property
    def _last(self) -> int:
        return int(np.searchsorted(self._shares, self._shares[-1]))


def held_out(episodes: Sequence[Episode], share: float, seed: int) -> frozenset[int]:
    """Returns the indices of the held-out episodes: `share` of each task's episodes, at least one.

    Episodes of one group (cut from one take) are held out together. The choice depends on `seed` alone.

    Raises:
        UsageError: the share is not in [0, 1), or leaves a task no episode to train on.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"validation_share {share} must be at least 0 and below 1")
    chosen: set[int] = set()
    tasks = sorted({episode.task for episode in episodes}) if share else []
    for task in tasks:
        of_task = [episode for episode in episodes if episode.task == task]
        count = max(1, round(share * len(of_task)))
        groups = sorted({_group(episode) for episode in of_task})
        np.random.default_rng([seed, _HELD_OUT]).shuffle(groups)
        for group in groups:
            if sum(episode.index in chosen for episode in of_task) >= count:
                break
            chosen |= {episode.index for episode in episodes if _group(episode) == group}
    for task in tasks:
        if all(episode.index in chosen for episode in episodes if episode.task == task):
            raise UsageError(
                f"validation_share {share} leaves {task!r} no episode to train on; record more, or set it to 0"
            )
    return frozenset(chosen)


def _group(episode: Episode) -> str:
    return f"group {episode.group}" if episode.group else f"episode {episode.index:09d}"


def spread_frames(episodes: Sequence[Episode], most: int) -> list[int]:
    """Returns up to `most` global frame indices, spread evenly over all frames of `episodes`."""
    frames = np.concatenate([np.arange(e.first_frame, e.first_frame + e.length) for e in episodes])
    places = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return frames[places].tolist()


# --- noise --------------------------------------------------------------------------------------------------------


def derived_seed(*key: int) -> int:
    """Derives one seed from several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, dtype=np.uint64)[0])


def seed_pass(seed: int, step: int, place: int) -> None:
    """Seeds torch for one forward pass by the place of its first sample: for other draws than the flow's (dropout)."""
    torch.manual_seed(derived_seed(seed, step, place, _OTHER))


class FlowNoise:
    """Draws the noise and times of a flow-matching policy by a sample's place in the whole batch.

    A policy draws for the samples of its forward pass. Here it draws for the whole batch of the step, on the CPU, and
    takes the rows of its samples. So the draws are the same on any device and under any split. pi0-FAST draws nothing,
    and then this class does nothing.
    """

    def __init__(self, policy: nn.Module) -> None:
        drawing = (m for m in policy.modules() if hasattr(type(m), "sample_noise") and hasattr(type(m), "sample_time"))
        self._model: Any = next(drawing, None)
        self._key: tuple[int, ...] = ()
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def rows(self, key: tuple[int, ...], first: int, total: int) -> Iterator[None]:
        """While open, a forward pass gets rows from `first` on of the `total` draws for `key`, (seed, step)."""
        if self._model is None:
            yield
            return
        if key != self._key:
            self._key, self._drawn = key, {}
        kind = type(self._model)

        def noise(shape: Sequence[int], device: Any) -> Tensor:
            whole = self._draw((_NOISE, *shape[1:]), lambda: kind.sample_noise(self._model, (total, *shape[1:]), "cpu"))
            return whole[first : first + shape[0]].to(device)

        def time(samples: int, device: Any) -> Tensor:
            whole = self._draw((_TIME,), lambda: kind.sample_time(self._model, total, "cpu"))
            return whole[first : first + samples].to(device)

        self._model.sample_noise, self._model.sample_time = noise, time
        try:
            yield
        finally:
            del self._model.sample_noise, self._model.sample_time

    def _draw(self, kind: tuple[int, ...], draw: Any) -> Tensor:
        """Makes a step's draw once and keeps it until the next step."""
        if kind not in self._drawn:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derived_seed(*self._key, kind[0]))
                self._drawn[kind] = draw()
        return self._drawn[kind]
