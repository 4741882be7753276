"""Tiny policies: lerobot's PI0Policy at sizes that train on a CPU core, with a tokenizer of their own.

Same code and losses as the full size; only the widths, depths and vocabulary that lerobot hard-codes are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from srpo_robot.buffer.episodes import quiet_lerobot
from srpo_robot.errors import RecipeError

quiet_lerobot()

from lerobot.policies.pi0 import modeling_pi0  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.pi0.configuration_pi0 import PI0Config  # noqa: E402
from lerobot.policies.pi0.modeling_pi0 import PI0Policy  # noqa: E402

SIZES = (
    "width",
    "expert_width",
    "depth",
    "mlp",
    "head_dim",
    "vision_width",
    "vision_depth",
    "vision_heads",
    "vision_mlp",
    "patch",
    "vocab",
)


def check_sizes(sizes: Mapping[str, int], config: PI0Config) -> None:
    """Raise RecipeError where a size is unknown, missing or does not fit the others."""
    wrong = sorted(set(sizes) ^ set(SIZES))
    if wrong:
        what = "unknown" if wrong[0] in sizes else "missing"
        raise RecipeError(f"[tiny] has {what} {', '.join(map(repr, wrong))}; it takes {', '.join(SIZES)}")
    if config.image_resolution[0] % sizes["patch"]:
        raise RecipeError(
            f"[tiny] patch {sizes['patch']} does not divide image_resolution {config.image_resolution[0]}"
        )
    if sizes["vision_width"] % sizes["vision_heads"]:
        raise RecipeError(f"[tiny] vision_heads {sizes['vision_heads']} does not divide vision_width")


@contextmanager
def architecture(sizes: Mapping[str, int]) -> Iterator[None]:
    """While open, PI0Policy is built with `sizes` (keys: SIZES) in place of lerobot's; {} changes nothing.

    lerobot reads the widths from a module function and hard-codes vision tower and vocabulary, so those names in its
    module are replaced. Not for concurrent threads. Heads stay 8, key-value heads 1: lerobot reshapes by that.
    """
    if not sizes:
        yield
        return
    gemma, paligemma, causal = (
        modeling_pi0.get_gemma_config,
        modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma,
        modeling_pi0.PiGemmaForCausalLM,
    )

    def small_gemma(variant: str) -> Any:
        width = sizes["width" if variant == "gemma_2b" else "expert_width"]
        return modeling_pi0.GemmaConfig(width, sizes["depth"], sizes["mlp"], 8, 1, sizes["head_dim"])

    def small_paligemma(config: Any) -> Any:
        _shrink(config, sizes)
        return paligemma(config=config)

    def small_causal(config: Any) -> Any:
        config.vocab_size = sizes["vocab"]
        return causal(config=config)

    modeling_pi0.get_gemma_config = small_gemma
    modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma = small_paligemma
    modeling_pi0.PiGemmaForCausalLM = small_causal
    try:
        yield
    finally:
        modeling_pi0.get_gemma_config = gemma
        modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma = paligemma
        modeling_pi0.PiGemmaForCausalLM = causal


def _shrink(config: Any, sizes: Mapping[str, int]) -> None:
    """Set a Hugging Face PaliGemma configuration to `sizes`."""
    config._vocab_size = sizes["vocab"]
    config.vocab_size = sizes["vocab"]
    config.image_token_index = sizes["vocab"] - 1
    config.hidden_size = config.projection_dim = sizes["width"]
    config.text_config.vocab_size = sizes["vocab"]
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size = sizes["vision_width"], sizes["vision_mlp"]
    vision.num_hidden_layers, vision.num_attention_heads = sizes["vision_depth"], sizes["vision_heads"]
    vision.patch_size, vision.projection_dim = sizes["patch"], sizes["width"]


def initialise(policy: PI0Policy, seed: int) -> None:
    """Xavier for all linear layers: the initialisation that the tiny sizes were tried with (normal 0.02 was not)."""
    generator = torch.Generator().manual_seed(seed)
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            fresh = torch.empty(module.weight.shape)  # drawn on the CPU: the same weights on any device
            module.weight.data.copy_(nn.init.xavier_uniform_(fresh, generator=generator))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def word_tokenizer(tasks: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """A lower-case word-level tokenizer of the words in `tasks`; any other word becomes <unk>.

    Raises:
        RecipeError: the words do not fit `vocab`.
    """
    split = pre_tokenizers.Whitespace()
    words = sorted({word for task in tasks for word, _ in split.pre_tokenize_str(task.lower())})
    ids = {word: number for number, word in enumerate(["<pad>", "<unk>", *words])}
    if len(ids) > vocab:
        raise RecipeError(
            f"the dataset's instructions have {len(words)} words; set [tiny] vocab to at least {len(ids)}"
        )
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
