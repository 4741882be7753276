"""The emulated controller as a state machine: tables by hand, laws of motion, no sockets and no clock."""

import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.mock.controller import ASSUMPTIONS, commands, motion, poses, state
from srpo_robot.mock.controller.frames import (
    CANNOT_MOVE,
    HAS_ERROR,
    HAS_WARNING,
    INVALID,
    RegisterRead,
    RegisterWrite,
    Reply,
    Request,
    encode_floats,
    encode_rtu,
    words,
)
from srpo_robot.mock.controller.physics import KinematicPlant
from srpo_robot.mock.controller.state import Controller, Firmware

HOME = np.array([0.0, -0.25904, 0.0, 0.96166, 0.0, 1.2207, 0.0])
DT_S = 0.004
ENABLE, SET_STATE, GET_STATE, CLEAN, SET_MODE = 11, 12, 13, 16, 19
LINE, JOINTS, GO_HOME, SERVO, SERVO_POSE, RELATIVE = 21, 23, 25, 29, 30, 83


class Rig:
    """A controller with an ideal arm. Tests drive it by requests."""

    def __init__(self, mode: int | None = 0, joints: np.ndarray = HOME) -> None:
        self.plant = KinematicPlant(joints)
        self.c = Controller(self.plant)
        if mode is not None:
            self.recover(mode)

    def ask(self, function: int, *params: bytes | np.ndarray | float) -> Reply:
        data = b"".join(p if isinstance(p, bytes) else encode_floats(p) for p in params)
        return commands.execute(self.c, Request(1, 2, function, data))

    def recover(self, mode: int) -> None:
        self.ask(CLEAN)
        self.ask(ENABLE, bytes([8, 1]))
        self.ask(SET_MODE, bytes([mode]))
        self.ask(SET_STATE, bytes([0]))

    def run(self, seconds: float) -> np.ndarray:
        """Returns the measured joints after each tick, (n, 7)."""
        rows = []
        for _ in range(round(seconds / DT_S)):
            self.c.advance(DT_S)
            rows.append(self.c.joints)
        return np.array(rows)

    def move(self, function: int, shift: float = 0.05) -> Reply:
        """Sends a small move with the parameters of `function`."""
        if function == JOINTS:
            return self.ask(JOINTS, HOME + shift, 1.0, 10.0, 0.0)
        if function == SERVO:
            return self.ask(SERVO, HOME + shift, np.zeros(3))
        wire = poses.to_rpy(self.c.forward(HOME)) + np.array([0, 0, 1000 * shift, 0, 0, 0])
        if function == SERVO_POSE:
            return self.ask(SERVO_POSE, wire, np.zeros(3))
        return self.ask(LINE, wire, 100.0, 1000.0, 0.0, -1.0, bytes(3))

    def rtu(self, command: RegisterRead | RegisterWrite) -> Reply:
        return self.ask(124, b"\x09", encode_rtu(command))


# --- motion -----------------------------------------------------------------------------------------------------------


@given(
    st.floats(-3.0, 3.0),
    st.floats(-3.0, 3.0),
    st.floats(0.3, 3.0),
    st.floats(0.5, 20.0),
    st.sampled_from([0.004, 0.01]),
)
@settings(max_examples=40, deadline=None)
def test_an_approach_keeps_its_bounds_and_stops_at_the_target_without_passing_it(
    start: float, target: float, speed: float, acceleration: float, dt_s: float
) -> None:
    position, velocity = np.array([start]), np.zeros(1)
    for _ in range(round((abs(target - start) / speed + 2 * speed / acceleration + 2.0) / dt_s)):
        before = velocity
        position, velocity = motion.approach(position, velocity, np.array([target]), speed, acceleration, dt_s)
        assert abs(velocity[0]) <= speed + 1e-9
        assert abs(velocity[0] - before[0]) <= acceleration * dt_s + 1e-9
        assert (target - position[0]) * np.sign(target - start) >= -acceleration * dt_s**2 / 8 - 1e-9
    assert position[0] == pytest.approx(target, abs=1e-9) and velocity[0] == pytest.approx(0.0, abs=1e-6)


