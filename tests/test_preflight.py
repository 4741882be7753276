"""Tests of the checks before an arm moves: each line alone, and all against the emulated controller and cameras."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.arm.actions import make_action_space
from srpo_robot.arm.xarm7 import controller_setup, preflight, wire
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.arm.xarm7.preflight import CameraReading, Check, CheckResult
from srpo_robot.cli import checking
from srpo_robot.cli.checking import run_checks
from srpo_robot.cli.mock_lab import ScriptedPolicy
from srpo_robot.cli.options import CheckOptions
from srpo_robot.errors import ArmError, CommandRefused
from srpo_robot.evaluation.served_policy import PolicyServer, describe
from srpo_robot.mock.controller import ASSUMPTIONS, ControllerServer, KinematicPlant, free_host
from srpo_robot.mock.controller.frames import encode_floats
from srpo_robot.mock.controller.state import Firmware
from srpo_robot.mock.lab import MockLab
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, dump, load
from srpo_robot.records import ActionChunk, ArmCommand

pytestmark = pytest.mark.real_time

RECIPE = replace(load(HardwareRecipe, "hardware", "xarm7"), cameras=())
CONTROLLER = RECIPE.controller
assert CONTROLLER is not None
LIMITS = controller_setup.motion_limits(RECIPE, CONTROLLER)
HOME = np.array(RECIPE.home_rad)
WANTED = controller_setup.recipe_settings(RECIPE, CONTROLLER)
PASS, FAIL, SKIP = CheckResult.PASS, CheckResult.FAIL, CheckResult.SKIP


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


# --- each line --------------------------------------------------------------------------------------------------------


def test_a_failed_check_suggests_a_fix():
    line = preflight.attempt("pose", lambda: preflight.pose(HOME + 2.0, 0.04, LIMITS))
    assert (line.verdict, line.name) == (FAIL, "pose")
    assert line.found == "the arm stands outside its limits (joint_range, workspace_box)"
    assert line.todo.startswith("move it inside by hand")


def test_round_trips_are_judged_by_the_99th_percentile_and_the_streams_rate():
    """Half a period at 100 Hz is 5 ms. Two slow replies in 100 fail the check, one in 1000 passes."""
    good = np.full(1000, 0.001)
    good[0] = 1.0
    assert preflight.round_trips(good, 100.0).verdict is PASS
    bad = np.full(100, 0.001)
    bad[:2] = 0.006
    line = preflight.round_trips(bad, 100.0)
    assert line.verdict is FAIL
    assert "p50 1.00, p99 6.00, max 6.00 ms of 100" in line.found
    assert "below 5 ms" in line.todo
    assert preflight.round_trips(bad, 50.0).verdict is PASS


@pytest.mark.parametrize(
    ("error", "warning", "finding", "todo"),
    [
        (31, 0, "controller error C31 (collision)", "confirm the recovery"),
        (2, 0, "controller error C2 (the emergency stop input is open)", "release the emergency stop"),
        (0, 11, "warning W11", "studio"),
    ],
)
def test_a_controller_error_fails_and_names_the_next_step(error, warning, finding, todo):
    line = preflight.errors(error, warning)
    assert (line.verdict, line.found) == (FAIL, finding)
    assert todo in line.todo
    assert preflight.errors(0, 0).verdict is PASS


def test_every_setting_has_a_line_that_fails_if_it_differs():
    lines = preflight.settings(WANTED, WANTED)
    assert [line.name for line in lines] == list(preflight.SETTINGS)
    assert {line.verdict for line in lines} == {PASS}
    for field in fields(WANTED):
        value = getattr(WANTED, field.name)
        other = tuple(v + 0.01 for v in value) if isinstance(value, tuple) else float(value) + 1
        wrong = [x for x in preflight.settings(WANTED, replace(WANTED, **{field.name: other})) if x.verdict is FAIL]
        assert len(wrong) == 1
        assert field.name in wrong[0].found
        assert "--set-up" in wrong[0].todo


def test_a_protection_that_the_recipe_turns_off_is_skipped_not_passed():
    assert CONTROLLER is not None
    off = replace(CONTROLLER, fence=False, reduced=False, self_collision=False)
    expected = controller_setup.recipe_settings(RECIPE, off)
    lines = by_name(list(preflight.settings(expected, stored_settings := replace(expected, fence_box_m=(0.0,) * 6))))
    assert not stored_settings.fence
    for name, key in (("fence", "fence"), ("reduced mode", "reduced"), ("self-collision", "self_collision")):
        assert (lines[name].verdict, lines[name].found) == (SKIP, f"controller.{key} = false in the recipe")


def test_the_gripper_by_hand():
    assert preflight.gripper_reading(0.04, LIMITS).verdict is PASS
    assert preflight.gripper_reading(0.12, LIMITS).verdict is FAIL
    assert preflight.gripper_travel(0.084, 0.001, LIMITS).verdict is PASS
    line = preflight.gripper_travel(0.085, 0.06, LIMITS)
    assert (line.verdict, line.found) == (FAIL, "opened to 85.0 mm, closed to 60.0 mm")
    assert "85 and 0 mm" in line.todo


@pytest.mark.parametrize(
    ("reading", "changes", "verdict", "says"),
    [
        (CameraReading(30.0, 0.05, (480, 640)), {}, PASS, "exposure 120, read back"),
        (CameraReading(8.9, 0.05, (480, 640)), {}, FAIL, "controlled at 10 Hz"),
        (CameraReading(30.0, 0.6, (480, 640)), {}, FAIL, "500 ms old at most"),
        (CameraReading(30.0, 0.05, (480, 640)), {"fixed": {"gain": 1}}, FAIL, "its exposure is not fixed"),
        (CameraReading(30.0, 0.05, (480, 640)), {"fixed": {}, "source": "http://x/y.mjpg"}, PASS, "stream comes from"),
    ],
)
def test_a_camera_by_hand(reading, changes, verdict, says):
    recipe = CameraRecipe(
        name="front", height_px=224, width_px=224, source="0", fixed={"auto_exposure": 1, "exposure": 120}
    )
    line = preflight.camera(replace(recipe, **changes), reading, 10.0)
    assert line.verdict is verdict
    assert says in line.found + line.todo


def test_camera_lines_join_all_problems():
    recipe = CameraRecipe(name="front", height_px=8, width_px=8, source="0", reference="front.png")
    assert preflight.camera_views([recipe], ()).verdict is PASS
    assert preflight.camera_views([replace(recipe, reference="")], ()).verdict is SKIP
    line = preflight.camera_views([recipe], ("front sees wrist; swap them", "wrist sees front; swap them"))
    assert (line.found, line.todo) == ("front sees wrist; wrist sees front", "swap them")


def space_of(limits):
    return make_action_space("joints", limits, HOME)


def chunk_of(rows) -> ActionChunk:
    return ActionChunk(np.array(rows), space_of(XArm7(RECIPE).limits).names)


def test_a_first_chunk_inside_the_limits_passes_and_one_rewritten_by_them_fails():
    limits = XArm7(RECIPE).limits
    start = ArmCommand(HOME, 0.04)
    still = np.append(HOME, 0.04)
    small = [still + 0.001 * k for k in range(10)]
    line = preflight.first_chunk(chunk_of(small), space_of(limits), start, limits, LIMITS)
    assert (line.verdict, line.found) == (PASS, "0 of 10 actions changed by a limit (none)")
    jumps = [still + np.append(np.eye(7)[0] * (-1) ** k, 0.0) for k in range(10)]
    line = preflight.first_chunk(chunk_of(jumps), space_of(limits), start, limits, LIMITS)
    assert (line.verdict, line.found) == (FAIL, "10 of 10 actions changed by a limit (joint_step 10)")
    assert "--first-pace 0.1" in line.todo
    with pytest.raises(CommandRefused, match="NaN or infinity was refused"):
        preflight.first_chunk(chunk_of([still * np.nan]), space_of(limits), start, limits, LIMITS)


def test_a_slow_first_chunk_through_the_table_fails():
    """The box limits the TCP alone, the table limits every part."""
    limits = XArm7(RECIPE).limits
    high = replace(LIMITS, table_m=0.45)  # above the flange at home
    still = chunk_of([np.append(HOME, 0.04)] * 4)
    line = preflight.first_chunk(still, space_of(limits), ArmCommand(HOME, 0.04), limits, high)
    assert (line.verdict, line.found) == (FAIL, "0 of 4 actions changed by a limit (table 4)")


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), scale=st.floats(0, 3))
def test_no_chunk_leads_the_dry_run_out_of_the_limits(seed, scale):
    limits = XArm7(RECIPE).limits
    rows = np.append(HOME, 0.04) + np.random.default_rng(seed).normal(0, scale, (6, 8))
    line = preflight.first_chunk(chunk_of(rows), space_of(limits), ArmCommand(HOME, 0.04), limits, LIMITS)
    assert line.verdict in (PASS, FAIL)
    assert int(line.found.split()[0]) <= 6


def test_answers_disk_and_emergency_stop_by_hand():
    assert preflight.answer_time(0.9, 10, 10.0).verdict is PASS
    assert preflight.answer_time(1.1, 10, 10.0).verdict is FAIL
    assert preflight.disk(preflight.FREE_BYTES).verdict is PASS
    assert preflight.disk(10**6).verdict is FAIL
    assert preflight.emergency_stop(1, True).verdict is PASS
    assert "it stays" in preflight.emergency_stop(1, False).found
    assert "saw nothing" in preflight.emergency_stop(0, True).found


# --- against the emulator ---------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Measures fewer round trips and does not judge their times, because the machine runs other tests too."""
    monkeypatch.setattr(checking, "_ROUND_TRIPS", 10)
    monkeypatch.setattr(preflight, "_RTT_SHARE", 1e3)
    monkeypatch.setattr(preflight, "FREE_BYTES", 1)


