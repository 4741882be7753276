"""The expert that wipes a board."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.demonstrator.base import ARRIVED_M, ExpertObservation, ExpertStage, Failure, Script
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import BOARD_TOP_M, ERASER_HALF_M, ERASER_REACH_M, HANDLE_M

_PRESS_M = 0.016  # the spring gives way by so much: 5 N, and contact stays where the disturbance lifts the hand
_ON_BOARD_M = BOARD_TOP_M + ERASER_REACH_M - _PRESS_M  # height of the fingertips while wiping
_OVER_BOARD_M = BOARD_TOP_M + ERASER_REACH_M + 0.045
_LANE_M = (0.040, 0.031)  # between lanes, by the axis across them: the eraser's strokes overlap by a quarter
_PASSED_M = 0.014  # of a way point
_NOTICED = 4  # dabs left: with one of 36 the board would count as clean
_SKIPPED_M = 0.018  # to either side of a lane left out, beyond the eraser's reach


class Wipe(Script):
    """Press down, go over all the ink, lift. Strategies: lanes in "rows" (along y) or "columns", or along the "ink".

    What that leaves is then wiped dab by dab.
    """

    longest_steps = 190
    order = (
        ExpertStage.APPROACH,
        ExpertStage.LOWER,
        ExpertStage.WIPE,
        ExpertStage.RETREAT,
        ExpertStage.HOME,
        ExpertStage.DONE,
    )

    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """The way over the board."""
        ink = np.array(layout.marks_m) + layout.plate_m
        along = 1 if self.strategy == "rows" else 0
        self._way = _tour(ink, self.anchor_m[:2]) if self.strategy == "ink" else _lanes(ink, along)
        if self.failure is Failure.MISS and self.strategy == "ink":
            self._way = self._way[: len(ink) // 2]
        elif self.failure is Failure.MISS:
            self._way = _without_a_lane(self._way, ink, 1 - along, rng)
        self._next = 0

    def after(self, view: ExpertObservation) -> ExpertStage:
        """See `Script.after`."""
        off = float(np.linalg.norm(view.tcp_m[:2] - self._target(view)))
        match self.phase:
            case ExpertStage.APPROACH:
                finished = off < 0.02
            case ExpertStage.LOWER:
                finished = view.tcp_m[2] < _ON_BOARD_M + ARRIVED_M
            case ExpertStage.WIPE:
                if self._next < len(self._way) and off < _PASSED_M:
                    self._next += 1
                finished = self._next >= len(self._way) and not self._cleans(view)
            case ExpertStage.RETREAT:
                finished = view.tcp_m[2] > self.anchor_m[2] + 0.08
            case _:
                finished = self.is_home()
        return self.following() if finished else self.phase

    def goal(self, view: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        match self.phase:
            case ExpertStage.APPROACH:
                return np.append(self._target(view), _OVER_BOARD_M)
            case ExpertStage.LOWER | ExpertStage.WIPE:
                return np.append(self._target(view), _OVER_BOARD_M if self.dropped else _ON_BOARD_M)
            case ExpertStage.RETREAT:
                return self.anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self.home_m

    def opening_m(self) -> float:
        """About the eraser's handle, always."""
        return HANDLE_M

    def drops_now(self, view: ExpertObservation) -> bool:
        """After a share of the ink is gone."""
        return self.phase is ExpertStage.WIPE and view.facts.measured["erased"] > self.pace.drop_share

    def last_chance(self, view: ExpertObservation) -> bool:
        """See `Script.last_chance`."""
        return view.facts.measured["erased"] > 0.8

    def _cleans(self, view: ExpertObservation) -> bool:
        """Whether it goes on dab by dab: not where ink is left on purpose."""
        return self.cares and len(view.facts.marks_m) > 0

    def _target(self, view: ExpertObservation) -> np.ndarray:
        """The next point of the way, then the nearest ink, (2,) [m]."""
        if self._next < len(self._way):
            return self._way[self._next]
        left = view.facts.marks_m
        if len(left) == 0 or not self._cleans(view):
            return view.tcp_m[:2]
        return left[int(np.argmin(np.linalg.norm(left - view.tcp_m[:2], axis=1)))]


def _tour(ink: np.ndarray, start_m: np.ndarray) -> np.ndarray:
    """All dabs, (n, 2) [m], each the nearest to the one before; the first is the nearest to `start_m` (2,)."""
    left, tour = list(ink), [start_m]
    while left:
        tour.append(left.pop(int(np.argmin([np.linalg.norm(dab - tour[-1]) for dab in left]))))
    return np.array(tour[1:])


def _lanes(ink: np.ndarray, along: int) -> np.ndarray:
    """Ends of lanes to and fro over all the ink, (2 n, 2) [m], along axis `along`."""
    low, high = ink.min(axis=0), ink.max(axis=0)
    across = 1 - along
    inset = min(float(ERASER_HALF_M[across]) * 0.6, (high[across] - low[across]) / 2.0)
    count = int(np.ceil((high[across] - low[across] - 2 * inset) / _LANE_M[across])) + 1
    way = []
    for i, middle in enumerate(np.linspace(low[across] + inset, high[across] - inset, count)):
        ends = [low[along], high[along]] if i % 2 == 0 else [high[along], low[along]]
        for end in ends:
            point = np.empty(2)
            point[along], point[across] = end, middle
            way.append(point)
    return np.array(way)


def _without_a_lane(way: np.ndarray, ink: np.ndarray, across: int, rng: np.random.Generator) -> np.ndarray:
    """`way` without the lanes that would reach one of the dabs, drawn from those with whom enough others are left."""
    reach = float(ERASER_HALF_M[across]) + _SKIPPED_M
    shorter = [way[np.abs(way[:, across] - dab[across]) > reach] for dab in ink]
    ways = [way for way in shorter if len(way) and _left(way, ink) >= _NOTICED]
    if ways:
        return ways[int(rng.integers(len(ways)))]
    return way[: max(len(way) // 2, 1)]  # all the ink is in reach of one lane: half of it is wiped


def _left(way: np.ndarray, ink: np.ndarray) -> int:
    """How many dabs an eraser along `way` leaves, in spite of a disturbance."""
    legs = np.linspace(way[:-1], way[1:], 40).reshape(-1, 2) if len(way) > 1 else way
    off = np.abs(ink[:, None] - legs[None]) - np.array(ERASER_HALF_M[:2])
    return int((off.max(axis=2).min(axis=1) > _SKIPPED_M / 2).sum())
