"""The mock arm and its workcell: implementations of `Arm` and `Workcell` on top of `CellSim`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.arm.arm import Arm
from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.mock import tasks, truth
from srpo_robot.mock.cell import CellSim
from srpo_robot.recipes import HardwareRecipe, TaskRecipe
from srpo_robot.records import ArmCommand, Observation

_START_JITTER_M = 0.010  # standard deviation of the start TCP around home
_WIDE_MIN_M = (0.32, -0.24, 0.14)  # region of the TCP in wide starts: over table and plate, clear of every object
_WIDE_MAX_M = (0.52, 0.20, 0.32)
_WIDE_OPENING_M = (0.040, 0.085)
_SLOW_S = 0.8  # time constant of the slow part of the disturbance
_WALL_M = 0.001  # margin of the disturbance to the box's walls, because its joint-space step is linearised
_WHITE_FRACTION = 0.4  # standard deviation of the white part, as a fraction of the slow part's


class MockArm(Arm):
    """An xArm 7 in MuJoCo. Time passes only in `send`, one control period per call.

    If `disturbance_m` > 0, the motors get the command plus slowly varying and white noise in TCP space. The noise is
    added after the limits and kept inside the workspace box. `commanded`, and therefore the recorded action, stays
    without noise. Demonstrations then show how to recover from states that the expert alone would not visit (DART,
    Laskey et al. 2017).
    """

    def __init__(
        self, hardware: HardwareRecipe, task: TaskRecipe, disturbance_m: float = 0.0, randomization: float = 0.0
    ) -> None:
        """Builds the simulator.

        Raises:
            RecipeError: the recipes ask for something that the mock cell does not have, or `disturbance_m` is negative.
            UsageError: as `CellSim`.
        """
        super().__init__(hardware)
        if disturbance_m < 0.0:
            raise RecipeError(f"disturbance_m is {disturbance_m}; it is a standard deviation, zero or more")
        self.sim = CellSim(hardware, task, randomization)
        self.disturbance_m = disturbance_m
        self._slow_m = np.zeros(3)
        self._rng = np.random.default_rng(0)
        self._observation: Observation | None = None
        self._is_open = False

    def place(self, layout: tasks.Layout, start: ArmCommand) -> None:
        """Lays out the scene with the arm at `start`. The disturbance is drawn from the layout's seed."""
        self._must_be_open()
        self.sim.reset(layout, start)
        self._rng = np.random.default_rng([layout.seed, 2])
        self._slow_m = self.disturbance_m * self._rng.standard_normal(3)
        self.commanded = start
        self._observation = None

    def observe(self, images: bool = True) -> Observation:
        """Returns the current state and, if `images`, the current images. Renders at most once per control step.

        Raises:
            ArmError: the arm is not open.
        """
        self._must_be_open()
        if self._observation is None or (images and not self._observation.images):
            state = self.sim.state()
            drawn = {camera.name: self.sim.render(camera.name) for camera in self.recipe.cameras} if images else {}
            self._observation = Observation(
                state, self.commanded or ArmCommand(state.joints_rad, state.gripper_m), drawn
            )
        return self._observation

    def stop(self) -> None:
        """Holds the measured position and forgets the last command. Safe to call twice, open or not."""
        self.sim.freeze()
        self.commanded = None
        self._observation = None

    def _open(self) -> None:
        self._is_open = True

    def _close(self) -> None:
        self._is_open = False
        self.sim.close()

    def _drive(self, command: ArmCommand) -> None:
        self._must_be_open()
        self.sim.step(self._disturbed(command) if self.disturbance_m > 0.0 else command, self.period_s)
        self._observation = None

    def _disturbed(self, command: ArmCommand) -> ArmCommand:
        """Returns the command for the motors, with first-order plus white noise on the TCP, which stays in the box."""
        keep = np.exp(-self.period_s / _SLOW_S)
        slow, white = self._rng.standard_normal((2, 3)) * self.disturbance_m
        self._slow_m = keep * self._slow_m + np.sqrt(1.0 - keep**2) * slow
        limits = self.limits
        tcp = kinematics.tcp_position(command.joints_rad, limits.tcp_offset_m)
        low, high = limits.box_min_m + _WALL_M, limits.box_max_m - _WALL_M
        moved = np.clip(tcp + self._slow_m + _WHITE_FRACTION * white, low, high)
        jacobian = kinematics.jacobian(command.joints_rad, limits.tcp_offset_m)
        shift = np.linalg.pinv(jacobian) @ np.append(moved - tcp, np.zeros(3))
        joints = np.clip(command.joints_rad + shift, limits.joint_min_rad, limits.joint_max_rad)
        return ArmCommand(joints, command.gripper_m)

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise ArmError("the mock arm is not open; use it as a context manager: with arm: ...")