live = pytest.mark.usefixtures("quick")


@contextmanager
def emulator(**firmware) -> Iterator[tuple[ControllerServer, HardwareRecipe]]:
    """Yields an emulated controller and a recipe without cameras that points at it."""
    plant = KinematicPlant(HOME, gripper_m=0.04)
    with ControllerServer(plant, host=free_host(), firmware=Firmware(**firmware)) as server:
        yield server, at(server.host, server.command_port)


def at(host: str, port: int, **changes) -> HardwareRecipe:
    assert CONTROLLER is not None
    patient = {"max_report_age_s": 0.5, "command_timeout_s": 1.5, "connect_timeout_s": 3.0}
    return replace(RECIPE, controller=replace(CONTROLLER, address=host, command_port=port, **(patient | changes)))


@live
def test_the_check_changes_nothing(cli, tmp_path):
    with emulator() as (server, recipe):
        (tmp_path / "arm.toml").write_text(dump(recipe))
        code, out, err = cli("check", "--arm", tmp_path / "arm.toml", "--json", tmp_path / "check.json")
        functions = {request.function for request in server.request_log()}
    assert code == 1, err
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["passed"] is False
    verdicts = {check["name"]: check["verdict"] for check in content["checks"]}
    assert verdicts == {
        "socket files": "PASS",
        "arm": "PASS",
        "joint range": "PASS",
        "round trips": "PASS",
        "errors": "PASS",
        "emergency stop": "SKIP",
        "TCP offset": "FAIL",
        "payload": "FAIL",
        "collision sensitivity": "PASS",
        "self-collision": "FAIL",
        "fence": "FAIL",
        "reduced mode": "FAIL",
        "pose": "PASS",
        "gripper": "PASS",
        "gripper travel": "SKIP",
        "cameras": "SKIP",
        "policy": "SKIP",
        "first chunk": "SKIP",
        "disk": "PASS",
    }
    assert "9 PASS, 5 FAIL, 5 SKIP" in out
    assert "add --set-up" in " ".join(out.split())
    changes = {11, 12, 16, 19, 21, 23, 29, 35, 36, 37, 48, 49, 52, 58, 59, 60, 77, 78}  # enable, states, modes, setters
    assert functions & changes == set()


