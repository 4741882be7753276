"""Builds lerobot's policies from recipes, and loads checkpoints completely or not at all.

lerobot's `from_pretrained` returns random weights if loading fails, so every load here goes through one checked path.
Tiny policies are of the same classes: the sizes that lerobot hard-codes are patched while one is being built. The
differences between families are in `families`.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Collection, Mapping, Set
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from srpo_robot.awr.checkpoint_files import PROCESSORS, checkpoint_folder, require_files
from srpo_robot.awr.checkpoint_files import WEIGHTS as WEIGHTS
from srpo_robot.awr.checks import check_features
from srpo_robot.awr.families import Family, family
from srpo_robot.awr.lora import apply_lora as apply_lora
from srpo_robot.awr.lora import lora_targets as lora_targets
from srpo_robot.awr.lora import plain_policy as plain_policy
from srpo_robot.awr.normalisation import normalisation_stats, relative_actions
from srpo_robot.awr.processors import (
    CAMERA,
    Tokenizers,
    check_chunks,
    check_instructions,
    in_lerobot,
    make_processors,
    not_had,
    own_tokenizers,
    rename_cameras,
    saved_processors,
    saved_tokenizers,
    write_tokenizers,
)
from srpo_robot.awr.processors import TOKENIZER as TOKENIZER
from srpo_robot.awr.processors import cameras_taken as cameras_taken
from srpo_robot.awr.tiny import architecture, check_sizes, image_px, initialise
from srpo_robot.awr.weighting import Chunk
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import quiet_lerobot
from srpo_robot.errors import CheckpointError, RecipeError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from lerobot.configs import FeatureType, PreTrainedConfig  # noqa: E402  (after quiet_lerobot)
from lerobot.utils.constants import ACTION, OBS_STATE  # noqa: E402
from lerobot.utils.feature_utils import dataset_to_policy_features  # noqa: E402

RECORD = "srpo.json"
# These follow from the recipe, the dataset or the machine, so `config` may not set them.
_DERIVED = ("input_features", "output_features", "action_feature_names", "device", "pretrained_path", "push_to_hub")


# --- building -----------------------------------------------------------------------------------------------------


def build_policy(recipe: PolicyRecipe, buffer: Buffer, device: str | torch.device = "cpu") -> tuple[Any, Any, Any]:
    """Builds the policy that `recipe` describes, for the cameras, state and action of `buffer`.

    Fresh weights depend on `recipe.seed` alone. With `recipe.base`, the weights are that checkpoint's. Normalisation
    statistics always come from the dataset.

    Returns:
        policy: lerobot's class with a per-sample forward (`losses.per_sample_loss`), on `device`, in training mode.
        preprocessor: turns a batch of a `TrainingSet`, or one observation, into the policy's input.
        postprocessor: turns the policy's action chunk (B, H, A) into absolute actions in the dataset's units. Relative
            actions are added to the state that the preprocessor saw last, so pass a whole chunk through it at once.

    Raises:
        DatasetError: the dataset has no camera, no state or no action.
        RecipeError: a setting is unknown, or does not fit the dataset.
        CheckpointError: the base is incomplete or does not match.
    """
    check_features(buffer.root.name, buffer.meta.features)
    kind = family(recipe.family)
    base = checkpoint_folder(recipe.base) if recipe.base else None
    sizes = tiny_sizes(recipe, base)
    config = configure(kind, recipe, buffer, base, str(device))
    if sizes:
        check_sizes(sizes, config, kind)
    stats = normalisation_stats(buffer, config)
    tokenizers = saved_tokenizers(base) if base is not None else own_tokenizers(kind, sizes, buffer, config, stats)
    with in_lerobot(kind, tokenizers):
        preprocessor, postprocessor = make_processors(kind, config, stats)
        rename_cameras(preprocessor, recipe)
        check_instructions(kind, preprocessor, buffer)
        check_chunks(preprocessor, buffer, config, stats)
        policy = _construct(kind, config, sizes, recipe.seed)
    if base is not None:
        load_weights(policy, base / WEIGHTS)
    elif sizes:
        initialise(policy, recipe.seed)
    return policy.to(device), preprocessor, postprocessor


def outline(recipe: PolicyRecipe, buffer: Buffer) -> Any:
    """Returns the policy of `recipe` without its weights: names, shapes and dtypes, and which parameters train.

    Raises:
        SrpoRobotError: as `build_policy`.
    """
    check_features(buffer.root.name, buffer.meta.features)
    kind = family(recipe.family)
    base = checkpoint_folder(recipe.base) if recipe.base else None
    config = configure(kind, recipe, buffer, base, "cpu")
    sizes = tiny_sizes(recipe, base)
    if sizes:
        check_sizes(sizes, config, kind)
    config.device = "meta"  # lerobot moves the model there
    with torch.device("meta"):
        return apply_lora(_construct(kind, config, sizes, recipe.seed), recipe)


def tiny_sizes(recipe: PolicyRecipe, base: Path | None) -> dict[str, int]:
    """Returns the sizes to patch in: the recipe's, or the base's. {} keeps lerobot's own."""
    if base is None:
        return dict(recipe.tiny)
    if recipe.tiny:
        raise RecipeError(f"recipe {recipe.name} has both base and [tiny]; the base has its sizes already, drop [tiny]")
    return dict(read_record(base).get("tiny", {}))


