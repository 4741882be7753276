"""One episode: observe, act, limit, move, record, until somebody says stop. The same loop records demonstrations."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.arm.arm import Arm, Workcell
from srpo_robot.errors import CommandRefused, UndecodableActions
from srpo_robot.evaluation.policy import Policy


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


@dataclass(frozen=True)
class Outcome:
    """What became of an episode.

    Attributes:
        success: the verdict; None where it is void.
        steps: control steps executed.
        seconds: duration on the arm's clock [s].
        clips: commands changed by each limit layer.
        layout: the workcell's description of the scene.
        episode_index: in the dataset it was recorded to; -1 where it was not.
        note: why it is void, or why it ended early.
    """

    success: bool | None
    steps: int
    seconds: float
    clips: dict[str, int]
    layout: dict[str, object] = field(default_factory=dict)
    episode_index: int = -1
    note: str = ""


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays the same from episode to episode."""

    arm: Arm
    workcell: Workcell
    space: ActionSpace
    instruction: str
    time_limit_s: float
    cameras: tuple[str, ...]  # those that are recorded
    stop_on_success: bool = True  # a demonstration goes on: it shows the retreat


def run_episode(
    setup: Setup, policy: Policy, seed: int, sink: FrameSink | None = None, on_step: Callable[[int], None] | None = None
) -> Outcome:
    """Run one episode and record what was executed.

    A frame holds what was seen, what was true then (where a simulator knows), and the action that was executed from
    there, after all limits. Where the policy asks for something that is not a number, the arm holds and the episode is
    void. Where its output is no action at all, the arm holds and the scene is judged as it stands: the trial counts.

    Raises:
        ArmError: the arm faulted; the frames recorded so far are discarded with the episode, earlier ones are on disk.
    """
    arm, clips, note = setup.arm, Counter[str](), ""
    layout = dict(setup.workcell.reset(seed))
    policy.reset(seed)
    start_s = arm.observe().state.time_s
    queue: deque[np.ndarray] = deque()
    verdict: bool | None = None
    steps, limit_steps = 0, round(setup.time_limit_s / arm.period_s)
    if sink is not None:
        sink.begin()
    try:
        while steps < limit_steps:
            seen = arm.observe()
            truth = setup.workcell.truth() if sink is not None else {}
            if not queue:
                try:
                    chunk = policy.act(seen)
                except UndecodableActions as error:
                    arm.hold()
                    note, chunk = str(error), None
                if chunk is None:
                    break
                queue.extend(chunk.actions)
            asked = setup.space.command(queue.popleft(), arm.reference())
            limited = arm.send(asked.command)
            clips.update({*asked.clips, *limited.clips})
            if sink is not None:
                state = setup.space.state(seen.state, seen.commanded)
                images = {name: seen.images[name] for name in setup.cameras}
                sink.add(images, state, setup.space.action(limited.command), setup.instruction, truth)
            steps += 1
            if on_step is not None:
                on_step(steps)
            if setup.stop_on_success and setup.workcell.verdict(ended=False):
                break
        verdict = setup.workcell.verdict(ended=True)
    except CommandRefused as error:
        arm.hold()
        note = str(error)
    except BaseException:
        if sink is not None:
            sink.end(None)
        raise
    index = sink.end(verdict) if sink is not None else -1
    seconds = arm.observe().state.time_s - start_s
    return Outcome(verdict, steps, seconds, dict(clips), layout, index, note)
