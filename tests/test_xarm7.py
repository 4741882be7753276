"""Tests the driver, its streamer and the vendor's unmodified SDK in real time against the emulated controller."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srpo_robot.arm import kinematics
from srpo_robot.arm.xarm7 import wire
from srpo_robot.arm.xarm7.controller_codes import ControllerFault, Remedy
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.arm.xarm7.motion import lowest
from srpo_robot.arm.xarm7.stream_loop import StreamerState
from srpo_robot.errors import ArmError, CommandRefused
from srpo_robot.mock.controller import ControllerServer, Firmware, KinematicPlant, free_host
from srpo_robot.mock.controller.frames import Reply, Request, encode_reply
from srpo_robot.mock.controller.server import LoggedRequest
from srpo_robot.recipes import HardwareRecipe, load
from srpo_robot.records import JOINTS, ArmCommand

pytestmark = pytest.mark.real_time

LAB = load(HardwareRecipe, "hardware", "xarm7")
HOME = np.array(LAB.home_rad)
TURN = np.eye(JOINTS)[0]
# A busy machine may leave the emulator waiting, while the streamer has real-time scheduling.
PATIENT = {"max_report_age_s": 1.0, "command_timeout_s": 1.5}
SERVO = 29  # function of a set point in mode 1
STANDS, READY = (wire.STOPPED, 5), wire.READY


@pytest.fixture(scope="module")
def server() -> Iterator[ControllerServer]:
    """One emulator for all tests. Later drivers find the settings that earlier ones stored."""
    with ControllerServer(KinematicPlant(HOME), host=free_host()) as running:
        yield running


@pytest.fixture
def recipe(server: ControllerServer) -> Iterator[HardwareRecipe]:
    """A recipe of the emulator, whose faults are cleared before and after. It tolerates late reports."""
    heal(server)
    yield recipe_of(server)
    heal(server)


@pytest.fixture
def arm(recipe: HardwareRecipe) -> Iterator[XArm7]:
    with XArm7(recipe) as driver:
        driver.resume()
        yield driver


def recipe_of(server: ControllerServer, fps: float = 50.0, **changes: object) -> HardwareRecipe:
    options = {"address": server.host, "command_port": server.command_port, **PATIENT, **changes}
    assert LAB.controller is not None
    return replace(LAB, cameras=(), fps=fps, controller=replace(LAB.controller, **options))


def heal(server: ControllerServer) -> None:
    server.faults.heal()
    server.faults.release()
    server.faults.gripper_repair()
    for function, params in ((16, b""), (17, b""), (12, bytes([4]))):
        wire.ask(server.host, server.command_port, function, params, 5.0)


def until(happens: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def set_points(requests: tuple[LoggedRequest, ...], after_s: float = 0.0) -> np.ndarray:
    """Returns the joints of every servo command that the emulator received, (n, 7)."""
    frames = [h.params for h in requests if h.function == SERVO and h.time_s > after_s]
    return np.array([np.frombuffer(frame, "<f4", JOINTS) for frame in frames], dtype=np.float64).reshape(-1, JOINTS)


def stands(server: ControllerServer) -> bool:
    state = server.arm_state()
    return not state.velocity_rad_s.any()


def is_gone(pid: int) -> bool:
    """Returns whether the process has ended. If its parent was killed, it may stay as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- normal operation -------------------------------------------------------------------------------------------------


def test_the_arm_follows_holds_and_stops(arm: XArm7, server: ControllerServer) -> None:
    start = arm.observe().state.joints_rad
    for k in range(1, 26):
        limited = arm.send(ArmCommand(start + 0.01 * k * TURN, 0.06))
        assert set(limited.limited_by) <= {
            "gripper_step",
            "tcp_speed",
        }  # the second attempt, if a busy machine delayed the first
    for _ in range(15):
        arm.send(ArmCommand(start + 0.25 * TURN, 0.06))
    for _ in range(5):
        arm.hold()
    until(lambda: bool(abs(arm.observe().state.joints_rad[0] - start[0] - 0.25) < 1e-4))
    until(lambda: abs(arm.observe().state.gripper_m - 0.06) < 2e-3)
    arm.stop()
    assert server.arm_state().state in STANDS
    with pytest.raises(ArmError, match="the arm was stopped; go_home or resume it after a person has confirmed"):
        arm.send(ArmCommand(start, 0.06))
    arm.stop()
    arm.go_home()
    assert server.arm_state().joints_rad == pytest.approx(HOME, abs=3e-3)
    assert (server.arm_state().mode, server.arm_state().state) == (1, READY)


