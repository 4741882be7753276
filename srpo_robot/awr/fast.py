"""pi0-FAST with one loss per sample, and with decoding that refuses tokens that do not make a whole chunk.

lerobot reduces the token losses to one number for the batch. So the forward pass is put together here from lerobot's
embedding, language model and head.

"masked" padding: a chunk's tokens are frequencies over all of its steps, so no token belongs to a padded step alone. A
chunk cut by the episode's end can only train as a whole or not at all. Masked means not at all: its loss is 0. The last
chunk_size - 1 frames of an episode then never start a chunk. If that leaves too little of short episodes,
`padding = "trained"` trains on holding the last action, as lerobot does.

The constant tokens around the action ("Action: ", "|") count: lerobot's decoder needs them, and a policy with fresh
weights has to learn them. Once it has, they cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.convert_slow_tokenizer import bytes_to_unicode

from srpo_robot.awr.families import Family
from srpo_robot.awr.losses import LossOptions, token_loss
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import RecipeError, TrainingError, UndecodableActions

quiet_lerobot()

from lerobot.policies.common.vla_utils import prepare_attention_masks_4d  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.pi0_fast import modeling_pi0_fast  # noqa: E402
from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig  # noqa: E402
from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy  # noqa: E402
from lerobot.policies.pi0_fast.processor_pi0_fast import make_pi0_fast_pre_post_processors  # noqa: E402
from lerobot.processor import tokenizer_processor  # noqa: E402
from lerobot.utils.constants import (  # noqa: E402
    ACTION_TOKEN_MASK,
    ACTION_TOKENS,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
)

_SLICE = 256  # tokens whose logits are in memory at once: 0.26 GB at PaliGemma's 257,152 words in float32


class Pi0Fast(PI0FastPolicy):
    """lerobot's PI0FastPolicy with one loss per sample. Undecodable tokens raise, they do not move to the mean pose."""

    def forward(
        self,
        batch: dict[str, Any],
        *,
        options: LossOptions | None = None,
        action_weights: Tensor | None = None,
    ) -> Any:
        """Does lerobot's forward pass. With `options` it returns one loss per sample; see `losses.per_sample_loss`."""
        if options is None:
            return super().forward(batch)
        if action_weights is not None:
            raise TrainingError("pi0_fast has no loss per action: its tokens are frequencies of the whole chunk")
        nll, counts = self.token_nll(batch)
        excluded = batch["action_is_pad"].to(nll.device).any(dim=1) if options.padding == "masked" else None
        return token_loss(nll, counts, options, excluded)

    def token_nll(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes the negative log-likelihood of each action token after the first one, which is the input.

        Returns:
            nll: (B, T) with gradient, 0 for padding.
            counts: (B, T) True for tokens, False for padding. The batch's longest chunk has T + 1 tokens.
        """
        counts = batch[ACTION_TOKEN_MASK].bool()
        longest = int(counts.sum(dim=1).max())
        tokens, counts = batch[ACTION_TOKENS][:, :longest], counts[:, :longest]
        hidden = self._hidden(batch, tokens, counts)[:, -longest:-1]
        targets, counts = tokens[:, 1:], counts[:, 1:]
        values = torch.cat([self._nll(*part) for part in _slices(hidden[counts], targets[counts])])
        return torch.zeros_like(targets, dtype=values.dtype).masked_scatter(counts, values), counts

    def _hidden(self, batch: dict[str, Any], tokens: Tensor, counts: Tensor) -> Tensor:
        """Returns the language model's last layer (B, images + language + tokens, width)."""
        language = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        model: Any = self.model
        images = self._preprocess_images(batch)
        inputs, present, attention, _, _ = model.embed_prefix_fast(
            *images, *language, fast_action_tokens=tokens, fast_action_masks=counts
        )
        inputs = inputs.to(self._dtype())
        (hidden, _), _ = model.paligemma_with_expert.forward(
            attention_mask=prepare_attention_masks_4d(attention, dtype=inputs.dtype),
            position_ids=torch.cumsum(present, dim=1) - 1,
            inputs_embeds=[inputs, None],
            use_cache=False,
        )
        return hidden

    def _dtype(self) -> torch.dtype:
        layers: Any = self.model.paligemma_with_expert.paligemma.model.language_model.layers
        weight = layers[0].self_attn.q_proj.weight
        return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Losses (n,) from (n, width) and (n,). The backward pass recomputes the logits instead of keeping them."""
        return checkpoint(self._head, hidden, targets, use_reentrant=False)  # type: ignore[return-value]

    def _head(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.paligemma_with_expert.paligemma.lm_head(hidden)
        return cross_entropy(logits.float(), targets, reduction="none")

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """Returns a chunk (B, chunk_size, A) like lerobot, but decodes only tokens that can still make a whole chunk.

        A token stands for one or more coefficients, so plain greedy decoding is often one coefficient too long or too
        short. If it is not, the result is the same.
        """
        if (
            self.config.temperature > 0 or self.config.compile_model
        ):  # lerobot decodes; the result is checked below all the same
            return super().predict_action_chunk(batch, **options)
        head = self.model.paligemma_with_expert.paligemma.lm_head
        hook = head.register_forward_hook(self._grammar(len(batch[OBS_LANGUAGE_TOKENS])))
        try:
            return super().predict_action_chunk(batch, **options)
        finally:
            hook.remove()

    def _grammar(self, rows: int) -> _Grammar:
        text: Any = self._paligemma_tokenizer
        actions: Any = self.action_tokenizer
        model: Any = self.model
        width = model.paligemma_with_expert.paligemma.lm_head.weight.shape[0]
        sizes = torch.full((width,), -1)
        first = text.vocab_size - 1 - self.config.fast_skip_tokens
        counts = coefficients_of_tokens(actions.bpe_tokenizer)
        sizes[first - torch.arange(len(counts))] = torch.tensor(counts)
        prefix = text.encode("Action: ", add_special_tokens=False)
        total = self.config.chunk_size * _action_width(self.config)
        return _Grammar(sizes, prefix, text.convert_tokens_to_ids("|"), torch.full((rows,), total))

    def detokenize_actions(self, tokens: Tensor, action_horizon: int, action_dim: int) -> Tensor:
        """Decodes like lerobot to (B, action_horizon, action_dim). Raises UndecodableActions, never returns zeros."""
        try:
            return super().detokenize_actions(tokens, action_horizon, action_dim)
        except AssertionError:  # from validate_action_token_prefix
            raise UndecodableActions("the policy's tokens do not begin with 'Action:'; train it longer") from None

    def decode_actions_with_fast(
        self, token_ids: list[Any], time_horizon: int, action_dim: int, relaxed_decoding: bool = True
    ) -> np.ndarray:
        """Decodes like lerobot, which pads or cuts sequences of a wrong length and replaces others by zeros.

        Raises:
            UndecodableActions: the tokens do not make exactly one chunk. Zeros would be a move to the mean pose, and
                after one token too many or too few every number belongs to another joint.
        """
        expected = time_horizon * action_dim
        for tokens in token_ids:
            try:
                count = len(self.action_tokenizer.bpe_tokenizer.decode(tokens))
            except (OverflowError, TypeError, ValueError):  # a token that is not an action token
                count = 0
            if count != expected:
                raise UndecodableActions(
                    f"the policy's tokens give {count} coefficients where a chunk has {expected}; the arm holds"
                )
        return super().decode_actions_with_fast(token_ids, time_horizon, action_dim, relaxed_decoding)


class _Grammar:
    """Hook on the head for decoding one chunk: "Action: ", then tokens up to the chunk's coefficients, then "|"."""

    def __init__(self, sizes: Tensor, prefix: list[int], end: int, remaining: Tensor) -> None:
        """Takes the vocabulary's sizes and the chunk's.

        Args:
            sizes: (V,) number of coefficients per token id, -1 for ids that are not action tokens.
            prefix: token ids that come first.
            end: token id that comes last.
            remaining: (B,) number of coefficients still to come.
        """
        self._sizes, self._prefix, self._end, self._remaining = sizes, list(prefix), end, remaining

    def __call__(self, module: Any, inputs: Any, logits: Tensor) -> Tensor:
        """Returns the logits (B, 1, V) of the next token, -inf for tokens that cannot lead to a whole chunk."""
        self._sizes, self._remaining = self._sizes.to(logits.device), self._remaining.to(logits.device)
        if self._prefix:
            allowed = torch.zeros_like(logits, dtype=torch.bool)
            allowed[..., self._prefix.pop(0)] = True
            return logits.masked_fill(~allowed, -torch.inf)
        allowed = (self._sizes >= 0) & (self._sizes <= self._remaining[:, None])  # (B, V)
        allowed[self._remaining == 0, self._end] = True
        masked = logits.masked_fill(~allowed[:, None], -torch.inf)
        self._remaining = self._remaining - self._sizes[masked[:, -1].argmax(dim=-1)].clamp(min=0)
        return masked


def coefficients_of_tokens(bpe: Any) -> list[int]:
    """Returns the number of coefficients of each token of a FAST tokenizer, by token id.

    Each character is one coefficient. A byte-level tokenizer such as lerobot's may split a character's bytes: the
    character then counts at its first byte.
    """
    tokens = bpe.convert_ids_to_tokens(list(range(len(bpe))))
    if not isinstance(bpe.backend_tokenizer.decoder, decoders.ByteLevel):
        return [len(token) for token in tokens]
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    return [sum(to_byte.get(character, 0) & 0xC0 != 0x80 for character in token) for token in tokens]


def _action_width(config: PI0FastConfig) -> int:
    feature = config.action_feature
    assert feature is not None
    return feature.shape[0]


def _slices(hidden: Tensor, targets: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(hidden.split(_SLICE), targets.split(_SLICE), strict=True)


def _check(config: PI0FastConfig) -> None:
    if config.n_action_steps != config.chunk_size:
        raise RecipeError(
            f"pi0_fast decodes n_action_steps from tokens of chunk_size steps, which garbles the motion: set "
            f"config.n_action_steps to chunk_size ({config.chunk_size})"
        )
    if config.max_decoding_steps < config.max_action_tokens:
        raise RecipeError(
            f"config.max_decoding_steps ({config.max_decoding_steps}) is below max_action_tokens "
            f"({config.max_action_tokens}): long chunks could never be decoded; set it to at least that"
        )


def _overrides(config: PI0FastConfig) -> dict[str, Any]:
    names = {"paligemma_tokenizer_name": config.text_tokenizer_name, "fast_skip_tokens": config.fast_skip_tokens}
    return {"action_tokenizer_processor": names | {"action_tokenizer_name": config.action_tokenizer_name}}


PI0_FAST = Family(
    name="pi0_fast",
    config=PI0FastConfig,
    policy=Pi0Fast,
    processors=make_pi0_fast_pre_post_processors,
    lora_targets=r".*\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj",  # the head is 257,152 words wide
    downloads=("google/paligemma-3b-pt-224", "lerobot/fast-action-tokenizer"),
    prompt="Task: {task}, State: {state};\n",
    expert_width=False,
    acts_in_tokens=True,
    token_modules=(tokenizer_processor, modeling_pi0_fast),
    check=_check,
    processor_overrides=_overrides,
)