def chunk_of(recipe: PolicyRecipe, needed: Collection[str] = ("chunk_size", "n_action_steps")) -> Chunk:
    """Returns the sizes of the policy's action chunk: by the recipe, otherwise by its base or lerobot's default.

    Args:
        needed: the sizes that the caller uses. The base, which may be on the Hub, is opened only for these. A size that
            is neither needed nor in the recipe is 0.

    Raises:
        CheckpointError: the base is incomplete or cannot be read.
    """
    sizes = {key: int(recipe.config.get(key, 0)) for key in ("chunk_size", "n_action_steps")}
    missing = [key for key in needed if key not in recipe.config]
    if missing:
        base = checkpoint_folder(recipe.base) if recipe.base else None
        config: Any = family(recipe.family).config() if base is None else _saved_config(base, "cpu")
        sizes |= {key: int(getattr(config, key)) for key in missing}
    return Chunk(sizes["chunk_size"], sizes["n_action_steps"])


def weights_dtype(recipe: PolicyRecipe) -> str:
    """Returns the dtype of the policy's weights, "float32" or "bfloat16": the recipe's, otherwise its base's."""
    if "dtype" in recipe.config or not recipe.base:
        return str(recipe.config.get("dtype", "float32"))
    return getattr(_saved_config(checkpoint_folder(recipe.base), "cpu"), "dtype", "float32")


def configure(kind: Family, recipe: PolicyRecipe, buffer: Buffer, base: Path | None, device: str) -> Any:
    """Returns lerobot's config of the policy, with the features of `buffer`; `base` is the base's checkpoint folder.

    Raises:
        RecipeError: a setting is unknown, contradicts the recipe, or does not fit the dataset.
        CheckpointError: the base's config cannot be read.
    """
    settings = [field.name for field in fields(kind.config)]
    for key in recipe.config:
        if key in _DERIVED or key.startswith(("optimizer_", "scheduler_")):
            raise RecipeError(
                f"recipe {recipe.name}: config.{key} is not set there; it follows from the recipe or dataset"
            )
        if key not in settings:
            close = difflib.get_close_matches(key, settings, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"recipe {recipe.name}: {kind.name} has no setting {key!r}{hint}")
    saved = None if base is None else _saved_config(base, device)
    if saved is not None and saved.type != kind.name:
        raise RecipeError(f"recipe {recipe.name} is of family {kind.name!r} and its base holds a {saved.type!r} policy")
    values: dict[str, Any] = {} if saved is None else draccus.encode(saved)
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
        config: Any = draccus.decode(kind.config, values)
    except (draccus.utils.DraccusException, ValueError, TypeError) as error:
        raise RecipeError(f"recipe {recipe.name}: {one_line(error.__cause__ or error)}") from None
    try:
        kind.check(config)
    except RecipeError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from None
    if recipe.action_weights and kind.acts_in_tokens:
        raise RecipeError(
            f"recipe {recipe.name}: {kind.name} acts in tokens of whole chunks, so no action has a loss of its own; "
            "set action_weights = false"
        )
    _set_features(config, recipe, buffer, [] if saved is None else list(saved.image_features))
    return config