def test_the_log_has_every_tick(arm: XArm7) -> None:
    start = arm.observe().state.joints_rad
    arm.take_log()
    for k in range(1, 21):
        arm.send(ArmCommand(start + 0.005 * k * TURN, 0.085))
    log = arm.take_log()
    assert len(log) >= 20 and arm.take_log().shape[0] < len(log)
    assert (log["phase"] == StreamerState.STREAM).all() and (log["code"] == 0).all() and (log["mode"] == 1).all()
    assert np.all(np.diff(log["time_s"]) > 0.004)  # no burst on a busy machine either
    assert np.all(np.diff(log["target"]) >= 0) and log["target"][-1] >= 19
    assert np.abs(np.diff(log["sent_rad"][:, 0])).max() <= LAB.limits.max_joint_speed_rad_s * 0.01 + 1e-9
    assert np.nanmax(log["reply_s"]) > 0


def test_exit_stops_the_arm_and_the_streamer(recipe: HardwareRecipe, server: ControllerServer) -> None:
    with XArm7(recipe) as arm:
        start = arm.observe().state.joints_rad
        for k in range(1, 6):
            arm.send(ArmCommand(start + 0.02 * k * TURN, 0.085))
        pid = arm.info["pid"]
    assert server.arm_state().state in STANDS and stands(server)
    assert is_gone(pid)
    until(lambda: not server.clients())
    with pytest.raises(ArmError, match="the arm is not open"):
        arm.observe()
    assert len(arm.take_log()) > 0  # recorded ticks survive
    assert socket.getdefaulttimeout() is None  # the SDK sets one, but in a separate process


def test_a_default_timeout_of_the_process_does_not_end_the_streamer(recipe: HardwareRecipe) -> None:
    """A program that also uses the SDK has a default timeout: sockets created under it do not block."""
    try:
        socket.setdefaulttimeout(1.0)
        with XArm7(recipe) as arm:
            arm.resume()
            start = arm.observe().state.joints_rad
            for k in range(1, 6):
                arm.send(ArmCommand(start + 0.02 * k * TURN, 0.085))
            assert np.abs(arm.observe().commanded.joints_rad - start).max() > 0.02
    finally:
        socket.setdefaulttimeout(None)


