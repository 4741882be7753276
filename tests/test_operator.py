"""Tests of the operator: a real terminal (a pty), the workcell that prompts and labels, and the judge service."""

from __future__ import annotations

import contextlib
import os
import pty
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler

import pytest

from srpo_robot.cli.operator import TerminalKeys
from srpo_robot.errors import ArmError, UsageError
from srpo_robot.evaluation.operator import GO, Judge, JudgedCell, OperatorCell, Quit, StopSwitch
from srpo_robot.evaluation.runtime import Redo
from srpo_robot.http_server import HttpServer, refuse, respond_json

# --- a terminal


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Yields (the person's end, the program's end) of a pseudo terminal."""
    person, program = pty.openpty()
    yield person, program
    for descriptor in (person, program):
        with contextlib.suppress(OSError):  # a test closed it
            os.close(descriptor)


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def settings(descriptor: int) -> list:
    return termios.tcgetattr(descriptor)


def no_thread() -> bool:
    return not any(thread.name == "keys" for thread in threading.enumerate())


def test_keys_come_one_by_one_without_enter_and_in_lower_case(terminal):
    person, program = terminal
    with TerminalKeys(lambda: None, program) as keys:
        assert keys.pressed() is None
        os.write(person, b"sF\rq")
        assert [keys.next() for _ in range(4)] == ["s", "f", GO, "q"]
        os.write(person, b"abc")
        until(lambda: keys._keys.qsize() == 3)
        keys.forget()
        assert keys.pressed() is None
    assert no_thread()


def test_space_stops_while_the_program_is_busy_and_is_no_key(terminal):
    person, program = terminal
    stopped_in: list[str] = []
    with TerminalKeys(lambda: stopped_in.append(threading.current_thread().name), program) as keys:
        os.write(person, b" s")
        until(lambda: bool(stopped_in))  # no key was requested
        assert stopped_in == ["keys"] and keys.next() == "s"


@pytest.mark.parametrize("crash", [False, True])
def test_the_terminal_settings_are_restored(terminal, crash):
    _, program = terminal
    before = settings(program)
    try:
        with TerminalKeys(lambda: None, program):
            during = settings(program)
            assert not during[3] & termios.ICANON and not during[3] & termios.ECHO
            assert during[3] & termios.ISIG  # Ctrl-C still works
            assert during[6][termios.VSUSP] == b"\0"  # Ctrl-Z does not
            if crash:
                raise RuntimeError("boom")
    except RuntimeError:
        pass
    assert settings(program) == before and no_thread()


def test_an_unconfirmed_stop_is_reported_and_raised(terminal, capsys):
    person, program = terminal

    def stop() -> None:
        raise ArmError("the controller did not confirm the stop: PRESS THE EMERGENCY STOP")

    with TerminalKeys(stop, program) as keys:
        os.write(person, b" ")
        with pytest.raises(ArmError, match="PRESS THE EMERGENCY STOP"):
            keys.next()
    assert "PRESS THE EMERGENCY STOP" in capsys.readouterr().err


def test_a_terminal_that_goes_away_stops_the_arm(terminal):
    person, program = terminal
    stops: list[int] = []
    with TerminalKeys(lambda: stops.append(1), program) as keys:
        os.close(person)
        with pytest.raises(ArmError, match="the terminal has gone away"):
            keys.next()
        assert stops == [1]


def test_a_run_without_a_terminal_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(UsageError, match="needs a person at the keys"):
        TerminalKeys(lambda: None, file.fileno())


# --- the operator's workcell


class Person:
    """Returns the given keys in order. A request for more keys fails the test."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)

    def next(self) -> str:
        return self.keys.pop(0)

    def pressed(self) -> str | None:
        return self.keys.pop(0) if self.keys and self.keys[0] != "wait" else None

    def forget(self) -> None:
        if self.keys and self.keys[0] == "wait":
            self.keys.pop(0)


class HomingArm:
    """An arm that counts its calls and calls `hit` on its way home."""

    def __init__(self, hit: Callable[[], None] = lambda: None) -> None:
        self.homes = self.stops = 0
        self.hit = hit

    def go_home(self) -> None:
        self.homes += 1
        self.hit()

    def stop(self) -> None:
        self.stops += 1


def cell(person: Person, arm: HomingArm | None = None) -> tuple[OperatorCell, HomingArm, StopSwitch, list[str]]:
    arm = arm or HomingArm()
    switch, messages = StopSwitch(arm.stop), list[str]()
    workcell = OperatorCell(
        arm, person, switch, lambda seed: {"seed": seed, "steps": ["apple left"]}, messages.append, "it is on the plate"
    )
    return workcell, arm, switch, messages