def _set_features(config: Any, recipe: PolicyRecipe, buffer: Buffer, expected: list[str]) -> None:
    features = dataset_to_policy_features(buffer.meta.features)
    inputs = {key: f for key, f in features.items() if f.type is not FeatureType.ACTION}
    config.input_features = _renamed(inputs, recipe, buffer, expected)
    config.output_features = {ACTION: features[ACTION]}
    if hasattr(config, "action_feature_names"):
        config.action_feature_names = list(_names(buffer, ACTION)) or None
    for key, limit, name in (
        (OBS_STATE, config.max_state_dim, "max_state_dim"),
        (ACTION, config.max_action_dim, "max_action_dim"),
    ):
        width = features[key].shape[0]
        if width > limit:
            raise RecipeError(f"recipe {recipe.name}: {key} has {width} values; set config.{name} to at least {width}")
    if relative_actions(config):
        _check_relative(recipe, buffer)


def _renamed(inputs: dict[str, Any], recipe: PolicyRecipe, buffer: Buffer, expected: list[str]) -> dict[str, Any]:
    """Returns the input features under the policy's names, with the cameras in the base's order.

    As in lerobot, the dataset may lack cameras of the base (they are left out, as if masked) or have additional ones,
    but not both.
    """
    names = {f"{CAMERA}{mine}": f"{CAMERA}{theirs}" for mine, theirs in recipe.rename.items()}
    renamed = {names.get(key, key): feature for key, feature in inputs.items()}
    unknown = sorted(names.keys() - set(buffer.cameras))
    if unknown or len(renamed) < len(inputs):
        raise RecipeError(
            f"recipe {recipe.name}: [rename] takes the dataset's cameras ({_short(buffer.cameras)}) to different names "
            f"of the policy's; it has {', '.join(f'{a} = {b!r}' for a, b in recipe.rename.items())}"
        )
    mine = [names.get(key, key) for key in buffer.cameras]
    if expected and not (set(mine) <= set(expected) or set(expected) <= set(mine)):
        raise RecipeError(
            f"recipe {recipe.name}: its base was trained with cameras {_short(expected)} and {buffer.root.name} has "
            f"{_short(mine)}; say which is which under [rename], for example "
            f'{_short([min(set(mine) - set(expected))])} = "{_short(expected[:1])}"'
        )
    order = [*expected, *mine]
    cameras = {key: renamed[key] for key in sorted(mine, key=order.index)}
    return cameras | {key: feature for key, feature in renamed.items() if key not in cameras}


def _short(cameras: Any) -> str:
    return ", ".join(camera.removeprefix(CAMERA) for camera in cameras)


def _check_relative(recipe: PolicyRecipe, buffer: Buffer) -> None:
    actions, states = _names(buffer, ACTION), _names(buffer, OBS_STATE)
    if not actions or states[: len(actions)] != actions:
        raise RecipeError(
            f"recipe {recipe.name} has use_relative_actions, which needs observation.state to begin with the action's "
            f"names; they are {', '.join(actions) or 'unnamed'} and {', '.join(states) or 'unnamed'}: set it to false"
        )


def _names(buffer: Buffer, key: str) -> tuple[str, ...]:
    """Names of a vector's values, () if the dataset has none. Some datasets nest them: {"motors": [...]}."""
    names = buffer.meta.features[key].get("names") or ()
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list | tuple) for name in group]
    return tuple(str(name) for name in names)


def _construct(kind: Family, config: Any, sizes: Mapping[str, int], seed: int) -> Any:
    """Returns the policy with fresh weights. On the device "meta" it has neither weights nor tokenizers."""
    silent = redirect_stdout(io.StringIO())  # SmolVLA prints its number of layers
    needed = in_lerobot(kind, Tokenizers(object(), object())) if config.device == "meta" else nullcontext()
    with silent, needed, torch.random.fork_rng(devices=[]), architecture(sizes, image_px(config)):
        torch.manual_seed(seed)
        try:
            return kind.policy(config)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "tokenizer" not in str(error):
                raise
            raise not_had(kind, error.__cause__ or error) from None


