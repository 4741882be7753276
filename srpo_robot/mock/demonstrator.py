"""A scripted expert with privileged sight of the mock cell, which succeeds, retries, or fails on purpose.

It plans anew from the measured TCP at every control step, so its actions say how to come back from wherever the
disturbance took the arm. Phases say what it is after, `_after` when the next one begins, `_goal` where to go in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import TCP_NAMES
from srpo_robot.errors import UsageError
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.objects import PLATE_TOP_M, THINGS
from srpo_robot.mock.tasks import Layout, SceneFacts, on_plate
from srpo_robot.records import ActionChunk, Observation

_HOVER_M = 0.090  # fingertips above the grasp before the descent: clears what stands beside the object
_CARRY_M = 0.130  # height of the fingertips while carrying
_ALIGNED_M = 0.010  # horizontal error at which the descent goes on and the fingers close
_ASTRAY_M = 0.020  # horizontal error at which the descent is broken off
_ARRIVED_M = 0.010
_CLOSE_STEPS = 4
_OPEN_STEPS = 3
_PATIENCE_STEPS = 12  # at the object without being aligned: close anyway, and find out
_STILL_STEPS = 20  # frozen tail of a stop
_LONGEST_STEPS = 140  # gives up
_DROP_CLEAR_M = 0.24  # of the plate's centre: an apple let go on the way flies and rolls on for up to 0.2 m


class Failure(StrEnum):
    """What a demonstration gets wrong on purpose."""

    NONE = "none"
    MISS = "miss"  # closes beside the object, goes on with an empty gripper
    DROP = "drop"  # opens on the way to the plate, goes on empty
    WRONG = "wrong"  # puts another object on the plate
    STOP = "stop"  # stops half way and stays still for two seconds


class Phase(StrEnum):
    """What the expert is doing."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"
    RETREAT = "retreat"
    HOME = "home"
    DONE = "done"


_NEXT = dict(zip(list(Phase), list(Phase)[1:], strict=False))
_HOLDING = (Phase.CLOSE, Phase.LIFT, Phase.CARRY, Phase.LOWER)


