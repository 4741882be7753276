"""What moves an arm: the contract of a policy, and a trained checkpoint behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.errors import CheckpointError
from srpo_robot.records import ActionChunk, Observation


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
        self._torch, self._space, self._instruction, self._cameras = torch, space, instruction, cameras
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
        batch: dict[str, Any] = {"observation.state": torch.from_numpy(state), "task": self._instruction}
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
