"""Policies: the `Policy` protocol, a trained checkpoint as a policy, and runners that call a policy in a thread."""

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

_JOIN_TIMEOUT_S = 1.0  # time for a running `act` call to finish when the runner closes


class Policy(Protocol):
    """Maps observations to action chunks. Checkpoints and scripted demonstrators are policies."""

    name: str

    def reset(self, seed: int) -> None:
        """Forgets the last episode."""
        ...

    def act(self, observation: Observation) -> ActionChunk | None:
        """Returns the next actions, or None if the policy is done. All actions are executed before the next call.

        Raises UndecodableActions if the policy's output is no action.
        """
        ...


@runtime_checkable
class Instructed(Protocol):
    """A policy that reads an instruction. The instruction may change between episodes."""

    instruction: str


Pending = Literal["pending"]
PENDING: Pending = "pending"


class PolicyRunner(Protocol):
    """Calls a policy for the control loop: in the same thread, or in another thread while the arm keeps moving."""

    def reset(self, seed: int) -> None:
        """Forgets the last episode and discards a pending `act` call."""
        ...

    def act(self, observation: Observation) -> ActionChunk | Pending | None:
        """As `Policy.act`, but returns `PENDING` if there is no result yet. Then call it with the next observation."""
        ...


class SyncRunner:
    """Calls the policy and waits for its result. Use it if the arm's time does not pass during the call."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def act(self, observation: Observation) -> ActionChunk | Pending | None:
        return self._policy.act(observation)


class AsyncRunner:
    """Calls the policy in a separate thread, so that the loop can hold the arm if a policy is slow, hung or crashed.

    A result belongs to the observation of its call, even if it arrives late. Use the runner as a context manager. The
    thread is a daemon, so that a hung policy does not keep the process from ending.
    """

    def __init__(self, policy: Policy, wait_s: float, give_up_s: float) -> None:
        """`wait_s`: time after which `act` returns `PENDING`. `give_up_s`: time after which a call fails."""
        self._policy, self._wait_s, self._give_up_s = policy, wait_s, give_up_s
        self._calls: queue.SimpleQueue[_PendingCall | None] = queue.SimpleQueue()
        self._pending: _PendingCall | None = None
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put(None)
        self._thread.join(_JOIN_TIMEOUT_S)

    def reset(self, seed: int) -> None:
        """Waits for a pending `act` call, discards its result, then resets the policy.

        Raises:
            PolicyError: the policy crashed, or did not answer in time.
        """
        self._submit(lambda: self._policy.reset(seed))
        if self._result(self._give_up_s) == PENDING:
            raise self._timeout()

    def act(self, observation: Observation) -> ActionChunk | Pending | None:
        """See `PolicyRunner`.

        Raises:
            PolicyError: the policy crashed, or did not answer in time.
            UndecodableActions: the policy's output is no action.
        """
        if self._pending is None:
            self._submit(lambda: self._policy.act(observation))
        return self._result(self._wait_s)

    def _submit(self, function: Callable[[], Any]) -> None:
        self._pending = _PendingCall(function, time.monotonic())
        self._calls.put(self._pending)

    def _result(self, wait_s: float) -> Any:
        call = self._pending
        if call is None or not call.done.wait(wait_s):
            if call is not None and time.monotonic() - call.start_s >= self._give_up_s:
                raise self._timeout()
            return PENDING
        self._pending = None
        if isinstance(call.error, SrpoRobotError):
            raise call.error
        if call.error is not None:
            raise PolicyError(
                f"the policy crashed: {type(call.error).__name__}: {one_line(call.error)}"
            ) from call.error
        return call.result

    def _timeout(self) -> PolicyError:
        return PolicyError(f"the policy has not answered for {self._give_up_s:g} s; look at its machine")

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.result = call.function()
            except Exception as error:  # `_result` raises it in the caller's thread
                call.error = error
            call.done.set()


@dataclass(eq=False)
class _PendingCall:
    """One call of the policy. `result` or `error` is set when `done` is set."""

    function: Callable[[], Any]
    start_s: float
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None


class TrainedPolicy:
    """A lerobot checkpoint with its pre- and post-processors."""

    def __init__(
        self,
        checkpoint: str | Path,
        space: ActionSpace,
        instruction: str,
        cameras: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        """Loads the checkpoint and checks that it fits the task and the arm.

        Raises:
            CheckpointError: the checkpoint is incomplete, or was trained with other cameras, states or actions.
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
        self._torch.manual_seed(seed)  # makes a trial repeatable, because the flow starts from noise

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


def _check_fit(config: Any, trained_cameras: list[str], space: ActionSpace, cameras: tuple[str, ...]) -> None:
    if trained_cameras != sorted(cameras):
        raise CheckpointError(
            f"the checkpoint was trained with cameras {trained_cameras}, this task has {sorted(cameras)}"
        )
    names = tuple(getattr(config, "action_feature_names", None) or space.names)
    if names != space.names:
        raise CheckpointError(f"the checkpoint's actions are {', '.join(names)}, this task's {', '.join(space.names)}")
    sizes = {
        "state": (config.input_features["observation.state"].shape[0], len(space.state_names)),
        "action": (config.output_features["action"].shape[0], len(space.names)),
    }
    for vector, (checkpoint_size, task_size) in sizes.items():
        if checkpoint_size != task_size:
            raise CheckpointError(
                f"the checkpoint's {vector} has {checkpoint_size} values, this task's has {task_size}; "
                "train on its data"
            )
