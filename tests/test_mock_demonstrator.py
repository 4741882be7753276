"""The scripted expert of every task: it succeeds, recovers, and fails as planned."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import TCP_NAMES, make_action_space
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.mock import tasks
from srpo_robot.mock.arm import MockArm, make_mock
from srpo_robot.mock.demonstrator import Demonstrator, ExpertStage, Failure, choose_failure, choose_strategy
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load

HARDWARE = dataclasses.replace(load(HardwareRecipe, "hardware", "mock"), cameras=())
TASK = load(TaskRecipe, "datasets", "put-apple")
DISTURBANCE_M = 0.008
OTHERS = {name: load(TaskRecipe, "datasets", name) for name in tasks.TASKS if name != "put-apple"}
WAYS = [(name, way) for name in OTHERS for way in tasks.task_named(name).strategies]
FAILURES = [(name, Failure(kind)) for name in OTHERS for kind in tasks.task_named(name).failures]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    success: bool
    actions: np.ndarray  # (T, 4)
    tcp_m: np.ndarray  # (T, 3) measured before each action
    phases: list[ExpertStage]
    score: float
    objects_m: dict[str, np.ndarray]  # at the end


def run(
    seed: int,
    failure: Failure,
    disturbance_m: float = DISTURBANCE_M,
    meddle: Callable[[MockArm, Demonstrator], None] = lambda arm, expert: None,
    task: TaskRecipe = TASK,
    strategy: str | None = None,
) -> Run:
    arm, cell = make_mock(HARDWARE, task, wide_starts=0.6, disturbance_m=disturbance_m)
    space, expert = make_action_space("tcp", arm.limits, arm.home_rad), Demonstrator(arm.sim)
    actions, tcp, phases = [], [], []
    with arm:
        cell.reset(seed)
        expert.reset(seed, failure, strategy)
        while (chunk := expert.act(observation := arm.observe())) is not None:
            assert chunk.names == TCP_NAMES and chunk.actions.shape == (1, 4)
            actions.append(chunk.actions[0])
            tcp.append(kinematics.tcp_position(observation.state.joints_rad, arm.limits.tcp_offset_m))
            phases.append(expert.stage)
            arm.send(space.command(chunk.actions[0], arm.reference()).command)
            meddle(arm, expert)
        verdict, objects = bool(cell.verdict(ended=True)), dict(arm.sim.facts().objects_m)
        return Run(verdict, np.array(actions), np.array(tcp), phases, cell.score(), objects)


@pytest.mark.parametrize("seed", range(8))
def test_it_succeeds_with_the_disturbance_on(seed: int) -> None:
    result = run(seed, Failure.NONE)
    assert result.success
    assert 45 <= len(result.actions) <= 110
    assert (
        np.linalg.norm(result.actions[:, :3] - result.tcp_m, axis=1).max() <= 0.0401
    )  # a target is near the arm's position


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("failure", [kind for kind in Failure if kind is not Failure.NONE])
def test_it_fails_as_planned(failure: Failure, seed: int) -> None:
    result = run(seed, failure)
    assert not result.success
    if failure is Failure.STOP:
        assert (result.actions[-20:] == result.actions[-1]).all() and ExpertStage.RELEASE not in result.phases
    else:
        assert result.phases[-1] is ExpertStage.HOME  # it goes through all the motions


def test_a_wrong_demonstration_puts_another_object_on_the_plate() -> None:
    on_plate: list[set[str]] = []

    def look(arm: MockArm, expert: Demonstrator) -> None:
        facts = arm.sim.facts()
        on_plate.append({name for name in facts.objects_m if tasks.on_plate(facts, name)})

    run(2, Failure.WRONG, meddle=look)
    assert len(on_plate[-1]) == 1 and "apple" not in on_plate[-1]


def test_a_miss_moves_no_apple_and_closes_on_nothing() -> None:
    samples: list[tuple[float, float]] = []

    def look(arm: MockArm, expert: Demonstrator) -> None:
        facts = arm.sim.facts()
        samples.append((facts.objects_m["apple"][2], facts.gripper_m))

    run(0, Failure.MISS, disturbance_m=0.0, meddle=look)
    heights, openings = np.array(samples).T
    assert heights.max() < 0.032 and openings.min() < 0.002


def test_it_tries_again_when_the_apple_is_taken_away() -> None:
    stages: list[ExpertStage] = []

    def take(arm: MockArm, expert: Demonstrator) -> None:
        if expert.stage is ExpertStage.CARRY and not stages:
            stages.append(expert.stage)
            arm.sim.move_object("apple", np.array([0.42, 0.03, 0.030]))

    bare = dataclasses.replace(TASK, distractors=("pear",))
    result = run(0, Failure.NONE, meddle=take, task=bare)
    changes = [pair for pair in pairwise(result.phases) if pair[0] is not pair[1]]
    assert (ExpertStage.CARRY, ExpertStage.APPROACH) in changes  # at once, not after the motions over the plate
    assert result.success


def test_the_same_seed_gives_the_same_demonstration() -> None:
    first, second = run(5, Failure.NONE), run(5, Failure.NONE)
    assert first.actions.shape == second.actions.shape and (first.actions == second.actions).all()


def test_failures_come_at_their_rate_and_depend_on_the_seed_alone() -> None:
    failures = [choose_failure(seed, 0.4) for seed in range(1500)]
    assert failures == [choose_failure(seed, 0.4) for seed in range(1500)]
    shares = {kind: failures.count(kind) / len(failures) for kind in Failure}
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


# --- every task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "strategy"), WAYS)
def test_each_strategy_does_its_task(name: str, strategy: str, seed: int) -> None:
    result = run(seed, Failure.NONE, 0.006, task=OTHERS[name], strategy=strategy)
    assert result.success and result.score >= 0.95
    assert len(result.actions) * 0.1 < OTHERS[name].time_limit_s  # it fits into the time limit of a trial


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize(("name", "failure"), FAILURES)
def test_each_failure_fails(name: str, failure: Failure, seed: int) -> None:
    result = run(seed, failure, 0.006, task=OTHERS[name])
    assert not result.success
    if failure is Failure.STOP:
        assert (result.actions[-20:] == result.actions[-1]).all()
    else:
        assert result.phases[-1] is ExpertStage.HOME  # it goes through all the motions


def test_strategies_move_differently() -> None:
    heights = {way: run(0, Failure.NONE, 0.0, task=OTHERS["put-pear"], strategy=way) for way in ("direct", "around")}
    carry_heights = {
        way: [z for z, phase in zip(result.tcp_m[:, 2], result.phases, strict=True) if phase is ExpertStage.CARRY]
        for way, result in heights.items()
    }
    assert max(carry_heights["around"]) > max(carry_heights["direct"]) + 0.04
    lay, flip = (run(0, Failure.NONE, 0.0, task=OTHERS["fold-towel"], strategy=way) for way in ("lay", "flip"))
    folding = [result.phases.count(ExpertStage.FOLD) for result in (lay, flip)]
    assert folding[1] < 0.8 * folding[0]  # `flip` lets the flap fall


def test_a_missed_lane_leaves_ink_and_a_lifted_eraser_more() -> None:
    scores = {
        kind: np.mean([run(seed, kind, 0.0, task=OTHERS["wipe-board"]).score for seed in range(6)])
        for kind in (Failure.MISS, Failure.DROP, Failure.NONE)
    }
    assert 0.2 < scores[Failure.MISS] < 0.9
    assert scores[Failure.DROP] < scores[Failure.MISS] < scores[Failure.NONE]


def test_a_wrong_card_ends_in_the_tray() -> None:
    result = run(4, Failure.WRONG, 0.0, task=OTHERS["select-poker"])
    layout = tasks.layout(OTHERS["select-poker"], 4)
    moved_cards = {
        item.name
        for item in layout.objects
        if np.hypot(*(result.objects_m[item.name][:2] - [item.x_m, item.y_m])) > 0.1
    }
    assert len(moved_cards) == 1 and layout.target not in moved_cards


def test_the_expert_finds_the_pear_after_a_hand_moved_it() -> None:
    recipe = dataclasses.replace(OTHERS["put-pear"], swap_during_probability=1.0)
    layout = tasks.layout(recipe, 3)
    spots = {item.name: np.array([item.x_m, item.y_m]) for item in layout.objects[:2]}
    positions: list[dict[str, np.ndarray]] = []
    result = run(3, Failure.NONE, 0.0, lambda arm, expert: positions.append(dict(arm.sim.facts().objects_m)), recipe)
    assert layout.swap_at_s is not None
    moment = round(layout.swap_at_s * 10) + 2  # a control step later, and one for rounding
    assert np.hypot(*(positions[0]["pear"][:2] - spots["pear"])) < 0.005
    assert np.hypot(*(positions[moment]["pear"][:2] - spots["apple"])) < 0.01
    assert np.hypot(*(positions[moment]["apple"][:2] - spots["pear"])) < 0.01
    assert result.success


# Results of these seeds when the embedded encoder was trained, to 2 mm because processors round differently.
PINNED = {
    0: (55, True, (0.4394, -0.2045, 0.0356)),
    1: (89, False, (0.4118, 0.1134, 0.0296)),  # miss
    3: (66, False, (0.3683, 0.0124, 0.0296)),  # wrong
    4: (34, False, (0.4503, 0.0096, 0.0296)),  # stop
}


@pytest.mark.parametrize("seed", PINNED)
def test_apple_demonstrations_equal_the_training_data_of_the_embedded_encoder(seed: int) -> None:
    steps, success, apple = PINNED[seed]
    result = run(seed, list(Failure)[seed], 0.006)
    assert (len(result.actions), result.success) == (steps, success)
    assert result.objects_m["apple"] == pytest.approx(apple, abs=0.002)


def test_strategies_are_equally_frequent_and_depend_on_seed_and_recipe_only() -> None:
    strategies = [choose_strategy(seed, ("a", "b", "c")) for seed in range(900)]
    assert strategies == [choose_strategy(seed, ("a", "b", "c")) for seed in range(900)]
    for way in "abc":
        assert strategies.count(way) / 900 == pytest.approx(1 / 3, abs=0.06)
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        cell.reset(0)
        expert = Demonstrator(arm.sim)
        for seed in range(10):
            expert.reset(seed)
            assert expert.strategy == "direct"


def test_a_strategy_or_failure_that_a_task_does_not_have_is_refused() -> None:
    arm, cell = make_mock(HARDWARE, dataclasses.replace(OTHERS["fold-towel"], strategies=("crumple",)))
    with pytest.raises(RecipeError, match="fold-towel has no strategy 'crumple'; it has: lay, flip, corner"):
        Demonstrator(arm.sim)
    arm, cell = make_mock(HARDWARE, OTHERS["wipe-board"])
    with arm:
        cell.reset(0)
        with pytest.raises(UsageError, match="wipe-board has no failure 'wrong'; it has: miss, drop, stop"):
            Demonstrator(arm.sim).reset(0, Failure.WRONG)
        with pytest.raises(UsageError, match="no strategy 'around'; it has: rows, columns, ink"):
            Demonstrator(arm.sim).reset(0, strategy="around")
        with pytest.raises(UsageError, match="reset the demonstrator first"):
            Demonstrator(arm.sim).act(arm.observe())
