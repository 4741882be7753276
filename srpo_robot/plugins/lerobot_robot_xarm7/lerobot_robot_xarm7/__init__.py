"""`--robot.type=xarm7` for stock lerobot: the driver, the recipe and the limits of srpo-robot's xArm 7.

lerobot imports every installed distribution with this name prefix (`register_third_party_plugins`), and finds the class
`XArm7Robot` beside `XArm7RobotConfig` by its name.
"""

from lerobot_robot_xarm7.config_xarm7 import XArm7RobotConfig
from lerobot_robot_xarm7.xarm7 import XArm7Robot

__all__ = ["XArm7Robot", "XArm7RobotConfig"]