@live
def test_with_set_up_and_motion_every_check_passes_and_nothing_is_left_running(cli, tmp_path):
    with emulator() as (server, recipe):
        (tmp_path / "arm.toml").write_text(dump(recipe))
        code, out, err = cli("check", "--arm", tmp_path / "arm.toml", "--move", "--json", tmp_path / "check.json")
        assert server.arm_state().state == 4  # stopped
        assert server.arm_state().joints_rad == pytest.approx(HOME, abs=1e-6)
        wait_for_no_clients(server)
    assert code == 0, out + err
    checks = {check["name"]: check for check in json.loads((tmp_path / "check.json").read_text())["checks"]}
    assert checks["gripper travel"]["found"] == "opened to 85.0 mm, closed to 0.0 mm"
    assert not [check for check in checks.values() if check["verdict"] == "FAIL"]


def wait_for_no_clients(server: ControllerServer) -> None:
    pause = threading.Event()
    for _ in range(600):
        if not server.clients():
            return
        pause.wait(0.05)
    raise AssertionError("a connection is left")


class Fingers:
    """Keys that act on the emulator first: `at_press` runs during the wait, then `answers` run one after another."""

    def __init__(self, at_press, *answers):
        self.at_press, self.answers = at_press, list(answers)

    def pressed(self):
        return self.at_press()

    def next(self):
        act, key = self.answers.pop(0)
        act()
        return key

    def forget(self):
        pass


