"""What sets one policy family apart from another; everything else in `awr` is the same for all of them.

A family is named by a recipe's `family` and by `type` in a checkpoint's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from srpo_robot.errors import CheckpointError

# Imported when asked for: every module costs the import of a modelling file.
_WHERE = {
    "pi0": ("srpo_robot.awr.flow", "PI0"),
    "pi05": ("srpo_robot.awr.flow", "PI05"),
    "smolvla": ("srpo_robot.awr.flow", "SMOLVLA"),
    "pi0_fast": ("srpo_robot.awr.fast", "PI0_FAST"),
}


def _fine(config: Any) -> None:
    return None


def _none(config: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One policy family.

    Attributes:
        name: as in recipes and in config.json.
        config: lerobot's config class.
        policy: lerobot's policy class, extended by `forward(batch, options=..., action_weights=...)` -> (B,).
        processors: makes (preprocessor, postprocessor) of (config, statistics).
        lora_targets: default LoRA targets, a regular expression over module names.
        downloads: Hub ids of what lerobot fetches to build it, the most likely to be missing first.
        prompt: what the policy reads, with {task} and {state} (numbers from -1 to 255).
        expert_width: whether a tiny build has a width for an action expert beside that of its language model.
        acts_in_tokens: whether an action chunk is a sequence of tokens, with a tokenizer of its own.
        token_modules: lerobot's modules that ask transformers for tokenizers by name.
        check: raises RecipeError where a setting of the config cannot work.
        processor_overrides: what lerobot forgets to save with a preprocessor, by step name.
        loaded: settings that differ where all weights come from a checkpoint.
    """

    name: str
    config: type[Any]
    policy: type[Any]
    processors: Callable[[Any, dict[str, Any]], tuple[Any, Any]]
    lora_targets: str
    downloads: tuple[str, ...]
    prompt: str = "{task}\n"
    expert_width: bool = True
    acts_in_tokens: bool = False
    token_modules: tuple[ModuleType, ...] = ()
    check: Callable[[Any], None] = _fine
    processor_overrides: Callable[[Any], Mapping[str, Any]] = _none
    loaded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_state(self) -> bool:
        """Whether the state is part of the prompt, in 256 bins."""
        return "{state}" in self.prompt


def family(name: str) -> Family:
    """The family of a recipe or a checkpoint.

    Raises:
        CheckpointError: this version has none of that name; the message lists those it has.
    """
    if name not in _WHERE:
        raise CheckpointError(f"there is no policy family {name!r} here; there are {', '.join(sorted(_WHERE))}")
    module, constant = _WHERE[name]
    return getattr(import_module(module), constant)
