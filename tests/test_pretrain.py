"""Tests of pretraining: masks, passes over gathered tokens, the moving average, and bit-exact resume."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VJEPA2Config

from srpo_robot.errors import TrainingError
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.pretrain import (
    Batch,
    PlacedRope,
    PretrainConfig,
    Pretrainer,
    block_tubes,
    colour_change,
    encode,
    kept_share,
    learning_rate,
    move_average,
    patches,
    predict,
    time_loss,
    vivid,
)

SIZES: dict[str, Any] = {
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "pred_hidden_size": 24,
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 1,
}
CONFIG = VJEPA2Config(**SIZES)
DEPTH, SIDE = 2, 4
TOKENS = DEPTH * SIDE**2
TINY = PretrainConfig(steps=40, seed=3, learning_rate=3e-3, warmup=2, average=(0.9, 0.99), dtype="float32")


def batch(seed: int) -> Batch:
    """Returns two episodes of three instants. A square moves right in a different scene each. Views differ in gain."""
    rng = np.random.default_rng(seed)
    clips = np.zeros((6, 4, 3, 32, 32), dtype=np.float32)
    for i in range(6):
        clips[i] += rng.normal(0.0, 0.3, (3, 1, 1)) if i % 3 == 0 else clips[i - i % 3, 0, :, :1, :1]
        x, y = 10 * (i % 3) + int(rng.integers(3)), int(rng.integers(20))
        clips[i, :, :, y : y + 8, x : x + 8] = 2.0
    video = torch.from_numpy(clips)
    change = torch.from_numpy(rng.normal(size=(6, 3 * TINY.cells**2))).float()
    return Batch(video * 1.1, video * 0.9, torch.tensor([0.0, 0.5, 1.0] * 2), change)


@pytest.fixture
def run() -> Pretrainer:
    return Pretrainer(CONFIG, TINY)


# --- masks


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), depth=st.integers(1, 6), side=st.integers(2, 12), visible=st.floats(0.0, 1.0))
def test_tubes_partition_the_tokens_and_hide_a_cell_always_or_never(seed, depth, side, visible):
    visible_at, hidden_at = block_tubes(np.random.default_rng(seed), depth, side, visible)
    assert sorted([*visible_at, *hidden_at]) == list(range(depth * side**2))
    assert len(visible_at) == depth * min(max(round(visible * side**2), 1), side**2 - 1)
    for places in (visible_at, hidden_at):
        assert np.all(np.diff(places) > 0)
        cells = places.reshape(depth, -1) - np.arange(depth)[:, None] * side**2
        assert np.all(cells == cells[0])


def test_tubes_hide_blocks_not_scattered_cells():
    neighbours = []
    for seed in range(50):
        _, hidden_at = block_tubes(np.random.default_rng(seed), 1, 12, 0.5)
        grid = np.zeros((12, 12), dtype=bool)
        grid.flat[hidden_at] = True
        neighbours.append(grid[:, 1:][grid[:, :-1]].mean())
    assert np.mean(neighbours) > 0.7  # 0.5 if the hidden half were scattered


# --- passes


def position_aware(stack, tokens: int = TOKENS):
    """Returns a copy of an encoder or predictor that uses the positions of gathered tokens."""
    stack = copy.deepcopy(stack)
    rope = PlacedRope(stack.layer[0].attention)
    rope.fit(tokens, torch.device("cpu"), torch.float32)
    rope.install(stack)
    return stack


def cut_patches(pixels: torch.Tensor) -> torch.Tensor:
    return patches(pixels, 8, CONFIG.tubelet_size)


@torch.no_grad()
def test_patches_times_weights_equal_the_patch_convolution(run):
    pixels = torch.randn(2, 4, 3, 32, 32)
    convolution = run.model.encoder.embeddings.patch_embeddings.proj
    product = torch.nn.functional.linear(cut_patches(pixels), convolution.weight.flatten(1), convolution.bias)
    assert product == pytest.approx(run.model.encoder.embeddings(pixels), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("places", [None, torch.arange(TOKENS).expand(2, -1)])
def test_a_pass_over_all_tokens_equals_transformers_forward(run, places):
    pixels = torch.randn(2, 4, 3, 32, 32)
    reference = run.model.encoder(pixels).last_hidden_state
    assert encode(position_aware(run.model.encoder), cut_patches(pixels), places) == pytest.approx(reference, abs=1e-5)


@torch.no_grad()
def test_gathered_tokens_keep_their_positions(run):
    """The layers of transformers agree if `position_mask` gives them the tokens' positions, and disagree without it."""
    pixels, places = torch.randn(2, 4, 3, 32, 32), torch.tensor([[1, 6, 17, 30], [0, 9, 20, 31]])
    encoder = run.model.encoder
    outputs = [torch.gather(encoder.embeddings(pixels), 1, places[..., None].expand(-1, -1, 32)) for _ in range(2)]
    for layer in encoder.layer:
        outputs = [layer(tokens, mask)[0] for tokens, mask in zip(outputs, (places, None), strict=True)]
    with_positions, without_positions = (encoder.layernorm(tokens) for tokens in outputs)
    output = encode(position_aware(encoder), cut_patches(pixels), places)
    assert output == pytest.approx(with_positions, abs=1e-5)
    assert (output - without_positions).abs().max() > 1e-4


