"""Set points: no sequence of targets leads out of the limits, and targets inside them are reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.arm import kinematics
from srpo_robot.arm.xarm7.motion import LAYERS, Motion, MotionLimits, advance, at_rest, brake, lowest
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.records import JOINTS, ArmCommand

HOME = np.array([0.0, -0.25904, 0.0, 0.96166, 0.0, 1.2207, 0.0])  # TCP at (0.40, 0, 0.25), tool down
TICK = 0.01
LIMITS = MotionLimits(
    joint_min_rad=np.array([-6.2832, -2.0420, -6.2832, -0.1047, -6.2832, -1.6930, -6.2832]),
    joint_max_rad=np.array([6.2832, 2.0246, 6.2832, 3.9270, 6.2832, 3.1416, 6.2832]),
    joint_speed_rad_s=1.0,
    joint_acceleration_rad_s2=8.0,
    tcp_speed_m_s=0.25,
    box_min_m=np.array([0.20, -0.35, 0.02]),
    box_max_m=np.array([0.62, 0.35, 0.50]),
    table_m=0.0,
    tcp_offset_m=np.array([0.0, 0.0, 0.172]),
    gripper_min_m=0.0,
    gripper_max_m=0.085,
    gripper_speed_m_s=0.1,
)
WIDE = replace(LIMITS, tcp_speed_m_s=9.0, box_min_m=np.full(3, -2.0), box_max_m=np.full(3, 2.0), table_m=-2.0)


def tcp(joints: np.ndarray) -> np.ndarray:
    return kinematics.tcp_position(joints, LIMITS.tcp_offset_m)


def follow(targets, limits=LIMITS, pace=1.0) -> tuple[list[Motion], set[str]]:
    motions, limited_by = [at_rest(HOME, 0.04, limits)], set[str]()
    for joints, gripper in targets:
        motion, reasons = advance(motions[-1], ArmCommand(np.asarray(joints), gripper), limits, TICK, pace)
        motions.append(motion)
        limited_by |= set(reasons)
    return motions, limited_by


def obey(motions: list[Motion], limits: MotionLimits) -> None:
    """Asserts every limit on the set points."""
    points = np.stack([motion.joints_rad for motion in motions])
    speeds = np.diff(points, axis=0) / TICK
    assert np.all(points >= limits.joint_min_rad - 1e-8)
    assert np.all(points <= limits.joint_max_rad + 1e-8)
    assert np.abs(speeds).max() <= limits.joint_speed_rad_s + 1e-6
    changes = np.diff(np.vstack([np.zeros(JOINTS), speeds]), axis=0)
    assert np.abs(changes).max() <= limits.joint_acceleration_rad_s2 * TICK + 1e-6
    places = np.stack([tcp(joints) for joints in points])
    assert np.all(places >= limits.box_min_m - 1e-8)
    assert np.all(places <= limits.box_max_m + 1e-8)
    assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() <= limits.tcp_speed_m_s * TICK + 1e-8
    assert min(lowest(kinematics.frames(joints)) for joints in points) >= limits.table_m - 1e-8
    grips = np.array([motion.gripper_m for motion in motions])
    assert np.all((grips >= limits.gripper_min_m) & (grips <= limits.gripper_max_m))
    assert np.abs(np.diff(grips)).max() <= limits.gripper_speed_m_s * TICK + 1e-12


NUMBERS = st.one_of(st.floats(-7, 7), st.sampled_from([-1e300, 1e300, 0.0, -0.0, 5e-324]))
TARGETS = st.lists(
    st.tuples(st.lists(NUMBERS, min_size=JOINTS, max_size=JOINTS), NUMBERS, st.integers(1, 25)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(targets=TARGETS, table=st.sampled_from([0.0, 0.2, 0.36]), pace=st.sampled_from([1.0, 0.1]))
def test_no_sequence_of_targets_leaves_the_limits(targets, table, pace):
    limits = replace(LIMITS, table_m=table)
    motions, limited_by = follow(
        [(joints, grip) for joints, grip, ticks in targets for _ in range(ticks)], limits, pace
    )
    obey(motions, limits)
    assert limited_by <= set(LAYERS)
    while not motions[-1].at_rest:  # braking from any state stays inside too
        motions.append(brake(motions[-1], limits, TICK))
    obey(motions, limits)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.01, 0.1, 1.0]))
def test_random_walks_stay_inside(seed, scale):
    rng = np.random.default_rng(seed)
    walk = HOME + np.cumsum(rng.normal(0.0, scale, (60, JOINTS)), axis=0)
    motions, _ = follow([(joints, rng.uniform(-1, 1)) for joints in walk])
    obey(motions, LIMITS)


def test_a_far_target_is_reached_by_a_trapezoid_and_held():
    """0.5 rad at 1 rad/s and 8 rad/s2: 0.125 s up, 0.125 s down, 0.375 s between: 62.5 ticks, and one for rounding."""
    goal = HOME + np.array([0.5, 0, 0, 0, 0, 0, -0.25])
    motions, limited_by = follow([(goal, 0.04)] * 80, WIDE)
    obey(motions, WIDE)
    assert limited_by == set()
    speeds = np.array([motion.speed_rad_s[0] for motion in motions])
    assert speeds[:14] == pytest.approx([0.0, *np.minimum(0.08 * np.arange(1, 14), 1.0)])
    away = np.array([np.abs(motion.joints_rad - goal).max() for motion in motions])
    assert np.argmax(away < 1e-3) in range(60, 70)
    assert away[-1] < 1e-6
    ratio = [motion.speed_rad_s[6] / motion.speed_rad_s[0] for motion in motions[1:40]]
    assert ratio == pytest.approx([-0.5] * 39)  # all joints arrive together: a straight line


def test_pace_is_a_share_of_the_speed():
    motions, _ = follow([(HOME + 0.5, 0.04)] * 60, WIDE, pace=0.1)
    assert max(np.abs(motion.speed_rad_s).max() for motion in motions) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("limits", "target", "layer"),
    [
        (LIMITS, HOME + np.array([0, 1.5, 0, 0, 0, 0, 0]), "workspace_box"),
        (replace(WIDE, table_m=0.3), HOME + np.array([0, 1.5, 0, 0, 0, 0, 0]), "table"),
        (replace(WIDE, tcp_speed_m_s=0.05), HOME + np.array([1.0, 0, 0, 0, 0, 0, 0]), "tcp_speed"),
        (WIDE, HOME + np.array([0, 9.0, 0, 0, 0, 0, 0]), "joint_range"),
    ],
)
def test_the_limiting_layer_is_named(limits, target, layer):
    motions, limited_by = follow([(target, 0.04)] * 150, limits)
    obey(motions, limits)
    assert layer in limited_by


def test_an_arm_stopped_by_the_box_can_move_again():
    out = HOME + np.array([0, 1.5, 0, 0, 0, 0, 0])
    motions, _ = follow([(out, 0.04)] * 300 + [(HOME, 0.04)] * 400)
    assert motions[300].speed_rad_s == pytest.approx(np.zeros(JOINTS), abs=1e-2)
    assert np.linalg.norm(tcp(motions[300].joints_rad) - tcp(HOME)) > 0.05
    assert motions[-1].joints_rad == pytest.approx(HOME, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_nothing_changes(bad):
    motion = at_rest(HOME, 0.04, LIMITS)
    for target in (ArmCommand(np.r_[HOME[:6], bad], 0.04), ArmCommand(HOME, bad)):
        with pytest.raises(CommandRefused, match="the arm brakes"):
            advance(motion, target, LIMITS, TICK)


def test_a_start_outside_is_refused_and_names_the_broken_limit():
    with pytest.raises(CommandRefused, match=r"outside its limits \(workspace_box\); move it inside"):
        at_rest(HOME + np.eye(JOINTS)[0] * 1.5, 0.04, LIMITS)
    with pytest.raises(CommandRefused, match="joint_range"):
        at_rest(HOME + np.eye(JOINTS)[1] * 9.0, 0.04, WIDE)
    with pytest.raises(CommandRefused, match="finite"):
        at_rest(np.full(JOINTS, np.nan), 0.04, LIMITS)


@pytest.mark.parametrize(
    "change",
    [
        {"joint_speed_rad_s": 0.0},
        {"tcp_speed_m_s": np.nan},
        {"joint_acceleration_rad_s2": np.inf},
        {"gripper_max_m": -1.0},
        {"box_min_m": np.array([0.7, -0.35, 0.02])},
    ],
)
def test_limits_that_contradict_themselves(change):
    with pytest.raises(RecipeError):
        replace(LIMITS, **change)


def test_a_batch_of_frames_equals_single_frames():
    rng = np.random.default_rng(0)
    joints = rng.uniform(-2, 2, (5, 3, JOINTS))
    poses = kinematics.frames(joints)
    assert poses.shape == (5, 3, 8, 4, 4)
    assert poses[4, 2] == pytest.approx(kinematics.frames(joints[4, 2]))


def test_the_lowest_part_at_zero_is_the_flange():
    """At zero angles the flange is at z 0.1205 (the vendor's drawing), lower than elbow and wrist."""
    assert lowest(kinematics.frames(np.zeros(JOINTS))) == pytest.approx(0.1205 - 0.05, abs=2e-3)
