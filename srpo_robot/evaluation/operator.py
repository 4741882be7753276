"""Workcells of a real-time arm: a person at the keyboard, or the mock lab's judge in that person's place.

Nothing moves before a key press: one key press sends the arm home, another one starts the policy. Space stops the arm
at once from the thread that reads the keys, independent of the policy and the loop.
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
    """A person ended the run. Finished trials are kept."""


class Keys(Protocol):
    """A person's key presses. Space is never among them, because it stops the arm directly."""

    def next(self) -> str:
        """Waits for a key and returns it in lower case. Enter is GO. Raises ArmError if no key can come any more."""
        ...

    def pressed(self) -> str | None:
        """Returns the next unread key, or None."""
        ...

    def forget(self) -> None:
        """Discards unread keys, so that the next key answers the question on the screen."""
        ...


class LiveArm(Protocol):
    """The methods of a real-time arm that a workcell needs."""

    def go_home(self) -> None:
        """Moves slowly to the recipe's home and gets ready for commands. Raises ArmError."""
        ...

    def stop(self) -> None:
        """Stops at once. Callable from any thread."""
        ...


class StopSwitch:
    """Stops the arm and remembers it. The thread that reads the keys calls `press`."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._pressed = threading.Event()

    def press(self) -> None:
        """Stops the arm. Sets the flag first, so that the loop does not take the arm's error for a fault."""
        self._pressed.set()
        self._stop()

    def pressed(self) -> bool:
        """Returns True if a person stopped the arm since the last `release`."""
        return self._pressed.is_set()

    def release(self) -> None:
        """Clears the flag, because a person wants the arm to move again."""
        self._pressed.clear()


class OperatorCell:
    """A workcell with a person at the keyboard, who lays out the scene and judges the trials."""

    def __init__(
        self,
        arm: LiveArm,
        keys: Keys,
        switch: StopSwitch,
        lay_out: Callable[[int], Mapping[str, object]],
        tell: Callable[[str], None],
        rule: str,
    ) -> None:
        """Binds the workcell to arm and keys.

        Args:
            arm: the arm.
            keys: the person's keys.
            switch: the stop switch of the arm.
            lay_out: returns the scene for a seed. Its "steps" are instructions for the person.
            tell: shows one line to the person.
            rule: definition of success.
        """
        self._arm, self._keys, self._switch = arm, keys, switch
        self._lay_out, self._tell, self._rule = lay_out, tell, rule
        self._label: bool | None = None

    def reset(self, seed: int) -> Mapping[str, object]:
        """Sends the arm home and lays out the scene, each after a key press.

        Raises:
            Quit: the person ended the run.
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
        """Returns the person's label. Waits for it if `ended`.

        Raises:
            Redo: the person wants to repeat the trial.
            Quit: the person ended the run.
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
        """Returns None, because the person gives only a label."""

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Returns no columns, because a real arm has no ground truth."""
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
        """Sends the arm home after a key press, until it arrives without a stop."""
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
    """A client of the mock lab's judge, which lays out the scene and decides success."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urllib.parse.urlsplit(url)
        self._place = (parts.hostname or "", parts.port)

    def lay_out(self, seed: int) -> dict[str, object]:
        """Lays out the scene for `seed` and returns its layout. Raises ArmError if the judge fails."""
        return self._ask("POST", "/reset", {"seed": seed})

    def succeeded(self) -> bool:
        """Returns True if the success rule holds now. Raises ArmError if the judge does not answer."""
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
    """The mock lab's workcell: the judge replaces the person at the keyboard.

    Do not use it for a real arm, which a person must watch.
    """

    def __init__(self, arm: LiveArm, judge: Judge) -> None:
        self._arm, self._judge = arm, judge

    def reset(self, seed: int) -> Mapping[str, object]:
        """Sends the arm home and lays out the scene. Raises ArmError if arm or judge fail."""
        self._arm.go_home()
        return self._judge.lay_out(seed)

    def verdict(self, ended: bool) -> bool | None:
        """Returns the judge's verdict, a failure only if `ended`. Raises ArmError if the judge does not answer."""
        return True if self._judge.succeeded() else (False if ended else None)

    def score(self) -> None:
        """Returns None, because the judge gives only a label, like a person."""

    def truth(self) -> Mapping[str, np.ndarray | str]:
        """Returns no columns, so that the recording is the same as that of a real arm."""
        return {}


def _lines(steps: object) -> tuple[str, ...]:
    return tuple(str(step) for step in steps) if isinstance(steps, list | tuple) else ()