@torch.no_grad()
def test_hidden_tokens_have_no_influence(run):
    visible_at, hidden_at = (torch.from_numpy(p)[None] for p in block_tubes(np.random.default_rng(0), DEPTH, SIDE, 0.3))
    tokens = cut_patches(torch.randn(1, 4, 3, 32, 32))
    other_tokens = tokens.clone()
    other_tokens[:, hidden_at[0]] += 1.0
    encoder = position_aware(run.model.encoder)
    assert torch.equal(encode(encoder, tokens, visible_at), encode(encoder, other_tokens, visible_at))


@torch.no_grad()
def test_predictions_equal_those_of_transformers(run):
    rng = np.random.default_rng(1)
    pairs = [block_tubes(rng, DEPTH, SIDE, 0.4) for _ in range(2)]
    visible_at, hidden_at = (torch.from_numpy(np.stack([pair[k] for pair in pairs])) for k in (0, 1))
    tokens = torch.randn(2, TOKENS, 32)
    reference = run.model.predictor(tokens, [visible_at], [hidden_at]).last_hidden_state
    context = torch.gather(tokens, 1, visible_at[..., None].expand(-1, -1, 32))
    predictions = predict(position_aware(run.model.predictor), context, visible_at, hidden_at)
    assert predictions == pytest.approx(reference, abs=1e-5)


# --- the terms on pooled means


def test_the_time_loss_by_hand():
    """Four parts have their middles at 1/8, 3/8, 5/8, 7/8. A clip at 1/2 belongs equally to the two inner parts."""
    sure, open_ = torch.tensor([[0.0, 0.0, 0.0, math.log(3.0)]]), torch.zeros(1, 4)
    assert [x.item() for x in time_loss(open_, torch.tensor([0.5]))] == pytest.approx([math.log(4.0), 0.0])
    assert [x.item() for x in time_loss(sure, torch.tensor([1.0]))] == pytest.approx([math.log(2.0), 1.0])
    assert [x.item() for x in time_loss(sure, torch.tensor([0.875]))] == pytest.approx([math.log(2.0), 1.0])
    assert [x.item() for x in time_loss(sure, torch.tensor([0.75]))] == pytest.approx(
        [0.5 * math.log(2.0) + 0.5 * math.log(6.0), 1.0]
    )


