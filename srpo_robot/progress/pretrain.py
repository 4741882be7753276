"""Pretraining of a small V-JEPA 2: masked latent prediction against a moving average, and two terms for the mean.

The V-JEPA objective (arXiv 2404.08471, 2506.09985): the encoder sees a part of a clip's tokens, a predictor says what a
slowly moving average of the encoder makes of the others, L1 on layer-normed targets. It shapes tokens. What is measured
downstream is the distance between means over tokens, so two self-supervised terms shape those: a linear map of the mean
says where in its episode the clip ends, and another which vivid colours came or went in which part of the picture
between the clip's first frame and its last. Neither reads labels, actions or states: only frames and their order. The
second is made for scenes whose objects are more colourful than what they lie on, as the mock cell's are. Target and
predicting pass see two views of the same instants (another look, crop and gain). All randomness comes from
(seed, step), so a resumed run is the uninterrupted one.
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

DECAY = 0.2  # share of the steps over which the learning rate falls


@dataclass(frozen=True)
class PretrainConfig:
    """How a run trains. Only `steps` and `seed` are meant to be changed without thought.

    Attributes:
        steps: of the whole run; the learning rate and the average's schedule end there.
        seed: of the initial weights and of every batch.
        learning_rate: after `warmup` steps; over the last fifth it falls to a hundredth.
        average: share of itself that the moving average keeps per step: first and last step.
        visible: share of the grid's cells that the predicting pass sees.
        dated: weight of `time_loss` on the pooled means; 0: V-JEPA alone, without the next term too.
        parts: of an episode, that it tells apart.
        recoloured: weight of the prediction of `colour_change` from the pooled means.
        cells: the grid of those changes has cells^2 parts.
        masked: share of a batch's clips that the masked prediction uses.
        dtype: of the passes; weights and averages are float32.
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
        view: for the predicting and the pooled pass.
        other: for the target.
        time: (B,) where in its episode a clip ends, 0 to 1.
        change: (B, 3 * cells^2) `colour_change` between its first frame and its last.
    """

    view: torch.Tensor
    other: torch.Tensor
    time: torch.Tensor
    change: torch.Tensor


@dataclass(frozen=True)
class Losses:
    """Numbers of one step.

    Attributes:
        predicted: L1 between predictions and layer-normed targets (about 0.8 where nothing is predicted).
        dated, near: see `time_loss`; NaN where it is off.
        recoloured: smooth L1 of the predicted `colour_change`; NaN where it is off.
        spread: standard deviation of the average's pooled means over the batch, mean over dimensions: 0 is collapse.
        gradient: norm before clipping.
    """

    predicted: float
    dated: float
    near: float
    recoloured: float
    spread: float
    gradient: float


# --- masks --------------------------------------------------------------------------------------------------------


def block_tubes(rng: np.random.Generator, depth: int, side: int, visible: float) -> tuple[np.ndarray, np.ndarray]:
    """Visible and hidden tokens of one clip: (n,) and (m,) sorted, a partition of depth * side^2.

    Blocks of a random place and shape are hidden until the share is reached; a cell is hidden at all times or never
    (tubes), so that nothing can be copied from the frame before. Exactly round(visible * side^2) cells stay, at least
    one and not all.
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
        if excess > 0:  # the last block gives back as many of its own cells as are too many
            fresh = np.flatnonzero(hidden & ~before)
            hidden.flat[fresh[:excess]] = False
    everywhere = np.tile(hidden.ravel(), depth)
    return np.flatnonzero(~everywhere), np.flatnonzero(everywhere)


# --- passes -------------------------------------------------------------------------------------------------------