class MockCell:
    """The workcell of a `MockArm`. It lays out trials by seed and judges them by physics."""

    def __init__(self, arm: MockArm, wide_starts: float = 0.0) -> None:
        """`wide_starts`: probability that a trial starts anywhere over the table instead of near home.

        Raises:
            RecipeError: `wide_starts` is not a probability.
        """
        if not 0.0 <= wide_starts <= 1.0:
            raise RecipeError(f"wide_starts is {wide_starts}; it is a probability, 0 to 1")
        self.arm = arm
        self.wide_starts = wide_starts

    def reset(self, seed: int) -> Mapping[str, object]:
        """Lays out the scene for `seed` and puts the arm at its start. Returns the layout as JSON values."""
        layout = tasks.layout(self.arm.sim.recipe, seed)
        start = self._start(np.random.default_rng([seed, 1]))
        self.arm.place(layout, start)
        tcp = kinematics.tcp_position(start.joints_rad, self.arm.limits.tcp_offset_m)
        start_tcp = [round(float(v), 6) for v in tcp]
        return layout.as_json() | {"start_tcp_m": start_tcp, "randomization": self.arm.sim.randomization}

    def verdict(self, ended: bool) -> bool | None:
        """Returns True if the success rule has held for the last half second, False only if `ended`, otherwise None."""
        if self.arm.sim.succeeded():
            return True
        return False if ended else None

    def score(self) -> float:
        """Returns how well the task is done now, 0 to 1. A failure may score between 0 and 1."""
        return self.arm.sim.score()

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Returns the current values of `truth.FEATURES`. Raises ArmError before the first `reset`."""
        return truth.snapshot(self.arm.sim)

    def _start(self, rng: np.random.Generator) -> ArmCommand:
        """Draws joints and opening at the start of a trial, until inverse kinematics reaches a start inside the box.

        Raises:
            RecipeError: no start inside the box is within reach.
        """
        limits = self.arm.limits
        home = kinematics.tcp_position(self.arm.home_rad, limits.tcp_offset_m)
        wide = rng.random() < self.wide_starts
        for _ in range(1000):
            if wide:
                target, opening = rng.uniform(_WIDE_MIN_M, _WIDE_MAX_M), float(rng.uniform(*_WIDE_OPENING_M))
            else:
                target, opening = home + _START_JITTER_M * rng.standard_normal(3), limits.gripper_max_m
            solution = kinematics.inverse(
                target,
                kinematics.TOOL_DOWN,
                self.arm.home_rad,
                limits.tcp_offset_m,
                limits.joint_min_rad,
                limits.joint_max_rad,
                posture_rad=self.arm.home_rad,
            )
            opening = float(np.clip(opening, limits.gripper_min_m, limits.gripper_max_m))
            if solution.reached and limits.inside_box(solution.joints_rad):
                return ArmCommand(solution.joints_rad, opening)
        raise RecipeError("no start inside limits.box_* is within reach; widen the box over the table")


def make_mock(
    hardware: HardwareRecipe,
    task: TaskRecipe,
    *,
    wide_starts: float = 0.0,
    disturbance_m: float = 0.0,
    randomization: float = 0.0,
) -> tuple[MockArm, MockCell]:
    """Returns the mock arm and its workcell.

    Args:
        hardware: an arm recipe of kind "mock".
        task: the task to lay out and judge.
        wide_starts: probability of a start anywhere over the table instead of near home.
        disturbance_m: standard deviation of the noise on the motor commands [m]. See `MockArm`.
        randomization: visual randomization between trials, 0 (none) to 1. See `randomization.draw_appearance`.

    Raises:
        RecipeError: the recipes ask for something that the mock cell does not have.
        UsageError: `randomization` is outside 0 to 1.
    """
    if hardware.kind != "mock":
        raise RecipeError(f"{hardware.name} is a recipe for a {hardware.kind}; the mock cell needs one of kind 'mock'")
    arm = MockArm(hardware, task, disturbance_m, randomization)
    return arm, MockCell(arm, wide_starts)
