"""The weighted loss against hand-made sums and against lerobot's own losses, on real (tiny) policies of each family."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_policies import FAMILIES, FAST, record_dataset

from srpo_robot.awr import fast
from srpo_robot.awr.losses import LossOptions, awr_loss, chunk_loss, per_sample_loss, token_loss
from srpo_robot.awr.policies import build_policy
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import RecipeError, TrainingError

FLOW = ["pi0", "pi05", "smolvla"]
TRAINED = LossOptions(padding="trained")
LEROBOT = LossOptions(padding="trained", tokens="batch")
FRAMES = [0, 5, 9, 3]  # episodes of 7 and 5 frames, chunks of 4: 5 and 9 are cut by the end, 0 and 3 are whole


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Returns per family a policy and a function from frames to a preprocessed batch."""
    buffer = record_dataset(tmp_path_factory.mktemp("losses") / "walks")
    samples, families = TrainingSet(buffer, 4), {}

    def get(name: str):
        if name not in families:
            policy, preprocessor, _ = build_policy(FAMILIES[name], buffer)
            families[name] = policy, lambda frames: preprocessor(samples.__getitems__(frames))
        return families[name]

    get.buffer = buffer  # type: ignore[attr-defined]
    return get


def seeded(policy, batch, *options, **more) -> torch.Tensor:
    torch.manual_seed(3)
    return per_sample_loss(policy, batch, *options, **more)


# --- weights ---


def test_weighting_is_not_divided_by_the_weight_sum():
    loss, info = awr_loss(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 0.0]))
    assert float(loss) == 2.0
    assert info == {"loss": 2.0, "unweighted_loss": 2.0, "mean_weight": 2.0}


def test_weight_scales_the_step_at_batch_size_one():
    heavy, _ = awr_loss(torch.tensor([2.0]), torch.tensor([5.0]))
    light, _ = awr_loss(torch.tensor([2.0]), torch.tensor([1.0]))
    assert float(heavy) == 5 * float(light)


def test_nan_loss_names_its_frames():
    with pytest.raises(TrainingError, match=r"at frames 70, 90;"):
        awr_loss(torch.tensor([float("nan"), 1.0, float("inf")]), torch.ones(3), torch.tensor([70, 80, 90]))


def test_weights_must_match_the_batch():
    with pytest.raises(TrainingError, match="weights"):
        awr_loss(torch.ones(3), torch.ones(2))


# --- by hand ---


def test_chunk_loss_by_hand():
    errors = torch.tensor([[[1.0, 3.0], [10.0, 30.0]], [[2.0, 2.0], [6.0, 8.0]]])  # per action: 2, 20 and 2, 7
    padding = torch.tensor([[False, True], [False, False]])
    weights = torch.tensor([[3.0, 5.0], [0.5, 2.0]])
    assert chunk_loss(errors).tolist() == [11.0, 4.5]
    assert chunk_loss(errors, padding).tolist() == [2.0, 4.5]
    assert chunk_loss(errors, None, weights).tolist() == [(6 + 100) / 2, (1 + 14) / 2]
    assert chunk_loss(errors, padding, weights).tolist() == [6.0, 7.5]


