"""Tests of a policy in a separate thread or on another machine: late, hung, crashed or wrong."""

from __future__ import annotations

import signal
import socket
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from test_evaluation import Script, Sink, ToyArm, ToyCell, rows, setup

from srpo_robot.arm.actions import TCP_NAMES, make_action_space
from srpo_robot.errors import ArmError, CheckpointError, PolicyError, UndecodableActions, UsageError
from srpo_robot.evaluation.policy import PENDING, AsyncRunner
from srpo_robot.evaluation.runtime import Redo, Step, run_episode
from srpo_robot.evaluation.served_policy import (
    PolicyServer,
    ServedPolicy,
    describe,
    pack_observation,
    unpack_observation,
)
from srpo_robot.records import ActionChunk, ArmCommand, ArmState, Observation


@dataclass
class Slow(Script):
    """A policy that answers only after `go` is set."""

    go: threading.Event = field(default_factory=threading.Event)
    calls: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def act(self, observation: Observation) -> ActionChunk | None:
        self.calls.release()
        self.go.wait(30.0)
        return super().act(observation)


def observation(arm: ToyArm | None = None) -> Observation:
    return (arm or ToyArm()).observe()


# --- in a thread


def test_answers_equal_the_policys():
    with AsyncRunner(Script(rows(3)), 10.0, 10.0) as runner:
        runner.reset(0)
        answer = runner.act(observation())
        assert isinstance(answer, ActionChunk) and len(answer.actions) == 3
        assert runner.act(observation()) is None
    assert not any(thread.name == "policy" for thread in threading.enumerate())


def test_a_late_answer_belongs_to_its_observation():
    policy = Slow(rows(3))
    with AsyncRunner(policy, 0.001, 10.0) as runner:
        runner.reset(0)
        arm = ToyArm()
        assert runner.act(observation(arm)) == PENDING
        arm.driven.append(ArmCommand(arm.home_rad, 0.04))
        assert runner.act(observation(arm)) == PENDING
        policy.go.set()
        while (answer := runner.act(observation(arm))) == PENDING:
            time.sleep(0.001)
        assert isinstance(answer, ActionChunk) and policy.pixels == [0]  # the first observation, requested once


def test_answers_for_the_last_trial_are_dropped():
    policy = Slow(rows(6))
    with AsyncRunner(policy, 0.001, 10.0) as runner:
        runner.reset(0)
        assert runner.act(observation()) == PENDING
        policy.calls.acquire()
        policy.go.set()
        runner.reset(1)
        while (answer := runner.act(observation())) == PENDING:
            time.sleep(0.001)
        assert isinstance(answer, ActionChunk) and policy.at == 3  # restarted, one chunk in


def test_a_policy_that_never_answers_times_out():
    policy = Slow(rows(3))
    with AsyncRunner(policy, 0.001, 0.05) as runner:
        runner.reset(0)

        def wait_for_it() -> None:
            while runner.act(observation()) == PENDING:
                time.sleep(0.001)

        with pytest.raises(PolicyError, match="has not answered for 0.05 s"):
            wait_for_it()
        with pytest.raises(PolicyError, match="has not answered"):
            runner.reset(1)  # still busy
        policy.go.set()


class Crashing(Script):
    error: Exception = RuntimeError("CUDA out of\nmemory")

    def act(self, observation: Observation) -> ActionChunk | None:
        raise self.error


def test_a_crash_is_a_one_line_error_and_refusals_pass_unchanged():
    policy = Crashing(rows(3))
    with AsyncRunner(policy, 10.0, 10.0) as runner:
        runner.reset(0)
        with pytest.raises(PolicyError, match="the policy crashed: RuntimeError: CUDA out of memory"):
            runner.act(observation())
        policy.error = UndecodableActions("no action in it")
        with pytest.raises(UndecodableActions, match="no action in it"):
            runner.act(observation())


# --- in the loop


class WatchfulArm(ToyArm):
    """An arm that lets the policy continue after three steps on hold."""

    policy: Slow

    def _drive(self, command: ArmCommand) -> None:
        super()._drive(command)
        if len(self.driven) == 3:
            self.policy.go.set()
            time.sleep(0.05)


