"""Training samples with their weights, and the held-out episodes on which the loss is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from srpo_robot.awr.checkpoints import Run, averaged
from srpo_robot.awr.run_state import check_action_weights, check_weights, trained_weights
from srpo_robot.awr.sampling import FlowNoise, held_out, spread_frames
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.training import TrainingSet, collate
from srpo_robot.recipes import PolicyRecipe

HELD_OUT_FRAMES = 256  # at most, because every checkpoint pays for their forward passes


class TrainingData:
    """Samples of a buffer for one run.

    Attributes:
        trained: episodes to train on.
        held_out: the other episodes; see `sampling.held_out`.
        frames: number of frames in `trained`.
        drawn_by: (N,) weights by global frame index; frames are drawn in proportion. None: each frame once an epoch.
    """

    def __init__(
        self, buffer: Buffer, recipe: PolicyRecipe, chunk: int, weights: np.ndarray, action_weights: np.ndarray | None
    ) -> None:
        """Raises UsageError or TrainingError if share or weights are not usable; DatasetError as `TrainingSet`."""
        weights = check_weights(weights, buffer.total_frames)
        excluded = held_out(buffer.episodes, recipe.validation_share, recipe.seed)
        self.trained = [episode for episode in buffer.episodes if episode.index not in excluded]
        self.held_out = [episode for episode in buffer.episodes if episode.index in excluded]
        self.frames = sum(episode.length for episode in self.trained)
        mask = np.repeat([e.index not in excluded for e in buffer.episodes], [e.length for e in buffer.episodes])
        if action_weights is not None:  # every frame then counts once, and its actions by their weights
            action_weights = check_action_weights(action_weights, buffer.total_frames, chunk)
            weights = np.ones(buffer.total_frames)
        weights = trained_weights(weights, mask)
        self.drawn_by = weights if recipe.weights_as == "sampling" else None
        self._weights = torch.from_numpy(weights.astype(np.float32))
        self._action_weights = None if action_weights is None else torch.from_numpy(action_weights.astype(np.float32))
        self._samples = TrainingSet(buffer, chunk, recipe.cache_gb)

    def weights(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Returns the weights (B,) of frames `index` (B,), and (B, chunk) of their chunks' actions or None."""
        index = index.cpu()
        action_weights = None if self._action_weights is None else self._action_weights[index].to(device)
        return self._weights[index].to(device), action_weights

    def loader(self, batches: Iterable[list[int]], workers: int | None = None) -> DataLoader:
        """Returns a loader of `batches` of global frame indices. Frames from disk are decoded in worker processes."""
        if self._samples.in_memory:
            workers = 0
        elif workers is None:
            workers = decoding_workers()
        return DataLoader(
            self._samples,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=collate,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,  # video decoders do not survive a fork
            pin_memory=torch.cuda.is_available(),
        )


def decoding_workers() -> int:
    """Returns the number of worker processes that decode frames, if the frames do not fit into memory."""
    return max(1, min(8, (os.cpu_count() or 1) - 1))


class HeldOut:
    """Measures the loss on the held-out episodes, under the same noise every time.

    The policy has the weights of the checkpoint, averaged or not. Normalisation statistics and scores come from the
    whole dataset, held-out episodes included.
    """

    def __init__(self, run: Run, data: TrainingData) -> None:
        self._data, self._run = data, run
        self._frames = spread_frames(data.held_out, HELD_OUT_FRAMES) if data.held_out else []
        size = run.recipe.batch_size
        self._batches = [self._frames[first : first + size] for first in range(0, len(self._frames), size)]
        self._loader = data.loader(self._batches, min(1, decoding_workers())) if self._batches else None
        self._noise = FlowNoise(run.loss_module)

    @torch.no_grad()
    def loss(self) -> dict[str, float]:
        """Returns `validation_loss` (unweighted) and `validation_weighted_loss`; {} if nothing is held out.

        Every process measures all held-out frames: FSDP needs the processes in step, and the result then does not
        depend on their number.
        """
        if self._loader is None:
            return {}
        run, sums, done = self._run, torch.zeros(2, dtype=torch.float64), 0
        # Without FSDP the wrapper is not needed, and DDP's wrapper would wait for the other processes.
        loss_module: Any = run.loss_module if run.sharded else run.accelerator.unwrap_model(run.loss_module)
        with averaged(run):
            loss_module.eval()
            for batch in self._loader:
                weights, action_weights = self._data.weights(batch["index"], run.accelerator.device)
                # Training steps start at 1, so the draws of step 0 are used here only.
                noise = self._noise.rows((run.recipe.seed, 0), done, len(self._frames))
                with noise, run.accelerator.autocast():
                    batch = run.preprocessor(batch)
                    plain = loss_module(batch)
                    weighted = plain * weights if action_weights is None else loss_module(batch, action_weights)
                sums += torch.stack([plain.double().sum(), weighted.double().sum()]).cpu()
                done += len(plain)
            loss_module.train()
        plain_mean, weighted_mean = (sums / done).tolist()
        return {"validation_loss": plain_mean, "validation_weighted_loss": weighted_mean}
