"""The process that talks to the controller. It has no policy, no cameras and no torch, and starts in under a second.

`streamer_process` runs it as `python -m srpo_robot.arm.xarm7.streamer` and passes the file descriptors of its channels.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from srpo_robot.arm.xarm7 import controller_setup
from srpo_robot.arm.xarm7.controller_link import ControllerLink
from srpo_robot.arm.xarm7.driver import load_sdk
from srpo_robot.arm.xarm7.stream_loop import Channels, Streamer
from srpo_robot.arm.xarm7.streamer_process import StreamerConfig
from srpo_robot.errors import ArmError, SrpoRobotError
from srpo_robot.recipes import ControllerRecipe


@contextlib.contextmanager
def only_one(controller: ControllerRecipe) -> Iterator[None]:
    """Locks the controller against other streamers of this machine. Raises ArmError if one of them holds it."""
    path = Path(tempfile.gettempdir()) / f"srpo-robot-{controller.address}-{controller.command_port}.lock"
    with _locked(path, controller.address):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, address: str) -> IO[str]:
    """Returns the locked file at `path`. If its last owner deleted it meanwhile, creates a new one."""
    while True:
        try:
            file = path.open("a")
        except OSError as error:
            raise ArmError(f"{path} cannot be opened ({error.strerror}); another user may have the arm") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            file.close()
            raise ArmError(f"another srpo-robot on this machine has the arm at {address}; end it first") from None
        file.close()


def main(arguments: list[str]) -> int:
    """Runs the config that arrives as the first message. Returns 0 after a regular end."""
    messages = Connection(int(arguments[0]))
    stop_channel, log_pipe = socket.socket(fileno=int(arguments[1])), int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_blocking(log_pipe, False)
    config: StreamerConfig = messages.recv()
    controller = config.recipe.controller
    assert controller is not None
    real_time = _request_real_time()
    try:
        with only_one(controller):
            link = ControllerLink(controller, load_sdk)
            if config.task == "recover":
                link.recover()
                messages.send(("recovered", None))
                return 0
            info = set_up(config, controller, link)
            streamer = Streamer(config, link, Channels(messages, stop_channel, log_pipe))
            signal.signal(signal.SIGTERM, streamer.give_up)
            streamer.run(info | {"real_time": real_time, "pid": os.getpid()})
    except SrpoRobotError as error:
        messages.send(("failed", error))
        return 1
    return 0


def set_up(config: StreamerConfig, controller: ControllerRecipe, link: ControllerLink) -> dict[str, Any]:
    """Stores and checks the settings, and returns the controller's info. A dry run only compares them."""
    settings = controller_setup.recipe_settings(config.recipe, controller)
    info: dict[str, Any] = {
        "serial": link.identity.serial,
        "box_serial": link.identity.box_serial,
        "firmware": link.identity.firmware,
    }
    if config.dry_run:
        link.check_errors()
        return info | {"differences": controller_setup.differences(settings, link.settings())}
    link.set_up(settings)
    return info | {"differences": ()}


def _request_real_time() -> bool:
    """Requests real-time scheduling for all later threads and shortens thread turns. Returns whether it was granted."""
    gc.collect()
    gc.freeze()  # the garbage collector skips the imported modules from now on
    sys.setswitchinterval(0.001)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    except (OSError, AttributeError):
        return False
    return True


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(_code)  # the SDK's threads may hang in a dead link
