"""Processors and tokenizers of a policy: lerobot's, or its own if it is tiny or its checkpoint carries them.

lerobot cuts long instructions and long chunks silently, and hard-codes the names of its downloads. This module refuses
the first and replaces the second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from srpo_robot.awr.action_tokens import ActionTokens
from srpo_robot.awr.families import Family
from srpo_robot.awr.normalisation import normalised_chunks
from srpo_robot.awr.tiny import tokenizers_in_lerobot, word_tokenizer, words_of
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import CheckpointError, RecipeError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from lerobot.policies.factory import make_pre_post_processors  # noqa: E402  (after quiet_lerobot)
from lerobot.processor import (  # noqa: E402
    ActionTokenizerProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
)
from lerobot.utils.constants import OBS_STATE  # noqa: E402

TOKENIZER = "tokenizer"
ACTION_TOKENIZER = "action_tokenizer"
CAMERA = "observation.images."
_FITTED_ON = 4096  # number of chunks, spread over the dataset, for fitting an action tokenizer
_CHECKED = 512  # number of chunks whose tokens are counted before training
_SCALE = 10.0  # scale of FAST's coefficients, its authors' default


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """A policy's own tokenizers; None stands for lerobot's full-size one."""

    text: PreTrainedTokenizerFast | Any = None
    action: ActionTokens | Any = None


def own_tokenizers(
    kind: Family, sizes: Mapping[str, int], buffer: Buffer, config: Any, stats: dict[str, Any]
) -> Tokenizers:
    """Makes the tokenizers of a tiny policy from the dataset. Raises RecipeError if the vocabulary is too small."""
    if not sizes:
        return Tokenizers()
    text = word_tokenizer([str(task) for task in buffer.meta.tasks.index], sizes, kind)
    if not kind.acts_in_tokens:
        return Tokenizers(text)
    config.text_tokenizer_name, config.action_tokenizer_name = TOKENIZER, ACTION_TOKENIZER  # folders in a checkpoint
    words, chunks = words_of(text), normalised_chunks(buffer, config, stats, _FITTED_ON)
    try:
        action = ActionTokens.fit(chunks, _SCALE, max(sizes["vocab"] - config.fast_skip_tokens - words, 0))
    except ValueError as error:
        raise RecipeError(
            f"[tiny] vocab {sizes['vocab']} is too small for the dataset's actions ({error}, beside {words} words and "
            f"fast_skip_tokens {config.fast_skip_tokens}); make it larger"
        ) from None
    return Tokenizers(text, action)


@contextmanager
def in_lerobot(kind: Family, tokenizers: Tokenizers) -> Iterator[None]:
    """While open, lerobot builds processors and policies with `tokenizers`, although it hard-codes some names."""
    processors: Any = sys.modules[kind.processors.__module__]
    original = processors.TokenizerProcessorStep

    def with_tokenizer(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        # Padding to the batch's longest instruction gives the same result with fewer tokens.
        return original(tokenizer=tokenizers.text, **options | {"padding": "longest"})

    processors.TokenizerProcessorStep = original if tokenizers.text is None else with_tokenizer
    try:
        with tokenizers_in_lerobot(kind.token_modules, tokenizers.text, tokenizers.action):
            yield
    finally:
        processors.TokenizerProcessorStep = original


def make_processors(kind: Family, config: Any, stats: dict[str, Any]) -> tuple[Any, Any]:
    """Returns new (preprocessor, postprocessor). Raises CheckpointError if lerobot cannot fetch a tokenizer."""
    try:
        return kind.processors(config, stats)
    except OSError as error:
        raise not_had(kind, error) from None


def rename_cameras(preprocessor: Any, recipe: PolicyRecipe) -> None:
    """Sets the preprocessor's camera names by the recipe's [rename], in place."""
    step = next(step for step in preprocessor.steps if isinstance(step, RenameObservationsProcessorStep))
    step.rename_map = {f"{CAMERA}{mine}": f"{CAMERA}{theirs}" for mine, theirs in recipe.rename.items()}


def cameras_taken(policy: Any, preprocessor: Any) -> list[str]:
    """Returns the cameras that an observation must have, under their names in the training dataset."""
    step = next((step for step in preprocessor.steps if isinstance(step, RenameObservationsProcessorStep)), None)
    back = {theirs: mine for mine, theirs in (step.rename_map if step is not None else {}).items()}
    return sorted(back.get(key, key).removeprefix(CAMERA) for key in policy.config.image_features)


def not_had(kind: Family, error: BaseException) -> CheckpointError:
    """Returns the error for a download that failed; it says how to get the file."""
    what = next((name for name in kind.downloads if name in str(error)), kind.downloads[0])
    hint = f"fetch it once with 'hf download {what}'"
    if what.startswith("google/"):
        hint = f"it is gated: accept its licence at https://huggingface.co/{what} and run 'hf auth login'"
    return CheckpointError(
        f"{what}, which {kind.name} needs, cannot be loaded ({one_line(error)[:120]}); {hint}, or train a tiny policy "
        "(--policy pi0-tiny or pi0-fast-tiny), which needs no download"
    )


def check_instructions(kind: Family, preprocessor: Any, buffer: Buffer) -> None:
    """Raises RecipeError if an instruction is too long: lerobot cuts it silently, and two tasks could become one."""
    step = tokenizer_step(preprocessor)
    state = " ".join(["255"] * buffer.meta.features[OBS_STATE]["shape"][0])
    for task in buffer.meta.tasks.index:
        length = len(step.input_tokenizer(kind.prompt.format(task=task, state=state))["input_ids"])
        if length > step.max_length:
            raise RecipeError(
                f"the instruction {task!r} has {length} tokens; set config.tokenizer_max_length to {length}"
            )


def check_chunks(preprocessor: Any, buffer: Buffer, config: Any, stats: dict[str, Any]) -> None:
    """Raises RecipeError if a chunk has too many tokens. lerobot would cut it, and the rest could not be decoded."""
    step = next((step for step in preprocessor.steps if isinstance(step, ActionTokenizerProcessorStep)), None)
    if step is None:
        return
    around = len(step._paligemma_tokenizer.encode("Action: ", add_special_tokens=False))
    around += 1 + len(step._paligemma_tokenizer.encode("|"))
    chunks = normalised_chunks(buffer, config, stats, _CHECKED)
    longest = around + max(len(step.action_tokenizer(chunk[None])[0]) for chunk in chunks)
    if longest > step.max_action_tokens:
        raise RecipeError(
            f"the actions of a chunk take up to {longest} tokens; set config.max_action_tokens and max_decoding_steps "
            f"to {longest * 5 // 4}, or chunk_size lower"
        )


def tokenizer_step(preprocessor: Any) -> TokenizerProcessorStep:
    """Returns the step of `preprocessor` that turns the instruction into tokens."""
    return next(step for step in preprocessor.steps if isinstance(step, TokenizerProcessorStep))


def saved_processors(kind: Family, folder: Path, config: Any, tokenizers: Tokenizers) -> tuple[Any, Any]:
    """Loads (preprocessor, postprocessor) of a checkpoint. Raises CheckpointError if that fails."""
    overrides: dict[str, Any] = {"device_processor": {"device": config.device}, **kind.processor_overrides(config)}
    if tokenizers.text is not None:
        overrides["tokenizer_processor"] = {"tokenizer": tokenizers.text}
    try:
        return make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    except Exception as error:  # lerobot wraps the error of a step in its own
        if any(name in str(error) for name in kind.downloads):
            raise not_had(kind, error) from None
        raise CheckpointError(f"{folder}: its processors cannot be loaded: {one_line(error)[:300]}") from None


def saved_tokenizers(folder: Path) -> Tokenizers:
    """Loads the tokenizers that a checkpoint carries. Raises CheckpointError if one cannot be read."""
    return Tokenizers(
        _read_tokenizer(PreTrainedTokenizerFast, folder / TOKENIZER),
        _read_tokenizer(ActionTokens, folder / ACTION_TOKENIZER),
    )


def _read_tokenizer(kind: type[Any], folder: Path) -> Any:
    """Loads the tokenizer of a folder; None if there is no such folder."""
    if not folder.is_dir():
        return None
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be read ({one_line(error)}); copy the checkpoint again") from None


def write_tokenizers(folder: Path, preprocessor: Any) -> None:
    """Writes a policy's own tokenizers into its checkpoint."""
    text = tokenizer_step(preprocessor).tokenizer
    if text is not None:
        text.save_pretrained(folder / TOKENIZER)
    for step in preprocessor.steps:
        if isinstance(step, ActionTokenizerProcessorStep) and isinstance(step.action_tokenizer, ActionTokens):
            step.action_tokenizer.save_pretrained(folder / ACTION_TOKENIZER)
