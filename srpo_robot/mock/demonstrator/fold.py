"""The expert that folds a towel."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.demonstrator.base import LOST_M, OPEN_STEPS, ExpertObservation, ExpertStage, Failure, Script
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import FOLD_M, FOLDED_RAD, HEM_M
from srpo_robot.mock.tasks.fold import FLAT_RAD

_HOLDING = (ExpertStage.CLOSE, ExpertStage.FOLD)
_AHEAD_RAD = 0.30  # on the arc, of where the fingertips are
_LET_GO_RAD = {"lay": FOLDED_RAD - 0.12, "corner": FOLDED_RAD - 0.12, "flip": 1.95}  # by strategy
_BELOW = 0.45  # of the hem's thickness: the fingertips are so far below its middle, or it would slip out under them
_SLACK_M = 0.001  # by which closed fingers are thinner than what they hold
_CLEAR_M = HEM_M + 0.040  # height over which the fingertips clear a flap that stands up
_CORNER_M = 0.050  # from the hem's middle


class Fold(Script):
    """Pinch the hem, take it round the fold, let go. Strategies: "lay" it down, "flip" it past the vertical, or lay it
    down by a "corner"."""

    low_m = 0.007
    order = (
        *(ExpertStage.APPROACH, ExpertStage.DESCEND, ExpertStage.CLOSE, ExpertStage.FOLD),
        *(ExpertStage.RELEASE, ExpertStage.RETREAT, ExpertStage.HOME, ExpertStage.DONE),
    )

    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Where on the hem, or beside it, and how far."""
        cosine, sine = np.cos(layout.plate_yaw_rad), np.sin(layout.plate_yaw_rad)
        self._along = np.array([cosine, sine, 0.0])  # the fold
        self._across = np.array([-sine, cosine, 0.0])  # from the fold to the hem of an open towel
        self._fold_m = np.array([*layout.plate_m, FOLD_M])
        spot = float(rng.choice([-_CORNER_M, _CORNER_M])) if self.strategy == "corner" else 0.0
        self._aim_m = self._along * spot
        self._below_m = np.array([0.0, 0.0, _BELOW * self.sim.facts().measured["hem_m"]])
        if self.failure is Failure.MISS:
            self._aim_m = self._aim_m + self._across * float(rng.uniform(0.075, 0.090))  # on the bare table
        self._drop_rad = float(rng.uniform(0.35, 1.05))  # the flap falls back

    def after(self, view: ExpertObservation) -> ExpertStage:
        """See `Script.after`."""
        match self.phase:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                finished = self.reached(view, self._grasp(view))
            case ExpertStage.FOLD:
                past = np.linalg.norm((view.tcp_m - self._beyond())[:2]) < 0.03
                finished = past if self.dropped else self._angle(view) > _LET_GO_RAD[self.strategy]
            case ExpertStage.RELEASE:
                finished = self.phase_steps >= OPEN_STEPS
            case ExpertStage.RETREAT:
                finished = view.tcp_m[2] > self.anchor_m[2] + 0.08
                if finished and self.cares and view.facts.measured["fold_rad"] < FLAT_RAD:
                    return ExpertStage.APPROACH
            case _:
                finished = self.is_home()
        if isinstance(finished, ExpertStage):
            return finished
        if self.cares and self._lost(view, bool(finished)):
            return ExpertStage.RETREAT
        return self.following() if finished else self.phase

    def goal(self, view: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        match self.phase:
            case ExpertStage.APPROACH | ExpertStage.DESCEND | ExpertStage.CLOSE:
                return self.towards(view, self._grasp(view))
            case ExpertStage.FOLD if self.dropped:  # up and away first, or the open fingers would push the hem on
                return self._over(view)
            case ExpertStage.FOLD:
                angle = min(self._angle(view) + _AHEAD_RAD, FOLDED_RAD)
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
        return 0.0 if self.phase in _HOLDING and not self.dropped else self.open_m

    def drops_now(self, view: ExpertObservation) -> bool:
        """On the way up, so that the flap falls back."""
        return self.phase is ExpertStage.FOLD and view.facts.measured["fold_rad"] > self._drop_rad

    def last_chance(self, view: ExpertObservation) -> bool:
        """See `Script.last_chance`."""
        return view.facts.measured["fold_rad"] > 1.2

    def _over(self, view: ExpertObservation) -> np.ndarray:
        """The way on with an empty gripper: straight up, and over to the other side."""
        high = view.tcp_m[2] > _CLEAR_M
        return np.append((self._beyond() if high else view.tcp_m)[:2], _CLEAR_M + 0.03)

    def _beyond(self) -> np.ndarray:
        """Where the hem comes to lie, (3,) [m]."""
        return self._fold_m - HEM_M * self._across

    def _grasp(self, view: ExpertObservation) -> np.ndarray:
        return view.facts.objects_m["hem"] + self._aim_m - self._below_m

    def _angle(self, view: ExpertObservation) -> float:
        """Of what the fingers hold about the fold, -pi/2 to 3/2 pi [rad]."""
        off = view.tcp_m - self._fold_m + self._below_m
        angle = np.arctan2(off[2], off @ self._across)
        return float(angle if angle > -np.pi / 2 else angle + 2 * np.pi)

    def _lost(self, view: ExpertObservation, finished: bool) -> bool:
        """Whether the hem should be between the fingers but is not; while they close, judged at the end."""
        if self.phase not in _HOLDING or (self.phase is ExpertStage.CLOSE and not finished):
            return False
        apart = np.linalg.norm(view.tcp_m - self._grasp(view))
        return bool(apart > LOST_M or view.gripper_m < view.facts.measured["hem_m"] / 2 - _SLACK_M)