def test_the_arm_holds_and_counts_while_the_policy_is_late():
    arm, policy, sink, steps = WatchfulArm(), Slow(rows(4, z=0.24), execute=4), Sink(), list[Step]()
    arm.policy = policy
    with AsyncRunner(policy, 0.001, 10.0) as runner:
        trial_setup = setup(arm, ToyCell(arm), time_limit_s=1.0, runner=runner, log=steps.append)
        outcome = run_episode(trial_setup, policy, 0, sink)
    assert outcome.late >= 3 and outcome.steps <= 10
    holds = [step for step in steps if step.row < 0]
    assert len(holds) == outcome.late and [step.number for step in steps] == list(range(outcome.steps))
    for step in holds[:3]:
        assert step.limited.command.joints_rad == pytest.approx(arm.home_rad) and step.chunk == -1
    assert len(sink.frames) == outcome.steps  # held frames are recorded too, so time steps are even
    assert [step.row for step in steps if step.chunk == 0 and step.row >= 0] == [0, 1, 2, 3]


def test_a_crash_ends_the_episode_and_discards_it():
    arm, sink = ToyArm(), Sink()
    with AsyncRunner(Crashing(rows(3)), 10.0, 10.0) as runner, pytest.raises(PolicyError, match="crashed"):
        run_episode(setup(arm, ToyCell(arm), runner=runner), Script(rows(3)), 0, sink)
    assert sink.ends == [None]


def test_a_stop_by_hand_is_not_a_fault_and_is_labelled():
    pressed = threading.Event()

    class StoppingArm(ToyArm):
        def _drive(self, command: ArmCommand) -> None:
            super()._drive(command)
            if len(self.driven) == 3:
                pressed.set()
                raise ArmError("the arm was stopped")

    arm, sink = StoppingArm(), Sink()
    outcome = run_episode(setup(arm, ToyCell(arm), stopped=pressed.is_set), Script(rows(9)), 0, sink)
    assert (outcome.success, outcome.note, outcome.steps) == (False, "stopped by hand", 2)
    assert sink.ends == [False]


def test_a_redone_trial_is_not_counted():
    class RedoingCell(ToyCell):
        def verdict(self, ended: bool) -> bool | None:
            raise Redo("redone by hand")

    arm, sink = ToyArm(), Sink()
    outcome = run_episode(setup(arm, RedoingCell(arm)), Script(rows(9)), 0, sink)
    assert outcome.redo and outcome.success is None and sink.ends == [None]


def test_a_failure_called_in_the_middle_ends_the_trial():
    class LabellingCell(ToyCell):
        def verdict(self, ended: bool) -> bool | None:
            return False if len(self.arm.driven) >= 4 else None

    arm = ToyArm()
    outcome = run_episode(setup(arm, LabellingCell(arm)), Script(rows(9)), 0, Sink())
    assert (outcome.success, outcome.steps, outcome.score) == (False, 4, 0.4)
    assert outcome.as_trial(0, "go", "p", 0).score == 0.4


def test_a_nan_trial_differs_from_other_void_trials():
    arm, bad = ToyArm(), rows(3)
    bad[1, 0] = np.nan
    outcome = run_episode(setup(arm, ToyCell(arm)), Script(bad), 0)
    assert outcome.refused and outcome.success is None and outcome.score is None


def test_a_layout_may_define_an_instruction():
    class ToldPolicy(Script):
        instruction = ""

    class NamingCell(ToyCell):
        def reset(self, seed: int) -> dict[str, object]:
            return {"instruction": f"take card {seed}"}

    arm, policy, sink = ToyArm(), ToldPolicy(rows(3)), Sink()
    run_episode(setup(arm, NamingCell(arm)), policy, 4, sink)
    assert policy.instruction == "take card 4" and sink.frames[0][3] == "take card 4"
    run_episode(setup(arm, ToyCell(arm)), policy, 4, sink)
    assert policy.instruction == "go"


# --- on another machine


SPACE = make_action_space("tcp", ToyArm().limits, ToyArm().home_rad)


def serve(policy: Script, cameras: tuple[str, ...] = ("front",)) -> PolicyServer:
    return PolicyServer(policy, describe(policy, SPACE, cameras))


def client(server: PolicyServer, **options) -> ServedPolicy:
    return ServedPolicy(server.url, SPACE, "go", options.pop("cameras", ("front",)), **options)