def test_a_trapezoid_takes_the_time_computed_by_hand() -> None:
    position, velocity, ticks = np.zeros(1), np.zeros(1), 0
    while abs(position[0] - 1.0) > 1e-9:
        position, velocity = motion.approach(position, velocity, np.ones(1), 1.0, 5.0, 0.001)
        ticks += 1
    assert ticks * 0.001 == pytest.approx(1.0 / 1.0 + 1.0 / 5.0, abs=0.01)  # way / speed + speed / acceleration


# --- run states -------------------------------------------------------------------------------------------------------


def test_a_controller_wakes_up_stopped_with_motors_off() -> None:
    rig = Rig(mode=None)
    snapshot = rig.c.snapshot()
    assert (snapshot.state, snapshot.mode, snapshot.error, snapshot.enabled) == (4, 0, 0, False)
    assert rig.move(JOINTS).status == CANNOT_MOVE
    rig.ask(SET_STATE, b"\0")
    assert rig.c.state == 4  # motors are off


def test_the_way_to_ready_goes_through_state_5() -> None:
    rig = Rig(mode=None)
    states = []
    for function, params in ((ENABLE, b"\x08\x01"), (SET_MODE, b"\x01\x00"), (SET_STATE, b"\x00")):
        status = rig.ask(function, params).status
        states.append((status, rig.ask(GET_STATE).data[0]))
    assert states == [(CANNOT_MOVE, 5), (CANNOT_MOVE, 5), (0, 2)]


RESETS = {
    ENABLE: b"\x08\x01", SET_MODE: b"\x00", 35: encode_floats(np.zeros(6)),
    37: b"\x03", 38: b"\x03", 51: encode_floats(0.0, 0.0, -1.0),
}  # fmt: skip


@pytest.mark.parametrize("function", RESETS)
def test_a_system_reset_stops_the_arm_empties_the_queue_and_wants_set_state_0(function: int) -> None:
    rig = Rig()
    rig.move(JOINTS, 0.5)
    rig.move(JOINTS, -0.5)
    rig.run(0.2)
    assert (rig.c.state, rig.c.queued) == (1, 2)
    assert rig.ask(function, RESETS[function]).status == CANNOT_MOVE
    assert (rig.c.state, rig.c.queued) == (5, 0)
    here = rig.c.joints
    assert (rig.run(0.1) == here).all() and rig.move(JOINTS).status == CANNOT_MOVE
    rig.ask(SET_STATE, b"\0")
    assert rig.c.state == 2 and (rig.run(0.1) == here).all()


def test_state_is_1_while_moving_and_2_after() -> None:
    rig = Rig()
    rig.move(JOINTS)
    assert rig.c.state == 1  # at once: a client that polls must not take the old 2 for the end
    rig.run(2.0)
    assert rig.c.state == 2 and rig.c.joints == pytest.approx(HOME + 0.05)


def test_stop_holds_at_once_and_forgets_the_way() -> None:
    rig = Rig()
    rig.move(JOINTS, 0.5)
    rig.run(0.3)
    rig.ask(SET_STATE, b"\x04")
    here = rig.c.joints
    assert rig.c.state == 4 and (rig.run(0.2) == here).all()
    rig.ask(SET_STATE, b"\0")
    assert rig.c.state == 2 and (rig.run(0.2) == here).all()


def test_pause_keeps_the_way() -> None:
    rig = Rig()
    rig.move(JOINTS, 0.5)
    rig.run(0.3)
    rig.ask(SET_STATE, b"\x03")
    here = rig.c.joints
    assert rig.c.state == 3 and (rig.run(0.2) == here).all()
    rig.ask(SET_STATE, b"\0")
    rig.run(2.0)
    assert rig.c.joints == pytest.approx(HOME + 0.5)


def test_a_slow_stop_brakes_through_state_6_to_4() -> None:
    rig = Rig()
    rig.move(JOINTS, 0.5)
    rig.run(0.3)
    rig.ask(SET_STATE, b"\x06")
    assert rig.c.state == 6
    speeds = np.abs(np.diff(rig.run(0.2)[:, 0])) / DT_S
    assert rig.c.state == 4 and speeds[0] > 0.7 and speeds[-1] == 0.0 and (np.diff(speeds) <= 1e-9).all()


