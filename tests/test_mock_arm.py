"""The mock arm as an `Arm`, and its workcell."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.arm import kinematics
from srpo_robot.arm.limits import Limits
from srpo_robot.errors import ArmError, CommandRefused, RecipeError
from srpo_robot.mock.arm import MockArm, make_mock
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

RECIPE = load(HardwareRecipe, "hardware", "mock")
HARDWARE = dataclasses.replace(RECIPE, cameras=())  # most tests need no picture
TASK = load(TaskRecipe, "datasets", "put-apple")


def assert_inside(command: ArmCommand, limits: Limits) -> None:
    assert (command.joints_rad >= limits.joint_min_rad - 1e-9).all()
    assert (command.joints_rad <= limits.joint_max_rad + 1e-9).all()
    assert limits.gripper_min_m - 1e-9 <= command.gripper_m <= limits.gripper_max_m + 1e-9
    assert limits.inside_box(command.joints_rad)


def capture(arm: MockArm, monkeypatch: pytest.MonkeyPatch) -> list[ArmCommand]:
    """Replaces physics by a list of the commands that reach the motors. Returns the list."""
    driven: list[ArmCommand] = []
    monkeypatch.setattr(arm.sim, "step", lambda command, period_s: driven.append(command))
    return driven


JOINTS = st.lists(st.floats(-8.0, 8.0), min_size=7, max_size=7)


@given(st.lists(st.tuples(JOINTS, st.floats(-1.0, 1.0)), min_size=1, max_size=8), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_executed_command_is_inside_the_limits_for_any_request(
    requests: list[tuple[list[float], float]], seed: int
) -> None:
    arm, cell = make_mock(HARDWARE, TASK, wide_starts=0.5)
    with arm, pytest.MonkeyPatch.context() as patch:
        driven = capture(arm, patch)
        cell.reset(seed)
        before = arm.reference()
        for joints, gripper in requests:
            command = arm.send(ArmCommand(np.array(joints), gripper)).command
            assert_inside(command, arm.limits)
            assert np.abs(command.joints_rad - before.joints_rad).max() <= arm.limits.joint_step_rad + 1e-9
            assert abs(command.gripper_m - before.gripper_m) <= arm.limits.gripper_step_m + 1e-9
            assert driven[-1] is command and arm.commanded is command
            before = command


def test_the_disturbance_has_its_size_and_leaves_the_command_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    arm, cell = make_mock(HARDWARE, TASK, disturbance_m=0.01)
    with arm:
        cell.reset(0)
        driven = capture(arm, monkeypatch)
        clean = arm.reference()
        for _ in range(2000):
            assert (arm.hold().command.joints_rad == clean.joints_rad).all()
        tcp = np.array([kinematics.tcp_position(c.joints_rad, arm.limits.tcp_offset_m) for c in driven])
        off = tcp - kinematics.tcp_position(clean.joints_rad, arm.limits.tcp_offset_m)
        # Slow and white part: 0.01 * sqrt(1 + 0.4^2) = 10.8 mm; lag-1 correlation exp(-0.1 / 0.8) / 1.16 = 0.76.
        assert off.std() == pytest.approx(0.0108, rel=0.1)
        assert np.corrcoef(off[:-1, 0], off[1:, 0])[0, 1] == pytest.approx(0.76, abs=0.06)


def test_the_disturbance_never_leaves_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = dataclasses.replace(HARDWARE.limits, box_min_m=(0.39, -0.01, 0.24), box_max_m=(0.41, 0.01, 0.26))
    arm, cell = make_mock(dataclasses.replace(HARDWARE, limits=limits), TASK, disturbance_m=0.01)
    with arm:
        driven = capture(arm, monkeypatch)
        for seed in range(5):
            cell.reset(seed)
            for _ in range(60):
                arm.hold()
        assert len(driven) == 300
        for command in driven:
            assert_inside(command, arm.limits)


@pytest.mark.parametrize("disturbance", [0.0, 0.01])
def test_states_depend_on_the_seed_and_not_on_earlier_episodes(disturbance: float) -> None:
    def states(seed: int, steps_before: int) -> np.ndarray:
        arm, cell = make_mock(HARDWARE, TASK, wide_starts=0.5, disturbance_m=disturbance)
        rows = []
        with arm:
            cell.reset(99)
            for _ in range(steps_before):
                arm.hold()
            cell.reset(seed)
            for i in range(10):
                arm.send(ArmCommand(arm.reference().joints_rad + 0.03, 0.01 * i))
                state = arm.observe().state
                rows.append([state.time_s, *state.joints_rad, state.gripper_m])
        return np.array(rows)

    assert (states(3, 0) == states(3, 5)).all()
    assert not np.allclose(states(3, 0), states(4, 0))


def test_reset_puts_the_command_at_the_start_and_describes_the_layout() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        layout = cell.reset(5)
        observation = arm.observe()
        assert arm.commanded is not None and observation.commanded is arm.commanded
        assert np.abs(observation.state.joints_rad - arm.commanded.joints_rad).max() < 1e-3
        assert json.loads(json.dumps(dict(layout))) == dict(layout)
        assert layout == make_mock_layout(5)


def make_mock_layout(seed: int) -> dict[str, object]:
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        return dict(cell.reset(seed))


def test_starts_are_near_home_or_wide() -> None:
    def starts(wide: float) -> np.ndarray:
        arm, cell = make_mock(HARDWARE, TASK, wide_starts=wide)
        with arm:
            return np.array([cell.reset(seed)["start_tcp_m"] for seed in range(40)])

    home = np.array([0.4, 0.0, 0.25])
    assert np.linalg.norm(starts(0.0) - home, axis=1).max() < 0.05
    spread = starts(1.0)
    assert (np.ptp(spread, axis=0) > [0.15, 0.35, 0.12]).all()
    assert (spread[:, 2] > 0.13).all()  # clear of the objects on the table


def test_verdict_needs_half_a_second_and_failure_needs_the_end() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        cell.reset(1)
        assert cell.verdict(ended=False) is None and cell.verdict(ended=True) is False
        layout = arm.sim.layout
        assert layout is not None
        arm.sim.move_object("apple", np.array([*layout.plate_m, 0.037]))
        verdicts = []
        for _ in range(6):
            arm.hold()
            verdicts.append(cell.verdict(ended=False))
        assert verdicts == [None] * 4 + [True] * 2
        cell.reset(2)
        assert cell.verdict(ended=False) is None


def test_stop_holds_the_measured_joints_and_is_idempotent() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    arm.stop()  # also before it is open
    with arm:
        cell.reset(0)
        for _ in range(3):
            arm.send(ArmCommand(arm.reference().joints_rad + np.array([0.1, 0, 0, 0, 0, 0, 0]), 0.085))
        joints = arm.observe().state.joints_rad
        for _ in range(2):
            arm.stop()
            assert arm.commanded is None
            assert (arm.reference().joints_rad == joints).all()
        for _ in range(3):
            arm.hold()
        assert np.abs(arm.observe().state.joints_rad - joints).max() < 0.005
    arm.stop()


def test_a_command_that_is_not_finite_moves_nothing() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    with arm:
        cell.reset(0)
        before = arm.observe().state
        with pytest.raises(CommandRefused):
            arm.send(ArmCommand(np.full(7, np.nan), 0.05))
        assert arm.observe().state.time_s == before.time_s


def test_images_are_rendered_once_a_step_in_the_sizes_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRPO_RENDERER", "ray")
    cameras = (
        CameraRecipe(name="front", height_px=40, width_px=60),
        CameraRecipe(name="wrist", height_px=24, width_px=24),
    )
    arm, cell = make_mock(dataclasses.replace(RECIPE, cameras=cameras), TASK)
    with arm:
        cell.reset(0)
        observation = arm.observe()
        assert observation.images["front"].shape == (40, 60, 3) and observation.images["wrist"].shape == (24, 24, 3)
        assert arm.observe() is observation and arm.observe(images=False) is observation
        arm.hold()
        unseen = arm.observe(images=False)
        assert not unseen.images and unseen.state.time_s > observation.state.time_s
        assert arm.observe().images.keys() == observation.images.keys()


def test_a_closed_arm_says_how_to_open_it() -> None:
    arm, cell = make_mock(HARDWARE, TASK)
    for action in (arm.observe, arm.hold, lambda: cell.reset(0)):
        with pytest.raises(ArmError, match="not open; use it as a context manager"):
            action()


def test_invalid_recipes_are_refused() -> None:
    with pytest.raises(RecipeError, match="needs one of kind 'mock'"):
        make_mock(dataclasses.replace(HARDWARE, kind="xarm7"), TASK)
    with pytest.raises(RecipeError, match="a probability"):
        make_mock(HARDWARE, TASK, wide_starts=1.5)
    with pytest.raises(RecipeError, match="standard deviation"):
        make_mock(HARDWARE, TASK, disturbance_m=-0.01)
