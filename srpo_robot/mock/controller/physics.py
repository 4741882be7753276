"""The plant behind the controller: an ideal arm for protocol tests, or the MuJoCo cell. Time passes only in `drive`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.layout import Layout
from srpo_robot.records import ArmCommand, frozen

# Velocity gain plus joint damping over position gain of the cell's motors (see `mock.scene`): their lag behind a ramp.
_CELL_LAG_S = 0.105


@dataclass(frozen=True, eq=False)
class PlantState:
    """Readings of the encoders."""

    joints_rad: np.ndarray  # (7,)
    gripper_m: float


class Plant(Protocol):
    """An arm and a gripper whose motors follow setpoints."""

    lag_s: float  # a ramp of v rad/s is followed v * lag_s behind
    stroke_m: float  # of the gripper

    def measure(self) -> PlantState:
        """Returns the current joints and opening."""
        ...

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Moves the motors' setpoints to these values over `dt_s`, and lets that time pass."""
        ...


class KinematicPlant:
    """An ideal arm that is always at its setpoints, unless `blocked` or with `object_m` between the fingers."""

    lag_s = 0.0

    def __init__(self, joints_rad: np.ndarray, gripper_m: float = 0.085, stroke_m: float = 0.085) -> None:
        self.stroke_m = stroke_m
        self.blocked = False  # a wall: the joints do not move
        self.object_m = 0.0  # width of an object between the fingers
        self._state = PlantState(frozen(joints_rad, (7,)), gripper_m)

    def measure(self) -> PlantState:
        """Returns the current joints and opening."""
        return self._state

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Moves to the setpoints, as far as nothing is in the way."""
        joints = self._state.joints_rad if self.blocked else frozen(joints_rad)
        self._state = PlantState(joints, max(gripper_m, self.object_m))


class CellPlant:
    """The arm of a `CellSim`. Other readers of the cell, to draw or to judge, must hold `lock`."""

    lag_s = _CELL_LAG_S

    def __init__(self, sim: CellSim) -> None:
        self.sim = sim
        self.lock = threading.RLock()
        self.stroke_m = sim.hardware.limits.gripper_max_m

    def measure(self) -> PlantState:
        """Returns the current joints and opening."""
        with self.lock:
            state = self.sim.state()
        return PlantState(state.joints_rad, state.gripper_m)

    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        """Steps the physics. Raises ArmError if it diverged."""
        with self.lock:
            self.sim.step(ArmCommand(joints_rad, gripper_m), dt_s)

    def place(self, layout: Layout, start: ArmCommand) -> None:
        """Lays out the cell with the arm at rest at `start`."""
        with self.lock:
            self.sim.reset(layout, start)
