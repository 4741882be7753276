"""What the controller moves: an ideal arm for protocol tests, or the MuJoCo cell. Time passes only in `drive`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.layout import Layout
from srpo_robot.records import ArmCommand, frozen

# Velocity over position gain plus joint damping of the cell's motors (see scene): how far they run behind a ramp.
_CELL_LAG_S = 0.105


@dataclass(frozen=True, eq=False)
class Measured:
    """What the encoders say."""

    joints_rad: np.ndarray  # (7,)
    gripper_m: float


class Plant(Protocol):
    """An arm and a gripper whose motors follow setpoints."""

    lag_s: float  # a ramp of v rad/s is followed v * lag_s behind
    stroke_m: float  # of the gripper

    def measured(self) -> Measured:
        """Where joints and fingers are now."""
        ...

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Move the motors' setpoints there over `dt_s`, and time with them."""
        ...


class KinematicPlant:
    """Joints and fingers that are where they are told, unless `blocked` or with `object_m` between the fingers."""

    lag_s = 0.0

    def __init__(self, joints_rad: np.ndarray, gripper_m: float = 0.085, stroke_m: float = 0.085) -> None:
        self.stroke_m = stroke_m
        self.blocked = False  # a wall: joints stay where they are
        self.object_m = 0.0  # width of what the fingers close on
        self._measured = Measured(frozen(joints_rad, (7,)), gripper_m)

    def measured(self) -> Measured:
        """Where joints and fingers are now."""
        return self._measured

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Go there, as far as nothing is in the way."""
        joints = self._measured.joints_rad if self.blocked else frozen(joints_rad)
        self._measured = Measured(joints, max(gripper_m, self.object_m))


class CellPlant:
    """The arm of a `CellSim`. Whoever else reads the cell, to draw or to judge, does so while holding `lock`."""

    lag_s = _CELL_LAG_S

    def __init__(self, sim: CellSim) -> None:
        self.sim = sim
        self.lock = threading.RLock()
        self.stroke_m = sim.hardware.limits.gripper_max_m

    def measured(self) -> Measured:
        """Where joints and fingers are now."""
        with self.lock:
            state = self.sim.state()
        return Measured(state.joints_rad, state.gripper_m)

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Step physics. Raises ArmError where it diverged."""
        with self.lock:
            self.sim.step(ArmCommand(joints_rad, gripper_m), dt_s)

    def place(self, layout: Layout, start: ArmCommand) -> None:
        """Lay out the cell with the arm at rest at `start`."""
        with self.lock:
            self.sim.reset(layout, start)
