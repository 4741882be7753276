"""Runs one episode: observe, act, limit, move, record. The same loop records demonstrations."""

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
    """Receives the frames of an episode, for example `buffer.recorder.Recorder`."""

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
    """Raised by a workcell's `verdict` if a person wants to repeat the trial. The trial then does not count."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One control step for a log.

    Attributes:
        number: 0-based number within the episode.
        observation: observation before the step.
        requested: joint command of the policy's action before limits. The previous command if the arm held.
        limited: executed command.
        chunk: 0-based number of the policy's action chunk. -1 before the first chunk.
        row: row of the action within the chunk. -1 if the arm held because the policy was late.
        limited_by: limit layers that changed the command.
    """

    number: int
    observation: Observation
    requested: ArmCommand
    limited: Limited
    chunk: int
    row: int
    limited_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an episode.

    Attributes:
        success: the verdict. None if the episode is void.
        steps: number of control steps.
        seconds: duration on the arm's clock [s].
        limited_by: number of commands that each limit layer changed.
        layout: the workcell's description of the scene.
        episode_index: index in the recorded dataset. -1 if the episode was not recorded.
        note: reason why the episode is void or ended early.
        late: number of steps at which the arm held because the policy had not answered.
        redo: whether a person wants to repeat the episode. It then does not count.
        refused: whether the policy requested a command that must not reach an arm.
        score: how well the task was done at the end, 0 to 1. None if the episode is void or was not scored.
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
        """Returns the journal's row. Prefers the layout's instruction to `instruction`."""
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """The parts that stay the same for all episodes."""

    arm: Arm
    workcell: Workcell
    space: ActionSpace
    instruction: str  # used if the layout has no instruction
    time_limit_s: float
    cameras: tuple[str, ...]  # cameras to record
    stop_on_success: bool = True  # False for demonstrations, which continue to show the retreat
    runner: PolicyRunner | None = None  # None: call the policy in this thread while the arm's time does not pass
    stopped: Callable[[], bool] = lambda: False  # True if a person stopped the arm, whose errors are then no fault
    log: Callable[[Step], None] | None = None


def run_episode(
    setup: Setup, policy: Policy, seed: int, sink: FrameSink | None = None, on_step: Callable[[int], None] | None = None
) -> Outcome:
    """Runs one episode and records the executed actions.

    A frame has the observation, the simulator's ground truth at that time (if there is one), and the action that was
    then executed, after all limits. If the policy requests a command that is not finite, the arm holds and the episode
    is void. If the policy's output is no action at all, the arm holds and the scene is judged as it is: the trial
    counts. If the policy has not answered yet, the arm holds for one step, which is recorded and counted as usual.

    Raises:
        ArmError: the arm faulted. The frames of this episode are discarded. Earlier episodes are on disk.
        PolicyError: the policy crashed or never answered. Frames are discarded as above.
    """
    if sink is not None:
        sink.begin()  # first, because it may take seconds and the scene must not change after its reset
    layout = dict(setup.workcell.reset(seed))
    instruction = str(layout.get("instruction") or setup.instruction)
    if isinstance(policy, Instructed):
        policy.instruction = instruction
    runner = setup.runner or SyncRunner(policy)
    runner.reset(seed)
    loop = _Loop(setup, runner, sink, instruction)
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
    return Outcome(
        success=verdict,
        steps=loop.steps,
        seconds=loop.seconds(),
        limited_by=dict(loop.limited_by),
        layout=layout,
        episode_index=index,
        note=note,
        late=loop.late,
        redo=redo,
        refused=refused,
        score=score,
    )


class _Loop:
    """The control steps of one episode."""

    def __init__(self, setup: Setup, runner: PolicyRunner, sink: FrameSink | None, instruction: str) -> None:
        self.steps = self.late = 0
        self.limited_by: Counter[str] = Counter()
        self._setup, self._runner, self._sink, self._instruction = setup, runner, sink, instruction
        self._queue: deque[np.ndarray] = deque()
        self._chunk = self._row = -1
        self._start_s = self._newest_s = setup.arm.observe(images=False).state.time_s

    def run(self, on_step: Callable[[int], None] | None) -> str:
        """Runs until the time limit, the policy's end, or the workcell's verdict. Returns why it ended early, or ""."""
        setup = self._setup
        limit_steps = round(setup.time_limit_s / setup.arm.period_s)
        while self.steps < limit_steps:
            # Only the policy's next call, a recording or a log needs images. Rendering takes half of a mock trial.
            observation = setup.arm.observe(images=not self._queue or self._sink is not None or setup.log is not None)
            self._newest_s = observation.state.time_s
            truth = setup.workcell.truth() if self._sink is not None else {}
            try:
                is_done = self._refill(observation)
            except UndecodableActions as error:
                setup.arm.hold()
                return str(error)
            if is_done:
                break
            self._move(observation, truth)
            if on_step is not None:
                on_step(self.steps)
            if setup.stopped():
                return "stopped by hand"
            if setup.stop_on_success and setup.workcell.verdict(ended=False) is not None:
                break
        return ""

    def seconds(self) -> float:
        """Returns the duration so far [s]. If a person stopped the arm, it ends at the last observation."""
        if not self._setup.stopped():
            self._newest_s = self._setup.arm.observe(images=False).state.time_s
        return self._newest_s - self._start_s

    def _refill(self, observation: Observation) -> bool:
        """Calls the policy if no action is queued. Returns True if the policy is done."""
        if self._queue:
            return False
        chunk = self._runner.act(observation)
        if chunk is None:
            return True
        if chunk != PENDING:
            self._queue.extend(chunk.actions)
            self._chunk, self._row = self._chunk + 1, -1
        return False

    def _move(self, observation: Observation, truth: Mapping[str, np.ndarray | str]) -> None:
        """Executes one control step: the next action, or a hold if there is none yet."""
        setup, is_hold = self._setup, not self._queue
        if is_hold:
            self.late += 1
            request = Limited(setup.arm.reference(), ())
        else:
            self._row += 1
            request = setup.space.command(self._queue.popleft(), setup.arm.reference())
        limited = setup.arm.send(request.command)
        limited_by = tuple(dict.fromkeys((*request.limited_by, *limited.limited_by)))
        self.limited_by.update(limited_by)
        if self._sink is not None:
            state = setup.space.state(observation.state, observation.commanded)
            images = {name: observation.images[name] for name in setup.cameras}
            self._sink.add(images, state, setup.space.action(limited.command), self._instruction, truth)
        if setup.log is not None:
            step = Step(
                number=self.steps,
                observation=observation,
                requested=request.command,
                limited=limited,
                chunk=self._chunk,
                row=-1 if is_hold else self._row,
                limited_by=limited_by,
            )
            setup.log(step)
        self.steps += 1
