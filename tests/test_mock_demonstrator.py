"""The scripted expert: it succeeds, recovers, and fails as it is told."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import TCP_NAMES, make_action_space
from srpo_robot.errors import UsageError
from srpo_robot.mock import tasks
from srpo_robot.mock.arm import MockArm, make_mock
from srpo_robot.mock.demonstrator import Demonstrator, Failure, Phase, choose_failure
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load

HARDWARE = dataclasses.replace(load(HardwareRecipe, "hardware", "mock"), cameras=())
TASK = load(TaskRecipe, "datasets", "put-apple")
DISTURBANCE_M = 0.008


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    success: bool
    actions: np.ndarray  # (T, 4)
    tcp_m: np.ndarray  # (T, 3) measured before each action
    phases: list[Phase]


def run(
    seed: int,
    failure: Failure,
    disturbance_m: float = DISTURBANCE_M,
    meddle: Callable[[MockArm, Demonstrator], None] = lambda arm, expert: None,
    task: TaskRecipe = TASK,
) -> Run:
    arm, cell = make_mock(HARDWARE, task, wide_starts=0.6, disturbance_m=disturbance_m)
    space, expert = make_action_space("tcp", arm.limits, arm.home_rad), Demonstrator(arm.sim)
    actions, tcp, phases = [], [], []
    with arm:
        cell.reset(seed)
        expert.reset(seed, failure)
        while (chunk := expert.act(seen := arm.observe())) is not None:
            assert chunk.names == TCP_NAMES and chunk.actions.shape == (1, 4)
            actions.append(chunk.actions[0])
            tcp.append(kinematics.tcp_position(seen.state.joints_rad, arm.limits.tcp_offset_m))
            phases.append(expert.phase)
            arm.send(space.command(chunk.actions[0], arm.reference()).command)
            meddle(arm, expert)
        return Run(bool(cell.verdict(ended=True)), np.array(actions), np.array(tcp), phases)


@pytest.mark.parametrize("seed", range(8))
def test_it_succeeds_with_the_disturbance_on(seed: int) -> None:
    done = run(seed, Failure.NONE)
    assert done.success
    assert 45 <= len(done.actions) <= 110
    assert np.linalg.norm(done.actions[:, :3] - done.tcp_m, axis=1).max() <= 0.0401  # a target is near where it is


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("failure", [kind for kind in Failure if kind is not Failure.NONE])
def test_it_fails_as_told(failure: Failure, seed: int) -> None:
    done = run(seed, failure)
    assert not done.success
    if failure is Failure.STOP:
        assert (done.actions[-20:] == done.actions[-1]).all() and Phase.RELEASE not in done.phases
    else:
        assert done.phases[-1] is Phase.HOME  # it goes through all the motions


def test_a_wrong_demonstration_puts_another_object_on_the_plate() -> None:
    on_plate: list[set[str]] = []

    def look(arm: MockArm, expert: Demonstrator) -> None:
        facts = arm.sim.facts()
        on_plate.append({name for name in facts.objects_m if tasks.on_plate(facts, name)})

    run(2, Failure.WRONG, meddle=look)
    assert len(on_plate[-1]) == 1 and "apple" not in on_plate[-1]


def test_a_miss_moves_no_apple_and_closes_on_nothing() -> None:
    seen: list[tuple[float, float]] = []

    def look(arm: MockArm, expert: Demonstrator) -> None:
        facts = arm.sim.facts()
        seen.append((facts.objects_m["apple"][2], facts.gripper_m))

    run(0, Failure.MISS, disturbance_m=0.0, meddle=look)
    heights, openings = np.array(seen).T
    assert heights.max() < 0.032 and openings.min() < 0.002


def test_it_tries_again_when_the_apple_is_taken_away() -> None:
    taken: list[Phase] = []

    def take(arm: MockArm, expert: Demonstrator) -> None:
        if expert.phase is Phase.CARRY and not taken:
            taken.append(expert.phase)
            arm.sim.move_object("apple", np.array([0.42, 0.03, 0.030]))

    bare = dataclasses.replace(TASK, distractors=("pear",))
    done = run(0, Failure.NONE, meddle=take, task=bare)
    changes = [pair for pair in pairwise(done.phases) if pair[0] is not pair[1]]
    assert (Phase.CARRY, Phase.APPROACH) in changes  # at once, not after the motions over the plate
    assert done.success


def test_the_same_seed_gives_the_same_demonstration() -> None:
    one, other = run(5, Failure.NONE), run(5, Failure.NONE)
    assert one.actions.shape == other.actions.shape and (one.actions == other.actions).all()


def test_failures_come_at_their_rate_and_depend_on_the_seed_alone() -> None:
    drawn = [choose_failure(seed, 0.4) for seed in range(1500)]
    assert drawn == [choose_failure(seed, 0.4) for seed in range(1500)]
    shares = {kind: drawn.count(kind) / len(drawn) for kind in Failure}
    assert shares[Failure.NONE] == pytest.approx(0.6, abs=0.05)
    for kind in set(Failure) - {Failure.NONE}:
        assert shares[kind] == pytest.approx(0.1, abs=0.03)
    assert {choose_failure(seed, 0.0) for seed in range(50)} == {Failure.NONE}
    assert Failure.NONE not in {choose_failure(seed, 1.0) for seed in range(50)}


def test_a_demonstrator_draws_its_failure_by_its_rate() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        cell.reset(0)
        expert = Demonstrator(arm.sim, failure_rate=0.5)
        for seed in range(10):
            expert.reset(seed)
            assert expert.failure is choose_failure(seed, 0.5)


def test_refusals_say_what_would_work() -> None:
    with pytest.raises(UsageError, match="failure_rate is 2; it is a probability"):
        choose_failure(0, 2)
    arm, cell = make_mock(HARDWARE, dataclasses.replace(TASK, distractors=()))
    with pytest.raises(UsageError, match="reset the workcell before the demonstrator"):
        Demonstrator(arm.sim).reset(0)
    with arm:
        cell.reset(0)
        with pytest.raises(UsageError, match="no other object to pick"):
            Demonstrator(arm.sim).reset(0, Failure.WRONG)
