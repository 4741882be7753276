"""Pretraining of a small V-JEPA 2: masked latent prediction against a moving average, and two terms for the mean.

The V-JEPA objective (arXiv 2404.08471, 2506.09985) shapes tokens: the encoder sees a part of a clip's tokens, and a
predictor predicts the embeddings of the others by a slowly moving average of the encoder, L1 on layer-normed targets.
The score measures distances between means over tokens, so two self-supervised terms shape the means. A linear map of
the mean predicts where in its episode the clip ends. Another predicts which vivid colours came or went in which part
of the picture between the clip's first frame and its last. Both read frames and their order only: no labels, actions
or states. The second term suits scenes whose objects are more colourful than the surface below them, like the mock
cell. The target pass and the predicting pass see two views of the same instants (another appearance, crop and gain).
All randomness comes from (seed, step), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import VJEPA2Config, VJEPA2Model

from srpo_robot.errors import TrainingError
from srpo_robot.progress.vjepa2 import RopeTable

DECAY = 0.2  # fraction of the steps in which the learning rate falls


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Hyperparameters of a run. Only `steps` and `seed` are safe to change without a study.

    Attributes:
        steps: number of steps; the schedules of learning rate and average end there.
        seed: seed of the initial weights and of every batch.
        learning_rate: rate after `warmup` steps; over the last fifth it falls to a hundredth.
        warmup: number of steps in which the learning rate rises.
        weight_decay: of matrices; vectors have none.
        average: fraction of itself that the moving average keeps per step, at the first and at the last step.
        visible: fraction of the grid's cells that the predicting pass sees.
        dated: weight of `time_loss` on the pooled means. 0: V-JEPA alone, also without the next term.
        parts: number of parts of an episode that `time_loss` tells apart.
        recoloured: weight of the prediction of `colour_change` from the pooled means.
        cells: the grid of those changes has cells^2 parts.
        masked: fraction of a batch's clips that the masked prediction uses.
        clip_norm: largest norm of the gradient.
        dtype: precision of the passes; weights and averages are float32.
    """

    steps: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    average: tuple[float, float] = (0.99, 0.999)
    visible: float = 0.3
    dated: float = 1.0
    parts: int = 8
    recoloured: float = 0.5
    cells: int = 3
    masked: float = 0.5
    clip_norm: float = 3.0
    dtype: str = "bfloat16"


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips of one step, normalised pixels (B, F, 3, S, S), in two views of the same instants.

    Attributes:
        view: clips for the predicting and the pooled pass.
        other: clips for the target pass.
        time: (B,) end of each clip as a fraction of its episode, 0 to 1.
        change: (B, 3 * cells^2) `colour_change` between the first and the last frame of each clip.
    """

    view: torch.Tensor
    other: torch.Tensor
    time: torch.Tensor
    change: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Numbers of one step.

    Attributes:
        predicted: L1 between predictions and layer-normed targets (about 0.8 without any prediction).
        dated, near: see `time_loss`; NaN if it is off.
        recoloured: smooth L1 of the predicted `colour_change`; NaN if it is off.
        spread: standard deviation of the average's pooled means over the batch, mean over dimensions; 0 is collapse.
        gradient: norm of the gradient before clipping.
    """

    predicted: float
    dated: float
    near: float
    recoloured: float
    spread: float
    gradient: float


# --- masks --------------------------------------------------------------------------------------------------------


