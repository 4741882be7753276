"""The contract of an arm. Every command passes `limits.limit` here, so no policy or script can bypass the limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from srpo_robot.arm.limits import Limited, Limits, limit
from srpo_robot.errors import RecipeError
from srpo_robot.recipes import HardwareRecipe
from srpo_robot.records import JOINTS, ArmCommand, Observation


class Arm(ABC):
    """An arm with its cameras. Subclasses implement `_open`, `_close`, `_drive`, `observe` and `stop`.

    Use it as a context manager. Leaving the block, also by an exception, stops the arm and then closes it.
    """

    def __init__(self, recipe: HardwareRecipe) -> None:
        """Raises RecipeError if the recipe contradicts itself (for example, if home is outside the limits)."""
        self.recipe = recipe
        self.period_s = 1.0 / recipe.fps
        self.limits = Limits.from_recipe(recipe.limits, recipe.tcp_offset_m, self.period_s)
        if len(recipe.home_rad) != JOINTS:
            raise RecipeError(f"home_rad has {len(recipe.home_rad)} numbers, expected {JOINTS}")
        self.home_rad = np.array(recipe.home_rad)
        if not self.limits.inside_box(self.home_rad):
            raise RecipeError(f"{recipe.name}: the workspace box excludes home; widen limits.box_* or move home_rad")
        self.commanded: ArmCommand | None = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._close()

    def send(self, command: ArmCommand) -> Limited:
        """Limits `command`, drives the arm with the result for one control period, and returns the result.

        Raises:
            CommandRefused: a value is not finite. Nothing was sent and the arm holds.
            ArmError: the arm faulted.
        """
        limited = limit(command, self.reference(), self.limits)
        self._drive(limited.command)
        self.commanded = limited.command
        return limited

    def hold(self) -> Limited:
        """Repeats the last command for one control period."""
        return self.send(self.reference())

    def reference(self) -> ArmCommand:
        """Returns the last executed command, or the measured pose before the first command."""
        return self.commanded if self.commanded is not None else self.observe(images=False).commanded

    @abstractmethod
    def observe(self, images: bool = True) -> Observation:
        """Returns the newest state and images. `Observation.commanded` is the last command or the measured pose.

        Args:
            images: whether images are needed. An arm that has to render them may skip them if False.

        Raises:
            ArmError: the arm or a camera does not answer.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stops motion immediately. It is safe to call at any time, also twice."""

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _drive(self, command: ArmCommand) -> None:
        """Moves towards a command that already passed the limits, for one control period."""


class Workcell(Protocol):
    """The arm's surroundings: lays out a trial and judges it. It is the mock's physics, or a person with keys."""

    def reset(self, seed: int) -> Mapping[str, object]:
        """Lays out the scene for `seed`, brings the arm to its start, and returns the layout (JSON-able)."""
        ...

    def verdict(self, ended: bool) -> bool | None:
        """Judges the trial.

        Returns:
            True for success. False for failure, only once `ended` (the time is up or the policy is done). None if
            undecided.
        """
        ...

    def score(self) -> float | None:
        """Returns the current task score, 0 to 1, or None if there is no measurement of it."""
        ...

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Returns the simulator's current ground truth by column name, recorded with the frame. Empty on a real arm."""
        ...
