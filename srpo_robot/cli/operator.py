"""Keys from a plain terminal, read in a thread: space stops the arm while everything else is busy."""

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

_DISABLED = b"\0"  # for a control character of the terminal (_POSIX_VDISABLE)


class TerminalKeys:
    """The `Keys` of a terminal as long as the `with` block lasts; the terminal is then as it was, also after a crash.

    While it is open keys come one by one, without Enter and without echo; Ctrl-C works as ever; Ctrl-Z does not, for a
    program that sleeps cannot stop an arm.
    """

    def __init__(self, on_stop: Callable[[], None], descriptor: int | None = None) -> None:
        """`on_stop`: called in the reading thread for every space, and where the terminal goes away.

        Raises:
            UsageError: no terminal.
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
        """Wait for a key. Raises ArmError where the terminal is gone, or the stop was not confirmed."""
        return self._checked(self._keys.get())

    def pressed(self) -> str | None:
        """The next key that was pressed already, or None. Raises as `next`."""
        try:
            return self._checked(self._keys.get_nowait())
        except queue.Empty:
            return None

    def forget(self) -> None:
        """Drop what was pressed and not read. Raises as `next`."""
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
            if not text:  # the terminal is gone, and with it the person
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
            errors.print(f"\n[bold red]{one_line(error)}[/]", soft_wrap=True)  # now, not when somebody asks for a key
            self._fail(error)

    def _fail(self, error: SrpoRobotError) -> None:
        self._trouble = error
        self._keys.put(QUIT)  # wakes who waits

    def _restore(self) -> None:
        if self._before:
            with contextlib.suppress(termios.error):  # a terminal that is gone needs no restoring
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


def _standard_input() -> int:
    """Its descriptor; -1, which is no terminal, where there is none."""
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # replaced, closed, or None
        return -1
