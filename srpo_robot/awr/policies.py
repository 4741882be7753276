"""Policies: lerobot's pi0 from a recipe, and checkpoints that load whole or not at all.

lerobot's own `from_pretrained` returns random weights where loading fails, so every load here goes through one checked
path. Tiny policies are the same PI0Policy: the sizes that lerobot hard-codes are patched while it is being built.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from srpo_robot.awr.normalisation import normalisation_stats
from srpo_robot.awr.tiny import architecture, check_sizes, initialise, word_tokenizer
from srpo_robot.buffer.episodes import Buffer, quiet_lerobot
from srpo_robot.errors import CheckpointError, DatasetError, RecipeError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot.policies.pi0 import processor_pi0  # noqa: E402
from lerobot.policies.pi0.configuration_pi0 import PI0Config  # noqa: E402
from lerobot.policies.pi0.modeling_pi0 import PI0Policy  # noqa: E402
from lerobot.processor import TokenizerProcessorStep  # noqa: E402
from lerobot.utils.constants import ACTION, OBS_STATE  # noqa: E402
from lerobot.utils.feature_utils import dataset_to_policy_features  # noqa: E402

RECORD = "srpo.json"
TOKENIZER = "tokenizer"
WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
GATED = "google/paligemma-3b-pt-224"
# These follow from the recipe, the dataset or the machine; in `config` they would contradict them.
_DERIVED = ("input_features", "output_features", "action_feature_names", "device", "pretrained_path", "push_to_hub")


# --- building -----------------------------------------------------------------------------------------------------


def build_policy(
    recipe: PolicyRecipe, buffer: Buffer, device: str | torch.device = "cpu"
) -> tuple[PI0Policy, Any, Any]:
    """The policy that `recipe` describes, for the cameras, state and action of `buffer`.

    Fresh weights depend on `recipe.seed` alone; with `recipe.base` they are that checkpoint's. Normalisation
    statistics are always the dataset's.

    Returns:
        policy: lerobot's PI0Policy on `device`, in training mode.
        preprocessor: batch of a `TrainingSet`, or one observation -> what the policy takes.
        postprocessor: the policy's action chunk (B, H, A) -> absolute actions in the dataset's units. Relative actions
            are added to the state that the preprocessor saw last, so take a whole chunk through it at once.

    Raises:
        DatasetError: no camera, no state or no action in the dataset.
        RecipeError: a setting is unknown, or does not fit the dataset.
        CheckpointError: the base is incomplete or does not match.
    """
    check_columns(buffer)
    base = checkpoint_folder(recipe.base) if recipe.base else None
    sizes = tiny_sizes(recipe, base)
    config = _configure(recipe, buffer, base, str(device))
    if sizes:
        check_sizes(sizes, config)
    tokenizer = _tokenizer(base, sizes, [str(task) for task in buffer.meta.tasks.index])
    preprocessor, postprocessor = _make_processors(config, normalisation_stats(buffer, config), tokenizer)
    _check_instructions(preprocessor, buffer)
    policy = _construct(config, sizes, recipe.seed)
    if base is not None:
        load_weights(policy, base / WEIGHTS)
    elif sizes:
        initialise(policy, recipe.seed)
    return policy.to(device), preprocessor, postprocessor


def check_columns(buffer: Buffer) -> None:
    """Raise DatasetError where `buffer` lacks what a policy learns from; it names what is missing."""
    missing = [key for key in (ACTION, OBS_STATE) if key not in buffer.meta.features]
    missing += [] if buffer.cameras else ["observation.images.*"]
    if missing:
        raise DatasetError(
            f"{buffer.root.name} has no {' and no '.join(missing)}; a policy learns from cameras, observation.state "
            "and action: record with 'srpo-robot record', or use a dataset that has them (scoring needs only cameras)"
        )


def tiny_sizes(recipe: PolicyRecipe, base: Path | None) -> dict[str, int]:
    """The sizes to patch in: the recipe's, or those that its base was built with; {} for lerobot's own."""
    if base is None:
        return dict(recipe.tiny)
    if recipe.tiny:
        raise RecipeError(f"recipe {recipe.name} has both base and [tiny]; the base has its sizes already, drop [tiny]")
    return dict(read_record(base).get("tiny", {}))


def executed_steps(recipe: PolicyRecipe) -> int:
    """How many actions of a chunk are executed: n_action_steps by the recipe, else its base, else lerobot's default."""
    if "n_action_steps" in recipe.config:
        return int(recipe.config["n_action_steps"])
    config = _saved_config(checkpoint_folder(recipe.base), "cpu") if recipe.base else PI0Config()
    return config.n_action_steps


