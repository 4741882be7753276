"""The advantage-weighted loss: mean(w * l), per sample (Peng et al. 2019, arXiv 1910.00177, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from srpo_robot.errors import TrainingError


@dataclass(frozen=True)
class LossOptions:
    """Which parts of a sample count in its loss (the recipe's `padding` and `token_balance`).

    Attributes:
        padding: whether to train on the repeated last action of a chunk that the episode's end cuts. "masked": no; the
            families differ in how they mask it. "trained": yes, as lerobot does.
        tokens: for policies that act in tokens. "sample": each sample's mean over its own tokens, so that all samples
            count the same. "batch": lerobot's balance, in which a sample counts by its share of the batch's tokens.
    """

    padding: Literal["masked", "trained"] = "masked"
    tokens: Literal["sample", "batch"] = "sample"


def per_sample_loss(
    policy: Any, batch: dict[str, Any], options: LossOptions | None = None, action_weights: Tensor | None = None
) -> Tensor:
    """Returns the policy's own loss for each sample of a preprocessed batch: (B,), with gradient.

    Flow-matching policies (`awr.flow`): the squared error at one random noise and time per sample, averaged over the
    chunk and the real dimensions of the action. pi0-FAST (`awr.fast`): the mean negative log-likelihood of the chunk's
    tokens.

    Args:
        policy: from `build_policy` or `load_policy`; accelerate and peft may have wrapped it.
        batch: output of the policy's preprocessor; with `action_is_pad` (B, chunk) if padding is masked.
        options: default `LossOptions()`.
        action_weights: (B, chunk) non-negative, one weight per action of a chunk; flow-matching only.

    Raises:
        TrainingError: action weights for a policy that has no loss per action.
    """
    return policy(batch, options=options or LossOptions(), action_weights=action_weights)


def chunk_loss(errors: Tensor, padded: Tensor | None = None, action_weights: Tensor | None = None) -> Tensor:
    """Returns one loss per sample from the errors of a chunk's actions.

    Args:
        errors: (B, chunk, A) errors in the action's real dimensions.
        padded: (B, chunk) True for actions past the episode's end, which do not count. None: all count. The first
            action of a chunk is never padded.
        action_weights: (B, chunk) or None.

    Returns:
        (B,) mean of weight times error over the actions that count.
    """
    if padded is None and action_weights is None:
        return errors.mean(dim=(1, 2))
    steps = errors.mean(dim=2)
    if action_weights is not None:
        steps = steps * action_weights.to(steps)
    if padded is None:
        return steps.mean(dim=1)
    counts = (~padded).to(steps)
    return (steps * counts).sum(dim=1) / counts.sum(dim=1)


def token_loss(nll: Tensor, counts: Tensor, options: LossOptions, excluded: Tensor | None = None) -> Tensor:
    """Returns one loss per sample from the negative log-likelihoods of its tokens.

    Args:
        nll: (B, T) negative log-likelihoods.
        counts: (B, T) True for tokens, False for padding.
        options: `tokens` decides by which number a sample's sum is divided.
        excluded: (B,) True for samples that do not train: their loss is 0. None: all train.

    Returns:
        (B,) losses. With tokens="batch", their mean over the batch is the mean over all tokens of samples that train.
    """
    included = counts if excluded is None else counts & ~excluded[:, None]
    sums = (nll * included).sum(dim=1)
    if options.tokens == "batch":
        return sums * (len(nll) / included.sum().clamp(min=1))
    return sums / included.sum(dim=1).clamp(min=1)


def awr_loss(per_sample: Tensor, weights: Tensor, index: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
    """Returns mean(w * l) over the batch, an unbiased estimate of AWR's objective E[w l].

    lerobot's loop divides by the sum of the batch's weights. That cancels the weights at batch size 1, dampens them in
    small batches, and makes the estimate biased. Here the weights have mean 1 over the dataset instead, so the step
    size is the same as with the unweighted loss.

    Args:
        per_sample: (B,) losses.
        weights: (B,) non-negative.
        index: (B,) global frame indices, for the error message.

    Returns:
        loss: scalar, with gradient.
        info: `loss`, `unweighted_loss` and `mean_weight` as floats.

    Raises:
        TrainingError: a loss is NaN or infinite. The message names the frames.
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
