"""Inspects one controller through the vendor's SDK, in a separate process. For `check`, which moves no arm.

The SDK prints, changes the socket time limits of its whole process, and leaves threads in dead links behind. The
separate process contains all of that: it answers requests one at a time and then ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from srpo_robot.arm.xarm7.controller_link import ControllerLink
from srpo_robot.arm.xarm7.controller_setup import Identity, StoredSettings
from srpo_robot.errors import ArmError, SrpoRobotError
from srpo_robot.recipes import ControllerRecipe

_ANSWER_S = 60.0  # settings are stored one by one, each with the SDK's own time limit
_END_S = 3.0
_PAUSE_S = 0.01  # between round trips: the vendor asks for at most 100 a second


class Inspection:
    """The controller of one arm, queried from this process for the duration of a `with` block. Not thread-safe."""

    def __init__(self, controller: ControllerRecipe) -> None:
        self._controller = controller
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Connects. Raises ArmError as `ControllerLink`, or if another srpo-robot on this machine holds the arm."""
        self._channel, child_end = Pipe()
        command = [sys.executable, "-W", "ignore", "-m", "srpo_robot.arm.xarm7.inspection", str(child_end.fileno())]
        devnull = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command,
                stdin=devnull,
                stdout=devnull,
                stderr=devnull,
                pass_fds=(child_end.fileno(),),
                start_new_session=True,
            )
        finally:
            child_end.close()
        try:
            self._channel.send(self._controller)
            self.identity: Identity = self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process, and kills it if it hangs. The arm stays as it is."""
        process, self._process = self._process, None
        self._channel.close()
        if process is None:
            return
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # --- requests; each raises ArmError as the method of `ControllerLink` ---------------------------------------------

    def errors(self) -> tuple[int, int]:
        """Returns the current error and warning."""
        return self._ask("errors")

    def settings(self) -> StoredSettings:
        """Returns the settings stored in the controller."""
        return self._ask("settings")

    def set_up(self, settings: StoredSettings) -> None:
        """Stores the settings and reads them back: motors on, the arm stopped. Needs a person's confirmation."""
        self._ask("set_up", settings)

    def recover(self) -> None:
        """Cleans the controller's error; the arm stays stopped. Needs a person's confirmation."""
        self._ask("recover")

    def gripper_opening(self) -> float:
        """Returns the measured opening [m]."""
        return self._ask("gripper_opening")

    def move_gripper(self, opening_m: float) -> None:
        """Sends the gripper to `opening_m` without waiting."""
        self._ask("move_gripper", opening_m)

    def round_trips(self, count: int) -> np.ndarray:
        """Returns the durations of `count` read-only commands, (count,) [s]."""
        return self._ask("round_trips", count)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, *values: Any) -> Any:
        try:
            self._channel.send((method, *values))
        except OSError:
            raise _gone() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._channel.poll(_ANSWER_S):
                raise ArmError(f"the controller keeps the vendor's SDK waiting for {_ANSWER_S:g} s; restart its box")
            kind, value = self._channel.recv()
        except (EOFError, OSError):
            raise _gone() from None
        if kind == "failed":
            raise value
        return value


def _gone() -> ArmError:
    return ArmError("the process that asks the controller has ended; try again")


# --- the other process --------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Connects, then answers requests until the other end closes."""
    from srpo_robot.arm.xarm7.driver import load_sdk
    from srpo_robot.arm.xarm7.streamer import only_one

    channel = Connection(descriptor)
    controller: ControllerRecipe = channel.recv()
    try:
        with only_one(controller):
            link = ControllerLink(controller, load_sdk)
            channel.send(("done", link.identity))
            _serve(channel, link)
    except SrpoRobotError as error:
        channel.send(("failed", error))


def _serve(channel: Connection, link: ControllerLink) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "errors": link.errors,
        "settings": link.settings,
        "set_up": link.set_up,
        "recover": link.recover,
        "gripper_opening": link.gripper_opening,
        "move_gripper": link.move_gripper,
        "round_trips": lambda count: _round_trips(link, count),
    }
    while True:
        method, *values = channel.recv()
        try:
            channel.send(("done", calls[method](*values)))
        except SrpoRobotError as error:
            channel.send(("failed", error))


def _round_trips(link: ControllerLink, count: int) -> np.ndarray:
    seconds = []
    for _ in range(count):
        began_s = time.perf_counter()
        link.errors()
        seconds.append(time.perf_counter() - began_s)
        time.sleep(_PAUSE_S)
    return np.array(seconds)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):  # the other end closed
        main(int(sys.argv[1]))
    os._exit(0)  # the SDK's threads may hang in a dead link
