"""The options `--robot.*`. A hardware recipe holds the arm itself, its cameras and its limits."""

from dataclasses import dataclass

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("xarm7")
@dataclass(kw_only=True)
class XArm7RobotConfig(RobotConfig):
    """Options of the robot.

    Attributes:
        recipe: hardware recipe of srpo-robot: a file, or a name in hardware/.
        fps: control rate [Hz]; 0 means the recipe's. It must equal lerobot's own rate (--dataset.fps, --fps), because
            one command is one control period.
        pace: fraction of the speed caps that is used, above 0 to 1.
    """

    recipe: str = "xarm7"
    fps: float = 0.0
    pace: float = 1.0
