"""The weighted loss against hand-made sums, on a real (tiny) pi0."""

import pytest
import torch
from test_policies import RECIPE, record_dataset

from srpo_robot.awr.losses import awr_loss, per_sample_loss
from srpo_robot.awr.policies import build_policy
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import TrainingError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A policy and one preprocessed batch of three samples."""
    buffer = record_dataset(tmp_path_factory.mktemp("losses") / "walks")
    policy, preprocessor, _ = build_policy(RECIPE, buffer)
    return policy, preprocessor(TrainingSet(buffer, 4).__getitems__([0, 5, 9]))


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


def test_uniform_weights_give_lerobots_own_mean(tiny):
    policy, batch = tiny
    torch.manual_seed(3)
    ours, _ = awr_loss(per_sample_loss(policy, batch), torch.ones(3))
    torch.manual_seed(3)
    theirs, _ = policy.forward(batch)
    torch.testing.assert_close(ours, theirs)


def test_gradient_is_the_weighted_sum_of_per_sample_gradients(tiny):
    (policy, batch), weights = tiny, torch.tensor([0.0, 0.5, 4.0])
    torch.manual_seed(3)
    losses = per_sample_loss(policy, batch)
    parameters = [p for name, p in policy.named_parameters() if "action_out_proj" in name or "patch_embedding" in name]
    singles = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    loss, _ = awr_loss(losses, weights)
    for number, got in enumerate(torch.autograd.grad(loss, parameters)):
        want = torch.stack([w * single[number] for w, single in zip(weights, singles, strict=True)]).mean(0)
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
