"""Reads keys from a plain terminal in a thread, so that space stops the arm while the main thread is busy."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from srpo_robot.cli.console import errors
from srpo_robot.errors import ArmError, SrpoRobotError, UsageError, one_line
from srpo_robot.evaluation.operator import GO, QUIT, STOP

_DISABLED = b"\0"  # disables a control character of the terminal (_POSIX_VDISABLE)


class TerminalKeys:
    """The `Keys` of a terminal inside a `with` block. The terminal is restored afterwards, also after a crash.

    Inside the block keys arrive one by one, without Enter and without echo. Ctrl-C works as usual. Ctrl-Z is disabled,
    because a suspended program cannot stop an arm.
    """

    def __init__(self, on_stop: Callable[[], None], descriptor: int | None = None) -> None:
        """`on_stop`: called in the reading thread for every space, and if the terminal goes away.

        Raises:
            UsageError: `descriptor`, or standard input, is no terminal.
        """
        self._descriptor = _standard_input() if descriptor is None else descriptor
        if not os.isatty(self._descriptor):
            raise UsageError(
                "an arm that moves needs a person at the keys, and this is no terminal; run it in one (ssh -t), or "
                "against the mock lab, whose recipe has a judge_url"
            )
        self._on_stop = on_stop
        self._keys: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._trouble: SrpoRobotError | None = None
        self._before: list[Any] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._descriptor)
        atexit.register(self._restore)
        tty.setcbreak(self._descriptor)
        attributes = termios.tcgetattr(self._descriptor)
        attributes[6][termios.VSUSP] = _DISABLED
        termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)
        self._wake_out, self._wake_in = os.pipe()
        self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._wake_in, b"x")
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake_in)
        os.close(self._wake_out)
        self._restore()
        atexit.unregister(self._restore)

    def next(self) -> str:
        """Waits for a key. Raises ArmError if the terminal is gone, or the stop was not confirmed."""
        return self._checked(self._keys.get())

    def pressed(self) -> str | None:
        """Returns the next key that was already pressed, or None. Raises as `next`."""
        try:
            return self._checked(self._keys.get_nowait())
        except queue.Empty:
            return None

    def forget(self) -> None:
        """Drops keys that were pressed and not read. Raises as `next`."""
        while self.pressed() is not None:
            pass

    def _checked(self, key: str) -> str:
        if self._trouble is not None:
            raise self._trouble
        return key

    def _read(self) -> None:
        while True:
            readable, _, _ = select.select([self._descriptor, self._wake_out], [], [])
            if self._wake_out in readable:
                return
            try:
                text = os.read(self._descriptor, 64).decode(errors="replace")
            except OSError:
                text = ""
            if not text:  # the terminal is gone, so no person can stop the arm
                self._stop()
                self._fail(ArmError("the terminal has gone away, and with it the stop key; the arm was stopped"))
                return
            for key in text.lower():
                if key == STOP:
                    self._stop()
                else:
                    self._keys.put(GO if key == "\r" else key)

    def _stop(self) -> None:
        try:
            self._on_stop()
        except SrpoRobotError as error:
            errors.print(
                f"\n[bold red]{one_line(error)}[/]", soft_wrap=True
            )  # printed now, not at the next call of `next`
            self._fail(error)

    def _fail(self, error: SrpoRobotError) -> None:
        self._trouble = error
        self._keys.put(QUIT)  # wakes a thread that waits in `next`

    def _restore(self) -> None:
        if self._before:
            with contextlib.suppress(termios.error):  # a terminal that is gone cannot be restored
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


def _standard_input() -> int:
    """Returns the descriptor of standard input; -1, which is no terminal, if there is none."""
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # replaced, closed, or None
        return -1
