"""Action spaces: command and action are inverse. A target outside the box or out of reach never moves the arm there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.arm.actions import make_action_space
from srpo_robot.arm.limits import Limits
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.recipes import HardwareRecipe, load
from srpo_robot.records import ArmCommand, ArmState

HARDWARE = load(HardwareRecipe, "hardware", "mock")
LIMITS = Limits.from_recipe(HARDWARE.limits, HARDWARE.tcp_offset_m, 0.1)
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.04)
TCP = make_action_space("tcp", LIMITS, HOME.joints_rad)
JOINTS = make_action_space("joints", LIMITS, HOME.joints_rad)


@given(st.floats(0.3, 0.5), st.floats(-0.2, 0.2), st.floats(0.02, 0.3), st.floats(0.0, 0.085))
@settings(max_examples=30)
def test_tcp_round_trip(x, y, z, opening):
    action = np.array([x, y, z, opening])
    result = TCP.command(action, HOME)
    assert result.limited_by == ()
    assert TCP.action(result.command) == pytest.approx(action, abs=1e-3)


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_joint_round_trip_is_exact(values):
    action = np.array(values)
    assert JOINTS.action(JOINTS.command(action, HOME).command).tolist() == action.tolist()


@pytest.mark.parametrize("space", [TCP, JOINTS])
def test_the_state_begins_with_the_quantities_of_the_action(space):
    state = space.state(ArmState(0.0, HOME.joints_rad, 0.02), HOME)
    assert len(state) == len(space.state_names)
    assert space.state_names[: len(space.names)] == space.names
    assert state[: len(space.names)] == pytest.approx(space.action(ArmCommand(HOME.joints_rad, 0.02)))


def test_a_target_below_the_table_is_pulled_to_the_floor():
    result = TCP.command(np.array([0.4, 0.0, -0.2, 0.04]), HOME)
    assert result.limited_by == ("workspace_box",)
    assert TCP.action(result.command)[2] == pytest.approx(LIMITS.box_min_m[2], abs=1e-3)


def test_an_unreachable_target_is_a_hold():
    from dataclasses import replace

    wide = make_action_space("tcp", replace(LIMITS, box_max_m=np.array([3.0, 3.0, 3.0])), HOME.joints_rad)
    result = wide.command(np.array([2.5, 0.0, 0.3, 0.04]), HOME)
    assert result.limited_by == ("unreachable",)
    assert result.command.joints_rad.tolist() == HOME.joints_rad.tolist()


@pytest.mark.parametrize("action", [np.array([np.nan, 0, 0.2, 0.04]), np.array([0.4, 0.0, 0.2])])
def test_an_invalid_action_is_refused(action):
    with pytest.raises(CommandRefused):
        TCP.command(action, HOME)


def test_an_unknown_space_lists_the_known_spaces():
    with pytest.raises(RecipeError, match="tcp, joints"):
        make_action_space("torque", LIMITS, HOME.joints_rad)
