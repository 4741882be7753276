"""The advantage-weighted loss: mean(w * l), per sample (Peng et al. 2019, arXiv 1910.00177, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srpo_robot.errors import TrainingError


def per_sample_loss(policy: Any, batch: dict[str, Any]) -> Tensor:
    """The policy's own loss for each sample of a preprocessed batch: (B,), with gradient.

    For pi0 it is the flow-matching error at one random noise and time a sample, averaged over the chunk and the real
    dimensions of the action (lerobot's `PI0Policy.forward`). `policy` may be wrapped by accelerate.
    """
    loss, _ = policy(batch, reduction="none")
    return loss


def awr_loss(per_sample: Tensor, weights: Tensor, index: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
    """mean(w * l) over the batch, a sample of AWR's objective E[w l].

    Not divided by the sum of the batch's weights, as lerobot's loop does: that cancels the weights at batch size 1,
    dampens them in small batches, and makes the estimate biased. The weights have mean 1 over the dataset instead, so
    the step size is that of the unweighted loss.

    Args:
        per_sample: (B,) losses.
        weights: (B,) non-negative.
        index: (B,) global frame indices, for the error message.

    Returns:
        loss: scalar, with gradient.
        info: `loss`, `unweighted_loss` and `mean_weight` as floats.

    Raises:
        TrainingError: a loss is NaN or infinite; it names the frames.
    """
    if per_sample.shape != weights.shape:
        raise TrainingError(f"{tuple(weights.shape)} weights for {tuple(per_sample.shape)} losses")
    losses = per_sample.detach()
    finite = torch.isfinite(losses)
    if not finite.all():
        frames = [] if index is None else index.to(finite.device)[~finite].tolist()
        where = f" at frames {', '.join(map(str, frames[:10]))}" if frames else ""
        raise TrainingError(f"the loss is NaN or infinite{where}; look at those frames, or lower learning_rate")
    weights = weights.to(per_sample)
    loss = (weights * per_sample).mean()
    info = {
        "loss": float(loss.detach()),
        "unweighted_loss": float(losses.mean()),
        "mean_weight": float(weights.mean()),
    }
    return loss, info
