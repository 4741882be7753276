"""LoRA through peft: only adapters train, and a checkpoint is a plain policy with the adapters merged in."""

from __future__ import annotations

import re
from typing import Any

import torch

from srpo_robot.awr.families import family
from srpo_robot.errors import RecipeError, one_line
from srpo_robot.recipes import PolicyRecipe


def lora_targets(name: str) -> str:
    """Returns the layers that LoRA adapts by default in a family, as a regular expression over module names.

    They are the query and value projections of the action expert, and the layers into and out of it.
    """
    return family(name).lora_targets


def apply_lora(policy: Any, recipe: PolicyRecipe) -> Any:
    """Wraps `policy` with peft so that only adapters train. Without `lora_rank` in the recipe, returns it unchanged.

    The adapters start as the identity; `recipe.seed` draws their random part. A checkpoint of a wrapped policy holds
    merged weights (`plain_policy`). It is complete, is checked like any other, and needs neither peft nor the base.

    Raises:
        RecipeError: `lora_targets` is not a regular expression, or matches no layer of the policy.
    """
    if not recipe.lora_rank:
        return policy
    from peft import LoraConfig, get_peft_model

    targets = recipe.lora_targets or lora_targets(recipe.family)
    settings = LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank)
    settings.target_modules = targets
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return get_peft_model(policy, settings)
    except (re.error, ValueError) as error:
        raise RecipeError(f"recipe {recipe.name}: lora_targets {targets!r}: {one_line(error)[:200]}") from None


def plain_policy(policy: Any) -> tuple[Any, dict[str, torch.Tensor] | None]:
    """Returns the policy without peft's wrapper, and the state dict to save for it (None: its own).

    The adapters are added to copies of their layers, so that the weights in training stay exact, also in bfloat16.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if not isinstance(policy, PeftModel):
        return policy, None
    inner: Any = policy.get_base_model()
    state = {name.replace(".base_layer.", "."): t for name, t in inner.state_dict().items() if ".lora_" not in name}
    for name, module in inner.named_modules():
        if isinstance(module, LoraLayer):
            weight = state[f"{name}.weight"]
            change: torch.Tensor = module.get_delta_weight("default")  # type: ignore[operator]
            state[f"{name}.weight"] = (weight.detach() + change.detach().to(weight.device)).to(weight.dtype)
    return inner, state
