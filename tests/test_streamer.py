"""Tests of the streamer's core without processes: set points between targets, deadlines, and report decoding."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_motion import HOME, LIMITS, TICK

from srpo_robot.arm import kinematics
from srpo_robot.arm.xarm7 import motion, wire
from srpo_robot.arm.xarm7.motion import at_rest, brake, lowest
from srpo_robot.arm.xarm7.set_points import LOG, Deadlines, SetPoints, bits_of_layers, layers_of_bits
from srpo_robot.errors import ArmError, CommandRefused
from srpo_robot.mock.controller import frames
from srpo_robot.records import JOINTS, ArmCommand


def points() -> SetPoints:
    return SetPoints(at_rest(HOME, 0.04, LIMITS), LIMITS, TICK)


# --- set points -------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(-7, 7), st.sampled_from([np.nan, np.inf, -np.inf, -1e300, 1e300, 5e-324]))
AIMS = st.tuples(
    st.lists(NUMBERS, min_size=JOINTS, max_size=JOINTS),
    NUMBERS,
    st.floats(-0.1, 0.3),  # due after
    st.sampled_from([1.0, 0.1]),  # pace
    st.lists(st.floats(0.001, 0.3), max_size=12),  # times between the next ticks, some late and some early
)


@settings(deadline=None, max_examples=40)
@given(aims=st.lists(AIMS, min_size=1, max_size=6))
def test_targets_and_delays_never_lead_out_of_the_limits(aims):
    stream, now, path = points(), 0.0, [HOME]
    for number, (joints, gripper, due, pace, waits) in enumerate(aims):
        try:
            stream.aim(number, ArmCommand(np.array(joints), gripper), now, now + due, pace)
        except CommandRefused:
            assert not np.isfinite([*joints, gripper]).all()
        for wait in waits:
            now += wait
            stream.advance(now)
            path.append(stream.motion.joints_rad)
            assert LIMITS.gripper_min_m <= stream.motion.gripper_m <= LIMITS.gripper_max_m
    steps = np.diff(path, axis=0)
    changes = np.diff(np.vstack([np.zeros(JOINTS), steps]), axis=0)
    assert np.abs(steps).max(initial=0) <= LIMITS.joint_speed_rad_s * TICK + 1e-8
    assert np.abs(changes).max(initial=0) <= LIMITS.joint_acceleration_rad_s2 * TICK**2 + 1e-8
    tcp = np.array([kinematics.tcp_position(q, LIMITS.tcp_offset_m) for q in path])
    assert (tcp >= LIMITS.box_min_m - 1e-8).all()
    assert (tcp <= LIMITS.box_max_m + 1e-8).all()
    assert lowest(kinematics.frames(np.array(path))) >= LIMITS.table_m - 1e-8


def test_a_stream_of_targets_becomes_a_steady_motion_that_ends_at_the_last_one():
    """0.04 rad every 0.1 s: 0.4 rad/s throughout, and no stop between the targets."""
    stream, speeds, positions = points(), [], []
    for k in range(1, 11):
        now = 0.1 * (k - 1)
        stream.aim(k, ArmCommand(HOME + np.array([0.04 * k, 0, 0, 0, 0, 0, 0]), 0.04), now, now + 0.1)
        for tick in range(10):
            positions.append(stream.target_at(now + TICK * tick).joints_rad[0])
            assert stream.advance(now + TICK * tick) == ()
            speeds.append(stream.motion.speed_rad_s[0])
    assert np.diff(positions) == pytest.approx(np.full(99, 0.004))  # straight from target to target
    assert np.array(speeds[20:]) == pytest.approx(np.full(80, 0.4), abs=0.02)
    for tick in range(60):  # no target is left, so the last one is held
        stream.advance(1.0 + TICK * tick)
    assert stream.motion.joints_rad[0] == pytest.approx(0.4, abs=1e-9)
    assert stream.motion.at_rest or np.abs(stream.motion.speed_rad_s).max() < 1e-9
    assert stream.number == 10


def test_a_nan_target_brakes_and_holds_until_the_next_target():
    stream = points()
    stream.aim(1, ArmCommand(HOME + 0.05, 0.04), 0.0, 0.05)
    for tick in range(5):
        stream.advance(TICK * tick)
    assert not stream.motion.at_rest
    with pytest.raises(CommandRefused, match="the arm brakes"):
        stream.aim(2, ArmCommand(np.full(JOINTS, np.nan), 0.04), 0.05, 0.1)
    for tick in range(30):
        assert stream.advance(0.05 + TICK * tick) == ()
    position = stream.motion.joints_rad
    assert stream.motion.at_rest
    assert stream.target_at(1.0).joints_rad == pytest.approx(position)
    stream.aim(3, ArmCommand(HOME, 0.04), 1.0, 1.1)
    for tick in range(60):
        stream.advance(1.0 + TICK * tick)
    assert stream.motion.joints_rad == pytest.approx(HOME, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), ticks=st.integers(0, 40))
def test_the_resting_place_is_where_braking_ends(seed, ticks):
    stream = points()
    stream.aim(1, ArmCommand(HOME + np.random.default_rng(seed).normal(0, 0.3, JOINTS), 0.04), 0.0, 0.1)
    for tick in range(ticks):
        stream.advance(TICK * tick)
    place, here = stream.resting_place, stream.motion
    while not here.at_rest:
        here = brake(here, LIMITS, TICK)
    assert place == pytest.approx(here.joints_rad, abs=1e-12)


def test_limit_names_survive_the_log():
    for i in range(1 << len(motion.LAYERS)):
        assert bits_of_layers(layers_of_bits(i)) == i
    assert LOG.itemsize <= 512  # a pipe writes it atomically


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_deadlines_are_absolute_and_missed_ticks_are_dropped():
    due = Deadlines(0.0, 0.01)
    assert due.begin(0.001) == (pytest.approx(0.001), 0)
    assert due.next_s == pytest.approx(0.01)  # lateness does not add up
    assert due.begin(0.0149) == (pytest.approx(0.0049), 0)
    assert due.next_s == pytest.approx(0.02)
    assert due.begin(0.055) == (pytest.approx(0.035), 3)  # ticks at 20, 30, 40 ms were missed
    assert due.next_s == pytest.approx(0.065)  # a whole tick from now: no burst
    assert due.begin(0.060) == (0.0, 0)


@settings(deadline=None)
@given(delays=st.lists(st.floats(0, 0.1), min_size=2, max_size=50))
def test_two_ticks_are_never_closer_than_half_a_period(delays):
    due, starts = Deadlines(0.0, 0.01), []
    for delay in delays:
        starts.append(due.next_s + delay)
        due.begin(starts[-1])
    assert np.diff(starts).min() >= 0.005 - 1e-12


# --- the wire ---------------------------------------------------------------------------------------------------------


def test_a_report_of_the_emulator_is_decoded():
    values = {"state_mode": 2 | 1 << 4, "joints": HOME, "queued": 3}
    frame = frames.encode_report(wire.REPORT_PORT, values)
    first = wire.decode(frame[4:], 10.0, None)
    assert (first.state, first.mode, first.time_s, first.changed_s) == (2, 1, 10.0, 10.0)
    assert first.joints_rad == pytest.approx(HOME, abs=1e-6)
    same = wire.decode(frame[4:], 11.0, first)
    assert (same.time_s, same.changed_s) == (11.0, 10.0)
    report_after = frames.encode_report(wire.REPORT_PORT, values | {"joints": HOME + 1e-5})
    assert wire.decode(report_after[4:], 12.0, same).changed_s == 12.0


@pytest.fixture
def silent():
    """A server that accepts connections and sends nothing, like a hung controller."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_missing_or_silent_server_is_a_one_line_error_within_the_time_limit(silent):
    with pytest.raises(
        ArmError, match=r"no xArm controller answers at 127.0.0.1:\d+ within 0.2 s \(no answer\); check"
    ):
        wire.ask("127.0.0.1", silent, wire.VERSION, timeout_s=0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ArmError, match="Connection refused"):
        wire.ask("127.0.0.1", port, wire.VERSION, timeout_s=0.2)


def test_a_closed_connection_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closing = threading.Thread(target=lambda: server.accept()[0].close())
        closing.start()
        with pytest.raises(ArmError, match="no xArm controller answers"):
            wire.ask("127.0.0.1", server.getsockname()[1], wire.VERSION, timeout_s=5.0)
        closing.join()


def test_limits_of_a_lower_tick_rate_keep_the_same_laws():
    """Mode 6 runs the same core at 25 Hz. It sends the resting place, which stays inside the limits."""
    limits = replace(LIMITS, table_m=0.1)
    stream = SetPoints(at_rest(HOME, 0.04, limits), limits, 0.04)
    stream.aim(1, ArmCommand(HOME + np.array([0, 1.5, 0, 0, 0, 0, 0]), 0.04), 0.0, 0.1)
    places = []
    for tick in range(100):
        stream.advance(0.04 * tick)
        places.append(stream.resting_place)
    tcp = np.array([kinematics.tcp_position(q, limits.tcp_offset_m) for q in places])
    assert (tcp >= limits.box_min_m - 1e-8).all()
    assert (tcp <= limits.box_max_m + 1e-8).all()
    assert lowest(kinematics.frames(np.array(places))) >= limits.table_m - 1e-8