def test_an_observation_survives_the_wire_format():
    rng = np.random.default_rng(0)
    images = {"front": rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), "wrist": np.zeros((2, 2, 3), np.uint8)}
    source = Observation(ArmState(1.5, rng.normal(size=7), 0.04), ArmCommand(rng.normal(size=7), 0.05), images)
    copy = unpack_observation(pack_observation(source))
    assert np.array_equal(copy.state.joints_rad, source.state.joints_rad) and copy.state.time_s == 1.5
    assert np.array_equal(copy.commanded.joints_rad, source.commanded.joints_rad) and copy.commanded.gripper_m == 0.05
    assert copy.images.keys() == images.keys() and all(np.array_equal(copy.images[n], images[n]) for n in images)


@pytest.mark.parametrize("content", [b"", b"garbage", pack_observation(observation())[:-40]])
def test_an_invalid_observation_is_refused(content):
    with pytest.raises(ValueError):
        unpack_observation(content)


def test_a_served_policy_acts_like_the_policy():
    with serve(Script(rows(5))) as server:
        policy = client(server)
        assert policy.name.startswith("script at http://")
        policy.reset(3)
        here = Script(rows(5))
        for _ in range(2):
            remote_chunk, local_chunk = policy.act(observation()), here.act(observation())
            assert remote_chunk is not None and local_chunk is not None
            assert np.array_equal(remote_chunk.actions, local_chunk.actions) and remote_chunk.names == TCP_NAMES
        assert policy.act(observation()) is None
        policy.reset(4)
        assert policy.act(observation()) is not None


def test_a_policy_for_something_else_is_refused_before_the_first_move():
    with serve(Script(rows(5)), cameras=("side",)) as server, pytest.raises(CheckpointError, match="has cameras"):
        client(server)
    joints = make_action_space("joints", ToyArm().limits, ToyArm().home_rad)
    with (
        PolicyServer(Script(rows(1)), describe(Script(rows(1)), joints, ("front",))) as server,
        pytest.raises(CheckpointError, match="has actions"),
    ):
        client(server)


def test_different_policies_have_different_fingerprints():
    one, other = Script(rows(1)), Script(rows(1), name="other")
    assert describe(one, SPACE, ("front",)).fingerprint != describe(other, SPACE, ("front",)).fingerprint


def test_a_failing_policy_reports_the_error_and_stays_served():
    crashing = Crashing(rows(3))
    with serve(crashing) as server:
        policy = client(server)
        with pytest.raises(PolicyError, match="failed: RuntimeError: CUDA out of memory"):
            policy.act(observation())
        crashing.error = UndecodableActions("no action in it")
        with pytest.raises(UndecodableActions, match="no action in it"):
            policy.act(observation())


def test_no_server_and_no_url():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # the port is taken, but not listening
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(PolicyError, match="does not answer .* is 'srpo-robot serve' running"):
            ServedPolicy(url, SPACE, "go", ("front",))
    with pytest.raises(UsageError, match="give http://HOST:PORT"):
        ServedPolicy("ws://host:1", SPACE, "go", ())


def test_a_missing_answer_times_out():
    policy = Slow(rows(3))
    with serve(policy) as server:
        remote = client(server, answer_s=0.2)
        with pytest.raises(PolicyError, match="does not answer .*timed out"):
            remote.act(observation())
        policy.go.set()


def test_a_server_that_disconnects_during_a_run():
    with serve(Script(rows(3))) as server:
        policy = client(server)
    with pytest.raises(PolicyError, match="does not answer"):
        policy.act(observation())


def test_the_command_serves_and_ends(cli, monkeypatch):
    from srpo_robot.cli import running

    messages, answers = list[str](), list[object]()

    def hear(text: str) -> None:
        messages.append(text)
        if "Ctrl-C" in text:  # Ctrl-C right after the start also ends the command
            url = messages[0].split("--policy ")[1]
            answers.append(ServedPolicy(url, SPACE, "go", ("front", "wrist")).act(observation()))
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(running, "check_policy", lambda *_: None)
    monkeypatch.setattr(running, "load_any_policy", lambda *_: Script(rows(2)))
    monkeypatch.setattr(running, "say", hear)
    code, _, err = cli("serve", "--policy", "x", "--task", "put-apple", "--arm", "mock", "--port", "0")
    assert code == 0, err
    assert isinstance(answers[0], ActionChunk) and len(answers[0].actions) == 2
    assert not any(thread.name == "http-server" for thread in threading.enumerate())
