"""Augmentation of training batches, because a policy soon memorises a few hundred demonstrations.

Images are shifted (Kostrikov, Yarats and Fergus, DrQ, arXiv 2004.13649), each sample and camera by its own amount. The
state gets uniform noise, and a relative action the same noise, so that the motion to predict does not change. A step's
draws depend on (seed, step) and the place in its batch only, like its frames and its flow noise (`sampling`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from srpo_robot.awr.normalisation import column_stats, relative_actions, relative_mask
from srpo_robot.awr.sampling import AUGMENTATION, derived_seed
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from lerobot.utils.constants import ACTION, OBS_STATE  # noqa: E402  (after quiet_lerobot)


class Augmentation:
    """Applies a recipe's `image_shift` and `state_noise` to raw batches. Does nothing if both are 0."""

    def __init__(self, buffer: Buffer, recipe: PolicyRecipe, config: Any) -> None:
        """`config`: the policy's lerobot config, which says which action values are relative to the state."""
        self._seed, self._shift = recipe.seed, recipe.image_shift
        self._cameras = sorted(buffer.cameras)
        self._reach: Tensor | None = None  # (S,) [state units] noise is uniform from -reach to reach
        if recipe.state_noise:
            stats = column_stats(buffer.column(OBS_STATE))
            self._reach = torch.from_numpy(recipe.state_noise * (stats["q99"] - stats["q01"])).float()
        width = buffer.meta.features[ACTION]["shape"][0]
        mask = relative_mask(config, width) if relative_actions(config) else np.zeros(width, dtype=bool)
        self._relative = torch.from_numpy(mask)

    def __call__(self, batch: dict[str, Any], step: int, first: int, samples: int) -> dict[str, Any]:
        """Returns the augmented batch.

        Args:
            batch: from `TrainingSet`: images (B, 3, H, W) per camera, observation.state (B, S), action (B, H, A).
            step: optimizer step.
            first: place of this batch's first sample in the step's whole batch.
            samples: number of samples in the whole batch.
        """
        if not self._shift and self._reach is None:
            return batch
        random = torch.Generator().manual_seed(derived_seed(self._seed, step, AUGMENTATION))
        rows = slice(first, first + len(batch["index"]))
        changed = dict(batch)
        for camera in self._cameras if self._shift else ():
            by = 2 * torch.rand(samples, 2, generator=random)[rows] - 1
            changed[camera] = shifted(batch[camera], by, self._shift)
        if self._reach is not None:
            noise = (2 * torch.rand(samples, len(self._reach), generator=random)[rows] - 1) * self._reach
            changed[OBS_STATE] = batch[OBS_STATE] + noise
            moved = noise[:, : len(self._relative)] * self._relative
            changed[ACTION] = batch[ACTION] + moved[:, None]
        return changed


def shifted(images: Tensor, by: Tensor, most: float) -> Tensor:
    """Moves images (B, 3, H, W) by whole pixels and fills the free border with the edge pixels.

    Args:
        images: (B, 3, H, W).
        by: (B, 2) shift down and right, -1 to 1, in units of `most`.
        most: largest shift, as a share of the image's longer side.
    """
    height, width = images.shape[-2:]
    reach = round(most * max(height, width))
    padded = pad(images, (reach,) * 4, mode="replicate")
    corners = (reach - (by * reach).round()).int().tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)])
