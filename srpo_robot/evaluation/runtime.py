"""One episode: observe, act, limit, move, record, until somebody says stop. The same loop records demonstrations."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.arm.arm import Arm, Workcell
from srpo_robot.arm.limits import Limited
from srpo_robot.errors import ArmError, CommandRefused, SrpoRobotError, UndecodableActions
from srpo_robot.evaluation.policy import PENDING, Instructed, Policy, PolicyRunner, SyncRunner
from srpo_robot.records import ArmCommand, Observation, Trial


class FrameSink(Protocol):
    """Where the frames of an episode go; `buffer.recorder.Recorder` is one."""

    def begin(self) -> None: ...

    def add(
        self,
        images: dict[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        task: str,
        truth: Mapping[str, np.ndarray | str],
    ) -> None: ...

    def end(self, success: bool | None) -> int: ...


class Redo(SrpoRobotError):
    """A person wants this trial again: raised by a workcell's `verdict`, the trial counts for nothing."""


@dataclass(frozen=True, eq=False)
class Step:
    """One control step, as a log keeps it.

    Attributes:
        number: 0-based within the episode.
        seen: what was observed before it.
        asked: the joint command that the policy's action amounts to; the one before it where the arm held.
        limited: what was executed.
        chunk: 0-based number of the policy's answer that it comes from; -1 before the first.
        row: of the action within that chunk; -1 where the arm held because the policy was late.
        limited_by: layers that changed the command.
    """

    number: int
    seen: Observation
    asked: ArmCommand
    limited: Limited
    chunk: int
    row: int
    limited_by: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of an episode.

    Attributes:
        success: the verdict; None where it is void.
        steps: control steps executed.
        seconds: duration on the arm's clock [s].
        limited_by: commands changed by each limit layer.
        layout: the workcell's description of the scene.
        episode_index: in the dataset it was recorded to; -1 where it was not.
        note: why it is void, or why it ended early.
        late: steps at which the arm held because the policy had not answered.
        redo: a person wants it again; it counts for nothing.
        refused: the policy asked for what must not reach an arm.
        score: how well the task was done at the end, 0 to 1; None where it is void or nobody measured it.
    """

    success: bool | None
    steps: int
    seconds: float
    limited_by: dict[str, int]
    layout: dict[str, object] = field(default_factory=dict)
    episode_index: int = -1
    note: str = ""
    late: int = 0
    redo: bool = False
    refused: bool = False
    score: float | None = None

    def as_trial(self, number: int, instruction: str, policy: str, seed: int) -> Trial:
        """The journal's row; the layout's own instruction comes first."""
        return Trial(
            trial=number,
            task=str(self.layout.get("instruction") or instruction),
            policy=policy,
            seed=seed,
            success=self.success,
            steps=self.steps,
            seconds=self.seconds,
            limited_by=self.limited_by,
            layout=self.layout,
            note=self.note,
            late=self.late,
            episode_index=self.episode_index,
            score=self.score,
        )


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same from episode to episode."""

    arm: Arm
    workcell: Workcell
    space: ActionSpace
    instruction: str  # unless the layout has one of its own
    time_limit_s: float
    cameras: tuple[str, ...]  # those that are recorded
    stop_on_success: bool = True  # a demonstration goes on: it shows the retreat
    thinker: PolicyRunner | None = None  # how the policy is asked; None: in this thread, the arm's time stands still
    stopped: Callable[[], bool] = lambda: False  # whether a person stopped the arm, so that its errors are no fault
    log: Callable[[Step], None] | None = None


