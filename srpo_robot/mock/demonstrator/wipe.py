"""The expert that wipes a board."""

from __future__ import annotations

import numpy as np

from srpo_robot.mock.demonstrator.base import ARRIVED_M, ExpertObservation, ExpertStage, Failure, Script
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import BOARD_TOP_M, ERASER_HALF_M, ERASER_REACH_M, HANDLE_M

_PRESS_M = 0.016  # compression of the spring: 5 N, enough to keep contact if the disturbance lifts the hand
_ON_BOARD_M = BOARD_TOP_M + ERASER_REACH_M - _PRESS_M  # height of the fingertips while wiping
_OVER_BOARD_M = BOARD_TOP_M + ERASER_REACH_M + 0.045
_LANE_M = (0.040, 0.031)  # distance between lanes, by the axis across them, with strokes that overlap by a quarter
_PASSED_M = 0.014  # distance at which a way point counts as passed
_NOTICED = 4  # smallest number of dabs to leave (with 1 of 36 left the board would count as clean)
_SKIPPED_M = 0.018  # margin beyond the eraser's reach on either side of a skipped lane


class Wipe(Script):
    """Presses down, wipes over all the ink, and lifts.

    Strategies: lanes in "rows" (along y) or "columns", or along the "ink". Remaining ink is then wiped dab by dab.
    """

    longest_steps = 190
    stages = (
        ExpertStage.APPROACH,
        ExpertStage.LOWER,
        ExpertStage.WIPE,
        ExpertStage.RETREAT,
        ExpertStage.HOME,
        ExpertStage.DONE,
    )

    def plan(self, layout: Layout, rng: np.random.Generator) -> None:
        """Plans the path over the board."""
        ink = np.array(layout.marks_m) + layout.plate_m
        along = 1 if self.strategy == "rows" else 0
        self._way = _tour(ink, self.anchor_m[:2]) if self.strategy == "ink" else _lanes(ink, along)
        if self.failure is Failure.MISS and self.strategy == "ink":
            self._way = self._way[: len(ink) // 2]
        elif self.failure is Failure.MISS:
            self._way = _without_a_lane(self._way, ink, 1 - along, rng)
        self._next = 0

    def next_stage(self, observation: ExpertObservation) -> ExpertStage:
        """See `Script.next_stage`."""
        offset_m = float(np.linalg.norm(observation.tcp_m[:2] - self._target(observation)))
        match self.stage:
            case ExpertStage.APPROACH:
                finished = offset_m < 0.02
            case ExpertStage.LOWER:
                finished = observation.tcp_m[2] < _ON_BOARD_M + ARRIVED_M
            case ExpertStage.WIPE:
                if self._next < len(self._way) and offset_m < _PASSED_M:
                    self._next += 1
                finished = self._next >= len(self._way) and not self._cleans(observation)
            case ExpertStage.RETREAT:
                finished = observation.tcp_m[2] > self.anchor_m[2] + 0.08
            case _:
                finished = self.is_home()
        return self.successor() if finished else self.stage

    def goal(self, observation: ExpertObservation) -> np.ndarray:
        """See `Script.goal`."""
        match self.stage:
            case ExpertStage.APPROACH:
                return np.append(self._target(observation), _OVER_BOARD_M)
            case ExpertStage.LOWER | ExpertStage.WIPE:
                return np.append(self._target(observation), _OVER_BOARD_M if self.dropped else _ON_BOARD_M)
            case ExpertStage.RETREAT:
                return self.anchor_m + np.array([0.0, 0.0, 0.11])
            case _:
                return self.home_m

    def opening_m(self) -> float:
        """Returns the thickness of the eraser's handle in every stage."""
        return HANDLE_M

    def should_drop(self, observation: ExpertObservation) -> bool:
        """Returns True after `Pace.drop_fraction` of the ink is erased."""
        return self.stage is ExpertStage.WIPE and observation.facts.measurements["erased"] > self.pace.drop_fraction

    def must_stop(self, observation: ExpertObservation) -> bool:
        """See `Script.must_stop`."""
        return observation.facts.measurements["erased"] > 0.8

    def _cleans(self, observation: ExpertObservation) -> bool:
        """Returns True if the script continues dab by dab. It does not if it leaves ink on purpose."""
        return self.retries and len(observation.facts.marks_m) > 0

    def _target(self, observation: ExpertObservation) -> np.ndarray:
        """Returns the next point of the path, or the nearest ink after the end of the path, (2,) [m]."""
        if self._next < len(self._way):
            return self._way[self._next]
        ink = observation.facts.marks_m
        if len(ink) == 0 or not self._cleans(observation):
            return observation.tcp_m[:2]
        return ink[int(np.argmin(np.linalg.norm(ink - observation.tcp_m[:2], axis=1)))]


def _tour(ink: np.ndarray, start_m: np.ndarray) -> np.ndarray:
    """Returns all dabs (n, 2) [m] in nearest-neighbour order, starting from `start_m` (2,)."""
    remaining, tour = list(ink), [start_m]
    while remaining:
        tour.append(remaining.pop(int(np.argmin([np.linalg.norm(dab - tour[-1]) for dab in remaining]))))
    return np.array(tour[1:])


def _lanes(ink: np.ndarray, along: int) -> np.ndarray:
    """Returns the ends of back-and-forth lanes over all the ink, (2 n, 2) [m], along axis `along`."""
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
    """Returns `way` without the lanes that reach one dab. Draws the dab among those that leave enough ink."""
    reach = float(ERASER_HALF_M[across]) + _SKIPPED_M
    shorter = [way[np.abs(way[:, across] - dab[across]) > reach] for dab in ink]
    ways = [way for way in shorter if len(way) and _missed_dabs(way, ink) >= _NOTICED]
    if ways:
        return ways[int(rng.integers(len(ways)))]
    return way[: max(len(way) // 2, 1)]  # one lane reaches all the ink, so only half of it is wiped


def _missed_dabs(way: np.ndarray, ink: np.ndarray) -> int:
    """Returns the number of dabs that an eraser along `way` misses even with a disturbance."""
    legs = np.linspace(way[:-1], way[1:], 40).reshape(-1, 2) if len(way) > 1 else way
    offset_m = np.abs(ink[:, None] - legs[None]) - np.array(ERASER_HALF_M[:2])
    return int((offset_m.max(axis=2).min(axis=1) > _SKIPPED_M / 2).sum())
