"""What `--robot.*` takes: the arm itself, its cameras and its limits are in a hardware recipe."""

from dataclasses import dataclass

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("xarm7")
@dataclass(kw_only=True)
class XArm7RobotConfig(RobotConfig):
    """Attributes:
    recipe: a hardware recipe of srpo-robot: a file, or a name in hardware/.
    fps: control rate [Hz] in place of the recipe's, 0: the recipe's. It must be what lerobot is told as its own
        (--dataset.fps, --fps): one command is one control period.
    pace: share of the speed caps that is used, above 0 to 1.
    """

    recipe: str = "xarm7"
    fps: float = 0.0
    pace: float = 1.0
