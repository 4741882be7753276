"""Ctrl-C at a moment of our choosing: a step, a save or an episode is never cut in half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C sets the event that is yielded; a second one interrupts at once.

    Whoever opens it looks at the event when it suits, and raises KeyboardInterrupt. In another thread than the main one
    nothing is deferred: Python delivers Ctrl-C to the main thread only.
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
    """While open, a Ctrl-C waits; it is raised as KeyboardInterrupt when the block is done."""
    with deferred() as interrupted:
        yield
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def ending() -> Iterator[threading.Event]:
    """While open, Ctrl-C and SIGTERM set the event that is yielded: the way to end what waits for nothing else."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
