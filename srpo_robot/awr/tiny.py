"""Tiny policies: lerobot's classes at sizes that train on a CPU core, with their own tokenizers.

Code and losses are those of the full size. Only the widths, depths and vocabulary that lerobot hard-codes differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, SmolVLMConfig

from srpo_robot.awr.families import Family
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import RecipeError

quiet_lerobot()

from lerobot.policies.pi0 import modeling_pi0  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.pi0_fast import modeling_pi0_fast  # noqa: E402
from lerobot.policies.pi05 import modeling_pi05  # noqa: E402
from lerobot.policies.smolvla import smolvlm_with_expert  # noqa: E402

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
_EXPERT = "expert_width"  # only if `Family.expert_width`
_PROMPT = (
    "Action",
    "|",
    "task",
    "state",
    ",",
    ":",
    ";",
    "-",
    *map(str, range(256)),
)  # for families that read the state
_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}


def check_sizes(sizes: Mapping[str, int], config: Any, family: Family) -> None:
    """Raises RecipeError if a size is unknown, missing or does not fit the others."""
    takes = SIZES if family.expert_width else tuple(name for name in SIZES if name != _EXPERT)
    wrong = sorted(set(sizes) ^ set(takes))
    if wrong:
        problem = "unknown" if wrong[0] in sizes else "missing"
        raise RecipeError(f"[tiny] has {problem} {', '.join(map(repr, wrong))}; it takes {', '.join(takes)}")
    pixels = image_px(config)
    if pixels % sizes["patch"]:
        raise RecipeError(f"[tiny] patch {sizes['patch']} does not divide image_resolution {pixels}")
    if sizes["vision_width"] % sizes["vision_heads"]:
        raise RecipeError(f"[tiny] vision_heads {sizes['vision_heads']} does not divide vision_width")


def image_px(config: Any) -> int:
    """Returns the side [px] of the square images that a policy's vision tower takes."""
    size = getattr(config, "image_resolution", None) or config.resize_imgs_with_padding
    return int(size[0])


@contextmanager
def architecture(sizes: Mapping[str, int], image_px: int = 224) -> Iterator[None]:
    """While open, lerobot builds its policies with `sizes` instead of its own; {} changes nothing.

    lerobot reads the widths from module functions and hard-codes vision tower and vocabulary, so those names in its
    modules are replaced. Not for concurrent threads. There are always 8 heads and 1 key-value head, because lerobot
    reshapes by these numbers.

    Args:
        sizes: sizes by name; see SIZES.
        image_px: side of the images. Only pi0_fast needs it: lerobot leaves its vision tower at 224.
    """
    with ExitStack() as stack:
        if sizes:
            for module in (modeling_pi0, modeling_pi05, modeling_pi0_fast):
                _shrink_module(stack, module, sizes, image_px if module is modeling_pi0_fast else 0)
            _shrink_smolvla(stack, sizes, image_px)
        yield


