"""Tests of sampling: steps are equal under every split, an epoch has each frame once, held-out episodes never."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.datasets.sampler import EpisodeAwareSampler
from lerobot.policies.common.flow_matching import sample_noise, sample_time_beta

from srpo_robot.awr.sampling import FlowNoise, SampleOrder, Split, WeightedSampler, held_out, spread_frames
from srpo_robot.errors import UsageError
from srpo_robot.records import Episode


def episodes(*lengths: int, tasks: str = "", groups: list[str] | None = None) -> list[Episode]:
    """Returns episodes of these lengths. `tasks` has a letter for each (one task by default)."""
    result, first = [], 0
    for number, length in enumerate(lengths):
        group = groups[number] if groups else ""
        result.append(
            Episode(
                index=number,
                task=tasks[number] if tasks else "t",
                length=length,
                fps=10.0,
                first_frame=first,
                cameras=(),
                success=True,
                group=group,
            )
        )
        first += length
    return result


def frames_by_step(
    of: list[Episode],
    seed: int,
    split: tuple[int, int, int],
    steps: int,
    first: int = 0,
    weights: np.ndarray | None = None,
) -> list[list[int]]:
    """Returns the frames of each step, gathered from all processes in batch order."""
    parts, (per_pass, passes, processes) = [], split
    for process in range(processes):
        process_split = Split(per_pass, passes, processes, process)
        batches = list(islice(SampleOrder(of, seed, process_split, first, weights), steps * passes))
        parts.append([(number, process_split.first(number % passes), rows) for number, rows in enumerate(batches)])
    by_step: list[dict[int, list[int]]] = [{} for _ in range(steps)]
    for number, place, rows in (entry for process in parts for entry in process):
        by_step[number // passes][place] = rows
    return [[frame for _, rows in sorted(step.items()) for frame in rows] for step in by_step]


splits = st.sampled_from([(8, 1, 1), (4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4)])
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 9), splits, st.integers(0, 5))
def test_a_step_has_the_same_frames_under_every_split(lengths, seed, split, first):
    of = episodes(*lengths)
    whole = frames_by_step(of, seed, (8, 1, 1), 4, first)
    assert frames_by_step(of, seed, split, 4, first) == whole
    assert frames_by_step(of, seed, (8, 1, 1), 4 + first)[first:] == whole  # resumed at `first`, or run up to it


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 9))
def test_each_epoch_has_each_frame_once_in_lerobots_order(lengths, seed):
    of = episodes(*lengths)
    total = sum(lengths)
    frames = [frame for step in frames_by_step(of, seed, (1, 1, 1), 2 * total) for frame in step]
    sampler = EpisodeAwareSampler(
        [e.first_frame for e in of], [e.first_frame + e.length for e in of], shuffle=True, seed=seed
    )
    assert frames == [*sampler, *sampler]
    assert sorted(frames[:total]) == list(range(total))


# --- drawn by weight ---

weight_lists = st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0, 3.0, 20.0]), min_size=1, max_size=40).filter(any)


@settings(max_examples=200, deadline=None)
@given(weight_lists, st.integers(0, 99), st.integers(0, 3))
def test_an_epoch_draws_each_frame_as_often_as_its_weight_rounded_up_or_down(weights, seed, epoch):
    weight = np.array(weights)
    draws = WeightedSampler(np.arange(len(weight)) + 7, weight, seed).epoch(epoch) - 7
    counts, due = np.bincount(draws, minlength=len(weight)), weight * len(weight) / weight.sum()
    assert len(draws) == len(weight)
    assert (counts >= np.floor(due - 1e-6)).all()
    assert (counts <= np.ceil(due + 1e-6)).all()
    assert (counts[weight == 0] == 0).all()


def test_over_many_epochs_a_frame_is_drawn_its_weight_times():
    weight = np.array([0.0, 0.25, 0.5, 1.0, 3.25])
    sampler = WeightedSampler(np.arange(5), weight, 3)
    counts = np.bincount(np.concatenate([sampler.epoch(number) for number in range(4000)]), minlength=5) / 4000
    assert counts == pytest.approx(weight, abs=0.03)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 9), splits, st.integers(0, 5))
def test_weighted_draws_do_not_depend_on_split_and_resume(lengths, seed, split, first):
    of, weight = episodes(*lengths), np.random.default_rng(seed).random(sum(lengths))
    whole = frames_by_step(of, seed, (8, 1, 1), 4, first, weight)
    assert frames_by_step(of, seed, split, 4, first, weight) == whole
    assert frames_by_step(of, seed, (8, 1, 1), 4 + first, 0, weight)[first:] == whole


def test_weighted_draws_skip_held_out_episodes():
    of, weight = episodes(3, 4, 5), np.ones(12)
    frames = [frame for step in frames_by_step([of[0], of[2]], 0, (4, 1, 1), 20, 0, weight) for frame in step]
    assert set(frames) == {0, 1, 2, 7, 8, 9, 10, 11}


# --- held out ---


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.floats(0.01, 0.5), st.integers(0, 5))
def test_a_share_of_each_task_is_held_out_by_seed(number, share, seed):
    of = episodes(*[3] * (2 * number), tasks="ab" * number)
    chosen = held_out(of, share, seed)
    for task in "ab":
        assert sum(of[i].task == task for i in chosen) == max(1, round(share * number))
    assert chosen == held_out(of, share, seed)
    assert held_out(of, 0.0, seed) == frozenset()


def test_another_seed_holds_out_other_episodes():
    of = episodes(*[3] * 30)
    assert len({held_out(of, 0.1, seed) for seed in range(8)}) > 4


def test_a_group_is_held_out_together_across_tasks():
    of = episodes(*[3] * 6, tasks="aabbab", groups=["x", "y", "x", "z", "v", "w"])
    for seed in range(10):
        chosen = held_out(of, 0.3, seed)
        assert {0, 2} <= chosen or not {0, 2} & chosen


def test_a_task_must_keep_an_episode():
    with pytest.raises(UsageError, match="leaves 'b' no episode to train on"):
        held_out(episodes(3, 3, 3, tasks="aab"), 0.1, 0)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="must be at least 0 and below 1"):
            held_out(episodes(3, 3), share, 0)


def test_frames_are_spread_over_the_whole_episode():
    assert spread_frames(episodes(5, 5)[1:], 100) == [5, 6, 7, 8, 9]
    assert spread_frames(episodes(5, 5), 4) == [0, 3, 6, 9]


# --- noise ---


class Flow(torch.nn.Module):
    """A module with the two methods that FlowNoise replaces in a policy."""

    def sample_noise(self, shape: Any, device: Any) -> torch.Tensor:
        return sample_noise(shape, device)

    def sample_time(self, bsize: int, device: Any) -> torch.Tensor:
        return sample_time_beta(bsize, device, alpha=1.5, beta=1.0, scale=0.999, offset=0.001)


def draw_noise(key: tuple[int, ...], first: int, samples: int, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    flow = Flow()
    with FlowNoise(torch.nn.Sequential(flow)).rows(key, first, total):
        return flow.sample_noise((samples, 3, 2), "cpu"), flow.sample_time(samples, "cpu")


def test_noise_depends_on_the_batch_position_and_the_step():
    noise, time = draw_noise((5, 1), 0, 8, 8)
    assert len(noise.unique()) == noise.numel()
    assert len(time.unique()) == 8
    assert ((time >= 0.001) & (time <= 1)).all()
    for first, samples in ((0, 3), (3, 5), (7, 1)):
        torch.manual_seed(first)  # earlier draws have no effect
        part_noise, part_time = draw_noise((5, 1), first, samples, 8)
        assert torch.equal(part_noise, noise[first : first + samples])
        assert torch.equal(part_time, time[first : first + samples])
    for key in ((5, 2), (6, 1)):
        assert not torch.equal(draw_noise(key, 0, 8, 8)[0], noise)


def test_drawing_does_not_change_torchs_generator_or_the_policy():
    flow = Flow()
    noise = FlowNoise(torch.nn.Sequential(flow))
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    with noise.rows((5, 1), 0, 4):
        first = flow.sample_noise((4, 2), "cpu")
    assert torch.equal(torch.rand(2), want)
    assert "sample_noise" not in vars(flow)
    with noise.rows((5, 2), 0, 4):
        assert not torch.equal(flow.sample_noise((4, 2), "cpu"), first)


def test_a_policy_without_noise_is_accepted():
    with FlowNoise(torch.nn.Linear(1, 1)).rows((5, 1), 0, 4):
        pass