# --- checkpoints --------------------------------------------------------------------------------------------------


def load_policy(checkpoint: str | Path, device: str | torch.device = "cpu") -> tuple[Any, Any, Any, dict[str, Any]]:
    """Loads the policy of a checkpoint, ready to act.

    Args:
        checkpoint: a `pretrained_model` folder, a checkpoint's folder (`checkpoints/000100`), a run's output folder
            (for its last checkpoint), or a Hub id.
        device: device of the policy.

    Returns:
        policy (in evaluation mode), preprocessor and postprocessor as `build_policy`, and the content of the
        checkpoint's srpo.json ({} if another trainer made it).

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not match the configuration exactly.
    """
    folder = checkpoint_folder(checkpoint)
    require_files(folder, *PROCESSORS)
    record = read_record(folder)
    config = _saved_config(folder, str(device))
    kind, tokenizers = family(config.type), saved_tokenizers(folder)
    try:
        kind.check(config)
    except RecipeError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    with in_lerobot(kind, tokenizers):
        policy = _construct(kind, config, record.get("tiny", {}), seed=0)
        preprocessor, postprocessor = saved_processors(kind, folder, config, tokenizers)
    load_weights(policy, folder / WEIGHTS)
    return policy.to(device).eval(), preprocessor, postprocessor, record


def load_weights(policy: nn.Module, path: Path) -> None:
    """Copies the weights of a safetensors file into `policy`, which must have exactly the same names and shapes.

    Raises:
        CheckpointError: the file is unreadable, or names or shapes differ. The policy is then unchanged.
    """
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({one_line(error)}); copy or download the checkpoint again"
        ) from None
    state = policy.state_dict()
    loaded = _current_names(loaded, state.keys())
    missing, unexpected = sorted(state.keys() - loaded.keys()), sorted(loaded.keys() - state.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not hold this policy's weights: {len(missing)} missing"
            f"{_first(missing)}, {len(unexpected)} unknown{_first(unexpected)}; it belongs to another config.json"
        )
    for name, tensor in state.items():
        if tensor.shape != loaded[name].shape:
            raise CheckpointError(
                f"{path}: {name} is {tuple(loaded[name].shape)} and the configuration asks for {tuple(tensor.shape)}; "
                "use the sizes that the checkpoint was trained with"
            )
    policy.load_state_dict(loaded)


def _first(names: list[str]) -> str:
    return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""


def _current_names(weights: dict[str, torch.Tensor], names: Set[str]) -> dict[str, torch.Tensor]:
    """Renames openpi's weights to lerobot 0.6's names like _fix_pytorch_state_dict_keys, but without its warnings."""
    renamed = {}
    for name, tensor in weights.items():
        name = name if name.startswith("model.") else f"model.{name}"
        both = (name.replace("model.time_mlp_", "model.action_time_mlp_", 1), name.replace("action_time_", "time_", 1))
        renamed[name if name in names else next((other for other in both if other in names), name)] = tensor
    stem = "model.paligemma_with_expert.paligemma."
    head, embedding = f"{stem}lm_head.weight", f"{stem}model.language_model.embed_tokens.weight"
    if head in renamed and embedding not in renamed:  # openpi ties them and stores one
        renamed[embedding] = renamed[head].clone()
    return renamed


def _saved_config(folder: Path, device: str) -> Any:
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = family(values.get("type"))
        return draccus.decode(PreTrainedConfig, values | {**kind.loaded, "device": device})
    except CheckpointError as error:
        raise CheckpointError(f"{folder} holds a policy that does not run here: {error}") from None
    except (draccus.utils.DraccusException, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {one_line(error)}") from None


def write_record(folder: Path, preprocessor: Any, record: Mapping[str, Any]) -> None:
    """Adds srpo.json and the policy's own tokenizers to a saved policy; `load_policy` needs them."""
    write_tokenizers(folder, preprocessor)
    (folder / RECORD).write_text(json.dumps(dict(record), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's srpo.json, {} if there is none (another trainer made the checkpoint).

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy or download the checkpoint again") from None