def test_the_arm_waits_for_a_key_and_the_layout_is_printed():
    workcell, arm, _, messages = cell(Person("x", GO, "y", GO))
    assert workcell.reset(7) == {"seed": 7}
    assert arm.homes == 1
    assert "Enter sends the arm home" in messages[0] and messages[1] == "  apple left" and "Enter starts" in messages[2]


def test_q_ends_the_run_before_the_arm_moves():
    workcell, arm, _, _ = cell(Person("q"))
    with pytest.raises(Quit):
        workcell.reset(0)
    assert arm.homes == 0


@pytest.mark.parametrize(("key", "label"), [("s", True), ("f", False)])
def test_a_label_in_the_middle_of_a_trial_ends_it(key, label):
    workcell, *_ = cell(Person(GO, GO, "wait"))
    workcell.reset(0)
    assert workcell.verdict(ended=False) is None
    workcell._keys.keys[:] = ["x", key]  # type: ignore[attr-defined]
    assert workcell.verdict(ended=False) is label and workcell.verdict(ended=True) is label


def test_at_the_end_the_cell_waits_for_the_label():
    workcell, _, _, messages = cell(Person(GO, GO, "wait", "z", "f"))
    workcell.reset(0)
    assert workcell.verdict(ended=True) is False
    assert "it is on the plate" in messages[-1]


def test_redo_and_quit_are_raised():
    workcell, *_ = cell(Person(GO, GO, "r"))
    workcell.reset(0)
    with pytest.raises(Redo):
        workcell.verdict(ended=False)
    workcell, *_ = cell(Person(GO, GO, "q"))
    workcell.reset(0)
    with pytest.raises(Quit):
        workcell.verdict(ended=True)


def test_a_new_trial_forgets_the_label():
    workcell, *_ = cell(Person(GO, GO, "s"))
    workcell.reset(0)
    assert workcell.verdict(ended=True) is True
    workcell._keys.keys[:] = [GO, GO, "wait"]  # type: ignore[attr-defined]
    workcell.reset(1)
    assert workcell.verdict(ended=False) is None


def test_space_on_the_way_home_stops_without_a_fault_and_the_operator_is_prompted_again():
    holder: list[StopSwitch] = []

    def hit() -> None:
        if arm.homes == 1:
            holder[0].press()
            raise ArmError("the arm was stopped")

    arm = HomingArm(hit)
    workcell, _, switch, messages = cell(Person(GO, GO, GO), arm)
    holder.append(switch)
    workcell.reset(0)
    assert arm.homes == 2 and arm.stops == 1 and "Stopped." in messages and not switch.pressed()


def test_space_before_the_start_sends_the_arm_home_again():
    arm = HomingArm()
    workcell, _, switch, _ = cell(Person(), arm)

    class Restless(Person):
        def next(self) -> str:
            if len(self.keys) == 3:
                switch.press()  # during the prompt for the start
            return super().next()

    workcell._keys = Restless(GO, GO, GO, GO)
    workcell.reset(0)
    assert arm.homes == 2 and not switch.pressed()


def test_a_fault_on_the_way_home_is_a_fault():
    def hit() -> None:
        raise ArmError("controller error C31")

    with pytest.raises(ArmError, match="C31"):
        cell(Person(GO), HomingArm(hit))[0].reset(0)


def test_the_stop_is_recorded_before_it_is_sent_to_the_arm():
    states: list[bool] = []
    switch = StopSwitch(lambda: states.append(switch.pressed()))
    switch.press()
    assert states == [True] and switch.pressed()
    switch.release()
    assert not switch.pressed()


# --- the judge


def judge_of(answers: Mapping[str, object]) -> HttpServer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path in answers:
            respond_json(handler, answers[handler.path])
        else:
            refuse(handler, 409, "the cell has no\nsuch task")

    return HttpServer(answer)


def test_the_judge_lays_out_and_calls_the_result():
    arm = HomingArm()
    with judge_of({"/reset": {"seed": 3}, "/verdict": {"success": False}}) as server:
        workcell = JudgedCell(arm, Judge(server.url))
        assert workcell.reset(3) == {"seed": 3} and arm.homes == 1
        assert workcell.verdict(ended=False) is None and workcell.verdict(ended=True) is False
    with judge_of({"/verdict": {"success": True}}) as server:
        assert JudgedCell(arm, Judge(server.url)).verdict(ended=False) is True


def test_a_judge_that_refuses_or_does_not_answer_is_a_one_line_error():
    with judge_of({}) as server:
        with pytest.raises(ArmError, match="refused: the cell has no such task"):
            Judge(server.url).lay_out(1)
        url = server.url
    with pytest.raises(ArmError, match="does not answer .* is 'srpo-robot mock-lab' running"):
        Judge(url).succeeded()
