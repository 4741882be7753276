"""Physics of the mock cell against kinematics, and the success rule on it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from srpo_robot.arm import kinematics
from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.mock import tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

HARDWARE = load(HardwareRecipe, "hardware", "mock")
TASK = load(TaskRecipe, "datasets", "put-apple")
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.085)
OFFSET = np.array(HARDWARE.tcp_offset_m)
PERIOD_S = 1.0 / HARDWARE.fps


@pytest.fixture(scope="module")
def sim() -> CellSim:
    return CellSim(HARDWARE, TASK)


def hold(sim: CellSim, command: ArmCommand, steps: int) -> None:
    for _ in range(steps):
        sim.step(command, PERIOD_S)


def test_tcp_agrees_with_kinematics_at_random_joints(sim: CellSim) -> None:
    rng = np.random.default_rng(0)
    low, high = np.array(HARDWARE.limits.joint_min_rad), np.array(HARDWARE.limits.joint_max_rad)
    for seed in range(20):
        sim.reset(tasks.layout(TASK, seed), ArmCommand(rng.uniform(low, high), 0.05))
        expected = kinematics.tcp_position(sim.state().joints_rad, OFFSET)
        assert np.abs(sim.facts().tcp_m - expected).max() < 1e-4


def test_the_arm_reaches_its_command(sim: CellSim) -> None:
    sim.reset(tasks.layout(TASK, 0), HOME)
    goal = HOME.joints_rad + np.array([0.2, 0.1, -0.1, 0.1, 0.1, -0.1, 0.2])
    hold(sim, ArmCommand(goal, 0.085), 10)
    assert np.abs(sim.state().joints_rad - goal).max() < 2e-3  # gravity is compensated, so the arm does not sag


@pytest.mark.parametrize("opening", [0.0, 0.02, 0.06, 0.085])
def test_the_gripper_reaches_its_command(sim: CellSim, opening: float) -> None:
    sim.reset(tasks.layout(TASK, 0), dataclasses.replace(HOME, gripper_m=0.04))
    hold(sim, ArmCommand(HOME.joints_rad, opening), 5)
    assert sim.state().gripper_m == pytest.approx(opening, abs=1e-3)


def test_the_clock_counts_control_periods(sim: CellSim) -> None:
    sim.reset(tasks.layout(TASK, 0), HOME)
    assert sim.state().time_s == 0.0
    hold(sim, HOME, 7)
    assert sim.state().time_s == pytest.approx(0.7)


def test_objects_rest_at_the_places_of_the_layout(sim: CellSim) -> None:
    for seed in range(10):
        layout = tasks.layout(TASK, seed)
        sim.reset(layout, HOME)
        hold(sim, HOME, 10)
        facts = sim.facts()
        assert set(facts.objects_m) == {item.name for item in layout.objects}
        for item in layout.objects:
            assert np.abs(facts.objects_m[item.name][:2] - [item.x_m, item.y_m]).max() < 2e-3
        assert facts.plate_m == pytest.approx(layout.plate_m)


def test_success_must_hold_and_is_lost_with_the_apple(sim: CellSim) -> None:
    layout = tasks.layout(TASK, 1)
    sim.reset(layout, HOME)
    hold(sim, HOME, 3)
    assert sim.placed_for_s == 0.0 and sim.stage() < 0.4
    sim.move_object("apple", np.array([*layout.plate_m, 0.037]))
    hold(sim, HOME, 4)
    assert sim.placed_for_s == pytest.approx(0.4) and sim.stage() == 1.0
    sim.move_object("apple", np.array([0.40, 0.05, 0.030]))
    hold(sim, HOME, 1)
    assert sim.placed_for_s == 0.0


def test_another_object_on_the_plate_is_not_a_success(sim: CellSim) -> None:
    layout = tasks.layout(TASK, 1)
    sim.reset(layout, HOME)
    sim.move_object("pear", np.array([*layout.plate_m, 0.034]))
    hold(sim, HOME, 8)
    assert tasks.on_plate(sim.facts(), "pear") and sim.placed_for_s == 0.0


def test_a_closed_gripper_is_not_a_success(sim: CellSim) -> None:
    layout = tasks.layout(TASK, 1)
    sim.reset(layout, dataclasses.replace(HOME, gripper_m=0.0))
    sim.move_object("apple", np.array([*layout.plate_m, 0.037]))
    hold(sim, dataclasses.replace(HOME, gripper_m=0.0), 8)
    assert tasks.on_plate(sim.facts(), "apple") and sim.placed_for_s == 0.0


def test_reset_forgets_everything(sim: CellSim) -> None:
    states = []
    for _ in range(2):
        sim.reset(tasks.layout(TASK, 4), HOME)
        hold(sim, ArmCommand(HOME.joints_rad + 0.1, 0.03), 5)
        states.append(np.concatenate([sim.state().joints_rad, *sim.facts().objects_m.values()]))
        sim.reset(tasks.layout(TASK, 5), HOME)
        hold(sim, HOME, 2)
    assert (states[0] == states[1]).all()


def test_physics_that_diverged_is_an_error_until_the_next_reset(
    sim: CellSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs it to a file in the working directory
    sim.reset(tasks.layout(TASK, 0), HOME)
    sim.move_object("apple", np.full(3, np.nan))
    with pytest.raises(ArmError, match="physics diverged; reset the workcell"):
        hold(sim, HOME, 1)
    sim.reset(tasks.layout(TASK, 0), HOME)
    hold(sim, HOME, 1)


def test_a_layout_of_another_task_is_refused(sim: CellSim) -> None:
    with pytest.raises(RecipeError, match="set up for 'put-apple', the layout is of 'fold-towel'"):
        sim.reset(dataclasses.replace(tasks.layout(TASK, 0), task="fold-towel"), HOME)


def test_an_unknown_camera_is_refused() -> None:
    hardware = dataclasses.replace(HARDWARE, cameras=(CameraRecipe(name="side", height_px=8, width_px=8),))
    with pytest.raises(RecipeError, match="no camera 'side'; it has: front, wrist"):
        CellSim(hardware, TASK)


def test_a_tool_beside_the_flange_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"needs tcp_offset_m \[0, 0, z\]"):
        CellSim(dataclasses.replace(HARDWARE, tcp_offset_m=(0.1, 0.0, 0.172)), TASK)
