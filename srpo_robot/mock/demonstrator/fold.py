"""The expert that folds a towel."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.demonstrator.base import LOST_M, OPEN_STEPS, ExpertObservation, ExpertStage, Failure, Script
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import FOLD_M, FOLDED_RAD, HEM_M
from srpo_robot.mock.tasks.fold import FLAT_RAD

_HOLDING = (ExpertStage.CLOSE, ExpertStage.FOLD)
_AHEAD_RAD = 0.30  # lead of the target over the fingertips along the arc
_LET_GO_RAD = {"lay": FOLDED_RAD - 0.12, "corner": FOLDED_RAD - 0.12, "flip": 1.95}  # by strategy
_BELOW = 0.45  # depth of the fingertips below the hem's middle, in hem thicknesses, so that the hem does not slip out
_SLACK_M = 0.001  # tolerance between the opening of closed fingers and the thickness of the hem
_CLEAR_M = HEM_M + 0.040  # height above which the fingertips clear an upright flap
_CORNER_M = 0.050  # distance of a corner grasp from the hem's middle


class Fold(Script):
    """Pinches the hem, moves it around the fold, and releases it.

    Strategies: "lay" it down, "flip" it past the vertical, or lay it down by a "corner".
    """

    low_m = 0.007
    stages = (
        *(ExpertStage.APPROACH, ExpertStage.DESCEND, ExpertStage.CLOSE, ExpertStage.FOLD),
        *(ExpertStage.RELEASE, ExpertStage.RETREAT, ExpertStage.HOME, ExpertStage.DONE),
    )

    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Draws the grasp point on the hem (or beside it for a miss) and the angle of a drop."""
        cosine, sine = np.cos(layout.plate_yaw_rad), np.sin(layout.plate_yaw_rad)
        self._along = np.array([cosine, sine, 0.0])  # direction of the fold
        self._across = np.array([-sine, cosine, 0.0])  # direction from the fold to the hem of an open towel
        self._fold_m = np.array([*layout.plate_m, FOLD_M])
        spot = float(rng.choice([-_CORNER_M, _CORNER_M])) if self.strategy == "corner" else 0.0
        self._aim_m = self._along * spot
        self._below_m = np.array([0.0, 0.0, _BELOW * self.sim.facts().measurements["hem_m"]])
        if self.failure is Failure.MISS:
            self._aim_m = self._aim_m + self._across * float(rng.uniform(0.075, 0.090))  # on the bare table
        self._drop_rad = float(rng.uniform(0.35, 1.05))  # the flap falls back

    def next_stage(self, observation: ExpertObservation) -> ExpertStage:
        """See `Script.next_stage`."""
        match self.stage:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                finished = self.reached(observation, self._grasp(observation))
            case ExpertStage.FOLD:
                past = np.linalg.norm((observation.tcp_m - self._beyond())[:2]) < 0.03
                finished = past if self.dropped else self._angle(observation) > _LET_GO_RAD[self.strategy]
            case ExpertStage.RELEASE:
                finished = self.stage_steps >= OPEN_STEPS
            case ExpertStage.RETREAT:
                finished = observation.tcp_m[2] > self.anchor_m[2] + 0.08
                if finished and self.retries and observation.facts.measurements["fold_rad"] < FLAT_RAD:
                    return ExpertStage.APPROACH
            case _:
                finished = self.is_home()
        if isinstance(finished, ExpertStage):
            return finished
        if self.retries and self._has_slipped(observation, bool(finished)):
            return ExpertStage.RETREAT
        return self.successor() if finished else self.stage

    def goal(self, observation: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        match self.stage:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                return self.towards(observation, self._grasp(observation))
            case ExpertStage.FOLD if self.dropped:  # up and away first, so that the open fingers do not push the hem
                return self._over(observation)
            case ExpertStage.FOLD:
                angle = min(self._angle(observation) + _AHEAD_RAD, FOLDED_RAD)
                arc = HEM_M * (np.cos(angle) * self._across + [0.0, 0.0, np.sin(angle)])
                along = self._along * (self._aim_m @ self._along)
                return self._fold_m + arc + along - self._below_m
            case ExpertStage.RELEASE:
                return self.anchor_m
            case ExpertStage.RETREAT:
                return self.anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self.home_m

    def opening_m(self) -> float:
        """See `Script.opening_m`."""
        return 0.0 if self.stage in _HOLDING and not self.dropped else self.open_m

    def should_drop(self, observation: ExpertObservation) -> bool:
        """Returns True on the way up, so that the flap falls back."""
        return self.stage is ExpertStage.FOLD and observation.facts.measurements["fold_rad"] > self._drop_rad

    def must_stop(self, observation: ExpertObservation) -> bool:
        """See `Script.must_stop`."""
        return observation.facts.measurements["fold_rad"] > 1.2

    def _over(self, observation: ExpertObservation) -> np.ndarray:
        """Returns the target with an empty gripper: straight up, then over to the other side."""
        high = observation.tcp_m[2] > _CLEAR_M
        return np.append((self._beyond() if high else observation.tcp_m)[:2], _CLEAR_M + 0.03)

    def _beyond(self) -> np.ndarray:
        """Returns the final position of the hem, (3,) [m]."""
        return self._fold_m - HEM_M * self._across

    def _grasp(self, observation: ExpertObservation) -> np.ndarray:
        return observation.facts.objects_m["hem"] + self._aim_m - self._below_m

    def _angle(self, observation: ExpertObservation) -> float:
        """Returns the angle of the grasped point about the fold, -pi/2 to 3/2 pi [rad]."""
        offset_m = observation.tcp_m - self._fold_m + self._below_m
        angle = np.arctan2(offset_m[2], offset_m @ self._across)
        return float(angle if angle > -np.pi / 2 else angle + 2 * np.pi)

    def _has_slipped(self, observation: ExpertObservation, finished: bool) -> bool:
        """Returns True if the fingers should hold the hem but do not. CLOSE is judged only at its end."""
        if self.stage not in _HOLDING or (self.stage is ExpertStage.CLOSE and not finished):
            return False
        distance = np.linalg.norm(observation.tcp_m - self._grasp(observation))
        return bool(distance > LOST_M or observation.gripper_m < observation.facts.measurements["hem_m"] / 2 - _SLACK_M)