def weights_dtype(recipe: PolicyRecipe) -> str:
    """ "float32" or "bfloat16": what the policy's weights are, by the recipe or else by its base."""
    if "dtype" in recipe.config or not recipe.base:
        return str(recipe.config.get("dtype", "float32"))
    return _saved_config(checkpoint_folder(recipe.base), "cpu").dtype


def _configure(recipe: PolicyRecipe, buffer: Buffer, base: Path | None, device: str) -> PI0Config:
    known = [field.name for field in fields(PI0Config)]
    for key in recipe.config:
        if key in _DERIVED or key.startswith(("optimizer_", "scheduler_")):
            raise RecipeError(
                f"recipe {recipe.name}: config.{key} is not set there; it follows from the recipe or dataset"
            )
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"recipe {recipe.name}: pi0 has no setting {key!r}{hint}")
    values: dict[str, Any] = {} if base is None else draccus.encode(_saved_config(base, device))
    values |= recipe.config | {
        "device": device,
        "push_to_hub": False,
        "optimizer_lr": recipe.learning_rate,
        "optimizer_weight_decay": recipe.weight_decay,
        "optimizer_grad_clip_norm": recipe.grad_clip_norm,
        "scheduler_warmup_steps": recipe.warmup_steps,
        "scheduler_decay_steps": recipe.steps,
        "scheduler_decay_lr": recipe.final_learning_rate,
    }
    try:
        config = draccus.decode(PI0Config, values)
    except (draccus.utils.DraccusException, ValueError, TypeError) as error:
        raise RecipeError(f"recipe {recipe.name}: {one_line(error.__cause__ or error)}") from None
    _set_features(config, recipe, buffer)
    return config


def _set_features(config: PI0Config, recipe: PolicyRecipe, buffer: Buffer) -> None:
    features = dataset_to_policy_features(buffer.meta.features)
    config.input_features = {key: f for key, f in features.items() if f.type is not FeatureType.ACTION}
    config.output_features = {ACTION: features[ACTION]}
    config.action_feature_names = list(_names(buffer, ACTION)) or None
    for key, limit, name in (
        (OBS_STATE, config.max_state_dim, "max_state_dim"),
        (ACTION, config.max_action_dim, "max_action_dim"),
    ):
        width = features[key].shape[0]
        if width > limit:
            raise RecipeError(f"recipe {recipe.name}: {key} has {width} values; set config.{name} to at least {width}")
    if config.use_relative_actions:
        _check_relative(config, recipe, buffer)


def _check_relative(config: PI0Config, recipe: PolicyRecipe, buffer: Buffer) -> None:
    actions, states = _names(buffer, ACTION), _names(buffer, OBS_STATE)
    if not actions or states[: len(actions)] != actions:
        raise RecipeError(
            f"recipe {recipe.name} has use_relative_actions, which needs observation.state to begin with the action's "
            f"names; they are {', '.join(actions) or 'unnamed'} and {', '.join(states) or 'unnamed'}: set it to false"
        )
    if config.normalization_mapping["ACTION"] not in (NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX):
        raise RecipeError(f"recipe {recipe.name}: relative actions take ACTION = 'MEAN_STD' or 'MIN_MAX'")


def _names(buffer: Buffer, key: str) -> tuple[str, ...]:
    """Names of a vector's values; () where the dataset has none. Some datasets nest them: {"motors": [...]}."""
    names = buffer.meta.features[key].get("names") or ()
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list | tuple) for name in group]
    return tuple(str(name) for name in names)


