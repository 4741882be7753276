"""The expert that carries an object to where it belongs."""

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
_DETOUR_M = np.array([-0.090, 0.0, 0.080])  # "around" carries over here, from the middle of the way
_PASSED_M = 0.030


class Put(Script):
    """Grasp, lift, carry, lower, let go. Strategies: "direct", or "around" in a high arc on the arm's side."""

    order = (
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
        """Which object, and where a miss closes."""
        self._name, self._aim_m = layout.target, np.zeros(3)
        if self.failure is Failure.WRONG:
            others = [item.name for item in layout.objects if item.name != layout.target]
            if not others:
                raise UsageError(f"{layout.task}: there is no other object to pick for a 'wrong' demonstration")
            self._name = others[int(rng.integers(len(others)))]
        if self.failure is Failure.MISS:
            self._aim_m = _above(rng) if self._name in CARDS else np.append(_beside(layout, rng), 0.0)
        self._around = self.strategy == "around"

    def after(self, view: ExpertObservation) -> ExpertStage:
        """See `Script.after`."""
        match self.phase:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                finished = self.reached(view, self._grasp(view))
            case ExpertStage.LIFT:
                finished = view.tcp_m[2] > self._thing.carry_m - 0.03
            case ExpertStage.CARRY:
                self._around = self._around and np.linalg.norm(view.tcp_m - self._detour(view)) > _PASSED_M
                finished = float(np.linalg.norm(view.tcp_m[:2] - view.facts.plate_m)) < 0.02
            case ExpertStage.LOWER:
                finished = view.tcp_m[2] < self._release_height() + ARRIVED_M
            case ExpertStage.RELEASE:
                finished = self.phase_steps >= OPEN_STEPS
            case ExpertStage.RETREAT:
                finished = view.tcp_m[2] > self.anchor_m[2] + 0.08
                if finished and self.cares and not self.sim.task.placed(view.facts, self._name):
                    return ExpertStage.APPROACH
            case _:
                finished = self.is_home()
        if isinstance(finished, ExpertStage):
            return finished
        if self.cares and self._lost(view, bool(finished)):
            return ExpertStage.APPROACH
        return self.following() if finished else self.phase

    def goal(self, view: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        plate = view.facts.plate_m
        match self.phase:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                return self.towards(view, self._grasp(view))
            case ExpertStage.RELEASE:
                return self.anchor_m
            case ExpertStage.LIFT:
                return np.append(self.anchor_m[:2], self._thing.carry_m)
            case ExpertStage.CARRY:
                return self._detour(view) if self._around else np.append(plate, self._thing.carry_m)
            case ExpertStage.LOWER:
                return np.append(plate, self._release_height())
            case ExpertStage.RETREAT:
                return self.anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self.home_m

    def opening_m(self) -> float:
        """See `Script.opening_m`."""
        return 0.0 if self.phase in _HOLDING and not self.dropped else self.open_m

    def drops_now(self, view: ExpertObservation) -> bool:
        """On the way to the plate, but not so near that the object comes to rest on it."""
        if self.phase is not ExpertStage.CARRY:
            return False
        left = float(np.linalg.norm(view.tcp_m[:2] - view.facts.plate_m))
        whole = float(np.linalg.norm(self.anchor_m[:2] - view.facts.plate_m))
        return left < max(self._thing.spread_m, (1.0 - self.pace.drop_share) * whole)

    def last_chance(self, view: ExpertObservation) -> bool:
        """See `Script.last_chance`."""
        return self.phase is ExpertStage.LOWER

    @property
    def _thing(self) -> Thing:
        return THINGS[self._name]

    def _lost(self, view: ExpertObservation, finished: bool) -> bool:
        """Whether the object should be between the fingers but is not; while they close, judged at the end."""
        if self.phase not in _HOLDING or (self.phase is ExpertStage.CLOSE and not finished):
            return False
        apart = np.linalg.norm(view.tcp_m - self._grasp(view))
        return bool(apart > LOST_M or view.gripper_m < self._thing.width_m / 2.0)

    def _grasp(self, view: ExpertObservation) -> np.ndarray:
        """Where the fingertips close, (3,) [m]: on the object, or beside it for a miss."""
        aim = self._aim_m
        return view.facts.objects_m[self._name] + [aim[0], aim[1], self._thing.grasp_m + aim[2]]

    def _detour(self, view: ExpertObservation) -> np.ndarray:
        way = (self.anchor_m[:2] + view.facts.plate_m) / 2.0
        return np.append(way, self._thing.carry_m) + _DETOUR_M

    def _release_height(self) -> float:
        return PLATE_TOP_M + self._thing.rest_m + self._thing.grasp_m + 0.004


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


def _above(rng: np.random.Generator) -> np.ndarray:
    """Offset of a grasp that closes over a card's upper edge, (3,) [m]: beside it stand others."""
    return np.array([0.0, 0.0, float(rng.uniform(0.050, 0.070))])
