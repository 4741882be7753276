"""What every script of the expert shares: phases, a pace, and what it may get wrong on purpose."""

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

HOVER_M = 0.090  # fingertips above the grasp before the descent: clears what stands beside the object
ALIGNED_M = 0.010  # horizontal error at which the descent goes on and the fingers close
ASTRAY_M = 0.020  # horizontal error at which the descent is broken off
ARRIVED_M = 0.010
CLOSE_STEPS = 4
OPEN_STEPS = 3
PATIENCE_STEPS = 12  # at the object without being aligned: close anyway, and find out
LOST_M = 0.035  # from the fingertips to what should be between them


class Failure(StrEnum):
    """What a demonstration gets wrong on purpose; `tasks.Task.failures` says which of them a task has."""

    NONE = "none"
    MISS = "miss"  # closes beside the object and goes on with an empty gripper; leaves out a lane of the board
    DROP = "drop"  # opens on the way and goes on empty; lifts the eraser and goes on in the air
    WRONG = "wrong"  # takes another object
    STOP = "stop"  # stops half way and stays still for two seconds


class ExpertStage(StrEnum):
    """What the expert is doing."""

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
    """The failure for a demonstration: none with probability 1 - `failure_rate`, else one of `kinds` alike.

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
    """What the expert looks at in one step: measured fingertips (3,) [m], opening measured and asked [m], the scene."""

    tcp_m: np.ndarray
    gripper_m: float
    asked_m: float
    facts: SceneFacts


@dataclass(frozen=True)
class Pace:
    """What is drawn once per demonstration, whatever the task.

    Attributes:
        stride_m: how far ahead of the measured fingertips a target lies at most.
        hover_m: fingertips above the grasp before the descent.
        drop_share: of the way, where a drop comes.
        stop_step: when a stop comes at the latest.
        home_steps: control steps of the way home.
    """

    stride_m: float
    hover_m: float
    drop_share: float
    stop_step: int
    home_steps: int


def draw_pace(rng: np.random.Generator) -> Pace:
    """A pace; the order of the draws is part of what a seed means."""
    return Pace(
        stride_m=float(rng.uniform(0.030, 0.040)),
        hover_m=HOVER_M + float(rng.uniform(-0.01, 0.01)),
        drop_share=float(rng.uniform(0.05, 0.40)),
        stop_step=int(rng.integers(10, 41)),
        home_steps=int(rng.integers(5, 9)),
    )


class Script(ABC):
    """How one demonstration of one task goes: `phase` is what it is after, `after` when the next begins, `goal` where.

    Attributes:
        order: its phases, the last of them DONE.
        longest_steps: control steps after which it gives up.
        low_m: error of the fingertips' height at which they close [m].
        phase: the present one.
        anchor_m: (3,) where the fingertips were when it began.
        phase_steps: control steps since then.
    """

    order: ClassVar[tuple[ExpertStage, ...]]
    longest_steps: ClassVar[int] = 140
    low_m: ClassVar[float] = ARRIVED_M

    def __init__(
        self, sim: CellSim, layout: Layout, failure: Failure, strategy: str, home_m: np.ndarray, seed: int
    ) -> None:
        """Plan a demonstration of `layout`. Raises UsageError where the layout leaves no way for `failure`."""
        self.sim, self.failure, self.strategy, self.home_m = sim, failure, strategy, home_m
        self.open_m = sim.hardware.limits.gripper_max_m
        self.phase = self.order[0]
        self.anchor_m = sim.facts().tcp_m
        self.phase_steps = 0
        self.dropped = False
        rng = np.random.default_rng([seed, 4])
        self.plan(layout, rng)
        self.pace = draw_pace(rng)

    @abstractmethod
    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Draw what varies between demonstrations of one layout, beside the pace."""

    @abstractmethod
    def after(self, view: ExpertObservation) -> ExpertStage:
        """The phase that fits what is seen now; the present one where it is not finished."""

    @abstractmethod
    def goal(self, view: ExpertObservation) -> np.ndarray:
        """Where the fingertips should be in this phase, (3,) [m]."""

    @abstractmethod
    def opening_m(self) -> float:
        """How far the fingers should be open in this phase."""

    @abstractmethod
    def drops_now(self, view: ExpertObservation) -> bool:
        """Whether a drop is due; asked until it comes."""

    @abstractmethod
    def last_chance(self, view: ExpertObservation) -> bool:
        """Whether a stop must come now, because the task would be done soon."""

    def advance(self, view: ExpertObservation) -> None:
        """Go on to the phase that fits, and let go where that is meant to go wrong."""
        following = self.after(view)
        if following is not self.phase:
            self.phase, self.anchor_m, self.phase_steps = following, view.tcp_m.copy(), 0
        if self.failure is Failure.DROP and not self.dropped:
            self.dropped = self.drops_now(view)
        self.phase_steps += 1

    @property
    def cares(self) -> bool:
        """Whether a slip is unintended, so that it tries again."""
        return self.failure is not Failure.MISS and not self.dropped

    def following(self) -> ExpertStage:
        """The phase after the present one."""
        return self.order[min(self.order.index(self.phase) + 1, len(self.order) - 1)]

    def is_home(self) -> bool:
        """Whether the way home has taken long enough; a success waits for its verdict."""
        awaits_verdict = self.failure is Failure.NONE and not self.sim.succeeded()
        return self.phase_steps >= self.pace.home_steps and not awaits_verdict

    # --- taking hold of something, the same for all that is grasped ----------------------------------------------

    def reached(self, view: ExpertObservation, grasp: np.ndarray) -> ExpertStage | bool:
        """Whether APPROACH, DESCEND or CLOSE onto `grasp` (3,) is finished; or the phase to go back to."""
        off = float(np.linalg.norm(view.tcp_m[:2] - grasp[:2]))
        if self.phase is ExpertStage.APPROACH:
            return off < ALIGNED_M and bool(view.tcp_m[2] > grasp[2] + self.pace.hover_m - 0.03)
        if self.phase is ExpertStage.CLOSE:
            return self.phase_steps >= CLOSE_STEPS
        if off > ASTRAY_M and view.tcp_m[2] > grasp[2] + 0.03:
            return ExpertStage.APPROACH
        low = abs(view.tcp_m[2] - grasp[2]) < self.low_m
        return bool(low and (off < ALIGNED_M or self.phase_steps > PATIENCE_STEPS))

    def towards(self, view: ExpertObservation, grasp: np.ndarray) -> np.ndarray:
        """Where to go in APPROACH, DESCEND or CLOSE onto `grasp` (3,)."""
        if self.phase is ExpertStage.APPROACH:
            return grasp + np.array([0.0, 0.0, self.pace.hover_m])
        if self.phase is ExpertStage.CLOSE:
            return self.anchor_m
        off = np.linalg.norm(view.tcp_m[:2] - grasp[:2])
        # Off to a side it waits above the object, or the fingers would come down on top of it.
        wait = off > 1.5 * ALIGNED_M and view.tcp_m[2] > grasp[2] + 0.03
        return np.append(grasp[:2], view.tcp_m[2] if wait else grasp[2])