def test_requests_that_do_not_exist_are_invalid_and_change_nothing() -> None:
    rig = Rig()
    for function, params in ((SET_STATE, b"\x09"), (SET_MODE, b"\x02"), (ENABLE, b"\x09\x01"), (250, b""), (23, b"")):
        assert rig.ask(function, params).status == INVALID
        assert (rig.c.state, rig.c.mode, rig.c.enabled) == (2, 0, True)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [19, 22, 31, 35, 60])
def test_an_error_stops_the_arm_and_stays_until_the_whole_recipe_is_done(code: int) -> None:
    rig = Rig()
    rig.move(JOINTS, 0.5)
    rig.run(0.2)
    rig.c.fault(code)
    assert (rig.c.state, rig.c.queued) == (4, 0)
    assert rig.move(JOINTS).status == HAS_ERROR | CANNOT_MOVE
    assert rig.ask(15).data == bytes([code, 0])
    rig.ask(SET_STATE, b"\0")
    assert rig.c.state == 4
    rig.ask(ENABLE, b"\x08\x01")
    assert rig.c.state == 4  # a reset under an error is 4, not 5
    assert rig.ask(CLEAN).status == CANNOT_MOVE and rig.c.state == 4
    rig.recover(0)
    assert rig.c.state == 2 and rig.move(JOINTS).status == 0


def test_the_first_error_stays_except_under_an_emergency_stop() -> None:
    rig = Rig()
    rig.c.fault(31)
    rig.c.fault(35)
    assert rig.c.error == 31
    rig.c.press(2)
    assert rig.c.error == 2


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_pressed_emergency_stop_cannot_be_cleaned_away(code: int) -> None:
    rig = Rig()
    rig.c.press(code)
    rig.recover(0)
    assert (rig.c.error, rig.c.state, rig.c.enabled) == (code, 4, False)
    rig.c.release()
    assert rig.c.error == code  # releasing the button does not clear the error
    rig.recover(0)
    assert (rig.c.error, rig.c.state, rig.c.enabled) == (0, 2, True)


def test_a_warning_is_in_the_status_until_it_is_cleaned() -> None:
    rig = Rig()
    rig.c.warning = 11
    assert rig.ask(GET_STATE).status == HAS_WARNING and rig.move(JOINTS).status == HAS_WARNING
    assert rig.ask(17).status == 0 and rig.ask(15).data == bytes(2)


# --- modes and moves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 6, 7])
@pytest.mark.parametrize("function", [JOINTS, LINE, SERVO, SERVO_POSE])
def test_a_mode_accepts_its_own_moves_only(mode: int, function: int) -> None:
    takes = {JOINTS: (0, 6), LINE: (0, 7), SERVO: (1,), SERVO_POSE: (1,)}
    rig = Rig(mode)
    status = rig.move(function).status
    has_moved = np.abs(rig.run(2.0)[-1] - HOME).max() > 0.01
    assert (status, has_moved) == ((0, True) if mode in takes[function] else (CANNOT_MOVE, False))


def test_planned_joint_moves_queue_and_all_joints_arrive_together() -> None:
    rig = Rig()
    away = HOME + np.array([0.4, 0.1, 0, -0.2, 0, 0, 0.05])
    rig.ask(JOINTS, away, 1.0, 10.0, 0.0)
    rig.ask(JOINTS, HOME, 1.0, 10.0, 0.0)
    path = rig.run(3.0)
    at = int(np.argmin(np.abs(path - away).max(axis=1)))
    assert path[at] == pytest.approx(away, abs=1e-7) and path[-1] == pytest.approx(HOME, abs=1e-7)
    share = (path[:at] - HOME)[:, [0, 1, 3, 6]] / [0.4, 0.1, -0.2, 0.05]
    assert np.ptp(share, axis=1).max() < 0.02
    assert np.abs(np.diff(path, axis=0)).max() <= 1.0 * DT_S + 1e-9


def test_infinity_keeps_a_joint_or_a_coordinate() -> None:
    rig = Rig()
    rig.ask(JOINTS, np.array([0.2, *[np.inf] * 6]), 1.0, 10.0, 0.0)
    rig.run(2.0)
    assert rig.c.joints == pytest.approx([0.2, *HOME[1:]], abs=1e-6)
    before = poses.to_rpy(rig.c.tcp)
    rig.ask(LINE, np.array([np.inf, np.inf, before[2] + 40.0, *[np.inf] * 3]), 100.0, 1000.0, 0.0, -1.0, bytes(3))
    rig.run(2.0)
    assert poses.to_rpy(rig.c.tcp)[:3] == pytest.approx(before[:3] + np.array([0, 0, 40.0]), abs=0.05)