def nothing():
    return None


@live
def test_a_person_tests_the_emergency_stop(monkeypatch):
    enter, other = (nothing, "\n"), (nothing, "x")
    with emulator() as (server, recipe):
        faults = server.faults

        def press():
            faults.emergency_stop(2)

        good = run_checks(recipe, None, CheckOptions(arm="x"), Fingers(press, (faults.release, "\n"), enter, enter))
        lines = by_name(good)
        assert lines["emergency stop"] == preflight.emergency_stop(2, True)
        assert lines["TCP offset"].verdict is PASS  # the key stored the settings
        assert lines["gripper travel"].verdict is PASS

        stuck = by_name(run_checks(recipe, None, CheckOptions(arm="x"), Fingers(press, (nothing, "\n"))))
        assert stuck["emergency stop"] == preflight.emergency_stop(2, False)
        assert stuck["gripper travel"].verdict is SKIP
        again = by_name(run_checks(recipe, None, CheckOptions(arm="x"), Fingers(nothing)))
        assert again["errors"].verdict is FAIL and "C2" in again["errors"].found
        assert again["emergency stop"].verdict is SKIP

        faults.release()
        left_out = by_name(run_checks(recipe, None, CheckOptions(arm="x", estop=False), Fingers(nothing, other, other)))
        assert left_out["emergency stop"].found == "left out with --no-estop"


@live
def test_a_missing_stop_fails_and_a_key_skips_the_check(monkeypatch):
    monkeypatch.setattr(checking, "ESTOP_S", 0.2)
    with emulator() as (_, recipe):
        other = (nothing, "x")
        lines = by_name(run_checks(recipe, None, CheckOptions(arm="x"), Fingers(nothing, other, other)))
        assert lines["emergency stop"] == preflight.emergency_stop(0, False)
        assert lines["TCP offset"].verdict is FAIL  # no key stored anything
        lines = by_name(run_checks(recipe, None, CheckOptions(arm="x"), Fingers(lambda: "\n", other, other)))
        assert lines["emergency stop"].found == "left out by a key"


# --- common setup mistakes --------------------------------------------------------------------------------------------


def first_failure(recipe: HardwareRecipe) -> Check:
    """Returns the first line that fails. After it, no line passes that needs the arm."""
    checks = run_checks(recipe, None, CheckOptions(arm="x"), None)
    return next(check for check in checks if check.verdict is FAIL)


@live
def test_a_wrong_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    line = first_failure(at("127.0.0.1", port))
    assert (line.name, "Connection refused" in line.found) == ("arm", True)
    assert "check controller.address" in line.todo


@contextmanager
def answering(version: bytes) -> Iterator[HardwareRecipe]:
    """Runs a server on the command port that answers every request with `version`."""

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            with link:
                request = link.recv(64)
                link.sendall(request[:4] + struct.pack(">HBB", 2 + len(version), request[6], 0) + version)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield at("127.0.0.1", server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@live
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (b"6,6,XI130500000001,AC130000000001,v2.5.0\0", "drives an arm of 6 axes"),
        (b"7,7,XIABCD00000001,AC130000000001,v2.5.0\0", "serial number 'XIABCD00000001'"),
        (b"ftp server ready\0", "is no xArm's"),
    ],
)
def test_an_xarm_6_a_strange_serial_number_and_a_strange_machine(version, says):
    with answering(version) as recipe:
        line = first_failure(recipe)
    assert (line.name, says in f"{line.found}; {line.todo}") == ("arm", True)
    assert line.todo


