"""Each policy family is built, trained, saved and loaded by the same code. Also pi0-FAST's tokens, LoRA, cameras."""

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_evaluation import Script, Sink, ToyArm, ToyCell, rows, setup
from test_policies import FAMILIES, FAST, PI05, RECIPE, TASKS, observation, record_dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoProcessor, PreTrainedTokenizerFast

from srpo_robot.awr import fast, policies
from srpo_robot.awr.action_tokens import ActionTokens
from srpo_robot.awr.families import family
from srpo_robot.awr.losses import LossOptions, per_sample_loss
from srpo_robot.awr.normalisation import normalised_chunks
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import CheckpointError, RecipeError, UndecodableActions
from srpo_robot.evaluation.runtime import run_episode
from srpo_robot.recipes import PolicyRecipe, load

from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPolicy  # isort: skip  (after quiet_lerobot)

TRAINED = LossOptions(padding="trained")


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("families") / "walks")


@pytest.fixture(scope="module")
def memorising_policy(buffer):
    """Returns a pi0-FAST policy that memorised four chunks, their batch, and its processors."""
    policy, preprocessor, postprocessor = policies.build_policy(FAST, buffer)
    batch = preprocessor(TrainingSet(buffer, 4).__getitems__([0, 1, 2, 3]))
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    policy.train()
    for _ in range(150):
        optimizer.zero_grad()
        per_sample_loss(policy, batch, TRAINED).mean().backward()
        optimizer.step()
    return policy.eval(), batch, preprocessor, postprocessor


def save(parts: tuple, folder: Path, recipe: PolicyRecipe) -> Path:
    policy, preprocessor, postprocessor = parts
    plain, state = policies.plain_policy(policy)
    plain.save_pretrained(folder, state_dict=state)
    preprocessor.save_pretrained(folder)
    postprocessor.save_pretrained(folder)
    policies.write_record(folder, preprocessor, {"tiny": recipe.tiny, "step": 1})
    return folder


def chunk(parts: tuple, task: str = TASKS[0]) -> torch.Tensor:
    policy, preprocessor, postprocessor = parts
    torch.manual_seed(0)
    return postprocessor(policy.predict_action_chunk(preprocessor(observation(task))))


# --- the seam ---


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_is_built_trained_saved_moved_and_loaded(buffer, name, tmp_path, capsys):
    recipe = FAMILIES[name]
    policy, preprocessor, postprocessor = policies.build_policy(recipe, buffer)
    assert policy.config.type == name
    batch = preprocessor(TrainingSet(buffer, 4).__getitems__([0, 3, 8]))
    per_sample_loss(policy, batch).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    save((policy, preprocessor, postprocessor), tmp_path / "here", recipe)
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = policies.load_policy(tmp_path / "there")
    assert json.loads((tmp_path / "there" / "config.json").read_text())["type"] == name
    losses = []
    for model, before in ((policy, preprocessor), loaded[:2]):
        torch.manual_seed(4)
        losses.append(per_sample_loss(model.eval(), before(TrainingSet(buffer, 4).__getitems__([0, 3, 8]))))
    assert torch.equal(*losses)
    assert torch.equal(chunk((policy, preprocessor, postprocessor)), chunk(loaded[:3]))
    assert chunk(loaded[:3]).shape == (1, 4, 4)
    assert (
        policies.chunk_of(replace(recipe, base=str(tmp_path / "there"), tiny={})).executed
        == policy.config.n_action_steps
    )
    assert capsys.readouterr().out == ""


