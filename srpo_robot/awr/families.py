"""The differences between policy families. Everything else in `awr` is the same for all of them.

A recipe's `family`, and `type` in a checkpoint's config.json, hold a family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from srpo_robot.errors import CheckpointError

# Imported on demand, because each module imports a large modelling file.
_MODULES = {
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
        name: name in recipes and in config.json.
        config: lerobot's config class.
        policy: lerobot's policy class, extended by `forward(batch, options=..., action_weights=...)` -> (B,).
        processors: function (config, statistics) -> (preprocessor, postprocessor).
        lora_targets: default LoRA targets, a regular expression over module names.
        downloads: Hub ids that lerobot fetches to build the policy, the most likely to be missing first.
        prompt: the policy's prompt, with {task} and {state} (numbers from -1 to 255).
        expert_width: whether a tiny build has a width for an action expert beside the width of its language model.
        acts_in_tokens: whether an action chunk is a sequence of tokens, with its own tokenizer.
        token_modules: lerobot's modules that load tokenizers from transformers by name.
        check: raises RecipeError if a setting of the config cannot work.
        processor_overrides: settings of a preprocessor that lerobot does not save, by step name.
        loaded: settings that differ if all weights come from a checkpoint.
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
        """Whether the prompt contains the state, in 256 bins."""
        return "{state}" in self.prompt


def family(name: str) -> Family:
    """Returns the family of that name.

    Raises:
        CheckpointError: this version has no such family. The message lists the families it has.
    """
    if name not in _MODULES:
        raise CheckpointError(f"there is no policy family {name!r} here; there are {', '.join(sorted(_MODULES))}")
    module, constant = _MODULES[name]
    return getattr(import_module(module), constant)
