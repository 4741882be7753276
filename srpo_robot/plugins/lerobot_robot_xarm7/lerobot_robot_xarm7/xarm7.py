"""An xArm 7 as a lerobot robot: takes joint targets and returns the executed command.

Joint angles are in rad and the gripper's opening is in m, under the names that lerobot-rollout keeps ("joint1.pos",
..., "gripper.pos"). The arm moves from the first action on and through every limit of the recipe. An error of the
controller ends the program's loop by an exception. This class never cleans an error: use `srpo-robot check` and
`srpo-robot run`. A person has to move the arm home before a recording.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from lerobot_robot_xarm7.config_xarm7 import XArm7RobotConfig
from srpo_robot.arm.actions import JOINT_NAMES
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, load
from srpo_robot.records import JOINTS, ArmCommand

log = logging.getLogger(__name__)


class XArm7Robot(Robot):
    """An xArm 7 with the interface of lerobot's `Robot`."""

    config_class = XArm7RobotConfig
    name = "xarm7"

    def __init__(self, config: XArm7RobotConfig) -> None:
        """Raises RecipeError if the recipe is missing, is not for an xArm 7, or contradicts itself."""
        recipe = load(HardwareRecipe, "hardware", config.recipe)
        self._recipe = replace(recipe, fps=config.fps) if config.fps else recipe
        self._arm = XArm7(self._recipe, first_pace=config.pace)
        self._is_connected = False
        super().__init__(config)
        self.config = config

    # --- features, known before it is connected ---------------------------------------------------------------------

    @property
    def cameras(self) -> dict[str, CameraRecipe]:
        """The recipe's cameras by name. lerobot counts them."""
        return {camera.name: camera for camera in self._recipe.cameras}

    @property
    def observation_features(self) -> dict[str, Any]:
        """Measured joints [rad] and opening [m], and one picture (height, width, 3) per camera."""
        pictures = {name: (camera.height_px, camera.width_px, 3) for name, camera in self.cameras.items()}
        return {**self.action_features, **pictures}

    @property
    def action_features(self) -> dict[str, type]:
        """Joint targets [rad] and opening [m]."""
        return dict.fromkeys(JOINT_NAMES, float)

    # --- connection -------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """True from `connect` to `disconnect`, also after a fault."""
        return self._is_connected

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Connects, stores the recipe's settings and reads them back. Asks nothing, cleans no error, moves nothing.

        Raises:
            ArmError, CameraError: the problem and its remedy, in one line.
        """
        self._arm.__enter__()
        self._is_connected = True

    @check_if_not_connected
    def disconnect(self) -> None:
        """Stops the arm and closes every connection."""
        self._is_connected = False
        try:
            self._arm.__exit__(None, None, None)
        finally:
            if self._arm.late:
                rate = self._recipe.fps
                log.warning("%d commands came late; is lerobot's fps the arm's, %g Hz?", self._arm.late, rate)

    @property
    def is_calibrated(self) -> bool:
        """Always True: the arm's encoders are absolute."""
        return True

    def calibrate(self) -> None:
        """Does nothing, because the encoders are absolute."""

    def configure(self) -> None:
        """Does nothing, because `connect` stores the recipe's settings."""

    # --- control ----------------------------------------------------------------------------------------------------

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        """Returns `observation_features`' values. Raises ArmError or CameraError if no valid ones are available."""
        observation = self._arm.observe()
        return {**_values(observation.state.joints_rad, observation.state.gripper_m), **observation.images}

    @check_if_not_connected
    def send_action(self, action: dict[str, Any]) -> dict[str, float]:
        """Drives the arm for one control period and returns the executed command, after every limit.

        Raises:
            ValueError: names are missing, or unknown.
            CommandRefused: a value is not finite. The arm brakes.
            ArmError: the arm faulted. It has stopped.
        """
        if set(action) != set(JOINT_NAMES):
            raise ValueError(f"an action has {', '.join(JOINT_NAMES)}; got {', '.join(sorted(action)) or 'nothing'}")
        values = np.array([float(action[name]) for name in JOINT_NAMES])
        executed = self._arm.send(ArmCommand(values[:JOINTS], float(values[JOINTS]))).command
        return _values(executed.joints_rad, executed.gripper_m)


def _values(joints_rad: np.ndarray, gripper_m: float) -> dict[str, Any]:
    return dict(zip(JOINT_NAMES, [*map(float, joints_rad), float(gripper_m)], strict=True))