@live
def test_old_firmware_and_another_arm_than_the_recipes_are_refused():
    assert CONTROLLER is not None
    with emulator(version="v1.9.0") as (_, recipe):
        assert recipe.controller is not None
        online = replace(recipe.controller, stream="online", stream_hz=25.0)
        line = first_failure(replace(recipe, controller=online))
        assert "firmware 1.9.0 is too old" in line.found
        assert "update it in the vendor's studio" in line.todo
        line = first_failure(replace(recipe, controller=replace(recipe.controller, serial="XI130500000099")))
        assert line.found == f"wanted the arm XI130500000099, got XI130500000001 at {recipe.controller.address}"


@live
def test_an_arm_with_a_narrower_joint_range_than_the_recipes():
    limits = replace(RECIPE.limits, joint_max_rad=tuple(np.deg2rad([360, 120, 360, 225, 360, 180, 360])))
    with emulator() as (_, recipe):
        line = first_failure(replace(recipe, limits=limits))
    assert (line.name, line.todo) == ("joint range", "narrow limits.joint_min_rad and joint_max_rad")


@live
def test_another_client_that_moves_the_arm():
    with emulator() as (server, recipe):
        address = server.host, server.command_port
        for function, params in ((11, b"\x08\x01"), (19, b"\0"), (12, b"\0")):
            wire.ask(*address, function, params)
        wire.ask(*address, 23, encode_floats(HOME + np.eye(7)[0], 0.01, 1.0, 0.0))  # for 100 s
        line = first_failure(recipe)
        still = server.arm_state().state
    assert (line.name, line.found) == ("connection", "another client moves the arm")
    assert line.todo.startswith("end it")
    assert still == 1  # the other client was not disturbed


@live
def test_a_controller_that_disconnects_during_the_check(monkeypatch):
    def gone(self):
        raise ArmError("the process that asks the controller has ended; try again")

    with emulator() as (_, recipe):
        monkeypatch.setattr(checking.Inspection, "settings", gone)
        lines = by_name(run_checks(recipe, None, CheckOptions(arm="x"), None))
    assert {lines[name].verdict for name in preflight.SETTINGS} == {FAIL}
    assert lines["pose"].verdict is PASS


@live
def test_invalid_recipes_are_one_line_errors(cli, tmp_path):
    box = replace(RECIPE, limits=replace(RECIPE.limits, box_min_m=(0.5, -0.35, 0.02)))
    (tmp_path / "box.toml").write_text(dump(box))
    refused(cli("check", "--arm", tmp_path / "box.toml"), "the workspace box excludes home; widen limits.box_*")
    refused(cli("check", "--arm", "mock"), "an xArm 7 needs kind = 'xarm7'")
    refused(cli("check", "--arm", "xarm8"), "did you mean 'xarm7'?")
    refused(cli("check", "--policy", "outputs/awr"), "--policy and --task go together")


# --- cameras and policy, through the mock lab -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[MockLab]:
    with MockLab(load(HardwareRecipe, "hardware", "mock"), load(TaskRecipe, "datasets", "put-apple")) as running:
        yield running


@pytest.fixture
def recipe(lab) -> HardwareRecipe:
    lab.streams.heal()
    return lab.recipe(load(HardwareRecipe, "hardware", "xarm7"))


def slow(recipe: HardwareRecipe) -> HardwareRecipe:
    """Allows older camera frames, because the machine runs other tests too."""
    return replace(recipe, fps=1.0, cameras=tuple(replace(camera, max_age_s=5.0) for camera in recipe.cameras))