def paint(colour: tuple[float, float, float], quarter: int) -> torch.Tensor:
    """Returns a grey picture with one coloured quarter, (1, 3, 8, 8)."""
    picture = torch.full((1, 3, 8, 8), 0.5)
    y, x = 4 * (quarter // 2), 4 * (quarter % 2)
    picture[:, :, y : y + 4, x : x + 4] = torch.tensor(colour).view(1, 3, 1, 1)
    return picture


RED, PALE = (0.9, 0.0, 0.0), (0.9, 0.6, 0.6)


def test_vivid_is_the_hue_and_zero_for_pale_colours():
    assert vivid(paint(RED, 0))[0, :, 0, 0] == pytest.approx(torch.tensor([2.0, -1.0, -1.0]) / 3.0, abs=1e-6)
    assert torch.equal(vivid(paint(RED, 0)), vivid(paint((0.3, 0.0, 0.0), 0)))
    assert not vivid(paint(PALE, 0)).any()
    assert not vivid(torch.full((1, 3, 8, 8), 0.5)).any()


def test_a_moved_red_object_changes_two_quarters():
    change = colour_change(paint(RED, 0), paint(RED, 3), 2).view(3, 4)
    assert change.sign().tolist() == [[-1, 0, 0, 1], [1, 0, 0, -1], [1, 0, 0, -1]]
    assert change.std().item() == pytest.approx(1.0)
    assert change[0] == pytest.approx(-2.0 * change[1])
    assert not colour_change(paint(RED, 0), paint(RED, 0), 2).any()


# --- schedules and the moving average


@settings(deadline=None)
@given(share=st.floats(0.0, 1.0))
def test_the_average_moves_by_the_given_share(share):
    torch.manual_seed(0)
    average, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = {k: share * v + (1 - share) * model.state_dict()[k] for k, v in average.state_dict().items()}
    move_average(average, model, share)
    for key, value in average.state_dict().items():
        assert value == pytest.approx(expected[key], abs=1e-6)


def test_schedules():
    assert learning_rate(0, TINY) == pytest.approx(TINY.learning_rate / 2)
    assert learning_rate(1, TINY) == pytest.approx(TINY.learning_rate)
    assert learning_rate(32, TINY) == pytest.approx(TINY.learning_rate)  # start of the last fifth of 40 steps
    assert learning_rate(36, TINY) == pytest.approx(TINY.learning_rate / 2)
    assert learning_rate(TINY.steps, TINY) == pytest.approx(TINY.learning_rate / 100)
    rates = [learning_rate(step, TINY) for step in range(2, TINY.steps + 1)]
    assert rates == sorted(rates, reverse=True)
    assert (kept_share(0, TINY), kept_share(TINY.steps, TINY)) == pytest.approx((0.9, 0.99))


# --- runs


def test_the_average_follows_the_weights_after_a_step(run):
    before = copy.deepcopy(run.average)
    run.step(batch(0))
    for old, new, weight in zip(
        before.parameters(), run.average.parameters(), run.model.encoder.parameters(), strict=True
    ):
        assert new.detach() == pytest.approx(0.9 * old.detach() + 0.1 * weight.detach(), abs=1e-6)


def test_losses_fall_without_collapse(run):
    losses = [run.step(batch(i)) for i in range(40)]
    early, late = losses[:5], losses[-5:]
    assert np.mean([x.predicted for x in late]) < 0.85 * np.mean([x.predicted for x in early])
    assert np.mean([x.dated for x in late]) < 0.7 * np.mean([x.dated for x in early])
    assert min(x.spread for x in late) > 0.01


def test_a_collapsed_encoder_is_reported(run):
    with torch.no_grad():
        run._teacher.layernorm.weight.zero_()
    assert run.step(batch(0)).spread < 1e-6


def test_v_jepa_without_pooled_terms(run):
    losses = Pretrainer(CONFIG, replace(TINY, dated=0.0)).step(batch(0))
    assert math.isnan(losses.dated)
    assert math.isnan(losses.recoloured)
    assert losses.predicted == run.step(batch(0)).predicted


def test_the_mean_learns_which_colours_changed(run):
    first = batch(0)
    losses = [run.step(first) for _ in range(40)]
    assert losses[-1].recoloured < 0.75 * losses[0].recoloured


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_equals_an_uninterrupted_run(dtype, tmp_path):
    tiny = replace(TINY, dtype=dtype)
    whole, part = Pretrainer(CONFIG, tiny), Pretrainer(CONFIG, tiny)
    expected = [whole.step(batch(i)) for i in range(5)]
    first_losses = [part.step(batch(i)) for i in range(2)]
    torch.save(part.state(), tmp_path / "state.pt")
    second_run = Pretrainer(CONFIG, replace(tiny, seed=tiny.seed))
    second_run.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [*first_losses, *(second_run.step(batch(i)) for i in range(2, 5))] == expected
    for key, value in whole.exported().state_dict().items():
        assert torch.equal(value, second_run.exported().state_dict()[key])


def test_a_different_seed_gives_a_different_run(run):
    assert Pretrainer(CONFIG, replace(TINY, seed=4)).step(batch(0)) != run.step(batch(0))


def test_the_exported_encoder_is_the_averaged_one(run, tmp_path):
    run.step(batch(0))
    run.exported().save_pretrained(tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"))
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(clip).permute(0, 1, 4, 2, 3).float() - mean) / std
    with torch.no_grad():
        expected = encode(position_aware(run.average), cut_patches(pixels)).mean(dim=1).numpy()
    assert encoder.encode(clip) == pytest.approx(expected, abs=1e-4)


def test_a_loss_that_is_not_a_number_stops_the_run(run):
    bad = batch(0)
    with pytest.raises(TrainingError, match="the loss is not finite at step 0; lower learning_rate"):
        run.step(replace(bad, other=bad.other * math.nan))