def _shrink_module(stack: ExitStack, module: Any, sizes: Mapping[str, int], image_px: int) -> None:
    paligemma = module.PaliGemmaForConditionalGenerationWithPiGemma

    def small_gemma(variant: str) -> Any:
        width = sizes["width" if variant == "gemma_2b" else _EXPERT]
        return module.GemmaConfig(width, sizes["depth"], sizes["mlp"], 8, 1, sizes["head_dim"])

    def small_paligemma(config: Any) -> Any:
        _shrink(config, sizes)
        if image_px:
            config.vision_config.image_size = image_px
        return paligemma(config=config)

    stack.enter_context(patch.object(module, "get_gemma_config", small_gemma))
    stack.enter_context(patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", small_paligemma))
    if hasattr(module, "PiGemmaForCausalLM"):
        causal = module.PiGemmaForCausalLM

        def small_causal(config: Any) -> Any:
            config.vocab_size = sizes["vocab"]
            return causal(config=config)

        stack.enter_context(patch.object(module, "PiGemmaForCausalLM", small_causal))


def _shrink(config: Any, sizes: Mapping[str, int]) -> None:
    """Sets a Hugging Face PaliGemma configuration to `sizes`, in place."""
    config._vocab_size = sizes["vocab"]
    config.vocab_size = sizes["vocab"]
    config.image_token_index = sizes["vocab"] - 1
    config.hidden_size = config.projection_dim = sizes["width"]
    config.text_config.vocab_size = sizes["vocab"]
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size = sizes["vision_width"], sizes["vision_mlp"]
    vision.num_hidden_layers, vision.num_attention_heads = sizes["vision_depth"], sizes["vision_heads"]
    vision.patch_size, vision.projection_dim = sizes["patch"], sizes["width"]


def _shrink_smolvla(stack: ExitStack, sizes: Mapping[str, int], image_px: int) -> None:
    """Gives SmolVLA its backbone's sizes and special tokens from `sizes` instead of from the Hub."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": sizes["head_dim"]}
    text = heads | {"hidden_size": sizes["width"], "intermediate_size": sizes["mlp"], "vocab_size": sizes["vocab"]}
    vision = {
        "hidden_size": sizes["vision_width"],
        "intermediate_size": sizes["vision_mlp"],
        "num_hidden_layers": sizes["vision_depth"],
        "num_attention_heads": sizes["vision_heads"],
        "patch_size": sizes["patch"],
        "image_size": image_px,
    }
    make: Any = SmolVLMConfig
    config = make(
        text_config={"model_type": "llama", "num_hidden_layers": sizes["depth"], **text},
        vision_config=vision,
        scale_factor=1,
        pad_token_id=0,
    )
    tokens = SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=0, global_image_token_id=0))
    for name, value in (("AutoConfig", config), ("AutoProcessor", tokens)):
        stack.enter_context(patch.object(smolvlm_with_expert, name, _always(value)))


def _always(value: Any) -> Any:
    """Replaces one of transformers' Auto classes: `from_pretrained` always returns `value`."""
    return SimpleNamespace(from_pretrained=lambda *_, **__: value)


def initialise(policy: nn.Module, seed: int) -> None:
    """Initialises all linear layers by Xavier. The tiny sizes were tested with it, and not with normal 0.02."""
    generator = torch.Generator().manual_seed(seed)
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            fresh = torch.empty(module.weight.shape)  # drawn on the CPU, for the same weights on any device
            module.weight.data.copy_(nn.init.xavier_uniform_(fresh, generator=generator))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@contextmanager
def tokenizers_in_lerobot(modules: Iterable[ModuleType], text: Any, action: Any) -> Iterator[None]:
    """While open, `modules` get these tokenizers when they load one from transformers by name; None: lerobot's."""
    with ExitStack() as stack:
        for module in modules:
            for name, tokenizer in (("AutoTokenizer", text), ("AutoProcessor", action)):
                if tokenizer is not None:
                    stack.enter_context(patch.object(module, name, _always(tokenizer)))
        yield


def word_tokenizer(tasks: list[str], sizes: Mapping[str, int], family: Family) -> PreTrainedTokenizerFast:
    """Returns a lower-case word-level tokenizer of the words in `tasks`. Any other word becomes <unk>.

    If the family reads the state, the tokenizer also has the prompt's words and numbers. If it acts in tokens, the ids
    go up to the vocabulary's end: lerobot counts action tokens from there downwards.

    Raises:
        RecipeError: the words do not fit [tiny] vocab.
    """
    split = pre_tokenizers.Whitespace()
    words = sorted({word for task in tasks for word, _ in split.pre_tokenize_str(task.lower())})
    special = ["<pad>", "<unk>"]
    if family.reads_state:
        special += ["<bos>", "<eos>", *_PROMPT]
    ids = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    if len(ids) > sizes["vocab"]:
        raise RecipeError(
            f"the dataset's instructions have {len(words)} words; set [tiny] vocab to at least {len(ids)}"
        )
    if family.acts_in_tokens:
        ids |= {f"<{number}>": number for number in range(len(ids), sizes["vocab"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    names = {name: token for name, token in _SPECIAL.items() if token in ids}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    if family.reads_state:
        wrapped.add_tokens(AddedToken("Action", single_word=True, normalized=False))  # type: ignore[arg-type]
    return wrapped


def words_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Returns how many of the first ids stand for words. The other ids are free for action tokens."""
    vocab = tokenizer.get_vocab()
    return sum(f"<{number}>" not in vocab for number in range(len(vocab)))
