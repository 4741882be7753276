"""Kinematics: the vendor's numbers, the Jacobian against finite differences, inverse of forward."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.arm import kinematics

TCP = np.array([0.0, 0.0, 0.172])
LOW = np.deg2rad([-360, -117, -360, -6, -360, -97, -360])
HIGH = np.deg2rad([360, 116, 360, 225, 360, 180, 360])
HOME = np.array([0.0, -0.25904, 0.0, 0.96166, 0.0, 1.2207, 0.0])
angles = st.lists(st.floats(-1.5, 1.5), min_size=7, max_size=7).map(np.array)


def test_the_zero_pose_equals_the_vendors_numbers():
    pose = kinematics.tcp_pose(np.zeros(7), np.zeros(3))
    assert pose[:3, 3] == pytest.approx([0.206, 0.0, 0.1205], abs=1e-9)
    assert pose[:3, :3] == pytest.approx(kinematics.TOOL_DOWN, abs=1e-9)


@given(angles)
def test_every_frame_is_a_rigid_transform(q):
    for pose in kinematics.frames(q):
        assert pose[:3, :3] @ pose[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0)


@given(angles)
def test_jacobian_agrees_with_finite_differences(q):
    jacobian, step = kinematics.jacobian(q, TCP), 1e-6
    for joint in range(7):
        d = np.zeros(7)
        d[joint] = step
        after, before = kinematics.tcp_pose(q + d, TCP), kinematics.tcp_pose(q - d, TCP)
        assert (after[:3, 3] - before[:3, 3]) / (2 * step) == pytest.approx(jacobian[:3, joint], abs=1e-6)
        spin = (after[:3, :3] - before[:3, :3]) / (2 * step) @ kinematics.tcp_pose(q, TCP)[:3, :3].T
        assert [spin[2, 1], spin[0, 2], spin[1, 0]] == pytest.approx(jacobian[3:, joint], abs=1e-6)


@given(st.floats(0.28, 0.55), st.floats(-0.25, 0.25), st.floats(0.02, 0.35))
@settings(max_examples=30)
def test_inverse_reaches_the_table_with_the_tool_down(x, y, z):
    target = np.array([x, y, z])
    solution = kinematics.inverse(target, kinematics.TOOL_DOWN, HOME, TCP, LOW, HIGH, posture_rad=HOME)
    assert solution.reached
    pose = kinematics.tcp_pose(solution.joints_rad, TCP)
    assert pose[:3, 3] == pytest.approx(target, abs=1e-3)
    assert pose[:3, :3] == pytest.approx(kinematics.TOOL_DOWN, abs=5e-3)
    assert np.all(solution.joints_rad >= LOW)
    assert np.all(solution.joints_rad <= HIGH)


def test_inverse_says_when_a_target_is_out_of_reach():
    far = kinematics.inverse(np.array([2.0, 0.0, 0.3]), kinematics.TOOL_DOWN, HOME, TCP, LOW, HIGH)
    assert not far.reached
    assert far.residual_m > 0.5
    assert np.isfinite(far.joints_rad).all()


@given(st.floats(-3.14, 3.14), st.integers(0, 2))
def test_rotation_vector_of_a_turn_about_an_axis(angle, axis):
    expected = np.zeros(3)
    expected[axis] = angle
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.eye(3)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    vector = kinematics._rotation_vector(rotation)
    assert np.abs(vector) == pytest.approx(np.abs(expected), abs=1e-5)
    if abs(angle) < 3.1:  # at pi both signs are the same rotation
        assert vector == pytest.approx(expected, abs=1e-5)