def _construct(config: PI0Config, sizes: Mapping[str, int], seed: int) -> PI0Policy:
    with torch.random.fork_rng(devices=[]), architecture(sizes):
        torch.manual_seed(seed)
        return PI0Policy(config)


# --- processors and tokenizer -------------------------------------------------------------------------------------


def _tokenizer(base: Path | None, sizes: Mapping[str, int], tasks: list[str]) -> PreTrainedTokenizerFast | None:
    """The policy's own tokenizer, or None for lerobot's (full size)."""
    if base is not None:
        return _saved_tokenizer(base)
    return word_tokenizer(tasks, sizes["vocab"]) if sizes else None


def _make_processors(
    config: PI0Config, stats: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None
) -> tuple[Any, Any]:
    original = processor_pi0.TokenizerProcessorStep

    def with_tokenizer(tokenizer_name: str, **options: Any) -> TokenizerProcessorStep:
        # lerobot hard-codes the name. Padding to the batch's longest instruction: the same result with fewer tokens.
        return original(tokenizer=tokenizer, **options | {"padding": "longest"})

    processor_pi0.TokenizerProcessorStep = original if tokenizer is None else with_tokenizer
    try:
        return processor_pi0.make_pi0_pre_post_processors(config, stats)
    except OSError as error:
        raise _gated(error) from None
    finally:
        processor_pi0.TokenizerProcessorStep = original


def _gated(error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer {GATED} cannot be loaded ({one_line(error)[:120]}); it is gated: accept its licence at "
        f"https://huggingface.co/{GATED} and run 'hf auth login', or train --policy pi0-tiny, which needs no download"
    )


def _check_instructions(preprocessor: Any, buffer: Buffer) -> None:
    """lerobot cuts a long instruction silently; two tasks could then read alike."""
    step = tokenizer_step(preprocessor)
    for task in buffer.meta.tasks.index:
        length = len(step.input_tokenizer(f"{task}\n")["input_ids"])
        if length > step.max_length:
            raise RecipeError(
                f"the instruction {task!r} has {length} tokens; set config.tokenizer_max_length to {length}"
            )


def tokenizer_step(preprocessor: Any) -> TokenizerProcessorStep:
    """The step of `preprocessor` that turns the instruction into tokens."""
    return next(step for step in preprocessor.steps if isinstance(step, TokenizerProcessorStep))


# --- checkpoints --------------------------------------------------------------------------------------------------


def load_policy(
    checkpoint: str | Path, device: str | torch.device = "cpu"
) -> tuple[PI0Policy, Any, Any, dict[str, Any]]:
    """The policy of a checkpoint, ready to act.

    Args:
        checkpoint: a `pretrained_model` folder, a checkpoint's folder (`checkpoints/000100`), a run's output folder
            (its last checkpoint is taken), or a Hub id.
        device: where it runs.

    Returns:
        policy (in evaluation mode), preprocessor, postprocessor as `build_policy`, and the checkpoint's srpo.json: how
        it was made ({} where another trainer made it).

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not exactly those of the configuration.
    """
    folder = checkpoint_folder(checkpoint)
    _require(folder, *PROCESSORS)
    record = read_record(folder)
    config = _saved_config(folder, str(device))
    policy = _construct(config, record.get("tiny", {}), seed=0)
    load_weights(policy, folder / WEIGHTS)
    preprocessor, postprocessor = _saved_processors(folder, config)
    return policy.to(device).eval(), preprocessor, postprocessor, record


def load_weights(policy: PI0Policy, path: Path) -> None:
    """Copy the weights of a safetensors file into `policy`, which must have exactly the same names and shapes.

    Raises:
        CheckpointError: unreadable, or names or shapes differ; the policy is then unchanged.
    """
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error)}); copy or download the checkpoint again"
        ) from None
    loaded = _current_names(loaded)
    own = policy.state_dict()
    missing, unexpected = sorted(own.keys() - loaded.keys()), sorted(loaded.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not hold this policy's weights: {len(missing)} missing"
            f"{_first(missing)}, {len(unexpected)} unknown{_first(unexpected)}; it belongs to another config.json"
        )
    for name, tensor in own.items():
        if tensor.shape != loaded[name].shape:
            raise CheckpointError(
                f"{path}: {name} is {tuple(loaded[name].shape)} and the configuration asks for {tuple(tensor.shape)}; "
                "use the sizes that the checkpoint was trained with"
            )
    policy.load_state_dict(loaded)


