"""Fault injection: errors of the controller and the gripper, and network faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from srpo_robot.errors import UsageError
from srpo_robot.mock.controller.state import EMERGENCY, Controller

Reports = Literal["fresh", "stale", "silent"]


@dataclass
class Rule:
    """One network fault. `client` None means every client. It ends after `remaining` requests or at `until_s`."""

    kind: Literal["drop", "delay", "dead", "cut"]
    client: int | None = None
    remaining: int | None = None
    until_s: float | None = None
    delay_s: float = 0.0


@dataclass(frozen=True)
class Fate:
    """Treatment of one request.

    Attributes:
        dead: the request never arrives.
        lost: the request is carried out and its reply is lost.
        cut: as `lost`, and the connection breaks.
        delay_s: delay of the reply.
    """

    dead: bool = False
    lost: bool = False
    cut: bool = False
    delay_s: float = 0.0


@dataclass
class Network:
    """The active faults. Only the server's thread uses this."""

    rules: list[Rule] = field(default_factory=list)
    reports: Reports = "fresh"

    def fate(self, client: int, now_s: float) -> Fate:
        """Returns the treatment of the request that `client` sends now, and counts it in the rules that count."""
        self.rules = [r for r in self.rules if r.remaining != 0 and (r.until_s is None or now_s < r.until_s)]
        rules = [r for r in self.rules if r.client in (None, client)]
        if any(r.kind == "dead" for r in rules):
            return Fate(dead=True)
        for rule in rules:
            if rule.remaining is not None:
                rule.remaining -= 1
        lost, cut = (any(r.kind == kind for r in rules) for kind in ("drop", "cut"))
        return Fate(lost=lost, cut=cut, delay_s=max((r.delay_s for r in rules), default=0.0))

    def heal(self) -> None:
        """Removes all faults."""
        self.rules, self.reports = [], "fresh"


class Faults:
    """The fault injector. Callable from any thread. The fault is active when a method returns.

    A `client` is the number of a command connection, 1 for the first since the server started. None means all.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], None]], None],
        controller: Controller,
        network: Network,
        reset: Callable[[], None],
    ) -> None:
        """`run` calls a function in the server's thread and waits for it. `reset` breaks all connections."""
        self._run = run
        self._controller = controller
        self._network = network
        self._reset = reset

    def error(self, code: int) -> None:
        """Latches the controller's error C`code` and stops the arm, as a collision (31) would."""
        _byte(code)
        self._run(lambda: self._controller.fault(code))

    def warn(self, code: int) -> None:
        """Raises the controller's warning W`code`."""
        _byte(code)

        def raise_it() -> None:
            self._controller.warning = code

        self._run(raise_it)

    def emergency_stop(self, code: int = 1, latched: bool = True) -> None:
        """Presses the stop: 1 button, 2 emergency input, 3 three-state switch. Releases it at once if not `latched`.

        Raises:
            UsageError: `code` is not 1 to 3.
        """
        if code not in EMERGENCY:
            raise UsageError(f"an emergency stop is 1 (button), 2 (input) or 3 (three-state switch), not {code}")
        self._run(lambda: self._controller.press(code))
        if not latched:
            self.release()

    def release(self) -> None:
        """Releases the emergency stop. The error stays until a client cleans it."""
        self._run(self._controller.release)

    def gripper_fault(self, code: int | None = None) -> None:
        """Sets the gripper's own error G`code`, which cleaning does not remove. None makes its bus dead (C19)."""
        gripper = self._controller.gripper

        def fail() -> None:
            if code is None:
                self._controller.bus_dead = True
            else:
                gripper.broken = True
                gripper.fail(code)

        self._run(fail)

    def gripper_repair(self) -> None:
        """Undoes `gripper_fault`. Latched errors stay until a client cleans them."""

        def repair() -> None:
            self._controller.bus_dead = self._controller.gripper.broken = False

        self._run(repair)

    def drop_replies(self, count: int | None = None, seconds: float | None = None, client: int | None = None) -> None:
        """Carries out requests but loses their replies: for `count` requests, for `seconds`, or until `heal`."""
        self._add(Rule("drop", client, count), seconds)

    def delay_replies(self, delay_s: float, count: int | None = None, client: int | None = None) -> None:
        """Carries out requests at once and sends their replies `delay_s` later, in order."""
        self._add(Rule("delay", client, count, delay_s=delay_s), None)

    def cut_reply(self, client: int | None = None) -> None:
        """Carries out the next request and sends RST instead of its reply."""
        self._add(Rule("cut", client, remaining=1), None)

    def half_open(self, client: int | None = None) -> None:
        """Makes the link dead though it looks open: requests never arrive. If `client` is None, reports stop too."""
        self._add(Rule("dead", client), None)
        if client is None:
            self.silence_reports()

    def stale_reports(self) -> None:
        """Repeats the next report forever."""
        self._set_reports("stale")

    def silence_reports(self) -> None:
        """Stops the reports and keeps their connections open."""
        self._set_reports("silent")

    def reset_connections(self) -> None:
        """Breaks every connection with RST. New ones are accepted."""
        self._run(self._reset)

    def heal(self) -> None:
        """Ends all network faults."""
        self._run(self._network.heal)

    def _add(self, rule: Rule, seconds: float | None) -> None:
        def add() -> None:
            rule.until_s = None if seconds is None else self._controller.time_s + seconds
            self._network.rules.append(rule)

        self._run(add)

    def _set_reports(self, reports: Reports) -> None:
        def change() -> None:
            self._network.reports = reports

        self._run(change)


def _byte(code: int) -> None:
    if not 1 <= code <= 255:
        raise UsageError(f"a code is 1 to 255, not {code}")
