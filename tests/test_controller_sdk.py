"""The vendor's unmodified SDK against the emulated controller, by the clock: the codes that a driver will see."""

from __future__ import annotations

import math
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from srpo_robot.mock.controller import ControllerServer, KinematicPlant, frames, free_host
from srpo_robot.mock.controller.frames import INVALID

# The SDK warns through a deprecated method of Python. As an error the warning would break calls that work.
pytestmark = [
    pytest.mark.real_time,
    pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning"),
]

HOME = np.array([0.0, -0.25904, 0.0, 0.96166, 0.0, 1.2207, 0.0])
STEP = np.array([0.1, 0, 0, 0, 0, 0, 0])  # one servo target away: all joints at once would be too fast (C60)
Connect = Callable[..., Any]


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The SDK's module, imported with a temporary home folder, because it writes logs there on import."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        import xarm.wrapper
    return xarm.wrapper


@pytest.fixture
def plant() -> KinematicPlant:
    return KinematicPlant(HOME)


@pytest.fixture
def server(plant: KinematicPlant) -> Iterator[ControllerServer]:
    with ControllerServer(plant, host=free_host()) as running:
        yield running


@pytest.fixture
def connect(sdk: Any, server: ControllerServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Makes clients: the SDK finds the command port by a class attribute and the report ports by their numbers."""
    from xarm.core.config.x_config import XCONF

    monkeypatch.setattr(XCONF.SocketConf, "TCP_CONTROL_PORT", server.command_port)
    clients: list[Any] = []

    def make(**options: Any) -> Any:
        arm = sdk.XArmAPI(server.host, is_radian=True, forbid_uds=True, **options)
        clients.append(arm)
        return arm

    yield make
    server.faults.reset_connections()  # ends the SDK's threads before their time limits
    for arm in clients:
        arm.disconnect()
    socket.setdefaulttimeout(None)  # the SDK sets one second for the whole process


@pytest.fixture
def arm(connect: Connect) -> Any:
    """One client, ready in mode 1."""
    return ready(connect(), 1)


def ready(arm: Any, mode: int) -> Any:
    """Runs the recovery recipe and waits until a report confirms it."""
    assert (arm.clean_error(), arm.motion_enable(True), arm.set_mode(mode), arm.set_state(0)) == (0, 0, 0, 0)
    until(lambda: arm.mode == mode and arm.state == 2 and arm.error_code == 0)
    return arm


def until(happens: Callable[[], bool]) -> None:
    """Waits until reports fulfil a condition. Fails after the time of a hundred reports."""
    end = time.monotonic() + 30.0
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


# --- connect, read, move ----------------------------------------------------------------------------------------------


def test_it_connects_and_reads(arm: Any, server: ControllerServer) -> None:
    assert arm.connected and arm.version_number == (2, 5, 0)
    assert arm.get_robot_sn() == (0, "XI130500000001") and arm.axis == 7
    assert arm.get_servo_angle() == (0, pytest.approx(HOME, abs=1e-5)) and arm.angles == pytest.approx(HOME, abs=1e-5)
    assert arm.get_err_warn_code() == (0, [0, 0]) and arm.get_cmdnum() == (0, 0)
    code, pose = arm.get_position()
    assert code == 0 and pose[:3] == pytest.approx([400.0, 0.0, 422.0], abs=0.5)
    assert arm.get_forward_kinematics([0] * 7)[1][:3] == pytest.approx([206.0, 0.0, 120.5], abs=1e-3)
    code, joints = arm.get_inverse_kinematics(pose)
    assert code == 0 and arm.get_forward_kinematics(joints)[1][:3] == pytest.approx(pose[:3], abs=0.05)
    assert arm.get_position_aa()[0] == 0 and arm.get_joint_states(num=3)[0] == 0
    assert not [h.function for h in server.request_log() if h.status & INVALID]


def test_planned_moves_wait_until_the_arm_is_there(connect: Connect) -> None:
    arm = ready(connect(), 0)
    target = HOME + 0.1
    assert arm.set_servo_angle(angle=target.tolist(), speed=1.5, mvacc=15, wait=True) == 0
    assert arm.get_servo_angle()[1] == pytest.approx(target, abs=1e-5)
    before = arm.get_position()[1]
    assert arm.set_position(z=before[2] - 30.0, speed=200, mvacc=2000, wait=True) == 0  # the rest stays as it is
    after = arm.get_position()[1]
    assert after[:3] == pytest.approx([before[0], before[1], before[2] - 30.0], abs=0.1)
    assert arm.set_servo_angle(servo_id=1, angle=0.3, speed=1.5, wait=True) == 0
    assert arm.get_servo_angle(servo_id=1) == (0, pytest.approx(0.3))


@pytest.mark.parametrize("mode", [6, 7])
def test_online_moves_replace_each_other(connect: Connect, server: ControllerServer, mode: int) -> None:
    arm = ready(connect(), mode)
    z = arm.get_position()[1][2]
    for shift in (0.5, -0.05):
        if mode == 6:
            assert arm.set_servo_angle(angle=(HOME + shift).tolist(), speed=1.0, mvacc=10, wait=False) == 0
        else:
            assert arm.set_position(z=z + 100 * shift, speed=100, mvacc=1000, wait=False) == 0
    until(lambda: server.arm_state().state == 2)
    if mode == 6:
        assert server.arm_state().joints_rad == pytest.approx(HOME - 0.05, abs=1e-6)
    else:
        assert 1000 * server.arm_state().tcp[2, 3] == pytest.approx(z - 5, abs=0.1)


def test_a_servo_stream_at_100_hz_gets_no_refusal(arm: Any, server: ControllerServer) -> None:
    codes, start = [], time.monotonic()
    for i in range(1, 101):
        codes.append(arm.set_servo_angle_j((HOME + 0.005 * i * np.eye(7)[0]).tolist()))
        time.sleep(max(0.0, start + 0.01 * i - time.monotonic()))
    assert codes == [0] * 100
    until(lambda: server.arm_state().state == 2)
    assert server.arm_state().joints_rad[0] == pytest.approx(0.5, abs=1e-6)
    until(lambda: abs(arm.angles[0] - 0.5) < 1e-5)
    wire = arm.get_position()[1]
    assert arm.set_servo_cartesian([wire[0], wire[1], wire[2] - 2.0, *wire[3:]]) == 0
    until(lambda: abs(server.arm_state().tcp[2, 3] * 1000 - (wire[2] - 2.0)) < 0.1)


def test_the_clients_own_checks_and_their_gaps(connect: Connect) -> None:
    arm = ready(connect(), 1)
    over = [0.0, math.radians(130), *HOME[2:]]
    assert arm.set_servo_angle_j(over) == -8  # refused before it is sent
    assert arm.set_servo_angle_j(HOME.tolist()) == 0
    loose = connect(check_joint_limit=False)
    assert loose.set_servo_angle_j(over) == 1 and loose.get_err_warn_code() == (0, [23, 0])
    ready(arm, 1)
    assert arm.set_servo_angle_j([math.nan] * 7) == 1  # comparisons with NaN are false, so the client sends it
    assert arm.get_err_warn_code()[1][0] == 23
    ready(arm, 1)
    assert arm.set_servo_angle_j((HOME + 0.3).tolist()) == 1 and arm.get_err_warn_code()[1][0] == 24
    with pytest.raises(IndexError):
        arm.set_servo_angle_j(HOME[:6].tolist())


def test_set_state_0_forgotten_and_the_wrong_mode_are_code_9(connect: Connect) -> None:
    arm = connect()
    assert (arm.motion_enable(True), arm.set_mode(1)) == (0, 0)
    assert arm.set_servo_angle_j(HOME.tolist()) == 9 and arm.get_state() == (0, 5)
    ready(arm, 0)
    assert arm.set_servo_angle_j(HOME.tolist()) == 9 and arm.get_state() == (0, 2)
    assert arm.set_mode(2) == 10 and arm.mode == 0  # a mode that is not emulated


# --- gripper, settings, reports ---------------------------------------------------------------------------------------


def test_the_gripper_moves_catches_and_fails(arm: Any, server: ControllerServer, plant: KinematicPlant) -> None:
    assert (arm.set_gripper_mode(0), arm.set_gripper_enable(True), arm.set_gripper_speed(5000)) == (0, 0, 0)
    assert arm.set_gripper_position(400, wait=True) == 0 and arm.get_gripper_position() == (0, 400)
    plant.object_m = 0.03
    quick = {"wait": False, "wait_motion": False, "check_baud": False, "check_err": False}
    assert arm.set_gripper_position(0, **quick) == 0
    until(lambda: arm.get_gripper_status() == (0, 2))
    assert arm.get_gripper_position() == (0, 300)

    server.faults.gripper_fault(11)
    assert arm.set_gripper_position(400) == 102 and arm.get_gripper_err_code() == (0, 11)
    assert arm.set_servo_angle_j(HOME.tolist()) == 0  # the arm goes on
    assert arm.clean_gripper_error() == 102
    server.faults.gripper_repair()
    assert arm.clean_gripper_error() == 0

    server.faults.gripper_fault()
    assert arm.get_gripper_position(check_baud=False)[0] == 1 and arm.get_err_warn_code()[1][0] == 19
    assert arm.set_servo_angle_j(HOME.tolist()) == 1
    server.faults.gripper_repair()
    ready(arm, 1)
    assert arm.get_gripper_position() == (0, 300)


def test_settings_are_read_back(connect: Connect, server: ControllerServer) -> None:
    arm = ready(connect(), 0)
    assert arm.set_tcp_offset([0, 0, 172, 0, 0, 0], wait=False) == 0
    assert arm.set_tcp_load(0.82, [0, 0, 48]) == 9  # the value is stored, although the SDK treats the call as a move
    assert arm.set_state(0) == 0 and arm.set_tcp_load(0.82, [0, 0, 48]) == 0
    assert arm.set_collision_sensitivity(4) == 0
    assert arm.get_state() == (0, 2)  # the SDK re-arms the arm by itself
    assert arm.set_self_collision_detection(True) == 0 and arm.set_collision_tool_model(1) == 0
    assert arm.set_reduced_tcp_boundary([620, 200, 350, -350, 500, 4]) == 0
    assert arm.set_reduced_max_tcp_speed(250) == 0 and arm.set_reduced_max_joint_speed(1.0) == 0
    assert arm.set_fence_mode(True) == [0] and arm.set_collision_rebound(False) == [0]  # lists, unlike all others
    assert arm.set_reduced_mode(True) == 0 and arm.get_reduced_mode() == (0, 1)
    code, (on, box, tcp_speed, joint_speed, ranges, fence, rebound) = arm.get_reduced_states()
    assert (code, on, box, fence, rebound) == (0, 1, [620, 200, 350, -350, 500, 4], 1, 0)
    assert (tcp_speed, joint_speed) == (250.0, 1.0) and len(ranges) == 14
    until(lambda: arm.is_fence_mode and arm.is_reduced_mode and arm.collision_sensitivity == 4)
    assert arm.tcp_offset == [0, 0, 172, 0, 0, 0] and arm.tcp_load == [0.82, [0, 0, 48]]
    assert arm.self_collision_params[:2] == [1, 1] and arm.reduced_tcp_boundary == [620, 200, 350, -350, 500, 4]
    assert arm.get_position()[1][:3] == pytest.approx([400.0, 0.0, 250.0], abs=0.5)
    assert not [h.function for h in server.request_log() if h.status & INVALID]


@pytest.mark.parametrize(("kind", "length"), [("real", 135), ("normal", 145), ("rich", 587)])
def test_every_report_type_brings_joints_state_and_mode(
    connect: Connect, server: ControllerServer, kind: str, length: int
) -> None:
    arm = connect(report_type=kind)
    assert (arm.motion_enable(True), arm.set_mode(1), arm.set_state(0)) == (0, 0, 0)
    until(lambda: arm.mode == 1 and arm.state == 2)
    assert arm.set_servo_angle_j((HOME + STEP).tolist()) == 0
    until(lambda: arm.angles == pytest.approx(HOME + STEP, abs=1e-5))
    assert arm.report_data.data_size == length
    assert arm.report_data.actual_joint_angle == pytest.approx(arm.angles, abs=1e-5)
    errors: list[int] = []
    arm.register_error_warn_changed_callback(lambda item: errors.append(item["error_code"]))
    server.faults.error(31)
    until(lambda: arm.state == 4)
    if kind == "real":  # the fast report has no error byte: only codes tell
        assert arm.error_code == 0 and 31 not in errors
    else:
        assert arm.error_code == 31 and 31 in errors
    assert arm.set_servo_angle_j(HOME.tolist()) == 1 and arm.get_err_warn_code() == (0, [31, 0])


def test_the_250_hz_report_reads_with_the_sdks_own_structure(arm: Any, server: ControllerServer) -> None:
    from xarm.x3.report import ReportDataStructure

    with socket.create_connection((server.host, 30000), timeout=20.0) as link:
        data = b""
        while len(data) < 804:
            data += link.recv(804 - len(data))
    report: Any = ReportDataStructure.create(30000)
    report.update(data)
    fields = frames.decode_report(30000, data)
    assert (report.data_size, report.state, report.mode) == (804, 2, 1) and report.timestamp == fields["time_us"] > 0
    assert report.actual_joint_angle == pytest.approx(HOME, abs=1e-6)
    assert report.actual_tcp_pose == pytest.approx(fields["pose_aa"])


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 22, 31, 35])
def test_an_error_comes_by_callback_and_by_code_and_the_recipe_clears_it(
    arm: Any, server: ControllerServer, code: int
) -> None:
    error_codes: list[int] = []
    arm.register_error_warn_changed_callback(lambda item: error_codes.append(item["error_code"]))
    server.faults.error(code)
    assert arm.set_servo_angle_j(HOME.tolist()) == 1 and arm.get_state() == (0, 4)
    until(lambda: arm.error_code == code and code in error_codes)
    assert arm.clean_error() == 0 and arm.get_state() == (0, 4)
    assert arm.set_servo_angle_j(HOME.tolist()) == 9  # the error is cleared, but the arm is not ready
    ready(arm, 1)
    assert arm.set_servo_angle_j(HOME.tolist()) == 0


def test_a_pressed_emergency_stop_survives_every_recipe(arm: Any, server: ControllerServer) -> None:
    server.faults.emergency_stop()
    for _ in range(2):
        assert (arm.clean_error(), arm.set_state(0)) == (1, 0)
        assert (arm.motion_enable(True), arm.set_mode(1)) == (0, 0)  # set_* of the SDK hide the error bit
        assert arm.set_servo_angle_j(HOME.tolist()) == 1 and arm.get_err_warn_code() == (0, [1, 0])
    server.faults.release()
    ready(arm, 1)
    assert arm.set_servo_angle_j(HOME.tolist()) == 0


def test_a_lost_reply_is_code_3_and_the_connection_stays(arm: Any, server: ControllerServer) -> None:
    arm.set_timeout(0.2)
    server.faults.drop_replies(count=1)
    assert arm.set_servo_angle_j((HOME + STEP).tolist()) == 3 and arm.connected
    until(lambda: server.arm_state().joints_rad == pytest.approx(HOME + STEP))  # the controller executed the request
    assert arm.set_servo_angle_j(HOME.tolist()) == 0


def test_a_late_reply_is_code_0(arm: Any, server: ControllerServer) -> None:
    server.faults.delay_replies(0.19, count=1)
    assert [arm.set_servo_angle_j((HOME + 0.1 * i * STEP).tolist()) for i in range(1, 4)] == [0, 0, 0]


def test_a_second_client_stops_the_arm_behind_a_stuck_call(connect: Connect, server: ControllerServer) -> None:
    driver = ready(connect(), 1)
    stopper = connect(enable_report=False)
    codes: list[int] = []
    server.faults.half_open(client=1)
    stuck = threading.Thread(target=lambda: codes.append(driver.set_servo_angle_j((HOME + 0.1).tolist())))
    stuck.start()
    assert stopper.set_state(4) == 0 and server.arm_state().state == 4
    assert stuck.is_alive() and not codes  # the driver waits its two seconds
    stuck.join()
    assert codes == [3] and driver.connected
    server.faults.heal()
    assert driver.set_servo_angle_j((HOME + 0.1).tolist()) == 9
    assert (server.arm_state().joints_rad == HOME).all()


def test_a_reset_connection_is_noticed_and_a_new_one_works(connect: Connect, server: ControllerServer) -> None:
    arm = ready(connect(), 1)
    changes: list[bool] = []
    arm.register_connect_changed_callback(lambda item: changes.append(item["connected"]))
    server.faults.reset_connections()
    until(lambda: not arm.connected)
    assert arm.set_servo_angle_j(HOME.tolist()) == -1
    until(lambda: False in changes)
    new_arm = ready(connect(), 1)
    assert new_arm.set_servo_angle_j(HOME.tolist()) == 0


def test_stale_reports_look_alive(arm: Any, server: ControllerServer) -> None:
    server.faults.stale_reports()
    reports: list[int] = []
    until(lambda: server.arm_state().time_s > 1.0)
    arm.register_report_location_callback(lambda item: reports.append(1))
    assert arm.set_servo_angle_j((HOME + STEP).tolist()) == 0
    until(lambda: len(reports) >= 3 and server.arm_state().state == 2)
    assert arm.connected and arm.angles == pytest.approx(HOME, abs=1e-5)  # the SDK's angles are wrong without any error
    assert arm.get_servo_angle()[1] == pytest.approx(HOME + STEP, abs=1e-5)
    server.faults.heal()
    until(lambda: arm.angles == pytest.approx(HOME + STEP, abs=1e-5))


def test_an_emergency_stop_call_holds_the_arm(connect: Connect, server: ControllerServer) -> None:
    arm = ready(connect(), 0)
    assert arm.set_servo_angle(angle=(HOME + 1.0).tolist(), speed=0.5, wait=False) == 0
    until(lambda: abs(server.arm_state().joints_rad[0]) > 0.05)
    arm.emergency_stop()
    state = server.arm_state()
    assert state.state == 4 and state.queued == 0 and state.joints_rad[0] < 0.9
    time.sleep(0.1)
    assert (server.arm_state().joints_rad == state.joints_rad).all()