def test_token_loss_by_hand():
    nll = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [5.0, 6.0, 7.0]])
    counts = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    exclusion = torch.tensor([False, False, True])
    assert token_loss(nll, counts, LossOptions(tokens="sample")).tolist() == [1.5, 4.0, 6.0]
    assert token_loss(nll, counts, LossOptions(tokens="sample"), exclusion).tolist() == [1.5, 4.0, 0.0]
    assert token_loss(nll, counts, LossOptions(tokens="batch")).tolist() == pytest.approx([1.5, 2.0, 9.0])  # * 3 / 6
    assert token_loss(nll, counts, LossOptions(tokens="batch"), exclusion).tolist() == [3.0, 4.0, 0.0]  # * 3 / 3
    assert token_loss(nll, counts, LossOptions(tokens="batch"), torch.tensor([True] * 3)).tolist() == [0.0] * 3


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 1000))
def test_padded_actions_do_not_matter(cuts, seed):
    """Padded actions do not change the loss, and weights of one change nothing."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(len(cuts), 4, 2, generator=generator)
    padding = torch.arange(4) >= 4 - torch.tensor(cuts)[:, None]
    want = torch.stack([row[: 4 - n_padded].mean() for row, n_padded in zip(errors, cuts, strict=True)])
    torch.testing.assert_close(chunk_loss(errors, padding), want)
    torch.testing.assert_close(chunk_loss(errors + 100 * padding[..., None], padding, torch.ones_like(padding)), want)


# --- lerobot as the oracle ---


@pytest.mark.parametrize("name", FLOW)
def test_trained_padding_is_lerobots_loss(tiny, name):
    policy, batches = tiny(name)
    batch = batches(FRAMES)
    loss = seeded(policy, batch, TRAINED)
    torch.manual_seed(3)
    plain = {key: value for key, value in batch.items() if key != "action_is_pad"}  # SmolVLA leaves padding out
    lerobots = next(c for c in type(policy).__mro__ if c.__module__.startswith("lerobot"))
    reference, _ = lerobots.forward(policy, plain, reduction="none")
    assert torch.equal(loss, reference)
    torch.manual_seed(3)
    mean, _ = policy(plain)  # the call of lerobot's own trainer
    torch.testing.assert_close(loss.mean(), mean)


@pytest.mark.parametrize("name", FLOW)
def test_masked_padding_leaves_padded_actions_out(tiny, name):
    policy, batches = tiny(name)
    batch = batches(FRAMES)
    assert batch["action_is_pad"].sum(1).tolist() == [0, 2, 1, 0]
    masked_loss, trained_loss = seeded(policy, batch), seeded(policy, batch, TRAINED)
    torch.testing.assert_close(masked_loss[[0, 3]], trained_loss[[0, 3]])
    assert not torch.isclose(masked_loss[[1, 2]], trained_loss[[1, 2]]).any()
    one_hot = torch.zeros(4, 4)
    parts = []
    for step in range(4):  # a weight of 4 on one action and 0 on the others gives that action's error
        one_hot.zero_()[:, step] = 4.0
        parts.append(seeded(policy, batch, TRAINED, action_weights=one_hot))
    steps = torch.stack(parts, dim=1)
    torch.testing.assert_close(masked_loss[1], steps[1, :2].mean())
    torch.testing.assert_close(masked_loss[2], steps[2, :3].mean())
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    valid = ~batch["action_is_pad"]
    torch.testing.assert_close(
        seeded(policy, batch, action_weights=weights), (steps * weights * valid).sum(1) / valid.sum(1)
    )


@pytest.mark.parametrize("frames", [FRAMES, [1], [11, 10, 2], list(range(12))])
def test_batch_balance_is_lerobots_token_mean(tiny, frames):
    policy, batches = tiny("pi0_fast")
    batch = batches(frames)
    reference, _ = policy(batch)
    torch.testing.assert_close(per_sample_loss(policy, batch, LEROBOT).mean(), reference)
    if len(frames) > 1:  # samples have different numbers of tokens, so the balances differ
        assert not torch.isclose(per_sample_loss(policy, batch, TRAINED).mean(), reference, rtol=1e-6)


def test_sample_balance_is_lerobots_loss_of_each_sample_alone(tiny):
    policy, batches = tiny("pi0_fast")
    together = per_sample_loss(policy, batches(FRAMES), TRAINED)
    alone = torch.stack([policy(batches([frame]))[0] for frame in FRAMES])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", ["pi0", "pi0_fast"])
@pytest.mark.parametrize("padding", ["masked", "trained"])
def test_a_batch_of_one_is_a_row_of_a_batch(tiny, name, padding, monkeypatch):
    policy, batches = tiny(name)
    options = LossOptions(padding=padding)
    generators = {f: torch.Generator().manual_seed(f) for f in FRAMES}
    noise = {f: torch.randn(4, 5, generator=g) for f, g in generators.items()}
    now: list[int] = []
    if name == "pi0":
        monkeypatch.setattr(policy.model, "sample_noise", lambda *_: torch.stack([noise[f] for f in now]))
        monkeypatch.setattr(policy.model, "sample_time", lambda *_: torch.tensor([0.1 * (f + 1) / 2 for f in now]))

    def losses(frames):
        now[:] = frames
        return per_sample_loss(policy, batches(frames), options)

    rows = losses(FRAMES)
    torch.testing.assert_close(rows, torch.cat([losses([frame]) for frame in FRAMES]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pi0", "pi0_fast"])
def test_gradient_is_the_weighted_sum_of_per_sample_gradients(tiny, name):
    (policy, batches), weights = tiny(name), torch.tensor([0.0, 0.5, 4.0])
    losses = seeded(policy, batches([0, 5, 9]), TRAINED)
    parts = ("action_out_proj", "patch_embedding") if name == "pi0" else ("lm_head", "patch_embedding")
    parameters = [p for n, p in policy.named_parameters() if any(part in n for part in parts)][-3:]
    singles = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    loss, _ = awr_loss(losses, weights)
    for number, actual in enumerate(torch.autograd.grad(loss, parameters)):
        want = torch.stack([w * single[number] for w, single in zip(weights, singles, strict=True)]).mean(0)
        assert want.abs().max() > 0
        torch.testing.assert_close(actual, want, rtol=1e-4, atol=1e-6)


# --- pi0-FAST's own ---


def test_masked_chunks_of_fast_train_as_a_whole_or_not_at_all(tiny):
    policy, batches = tiny("pi0_fast")
    batch = batches(FRAMES)
    masked_loss, trained_loss = per_sample_loss(policy, batch), per_sample_loss(policy, batch, TRAINED)
    assert torch.equal(masked_loss, trained_loss * torch.tensor([1.0, 0.0, 0.0, 1.0]))
    balanced_loss = per_sample_loss(policy, batch, LossOptions(tokens="batch"))
    reference, _ = policy(batches([0, 3]))  # lerobot's loss of the whole chunks alone
    torch.testing.assert_close(balanced_loss.mean(), reference)
    assert per_sample_loss(policy, batches([5, 9])).tolist() == [0.0, 0.0]


def test_logits_are_made_a_slice_of_real_tokens_at_a_time(tiny, monkeypatch):
    """Never (B, T, vocabulary): the head sees the tokens that count, `_SLICE` at once, and the gradient is the same."""
    policy, batches = tiny("pi0_fast")
    batch, rows = batches(FRAMES), []
    head = policy.model.paligemma_with_expert.paligemma.lm_head
    parameters = [
        head.weight,
        policy.model.paligemma_with_expert.paligemma.model.language_model.layers[0].mlp.up_proj.weight,
    ]
    whole = per_sample_loss(policy, batch, TRAINED)
    gradient = torch.autograd.grad(whole.sum(), parameters)
    monkeypatch.setattr(fast, "_SLICE", 7)
    handle = head.register_forward_hook(lambda _, inputs, __: rows.append(tuple(inputs[0].shape)))
    loss_rows = per_sample_loss(policy, batch, TRAINED)
    handle.remove()
    tokens = int((batch["action.token_mask"].sum(1) - 1).sum())  # the first token is given
    assert sum(row[0] for row in rows) == tokens
    assert all(len(row) == 2 and row[0] <= 7 for row in rows)
    torch.testing.assert_close(loss_rows, whole)
    for actual, want in zip(torch.autograd.grad(loss_rows.sum(), parameters), gradient, strict=True):
        torch.testing.assert_close(actual, want, rtol=1e-4, atol=1e-6)


def test_fast_has_no_loss_per_action(tiny):
    policy, batches = tiny("pi0_fast")
    with pytest.raises(TrainingError, match="no loss per action"):
        per_sample_loss(policy, batches([0]), action_weights=torch.ones(1, 4))
    with pytest.raises(RecipeError, match="set action_weights = false"):
        build_policy(replace(FAST, action_weights=True), tiny.buffer)


@pytest.mark.parametrize("name", ["pi0", "pi0_fast"])
def test_activation_checkpointing_changes_no_gradient(tiny, name):
    recipe = FAMILIES[name]
    checkpointing, _, _ = build_policy(
        replace(recipe, config=recipe.config | {"gradient_checkpointing": True}), tiny.buffer
    )
    policy, batches = tiny(name)
    batch, gradients = batches(FRAMES), []
    for model in (policy, checkpointing):
        model.train()
        pairs = [(n, p) for n, p in model.named_parameters() if "patch_embedding" in n or "layers.0.mlp" in n]
        gradients.append(torch.autograd.grad(seeded(model, batch).sum(), [p for _, p in pairs], allow_unused=True))
    assert checkpointing.model.gradient_checkpointing_enabled
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
