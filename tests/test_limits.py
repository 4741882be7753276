"""Limits: any request leads to a command inside the limits, and a command inside them is not changed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.arm import kinematics
from srpo_robot.arm.limits import LAYERS, Limits, limit
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.recipes import HardwareRecipe, LimitsRecipe, load
from srpo_robot.records import ArmCommand

HARDWARE = load(HardwareRecipe, "hardware", "mock")
LIMITS = Limits.from_recipe(HARDWARE.limits, HARDWARE.tcp_offset_m, 0.1)
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.04)
wild = st.lists(st.floats(-1e6, 1e6) | st.floats(-3, 3), min_size=8, max_size=8)


def inside(command: ArmCommand) -> bool:
    return bool(
        np.all(command.joints_rad >= LIMITS.joint_min_rad)
        and np.all(command.joints_rad <= LIMITS.joint_max_rad)
        and LIMITS.gripper_min_m <= command.gripper_m <= LIMITS.gripper_max_m
        and LIMITS.inside_box(command.joints_rad)
    )


@given(st.lists(wild, min_size=1, max_size=12))
def test_no_sequence_of_commands_leaves_the_limits(sequence):
    previous = HOME
    for values in sequence:
        result = limit(ArmCommand(np.array(values[:7]), values[7]), previous, LIMITS)
        assert inside(result.command)
        step = np.abs(result.command.joints_rad - previous.joints_rad).max()
        assert step <= LIMITS.joint_step_rad + 1e-12
        assert abs(result.command.gripper_m - previous.gripper_m) <= LIMITS.gripper_step_m + 1e-12
        assert set(result.limited_by) <= set(LAYERS)
        previous = result.command


@given(st.lists(st.floats(-0.01, 0.01), min_size=7, max_size=7), st.floats(-0.01, 0.01))
def test_a_small_step_inside_passes_untouched(delta, opening):
    request = ArmCommand(HOME.joints_rad + np.array(delta), HOME.gripper_m + opening)
    result = limit(request, HOME, LIMITS)
    assert result.limited_by == ()
    assert result.command.joints_rad == pytest.approx(request.joints_rad, abs=1e-15)
    assert result.command.gripper_m == pytest.approx(request.gripper_m, abs=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", range(8))
def test_non_finite_values_are_refused(bad, index):
    values = np.append(HOME.joints_rad, HOME.gripper_m)
    values[index] = bad
    with pytest.raises(CommandRefused, match="NaN or infinity"):
        limit(ArmCommand(values[:7], float(values[7])), HOME, LIMITS)


def test_a_long_step_keeps_its_direction():
    request = ArmCommand(HOME.joints_rad + np.array([0.4, 0.2, 0, 0, 0, 0, 0]), HOME.gripper_m)
    result = limit(request, HOME, LIMITS)
    step = result.command.joints_rad - HOME.joints_rad
    assert result.limited_by == ("joint_step",)
    assert step[0] == pytest.approx(0.12)  # 1.2 rad/s for 0.1 s
    assert step[1] == pytest.approx(0.06)


def test_the_box_stops_the_way_down_at_its_floor():
    command = HOME
    target = kinematics.inverse(
        np.array([0.40, 0.0, -0.05]), kinematics.TOOL_DOWN, HOME.joints_rad, LIMITS.tcp_offset_m,
        LIMITS.joint_min_rad, LIMITS.joint_max_rad,
    )  # fmt: skip
    limited_by: set[str] = set()
    for _ in range(40):
        result = limit(ArmCommand(target.joints_rad, 0.04), command, LIMITS)
        limited_by |= set(result.limited_by)
        command = result.command
    height = kinematics.tcp_position(command.joints_rad, LIMITS.tcp_offset_m)[2]
    assert "workspace_box" in limited_by
    assert LIMITS.box_min_m[2] - 1e-6 <= height < LIMITS.box_min_m[2] + 0.02


def test_from_outside_the_box_only_a_step_that_ends_inside_is_let_through():
    outside = ArmCommand(np.zeros(7), 0.04)  # at zero the TCP is below the table
    assert not LIMITS.inside_box(outside.joints_rad)
    away = limit(ArmCommand(outside.joints_rad + 0.01, 0.04), outside, LIMITS)
    assert away.command.joints_rad == pytest.approx(outside.joints_rad)
    assert "workspace_box" in away.limited_by


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"joint_min_rad": (0.0,) * 6}, "has 6 numbers, expected 7"),
        ({"box_min_m": (1.0, 1.0, 1.0)}, "below its maximum"),
        ({"max_joint_speed_rad_s": 0.0}, "speed above zero"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(change, says):
    from dataclasses import asdict

    recipe = LimitsRecipe(**(asdict(HARDWARE.limits) | change))
    with pytest.raises(RecipeError, match=says):
        Limits.from_recipe(recipe, HARDWARE.tcp_offset_m, 0.1)
