"""A scripted expert that reads the simulator's state. It succeeds, retries, or fails on purpose.

The expert replans from the measured TCP at every control step. Its actions therefore show how to recover from any
position that the disturbance moved the arm to. `SCRIPTS` has one `Script` for each task.
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

_STILL_STEPS = 20  # steps that the arm stays still at the end of a `Failure.STOP` demonstration


def choose_strategy(seed: int, strategies: tuple[str, ...]) -> str:
    """Draws the strategy of a demonstration uniformly. The draw depends only on the seed."""
    return strategies[int(np.random.default_rng([seed, 7]).integers(len(strategies)))]


class Demonstrator:
    """The scripted expert as a policy. It reads the simulator, so use it for demonstrations only."""

    name = "demonstrator"

    def __init__(self, sim: CellSim, failure_rate: float = 0.0) -> None:
        """Binds the expert to a simulator.

        Args:
            sim: the cell that the expert reads.
            failure_rate: probability that a demonstration fails on purpose, if `reset` is not given a failure.

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
        self.failure = Failure.NONE  # failure mode of the current demonstration
        self.strategy = ""
        self._script: Script | None = None
        self._offset_m = np.array(sim.hardware.tcp_offset_m)
        self._home_m = kinematics.tcp_position(np.array(sim.hardware.home_rad), self._offset_m)
        self._open_step_m = sim.hardware.limits.max_gripper_speed_m_s / sim.hardware.fps

    @property
    def stage(self) -> ExpertStage:
        """The current stage."""
        return ExpertStage.DONE if self._script is None else self._script.stage

    def reset(self, seed: int, failure: Failure | None = None, strategy: str | None = None) -> None:
        """Plans a demonstration of the cell's current layout. Draws `failure` or `strategy` if it is None.

        Raises:
            UsageError: the cell has no layout yet; the task has no such failure or strategy; or the failure is `wrong`
                and the layout has no object besides the target.
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
        self._still: np.ndarray | None = None  # the action that is repeated after a stop
        self._still_steps = 0

    def act(self, observation: Observation) -> ActionChunk | None:
        """Returns one row with the next TCP target [m] and opening [m], or None if the demonstration is over."""
        if self._script is None:
            raise UsageError("nothing is planned yet; reset the demonstrator first")
        tcp = kinematics.tcp_position(observation.state.joints_rad, self._offset_m)
        expert = ExpertObservation(tcp, observation.state.gripper_m, observation.commanded.gripper_m, self.sim.facts())
        self._script.advance(expert)
        self._steps += 1
        if self._is_stopping(self._script, expert):
            return self._stay(self._script, expert)
        if self.stage is ExpertStage.DONE or self._steps > self._script.longest_steps:
            return None
        return ActionChunk(self._action(self._script, expert)[None], TCP_NAMES)

    def _action(self, script: Script, observation: ExpertObservation) -> np.ndarray:
        """Returns target and opening (4,): the stage's goal, at most one stride ahead of the measured fingertips."""
        to_goal = script.goal(observation) - observation.tcp_m
        distance = float(np.linalg.norm(to_goal))
        target = observation.tcp_m + to_goal * min(1.0, script.pace.stride_m / max(distance, 1e-9))
        change = script.opening_m() - observation.commanded_gripper_m
        return np.append(
            target, observation.commanded_gripper_m + np.clip(change, -self._open_step_m, self._open_step_m)
        )

    def _is_stopping(self, script: Script, observation: ExpertObservation) -> bool:
        if self.failure is not Failure.STOP:
            return False
        due = self._steps >= script.pace.stop_step or script.must_stop(observation)
        return due or self._still is not None

    def _stay(self, script: Script, observation: ExpertObservation) -> ActionChunk | None:
        """Repeats the action of the step in which the expert stopped. Returns None after two seconds."""
        if self._still is None:
            opening = self._action(script, observation)[3]
            self._still = np.append(observation.tcp_m, opening)
        self._still_steps += 1
        return ActionChunk(self._still[None], TCP_NAMES) if self._still_steps <= _STILL_STEPS else None