def test_a_line_is_straight_at_its_speed_and_ends_at_its_target() -> None:
    rig = Rig()
    start = poses.to_rpy(rig.c.tcp)
    goal = start + np.array([30.0, 80.0, -60.0, 0, 0, 0.4])
    rig.ask(LINE, goal, 100.0, 1000.0, 0.0, -1.0, bytes(3))
    path = np.array([poses.to_rpy(rig.c.forward(q)) for q in rig.run(2.5)])
    along = np.array([30.0, 80.0, -60.0]) / np.linalg.norm([30.0, 80.0, -60.0])
    off = (path[:, :3] - start[:3]) - np.outer((path[:, :3] - start[:3]) @ along, along)
    assert np.linalg.norm(off, axis=1).max() < 0.1  # mm
    assert np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1).max() / DT_S < 110.0
    assert path[-1, :3] == pytest.approx(goal[:3], abs=0.05) and rig.c.state == 2
    assert rig.c.tcp == pytest.approx(poses.from_rpy(goal), abs=2e-4)


@pytest.mark.parametrize("mode", [6, 7])
def test_online_planning_drops_the_old_target_and_honours_the_speed(mode: int) -> None:
    rig = Rig(mode)
    function = JOINTS if mode == 6 else LINE
    rig.move(function, 0.15)
    first = rig.run(0.1)
    assert rig.c.queued == 1
    rig.move(function, -0.1)
    path = np.vstack([first, rig.run(4.0)])
    heights = np.array([rig.c.forward(q)[2, 3] for q in path])
    if mode == 6:
        assert path[-1] == pytest.approx(HOME - 0.1, abs=1e-6) and path[:, 0].max() < 0.14
        assert np.abs(np.diff(path, axis=0)).max() / DT_S <= 1.0 + 1e-6
    else:
        assert heights[-1] == pytest.approx(rig.c.forward(HOME)[2, 3] - 0.1, abs=1e-4)
        assert np.abs(np.diff(heights)).max() / DT_S < 0.11


def test_relative_moves_start_where_the_queue_ends() -> None:
    rig = Rig()
    for _ in range(2):
        rig.ask(RELATIVE, np.array([0.1, 0, 0, 0, 0, 0, 0]), 1.0, 10.0, 0.0, -1.0, b"\1\0")
    rig.run(2.0)
    assert rig.c.joints == pytest.approx(HOME + 0.2 * np.eye(7)[0], abs=1e-6)
    before = poses.to_rpy(rig.c.tcp)
    for _ in range(2):
        rig.ask(RELATIVE, np.array([10.0, 0, 0, 0, 0, 0, 0]), 100.0, 1000.0, 0.0, -1.0, b"\0\0")
    rig.run(2.0)
    assert poses.to_rpy(rig.c.tcp)[:3] == pytest.approx(before[:3] + np.array([20.0, 0, 0]), abs=0.05)


def test_a_check_answers_and_moves_nothing() -> None:
    rig = Rig()
    assert rig.ask(JOINTS, HOME + 0.1, 1.0, 10.0, 0.0, b"\1") == Reply(0, bytes(3))
    assert rig.ask(JOINTS, HOME + 3.0, 1.0, 10.0, 0.0, b"\1") == Reply(0, bytes([0, 0, 23]))
    far = np.array([900.0, 0, 300.0, np.pi, 0, 0])
    assert rig.ask(LINE, far, 100.0, 1000.0, 0.0, -1.0, b"\0\0\1") == Reply(0, bytes([0, 0, 21]))
    assert rig.c.state == 2 and (rig.run(0.1) == HOME).all()


# --- servo ------------------------------------------------------------------------------------------------------------


