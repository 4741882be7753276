"""Tests of the controller checks before its arm moves, and of its error codes, without a network."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from srpo_robot.arm.xarm7 import controller_codes, controller_setup
from srpo_robot.arm.xarm7.controller_codes import ControllerFault, Remedy
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.recipes import HardwareRecipe, load

PACKAGE = Path(controller_setup.__file__).resolve().parents[1]
RECIPE = replace(load(HardwareRecipe, "hardware", "xarm7"), cameras=())
CONTROLLER = RECIPE.controller
assert CONTROLLER is not None
GOOD = b"7,7,XI130500000001,AC130000000001,v2.5.0\0\0\0"


def controller(**changes):
    assert CONTROLLER is not None
    return replace(CONTROLLER, **changes)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_the_identity_is_read():
    identity = controller_setup.identify(GOOD, controller(serial="XI130500000001"))
    assert (identity.axes, identity.serial, identity.firmware) == (7, "XI130500000001", (2, 5, 0))


@pytest.mark.parametrize(
    ("answer", "changes", "says"),
    [
        (b"6,6,XI130500000001,AC1,v2.5.0\0", {}, "drives an arm of 6 axes .* for the xArm 7"),
        (b"7,7,,AC1,v2.5.0\0", {}, "serial number '', which tells no generation"),
        (b"7,7,XIABCD00000001,AC1,v2.5.0\0", {}, "serial number 'XIABCD00000001'"),
        (b"hello\0", {}, "says its version is 'hello', which is no xArm's"),
        (b"\xff\xfe\0", {}, "no xArm's"),
        (GOOD, {"serial": "XI130400000009"}, "wanted the arm XI130400000009, got XI130500000001"),
        (b"7,7,XI130500000001,AC1,v1.5.19\0", {}, "firmware 1.5.19 is too old .* 'servo': it needs 1.5.20 or newer"),
        (b"7,7,XI130500000001,AC1,v1.9.9\0", {"stream": "online"}, "1.9.9 is too old .* 'online': it needs 1.10.0"),
    ],
)
def test_the_wrong_arm_is_a_one_line_error(answer, changes, says):
    with pytest.raises(ArmError, match=says) as error:
        controller_setup.identify(answer, controller(**changes))
    assert "\n" not in str(error.value)


def test_the_joint_range_depends_on_the_generation():
    """Vendor's table: J2 -118..120 and J4 -11..225 deg until 1304; -117..116 and -6..225 from 1305 on."""
    new = controller_setup.identify(GOOD, controller())
    old = controller_setup.identify(GOOD.replace(b"XI1305", b"XI1304"), controller())
    assert np.rad2deg(new.joint_range_rad[[1, 3]]) == pytest.approx(np.array([[-117, 116], [-6, 225]]))
    assert np.rad2deg(old.joint_range_rad[[1, 3]]) == pytest.approx(np.array([[-118, 120], [-11, 225]]))
    wide = replace(RECIPE.limits, joint_max_rad=tuple(np.deg2rad([360, 120, 360, 225, 360, 180, 360])))
    bounds = controller_setup.joint_range(replace(RECIPE, limits=wide), old)
    assert np.all(bounds[:, 1] < old.joint_range_rad[:, 1])  # just inside: float32 on the wire rounds
    with pytest.raises(RecipeError, match=r"limits allow joint 2 -2.0420 to 2.0944 rad, the arm XI1305\d+ only"):
        controller_setup.joint_range(replace(RECIPE, limits=wide), new)


def test_a_controllers_socket_file_is_refused(tmp_path):
    controller_setup.refuse_socket_files([tmp_path])
    (tmp_path / "xarmcontroller_uds_502").touch()
    with pytest.raises(
        ArmError, match="xarmcontroller_uds_502 lies there: programs with the vendor's SDK .* delete it"
    ):
        controller_setup.refuse_socket_files([tmp_path])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_each_differing_setting_is_named_with_both_values():
    expected = controller_setup.recipe_settings(RECIPE, controller())
    assert controller_setup.differences(expected, expected) == ()
    for field in fields(expected):
        value = getattr(expected, field.name)
        other = tuple(v + 0.01 for v in value) if isinstance(value, tuple) else float(value) + 1
        lines = controller_setup.differences(expected, replace(expected, **{field.name: other}))
        assert len(lines) == 1
        assert lines[0].startswith(f"{field.name}: wanted ") and ", got " in lines[0]


