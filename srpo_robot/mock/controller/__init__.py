"""An emulator of the xArm 7's controller on loopback, for the vendor's unmodified SDK: protocol, state machine, faults.

Written from the vendor's public protocol pages and the SDK's source. Nothing in it was checked against a real arm.
`assumptions.ASSUMPTIONS` lists its unverified behaviour.
"""

from srpo_robot.mock.controller.assumptions import ASSUMPTIONS, Assumption
from srpo_robot.mock.controller.faults import Faults
from srpo_robot.mock.controller.physics import CellPlant, KinematicPlant, Plant
from srpo_robot.mock.controller.server import ControllerServer, free_host
from srpo_robot.mock.controller.state import Controller, Firmware, Snapshot

__all__ = [
    "ASSUMPTIONS",
    "Assumption",
    "CellPlant",
    "Controller",
    "ControllerServer",
    "Faults",
    "Firmware",
    "KinematicPlant",
    "Plant",
    "Snapshot",
    "free_host",
]
