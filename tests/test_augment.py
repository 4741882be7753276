"""Augmentation may change a policy's observations but never its target actions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_policies import RECIPE, record_dataset

from srpo_robot.awr.augment import Augmentation, shifted
from srpo_robot.awr.policies import build_policy
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import UsageError

DISTURBED = replace(RECIPE, image_shift=0.1, state_noise=0.05)


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("augment") / "walks")


@pytest.fixture(scope="module")
def parts(buffer):
    return build_policy(RECIPE, buffer)


@pytest.fixture(scope="module")
def batch(buffer):
    return TrainingSet(buffer, 4).__getitems__(list(range(buffer.total_frames)))


def test_a_shift_by_hand():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    down = shifted(image, torch.tensor([[1.0, 0.0]]), 0.25)  # one pixel of four
    assert down[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    result = shifted(image, torch.tensor([[0.0, -1.0]]), 0.5)
    assert result[0, 0, 0].tolist() == [2, 3, 3, 3]


@given(st.integers(2, 9), st.integers(2, 9), st.floats(0, 0.49), st.lists(st.floats(-1, 1), min_size=2, max_size=2))
def test_a_shift_keeps_the_pixels_that_stay_inside(height, width, most, by):
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    result = shifted(image, torch.tensor([by]), most)
    assert result.shape == image.shape
    reach = round(most * max(height, width))
    y, x = (int(torch.round(torch.tensor(b) * reach)) for b in by)
    inside = np.s_[..., max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
    source = np.s_[..., max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
    if abs(y) < height and abs(x) < width:
        assert torch.equal(result[inside], image[source])


def test_the_target_motion_does_not_change(buffer, parts, batch):
    policy, preprocess, _ = parts
    augmented = Augmentation(buffer, DISTURBED, policy.config)(batch, 3, 0, len(batch["index"]))
    before, after = preprocess(dict(batch)), preprocess(dict(augmented))
    assert torch.allclose(before["action"], after["action"], atol=1e-4)
    assert not torch.equal(before["observation.state"], after["observation.state"])
    for camera in buffer.cameras:
        assert not torch.equal(before[camera], after[camera])


def test_an_absolute_action_does_not_change(buffer, parts, batch):
    config = replace(parts[0].config, use_relative_actions=False)
    augmented = Augmentation(buffer, DISTURBED, config)(batch, 3, 0, len(batch["index"]))
    assert torch.equal(augmented["action"], batch["action"])
    assert not torch.equal(augmented["observation.state"], batch["observation.state"])


def test_noise_is_a_fraction_of_each_values_range(buffer, parts, batch):
    many = {key: torch.cat([value] * 200) for key, value in batch.items() if torch.is_tensor(value)}
    size = len(many["index"])
    noise = Augmentation(buffer, DISTURBED, parts[0].config)(many, 1, 0, size)["observation.state"]
    noise = (noise - many["observation.state"]).numpy()
    low, high = np.quantile(buffer.column("observation.state"), [0.01, 0.99], axis=0)
    assert np.abs(noise).max(axis=0) == pytest.approx(0.05 * (high - low), rel=0.02)
    assert np.abs(noise.mean(axis=0) / (high - low)).max() < 0.005
    correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(correlation).max() < 0.1  # each value has its own noise


def test_draws_depend_on_the_step_and_the_place_in_the_batch(buffer, parts, batch):
    disturb = Augmentation(buffer, DISTURBED, parts[0].config)
    whole = disturb(batch, 7, 0, 12)
    part = disturb({k: v[4:8] for k, v in batch.items()}, 7, 4, 12)
    for key in ("observation.state", "action", *buffer.cameras):
        assert torch.equal(part[key], whole[key][4:8]), key
        assert not torch.equal(disturb(batch, 8, 0, 12)[key], whole[key]), key


def test_a_batch_without_shift_and_noise_is_unchanged(buffer, parts, batch):
    assert Augmentation(buffer, RECIPE, parts[0].config)(batch, 1, 0, 12) is batch


@pytest.mark.parametrize(("key", "value"), [("image_shift", 0.5), ("image_shift", -0.1), ("state_noise", 1.0)])
def test_settings_out_of_range_are_refused(buffer, tmp_path, key, value):
    from srpo_robot.awr.train import LoopOptions, train

    with pytest.raises(UsageError, match=f"{key} {value} must be at least 0 and below"):
        train(
            buffer,
            replace(RECIPE, **{key: value}),
            np.ones(buffer.total_frames),
            tmp_path / "run",
            LoopOptions(device="cpu"),
        )
