"""Tests of a tiny real pi0: it is built from a recipe, saved, moved and loaded, and bad input is refused.

The recipes of the other families are loaded here too. Their differences are tested in test_families.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_robot.awr import normalisation, policies, tiny
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import CheckpointError, DatasetError, RecipeError
from srpo_robot.recipes import PolicyRecipe, load

torch.set_num_threads(1)
ACTION_NAMES = ("tcp.x", "tcp.y", "tcp.z", "gripper")
STATE_NAMES = (*ACTION_NAMES, "target.x", "target.y", "target.z")
TASKS = ("put the apple on the plate", "wipe the board")
RECIPE = PolicyRecipe(
    name="smaller-than-tiny",
    family="pi0",
    config={
        "chunk_size": 4,
        "n_action_steps": 2,
        "num_inference_steps": 2,
        "image_resolution": [16, 16],
        "max_state_dim": 8,
        "max_action_dim": 5,
        "tokenizer_max_length": 8,
        "use_relative_actions": True,
    },
    tiny={
        "width": 16,
        "expert_width": 16,
        "depth": 1,
        "mlp": 16,
        "head_dim": 4,
        "vision_width": 16,
        "vision_depth": 1,
        "vision_heads": 2,
        "vision_mlp": 16,
        "patch": 8,
        "vocab": 16,
    },
    steps=4,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=1,
    final_learning_rate=1e-3,
    ema_decay=0.9,
    save_every=100,
    seed=5,
)
NO_EXPERT = {key: value for key, value in RECIPE.tiny.items() if key != "expert_width"}
PI05 = replace(
    RECIPE, family="pi05", config=RECIPE.config | {"tokenizer_max_length": 32}, tiny=RECIPE.tiny | {"vocab": 300}
)
FAST = replace(
    RECIPE,
    family="pi0_fast",
    config={
        **{key: value for key, value in RECIPE.config.items() if key != "num_inference_steps"},
        "n_action_steps": 4,
        "max_action_tokens": 40,
        "max_decoding_steps": 40,
        "tokenizer_max_length": 32,
        "fast_skip_tokens": 0,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "MEAN_STD"},
    },
    tiny=NO_EXPERT | {"vocab": 420, "depth": 2},
)
SMOLVLA = replace(
    RECIPE,
    family="smolvla",
    config={
        "chunk_size": 4,
        "n_action_steps": 2,
        "num_steps": 2,
        "resize_imgs_with_padding": [16, 16],
        "max_state_dim": 8,
        "max_action_dim": 5,
        "tokenizer_max_length": 8,
    },
    tiny=NO_EXPERT,
)
FAMILIES = {recipe.family: recipe for recipe in (RECIPE, PI05, FAST, SMOLVLA)}


def record_dataset(
    root: Path, lengths: tuple[int, ...] = (7, 5), state_names: tuple[str, ...] = STATE_NAMES, pixels: int = 32
) -> Buffer:
    """Records random walks with random images, two cameras and two tasks."""
    random = np.random.default_rng(0)
    cameras = {"front": (pixels, pixels), "wrist": (pixels, pixels)}
    recorder = Recorder(root, 10, dataset_features(cameras, state_names, ACTION_NAMES), "mock")
    for number, length in enumerate(lengths):
        recorder.begin()
        for _ in range(length):
            images = {name: random.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in cameras.items()}
            action = random.normal([0.4, 0.0, 0.2, 0.05], 0.02)
            state = np.concatenate([action + random.normal(0, 0.01, 4), action[:3]])
            recorder.add(images, state, action, TASKS[number % 2])
        recorder.end(success=number % 2 == 0)
    return open_buffer(root)


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("policies") / "walks")


@pytest.fixture(scope="module")
def bundle(buffer):
    return policies.build_policy(RECIPE, buffer)


@pytest.fixture
def checkpoint_dir(bundle, tmp_path):
    policy, preprocessor, postprocessor = bundle
    folder = tmp_path / "run" / "checkpoints" / "000004" / "pretrained_model"
    policy.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    postprocessor.save_pretrained(folder)
    policies.write_record(folder, preprocessor, {"tiny": RECIPE.tiny, "step": 4})
    (folder.parent.parent / "last").symlink_to("000004")
    return folder


def observation(task: str = TASKS[0]) -> dict:
    random = torch.Generator().manual_seed(1)
    images = {f"observation.images.{name}": torch.rand(3, 32, 32, generator=random) for name in ("front", "wrist")}
    return {**images, "observation.state": torch.rand(7, generator=random), "task": task}


def act(bundle: tuple, task: str = TASKS[0]) -> torch.Tensor:
    policy, preprocessor, postprocessor = bundle
    batch = preprocessor(observation(task))
    noise = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(2))
    return postprocessor(policy.predict_action_chunk(batch, noise=noise))


# --- building ---


def test_features_and_sizes_come_from_recipe_and_dataset(bundle):
    policy = bundle[0]
    assert list(policy.config.image_features) == ["observation.images.front", "observation.images.wrist"]
    assert policy.config.action_feature_names == list(ACTION_NAMES)
    assert policy.config.image_resolution == (16, 16)
    assert sum(p.numel() for p in policy.parameters()) < 50_000


def test_the_same_seed_gives_the_same_weights_without_the_global_generator(buffer, bundle):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = policies.build_policy(RECIPE, buffer)[0].state_dict()
    other = policies.build_policy(replace(RECIPE, seed=6), buffer)[0].state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in bundle[0].state_dict().items())
    assert not torch.equal(again["model.action_out_proj.weight"], other["model.action_out_proj.weight"])


def test_building_a_policy_does_not_change_lerobot(buffer):
    names = "get_gemma_config", "PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"
    before = [getattr(tiny.modeling_pi0, name) for name in names]
    with pytest.raises(ZeroDivisionError), tiny.architecture(RECIPE.tiny):
        raise ZeroDivisionError
    assert before == [getattr(tiny.modeling_pi0, name) for name in names]


def test_actions_go_through_the_processors_and_come_back(buffer, bundle):
    _, preprocessor, postprocessor = bundle
    batch = TrainingSet(buffer, 4).__getitems__([0, 3, 11])
    sample = preprocessor(batch)
    assert not torch.allclose(sample["action"], batch["action"])
    torch.testing.assert_close(postprocessor(sample["action"]), batch["action"], rtol=1e-5, atol=1e-6)


def test_normalised_relative_actions_have_mean_0_and_std_1(buffer, bundle):
    batch = TrainingSet(buffer, 4).__getitems__(range(12))
    inside = bundle[1](batch)["action"][~batch["action_is_pad"]]
    torch.testing.assert_close(inside.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


def test_relative_statistics_by_hand():
    action = np.array([[1.0, 9.0], [2.0, 8.0], [4.0, 7.0], [10.0, 1.0]])
    state = np.array([[0.0, 5.0, 1.0], [1.0, 5.0, 1.0], [3.0, 5.0, 1.0], [10.0, 5.0, 1.0]])
    stats = normalisation.relative_stats(action, state, [(0, 3), (3, 4)], 2, np.array([True, False]))
    relative = [1 - 0, 2 - 1, 4 - 3, 10 - 10, 2 - 0, 4 - 1]  # three lags 0 and one, then two lags 1 inside the episode
    absolute = [9, 8, 7, 1, 8, 7]
    np.testing.assert_allclose(stats["mean"], [np.mean(relative), np.mean(absolute)])
    np.testing.assert_allclose(stats["std"], [np.std(relative), np.std(absolute)])
    np.testing.assert_allclose((stats["min"], stats["max"]), [[0, 1], [3, 9]])
    for name, q in (("q01", 0.01), ("q90", 0.9)):
        np.testing.assert_allclose(stats[name], [np.quantile(relative, q), np.quantile(absolute, q)])


def test_a_constant_dimension_is_not_blown_up(buffer, monkeypatch):
    columns = {key: buffer.column(key).copy() for key in ("observation.state", "action")}
    columns["observation.state"][:, 6] = columns["action"][:, 3] = 0.1
    monkeypatch.setattr(Buffer, "column", lambda self, key: columns[key])
    recipe = replace(RECIPE, config=RECIPE.config | {"use_relative_actions": False})
    config = policies.configure(policies.family("pi0"), recipe, buffer, None, "cpu")
    stats = policies.normalisation_stats(buffer, config)
    assert stats["observation.state"]["std"][6] == 1.0
    assert stats["action"]["std"][3] == 1e-4
    for low, high in (("min", "max"), ("q01", "q99"), ("q10", "q90")):
        np.testing.assert_allclose(stats["observation.state"][high][6] - stats["observation.state"][low][6], 2.0)
        np.testing.assert_allclose(stats["action"][high][3] - stats["action"][low][3], 2e-4)
        np.testing.assert_allclose((stats["action"][high][3] + stats["action"][low][3]) / 2, 0.1)


def test_equal_quantiles_are_replaced_by_the_extremes(buffer, monkeypatch):
    """A gripper opens in one frame of twelve, so q10 and q90 are equal. Its open value must stay near the range."""
    columns = {key: buffer.column(key).copy() for key in ("observation.state", "action")}
    for values in columns.values():
        values[:, 3], values[4, 3] = 0.0, 0.08
    monkeypatch.setattr(Buffer, "column", lambda self, key: columns[key])
    recipe = replace(RECIPE, config=RECIPE.config | {"use_relative_actions": False})
    config = policies.configure(policies.family("pi0"), recipe, buffer, None, "cpu")
    stats = policies.normalisation_stats(buffer, config)
    for of in stats.values():
        np.testing.assert_allclose((of["q10"][3], of["q90"][3]), (0.0, 0.08))
        assert (of["q10"] < of["q90"]).all()
        moving = np.arange(len(of["q10"])) != 3
        assert (of["q10"][moving] > of["min"][moving]).all()  # other dimensions keep their quantiles


def test_unknown_words_become_one_token_and_padding_has_no_effect(bundle):
    policy, preprocessor, postprocessor = bundle
    tokens = preprocessor(observation("fold the towel"))["observation.language.tokens"]
    known_tokens = preprocessor(observation(TASKS[0]))["observation.language.tokens"]
    assert tokens[0, 0] == tokens[0, 2] == 1 and 1 not in known_tokens
    assert not torch.allclose(act(bundle, TASKS[0]), act(bundle, TASKS[1]))
    both = [observation(TASKS[0]), observation(TASKS[1])]  # the shorter instruction is padded to the longer one
    batch = {key: [o[key] for o in both] if key == "task" else torch.stack([o[key] for o in both]) for key in both[0]}
    noise = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(2)).expand(2, -1, -1)
    chunk = postprocessor(policy.predict_action_chunk(preprocessor(batch), noise=noise))
    torch.testing.assert_close(chunk[1:], act(bundle, TASKS[1]), rtol=1e-4, atol=1e-6)


# --- checkpoints ---


def test_a_moved_checkpoint_gives_equal_actions(bundle, checkpoint_dir, tmp_path, capsys):
    want = act(bundle)
    run = checkpoint_dir.parent.parent.parent
    shutil.move(run, tmp_path / "moved")
    target = tmp_path / "moved"
    folders = (target, target / "checkpoints" / "000004", target / "checkpoints" / "000004" / "pretrained_model")
    for checkpoint in folders:
        policy, preprocessor, postprocessor, record = policies.load_policy(checkpoint)
        assert not policy.training
        assert record["step"] == 4
        assert torch.equal(act((policy, preprocessor, postprocessor)), want)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_can_be_the_base_of_a_recipe(buffer, bundle, checkpoint_dir):
    recipe = replace(RECIPE, base=str(checkpoint_dir), tiny={}, seed=99)
    policy, *_ = policies.build_policy(recipe, buffer)
    assert policy.training
    assert all(torch.equal(v, bundle[0].state_dict()[k]) for k, v in policy.state_dict().items())
    with pytest.raises(RecipeError, match=r"drop \[tiny\]"):
        policies.build_policy(replace(recipe, tiny=RECIPE.tiny), buffer)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "policy_preprocessor.json"])
def test_missing_file_is_refused(checkpoint_dir, name):
    (checkpoint_dir / name).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {name}; it is incomplete"):
        policies.load_policy(checkpoint_dir)


def test_missing_statistics_are_refused(checkpoint_dir):
    next(checkpoint_dir.glob("*normalizer_processor.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="processors cannot be loaded"):
        policies.load_policy(checkpoint_dir)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_renamed_missing_or_reshaped_weights_are_refused(checkpoint_dir, tmp_path):
    name = "model.state_proj.weight"
    changes = {
        "1 missing .*state_proj.* 1 unknown": lambda w: w.update({"model.other.weight": w.pop(name)}),
        "1 missing .*state_proj.* 0 unknown": lambda w: w.pop(name),
        "0 missing, 1 unknown .*other": lambda w: w.update({"model.other.weight": w[name].clone()}),
        r"state_proj.weight is \(16, 4\)": lambda w: w.update({name: w[name][:, :4].contiguous()}),
    }
    for number, (message, change) in enumerate(changes.items()):
        folder = shutil.copytree(checkpoint_dir, tmp_path / f"changed{number}")
        change_weights(folder, change)
        with pytest.raises(CheckpointError, match=message):
            policies.load_policy(folder)


def test_openpi_weight_names_are_accepted(bundle, checkpoint_dir):
    embedding = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    head = "model.paligemma_with_expert.paligemma.lm_head.weight"

    def as_openpi(weights):
        weights[head] = weights.pop(embedding)
        for name in list(weights):
            weights[name.removeprefix("model.").replace("action_time_mlp", "time_mlp")] = weights.pop(name)

    change_weights(checkpoint_dir, as_openpi)
    policy, *_ = policies.load_policy(checkpoint_dir)
    original, copy = bundle[0].state_dict(), policy.state_dict()
    assert torch.equal(original[embedding], copy[embedding])
    assert torch.equal(original["model.action_time_mlp_in.weight"], copy["model.action_time_mlp_in.weight"])


def test_damaged_files_are_one_line_errors(checkpoint_dir):
    (checkpoint_dir / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        policies.load_policy(checkpoint_dir)
    assert "\n" not in str(error.value)
    (checkpoint_dir / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        policies.load_policy(checkpoint_dir)
    (checkpoint_dir / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(CheckpointError, match="no policy family 'act' here; there are pi0, pi05, pi0_fast, smolvla"):
        policies.load_policy(checkpoint_dir)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        policies.load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        policies.load_policy(tmp_path / "nowhere")

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"nobody/nothing is no folder here .*\(offline\)"):
        policies.load_policy("nobody/nothing")


# --- refusals while building ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"chunk_sise": 4}}, "did you mean 'chunk_size'"),
        ({"config": {"optimizer_lr": 1.0}}, "follows from the recipe"),
        ({"config": {"max_action_dim": 3}}, "set config.max_action_dim to at least 4"),
        ({"config": {"tokenizer_max_length": 5}}, "set config.tokenizer_max_length to 6"),
        ({"config": {"n_action_steps": 9}}, "cannot be greater than chunk_size"),
        ({"tiny": {"vocab": 8}}, r"set \[tiny\] vocab to at least 9"),
        ({"tiny": {"patch": 7}}, "does not divide image_resolution"),
        ({"tiny": {"widht": 16}}, "unknown 'widht'"),
    ],
)
def test_a_bad_recipe_is_a_one_line_error(buffer, change, message):
    recipe = replace(RECIPE, **{key: getattr(RECIPE, key) | value for key, value in change.items()})
    with pytest.raises(RecipeError, match=message) as error:
        policies.build_policy(recipe, buffer)
    assert "\n" not in str(error.value)


def test_relative_actions_need_a_state_that_begins_with_the_action(tmp_path):
    other = record_dataset(tmp_path / "other", (3,), tuple(reversed(STATE_NAMES)))
    with pytest.raises(RecipeError, match=r"needs observation\.state to begin with the action's names"):
        policies.build_policy(RECIPE, other)
    policies.build_policy(replace(RECIPE, config=RECIPE.config | {"use_relative_actions": False}), other)


@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_dataset_without_state_or_action(buffer, key, monkeypatch):
    monkeypatch.setattr(buffer.meta.info, "features", {k: v for k, v in buffer.meta.features.items() if k != key})
    with pytest.raises(DatasetError, match=f"walks has no {key};"):
        policies.build_policy(RECIPE, buffer)


def test_full_size_names_the_gate_of_its_tokenizer(buffer, monkeypatch):
    def raise_gated_error(*_, **__):
        raise OSError("403 gated repo")

    monkeypatch.setattr("lerobot.processor.tokenizer_processor.AutoTokenizer.from_pretrained", raise_gated_error)
    with pytest.raises(CheckpointError, match=r"accept its licence at https://huggingface.co/google/paligemma"):
        policies.build_policy(replace(RECIPE, tiny={}), buffer)


def test_packaged_recipes_load_and_pi0_tiny_builds(buffer):
    assert load(PolicyRecipe, "policies", "pi0").base == "lerobot/pi0_base"
    tiny = load(PolicyRecipe, "policies", "pi0-tiny")
    policy, *_ = policies.build_policy(tiny, buffer)
    assert 300_000 < sum(p.numel() for p in policy.parameters()) < 500_000
