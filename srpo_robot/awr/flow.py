"""Flow-matching families (pi0, pi0.5, SmolVLA): lerobot's policies with one loss per sample.

lerobot reduces over the whole chunk before a weight could be applied, and its pi0 and pi0.5 train on the repeated last
action past an episode's end. The classes here draw noise and time in lerobot's order, so the same seed gives the same
loss. Config and weights are lerobot's: a checkpoint holds nothing of this package.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from srpo_robot.awr.families import Family
from srpo_robot.awr.losses import LossOptions, chunk_loss
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import RecipeError

quiet_lerobot()

from lerobot.policies.pi0.configuration_pi0 import PI0Config  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.pi0.modeling_pi0 import PI0Policy  # noqa: E402
from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors  # noqa: E402
from lerobot.policies.pi05.configuration_pi05 import PI05Config  # noqa: E402
from lerobot.policies.pi05.modeling_pi05 import PI05Policy  # noqa: E402
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors  # noqa: E402
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig  # noqa: E402
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy  # noqa: E402
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors  # noqa: E402
from lerobot.utils.constants import (  # noqa: E402
    ACTION,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
)

_IS_PAD = "action_is_pad"


class _PerSample:
    """Mixin for a lerobot policy: `forward(batch, options=...)` returns one loss per sample, (B,)."""

    config: Any

    def forward(
        self,
        batch: dict[str, Any],
        reduction: str = "mean",
        *,
        options: LossOptions | None = None,
        action_weights: Tensor | None = None,
    ) -> Any:
        """Does lerobot's forward pass. With `options` it returns one loss per sample; see `losses.per_sample_loss`."""
        if options is None:
            return super().forward(batch, reduction=reduction)  # type: ignore[misc]
        errors = self._errors(batch)[:, :, : self.config.output_features[ACTION].shape[0]]
        padded = batch[_IS_PAD].to(errors.device) if options.padding == "masked" else None
        return chunk_loss(errors, padded, action_weights)

    def _errors(self, batch: dict[str, Any]) -> Tensor:
        """Returns squared errors (B, chunk, max_action_dim)."""
        raise NotImplementedError


def _drawn(policy: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns padded actions (B, chunk, max_action_dim), noise of that shape and time (B,), in lerobot's order."""
    actions = policy.prepare_action(batch)
    noise = policy.model.sample_noise(actions.shape, actions.device)
    return actions, noise, policy.model.sample_time(len(actions), actions.device)


def _language(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]


class Pi0(_PerSample, PI0Policy):
    def _errors(self, batch: dict[str, Any]) -> Tensor:
        images, state = self._preprocess_images(batch), self.prepare_state(batch)
        return self.model.forward(*images, *_language(batch), state, *_drawn(self, batch))


class Pi05(_PerSample, PI05Policy):
    def _errors(self, batch: dict[str, Any]) -> Tensor:
        return self.model.forward(*self._preprocess_images(batch), *_language(batch), *_drawn(self, batch))


class SmolVla(_PerSample, SmolVLAPolicy):
    def _errors(self, batch: dict[str, Any]) -> Tensor:
        images, state = self.prepare_images(batch), self.prepare_state(batch)
        return self.model.forward(*images, *_language(batch), state, *_drawn(self, batch))


def _no_aloha(config: SmolVLAConfig) -> None:
    if config.adapt_to_pi_aloha:
        raise RecipeError("config.adapt_to_pi_aloha rewrites actions for an ALOHA robot; set it to false")


_EXPERT = r".*\.gemma_expert\..*\.self_attn\.(q|v)_proj"
_TIME = "action_time_mlp_in|action_time_mlp_out"

PI0 = Family(
    name="pi0",
    config=PI0Config,
    policy=Pi0,
    processors=make_pi0_pre_post_processors,
    lora_targets=rf"({_EXPERT}|model\.(state_proj|action_in_proj|action_out_proj|{_TIME}))",
    downloads=("google/paligemma-3b-pt-224",),
)
PI05 = Family(
    name="pi05",
    config=PI05Config,
    policy=Pi05,
    processors=make_pi05_pre_post_processors,
    # lerobot's default has the names of pi0's layers, so its pi0.5 adapters leave the time layers out
    lora_targets=rf"({_EXPERT}|model\.(action_in_proj|action_out_proj|time_mlp_in|time_mlp_out))",
    downloads=("google/paligemma-3b-pt-224",),
    prompt="Task: {task}, State: {state};\nAction: ",
)
SMOLVLA = Family(
    name="smolvla",
    config=SmolVLAConfig,
    policy=SmolVla,
    processors=make_smolvla_pre_post_processors,
    lora_targets=rf"(model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj"
    rf"|model\.(state_proj|action_in_proj|action_out_proj|{_TIME}))",
    downloads=("HuggingFaceTB/SmolVLM2-500M-Video-Instruct",),
    expert_width=False,  # config.expert_width_multiplier
    check=_no_aloha,
    loaded={"load_vlm_weights": False},  # otherwise lerobot downloads a backbone only to overwrite it
)
