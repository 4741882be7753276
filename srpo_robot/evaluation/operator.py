"""The workcells of an arm that moves for real: a person with keys, or the mock lab's judge in that person's place.

Nothing moves before a key was pressed: one sends the arm home, one starts the policy. Space stops the arm at once, from
the thread that reads the keys, whatever the policy or the loop are doing.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from srpo_robot.errors import ArmError, SrpoRobotError, one_line
from srpo_robot.evaluation.runtime import Redo

STOP, SUCCESS, FAILURE, REDO, QUIT, GO = " ", "s", "f", "r", "q", "\n"
HELP = "space stops the arm; s success, f failure, r redo, q quit"
_JUDGE_S = 10.0


class Quit(SrpoRobotError):
    """A person ended the run; trials that are done stay done."""


class Keys(Protocol):
    """Keys that a person presses; space never comes here, it stops the arm by itself."""

    def next(self) -> str:
        """Wait for a key, in lower case; Enter is GO. Raises ArmError where no more can come."""
        ...

    def pressed(self) -> str | None:
        """The next key that was pressed already, or None."""
        ...

    def forget(self) -> None:
        """Drop keys that were pressed and not read: an answer is one to what is on the screen."""
        ...


class LiveArm(Protocol):
    """What a workcell needs of an arm that moves for real."""

    def go_home(self) -> None:
        """Move slowly to the recipe's home and be ready for commands. Raises ArmError."""
        ...

    def stop(self) -> None:
        """Stop now, from any thread."""
        ...


class StopSwitch:
    """Remembers that a person stopped the arm; `press` is called from the thread that reads the keys."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._pressed = threading.Event()

    def press(self) -> None:
        """Stop the arm. Remembered first: what the loop then hears from the arm is no fault."""
        self._pressed.set()
        self._stop()

    def pressed(self) -> bool:
        """Whether the arm was stopped by hand since the last `release`."""
        return self._pressed.is_set()

    def release(self) -> None:
        """A person wants it to move again."""
        self._pressed.clear()


class OperatorCell:
    """A workcell whose scene is laid out, and whose trials are judged, by a person with keys."""

    def __init__(
        self,
        arm: LiveArm,
        keys: Keys,
        switch: StopSwitch,
        lay_out: Callable[[int], Mapping[str, object]],
        tell: Callable[[str], None],
        rule: str,
    ) -> None:
        """`lay_out`: the scene for a seed, with what to tell the person as its "steps"; `rule`: what success means."""
        self._arm, self._keys, self._switch = arm, keys, switch
        self._lay_out, self._tell, self._rule = lay_out, tell, rule
        self._label: bool | None = None

    def reset(self, seed: int) -> Mapping[str, object]:
        """Home and layout, each after a key.

        Raises:
            Quit: the person has had enough.
            ArmError: the arm faulted.
        """
        self._label = None
        while True:
            self._home()
            layout = dict(self._lay_out(seed))
            for line in _lines(layout.pop("steps", ())):
                self._tell(f"  {line}")
            self._confirm("Enter starts the policy, hands off the table; q quits.")
            if not self._switch.pressed():
                return layout
            self._tell("Stopped.")

    def verdict(self, ended: bool) -> bool | None:
        """The person's label; once `ended`, waits for it.

        Raises:
            Redo, Quit: what they ask for.
        """
        while self._label is None and (key := self._keys.pressed()) is not None:
            self._take(key)
        if self._label is None and ended:
            self._keys.forget()
            self._tell(f"The trial is over. Success means: {self._rule}. s success, f failure, r redo, q quit")
            while self._label is None:
                self._take(self._keys.next())
        return self._label

    def score(self) -> None:
        """Nothing: the person says whether it succeeded."""

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Nothing: a real arm does not know."""
        return {}

    def _take(self, key: str) -> None:
        match key:
            case "s" | "f":
                self._label = key == SUCCESS
            case "r":
                raise Redo("redone by hand")
            case "q":
                raise Quit("ended by hand")

    def _home(self) -> None:
        """Ask until the arm has come home without being stopped on its way."""
        while True:
            self._confirm("Enter sends the arm home, slowly; keep clear. q quits.")
            self._switch.release()
            try:
                self._arm.go_home()
            except ArmError:
                if not self._switch.pressed():
                    raise
            if not self._switch.pressed():
                return
            self._tell("Stopped.")

    def _confirm(self, question: str) -> None:
        self._keys.forget()
        self._tell(question)
        while (key := self._keys.next()) != GO:
            if key == QUIT:
                raise Quit("ended by hand")


class Judge:
    """The mock lab's judge, over HTTP: it sets the table and calls the result."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urllib.parse.urlsplit(url)
        self._place = (parts.hostname or "", parts.port)

    def lay_out(self, seed: int) -> dict[str, object]:
        """Set the table for `seed`; what it is. Raises ArmError where the judge does not."""
        return self._ask("POST", "/reset", {"seed": seed})

    def succeeded(self) -> bool:
        """Whether the success rule holds now. Raises ArmError where the judge does not answer."""
        return self._ask("GET", "/verdict").get("success") is True

    def _ask(self, method: str, path: str, content: Mapping[str, object] | None = None) -> dict[str, object]:
        link = http.client.HTTPConnection(*self._place, timeout=_JUDGE_S)
        try:
            link.request(method, path, json.dumps(content).encode() if content is not None else None)
            answer = link.getresponse()
            text = answer.read().decode(errors="replace")
            if answer.status != 200:
                raise ArmError(f"the judge at {self.url} refused: {one_line(Exception(text))}")
            return dict(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ArmError(
                f"the judge at {self.url} does not answer ({one_line(error)}); is 'srpo-robot mock-lab' running?"
            ) from None
        finally:
            link.close()


class JudgedCell:
    """The mock lab's workcell: its judge stands in for the person at the keys.

    There is no such thing on a real arm: an arm that moves for real is watched by a person.
    """

    def __init__(self, arm: LiveArm, judge: Judge) -> None:
        self._arm, self._judge = arm, judge

    def reset(self, seed: int) -> Mapping[str, object]:
        """Home, and the table laid out. Raises ArmError where arm or judge do not do it."""
        self._arm.go_home()
        return self._judge.lay_out(seed)

    def verdict(self, ended: bool) -> bool | None:
        """As the physics says; failure only once `ended`. Raises ArmError where the judge does not answer."""
        return True if self._judge.succeeded() else (False if ended else None)

    def score(self) -> None:
        """Nothing: the judge says whether it succeeded, as a person would."""

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Nothing: what is recorded is what a real arm would record."""
        return {}


def _lines(steps: object) -> tuple[str, ...]:
    return tuple(str(step) for step in steps) if isinstance(steps, list | tuple) else ()