def test_the_fence_lies_outside_the_box_and_is_ignored_if_off():
    fence = controller_setup.recipe_settings(RECIPE, controller()).fence_box_m
    assert fence == pytest.approx((0.64, 0.18, 0.37, -0.37, 0.52, 0.0))
    none = controller_setup.recipe_settings(RECIPE, controller(fence=False, reduced=False))
    assert none.fence_box_m is None and none.reduced_range_rad is None
    assert controller_setup.differences(none, replace(none, fence_box_m=fence)) == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"collision_sensitivity": 0}, "collision_sensitivity is 0; it is 1 to 5"),
        ({"payload_centre_m": (0.0,)}, "payload_centre_m has 1 numbers"),
        ({"stream_hz": 10.0}, "stream_hz is 10; with stream = 'servo' it is 30 to 250"),
        ({"stream_hz": 100.0, "stream": "online"}, "with stream = 'online' it is 20 to 50"),
        ({"table_m": 0.4}, r"home_rad: the arm stands outside its limits \(table\)"),
        ({"max_tcp_speed_m_s": 0.0}, "must be positive"),
    ],
)
def test_invalid_recipes_are_refused(changes, says):
    with pytest.raises(RecipeError, match=says):
        XArm7(replace(RECIPE, controller=controller(**changes)))


def test_recipes_of_another_arm_and_of_a_box_without_home():
    with pytest.raises(RecipeError, match="needs kind = 'xarm7' and a \\[controller\\]"):
        XArm7(replace(RECIPE, controller=None))
    with pytest.raises(RecipeError, match="needs kind = 'xarm7'"):
        XArm7(load(HardwareRecipe, "hardware", "mock"))
    with pytest.raises(RecipeError, match="the workspace box excludes home"):
        XArm7(replace(RECIPE, limits=replace(RECIPE.limits, box_min_m=(0.5, -0.35, 0.02))))
    with pytest.raises(RecipeError, match="a pace is a share"):
        XArm7(RECIPE, first_pace=0.0)


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(1, Remedy.RELEASE), (3, Remedy.RELEASE), (31, Remedy.CONFIRM), (19, Remedy.CONFIRM), (60, Remedy.CONFIRM)]
    + [(code, Remedy.SUPPORT) for code in (10, 13, 17, 18, 26, 42, 50, 53, 110, 200)]
    + [(36, Remedy.PROGRAM)],
)
def test_a_controllers_error_names_the_next_step(code, remedy):
    fault = ControllerFault(code)
    assert fault.remedy is remedy
    assert str(fault).startswith(f"controller error C{code} (") and str(fault).endswith(remedy)
    again = pickle.loads(pickle.dumps(fault))  # raised in another process
    assert (again.code, again.gripper, str(again)) == (code, False, str(fault))


def test_gripper_errors_have_a_separate_title():
    assert str(ControllerFault(11, gripper=True)).startswith(
        "gripper error G11 (too much current); the arm has stopped"
    )


def test_every_code_has_a_title_of_one_line():
    for code in range(1, 256):
        for table in (controller_codes.controller_error, controller_codes.gripper_error):
            title, _ = table(code)
            assert title and "\n" not in title
    assert controller_codes.reply(3) == "no reply in time, code 3"


# --- imports --------------------------------------------------------------------------------------------------------


def test_one_file_imports_the_vendors_sdk():
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "xarm" for name in names):
                importers.add(path.name)
    assert importers == {"driver.py"}


def test_the_streamer_and_the_arm_start_without_torch_and_without_the_sdk():
    script = (
        "import sys, srpo_robot.arm.xarm7.streamer, srpo_robot.arm.xarm7.driver\n"
        "heavy = {'torch', 'lerobot', 'transformers', 'pyarrow', 'cv2', 'scipy', 'mujoco', 'xarm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
