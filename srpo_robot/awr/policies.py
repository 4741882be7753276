"""Policies: lerobot's pi0 from a recipe, and checkpoints that load whole or not at all.

lerobot's own `from_pretrained` returns random weights where loading fails, so every load here goes through one checked
path. Tiny policies are the same PI0Policy: the sizes that lerobot hard-codes are patched while it is being built.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from srpo_robot.buffer.episodes import Buffer, quiet_lerobot
from srpo_robot.errors import CheckpointError, DatasetError, RecipeError, one_line
from srpo_robot.recipes import PolicyRecipe

quiet_lerobot()

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig  # noqa: E402  (after quiet_lerobot)
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from lerobot.policies.pi0 import modeling_pi0, processor_pi0  # noqa: E402
from lerobot.policies.pi0.configuration_pi0 import PI0Config  # noqa: E402
from lerobot.policies.pi0.modeling_pi0 import PI0Policy  # noqa: E402
from lerobot.processor import RelativeActionsProcessorStep, TokenizerProcessorStep  # noqa: E402
from lerobot.utils.constants import ACTION, OBS_STATE  # noqa: E402
from lerobot.utils.feature_utils import dataset_to_policy_features  # noqa: E402

RECORD = "srpo.json"
TOKENIZER = "tokenizer"
WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
GATED = "google/paligemma-3b-pt-224"
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
# These follow from the recipe, the dataset or the machine; in `config` they would contradict them.
_DERIVED = ("input_features", "output_features", "action_feature_names", "device", "pretrained_path", "push_to_hub")
_FLAT_ACTION = 1e-4  # [action units] floor of an action's std: a constant dimension must not amplify rounding
_FLAT_STATE = 1e-4  # [state units] below it a dimension counts as constant and is not scaled


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
        _check_sizes(sizes, config)
    tokenizer = _tokenizer(base, sizes, [str(task) for task in buffer.meta.tasks.index])
    preprocessor, postprocessor = _make_processors(config, normalisation_stats(buffer, config), tokenizer)
    _check_instructions(preprocessor, buffer)
    policy = _construct(config, sizes, recipe.seed)
    if base is not None:
        load_weights(policy, base / WEIGHTS)
    elif sizes:
        _xavier(policy, recipe.seed)
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


def _xavier(policy: PI0Policy, seed: int) -> None:
    """Xavier for all linear layers: the initialisation that the tiny sizes were tried with (normal 0.02 was not)."""
    generator = torch.Generator().manual_seed(seed)
    for module in policy.modules():
        if isinstance(module, nn.Linear):
            fresh = torch.empty(module.weight.shape)  # drawn on the CPU: the same weights on any device
            module.weight.data.copy_(nn.init.xavier_uniform_(fresh, generator=generator))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --- sizes that lerobot hard-codes ---------------------------------------------------------------------------------


def _check_sizes(sizes: Mapping[str, int], config: PI0Config) -> None:
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


# --- normalisation ------------------------------------------------------------------------------------------------


def normalisation_stats(buffer: Buffer, config: PI0Config) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of state and action over the whole dataset, as lerobot's normalizer takes them; images are not scaled.

    With relative actions they are those of the relative chunk, which is what the policy then predicts.
    """
    state, action = buffer.column(OBS_STATE), buffer.column(ACTION)
    stats = {OBS_STATE: column_stats(state)}
    if config.use_relative_actions:
        bounds = [(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
        mask = _relative_mask(config, action.shape[1])
        stats[ACTION] = relative_stats(action, state, bounds, config.chunk_size, mask)
    else:
        stats[ACTION] = column_stats(action)
    for key in (OBS_STATE, ACTION):
        if not np.isfinite(stats[key]["mean"]).all():
            raise DatasetError(f"{buffer.root.name}: {key} holds NaN or infinity; record those episodes again")
    spread = stats[OBS_STATE]["std"]
    stats[OBS_STATE]["std"] = np.where(spread < _FLAT_STATE, 1.0, spread)
    stats[ACTION]["std"] = np.maximum(stats[ACTION]["std"], _FLAT_ACTION)
    return stats


def column_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Per-dimension statistics of (N, D) values: mean, std (population), min, max and quantiles of lerobot's modes."""
    values = np.asarray(values, dtype=np.float64)
    quantiles = {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    return {
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        **quantiles,
    }


def relative_stats(
    action: np.ndarray, state: np.ndarray, bounds: list[tuple[int, int]], chunk: int, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Statistics of a[t+k] - state[t] over all t and all k < chunk that stay inside the episode of t.

    lerobot's `compute_relative_action_stats` leaves out starts within a chunk of the episode's end; those are trained
    on, so they count here.

    Args:
        action: (N, A) absolute actions.
        state: (N, S) states, S >= A, whose first A values are what the action is about.
        bounds: first frame and one past the last, per episode.
        chunk: length of a chunk.
        mask: (A,) True where the action is made relative; elsewhere it stays absolute.

    Returns:
        mean, std (population), min, max: (A,) each.
    """
    action, state = np.asarray(action, dtype=np.float64), np.asarray(state, dtype=np.float64)
    offset = state[:, : action.shape[1]] * mask
    end = np.zeros(len(action), dtype=np.int64)
    for first, last in bounds:
        end[first:last] = last
    start = np.arange(len(action))
    inside = [start[start + k < end] for k in range(chunk)]  # one lag at a time: never (N, chunk, A) in memory
    lags = [(k, rows) for k, rows in enumerate(inside) if len(rows)]

    def relative() -> Iterator[np.ndarray]:
        return (action[rows + k] - offset[rows] for k, rows in lags)

    count = sum(len(rows) for _, rows in lags)
    mean = np.sum([part.sum(axis=0) for part in relative()], axis=0) / count
    variance = np.sum([((part - mean) ** 2).sum(axis=0) for part in relative()], axis=0) / count
    low = np.min([part.min(axis=0) for part in relative()], axis=0)
    high = np.max([part.max(axis=0) for part in relative()], axis=0)
    return {"mean": mean, "std": np.sqrt(variance), "min": low, "max": high}


def _relative_mask(config: PI0Config, width: int) -> np.ndarray:
    step = RelativeActionsProcessorStep(True, config.relative_exclude_joints, config.action_feature_names)
    return np.array(step._build_mask(width))


# --- processors and tokenizer -------------------------------------------------------------------------------------


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
