"""Compares samples from memory and from disk with lerobot's reader."""

import numpy as np
import pytest
import torch
from conftest import real_data
from test_policies import TASKS, record_dataset
from torch.utils.data import DataLoader

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.training import DiskFrames, TrainingSet, cached_bytes, collate
from srpo_robot.errors import DatasetError, UndecodableFrame

CHUNK = 4


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("samples") / "walks")


def lerobot_dataset(buffer, chunk):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = [k / buffer.fps for k in range(chunk)]
    return LeRobotDataset(f"local/{buffer.root.name}", root=buffer.root, delta_timestamps={"action": times})


def assert_same(item, reference, cameras):
    for key in (*cameras, "observation.state", "action", "action_is_pad", "index", "episode_index"):
        assert item[key].dtype == reference[key].dtype, key
        assert torch.equal(item[key], reference[key]), key
    assert item["task"] == reference["task"]


@pytest.mark.parametrize("cache_gb", [4.0, 0.0], ids=["memory", "disk"])
def test_equal_to_lerobots_items(buffer, cache_gb):
    samples, reference = TrainingSet(buffer, CHUNK, cache_gb), lerobot_dataset(buffer, CHUNK)
    assert samples.in_memory is (cache_gb > 0)
    assert len(samples) == len(reference) == 12
    for index in range(len(samples)):
        assert_same(samples[index], reference[index], buffer.cameras)


def test_equal_to_lerobots_items_on_real_images():
    buffer = open_buffer(real_data("bridge_mini"))
    reference = lerobot_dataset(buffer, CHUNK)
    for cache_gb in (4.0, 0.0):
        samples = TrainingSet(buffer, CHUNK, cache_gb)
        for index in (0, 8, 9, 10, 249):
            assert_same(samples[index], reference[index], buffer.cameras)


def test_the_last_action_of_the_episode_is_repeated_and_marked(buffer):
    sample, actions = TrainingSet(buffer, CHUNK)[5], buffer.column("action")  # the episode's frames are 0 to 6
    np.testing.assert_array_equal(sample["action"], actions[[5, 6, 6, 6]])
    assert sample["action_is_pad"].tolist() == [False, False, True, True]


def test_a_batch_stacks_its_items(buffer):
    samples, rows = TrainingSet(buffer, CHUNK), [11, 0, 7]
    batch = next(iter(DataLoader(samples, batch_size=3, sampler=rows, collate_fn=collate)))  # type: ignore[arg-type]
    assert batch["task"] == [TASKS[1], TASKS[0], TASKS[1]]
    for position, row in enumerate(rows):
        for key, value in samples[row].items():
            if key != "task":
                assert torch.equal(batch[key][position], value), key


def test_a_sample_does_not_share_memory_with_the_set(buffer):
    samples = TrainingSet(buffer, CHUNK)
    for key in ("observation.images.front", "observation.state", "action"):
        samples[0][key].zero_()
        assert samples[0][key].abs().max() > 0, key


def test_the_reported_memory_is_correct(buffer):
    assert cached_bytes(buffer) == 12 * 2 * 32 * 32 * 3
    assert TrainingSet(buffer, CHUNK, cached_bytes(buffer) / 1e9).in_memory
    assert not TrainingSet(buffer, CHUNK, cached_bytes(buffer) / 1e9 * 0.99).in_memory


def test_out_of_range_is_an_error(buffer):
    with pytest.raises(IndexError):
        TrainingSet(buffer, CHUNK)[12]
    with pytest.raises(IndexError):
        TrainingSet(buffer, CHUNK)[-1]


def test_dataset_without_action(buffer, monkeypatch):
    monkeypatch.setattr(buffer.meta.info, "features", {k: v for k, v in buffer.meta.features.items() if k != "action"})
    with pytest.raises(DatasetError, match="walks has no action"):
        TrainingSet(buffer, CHUNK)


def test_an_undecodable_frame_on_disk_is_a_one_line_error(buffer, monkeypatch):
    source = DiskFrames(buffer)

    def fail(*_):
        raise ValueError("two\nlines")

    monkeypatch.setattr(type(source._dataset), "__getitem__", fail)
    with pytest.raises(UndecodableFrame, match=r"frame 3 .* two lines"):
        source(np.array([3]))