@live
def test_swapped_and_missing_cameras_fail(recipe, tmp_path):
    recipe = slow(recipe)
    lines = by_name(checking.look_through_cameras(recipe, tmp_path))
    assert {line.verdict for name, line in lines.items() if name != "camera views"} == {PASS}
    assert lines["camera views"].verdict is SKIP
    front, wrist = (replace(camera, reference=str(tmp_path / f"{camera.name}.png")) for camera in recipe.cameras)
    same = by_name(checking.look_through_cameras(replace(recipe, cameras=(front, wrist))))
    assert same["camera views"].verdict is PASS
    swapped = replace(front, source=wrist.source), replace(wrist, source=front.source)
    lines = by_name(checking.look_through_cameras(replace(recipe, cameras=swapped)))
    assert (lines["camera views"].verdict, lines["camera views"].todo) == (FAIL, "swap their sources")
    missing = replace(wrist, source=wrist.source.replace("wrist", "gone").replace("http://", "http://127.0.0.1:1/"))
    lines = by_name(checking.look_through_cameras(replace(recipe, cameras=(front, missing))))
    assert lines["camera wrist"].verdict is FAIL
    assert "cannot be opened" in lines["camera wrist"].found
    assert lines["camera front"].verdict is PASS


@live
def test_a_frozen_camera_fails_its_line(lab, recipe):
    lab.streams.freeze("front")
    quick = replace(recipe.cameras[0], max_age_s=0.5), replace(recipe.cameras[1], max_age_s=5.0)
    lines = by_name(checking.look_through_cameras(replace(recipe, fps=1.0, cameras=quick)))
    assert lines["camera front"].verdict is FAIL
    assert "frozen" in lines["camera front"].found
    assert lines["camera wrist"].verdict is PASS


class Broken:
    """A policy with a model that raises."""

    name = "broken"
    provenance: ClassVar[dict[str, object]] = {}

    def reset(self, seed):
        raise ZeroDivisionError("a model's bug")

    def act(self, observation):
        return None


@live
def test_the_first_chunk_of_a_policy_goes_through_the_drivers_dry_run(cli, lab, recipe, tmp_path):
    work = load(TaskRecipe, "datasets", "put-apple")
    space = make_action_space(work.action_space, XArm7(recipe).limits, np.array(recipe.home_rad))
    (tmp_path / "arm.toml").write_text(dump(slow(recipe)))
    for policy, error in ((ScriptedPolicy(lab), None), (Broken(), "ZeroDivisionError: a model's bug")):
        with PolicyServer(policy, describe(policy, space, work.cameras)) as server:
            options = ("--policy", server.url, "--task", work.name, "--set-up", "--json", tmp_path / "check.json")
            code, out, err = cli("check", "--arm", tmp_path / "arm.toml", *options)
        lines = {check["name"]: check for check in json.loads((tmp_path / "check.json").read_text())["checks"]}
        if error is None:
            assert lines["first chunk"]["found"].startswith("0 of 1 actions changed"), out + err
            assert lines["policy"]["found"].startswith("answers in")
        else:
            assert code == 1
            assert error in lines["policy"]["found"]
            assert lines["first chunk"]["verdict"] == "SKIP"
    assert lab.controller.arm_state().joints_rad == pytest.approx(recipe.home_rad, abs=0.01)


@live
def test_a_mismatched_policy_fails_its_line(recipe, tmp_path, cli):
    (tmp_path / "arm.toml").write_text(dump(replace(slow(recipe), cameras=())))
    options = ("--policy", tmp_path / "nothing", "--task", "put-apple", "--json", tmp_path / "check.json")
    assert cli("check", "--arm", tmp_path / "arm.toml", *options)[0] == 1
    lines = {check["name"]: check for check in json.loads((tmp_path / "check.json").read_text())["checks"]}
    assert lines["policy"]["verdict"] == "FAIL"
    assert "needs camera front, wrist" in lines["policy"]["found"]


# --- the page for the lab ---------------------------------------------------------------------------------------------


def test_the_labs_page_lists_what_the_emulator_assumes():
    """The page has the same rows in the same order. After a change, rewrite them from `ASSUMPTIONS`."""
    page = (Path(__file__).resolve().parents[1] / "hardware" / "LAB.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [ ] ")]
    assert rows == [f"| [ ] {item.topic} | {item.emulated} | {item.check} |" for item in ASSUMPTIONS]