class PlacedRope(RopeTable):
    """Rotary positions of gathered tokens: each token keeps the position it has in the whole clip."""

    def install(self, encoder: Any) -> None:
        """Let every layer of an encoder or predictor take its `position_mask` as the tokens' places."""
        for layer in encoder.layer:
            layer.attention.get_position_ids = lambda x, masks=None: masks
            layer.attention.apply_rotary_embeddings = self.rotate

    def rotate(self, qk: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, heads, n, width) and places (B, n) (None: all, in order) -> the same, rotated."""
        assert self._tables is not None
        cos, sin = (table[: qk.shape[2]] if places is None else table[places] for table in self._tables)
        rows = qk.transpose(1, 2).flatten(2)
        swapped = torch.stack((rows[..., 1::2], rows[..., 0::2]), -1).flatten(2)
        return (rows * cos + swapped * sin).unflatten(2, (self._heads, -1)).transpose(1, 2)


def patches(pixels: torch.Tensor, patch: int, tubelet: int) -> torch.Tensor:
    """(B, F, 3, S, S) -> (B, tokens, 3 * tubelet * patch^2), in the order of the patch convolution's weights."""
    batch, frames, channels, height, width = pixels.shape
    cut = pixels.view(batch, frames // tubelet, tubelet, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, -1, channels * tubelet * patch * patch)


def encode(encoder: Any, cut: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
    """What the encoder makes of the tokens at `places` (B, n) and of nothing else: (B, n, D). None: of all.

    transformers' own forward masks after the encoder, when every token has seen every other.
    """
    if places is not None:
        cut = torch.gather(cut, 1, places.unsqueeze(-1).expand(-1, -1, cut.shape[-1]))
    convolution = encoder.embeddings.patch_embeddings.proj
    hidden = functional.linear(cut, convolution.weight.flatten(1), convolution.bias)
    for layer in encoder.layer:
        hidden = layer(hidden, places)[0]
    return encoder.layernorm(hidden)


def predict(predictor: Any, seen: torch.Tensor, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Predictions (B, m, D) for the tokens at `hidden` (B, m), from `seen` (B, n, D) at `places` (B, n)."""
    tokens, where = predictor.embeddings(seen, [places], [hidden])
    for layer in predictor.layer:
        tokens = layer(tokens, where)[0]
    return predictor.proj(predictor.layernorm(tokens)[:, seen.shape[1] :])


def time_loss(logits: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of where in its episode a clip ends: logits (B, K) of K equal parts, time (B,) in [0, 1].

    The target is shared by the two parts whose middles are nearest, linearly, so that it has no edges.

    Returns:
        The loss [nat] and the share of clips whose likeliest part is at most one away.
    """
    parts = logits.shape[1]
    place = (time * parts - 0.5).clamp(0.0, parts - 1.0)
    distance = (place[:, None] - torch.arange(parts)).abs()
    target = (1.0 - distance).clamp_min(0.0)
    near = distance.gather(1, logits.argmax(dim=1, keepdim=True)) <= 1.0
    return functional.cross_entropy(logits, target), near.float().mean()


def vivid(frames: torch.Tensor) -> torch.Tensor:
    """Hue of vividly coloured pixels, 0 elsewhere: light (B, 3, S, S) of 0 to 1 -> (B, 3, S, S) of -1 to 1.

    A pixel counts from 60 % saturation, fully from 80 %. Neither depends on how bright the light is, and little on its
    tint; metal, plates and muted tables are nothing.
    """
    high, low = frames.amax(dim=1, keepdim=True), frames.amin(dim=1, keepdim=True)
    span = (high - low).clamp_min(1e-3)
    share = ((span / high.clamp_min(0.05) - 0.6) / 0.2).clamp(0.0, 1.0)
    return share * (frames - frames.mean(dim=1, keepdim=True)) / span


def colour_change(first: torch.Tensor, last: torch.Tensor, cells: int) -> torch.Tensor:
    """Which vivid colour came or went where, between two frames (B, 3, S, S): (B, 3 * cells^2).

    Means over a coarse grid, which say in which part of the picture, not where; in units of their deviation over the
    batch.
    """
    coarse = functional.adaptive_avg_pool2d(vivid(last) - vivid(first), cells).flatten(1)
    return coarse / coarse.std().clamp_min(1e-6)


# --- the run ------------------------------------------------------------------------------------------------------


def learning_rate(step: int, settings: PretrainConfig) -> float:
    """Linear warm-up, constant, and over the last fifth linear to a hundredth: a run may be made longer on the way."""
    left = (settings.steps - step) / (DECAY * settings.steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup, max(left, 0.01))


def kept_share(step: int, settings: PretrainConfig) -> float:
    """Share of itself that the moving average keeps in this step: a straight line between the two ends."""
    first, last = settings.average
    return first + (last - first) * min(1.0, step / max(1, settings.steps))


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, share: float) -> None:
    """average <- share * average + (1 - share) * model, parameter by parameter."""
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1.0 - share)


@torch.no_grad()
def blind_to_flat_colour(model: VJEPA2Model) -> None:
    """Take each patch filter's mean, colour by colour: a flat patch is nothing at first, whatever its light and colour.

    What the largest part of a picture has in common is else most of what a mean over tokens says.
    """
    weight = model.encoder.embeddings.patch_embeddings.proj.weight  # (D, 3, tubelet, patch, patch)
    weight -= weight.mean(dim=(3, 4), keepdim=True)


def _reader(width: int, out: int) -> nn.Linear:
    """A linear map from a pooled mean that starts at zero; dropped after the run."""
    reader = nn.Linear(width, out)
    nn.init.zeros_(reader.weight)
    nn.init.zeros_(reader.bias)
    return reader


class Pretrainer:
    """Encoder, predictor, moving average and optimiser of a run; `step` takes them one batch on."""

    def __init__(self, config: VJEPA2Config, settings: PretrainConfig) -> None:
        self.settings, self.done = settings, 0
        self._dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = VJEPA2Model(config)
        blind_to_flat_colour(self.model)
        # Measured on a CPU: PyTorch's fused attention takes half of a step at these sizes, mostly going backward.
        self.model.set_attn_implementation("eager")
        self.average = copy.deepcopy(self.model.encoder)
        self._clock = _reader(config.hidden_size, settings.parts)
        self._colours = _reader(config.hidden_size, 3 * settings.cells**2)
        # The passes run on copies in their own precision; what is trained and averaged stays float32.
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
        """One optimiser step.

        Raises:
            TrainingError: the loss is not finite.
        """
        settings, config = self.settings, self.model.config
        clips = max(2, round(settings.masked * len(batch.view)))
        seen, hidden = self._masks(clips, batch.view.shape[1] // config.tubelet_size)
        view, other = (
            patches(clip.to(self._dtype), self._patch, config.tubelet_size) for clip in (batch.view, batch.other)
        )
        with torch.no_grad():
            tokens = encode(self._teacher, other[:clips]).float()
        target = functional.layer_norm(tokens, tokens.shape[-1:])
        target = torch.gather(target, 1, hidden.unsqueeze(-1).expand(-1, -1, target.shape[-1]))
        context = encode(self._working.encoder, view[:clips], seen)
        predicted = functional.l1_loss(predict(self._working.predictor, context, seen, hidden).float(), target)
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
        return Losses(*(float(x.detach()) for x in (predicted, dated, near, recoloured, spread, gradient)))

    def _masks(self, clips: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Places that the predicting pass sees, and those it predicts."""
        rng = np.random.default_rng([self.settings.seed, self.done, 1])
        tubes = [block_tubes(rng, depth, self._side, self.settings.visible) for _ in range(clips)]
        seen, hidden = zip(*tubes, strict=True)
        return torch.from_numpy(np.stack(seen)), torch.from_numpy(np.stack(hidden))

    def _update(self) -> torch.Tensor:
        """Gradients of the working copy into the weights, one optimiser step, and everything that follows them."""
        for own, worked in zip(self.model.parameters(), self._working.parameters(), strict=True):
            own.grad = None if worked.grad is None else worked.grad.float()
            worked.grad = None
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
        for copied, of in ((self._working, self.model), (self._teacher, self.average)):
            for own, weight in zip(copied.parameters(), of.parameters(), strict=True):
                own.copy_(weight)

    def _install(self, depth: int) -> None:
        tokens, device = depth * self._side**2, torch.device("cpu")
        for stack in (self._working.encoder, self._working.predictor, self._teacher):
            rope = PlacedRope(stack.layer[0].attention)
            rope.fit(tokens, device, self._dtype)
            rope.install(stack)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "clock": self._clock.state_dict(),
            "colours": self._colours.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.done = state["done"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self._clock.load_state_dict(state["clock"])
        self._colours.load_state_dict(state["colours"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._copy()

    def exported(self) -> VJEPA2Model:
        """The averaged encoder with the predictor, a model of its own."""
        model = copy.deepcopy(self.model)
        model.encoder.load_state_dict(self.average.state_dict())
        return model.eval()
