"""Tests of `--robot.type=xarm7`: the unpacked wheel, lerobot's factory, and lerobot's real commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import unpacked_wheel

from srpo_robot.arm.actions import JOINT_NAMES
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import ArmError, CommandRefused, RecipeError
from srpo_robot.mock.controller import ControllerServer, KinematicPlant, free_host
from srpo_robot.mock.lab import MockLab
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, dump, load

pytestmark = pytest.mark.real_time

RECIPE = load(HardwareRecipe, "hardware", "xarm7")
HOME = np.array(RECIPE.home_rad)
SERVO = 29  # function of a set point in mode 1
PATIENT = {"max_report_age_s": 0.5, "command_timeout_s": 1.5}  # the emulator shares a busy machine


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the plugin, laid out as pip installs it."""
    return unpacked_wheel("lerobot_robot_xarm7", tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def plugin(installed) -> Iterator[Any]:
    """The plugin's module. lerobot discovers it by name and imports it."""
    from lerobot.utils.import_utils import register_third_party_plugins

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        register_third_party_plugins()
        yield sys.modules["lerobot_robot_xarm7"]


@pytest.fixture
def server() -> Iterator[ControllerServer]:
    with ControllerServer(KinematicPlant(HOME, gripper_m=0.04), host=free_host()) as running:
        yield running


@pytest.fixture
def recipe(server, tmp_path) -> Path:
    """A recipe file without cameras that points at the emulator."""
    assert RECIPE.controller is not None
    controller = replace(RECIPE.controller, address=server.host, command_port=server.command_port, **PATIENT)
    path = tmp_path / "arm.toml"
    path.write_text(dump(replace(RECIPE, cameras=(), controller=controller)))
    return path


@pytest.fixture
def robot(plugin, recipe, tmp_path) -> Iterator[Any]:
    from lerobot.robots import make_robot_from_config

    config = plugin.XArm7RobotConfig(recipe=str(recipe), calibration_dir=tmp_path / "calibration")
    xarm7 = make_robot_from_config(config)
    yield xarm7
    if xarm7.is_connected:
        xarm7.disconnect()


def set_points(requests) -> np.ndarray:
    """Returns the (n, 7) joint set points that the controller accepted, [rad]."""
    return np.array([np.frombuffer(r.params[:28], "<f4") for r in requests if r.function == SERVO and r.status == 0])


def action(joints, gripper_m=0.04) -> dict[str, float]:
    return dict(zip(JOINT_NAMES, [*map(float, joints), gripper_m], strict=True))


# --- the robot --------------------------------------------------------------------------------------------------------


def test_the_wheel_has_the_name_that_lerobot_looks_for(installed):
    (path,) = installed.glob("*.dist-info/METADATA")
    assert "Name: lerobot_robot_xarm7\n" in path.read_text()


def test_lerobots_factory_builds_the_robot_and_its_features_need_no_connection(plugin, robot):
    from lerobot.robots import RobotConfig

    assert isinstance(robot, plugin.XArm7Robot)
    assert RobotConfig.get_choice_class("xarm7") is plugin.XArm7RobotConfig
    assert tuple(robot.action_features) == JOINT_NAMES == tuple(robot.observation_features)
    assert all(name.endswith(".pos") for name in robot.action_features)  # lerobot-rollout drops all others
    assert not robot.is_connected and robot.is_calibrated
    with_cameras = plugin.XArm7Robot(plugin.XArm7RobotConfig(recipe="xarm7"))
    assert with_cameras.observation_features["front"] == (224, 224, 3)
    assert list(with_cameras.cameras) == ["front", "wrist"]


def test_send_action_executes_and_returns_the_limited_action(robot, server):
    from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
    robot.connect()
    with pytest.raises(DeviceAlreadyConnectedError):
        robot.connect()
    assert server.arm_state().state != 1 and not len(set_points(server.request_log()))  # the arm does not move yet
    observation = robot.get_observation()
    assert [observation[name] for name in JOINT_NAMES] == pytest.approx([*HOME, 0.04], abs=1e-4)

    jump = HOME + np.array([1.0, 0, 0, 0, 0, 0, 0])
    actions = [robot.send_action(action(jump, 0.085)) for _ in range(4)]
    joints = np.array([[step[name] for name in JOINT_NAMES[:7]] for step in actions])
    steps = np.diff(np.vstack([HOME, joints]), axis=0)
    most = RECIPE.limits.max_joint_speed_rad_s / RECIPE.fps
    assert np.abs(steps).max() <= most + 1e-9
    assert joints[-1, 0] > HOME[0] + most  # the arm reaches it
    assert 0.04 < actions[0]["gripper.pos"] <= 0.05 + 1e-9  # 0.1 m/s for 0.1 s
    robot.disconnect()
    assert not robot.is_connected

    path = set_points(server.request_log())
    assert len(path) > 20
    assert np.abs(np.diff(path, axis=0)).max() <= RECIPE.limits.max_joint_speed_rad_s / 100.0 + 1e-5
    assert server.arm_state().state == 4  # stopped
    with pytest.raises(DeviceNotConnectedError):
        robot.send_action(action(HOME))


def test_invalid_actions_are_refused_and_the_arm_holds(robot, server):
    robot.connect()
    robot.send_action(action(HOME))
    with pytest.raises(CommandRefused, match="NaN"):
        robot.send_action(action(HOME * np.nan))
    with pytest.raises(ValueError, match=r"an action has joint1.pos, .* got joint1.pos$"):
        robot.send_action({"joint1.pos": 0.0})
    assert robot.send_action(action(HOME))["joint1.pos"] == pytest.approx(HOME[0])
    assert server.arm_state().error == 0


def test_a_fault_ends_the_loop_and_reconnecting_does_not_clear_it(robot, server):
    robot.connect()
    robot.send_action(action(HOME))
    server.faults.error(31)
    with pytest.raises(ArmError, match="C31"):
        for _ in range(100):
            robot.send_action(action(HOME))
    robot.disconnect()
    with pytest.raises(ArmError, match="C31"):
        robot.connect()
    assert not robot.is_connected
    assert server.arm_state().error == 31


def test_the_rate_and_the_pace_are_options(plugin, recipe):
    robot = plugin.XArm7Robot(plugin.XArm7RobotConfig(recipe=str(recipe), fps=50.0, pace=0.1))
    assert robot._recipe.fps == 50.0
    assert robot._arm.limits.joint_step_rad == pytest.approx(0.1 * RECIPE.limits.max_joint_speed_rad_s / 50.0)
    with pytest.raises(RecipeError, match="no recipe 'xarm8'"):
        plugin.XArm7Robot(plugin.XArm7RobotConfig(recipe="xarm8"))


# --- lerobot's commands -----------------------------------------------------------------------------------------------

TELEOPERATOR = '''
"""A leader that asks for a jump: joint 1 one radian off, at once."""
from dataclasses import dataclass
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

HOME = {home}

@TeleoperatorConfig.register_subclass("jump")
@dataclass(kw_only=True)
class JumpLeaderConfig(TeleoperatorConfig):
    pass

class JumpLeader(Teleoperator):
    config_class, name = JumpLeaderConfig, "jump"
    is_connected, is_calibrated = False, True
    action_features = {{name: float for name in HOME}}
    feedback_features = {{}}
    def connect(self, calibrate=True): self.is_connected = True
    def disconnect(self): self.is_connected = False
    def calibrate(self): pass
    def configure(self): pass
    def send_feedback(self, feedback): pass
    def get_action(self): return HOME | {{"joint1.pos": HOME["joint1.pos"] + 1.0}}
'''

COMMANDS = """
import importlib, json, sys
import torch
torch.set_num_threads(1)
for name, options in json.loads(sys.argv[1]):
    sys.argv = [name, *options]
    importlib.import_module("lerobot.scripts." + name).main()
    print("DONE", name, flush=True)
"""


def leader(site: Path) -> None:
    """Writes a teleoperator without hardware, as an installed distribution that lerobot finds."""
    (site / "lerobot_teleoperator_jump.py").write_text(TELEOPERATOR.format(home=action(HOME)))
    info = site / "lerobot_teleoperator_jump-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_teleoperator_jump\nVersion: 0.1\n")


