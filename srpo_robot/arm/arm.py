"""The contract of an arm. Every command passes `limits.limit` here, so that no policy and no script can go round it."""

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

    Use it as a context manager: leaving it, also by an exception, stops the arm and then closes it.
    """

    def __init__(self, recipe: HardwareRecipe) -> None:
        """Raises RecipeError where the recipe contradicts itself (a home outside the limits, for example)."""
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

    def send(self, asked: ArmCommand) -> Limited:
        """Limit `asked`, drive the arm with it for one control period, and say what was executed.

        Raises:
            CommandRefused: a value is not finite; nothing was sent, the arm holds.
            ArmError: the arm faulted.
        """
        limited = limit(asked, self.reference(), self.limits)
        self._drive(limited.command)
        self.commanded = limited.command
        return limited

    def hold(self) -> Limited:
        """Stay at the last command for one control period."""
        return self.send(self.reference())

    def reference(self) -> ArmCommand:
        """The command executed last; before the first one, where the arm was measured to be."""
        return self.commanded if self.commanded is not None else self.observe(images=False).commanded

    @abstractmethod
    def observe(self, images: bool = True) -> Observation:
        """The newest state and images. `Observation.commanded` is the last executed command, or the measured one.

        Args:
            images: False where nobody will look at them: an arm that has to draw them may leave them out.

        Raises:
            ArmError: the arm or a camera does not answer.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop motion now; safe to call at any time, also twice."""

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _drive(self, command: ArmCommand) -> None:
        """Move towards a command that already passed the limits, for one control period."""


class Workcell(Protocol):
    """What is around the arm: it lays out a trial and judges it. The mock's physics, or a person with keys."""

    def reset(self, seed: int) -> Mapping[str, object]:
        """Lay out the scene for `seed`, bring the arm to its start, and describe the layout (JSON-able)."""
        ...

    def verdict(self, ended: bool) -> bool | None:
        """True: success. False: failure, only once `ended` (time is up or the policy is done). None: undecided."""
        ...

    def score(self) -> float | None:
        """How well the task is done at this instant, 0 to 1; None where nobody measures it."""
        ...

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """What a simulator knows at this instant, recorded beside the frame by column name; empty on a real arm."""
        ...