def test_the_sdk_writes_no_file_at_home(
    recipe: HardwareRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with XArm7(recipe):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_long_pause_does_not_block_the_reports(arm: XArm7) -> None:
    """The log is not read for longer than a pipe holds (2.7 s). The newest report still arrives afterwards."""
    start = arm.observe().state.joints_rad
    time.sleep(3.5)
    assert arm.observe().state.time_s > time.monotonic() - 1.0
    arm.send(ArmCommand(start + 0.005 * TURN, 0.085))
    log = arm.take_log()
    assert len(log) > 250 and np.all(np.diff(log["time_s"]) > 0)


def test_settings_are_stored_once_and_read_back(recipe: HardwareRecipe, server: ControllerServer) -> None:
    with XArm7(recipe):
        pass
    before = len([h for h in server.request_log() if h.function == 35])
    with XArm7(recipe) as arm:
        assert arm.info["serial"] == "XI130500000001" and arm.info["firmware"] == (2, 5, 0)
    # No setting differed, so there was no system reset.
    assert len([h for h in server.request_log() if h.function == 35]) == before
    heavier = recipe_of(server, payload_kg=1.0)
    with XArm7(heavier, dry_run=True) as dry:
        assert dry.info["differences"] == ("payload_kg: wanted 1., got 0.82",)


def test_a_dry_run_checks_and_counts_but_sends_nothing(recipe: HardwareRecipe, server: ControllerServer) -> None:
    count = len(server.request_log())
    with XArm7(recipe, dry_run=True) as arm:
        arm.go_home()
        start = arm.observe().state.joints_rad
        for k in range(1, 11):
            arm.send(ArmCommand(start + 0.01 * k * TURN, 0.0))
        log = arm.take_log()
    assert log["sent_rad"][-1][0] > start[0] + 0.05  # the set points that would have been sent
    moving = {11, 12, 16, 19, 21, 23, SERVO, 30}
    assert not [h.function for h in server.request_log()[count:] if h.function in moving and h.client != 0]


def test_the_first_chunk_runs_at_the_recipes_pace(recipe: HardwareRecipe, server: ControllerServer) -> None:
    with XArm7(recipe, first_pace=0.1) as arm:
        start = arm.observe().state.joints_rad
        after_s = server.arm_state().time_s
        for _ in range(20):
            assert "joint_step" in arm.send(ArmCommand(start + 0.5 * TURN, 0.085)).limited_by
        slow = np.abs(np.diff(set_points(server.request_log(), after_s)[:, 0])).max()
        arm.pace = 1.0
        for _ in range(20):
            arm.send(ArmCommand(start + 0.5 * TURN, 0.085))
        fast = np.abs(np.diff(set_points(server.request_log(), after_s)[:, 0])).max()
    assert slow <= 0.1 * LAB.limits.max_joint_speed_rad_s * 0.01 + 1e-6 < 0.5 * fast


def test_a_limit_of_the_set_points_is_named_and_counts_as_executed(server: ControllerServer) -> None:
    heal(server)
    with XArm7(recipe_of(server, max_tcp_speed_m_s=0.02)) as arm:
        arm.resume()
        start = arm.observe().state.joints_rad
        limit_names: set[str] = set()
        for _ in range(20):
            limited = arm.send(ArmCommand(start + TURN, 0.085))
            limit_names |= set(limited.limited_by)
        assert "tcp_speed" in limit_names
        # 0.4 s at 0.02 m/s, 0.4 m from the base's axis: the reference did not run away from the set points.
        assert limited.command.joints_rad[0] - start[0] < 0.05
        assert limited.command is arm.commanded


def test_mode_6_is_streamed_too(server: ControllerServer) -> None:
    heal(server)
    with XArm7(recipe_of(server, stream="online", stream_hz=25.0, fps=10.0)) as arm:
        arm.resume()
        start = arm.observe().state.joints_rad
        for k in range(1, 11):
            arm.send(ArmCommand(start + 0.02 * k * TURN, 0.085))
        assert server.arm_state().mode == 6
        until(lambda: bool(abs(server.arm_state().joints_rad[0] - start[0] - 0.2) < 1e-3))


def test_the_gripper_gets_at_most_ten_writes_a_second_and_only_changes(arm: XArm7, server: ControllerServer) -> None:
    def gripper_writes(after_s: float) -> list[tuple[float, int]]:
        """Returns (time, pulses) of every write of the target register (func 124, device 8)."""
        write = bytes([9, 8, 0x10, 0x07, 0x00])
        writes = [h for h in server.request_log() if h.function == 124 and h.time_s > after_s and h.params[:5] == write]
        return [(h.time_s, int.from_bytes(h.params[8:12], "big", signed=True)) for h in writes]

    start, began_s = arm.observe().state.joints_rad, server.arm_state().time_s
    for k in range(75):
        arm.send(ArmCommand(start, 0.085 if k // 10 % 2 else -1.0))
    orders = gripper_writes(began_s)
    assert 3 <= len(orders) <= (orders[-1][0] - orders[0][0]) / 0.1 + 2
    assert all(0 <= pulses <= 850 for _, pulses in orders)
    last = arm.reference()
    until(lambda: abs(gripper_writes(began_s)[-1][1] - 1e4 * last.gripper_m) <= 1)
    quiet_s = server.arm_state().time_s
    for _ in range(20):
        arm.hold()
    assert gripper_writes(quiet_s) == []


# --- no command leaves the limits -------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(-7, 7), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300]))
JUMPS = st.lists(NUMBERS, min_size=JOINTS, max_size=JOINTS).map(np.array)
NEAR = st.lists(st.floats(-0.3, 0.3), min_size=JOINTS, max_size=JOINTS).map(lambda d: HOME + np.array(d))
TARGETS = st.lists(st.tuples(st.one_of(JUMPS, NEAR), NUMBERS, st.integers(1, 8)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def streaming() -> Iterator[tuple[XArm7, ControllerServer]]:
    """Yields an arm that streams all the time, with a separate emulator."""
    with ControllerServer(KinematicPlant(HOME), host=free_host()) as emulator, XArm7(recipe_of(emulator)) as driver:
        driver.resume()
        yield driver, emulator


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(targets=TARGETS)
def test_every_received_command_is_inside_the_limits(
    streaming: tuple[XArm7, ControllerServer], targets: list[tuple[np.ndarray, float, int]]
) -> None:
    """Sends targets to the streamer directly, past the control period's limits. The streamer's limits still hold."""
    arm, server = streaming
    process, after_s = arm._process(), server.arm_state().time_s
    for number, (joints, gripper, periods) in enumerate(targets):
        process.aim(number, ArmCommand(joints, gripper), time.monotonic() + 0.02, 1.0)
        process.watch(time.monotonic() + 0.02 * periods)
        process.take_refusal()
    obeys(set_points(server.request_log(), after_s - 0.1))
    assert server.arm_state().error == 0


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.01, 0.1, 1.0]))
def test_random_walks_of_commands_stay_inside(
    streaming: tuple[XArm7, ControllerServer], seed: int, scale: float
) -> None:
    arm, server = streaming
    rng, after_s = np.random.default_rng(seed), server.arm_state().time_s
    walk = HOME + np.cumsum(rng.normal(0, scale, (20, JOINTS)), axis=0)
    for joints in walk:
        arm.send(ArmCommand(joints, rng.uniform(-1, 1)))
    for bad in (np.nan, np.inf):
        with pytest.raises(CommandRefused):
            arm.send(ArmCommand(np.full(JOINTS, bad), 0.04))
    obeys(set_points(server.request_log(), after_s - 0.1))
    assert server.arm_state().error == 0


def obeys(points: np.ndarray) -> None:
    """Asserts every limit on the received set points, which are float32 and nominally 10 ms apart."""
    limits, controller = LAB.limits, LAB.controller
    assert controller is not None and len(points) > 2 and np.isfinite(points).all()
    assert np.all(points >= np.array(limits.joint_min_rad) - 1e-6)
    assert np.all(points <= np.array(limits.joint_max_rad) + 1e-6)
    steps = np.diff(points, axis=0)
    assert np.abs(steps).max() <= limits.max_joint_speed_rad_s * 0.01 + 2e-6
    assert np.abs(np.diff(steps, axis=0)).max() <= controller.max_joint_acceleration_rad_s2 * 1e-4 + 2e-6
    tcp = np.array([kinematics.tcp_position(q, np.array(LAB.tcp_offset_m)) for q in points])
    assert np.all(tcp >= np.array(limits.box_min_m) - 1e-5) and np.all(tcp <= np.array(limits.box_max_m) + 1e-5)
    assert np.linalg.norm(np.diff(tcp, axis=0), axis=1).max() <= controller.max_tcp_speed_m_s * 0.01 + 1e-5
    assert lowest(kinematics.frames(points)) >= controller.table_m - 1e-5


# --- faults -----------------------------------------------------------------------------------------------------------


def run_until_fault(arm: XArm7) -> ArmError:
    """Keeps moving gently until the driver raises. Returns the error."""
    with pytest.raises(ArmError) as error:
        here = arm.reference().joints_rad
        for k in range(500):
            arm.send(ArmCommand(here + 0.1 * np.sin(0.1 * k) * TURN, 0.08 - 0.02 * (k // 25 % 2)))
    return error.value


@pytest.mark.parametrize("code", [31, 13])
def test_a_controller_error_stops_the_arm_and_only_a_person_clears_it(
    arm: XArm7, server: ControllerServer, code: int
) -> None:
    threading.Timer(0.2, server.faults.error, [code]).start()
    fault = run_until_fault(arm)
    assert isinstance(fault, ControllerFault) and fault.code == code
    assert server.arm_state().error == code and stands(server)  # the error was not cleared
    for call in (arm.observe, arm.go_home, arm.resume):
        with pytest.raises(ControllerFault):
            call()
    with pytest.raises(ArmError, match="only after a person has looked and confirmed"):
        arm.recover(confirmed=False)
    assert server.arm_state().error == code
    arm.recover(confirmed=True)
    assert server.arm_state().error == 0 and server.arm_state().state in STANDS
    with pytest.raises(ArmError, match="the arm was stopped"):
        arm.send(ArmCommand(HOME, 0.04))
    arm.resume()
    arm.hold()


def test_a_pressed_emergency_stop_outlasts_every_recovery(arm: XArm7, server: ControllerServer) -> None:
    threading.Timer(0.1, server.faults.emergency_stop).start()
    fault = run_until_fault(arm)
    assert isinstance(fault, ControllerFault) and fault.remedy is Remedy.RELEASE
    with pytest.raises(ControllerFault, match="emergency stop button is pressed"):
        arm.recover(confirmed=True)
    server.faults.release()
    arm.recover(confirmed=True)
    assert server.arm_state().error == 0


@pytest.mark.parametrize(
    ("code", "says"), [(None, "controller error C19"), (11, r"gripper error G11 \(too much current")]
)
def test_the_grippers_fault_stops_the_arm(arm: XArm7, server: ControllerServer, code: int | None, says: str) -> None:
    server.faults.gripper_fault(code)
    with pytest.raises(ControllerFault, match=says):
        raise run_until_fault(arm)
    assert stands(server)
    with pytest.raises(ControllerFault, match=says):  # the gripper is still broken
        arm.recover(confirmed=True)
    server.faults.gripper_repair()
    arm.recover(confirmed=True)


def test_a_late_reply_is_tolerated_without_a_burst(arm: XArm7, server: ControllerServer) -> None:
    start, after_s = arm.reference().joints_rad, server.arm_state().time_s
    arm.take_log()
    server.faults.delay_replies(0.19, count=1)
    for k in range(1, 31):
        arm.send(ArmCommand(start + 0.005 * k * TURN, 0.085))
    log = arm.take_log()
    assert log["missed"].max() >= 15 and np.diff(log["time_s"]).min() > 0.004
    points = set_points(server.request_log(), after_s)
    assert np.abs(np.diff(points[:, 0])).max() <= LAB.limits.max_joint_speed_rad_s * 0.01 + 2e-6


@pytest.mark.parametrize(
    ("inject", "says"),
    [
        (lambda s: s.faults.drop_replies(seconds=2.0, client=s.clients()[0]), "no reply in time"),
        (lambda s: s.faults.half_open(client=s.clients()[0]), "no reply in time"),
        (lambda s: s.faults.stale_reports(), "reports repeat themselves|no report"),
        (lambda s: s.faults.silence_reports(), "no report from the controller for"),
        (lambda s: s.faults.reset_connections(), "connection broke|connection is closed|could not be sent"),
        (lambda s: s.faults.cut_reply(client=s.clients()[0]), "the connection is closed, code -1"),
    ],
    ids=["lost replies", "half-open", "stale reports", "silent reports", "reset", "reset before a reply"],
)
def test_a_sick_network_stops_the_arm(
    recipe: HardwareRecipe, server: ControllerServer, inject: Callable[[ControllerServer], None], says: str
) -> None:
    with XArm7(recipe) as arm:
        arm.resume()
        inject(server)
        fault = run_until_fault(arm)
        assert re.search(says, str(fault)), str(fault)
        assert "NOT CONFIRMED" not in str(fault)
        assert server.arm_state().state in STANDS
        pid = arm.info["pid"]
        server.faults.heal()
    assert is_gone(pid) and len(arm.take_log()) > 0


def test_a_dead_network_is_reported_and_the_arm_holds(recipe: HardwareRecipe, server: ControllerServer) -> None:
    arm = XArm7(recipe)
    with pytest.raises(ArmError, match="PRESS THE EMERGENCY STOP"), arm:
        arm.resume()
        server.faults.half_open()
        assert "STOP WAS NOT CONFIRMED" in str(run_until_fault(arm))
    assert is_gone(arm.info["pid"])
    until(lambda: stands(server))
    assert server.arm_state().joints_rad == pytest.approx(server.arm_state().setpoint_rad)


def test_another_client_that_stops_or_takes_the_arm_is_noticed(arm: XArm7, server: ControllerServer) -> None:
    wire.stop(server.host, server.command_port, 5.0)
    assert "another client, or the studio, stopped the arm or changed its mode" in str(run_until_fault(arm))
    arm.recover(confirmed=True)
    arm.resume()
    wire.ask(server.host, server.command_port, 19, bytes([0]), 5.0)
    wire.ask(server.host, server.command_port, 12, bytes([0]), 5.0)
    assert "another client, or the studio, stopped the arm or changed its mode" in str(run_until_fault(arm))
    assert server.arm_state().state in STANDS


def test_a_second_client_is_refused(arm: XArm7, recipe: HardwareRecipe) -> None:
    with pytest.raises(ArmError, match="another srpo-robot on this machine has the arm"), XArm7(recipe):
        pass


def test_a_moving_arm_belongs_to_another_client(recipe: HardwareRecipe, server: ControllerServer) -> None:
    with XArm7(recipe) as arm:
        arm.go_home()
    target = np.array([*(HOME + 0.5 * TURN), 0.1, 1.0, 0.0], "<f4").tobytes()
    for function, params in ((11, b"\x08\x01"), (19, b"\0"), (12, b"\0"), (23, target)):
        wire.ask(server.host, server.command_port, function, params, 5.0)
    with pytest.raises(ArmError, match="another client moves the arm; end it"), XArm7(recipe):
        pass


def test_an_error_before_the_start_is_not_cleared(recipe: HardwareRecipe, server: ControllerServer) -> None:
    server.faults.error(31)
    arm = XArm7(recipe)
    with pytest.raises(ControllerFault, match=r"C31 \(collision\)"), arm:
        pass
    assert server.arm_state().error == 31
    arm.recover(confirmed=True)  # not open, since the command line asks before it opens again
    assert server.arm_state().error == 0
    with arm:
        arm.resume()


def test_a_stop_from_another_thread_passes_a_blocked_command(arm: XArm7, server: ControllerServer) -> None:
    here = arm.reference().joints_rad
    arm.send(ArmCommand(here + 0.01 * TURN, 0.085))
    server.faults.half_open(client=server.clients()[0])
    errors: list[BaseException] = []

    def stop() -> None:
        try:
            arm.stop()
            assert server.arm_state().state in STANDS
        except BaseException as error:
            errors.append(error)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(ArmError):
        for k in range(200):
            arm.send(ArmCommand(here + 0.001 * k * TURN, 0.085))
    stopping.join()
    assert not errors


def test_a_stop_before_the_first_command_is_not_forgotten(recipe: HardwareRecipe, server: ControllerServer) -> None:
    with XArm7(recipe) as arm:
        arm.stop()
        with pytest.raises(ArmError, match="stopped meanwhile; confirm again"):
            arm.send(ArmCommand(HOME, 0.085))
        assert server.arm_state().state in STANDS
        arm.resume()
        arm.hold()


def test_a_command_sent_before_a_stop_is_void(arm: XArm7, server: ControllerServer) -> None:
    process = arm._process()
    before = process.stops
    arm.stop()
    process.tell("home", before, HOME)
    error = process.wait("armed", 10.0)
    assert "stopped meanwhile" in str(error) and server.arm_state().state in STANDS


# --- processes that die -----------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
import numpy as np
from dataclasses import replace
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.recipes import HardwareRecipe, load
from srpo_robot.records import ArmCommand
recipe = load(HardwareRecipe, "hardware", "xarm7")
controller = replace(recipe.controller, address=sys.argv[1], command_port=int(sys.argv[2]), max_report_age_s=1.0)
with XArm7(replace(recipe, cameras=(), fps=50.0, controller=controller)) as arm:
    arm.resume()
    start = arm.observe().state.joints_rad
    print(arm.info["pid"], flush=True)
    for k in range(100000):
        arm.send(ArmCommand(start + np.r_[0.2 * np.sin(0.05 * k), np.zeros(6)], 0.08))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_program_that_dies_leaves_the_arm_standing(
    recipe: HardwareRecipe, server: ControllerServer, how: signal.Signals
) -> None:
    command = [sys.executable, "-c", DRIVER, server.host, str(server.command_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stderr is not None
        line = program.stdout.readline()
        assert line, program.stderr.read()
        pid = int(line)
        until(lambda: not stands(server))
        after_s = server.arm_state().time_s
        program.send_signal(how)
        program.communicate()
    until(lambda: is_gone(pid))
    state = server.arm_state()
    assert state.state in STANDS and state.error == 0 and not state.velocity_rad_s.any()
    if how == signal.SIGKILL:  # the arm braked first: no set point exceeds the acceleration cap
        points = set_points(server.request_log(), after_s - 0.1)
        assert np.abs(np.diff(points, n=2, axis=0)).max() <= 8.0 * 1e-4 + 2e-6
    until(lambda: not server.clients())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "kill"])
def test_a_streamer_that_dies_is_noticed_and_the_arm_stopped(
    arm: XArm7, server: ControllerServer, how: signal.Signals
) -> None:
    arm.hold()
    os.kill(arm.info["pid"], how)
    assert "the streamer ended" in str(run_until_fault(arm))
    assert server.arm_state().state in STANDS


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("firmware", "changes", "says"),
    [
        (Firmware(serial="X13050"), {}, "tells no generation"),
        (Firmware(version="v1.4.0"), {}, "firmware 1.4.0 is too old"),
        (Firmware(), {"serial": "XI130400000009"}, "wanted the arm XI130400000009, got XI130500000001"),
        (Firmware(), {"connect_timeout_s": 0.5, "command_port": 1}, "no xArm controller answers at"),
    ],
)
def test_the_wrong_controller_is_a_one_line_error(firmware: Firmware, changes: dict[str, Any], says: str) -> None:
    with ControllerServer(KinematicPlant(HOME), host=free_host(), firmware=firmware) as emulator:
        recipe = recipe_of(emulator, **changes)
        with pytest.raises(ArmError, match=says) as error, XArm7(recipe):
            pass
    assert "\n" not in str(error.value)


class Deaf(ControllerServer):
    """A controller that accepts the payload (function 36) and does not store it."""

    def _execute(self, client: int, request: Request) -> bytes:
        return encode_reply(request, Reply(0)) if request.function == 36 else super()._execute(client, request)


def test_a_setting_that_the_controller_drops_is_named() -> None:
    with Deaf(KinematicPlant(HOME), host=free_host()) as emulator:
        with pytest.raises(ArmError, match=r"payload_kg: wanted 0.82, got 0.; payload_centre_m: wanted") as error:
            XArm7(recipe_of(emulator)).__enter__()
        assert emulator.arm_state().state in STANDS
    assert "did not keep its settings" in str(error.value)


@pytest.mark.parametrize(
    ("function", "params", "says"),
    [
        (127, struct.pack(">BH", 9, 0x1A0B) + struct.pack("<f", 5), "the tool's bus runs at .* baud, wanted 2000000"),
        (232, struct.pack("<Bf", 1, 2.0), "raised the controller's speed factor: wanted 1.2 at most, got 2.00"),
    ],
    ids=["gripper's baud rate", "speed factor"],
)
def test_settings_of_other_programs_are_refused_and_not_repaired(function: int, params: bytes, says: str) -> None:
    """The SDK alone would clear errors, reboot the tool and enable the arm if a baud rate differs."""
    with ControllerServer(KinematicPlant(HOME), host=free_host()) as emulator:
        wire.ask(emulator.host, emulator.command_port, function, params, 5.0)
        with pytest.raises(ArmError, match=says):
            XArm7(recipe_of(emulator)).__enter__()
        assert not [h for h in emulator.request_log()[1:] if h.function in (16, 127, 232)]
        assert emulator.arm_state().state in STANDS


def test_the_benchmark_measures_what_it_says(tmp_path: Path) -> None:
    script, output = Path(__file__).parents[1] / "scripts" / "bench_streamer.py", tmp_path / "bench.json"
    command = [sys.executable, str(script), "--seconds", "1", "--stops", "1", "--json", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    numbers = json.loads(output.read_text())
    assert numbers["period_p99_ms"] >= numbers["distributions_ms"]["period"]["p50"] == pytest.approx(10.0, abs=3.0)
    assert 0 <= numbers["deadline_misses"] <= numbers["ticks"] and numbers["ticks"] > 50
    for key in ("stop_p99_ms_healthy", "stop_p99_ms_stuck"):
        assert 0.0 < numbers[key] < 2000.0
    assert "stop, link stuck" in result.stdout
