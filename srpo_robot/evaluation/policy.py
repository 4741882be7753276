"""What moves an arm: the contract of a policy, a trained checkpoint behind it, and a thread for it to think in."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.errors import CheckpointError, PolicyError, SrpoRobotError, one_line
from srpo_robot.records import ActionChunk, Observation

_LAST_WORDS_S = 1.0  # for a question that is being answered when nobody asks any more


class Policy(Protocol):
    """Anything that turns observations into action chunks: a checkpoint, a scripted demonstrator."""

    name: str

    def reset(self, seed: int) -> None:
        """Forget the last episode."""
        ...

    def act(self, observation: Observation) -> ActionChunk | None:
        """The next actions, all of which are executed before the next call; None: the policy is done.

        Raises UndecodableActions where what the policy puts out is no action.
        """
        ...


@runtime_checkable
class Instructed(Protocol):
    """A policy that reads an instruction, which may change from episode to episode."""

    instruction: str


Pending = Literal["pending"]
PENDING: Pending = "pending"


class PolicyRunner(Protocol):
    """How the loop asks a policy: in its own thread, or in another one while the arm goes on."""

    def reset(self, seed: int) -> None:
        """Forget the last episode and what was still being thought about."""
        ...

    def think(self, observation: Observation) -> ActionChunk | Pending | None:
        """As `Policy.act`; `PENDING`: no answer yet, ask again with the next observation."""
        ...


class SyncRunner:
    """Asks and waits: for an arm whose time stands still meanwhile."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def think(self, observation: Observation) -> ActionChunk | Pending | None:
        return self._policy.act(observation)


class AsyncRunner:
    """Asks in a thread of its own, so that a slow, hung or crashed policy leaves the loop free to hold the arm.

    An answer belongs to the observation that the question was asked with, however late it comes. Use it as a context
    manager. The thread is a daemon: a policy that never answers must not keep the process from ending.
    """

    def __init__(self, policy: Policy, wait_s: float, give_up_s: float) -> None:
        """`wait_s`: how long `think` waits before it says `PENDING`; `give_up_s`: after which a policy is given up."""
        self._policy, self._wait_s, self._give_up_s = policy, wait_s, give_up_s
        self._calls: queue.SimpleQueue[_PendingCall | None] = queue.SimpleQueue()
        self._pending: _PendingCall | None = None
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put(None)
        self._thread.join(_LAST_WORDS_S)

    def reset(self, seed: int) -> None:
        """Comes after what is still being thought about, which nobody wants any more: a policy has one state.

        Raises:
            PolicyError: it crashed, or gave no answer in time.
        """
        self._ask(lambda: self._policy.reset(seed))
        if self._answer(self._give_up_s) == PENDING:
            raise self._silent()

    def think(self, observation: Observation) -> ActionChunk | Pending | None:
        """See `PolicyRunner`.

        Raises:
            PolicyError: it crashed, or gave no answer in time.
            UndecodableActions: its output is no action.
        """
        if self._pending is None:
            self._ask(lambda: self._policy.act(observation))
        return self._answer(self._wait_s)

    def _ask(self, call: Callable[[], Any]) -> None:
        self._pending = _PendingCall(call, time.monotonic())
        self._calls.put(self._pending)

    def _answer(self, wait_s: float) -> Any:
        job = self._pending
        if job is None or not job.done.wait(wait_s):
            if job is not None and time.monotonic() - job.asked_s >= self._give_up_s:
                raise self._silent()
            return PENDING
        self._pending = None
        if isinstance(job.error, SrpoRobotError):
            raise job.error
        if job.error is not None:
            raise PolicyError(f"the policy crashed: {type(job.error).__name__}: {one_line(job.error)}") from job.error
        return job.result

    def _silent(self) -> PolicyError:
        return PolicyError(f"the policy has not answered for {self._give_up_s:g} s; look at its machine")

    def _work(self) -> None:
        while (job := self._calls.get()) is not None:
            try:
                job.result = job.call()
            except Exception as error:  # raised again where somebody waits
                job.error = error
            job.done.set()


@dataclass(eq=False)
class _PendingCall:
    """One question, and what came of it once `done`."""

    call: Callable[[], Any]
    asked_s: float
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None


class TrainedPolicy:
    """A lerobot checkpoint with its own pre- and post-processors."""

    def __init__(
        self,
        checkpoint: str | Path,
        space: ActionSpace,
        instruction: str,
        cameras: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        """Load and check.

        Raises:
            CheckpointError: incomplete, or made for other cameras, states or actions than this task and arm have.
        """
        import torch

        from srpo_robot.awr.policies import cameras_taken, load_policy

        self.name = str(checkpoint)
        self.instruction = instruction
        self._torch, self._space, self._cameras = torch, space, cameras
        self._policy, self._before, self._after, self.provenance = load_policy(checkpoint, device)
        config = self._policy.config
        self.execute = int(config.n_action_steps)
        _check_fit(config, cameras_taken(self._policy, self._before), space, cameras)

    def reset(self, seed: int) -> None:
        self._policy.reset()
        self._torch.manual_seed(seed)  # the flow starts from noise: a trial is repeatable

    def act(self, observation: Observation) -> ActionChunk | None:
        torch = self._torch
        state = self._space.state(observation.state, observation.commanded).astype(np.float32)
        batch: dict[str, Any] = {"observation.state": torch.from_numpy(state), "task": self.instruction}
        for name in self._cameras:
            image = np.ascontiguousarray(observation.images[name])
            batch[f"observation.images.{name}"] = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            chunk = self._policy.predict_action_chunk(self._before(batch))
            actions = self._after(chunk)
        rows = np.asarray(actions.detach().cpu().float()).reshape(-1, len(self._space.names))
        return ActionChunk(rows[: self.execute], self._space.names)


def _check_fit(config: Any, wants: list[str], space: ActionSpace, cameras: tuple[str, ...]) -> None:
    if wants != sorted(cameras):
        raise CheckpointError(f"the checkpoint was trained with cameras {wants}, this task has {sorted(cameras)}")
    names = tuple(getattr(config, "action_feature_names", None) or space.names)
    if names != space.names:
        raise CheckpointError(f"the checkpoint's actions are {', '.join(names)}, this task's {', '.join(space.names)}")
    sizes = {
        "state": (config.input_features["observation.state"].shape[0], len(space.state_names)),
        "action": (config.output_features["action"].shape[0], len(space.names)),
    }
    for what, (trained, here) in sizes.items():
        if trained != here:
            raise CheckpointError(
                f"the checkpoint's {what} has {trained} values, this task's has {here}; train on its data"
            )
