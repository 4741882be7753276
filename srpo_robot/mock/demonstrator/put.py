"""The expert that carries an object to the plate or tray."""

from __future__ import annotations

import numpy as np

from srpo_robot.errors import UsageError
from srpo_robot.mock.demonstrator.base import (
    ARRIVED_M,
    LOST_M,
    OPEN_STEPS,
    ExpertObservation,
    ExpertStage,
    Failure,
    Script,
)
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import CARDS, PLATE_TOP_M, THINGS, Thing

_HOLDING = (ExpertStage.CLOSE, ExpertStage.LIFT, ExpertStage.CARRY, ExpertStage.LOWER)
_DETOUR_M = np.array([-0.090, 0.0, 0.080])  # via point of "around", relative to the middle of the way
_PASSED_M = 0.030  # distance at which the via point counts as passed


class Put(Script):
    """Grasps, lifts, carries, lowers and releases an object.

    Strategies: "direct", or "around" in a high arc on the arm's side.
    """

    stages = (
        *(
            ExpertStage.APPROACH,
            ExpertStage.DESCEND,
            ExpertStage.CLOSE,
            ExpertStage.LIFT,
            ExpertStage.CARRY,
            ExpertStage.LOWER,
        ),
        *(ExpertStage.RELEASE, ExpertStage.RETREAT, ExpertStage.HOME, ExpertStage.DONE),
    )

    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Draws the object, and the grasp offset of a miss."""
        self._name, self._aim_m = layout.target, np.zeros(3)
        if self.failure is Failure.WRONG:
            others = [item.name for item in layout.objects if item.name != layout.target]
            if not others:
                raise UsageError(f"{layout.task}: there is no other object to pick for a 'wrong' demonstration")
            self._name = others[int(rng.integers(len(others)))]
        if self.failure is Failure.MISS:
            self._aim_m = _above(rng) if self._name in CARDS else np.append(_beside(layout, rng), 0.0)
        self._detours = self.strategy == "around"

    def next_stage(self, observation: ExpertObservation) -> ExpertStage:
        """See `Script.next_stage`."""
        match self.stage:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                finished = self.reached(observation, self._grasp(observation))
            case ExpertStage.LIFT:
                finished = observation.tcp_m[2] > self._thing.carry_m - 0.03
            case ExpertStage.CARRY:
                self._detours = (
                    self._detours and np.linalg.norm(observation.tcp_m - self._detour(observation)) > _PASSED_M
                )
                finished = float(np.linalg.norm(observation.tcp_m[:2] - observation.facts.plate_m)) < 0.02
            case ExpertStage.LOWER:
                finished = observation.tcp_m[2] < self._release_height() + ARRIVED_M
            case ExpertStage.RELEASE:
                finished = self.stage_steps >= OPEN_STEPS
            case ExpertStage.RETREAT:
                finished = observation.tcp_m[2] > self.anchor_m[2] + 0.08
                if finished and self.retries and not self.sim.task.placed(observation.facts, self._name):
                    return ExpertStage.APPROACH
            case _:
                finished = self.is_home()
        if isinstance(finished, ExpertStage):
            return finished
        if self.retries and self._has_slipped(observation, bool(finished)):
            return ExpertStage.APPROACH
        return self.successor() if finished else self.stage

    def goal(self, observation: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        plate = observation.facts.plate_m
        match self.stage:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                return self.towards(observation, self._grasp(observation))
            case ExpertStage.RELEASE:
                return self.anchor_m
            case ExpertStage.LIFT:
                return np.append(self.anchor_m[:2], self._thing.carry_m)
            case ExpertStage.CARRY:
                return self._detour(observation) if self._detours else np.append(plate, self._thing.carry_m)
            case ExpertStage.LOWER:
                return np.append(plate, self._release_height())
            case ExpertStage.RETREAT:
                return self.anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self.home_m

    def opening_m(self) -> float:
        """See `Script.opening_m`."""
        return 0.0 if self.stage in _HOLDING and not self.dropped else self.open_m

    def should_drop(self, observation: ExpertObservation) -> bool:
        """Returns True on the way to the plate, but only so far away that the object does not come to rest on it."""
        if self.stage is not ExpertStage.CARRY:
            return False
        remaining = float(np.linalg.norm(observation.tcp_m[:2] - observation.facts.plate_m))
        whole = float(np.linalg.norm(self.anchor_m[:2] - observation.facts.plate_m))
        return remaining < max(self._thing.spread_m, (1.0 - self.pace.drop_fraction) * whole)

    def must_stop(self, observation: ExpertObservation) -> bool:
        """See `Script.must_stop`."""
        return self.stage is ExpertStage.LOWER

    @property
    def _thing(self) -> Thing:
        return THINGS[self._name]

    def _has_slipped(self, observation: ExpertObservation, finished: bool) -> bool:
        """Returns True if the fingers should hold the object but do not. CLOSE is judged only at its end."""
        if self.stage not in _HOLDING or (self.stage is ExpertStage.CLOSE and not finished):
            return False
        distance = np.linalg.norm(observation.tcp_m - self._grasp(observation))
        return bool(distance > LOST_M or observation.gripper_m < self._thing.width_m / 2.0)

    def _grasp(self, observation: ExpertObservation) -> np.ndarray:
        """Returns the position at which the fingertips close, (3,) [m]: on the object, or beside it for a miss."""
        aim = self._aim_m
        return observation.facts.objects_m[self._name] + [aim[0], aim[1], self._thing.grasp_m + aim[2]]

    def _detour(self, observation: ExpertObservation) -> np.ndarray:
        midpoint = (self.anchor_m[:2] + observation.facts.plate_m) / 2.0
        return np.append(midpoint, self._thing.carry_m) + _DETOUR_M

    def _release_height(self) -> float:
        return PLATE_TOP_M + self._thing.rest_m + self._thing.grasp_m + 0.004


def _beside(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Draws the offset of a grasp in front of or behind the target, (2,) [m]: the candidate farthest from the others.

    The offset is along x because the fingers are apart along y. With an offset along y, one of them would push the
    target.
    """
    spots = {item.name: np.array([item.x_m, item.y_m]) for item in layout.objects}
    others = np.array([spot for name, spot in spots.items() if name != layout.target]).reshape(-1, 2)
    along_x = rng.choice([-1.0, 1.0], 16) * rng.uniform(0.050, 0.070, 16)
    offsets = np.stack([along_x, rng.uniform(-0.02, 0.02, 16)], axis=1)
    room = np.linalg.norm(spots[layout.target] + offsets[:, None] - others, axis=-1).min(axis=1, initial=1.0)
    return offsets[int(np.argmax(room))]


def _above(rng: np.random.Generator) -> np.ndarray:
    """Draws the offset of a grasp above a card's upper edge, (3,) [m]. Other cards stand beside it."""
    return np.array([0.0, 0.0, float(rng.uniform(0.050, 0.070))])
