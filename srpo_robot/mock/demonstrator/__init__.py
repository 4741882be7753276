"""A scripted expert with privileged sight of the mock cell, which succeeds, retries, or fails on purpose.

It plans anew from the measured TCP at every control step, so its actions say how to come back from wherever the
disturbance took the arm. `SCRIPTS` has one `Script` for each task.
"""

from __future__ import annotations

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import TCP_NAMES
from srpo_robot.errors import RecipeError, UsageError
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.demonstrator.base import ExpertObservation, ExpertStage, Failure, Script, choose_failure
from srpo_robot.mock.demonstrator.fold import Fold
from srpo_robot.mock.demonstrator.put import Put
from srpo_robot.mock.demonstrator.wipe import Wipe
from srpo_robot.records import ActionChunk, Observation

__all__ = ["SCRIPTS", "Demonstrator", "ExpertStage", "Failure", "choose_failure", "choose_strategy"]

SCRIPTS: dict[str, type[Script]] = {
    "put-apple": Put,
    "put-pear": Put,
    "wipe-board": Wipe,
    "fold-towel": Fold,
    "select-poker": Put,
}

_STILL_STEPS = 20  # frozen tail of a stop


def choose_strategy(seed: int, strategies: tuple[str, ...]) -> str:
    """The strategy for a demonstration: each alike, by the seed alone."""
    return strategies[int(np.random.default_rng([seed, 7]).integers(len(strategies)))]


class Demonstrator:
    """The scripted expert. A policy like any other, but it reads the simulator: for demonstrations only."""

    name = "demonstrator"

    def __init__(self, sim: CellSim, failure_rate: float = 0.0) -> None:
        """`failure_rate`: share of demonstrations that fail on purpose, where `reset` is not told which.

        Raises:
            RecipeError: the recipe names a strategy that the task does not have.
        """
        unknown = [name for name in sim.recipe.strategies if name not in sim.task.strategies]
        if unknown:
            raise RecipeError(
                f"{sim.recipe.name} has no strategy {unknown[0]!r}; it has: {', '.join(sim.task.strategies)}"
            )
        self.sim = sim
        self.failure_rate = failure_rate
        self.failure = Failure.NONE  # of the demonstration under way
        self.strategy = ""
        self._script: Script | None = None
        self._offset_m = np.array(sim.hardware.tcp_offset_m)
        self._home_m = kinematics.tcp_position(np.array(sim.hardware.home_rad), self._offset_m)
        self._open_step_m = sim.hardware.limits.max_gripper_speed_m_s / sim.hardware.fps

    @property
    def phase(self) -> ExpertStage:
        """What it is doing."""
        return ExpertStage.DONE if self._script is None else self._script.phase

    def reset(self, seed: int, failure: Failure | None = None, strategy: str | None = None) -> None:
        """Plan a demonstration of the layout that the cell has now; what is None is drawn.

        Raises:
            UsageError: the cell has no layout yet; the task has no such failure or strategy; or nothing but the target
                for a `wrong`.
        """
        sim = self.sim
        if sim.layout is None:
            raise UsageError("the cell has no layout yet; reset the workcell before the demonstrator")
        strategies = sim.recipe.strategies or sim.task.strategies
        self.failure = choose_failure(seed, self.failure_rate, sim.task.failures) if failure is None else failure
        self.strategy = choose_strategy(seed, strategies) if strategy is None else strategy
        if self.failure is not Failure.NONE and self.failure.value not in sim.task.failures:
            raise UsageError(
                f"{sim.recipe.name} has no failure {self.failure.value!r}; it has: {', '.join(sim.task.failures)}"
            )
        if self.strategy not in sim.task.strategies:
            raise UsageError(
                f"{sim.recipe.name} has no strategy {self.strategy!r}; it has: {', '.join(sim.task.strategies)}"
            )
        sim.intent, sim.strategy = self.failure.value, self.strategy
        self._script = SCRIPTS[sim.recipe.name](sim, sim.layout, self.failure, self.strategy, self._home_m, seed)
        self._steps = 0
        self._still: np.ndarray | None = None  # the action repeated in the tail of a stop
        self._still_steps = 0

    def act(self, observation: Observation) -> ActionChunk | None:
        """The next TCP target [m] and opening [m], one row; None when the demonstration is over."""
        if self._script is None:
            raise UsageError("nothing is planned yet; reset the demonstrator first")
        tcp = kinematics.tcp_position(observation.state.joints_rad, self._offset_m)
        view = ExpertObservation(tcp, observation.state.gripper_m, observation.commanded.gripper_m, self.sim.facts())
        self._script.advance(view)
        self._steps += 1
        if self._is_stopping(self._script, view):
            return self._stay(self._script, view)
        if self.phase is ExpertStage.DONE or self._steps > self._script.longest_steps:
            return None
        return ActionChunk(self._action(self._script, view)[None], TCP_NAMES)

    def _action(self, script: Script, view: ExpertObservation) -> np.ndarray:
        """Target and opening, (4,): the goal of the phase, at most a stride ahead of the measured fingertips."""
        way = script.goal(view) - view.tcp_m
        length = float(np.linalg.norm(way))
        target = view.tcp_m + way * min(1.0, script.pace.stride_m / max(length, 1e-9))
        change = script.opening_m() - view.asked_m
        return np.append(target, view.asked_m + np.clip(change, -self._open_step_m, self._open_step_m))

    def _is_stopping(self, script: Script, view: ExpertObservation) -> bool:
        if self.failure is not Failure.STOP:
            return False
        due = self._steps >= script.pace.stop_step or script.last_chance(view)
        return due or self._still is not None

    def _stay(self, script: Script, view: ExpertObservation) -> ActionChunk | None:
        """The action of the moment it stopped in, again and again; None after two seconds."""
        if self._still is None:
            opening = self._action(script, view)[3]
            self._still = np.append(view.tcp_m, opening)
        self._still_steps += 1
        return ActionChunk(self._still[None], TCP_NAMES) if self._still_steps <= _STILL_STEPS else None
