"""Delays Ctrl-C to a safe moment, so that it never cuts a step, a save or an episode in half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets. A second Ctrl-C interrupts at once.

    The caller checks the event at a safe moment and raises KeyboardInterrupt. Outside the main thread nothing is
    deferred, because Python delivers Ctrl-C to the main thread only.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held_back() -> Iterator[None]:
    """Delays Ctrl-C until the end of the block, then raises it as KeyboardInterrupt."""
    with deferred() as interrupted:
        yield
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def ending() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM set, for programs that wait for nothing but their end."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