def choose_failure(seed: int, failure_rate: float) -> Failure:
    """The failure for a demonstration: none with probability 1 - `failure_rate`, else one of the four kinds alike.

    Raises:
        UsageError: `failure_rate` is not a probability.
    """
    if not 0.0 <= failure_rate <= 1.0:
        raise UsageError(f"failure_rate is {failure_rate}; it is a probability, 0 to 1")
    rng = np.random.default_rng([seed, 3])
    if rng.random() >= failure_rate:
        return Failure.NONE
    kinds = [kind for kind in Failure if kind is not Failure.NONE]
    return kinds[int(rng.integers(len(kinds)))]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is drawn once per demonstration."""

    failure: Failure
    name: str  # the object it picks
    aim_m: np.ndarray  # (2,) offset of the grasp from the object; not zero for a miss
    stride_m: float  # how far ahead of the measured TCP a target lies at most
    hover_m: float
    drop_share: float  # of the way to the plate, where a drop opens the gripper
    stop_step: int  # when a stop comes at the latest
    home_steps: int


@dataclass(frozen=True, eq=False)
class _View:
    """What the expert looks at in one step: measured fingertips (3,) [m], opening measured and asked [m], the scene."""

    tcp_m: np.ndarray
    gripper_m: float
    asked_m: float
    facts: SceneFacts


class Demonstrator:
    """The scripted expert. A policy like any other, but it reads the simulator: for demonstrations only."""

    name = "demonstrator"

    def __init__(self, sim: CellSim, failure_rate: float = 0.0) -> None:
        """`failure_rate`: share of demonstrations that fail on purpose, where `reset` is not told which."""
        self.sim = sim
        self.failure_rate = failure_rate
        self.failure = Failure.NONE  # of the demonstration under way
        self.phase = Phase.DONE
        self._offset_m = np.array(sim.hardware.tcp_offset_m)
        self._home_m = kinematics.tcp_position(np.array(sim.hardware.home_rad), self._offset_m)
        self._open_m = sim.hardware.limits.gripper_max_m
        self._open_step_m = sim.hardware.limits.max_gripper_speed_m_s / sim.hardware.fps

    def reset(self, seed: int, failure: Failure | None = None) -> None:
        """Plan a demonstration of the layout that the cell has now; `failure` None draws it by `failure_rate`.

        Raises:
            UsageError: the cell has no layout yet, or nothing but the target for a `wrong`.
        """
        if self.sim.layout is None:
            raise UsageError("the cell has no layout yet; reset the workcell before the demonstrator")
        self.failure = choose_failure(seed, self.failure_rate) if failure is None else failure
        self.sim.intent = self.failure.value
        self._plan = _draw_plan(self.sim.layout, self.failure, np.random.default_rng([seed, 4]))
        self.phase = Phase.APPROACH
        self._anchor_m = self.sim.facts().tcp_m  # where the present phase began
        self._steps = 0
        self._phase_steps = 0
        self._dropped = False
        self._still: np.ndarray | None = None  # the action repeated in the tail of a stop
        self._still_steps = 0

    def act(self, observation: Observation) -> ActionChunk | None:
        """The next TCP target [m] and opening [m], one row; None when the demonstration is over."""
        tcp = kinematics.tcp_position(observation.state.joints_rad, self._offset_m)
        view = _View(tcp, observation.state.gripper_m, observation.commanded.gripper_m, self.sim.facts())
        self._advance(view)
        self._steps += 1
        self._phase_steps += 1
        if self._is_stopping():
            return self._stay(view)
        if self.phase is Phase.DONE or self._steps > _LONGEST_STEPS:
            return None
        return ActionChunk(self._action(view)[None], TCP_NAMES)

    # --- what comes next ------------------------------------------------------------------------------------------

    def _advance(self, view: _View) -> None:
        following = self._after(view)
        if following is not self.phase:
            self.phase, self._anchor_m, self._phase_steps = following, view.tcp_m.copy(), 0
        if self.failure is Failure.DROP and self.phase is Phase.CARRY and not self._dropped:
            left = float(np.linalg.norm(view.tcp_m[:2] - view.facts.plate_m))
            whole = float(np.linalg.norm(self._anchor_m[:2] - view.facts.plate_m))
            self._dropped = left < max(_DROP_CLEAR_M, (1.0 - self._plan.drop_share) * whole)

    def _after(self, view: _View) -> Phase:
        """The phase that fits what is seen now; the present one where it is not finished."""
        grasp = self._grasp(view)
        off = float(np.linalg.norm(view.tcp_m[:2] - grasp[:2]))
        match self.phase:
            case Phase.APPROACH:
                above = view.tcp_m[2] > grasp[2] + self._plan.hover_m - 0.03
                finished = off < _ALIGNED_M and above
            case Phase.DESCEND:
                if off > _ASTRAY_M and view.tcp_m[2] > grasp[2] + 0.03:
                    return Phase.APPROACH
                low = abs(view.tcp_m[2] - grasp[2]) < _ARRIVED_M
                finished = low and (off < _ALIGNED_M or self._phase_steps > _PATIENCE_STEPS)
            case Phase.CLOSE:
                finished = self._phase_steps >= _CLOSE_STEPS
            case Phase.LIFT:
                finished = view.tcp_m[2] > _CARRY_M - 0.03
            case Phase.CARRY:
                finished = float(np.linalg.norm(view.tcp_m[:2] - view.facts.plate_m)) < 0.02
            case Phase.LOWER:
                finished = view.tcp_m[2] < self._release_height() + _ARRIVED_M
            case Phase.RELEASE:
                finished = self._phase_steps >= _OPEN_STEPS
            case Phase.RETREAT:
                finished = view.tcp_m[2] > self._anchor_m[2] + 0.08
                if finished and self._cares() and not on_plate(view.facts, self._plan.name):
                    return Phase.APPROACH
            case _:
                awaits_verdict = self.failure is Failure.NONE and not self.sim.succeeded()
                finished = self._phase_steps >= self._plan.home_steps and not awaits_verdict
        if self._cares() and self._lost(view, finished):
            return Phase.APPROACH
        return _NEXT.get(self.phase, Phase.DONE) if finished else self.phase

    def _cares(self) -> bool:
        """Whether a slip is unintended, so that it tries again."""
        return self.failure is not Failure.MISS and not self._dropped

    def _lost(self, view: _View, finished: bool) -> bool:
        """Whether the object should be between the fingers but is not; while they close, judged at the end."""
        if self.phase not in _HOLDING or (self.phase is Phase.CLOSE and not finished):
            return False
        thing = THINGS[self._plan.name]
        apart = np.linalg.norm(view.tcp_m - self._grasp(view))
        return bool(apart > 0.035 or view.gripper_m < thing.width_m / 2.0)

    # --- where to go ----------------------------------------------------------------------------------------------

    def _action(self, view: _View) -> np.ndarray:
        """Target and opening, (4,): the goal of the phase, at most a stride ahead of the measured fingertips."""
        way = self._goal(view) - view.tcp_m
        length = float(np.linalg.norm(way))
        target = view.tcp_m + way * min(1.0, self._plan.stride_m / max(length, 1e-9))
        closed = self.phase in _HOLDING and not self._dropped
        change = (0.0 if closed else self._open_m) - view.asked_m
        return np.append(target, view.asked_m + np.clip(change, -self._open_step_m, self._open_step_m))

    def _goal(self, view: _View) -> np.ndarray:
        """Where the fingertips should be in this phase, (3,) [m]."""
        grasp, plate = self._grasp(view), view.facts.plate_m
        match self.phase:
            case Phase.APPROACH:
                return grasp + np.array([0.0, 0.0, self._plan.hover_m])
            case Phase.DESCEND:
                off = np.linalg.norm(view.tcp_m[:2] - grasp[:2])
                # Off to a side it waits above the object, or the fingers would come down on top of it.
                wait = off > 1.5 * _ALIGNED_M and view.tcp_m[2] > grasp[2] + 0.03
                return np.append(grasp[:2], view.tcp_m[2] if wait else grasp[2])
            case Phase.CLOSE | Phase.RELEASE:
                return self._anchor_m
            case Phase.LIFT:
                return np.append(self._anchor_m[:2], _CARRY_M)
            case Phase.CARRY:
                return np.append(plate, _CARRY_M)
            case Phase.LOWER:
                return np.append(plate, self._release_height())
            case Phase.RETREAT:
                return self._anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self._home_m

    def _grasp(self, view: _View) -> np.ndarray:
        """Where the fingertips close, (3,) [m]: on the object, or beside it for a miss."""
        return view.facts.objects_m[self._plan.name] + [*self._plan.aim_m, THINGS[self._plan.name].grasp_m]

    def _release_height(self) -> float:
        thing = THINGS[self._plan.name]
        return PLATE_TOP_M + thing.rest_m + thing.grasp_m + 0.004

    # --- the tail of a stop ---------------------------------------------------------------------------------------

    def _is_stopping(self) -> bool:
        due = self._steps >= self._plan.stop_step or self.phase is Phase.LOWER
        return self.failure is Failure.STOP and (due or self._still is not None)

    def _stay(self, view: _View) -> ActionChunk | None:
        if self._still is None:
            opening = self._action(view)[3]
            self._still = np.append(view.tcp_m, opening)
        self._still_steps += 1
        return ActionChunk(self._still[None], TCP_NAMES) if self._still_steps <= _STILL_STEPS else None


def _draw_plan(layout: Layout, failure: Failure, rng: np.random.Generator) -> _Plan:
    """Draw what varies between demonstrations of one layout."""
    name, aim = layout.target, np.zeros(2)
    if failure is Failure.WRONG:
        others = [item.name for item in layout.objects if item.name != layout.target]
        if not others:
            raise UsageError(f"{layout.task}: there is no other object to pick for a 'wrong' demonstration")
        name = others[int(rng.integers(len(others)))]
    if failure is Failure.MISS:
        aim = _beside(layout, rng)
    return _Plan(
        failure=failure,
        name=name,
        aim_m=aim,
        stride_m=float(rng.uniform(0.030, 0.040)),
        hover_m=_HOVER_M + float(rng.uniform(-0.01, 0.01)),
        drop_share=float(rng.uniform(0.05, 0.40)),
        stop_step=int(rng.integers(10, 41)),
        home_steps=int(rng.integers(5, 9)),
    )


def _beside(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Offset of a grasp that closes in front of or behind the target, (2,) [m], as far from the others as it can be.

    Along x, because the fingers stand apart along y: there one of them would push the target.
    """
    spots = {item.name: np.array([item.x_m, item.y_m]) for item in layout.objects}
    others = np.array([spot for name, spot in spots.items() if name != layout.target]).reshape(-1, 2)
    along_x = rng.choice([-1.0, 1.0], 16) * rng.uniform(0.050, 0.070, 16)
    offsets = np.stack([along_x, rng.uniform(-0.02, 0.02, 16)], axis=1)
    room = np.linalg.norm(spots[layout.target] + offsets[:, None] - others, axis=-1).min(axis=1, initial=1.0)
    return offsets[int(np.argmax(room))]