def test_servo_follows_the_newest_target_and_rests_at_the_last_one() -> None:
    rig = Rig(1)
    for i in range(1, 51):
        assert rig.ask(SERVO, HOME + 0.01 * i * np.eye(7)[0], np.zeros(3)).status == 0
        rig.run(0.008)
    path = rig.run(1.0)  # the stream has stopped
    assert path[-1] == pytest.approx(HOME + 0.5 * np.eye(7)[0], abs=1e-7) and rig.c.state == 2
    assert path[:, 0].max() < 0.5 + 1e-4


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (HOME + 0.15 * np.eye(7)[0], 0),
        (HOME + 0.20 * np.eye(7)[0], 24),
        (np.array([0.0, 2.1, 0, 1, 0, 1, 0]), 23),
        (np.full(7, np.nan), 23),
        (np.full(7, np.inf), 23),
    ],
)
def test_servo_targets_out_of_bounds_raise_an_error_in_their_own_reply(target: np.ndarray, code: int) -> None:
    rig = Rig(1)
    status = rig.ask(SERVO, target, np.zeros(3)).status
    assert (status, rig.c.error) == ((HAS_ERROR | CANNOT_MOVE, code) if code else (0, 0))
    assert not code or (rig.run(0.1) == HOME).all()


def test_c24_compares_targets_not_the_arm_that_runs_behind() -> None:
    rig = Rig(1)
    for i in range(1, 6):
        assert rig.ask(SERVO, HOME + 0.17 * i * np.eye(7)[0], np.zeros(3)).status == 0
    assert rig.c.error == 0


def test_c60_guards_the_speed_of_the_tcp() -> None:
    rig = Rig(1)  # the TCP is 0.40 m from J1's axis: 180 deg/s on J1 is 1.26 m/s
    for i in range(1, 60):
        rig.ask(SERVO, HOME + 0.05 * i * np.eye(7)[0], np.zeros(3))
        rig.run(0.008)
    assert rig.c.error == 60
    slow = Rig(1)
    slow.ask(232, b"\1", 2.0)  # the factor that some drivers raise hides the guard
    for i in range(1, 60):
        slow.ask(SERVO, HOME + 0.05 * i * np.eye(7)[0], np.zeros(3))
        slow.run(0.008)
    assert slow.c.error == 0 and slow.ask(233, b"\1").data == encode_floats(2.0)


# --- limits, guards, settings -----------------------------------------------------------------------------------------


def test_joint_ranges_follow_the_serial_number() -> None:
    narrow, wide = Firmware().joint_range(), Firmware(serial="XI130400000001").joint_range()
    assert np.degrees(narrow[1]) == pytest.approx([-117, 116], abs=0.01)
    assert np.degrees(wide[1]) == pytest.approx([-118, 120], abs=0.01)
    assert np.degrees(narrow[3]) == pytest.approx([-6, 225], abs=0.01)


def test_forward_and_inverse_kinematics_in_millimetres() -> None:
    rig = Rig()
    pose = np.frombuffer(rig.ask(44, np.zeros(7)).data, "<f4")
    assert pose[:3] == pytest.approx([206.0, 0.0, 120.5], abs=1e-3)
    target = poses.to_rpy(rig.c.forward(HOME + 0.2))
    reply = rig.ask(43, target)
    joints = np.frombuffer(reply.data, "<f4").astype(float)
    assert reply.status == 0 and poses.to_rpy(rig.c.forward(joints)) == pytest.approx(target, abs=0.05)
    assert rig.ask(43, np.array([900.0, 0, 300.0, np.pi, 0, 0])).status == INVALID


def test_the_tcp_offset_moves_the_tcp_and_is_zero_until_set() -> None:
    rig = Rig()
    flange = rig.c.tcp
    rig.ask(35, np.array([0, 0, 172.0, 0, 0, 0]))
    assert (rig.c.tcp[:3, 3] - flange[:3, 3]) == pytest.approx(0.172 * flange[:3, 2])
    assert rig.c.tcp[2, 3] == pytest.approx(0.25, abs=1e-3)


def test_reduced_states_read_back_byte_by_byte() -> None:
    rig = Rig()
    rig.ask(52, struct.pack("<6i", 620, 200, 350, -350, 500, 4))
    rig.ask(47, 250.0)
    rig.ask(48, 0.5)
    ranges = np.arange(14) / 8.0
    rig.ask(58, ranges)
    rig.ask(50, b"\1")
    rig.ask(59, b"\1")
    rig.ask(60, b"\1")
    expected = b"\1" + struct.pack(">6h", 620, 200, 350, -350, 500, 4) + encode_floats(250.0, 0.5, ranges) + b"\1\1"
    assert rig.ask(53).data == expected and len(expected) == 79