def run_episode(
    setup: Setup, policy: Policy, seed: int, sink: FrameSink | None = None, on_step: Callable[[int], None] | None = None
) -> Outcome:
    """Run one episode and record what was executed.

    A frame holds what was seen, what was true then (where a simulator knows), and the action that was executed from
    there, after all limits. Where the policy asks for something that is not a number, the arm holds and the episode is
    void. Where its output is no action at all, the arm holds and the scene is judged as it stands: the trial counts.
    Where it has not answered yet, the arm holds for a step, which is recorded and counted like any other.

    Raises:
        ArmError: the arm faulted; the frames recorded so far are discarded with the episode, earlier ones are on disk.
        PolicyError: the policy crashed, or never answered; as above.
    """
    if sink is not None:
        sink.begin()  # first: it may take seconds, and the scene is to be as it was laid out
    layout = dict(setup.workcell.reset(seed))
    instruction = str(layout.get("instruction") or setup.instruction)
    if isinstance(policy, Instructed):
        policy.instruction = instruction
    thinker = setup.thinker or SyncRunner(policy)
    thinker.reset(seed)
    loop = _Loop(setup, thinker, sink, instruction)
    verdict, score, note, redo, refused = None, None, "", False, False
    try:
        try:
            note = loop.run(on_step)
        except ArmError as error:
            if isinstance(error, CommandRefused) or not setup.stopped():
                raise
            note = "stopped by hand"
        verdict = setup.workcell.verdict(ended=True)
        score = setup.workcell.score()
    except CommandRefused as error:
        setup.arm.hold()
        note, refused = str(error), True
    except Redo as error:
        note, redo = str(error), True
    except BaseException:
        if sink is not None:
            sink.end(None)
        raise
    index = sink.end(verdict) if sink is not None else -1
    seconds = loop.seconds()
    done = loop.steps, seconds, dict(loop.limited_by), layout, index, note, loop.late
    return Outcome(verdict, *done, redo=redo, refused=refused, score=score)


class _Loop:
    """The control steps of one episode."""

    def __init__(self, setup: Setup, thinker: PolicyRunner, sink: FrameSink | None, instruction: str) -> None:
        self.steps = self.late = 0
        self.limited_by: Counter[str] = Counter()
        self._setup, self._thinker, self._sink, self._instruction = setup, thinker, sink, instruction
        self._queue: deque[np.ndarray] = deque()
        self._chunk = self._row = -1
        self._start_s = self._newest_s = setup.arm.observe(images=False).state.time_s

    def run(self, on_step: Callable[[int], None] | None) -> str:
        """Until time is up, the policy is done, or the workcell has its verdict; why it ended early, or ""."""
        setup = self._setup
        limit_steps = round(setup.time_limit_s / setup.arm.period_s)
        while self.steps < limit_steps:
            # Between two answers of the policy nobody looks, unless it is recorded; drawing is half of a mock trial.
            seen = setup.arm.observe(images=not self._queue or self._sink is not None or setup.log is not None)
            self._newest_s = seen.state.time_s
            truth = setup.workcell.truth() if self._sink is not None else {}
            try:
                is_done = self._refill(seen)
            except UndecodableActions as error:
                setup.arm.hold()
                return str(error)
            if is_done:
                break
            self._move(seen, truth)
            if on_step is not None:
                on_step(self.steps)
            if setup.stopped():
                return "stopped by hand"
            if setup.stop_on_success and setup.workcell.verdict(ended=False) is not None:
                break
        return ""

    def seconds(self) -> float:
        """Duration so far [s]; up to the last observation where a person stopped the arm."""
        if not self._setup.stopped():
            self._newest_s = self._setup.arm.observe(images=False).state.time_s
        return self._newest_s - self._start_s

    def _refill(self, seen: Observation) -> bool:
        """Ask the policy where there is nothing left to do; whether it is done."""
        if self._queue:
            return False
        answer = self._thinker.think(seen)
        if answer is None:
            return True
        if answer != PENDING:
            self._queue.extend(answer.actions)
            self._chunk, self._row = self._chunk + 1, -1
        return False

    def _move(self, seen: Observation, truth: Mapping[str, np.ndarray | str]) -> None:
        """One control step: the next action, or where there is none yet, the same place."""
        setup, held = self._setup, not self._queue
        if held:
            self.late += 1
            asked = Limited(setup.arm.reference(), ())
        else:
            self._row += 1
            asked = setup.space.command(self._queue.popleft(), setup.arm.reference())
        limited = setup.arm.send(asked.command)
        limited_by = tuple(dict.fromkeys((*asked.limited_by, *limited.limited_by)))
        self.limited_by.update(limited_by)
        if self._sink is not None:
            state = setup.space.state(seen.state, seen.commanded)
            images = {name: seen.images[name] for name in setup.cameras}
            self._sink.add(images, state, setup.space.action(limited.command), self._instruction, truth)
        if setup.log is not None:
            row = -1 if held else self._row
            setup.log(Step(self.steps, seen, asked.command, limited, self._chunk, row, limited_by))
        self.steps += 1
