"""The mock arm and the cell around it: what `Arm` and `Workcell` ask for, on top of `CellSim`."""

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

_START_JITTER_M = 0.010  # of the TCP around home, standard deviation
_WIDE_MIN_M = (0.32, -0.24, 0.14)  # where wide starts put the TCP: over table and plate, clear of every object
_WIDE_MAX_M = (0.52, 0.20, 0.32)
_WIDE_OPENING_M = (0.040, 0.085)
_SLOW_S = 0.8  # time constant of the slow part of the disturbance
_WALL_M = 0.001  # the disturbance stays this far from the box's walls: its step in joint space is linearised
_WHITE_SHARE = 0.4  # standard deviation of the white part, as a share of the slow part's


class MockArm(Arm):
    """An xArm 7 in MuJoCo. Time passes only in `send`, one control period a call.

    With `disturbance_m` > 0 the motors are driven beside the command: slowly varying plus white noise in TCP space,
    added after the limits and kept inside the workspace box. `commanded`, and so what is recorded as the action, stays
    clean: demonstrations then show how to come back from states that the expert alone would not visit (DART, Laskey et
    al. 2017).
    """

    def __init__(
        self, hardware: HardwareRecipe, task: TaskRecipe, disturbance_m: float = 0.0, randomization: float = 0.0
    ) -> None:
        """Raises RecipeError where the recipes ask for what the mock cell does not have; UsageError as `CellSim`."""
        super().__init__(hardware)
        if disturbance_m < 0.0:
            raise RecipeError(f"disturbance_m is {disturbance_m}; it is a standard deviation, zero or more")
        self.sim = CellSim(hardware, task, randomization)
        self.disturbance_m = disturbance_m
        self._slow_m = np.zeros(3)
        self._rng = np.random.default_rng(0)
        self._seen: Observation | None = None
        self._is_open = False

    def place(self, layout: tasks.Layout, start: ArmCommand) -> None:
        """Lay out the scene with the arm at `start`. The disturbance is drawn from the layout's seed."""
        self._must_be_open()
        self.sim.reset(layout, start)
        self._rng = np.random.default_rng([layout.seed, 2])
        self._slow_m = self.disturbance_m * self._rng.standard_normal(3)
        self.commanded = start
        self._seen = None

    def observe(self, images: bool = True) -> Observation:
        """State and, unless nobody looks, images now; drawn once a control step, however often it is asked.

        Raises:
            ArmError: the arm is not open.
        """
        self._must_be_open()
        if self._seen is None or (images and not self._seen.images):
            state = self.sim.state()
            drawn = {camera.name: self.sim.render(camera.name) for camera in self.recipe.cameras} if images else {}
            self._seen = Observation(state, self.commanded or ArmCommand(state.joints_rad, state.gripper_m), drawn)
        return self._seen

    def stop(self) -> None:
        """Hold what is measured now and forget the last command; safe to call twice, open or not."""
        self.sim.freeze()
        self.commanded = None
        self._seen = None

    def _open(self) -> None:
        self._is_open = True

    def _close(self) -> None:
        self._is_open = False
        self.sim.close()

    def _drive(self, command: ArmCommand) -> None:
        self._must_be_open()
        self.sim.step(self._disturbed(command) if self.disturbance_m > 0.0 else command, self.period_s)
        self._seen = None

    def _disturbed(self, command: ArmCommand) -> ArmCommand:
        """The command that the motors get: its TCP moved by first-order plus white noise, never out of the box."""
        keep = np.exp(-self.period_s / _SLOW_S)
        slow, white = self._rng.standard_normal((2, 3)) * self.disturbance_m
        self._slow_m = keep * self._slow_m + np.sqrt(1.0 - keep**2) * slow
        limits = self.limits
        tcp = kinematics.tcp_position(command.joints_rad, limits.tcp_offset_m)
        low, high = limits.box_min_m + _WALL_M, limits.box_max_m - _WALL_M
        moved = np.clip(tcp + self._slow_m + _WHITE_SHARE * white, low, high)
        jacobian = kinematics.jacobian(command.joints_rad, limits.tcp_offset_m)
        shift = np.linalg.pinv(jacobian) @ np.append(moved - tcp, np.zeros(3))
        joints = np.clip(command.joints_rad + shift, limits.joint_min_rad, limits.joint_max_rad)
        return ArmCommand(joints, command.gripper_m)

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise ArmError("the mock arm is not open; use it as a context manager: with arm: ...")


class MockCell:
    """The workcell of a `MockArm`: lays out trials by seed and judges them by physics."""

    def __init__(self, arm: MockArm, wide_starts: float = 0.0) -> None:
        """`wide_starts`: probability that a trial starts anywhere over the table instead of near home.

        Raises:
            RecipeError: not a probability.
        """
        if not 0.0 <= wide_starts <= 1.0:
            raise RecipeError(f"wide_starts is {wide_starts}; it is a probability, 0 to 1")
        self.arm = arm
        self.wide_starts = wide_starts

    def reset(self, seed: int) -> Mapping[str, object]:
        """Lay out the scene for `seed`, put the arm at its start, and say what the layout is (JSON-able)."""
        layout = tasks.layout(self.arm.sim.recipe, seed)
        start = self._start(np.random.default_rng([seed, 1]))
        self.arm.place(layout, start)
        tcp = kinematics.tcp_position(start.joints_rad, self.arm.limits.tcp_offset_m)
        varied = {"randomization": self.arm.sim.randomization}
        return layout.as_json() | {"start_tcp_m": [round(float(v), 6) for v in tcp]} | varied

    def verdict(self, ended: bool) -> bool | None:
        """True once the success rule has held for half a second up to now; False only once `ended`; else None."""
        if self.arm.sim.succeeded():
            return True
        return False if ended else None

    def score(self) -> float:
        """How well the task is done at this instant, 0 to 1; what lies between says how far a failure got."""
        return self.arm.sim.score()

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """The columns of `truth.FEATURES` at this instant. Raises ArmError before the first `reset`."""
        return truth.snapshot(self.arm.sim)

    def _start(self, rng: np.random.Generator) -> ArmCommand:
        """Joints and opening at the start of a trial; drawn until inverse kinematics reaches it inside the box.

        Raises:
            RecipeError: the box leaves no such place.
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
    """The mock arm and the workcell around it.

    Args:
        hardware: an arm recipe of kind "mock".
        task: which task is laid out and judged.
        wide_starts: probability of a start anywhere over the table instead of near home.
        disturbance_m: standard deviation of the noise on the way to the motors [m]; see `MockArm`.
        randomization: visual randomization between trials, 0 (none) to 1; see `randomization.draw_appearance`.

    Raises:
        RecipeError: the recipes ask for what the mock cell does not have.
        UsageError: `randomization` outside 0 to 1.
    """
    if hardware.kind != "mock":
        raise RecipeError(f"{hardware.name} is a recipe for a {hardware.kind}; the mock cell needs one of kind 'mock'")
    arm = MockArm(hardware, task, disturbance_m, randomization)
    return arm, MockCell(arm, wide_starts)