def test_reduced_mode_caps_joint_and_tcp_speed() -> None:
    rig = Rig(1)
    rig.ask(48, 0.3)
    rig.ask(47, 60.0)
    rig.ask(50, b"\1")
    rig.ask(SERVO, HOME + 0.15 * np.eye(7)[6], np.zeros(3))
    assert np.abs(np.diff(rig.run(1.0), axis=0)).max() / DT_S == pytest.approx(0.3)
    rig.ask(SERVO, rig.c.joints + 0.15 * np.eye(7)[0], np.zeros(3))
    path = np.array([rig.c.forward(q)[:3, 3] for q in rig.run(2.0)])
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() / DT_S == pytest.approx(0.06, rel=0.01)
    assert rig.c.state == 2  # it did arrive


def test_the_fence_raises_c35_outwards_and_lets_the_arm_back_in() -> None:
    rig = Rig()
    x, y, z = (poses.to_rpy(rig.c.tcp)[:3]).round().astype(int)
    rig.ask(52, struct.pack("<6i", x + 50, x - 50, y + 50, y - 50, z + 20, z - 50))
    rig.move(LINE, 0.06)
    rig.run(2.0)
    assert rig.c.error == 0  # a boundary without the fence
    rig.recover(0)
    rig.move(LINE, 0.0)
    rig.run(2.0)
    rig.ask(59, b"\1")
    rig.move(LINE, 0.06)
    rig.run(2.0)
    assert rig.c.error == 35 and 0.02 < rig.c.tcp[2, 3] - z / 1000 < 0.025  # stopped just outside
    rig.recover(0)
    rig.move(LINE, 0.06)
    rig.run(0.5)
    assert rig.c.error == 35
    rig.recover(0)
    rig.move(LINE, 0.0)
    rig.run(2.0)
    assert rig.c.error == 0 and rig.c.tcp[2, 3] == pytest.approx(z / 1000, abs=1e-3)


@pytest.mark.parametrize(("sensitivity", "code"), [(0, 0), (1, 31), (3, 31), (5, 31)])
def test_an_arm_that_is_held_back_collides(sensitivity: int, code: int) -> None:
    rig = Rig()
    rig.ask(37, bytes([sensitivity]))
    rig.recover(0)
    rig.plant.blocked = True
    rig.move(JOINTS, 0.5)
    rig.run(1.0)
    assert rig.c.error == code


def test_a_higher_sensitivity_feels_a_lighter_touch() -> None:
    def ticks(sensitivity: int) -> int:
        rig = Rig()
        rig.ask(37, bytes([sensitivity]))
        rig.recover(0)
        rig.plant.blocked = True
        rig.move(JOINTS, 0.5)
        return next(i for i in range(1000) if rig.run(DT_S) is not None and rig.c.error == 31)

    assert sorted(times := [ticks(s) for s in range(1, 6)], reverse=True) == times


# --- gripper ----------------------------------------------------------------------------------------------------------


def gripper(enabled: bool = True) -> Rig:
    rig = Rig()
    rig.rtu(RegisterWrite(8, 0x0101, (0,)))
    rig.rtu(RegisterWrite(8, 0x0303, (5000,)))
    if enabled:
        rig.rtu(RegisterWrite(8, 0x0100, (1,)))
    return rig


def read(rig: Rig, address: int, count: int = 1) -> bytes:
    return rig.rtu(RegisterRead(8, address, count)).data[4:]


def test_the_gripper_moves_in_pulses_at_its_speed_and_reports_it() -> None:
    rig = gripper()
    assert rig.rtu(RegisterWrite(8, 0x0700, words(200))).data == bytes.fromhex("09 08 10 0700 0002")
    rig.run(0.1)
    assert read(rig, 0x0000) == b"\0\1"
    assert rig.c.gripper.measured_m == pytest.approx(0.085 - 0.1 * 0.1)  # 5000 r/min are 100 mm/s
    rig.run(1.0)
    assert read(rig, 0x0000) == b"\0\0" and read(rig, 0x0702, 2) == bytes.fromhex("0000 00C8")


