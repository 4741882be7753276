"""An xArm 7 as a lerobot robot: joint targets in, what was executed out.

Joint angles are in rad and the gripper's opening in m, under the names that lerobot-rollout keeps ("joint1.pos", ...,
"gripper.pos"). The arm moves from the first action on and through every limit of the recipe; an error of the
controller ends the program's loop by an exception, and nothing here cleans one: run `srpo-robot check` and
`srpo-robot run` for that. Moving the arm home before a recording is left to a person.
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
    """See the module; lerobot's `Robot` is the contract."""

    config_class = XArm7RobotConfig
    name = "xarm7"

    def __init__(self, config: XArm7RobotConfig) -> None:
        """Raises RecipeError where the recipe is missing, not of an xArm 7, or contradicts itself."""
        recipe = load(HardwareRecipe, "hardware", config.recipe)
        self._recipe = replace(recipe, fps=config.fps) if config.fps else recipe
        self._arm = XArm7(self._recipe, first_pace=config.pace)
        self._is_connected = False
        super().__init__(config)
        self.config = config

    # --- what it takes and gives; known before it is connected ------------------------------------------------------

    @property
    def cameras(self) -> dict[str, CameraRecipe]:
        """The recipe's cameras by name; lerobot counts them."""
        return {camera.name: camera for camera in self._recipe.cameras}

    @property
    def observation_features(self) -> dict[str, Any]:
        """Measured joints [rad] and opening [m], and a picture (height, width, 3) a camera."""
        pictures = {name: (camera.height_px, camera.width_px, 3) for name, camera in self.cameras.items()}
        return {**self.action_features, **pictures}

    @property
    def action_features(self) -> dict[str, type]:
        """Joint targets [rad] and opening [m]."""
        return dict.fromkeys(JOINT_NAMES, float)

    # --- connection -------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """From `connect` to `disconnect`, also after a fault."""
        return self._is_connected

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Connect, store the recipe's settings and read them back. Asks nothing, cleans no error, moves nothing.

        Raises:
            ArmError, CameraError: what is wrong, and what would work, in a line.
        """
        self._arm.__enter__()
        self._is_connected = True

    @check_if_not_connected
    def disconnect(self) -> None:
        """Stop the arm and end every connection."""
        self._is_connected = False
        try:
            self._arm.__exit__(None, None, None)
        finally:
            if self._arm.late:
                rate = self._recipe.fps
                log.warning("%d commands came late; is lerobot's fps the arm's, %g Hz?", self._arm.late, rate)

    @property
    def is_calibrated(self) -> bool:
        """Always: the arm's encoders are absolute."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do: `connect` stores the recipe's settings."""

    # --- control ----------------------------------------------------------------------------------------------------

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        """As `observation_features`. Raises ArmError, CameraError where there is none that could be trusted."""
        seen = self._arm.observe()
        return {**_values(seen.state.joints_rad, seen.state.gripper_m), **seen.images}

    @check_if_not_connected
    def send_action(self, action: dict[str, Any]) -> dict[str, float]:
        """Drive the arm for one control period; what was executed, after every limit.

        Raises:
            ValueError: names are missing, or unknown.
            CommandRefused: a value is not finite; the arm brakes.
            ArmError: the arm faulted; it has stopped.
        """
        if set(action) != set(JOINT_NAMES):
            raise ValueError(f"an action has {', '.join(JOINT_NAMES)}; got {', '.join(sorted(action)) or 'nothing'}")
        values = np.array([float(action[name]) for name in JOINT_NAMES])
        done = self._arm.send(ArmCommand(values[:JOINTS], float(values[JOINTS]))).command
        return _values(done.joints_rad, done.gripper_m)


def _values(joints_rad: np.ndarray, gripper_m: float) -> dict[str, Any]:
    return dict(zip(JOINT_NAMES, [*map(float, joints_rad), float(gripper_m)], strict=True))
