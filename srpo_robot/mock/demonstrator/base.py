"""The parts that all scripts of the expert share: stages, pace, deliberate failures, and the grasp."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.tasks import SceneFacts

HOVER_M = 0.090  # height of the fingertips above the grasp before the descent, clear of neighbouring objects
ALIGNED_M = 0.010  # horizontal error at which the descent continues and the fingers close
ASTRAY_M = 0.020  # horizontal error at which the descent is aborted
ARRIVED_M = 0.010
CLOSE_STEPS = 4
OPEN_STEPS = 3
PATIENCE_STEPS = 12  # steps at the object without alignment, after which the fingers close anyway
LOST_M = 0.035  # distance from the fingertips to the grasp beyond which the object counts as lost


class Failure(StrEnum):
    """A deliberate failure of a demonstration. `tasks.Task.failures` lists the failures of each task."""

    NONE = "none"
    MISS = "miss"  # closes beside the object and continues with an empty gripper; skips a lane of the board
    DROP = "drop"  # opens on the way and continues empty; lifts the eraser and continues in the air
    WRONG = "wrong"  # takes another object
    STOP = "stop"  # stops half way and stays still for two seconds


class ExpertStage(StrEnum):
    """Stages of a demonstration."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    FOLD = "fold"
    WIPE = "wipe"
    LOWER = "lower"
    RELEASE = "release"
    RETREAT = "retreat"
    HOME = "home"
    DONE = "done"


def choose_failure(seed: int, failure_rate: float, kinds: Sequence[str] = tuple(Failure)) -> Failure:
    """Draws a failure: none with probability 1 - `failure_rate`, otherwise one of `kinds`, uniformly.

    Raises:
        UsageError: `failure_rate` is not a probability.
    """
    if not 0.0 <= failure_rate <= 1.0:
        raise UsageError(f"failure_rate is {failure_rate}; it is a probability, 0 to 1")
    rng = np.random.default_rng([seed, 3])
    if rng.random() >= failure_rate:
        return Failure.NONE
    failures = [kind for kind in Failure if kind in kinds and kind is not Failure.NONE]
    return failures[int(rng.integers(len(failures)))]


@dataclass(frozen=True, eq=False)
class ExpertObservation:
    """The expert's input in one control step."""

    tcp_m: np.ndarray  # (3,) measured position of the fingertips
    gripper_m: float  # measured opening
    commanded_gripper_m: float  # last commanded opening
    facts: SceneFacts


@dataclass(frozen=True)
class Pace:
    """Random values that are drawn once per demonstration, the same way for every task.

    Attributes:
        stride_m: largest distance of a target ahead of the measured fingertips.
        hover_m: height of the fingertips above the grasp before the descent.
        drop_fraction: fraction of the way after which a drop happens.
        stop_step: latest control step of a stop.
        home_steps: number of control steps for the return home.
    """

    stride_m: float
    hover_m: float
    drop_fraction: float
    stop_step: int
    home_steps: int


def draw_pace(rng: np.random.Generator) -> Pace:
    """Draws a pace. Do not reorder the draws: the same seed must give the same demonstration."""
    return Pace(
        stride_m=float(rng.uniform(0.030, 0.040)),
        hover_m=HOVER_M + float(rng.uniform(-0.01, 0.01)),
        drop_fraction=float(rng.uniform(0.05, 0.40)),
        stop_step=int(rng.integers(10, 41)),
        home_steps=int(rng.integers(5, 9)),
    )