def tiny_act(folder: Path, size: int) -> Path:
    """Writes an untrained ACT policy of lerobot for this arm and its two cameras."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    pictures = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size)) for name in ("front", "wrist")
    }
    config = ACTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (8,)), **pictures},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (8,))},
        chunk_size=5,
        n_action_steps=5,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        device="cpu",
        push_to_hub=False,
    )
    ACTPolicy(config).save_pretrained(folder)
    one = {"mean": np.zeros(8), "std": np.ones(8)}
    image = {"mean": np.zeros((3, 1, 1)), "std": np.ones((3, 1, 1))}
    import torch

    stats = {"observation.state": one, "action": one, **dict.fromkeys(pictures, image)}
    stats = {name: {key: torch.tensor(value) for key, value in of.items()} for name, of in stats.items()}
    for part in make_pre_post_processors(config, dataset_stats=stats):
        part.save_pretrained(folder)
    return folder


def test_lerobots_own_commands_record_teleoperate_and_roll_out(installed, tmp_path):
    """Drives the arm, its limits and its MJPEG cameras through stock lerobot, and reads the recorded dataset."""
    cell = load(HardwareRecipe, "hardware", "mock")
    with MockLab(cell, load(TaskRecipe, "datasets", "put-apple")) as lab:
        lab_recipe = lab.recipe(RECIPE)
        slow = tuple(replace(camera, max_age_s=5.0) for camera in lab_recipe.cameras)
        (tmp_path / "arm.toml").write_text(dump(replace(lab_recipe, cameras=slow)))
        shutil.copytree(installed, tmp_path / "site")
        leader(tmp_path / "site")
        policy = tiny_act(tmp_path / "act", cell.cameras[0].height_px)
        robot = ["--robot.type=xarm7", f"--robot.recipe={tmp_path / 'arm.toml'}", "--robot.id=one"]
        recording = ["--dataset.repo_id=local/xarm", f"--dataset.root={tmp_path / 'data'}", "--dataset.num_episodes=1"]
        recording += ["--dataset.single_task=jump", "--dataset.fps=10", "--dataset.episode_time_s=1.5"]
        recording += ["--dataset.push_to_hub=false", "--play_sounds=false"]
        rollout = [f"--policy.path={policy}", "--strategy.type=base", "--fps=10", "--duration=1", "--task=jump"]
        rollout += ["--return_to_initial_position=false", "--play_sounds=false", "--device=cpu"]
        commands = [
            ("lerobot_record", [*robot, "--teleop.type=jump", *recording]),
            ("lerobot_teleoperate", [*robot, "--teleop.type=jump", "--fps=10", "--teleop_time_s=0.5"]),
            ("lerobot_rollout", [*robot, *rollout]),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(tmp_path / "site"),
            "HF_LEROBOT_HOME": str(tmp_path / "lerobot"),
        }
        call = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
        process = subprocess.run(
            call, capture_output=True, text=True, env=environment, check=False, timeout=280, stdin=subprocess.DEVNULL
        )
        requests, after = lab.controller.request_log(), lab.controller.arm_state()
    for name, _ in commands:
        assert f"DONE {name}" in process.stdout, process.stderr[-3000:]
    buffer = open_buffer(tmp_path / "data")
    assert [episode.length for episode in buffer.episodes] >= [5]
    assert buffer.episodes[0].cameras == ("observation.images.front", "observation.images.wrist")
    sessions = [set_points([r for r in requests if r.client == n]) for n in {r.client for r in requests}]
    sessions = [path for path in sessions if len(path)]
    assert len(sessions) == 3 and min(map(len, sessions)) > 10
    for path in sessions:  # the leader jumps by 1 rad, the arm stays below its speed limit
        assert np.abs(np.diff(path, axis=0)).max() <= cell.limits.max_joint_speed_rad_s / 100.0 + 1e-5
    assert (after.state, after.error) == (4, 0)