def test_a_chunk_opens_the_base_only_for_a_size_that_the_recipe_lacks():
    recipe = PolicyRecipe(name="far", family="pi0", base="nobody/none-such", config={"n_action_steps": 3})
    assert policies.chunk_of(recipe, ["n_action_steps"]) == (0, 3)
    with pytest.raises(CheckpointError, match="nobody/none-such"):
        policies.chunk_of(recipe, ["chunk_size"])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_family_refuses_weights_of_another_shape_or_name(buffer, name, tmp_path):
    recipe = FAMILIES[name]
    folder = save(policies.build_policy(recipe, buffer), tmp_path / "saved", recipe)
    policy, _, _, _ = policies.load_policy(folder)
    weights = {key: value.clone() for key, value in policy.state_dict().items()}
    first = next(iter(weights))
    from safetensors.torch import save_file

    save_file({("x" if key == first else key): value for key, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing .* 1 unknown"):
        policies.load_policy(folder)
    with pytest.raises(CheckpointError, match="1 missing"):
        policies.build_policy(replace(recipe, base=str(folder), tiny={}), buffer)


def test_a_base_of_another_family_is_refused(buffer, tmp_path):
    folder = save(policies.build_policy(RECIPE, buffer), tmp_path / "saved", RECIPE)
    with pytest.raises(RecipeError, match="is of family 'pi05' and its base holds a 'pi0' policy"):
        policies.build_policy(replace(PI05, base=str(folder), tiny={}), buffer)


def test_an_unknown_family_lists_the_known_families():
    with pytest.raises(CheckpointError, match="'act' here; there are pi0, pi05, pi0_fast, smolvla"):
        family("act")


def test_only_the_expert_trains_if_the_config_says_so(buffer):
    policy, _, _ = policies.build_policy(replace(RECIPE, config=RECIPE.config | {"train_expert_only": True}), buffer)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trainable
    assert not any("paligemma.model" in name for name in trainable)
    assert any("gemma_expert" in name for name in trainable)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("pi0", "https://huggingface.co/google/paligemma-3b-pt-224"),
        ("pi05", "https://huggingface.co/google/paligemma-3b-pt-224"),
        ("pi0_fast", "https://huggingface.co/google/paligemma-3b-pt-224"),
        ("smolvla", "hf download HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    ],
)
def test_full_sizes_name_the_files_to_fetch(buffer, name, missing, monkeypatch):
    def gated(*_, **__):
        raise OSError("403 gated repo")

    monkeypatch.setattr("lerobot.processor.tokenizer_processor.AutoTokenizer.from_pretrained", gated)
    monkeypatch.setattr("lerobot.processor.tokenizer_processor.AutoProcessor.from_pretrained", lambda *_, **__: None)
    with pytest.raises(CheckpointError, match=missing) as error:
        policies.build_policy(replace(FAMILIES[name], tiny={}), buffer)
    assert "\n" not in str(error.value)


def test_the_missing_action_tokenizer_is_named(buffer, monkeypatch):
    def missing(name, **_):
        raise OSError(f"{name} is not a local folder and cannot be fetched")

    monkeypatch.setattr("lerobot.processor.tokenizer_processor.AutoTokenizer.from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr("lerobot.processor.tokenizer_processor.AutoProcessor.from_pretrained", missing)
    with pytest.raises(CheckpointError, match="hf download lerobot/fast-action-tokenizer"):
        policies.build_policy(replace(FAST, tiny={}), buffer)


# --- recipes ---


def test_packaged_fast_recipes_load_and_the_tiny_one_builds(buffer):
    full = load(PolicyRecipe, "policies", "pi0-fast")
    assert full.base == "lerobot/pi0fast-base"
    assert full.config["n_action_steps"] == full.config["chunk_size"]
    tiny = load(PolicyRecipe, "policies", "pi0-fast-tiny")
    policy, preprocessor, _ = policies.build_policy(tiny, buffer)
    assert 300_000 < sum(p.numel() for p in policy.parameters()) < 500_000
    batch = preprocessor(TrainingSet(buffer, tiny.config["chunk_size"]).__getitems__([0, 3]))
    assert torch.isfinite(per_sample_loss(policy, batch)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"n_action_steps": 2}}, r"set config.n_action_steps to chunk_size \(4\)"),
        ({"config": {"max_decoding_steps": 20}}, "is below max_action_tokens"),
        ({"config": {"max_action_tokens": 8}}, "set config.max_action_tokens and max_decoding_steps to"),
        ({"config": {"tokenizer_max_length": 8}}, "set config.tokenizer_max_length to"),
        ({"tiny": {"vocab": 300}}, r"\[tiny\] vocab 300 is too small for the dataset's actions"),
        ({"tiny": {"vocab": 100}}, r"set \[tiny\] vocab to at least"),
        ({"tiny": {"expert_width": 16}}, "unknown 'expert_width'"),
        ({"config": {"num_inference_steps": 5}}, "pi0_fast has no setting 'num_inference_steps'"),
    ],
)
def test_a_bad_fast_recipe_is_one_line(buffer, change, message):
    recipe = replace(FAST, **{key: getattr(FAST, key) | value for key, value in change.items()})
    with pytest.raises(RecipeError, match=message) as error:
        policies.build_policy(recipe, buffer)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_decodes_too_few_steps_is_refused(memorising_policy, tmp_path):
    policy, _, *processors = memorising_policy
    folder = save((policy, *processors), tmp_path / "saved", FAST)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_action_steps": 2}))
    with pytest.raises(CheckpointError, match="which garbles the motion"):
        policies.load_policy(folder)