def _first(names: list[str]) -> str:
    return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""


def _current_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """openpi's names to lerobot 0.6's, as PI0Policy._fix_pytorch_state_dict_keys does, without its warnings."""
    renamed = {}
    for name, tensor in weights.items():
        name = name if name.startswith("model.") else f"model.{name}"
        renamed[name.replace("model.time_mlp_", "model.action_time_mlp_", 1)] = tensor
    stem = "model.paligemma_with_expert.paligemma."
    head, embedding = f"{stem}lm_head.weight", f"{stem}model.language_model.embed_tokens.weight"
    if head in renamed and embedding not in renamed:  # openpi ties them and stores one
        renamed[embedding] = renamed[head].clone()
    return renamed


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The folder that holds config.json and model.safetensors of `checkpoint` (see `load_policy`).

    Raises:
        CheckpointError: no such folder or Hub repository, or a file is missing.
    """
    root = Path(checkpoint)
    if root.is_dir():
        folder = _inside(root)
    elif str(checkpoint).count("/") == 1 and not str(checkpoint).startswith((".", "/", "~")):
        folder = _from_hub(str(checkpoint))
    else:
        raise CheckpointError(
            f"there is no checkpoint {checkpoint}; give a run's output folder or a Hub id (user/name)"
        )
    _require(folder, "config.json", WEIGHTS)
    return folder


def _inside(root: Path) -> Path:
    places = (root, root / "pretrained_model", root / "checkpoints" / "last" / "pretrained_model")
    for place in places:
        if (place / "config.json").is_file() or (place / WEIGHTS).is_file():
            return place
    raise CheckpointError(
        f"{root} holds no checkpoint: no config.json there, in pretrained_model/ or checkpoints/last/"
    )


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", f"{TOKENIZER}/*"]))
    except Exception as error:  # the Hub client raises dozens of kinds
        why = one_line(error)[:160]
        raise CheckpointError(f"{hub_id} is no folder here and cannot be had from the Hub ({why})") from None


def _require(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {' and no '.join(missing)}; it is incomplete: copy or download it again"
        )


def _saved_config(folder: Path, device: str) -> PI0Config:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = values.get("type")
        if kind != "pi0":
            raise CheckpointError(f"{folder} holds a {kind!r} policy; this version runs 'pi0'")
        config = draccus.decode(PreTrainedConfig, values | {"device": device})
    except (draccus.utils.DraccusException, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {one_line(error)}") from None
    assert isinstance(config, PI0Config)
    return config


def _saved_processors(folder: Path, config: PI0Config) -> tuple[Any, Any]:
    overrides: dict[str, Any] = {"device_processor": {"device": config.device}}
    tokenizer = _saved_tokenizer(folder)
    if tokenizer is not None:
        overrides["tokenizer_processor"] = {"tokenizer": tokenizer}
    try:
        return make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    except Exception as error:  # lerobot wraps whatever a step raises
        if GATED in str(error):
            raise _gated(error) from None
        raise CheckpointError(f"{folder}: its processors cannot be loaded: {one_line(error)[:300]}") from None


def _saved_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    if not (folder / TOKENIZER).is_dir():
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / TOKENIZER} cannot be read ({one_line(error)}); copy the checkpoint again"
        ) from None


def write_record(folder: Path, preprocessor: Any, record: Mapping[str, Any]) -> None:
    """Add to a saved policy what `load_policy` needs beyond lerobot's files: srpo.json and its own tokenizer."""
    tokenizer = tokenizer_step(preprocessor).tokenizer
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / TOKENIZER)
    (folder / RECORD).write_text(json.dumps(dict(record), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The srpo.json of a checkpoint, {} where there is none (another trainer made it).

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy or download the checkpoint again") from None