def block_tubes(rng: np.random.Generator, depth: int, side: int, visible: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the visible and the hidden tokens of one clip: (n,) and (m,) sorted, a partition of depth * side^2.

    Blocks of a random place and shape are hidden until the fraction is reached. A cell is hidden at all times or never
    (tubes), so that nothing can be copied from the previous frame. Exactly round(visible * side^2) cells stay visible,
    at least one and not all.
    """
    cells = side * side
    stay = min(max(round(visible * cells), 1), cells - 1)
    hidden = np.zeros((side, side), dtype=bool)
    while hidden.sum() < cells - stay:
        height, width = rng.integers(max(1, side // 4), max(2, side // 2 + 1), 2)
        y, x = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        before = hidden.copy()
        hidden[y : y + height, x : x + width] = True
        excess = int(hidden.sum()) - (cells - stay)
        if excess > 0:  # the last block hid too many: show some of its cells again
            fresh = np.flatnonzero(hidden & ~before)
            hidden.flat[fresh[:excess]] = False
    everywhere = np.tile(hidden.ravel(), depth)
    return np.flatnonzero(~everywhere), np.flatnonzero(everywhere)


# --- passes -------------------------------------------------------------------------------------------------------


class PlacedRope(RopeTable):
    """Rotary positions of gathered tokens: each token keeps the position it has in the whole clip."""

    def install(self, encoder: Any) -> None:
        """Makes every layer of an encoder or predictor use its `position_mask` as the places of the tokens."""
        for layer in encoder.layer:
            layer.attention.get_position_ids = lambda x, masks=None: masks
            layer.attention.apply_rotary_embeddings = self.rotate

    def rotate(self, qk: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Rotates (B, heads, n, width) by places (B, n); None: all tokens, in order."""
        assert self._tables is not None
        cos, sin = (table[: qk.shape[2]] if places is None else table[places] for table in self._tables)
        rows = qk.transpose(1, 2).flatten(2)
        swapped = torch.stack((rows[..., 1::2], rows[..., 0::2]), -1).flatten(2)
        return (rows * cos + swapped * sin).unflatten(2, (self._heads, -1)).transpose(1, 2)


def patches(pixels: torch.Tensor, patch: int, tubelet: int) -> torch.Tensor:
    """Cuts (B, F, 3, S, S) -> (B, tokens, 3 * tubelet * patch^2), in the order of the patch convolution's weights."""
    batch, frames, channels, height, width = pixels.shape
    cut = pixels.view(batch, frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, -1, channels * tubelet * patch * patch)


def encode(encoder: Any, cut: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """Encodes only the tokens at `places` (B, n): (B, n, D). None: all tokens.

    The forward pass of transformers masks after the encoder, when every token has seen every other.
    """
    if places is not None:
        cut = torch.gather(cut, 1, places.unsqueeze(-1).expand(-1, -1, cut.shape[-1]))
    convolution = encoder.embeddings.patch_embeddings.proj
    hidden = functional.linear(cut, convolution.weight.flatten(1), convolution.bias)
    for layer in encoder.layer:
        hidden = layer(hidden, places)[0]
    return encoder.layernorm(hidden)


def predict(predictor: Any, context: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Predicts the tokens at `hidden` (B, m), (B, m, D), from `context` (B, n, D) at `places` (B, n)."""
    tokens, positions = predictor.embeddings(context, [places], [hidden])
    for layer in predictor.layer:
        tokens = layer(tokens, positions)[0]
    return predictor.proj(predictor.layernorm(tokens)[:, context.shape[1] :])


def time_loss(logits: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the part of its episode in which a clip ends: logits (B, K) of K parts, time (B,) in [0, 1].

    The target is split linearly between the two parts whose middles are nearest, so it has no edges.

    Returns:
        The loss [nat] and the fraction of clips whose likeliest part is at most one part away.
    """
    parts = logits.shape[1]
    place = (time * parts - 0.5).clamp(0.0, parts - 1.0)
    distance = (place[:, None] - torch.arange(parts)).abs()
    target = (1.0 - distance).clamp_min(0.0)
    near = distance.gather(1, logits.argmax(dim=1, keepdim=True)) <= 1.0
    return functional.cross_entropy(logits, target), near.float().mean()


def vivid(frames: torch.Tensor) -> torch.Tensor:
    """Returns the hue of vividly coloured pixels, 0 elsewhere: light (B, 3, S, S) in 0 to 1 -> (B, 3, S, S) in -1 to 1.

    A pixel counts from 60 % saturation, fully from 80 %. Hue and saturation do not depend on the brightness of the
    light, and little on its tint. Metal, plates and muted tables give 0.
    """
    high, low = frames.amax(dim=1, keepdim=True), frames.amin(dim=1, keepdim=True)
    span = (high - low).clamp_min(1e-3)
    share = ((span / high.clamp_min(0.05) - 0.6) / 0.2).clamp(0.0, 1.0)
    return share * (frames - frames.mean(dim=1, keepdim=True)) / span


def colour_change(first: torch.Tensor, last: torch.Tensor, cells: int) -> torch.Tensor:
    """Returns the change of vivid colours between two frames (B, 3, S, S): (B, 3 * cells^2).

    The values are means over the parts of a coarse grid, in units of their deviation over the batch.
    """
    coarse = functional.adaptive_avg_pool2d(vivid(last) - vivid(first), cells).flatten(1)
    return coarse / coarse.std().clamp_min(1e-6)


# --- the run ------------------------------------------------------------------------------------------------------


def learning_rate(step: int, settings: PretrainConfig) -> float:
    """Linear warm-up, constant, then linear to a hundredth over the last fifth, so a run can be extended on the way."""
    remaining = (settings.steps - step) / (DECAY * settings.steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup, max(remaining, 0.01))


def kept_share(step: int, settings: PretrainConfig) -> float:
    """Returns the fraction of itself that the moving average keeps in this step: linear between the two ends."""
    first, last = settings.average
    return first + (last - first) * min(1.0, step / max(1, settings.steps))


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, share: float) -> None:
    """average <- share * average + (1 - share) * model, parameter by parameter."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1.0 - share)


@torch.no_grad()
def blind_to_flat_colour(model: VJEPA2Model) -> None:
    """Subtracts the mean of each patch filter, colour by colour, so a flat patch of any light or colour starts as 0.

    Otherwise the background, which most of a picture shares, dominates a mean over tokens.
    """
    weight = model.encoder.embeddings.patch_embeddings.proj.weight  # (D, 3, tubelet, patch, patch)
    weight -= weight.mean(dim=(3, 4), keepdim=True)


def _reader(width: int, out: int) -> nn.Linear:
    """Returns a linear map from a pooled mean that starts at zero. It is dropped after the run."""
    reader = nn.Linear(width, out)
    nn.init.zeros_(reader.weight)
    nn.init.zeros_(reader.bias)
    return reader


class Pretrainer:
    """Encoder, predictor, moving average and optimiser of a run. `step` trains them on one batch."""

    def __init__(self, config: VJEPA2Config, settings: PretrainConfig) -> None:
        self.settings, self.done = settings, 0
        self._dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = VJEPA2Model(config)
        blind_to_flat_colour(self.model)
        # On a CPU, PyTorch's fused attention takes half of a step at these sizes, mostly in the backward pass.
        self.model.set_attn_implementation("eager")
        self.average = copy.deepcopy(self.model.encoder)
        self._clock = _reader(config.hidden_size, settings.parts)
        self._colours = _reader(config.hidden_size, 3 * settings.cells**2)
        # The passes run on copies in their own precision; the trained and averaged weights stay float32.
        self._working = copy.deepcopy(self.model)
        self._working.to(dtype=self._dtype)  # pyright: ignore[reportCallIssue]
        self._teacher = copy.deepcopy(self.average).to(dtype=self._dtype).requires_grad_(False)
        self._patch = cast(int, config.patch_size)
        self._side = config.crop_size // self._patch
        self._install(config.frames_per_clip // config.tubelet_size)
        everything = [*self.model.parameters(), *self._clock.parameters(), *self._colours.parameters()]
        matrices, vectors = [p for p in everything if p.ndim > 1], [p for p in everything if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)

    def step(self, batch: Batch) -> Losses:
        """Makes one optimiser step.

        Raises:
            TrainingError: the loss is not finite.
        """
        settings, config = self.settings, self.model.config
        clips = max(2, round(settings.masked * len(batch.view)))
        visible, hidden = self._masks(clips, batch.view.shape[1] // config.tubelet_size)
        view, other = (
            patches(clip.to(self._dtype), self._patch, config.tubelet_size) for clip in (batch.view, batch.other)
        )
        with torch.no_grad():
            tokens = encode(self._teacher, other[:clips]).float()
        target = functional.layer_norm(tokens, tokens.shape[-1:])
        target = torch.gather(target, 1, hidden.unsqueeze(-1).expand(-1, -1, target.shape[-1]))
        context = encode(self._working.encoder, view[:clips], visible)
        predicted = functional.l1_loss(predict(self._working.predictor, context, visible, hidden).float(), target)
        loss, (dated, near, recoloured) = predicted, [torch.tensor(math.nan)] * 3
        if settings.dated > 0:
            means = encode(self._working.encoder, view).float().mean(dim=1)
            dated, near = time_loss(self._clock(means), batch.time)
            recoloured = functional.smooth_l1_loss(self._colours(means), batch.change)
            loss = predicted + settings.dated * dated + settings.recoloured * recoloured
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not finite at step {self.done}; lower learning_rate")
        loss.backward()
        gradient = self._update()
        spread = tokens.mean(dim=1).std(dim=0).mean()
        return Losses(
            predicted=float(predicted.detach()),
            dated=float(dated.detach()),
            near=float(near.detach()),
            recoloured=float(recoloured.detach()),
            spread=float(spread.detach()),
            gradient=float(gradient.detach()),
        )

    def _masks(self, clips: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the places that the predicting pass sees, and the places that it predicts."""
        rng = np.random.default_rng([self.settings.seed, self.done, 1])
        tubes = [block_tubes(rng, depth, self._side, self.settings.visible) for _ in range(clips)]
        visible, hidden = zip(*tubes, strict=True)
        return torch.from_numpy(np.stack(visible)), torch.from_numpy(np.stack(hidden))

    def _update(self) -> torch.Tensor:
        """Moves the gradients of the working copy to the weights, makes an optimiser step, and updates the copies."""
        for weight, copied in zip(self.model.parameters(), self._working.parameters(), strict=True):
            weight.grad = None if copied.grad is None else copied.grad.float()
            copied.grad = None
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.done, self.settings)
        self._optimiser.step()
        self._clock.zero_grad()
        self._colours.zero_grad()
        move_average(self.average, self.model.encoder, kept_share(self.done, self.settings))
        self._copy()
        self.done += 1
        return gradient

    @torch.no_grad()
    def _copy(self) -> None:
        for copied, source in ((self._working, self.model), (self._teacher, self.average)):
            for target, weight in zip(copied.parameters(), source.parameters(), strict=True):
                target.copy_(weight)

    def _install(self, depth: int) -> None:
        tokens, device = depth * self._side**2, torch.device("cpu")
        for stack in (self._working.encoder, self._working.predictor, self._teacher):
            rope = PlacedRope(stack.layer[0].attention)
            rope.fit(tokens, device, self._dtype)
            rope.install(stack)

    def state(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "clock": self._clock.state_dict(),
            "colours": self._colours.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._clock.load_state_dict(state["clock"])
        self._colours.load_state_dict(state["colours"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._copy()

    def exported(self) -> VJEPA2Model:
        """Returns a new model: the averaged encoder with the predictor."""
        model = copy.deepcopy(self.model)
        model.encoder.load_state_dict(self.average.state_dict())
        return model.eval()