# --- the action tokenizer ---


CHUNKS = np.cumsum(np.random.default_rng(0).normal(0, 0.3, (200, 6, 3)), axis=1)
TOKENS = ActionTokens.fit(CHUNKS, 10.0, 400)


@settings(max_examples=50)
@given(arrays(np.float64, (6, 3), elements=st.floats(-0.5, 0.5)))
def test_a_chunk_comes_back_up_to_rounding(actions):
    """The DCT keeps lengths, and every coefficient is rounded by at most half a unit of 1 / scale."""
    back = TOKENS.decode(TOKENS(actions)[0], 3)
    bound = math.sqrt(6) * 0.5 / 10
    assert (np.linalg.norm(back - actions, axis=0) <= bound + 1e-9).all()


def test_tokens_are_fewer_than_coefficients_and_the_same_in_every_run(tmp_path):
    tokens = TOKENS(CHUNKS)
    assert np.mean([len(row) for row in tokens]) < 18 * 0.9
    assert max(map(max, tokens)) < 400
    assert ActionTokens.fit(CHUNKS, 10.0, 400)(CHUNKS) == tokens
    TOKENS.save_pretrained(tmp_path / "tokens")
    assert ActionTokens.from_pretrained(tmp_path / "tokens")(CHUNKS) == tokens


def test_values_outside_the_fitted_range_are_clipped():
    far = np.full((6, 3), 50.0)
    limit = CHUNKS.max() * math.sqrt(6)
    assert np.abs(TOKENS.decode(TOKENS(far)[0], 3)).max() < limit
    with pytest.raises(ValueError, match="there is room for 20 tokens"):
        ActionTokens.fit(CHUNKS, 10.0, 20)


def test_a_sequence_of_a_wrong_length_is_not_a_chunk():
    tokens = TOKENS(CHUNKS[:1])[0]
    for wrong in (tokens[:-1], [*tokens, tokens[0]], []):
        with pytest.raises(ValueError, match="where 18 are a chunk"):
            TOKENS.decode(wrong, 3)


def test_lerobot_loads_the_tokenizer_of_a_checkpoint_by_its_own_code(memorising_policy, tmp_path, monkeypatch):
    """The folder is enough for stock lerobot, which has no `srpo_robot`."""
    policy, batch, *processors = memorising_policy
    folder = save((policy, *processors), tmp_path / "saved", FAST) / "action_tokenizer"
    assert "srpo_robot" not in (folder / "action_tokens.py").read_text()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    stock = AutoProcessor.from_pretrained(folder, trust_remote_code=True)  # as lerobot does
    assert type(stock) is not ActionTokens
    assert stock(batch["action"][:1]) == policy.action_tokenizer(batch["action"][:1])


def test_tokens_encode_the_normalised_chunk_that_the_policy_sees(buffer, memorising_policy):
    policy, batch, preprocessor, _ = memorising_policy
    normal = next(s for s in preprocessor.steps if "Normalizer" in type(s).__name__)
    stats = {key: {name: np.asarray(v) for name, v in value.items()} for key, value in normal.stats.items()}
    chunks = normalised_chunks(buffer, policy.config, stats, 1000)
    np.testing.assert_allclose(chunks[:4], batch["action"].numpy(), atol=1e-5)
    assert chunks.shape == (12, 4, 4)