def test_the_gripper_reports_that_it_holds_something() -> None:
    rig = gripper()
    rig.plant.object_m = 0.06
    rig.rtu(RegisterWrite(8, 0x0700, words(0)))
    rig.run(1.5)
    assert read(rig, 0x0000) == b"\0\2" and read(rig, 0x0702, 2) == bytes.fromhex("0000 0258")


def test_a_gripper_that_is_off_or_faulty_does_not_move() -> None:
    off = gripper(enabled=False)
    off.rtu(RegisterWrite(8, 0x0700, words(0)))
    off.rtu(RegisterWrite(8, 0x0100, (1,)))
    off.run(1.0)
    assert off.c.gripper.measured_m == 0.085  # earlier writes are not repeated
    rig = gripper()
    rig.c.gripper.fail(11)
    rig.rtu(RegisterWrite(8, 0x0700, words(0)))
    rig.run(1.0)
    assert read(rig, 0x000F) == b"\0\x0b" and rig.c.gripper.measured_m == 0.085
    rig.rtu(RegisterWrite(8, 0x0109, (1,)))
    rig.run(1.0)
    assert read(rig, 0x000F) == b"\0\0" and rig.c.gripper.measured_m == 0.085
    rig.rtu(RegisterWrite(8, 0x0700, words(0)))
    rig.run(1.0)
    assert rig.c.gripper.measured_m == 0.0
    assert rig.c.error == 0  # the arm is not affected


def test_a_dead_tool_bus_is_c19_and_an_answer_without_frame() -> None:
    rig = gripper()
    rig.c.bus_dead = True
    assert rig.rtu(RegisterRead(8, 0x0702, 2)) == Reply(HAS_ERROR | CANNOT_MOVE, b"\x09")
    assert rig.c.error == 19 and rig.c.state == 4


def test_registers_that_the_gripper_lacks_are_invalid() -> None:
    rig = gripper()
    assert rig.rtu(RegisterRead(8, 0x0A00, 1)).status == INVALID
    assert rig.rtu(RegisterRead(3, 0x0702, 2)).status == INVALID
    assert rig.rtu(RegisterWrite(8, 0x0101, (2,))).status == INVALID
    assert rig.ask(128, b"\x09\x0a\x0b").data == bytes([0, 0, 0, 11])  # baud index: 2 Mbaud


# --- anything ---------------------------------------------------------------------------------------------------------

KNOWN = st.sampled_from(sorted(commands.HANDLERS))
NUMBERS = st.lists(st.floats(-1000, 1000, width=32) | st.just(np.nan) | st.just(np.inf), max_size=12)
PARAMS = st.binary(max_size=60) | st.builds(lambda f, b: encode_floats(np.array(f)) + b, NUMBERS, st.binary(max_size=4))


@given(st.lists(st.tuples(KNOWN | st.integers(0, 255), PARAMS), max_size=25), st.sampled_from([0, 1, 6, 7]))
@settings(max_examples=60, deadline=None)
def test_no_request_breaks_the_controller(requests: list[tuple[int, bytes]], mode: int) -> None:
    rig = Rig(mode)
    for function, params in requests:
        before = rig.c.error
        reply = rig.ask(function, params)
        assert bool(reply.status & HAS_ERROR) == bool(rig.c.error)
        assert rig.c.error == before or function == CLEAN or before == 0
        rig.run(0.008)
        assert rig.c.state in (1, 2, 3, 4, 5, 6) and rig.c.mode in (0, 1, 6, 7)
        assert np.isfinite(rig.c.joints).all()
        assert (rig.c.joints >= rig.c.range_rad[:, 0] - 1e-9).all()
        assert (rig.c.joints <= rig.c.range_rad[:, 1] + 1e-9).all()


def test_every_error_that_the_emulator_raises_by_itself_is_an_assumption() -> None:
    codes = {state.KINEMATICS, state.JOINT_LIMIT, state.SPEED, state.COLLISION, state.FENCE, state.LINEAR_SPEED}
    documented_codes = {int(code) for a in ASSUMPTIONS for code in re.findall(r"\bC(\d+)\b", f"{a.topic} {a.emulated}")}
    assert codes | {state.TOOL_BUS, *state.EMERGENCY} <= documented_codes
    assert len({a.topic for a in ASSUMPTIONS}) == len(ASSUMPTIONS)
    assert all(a.emulated and a.check for a in ASSUMPTIONS)