class Script(ABC):
    """One demonstration of one task as a state machine over stages.

    `next_stage` decides when a stage ends and `goal` gives its target position.

    Attributes:
        stages: the script's stages in order; the last one is DONE.
        longest_steps: number of control steps after which the script gives up.
        low_m: height error of the fingertips at which they close [m].
        stage: the current stage.
        anchor_m: (3,) position of the fingertips at the start of the current stage.
        stage_steps: number of control steps since the start of the current stage.
    """

    stages: ClassVar[tuple[ExpertStage, ...]]
    longest_steps: ClassVar[int] = 140
    low_m: ClassVar[float] = ARRIVED_M

    def __init__(
        self, sim: CellSim, layout: Layout, failure: Failure, strategy: str, home_m: np.ndarray, seed: int
    ) -> None:
        """Plans a demonstration of `layout`. Raises UsageError if the layout does not allow `failure`."""
        self.sim, self.failure, self.strategy, self.home_m = sim, failure, strategy, home_m
        self.open_m = sim.hardware.limits.gripper_max_m
        self.stage = self.stages[0]
        self.anchor_m = sim.facts().tcp_m
        self.stage_steps = 0
        self.dropped = False
        rng = np.random.default_rng([seed, 4])
        self.plan(layout, rng)
        self.pace = draw_pace(rng)

    @abstractmethod
    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Draws the values besides the pace that vary between demonstrations of one layout."""

    @abstractmethod
    def next_stage(self, observation: ExpertObservation) -> ExpertStage:
        """Returns the stage that fits `observation`: the current stage if it is not finished."""

    @abstractmethod
    def goal(self, observation: ExpertObservation) -> np.ndarray:
        """Returns the target of the fingertips in this stage, (3,) [m]."""

    @abstractmethod
    def opening_m(self) -> float:
        """Returns the target opening of the fingers in this stage."""

    @abstractmethod
    def should_drop(self, observation: ExpertObservation) -> bool:
        """Returns True if a drop is due. Called in every step until the drop happens."""

    @abstractmethod
    def must_stop(self, observation: ExpertObservation) -> bool:
        """Returns True if a stop must happen now because the task is almost done."""

    def advance(self, observation: ExpertObservation) -> None:
        """Updates the stage, and marks the drop of a `Failure.DROP` demonstration when it is due."""
        stage = self.next_stage(observation)
        if stage is not self.stage:
            self.stage, self.anchor_m, self.stage_steps = stage, observation.tcp_m.copy(), 0
        if self.failure is Failure.DROP and not self.dropped:
            self.dropped = self.should_drop(observation)
        self.stage_steps += 1

    @property
    def retries(self) -> bool:
        """Whether the expert retries after a slip. It does not if the slip is intended."""
        return self.failure is not Failure.MISS and not self.dropped

    def successor(self) -> ExpertStage:
        """Returns the stage after the current one."""
        return self.stages[min(self.stages.index(self.stage) + 1, len(self.stages) - 1)]

    def is_home(self) -> bool:
        """Returns True if the return home has taken long enough. A success also waits for its verdict."""
        awaits_verdict = self.failure is Failure.NONE and not self.sim.succeeded()
        return self.stage_steps >= self.pace.home_steps and not awaits_verdict

    # --- the grasp, the same for every object ---------------------------------------------------------------------

    def reached(self, observation: ExpertObservation, grasp: np.ndarray) -> ExpertStage | bool:
        """Returns whether APPROACH, DESCEND or CLOSE onto `grasp` (3,) is finished, or the stage to go back to."""
        offset_m = float(np.linalg.norm(observation.tcp_m[:2] - grasp[:2]))
        if self.stage is ExpertStage.APPROACH:
            return offset_m < ALIGNED_M and bool(observation.tcp_m[2] > grasp[2] + self.pace.hover_m - 0.03)
        if self.stage is ExpertStage.CLOSE:
            return self.stage_steps >= CLOSE_STEPS
        if offset_m > ASTRAY_M and observation.tcp_m[2] > grasp[2] + 0.03:
            return ExpertStage.APPROACH
        low = abs(observation.tcp_m[2] - grasp[2]) < self.low_m
        return bool(low and (offset_m < ALIGNED_M or self.stage_steps > PATIENCE_STEPS))

    def towards(self, observation: ExpertObservation, grasp: np.ndarray) -> np.ndarray:
        """Returns the target position in APPROACH, DESCEND or CLOSE onto `grasp` (3,)."""
        if self.stage is ExpertStage.APPROACH:
            return grasp + np.array([0.0, 0.0, self.pace.hover_m])
        if self.stage is ExpertStage.CLOSE:
            return self.anchor_m
        offset_m = np.linalg.norm(observation.tcp_m[:2] - grasp[:2])
        # Wait above the object if the fingers are off to a side. Otherwise they would come down on top of it.
        wait = offset_m > 1.5 * ALIGNED_M and observation.tcp_m[2] > grasp[2] + 0.03
        return np.append(grasp[:2], observation.tcp_m[2] if wait else grasp[2])