def test_few_state_values_are_clipped(buffer, memorising_policy):
    """There are 256 bins from -1 to 1. Scaled by mean and deviation, a third of normal values would be clipped."""
    _, _, preprocessor, _ = memorising_policy
    normal = next(s for s in preprocessor.steps if "Normalizer" in type(s).__name__)
    batch = {"observation.state": torch.from_numpy(buffer.column("observation.state"))}
    state = normal._normalize_observation(batch, inverse=False)["observation.state"]
    assert float((state.abs() > 1.01).float().mean()) < 0.2


# --- acting in tokens ---


def test_memorised_chunks_are_decoded_up_to_rounding(memorising_policy):
    policy, batch, _, _ = memorising_policy
    chunks = policy.predict_action_chunk(dict(batch))
    assert (chunks - batch["action"]).abs().max() <= math.sqrt(4) * 0.5 / 10 + 1e-5


def damaged(kind: str, tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    row = tokens[0, 1 : int(counts[0].sum())].tolist()  # the generated tokens: the first token is given
    new_row = {
        "no prefix": row[2:],
        "empty": [*row[:2], row[-1]],
        "one too few": [*row[:2], *row[3:]],
        "one too many": [*row[:3], *row[2:]],
        "a word": [*row[:2], 7, *row[3:]],
        "never ends": [*row[:-1], *row[2:-1]],
    }[kind]
    return torch.tensor([new_row])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no prefix", "do not begin with 'Action:'"),
        ("empty", "give 0 coefficients where a chunk has 16"),
        ("one too few", "where a chunk has 16"),
        ("one too many", "where a chunk has 16"),
        ("a word", "where a chunk has 16"),
        ("never ends", "give 32 coefficients"),
    ],
)
def test_tokens_that_are_not_a_chunk_are_an_error_and_not_zeros(memorising_policy, monkeypatch, kind, message):
    policy, batch, _, _ = memorising_policy
    tokens = damaged(kind, batch["action.tokens"], batch["action.token_mask"])
    monkeypatch.setattr(policy.model, "sample_actions_fast_kv_cache", lambda *_, **__: tokens)
    with pytest.raises(UndecodableActions, match=message) as error:
        policy.predict_action_chunk({key: value for key, value in batch.items() if key != "action"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cached", [True, False])
def test_decoding_takes_the_best_token_that_can_become_a_chunk(buffer, memorising_policy, cached, monkeypatch):
    """An untrained policy yields a chunk for each row of a batch. A trained policy's decoding does not change."""
    policy, _, preprocessor, _ = memorising_policy
    batch = preprocessor(TrainingSet(buffer, 4).__getitems__([0, 3, 6, 11]))
    observation_batch = {key: value for key, value in batch.items() if key != "action"}
    fresh, _, _ = policies.build_policy(replace(FAST, seed=8), buffer)
    for model in (policy, fresh):
        monkeypatch.setattr(model.config, "use_kv_cache", cached)
    assert fresh.predict_action_chunk(observation_batch).abs().sum(dim=(1, 2)).min() > 0
    free = PI0FastPolicy.predict_action_chunk
    with pytest.raises(UndecodableActions):
        free(fresh, observation_batch)
    first_rows = {
        key: value[:2] if isinstance(value, torch.Tensor) else value for key, value in observation_batch.items()
    }
    # on frames that the policy memorised
    assert torch.equal(policy.predict_action_chunk(first_rows), free(policy, first_rows))
    assert not policy.model.paligemma_with_expert.paligemma.lm_head._forward_hooks


def test_coefficients_of_byte_level_tokens_add_up_to_those_of_the_text():
    """lerobot's tokenizer works on bytes: a character beyond ASCII is two of them, which tokens may split or join."""
    texts = ["".join(map(chr, row)) for row in np.random.default_rng(0).integers(0x60, 0x1A0, (50, 30))]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=600, show_progress=False)
    byte_tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    counts = fast.coefficients_of_tokens(byte_tokenizer)
    assert {0, 1} < set(counts)
    for text in texts:
        assert sum(counts[token] for token in byte_tokenizer.encode(text, add_special_tokens=False)) == len(text)
    assert fast.coefficients_of_tokens(TOKENS.bpe_tokenizer)[:3] == [1, 1, 1]


def test_lerobot_would_move_to_the_mean_pose(memorising_policy):
    """Shows why the errors above exist: lerobot decodes garbage to zeros, which unnormalise to the dataset's mean."""
    policy, _, _, _ = memorising_policy
    assert not PI0FastPolicy.decode_actions_with_fast(policy, cast("Any", [torch.tensor([-3])]), 4, 4).any()
    assert not PI0FastPolicy.decode_actions_with_fast(
        policy, cast("Any", [torch.tensor([], dtype=torch.long)]), 4, 4
    ).any()


def test_an_episode_counts_and_the_arm_holds_if_the_policy_gives_no_action():
    class Broken(Script):
        def act(self, observation):
            if self.at >= 3:
                raise UndecodableActions("no chunk")
            return super().act(observation)

    arm, sink = ToyArm(), Sink()
    outcome = run_episode(setup(arm, ToyCell(arm)), Broken(rows(9)), 0, sink)
    assert outcome.success is False
    assert outcome.steps == 3
    assert outcome.note == "no chunk"
    assert sink.ends == [False]
    assert arm.driven[-1].joints_rad.tolist() == arm.driven[2].joints_rad.tolist()


# --- LoRA ---


@pytest.mark.parametrize("name", ["pi0", "pi0_fast", "pi05", "smolvla"])
def test_only_adapters_train_and_the_saved_policy_is_plain(buffer, name, tmp_path):
    recipe = replace(FAMILIES[name], lora_rank=2)
    policy, preprocessor, postprocessor = policies.build_policy(recipe, buffer)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    batch = preprocessor(TrainingSet(buffer, 4).__getitems__([0, 1, 8]))
    torch.manual_seed(1)
    plain = per_sample_loss(policy, batch)
    lora_policy = policies.apply_lora(policy, recipe)
    trainable = {key: p for key, p in lora_policy.named_parameters() if p.requires_grad}
    assert all(".lora_" in key for key in trainable)
    torch.manual_seed(1)
    torch.testing.assert_close(per_sample_loss(lora_policy, batch), plain)  # adapters begin as the identity
    optimizer = torch.optim.SGD(trainable.values(), 1.0)
    for _ in range(3):
        optimizer.zero_grad()
        torch.manual_seed(1)
        per_sample_loss(lora_policy, batch, TRAINED).mean().backward()
        optimizer.step()
    folder = save((lora_policy, preprocessor, postprocessor), tmp_path / "saved", recipe)
    loaded, *_ = policies.load_policy(folder)
    assert not any("lora" in key for key in loaded.state_dict())
    losses = []
    for model in (lora_policy.eval(), loaded):
        torch.manual_seed(1)
        losses.append(per_sample_loss(model, batch))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(losses[0], plain, rtol=1e-3)
    targets = re.compile(policies.lora_targets(name))
    changed_keys = {key for key, value in loaded.state_dict().items() if not torch.equal(value, before[key])}
    assert changed_keys == {f"{key}.weight" for key, _ in loaded.named_modules() if targets.fullmatch(key)}
    result = policies.plain_policy(loaded)
    assert result == (loaded, None)


def test_adapters_follow_the_seed_and_the_recipes_own_targets(buffer):
    recipe = replace(RECIPE, lora_rank=2, lora_alpha=3, lora_targets=r"model\.state_proj")
    first, second, third = (
        policies.apply_lora(policies.build_policy(RECIPE, buffer)[0], policy_recipe)
        for policy_recipe in (recipe, recipe, replace(recipe, seed=9))
    )
    names = [key for key, p in first.named_parameters() if p.requires_grad]
    assert len(names) == 2
    weights = [dict(model.named_parameters())[names[0]] for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.peft_config["default"].lora_alpha == 3
    policy = policies.build_policy(RECIPE, buffer)[0]
    assert policies.apply_lora(policy, RECIPE) is policy


@pytest.mark.parametrize("targets", ["nothing", "("])
def test_targets_that_name_no_layer_are_one_line(buffer, targets):
    policy = policies.build_policy(RECIPE, buffer)[0]
    with pytest.raises(RecipeError, match="lora_targets") as error:
        policies.apply_lora(policy, replace(RECIPE, lora_rank=2, lora_targets=targets))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "model", "layers"),
    [("pi0", "PI0Pytorch", 41), ("pi05", "PI05Pytorch", 40), ("pi0_fast", "PI0FastPytorch", 36)],
)
def test_default_targets_name_layers_of_the_full_size(name, model, layers):
    """Targets are query and value of 18 layers, and pi0's and pi0.5's layers into and out of the expert."""
    kind, module = family(name), import_module(f"lerobot.policies.{name}.modeling_{name}")
    with torch.device("meta"):
        whole = torch.nn.ModuleDict({"model": getattr(module, model)(kind.config(device="cpu"))})
    hits = [layer for key, layer in whole.named_modules() if re.fullmatch(kind.lora_targets, key)]
    assert len(hits) == layers
    assert all(isinstance(layer, torch.nn.Linear) for layer in hits)


# --- cameras ---


@pytest.fixture
def foreign(buffer, tmp_path):
    """A base policy trained with other camera names."""
    folder = save(policies.build_policy(RECIPE, buffer), tmp_path / "base", RECIPE)
    text = (folder / "config.json").read_text()
    text = text.replace("images.front", "images.base_0_rgb").replace("images.wrist", "images.left_wrist_0_rgb")
    (folder / "config.json").write_text(text)
    return folder


def test_cameras_that_the_base_does_not_know_are_listed(buffer, foreign):
    with pytest.raises(RecipeError, match=r"cameras base_0_rgb, left_wrist_0_rgb and walks has front, wrist") as error:
        policies.build_policy(replace(RECIPE, base=str(foreign), tiny={}), buffer)
    assert '[rename], for example front = "base_0_rgb"' in str(error.value)


def test_renamed_cameras_reach_the_policy_in_its_order(buffer, foreign, tmp_path):
    recipe = replace(RECIPE, base=str(foreign), tiny={}, rename={"wrist": "base_0_rgb", "front": "left_wrist_0_rgb"})
    policy, preprocessor, postprocessor = policies.build_policy(recipe, buffer)
    assert list(policy.config.image_features) == [
        "observation.images.base_0_rgb",
        "observation.images.left_wrist_0_rgb",
    ]
    frame = observation()
    batch = preprocessor(frame)
    assert torch.equal(batch["observation.images.base_0_rgb"][0], frame["observation.images.wrist"])
    folder = save((policy, preprocessor, postprocessor), tmp_path / "saved", replace(recipe, tiny=RECIPE.tiny))
    loaded = policies.load_policy(folder)
    assert policies.cameras_taken(loaded[0], loaded[1]) == ["front", "wrist"]
    assert torch.equal(chunk(loaded[:3]), chunk((policy, preprocessor, postprocessor)))


@pytest.mark.parametrize(
    "rename", [{"top": "base_0_rgb"}, {"front": "base_0_rgb", "wrist": "base_0_rgb"}, {"front": "wrist"}]
)
def test_a_rename_must_lead_from_the_datasets_cameras_to_different_names(buffer, foreign, rename):
    with pytest.raises(RecipeError, match=r"\[rename\] takes the dataset's cameras \(front, wrist\)"):
        policies.build_policy(replace(RECIPE, base=str(foreign), tiny={}, rename=rename), buffer)


def test_fewer_cameras_than_the_base_has_are_left_out(buffer, foreign):
    config = json.loads((foreign / "config.json").read_text())
    features = config["input_features"]
    features["observation.images.right_wrist_0_rgb"] = features["observation.images.base_0_rgb"]
    (foreign / "config.json").write_text(json.dumps(config))
    recipe = replace(RECIPE, base=str(foreign), tiny={}, rename={"wrist": "left_wrist_0_rgb", "front": "base_0_rgb"})
    policy, _, _ = policies.build_policy(recipe, buffer)
    assert [key.removeprefix("observation.images.") for key in policy.config.image_features] == [
        "base_0_rgb",
        "left_wrist_0_rgb",
    ]
