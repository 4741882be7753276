"""Statistics, the journal, and the episode loop on a toy arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.arm.actions import TCP_NAMES, make_action_space
from srpo_robot.arm.arm import Arm
from srpo_robot.errors import ArmError, DatasetError, RecipeError
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.evaluation.statistics import success_rate, wilson
from srpo_robot.evaluation.trials import append_trial, read_trials
from srpo_robot.recipes import HardwareRecipe, load
from srpo_robot.records import ActionChunk, ArmCommand, ArmState, Observation, Trial

HARDWARE = load(HardwareRecipe, "hardware", "mock")

# --- statistics


def test_wilson_by_hand():
    # 7 of 15, z = 1.95996: centre (7/15 + z^2/30)/(1 + z^2/15) = 0.4734, half width 0.2257
    rate = wilson(7, 15)
    assert (rate.rate, rate.low, rate.high) == pytest.approx((7 / 15, 0.24809, 0.69880), abs=1e-4)


@given(st.integers(1, 200), st.data())
def test_the_interval_holds_the_rate_and_stays_in_0_1(trials, data):
    rate = wilson(data.draw(st.integers(0, trials)), trials)
    assert -1e-12 <= rate.low <= rate.rate + 1e-12
    assert rate.rate - 1e-12 <= rate.high <= 1 + 1e-12


def test_without_trials_the_rate_is_undefined():
    rate = wilson(0, 0)
    assert np.isnan(rate.rate)
    assert (rate.low, rate.high) == (0.0, 1.0)


def trial(number: int, success: bool | None) -> Trial:
    return Trial(
        trial=number,
        task="go",
        policy="policy",
        seed=number,
        success=success,
        steps=10,
        seconds=1.0,
        limited_by={"joint_step": 2},
        layout={"apple": [0.4, 0.0]},
    )


def test_void_trials_do_not_count():
    assert success_rate([trial(0, True), trial(1, None), trial(2, False)])[:2] == (1, 2)


# --- the journal


def test_the_journal_round_trips_and_survives_a_torn_last_line(tmp_path):
    rows = [trial(0, True), trial(1, None), trial(2, False)]
    for row in rows:
        append_trial(tmp_path, row)
    assert read_trials(tmp_path) == rows
    path = tmp_path / "trials.jsonl"
    path.write_text(path.read_text()[:-30])
    assert read_trials(tmp_path) == rows[:2]


def test_a_broken_journal_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"no trials.jsonl"):
        read_trials(tmp_path)
    (tmp_path / "trials.jsonl").write_text('{"trial": 0}\n{"trial": 1}\n')
    with pytest.raises(DatasetError, match="line 1 is not a trial"):
        read_trials(tmp_path)


# --- the loop


class ToyArm(Arm):
    """Reaches each commanded pose at once."""

    def __init__(self, recipe: HardwareRecipe = HARDWARE) -> None:
        super().__init__(recipe)
        self.driven: list[ArmCommand] = []
        self.stops = 0

    def observe(self, images: bool = True) -> Observation:
        last = self.driven[-1] if self.driven else ArmCommand(self.home_rad, 0.04)
        state = ArmState(len(self.driven) * self.period_s, last.joints_rad, last.gripper_m)
        names = ("front", "wrist") if images else ()
        pictures = {name: np.full((4, 4, 3), len(self.driven), dtype=np.uint8) for name in names}
        return Observation(state, self.commanded or last, pictures)

    def stop(self) -> None:
        self.stops += 1

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _drive(self, command: ArmCommand) -> None:
        self.driven.append(command)


@dataclass
class ToyCell:
    """Succeeds after `after` control steps."""

    arm: ToyArm
    after: int = 10**6

    def reset(self, seed: int) -> dict[str, object]:
        return {"seed": seed}

    def verdict(self, ended: bool) -> bool | None:
        return True if len(self.arm.driven) >= self.after else (False if ended else None)

    def score(self) -> float | None:
        return len(self.arm.driven) / 10

    def truth(self) -> dict[str, np.ndarray | str]:
        return {"truth.steps": np.array([len(self.arm.driven)])}


@dataclass
class Script:
    """A policy that plays rows of TCP actions, `execute` at a time."""

    rows: np.ndarray
    execute: int = 3
    name: str = "script"
    at: int = 0
    pixels: list[int] = field(default_factory=list)

    def reset(self, seed: int) -> None:
        self.at = 0

    def act(self, observation: Observation) -> ActionChunk | None:
        self.pixels.append(int(observation.images["front"][0, 0, 0]))
        rows = self.rows[self.at : self.at + self.execute]
        self.at += self.execute
        return ActionChunk(rows, TCP_NAMES) if len(rows) else None


@dataclass
class Sink:
    frames: list[tuple] = field(default_factory=list)
    ends: list[bool | None] = field(default_factory=list)

    def begin(self) -> None: ...

    def add(self, images: dict, state: np.ndarray, action: np.ndarray, task: str, truth: Mapping) -> None:
        self.frames.append((images, state, action, task, truth))

    def end(self, success: bool | None) -> int:
        self.ends.append(success)
        return 5


def rows(steps: int, z: float = 0.25) -> np.ndarray:
    return np.tile([0.40, 0.0, z, 0.04], (steps, 1))


def setup(arm: ToyArm, cell: ToyCell, **options) -> Setup:
    space = make_action_space("tcp", arm.limits, arm.home_rad)
    options.setdefault("time_limit_s", 2.0)
    return Setup(arm=arm, workcell=cell, space=space, instruction="go", cameras=("front",), **options)


def test_an_episode_ends_when_it_succeeds():
    arm, sink = ToyArm(), Sink()
    outcome = run_episode(setup(arm, ToyCell(arm, after=4)), Script(rows(50)), 3, sink)
    assert (outcome.success, outcome.steps, outcome.layout, outcome.episode_index) == (True, 4, {"seed": 3}, 5)
    assert outcome.seconds == pytest.approx(0.4)
    assert sink.ends == [True]


def test_an_episode_ends_at_its_time_limit_or_when_the_policy_is_done():
    arm = ToyArm()
    assert run_episode(setup(arm, ToyCell(arm)), Script(rows(50)), 0).steps == 20
    arm = ToyArm()
    outcome = run_episode(setup(arm, ToyCell(arm)), Script(rows(7)), 0)
    assert (outcome.success, outcome.steps) == (False, 7)


def test_a_demonstration_goes_on_after_its_success():
    arm = ToyArm()
    outcome = run_episode(setup(arm, ToyCell(arm, after=2), stop_on_success=False), Script(rows(7)), 0)
    assert (outcome.success, outcome.steps) == (True, 7)


def test_a_chunk_is_executed_completely_before_the_next_policy_call():
    arm, policy = ToyArm(), Script(rows(9))
    run_episode(setup(arm, ToyCell(arm)), policy, 0)
    assert policy.pixels == [0, 3, 6, 9]


def test_images_can_be_read_at_any_time():
    arm, sink, rows_read = ToyArm(), Sink(), []
    run_episode(setup(arm, ToyCell(arm), stop_on_success=False), Script(rows(7)), 0, sink)
    assert [set(images) for images, *_ in sink.frames] == [{"front"}] * 7
    arm = ToyArm()
    run_episode(setup(arm, ToyCell(arm), log=rows_read.append), Script(rows(7)), 0)
    assert [set(step.observation.images) for step in rows_read] == [{"front", "wrist"}] * 7


def test_frames_hold_the_executed_command_not_the_requested_one():
    arm, sink = ToyArm(), Sink()
    actions = rows(3)
    actions[:, 1] = 0.35  # too far for one step
    outcome = run_episode(setup(arm, ToyCell(arm)), Script(actions), 0, sink)
    space = make_action_space("tcp", arm.limits, arm.home_rad)
    commands = np.stack([frame[2] for frame in sink.frames])
    assert commands == pytest.approx(np.stack([space.action(c) for c in arm.driven]))
    assert np.all(commands[:, 1] < 0.3)
    assert outcome.limited_by == {"joint_step": 3}
    assert [frame[0]["front"][0, 0, 0] for frame in sink.frames] == [0, 1, 2]  # seen before the action
    assert [int(frame[4]["truth.steps"][0]) for frame in sink.frames] == [0, 1, 2]  # and true at that instant
    assert all(set(frame[0]) == {"front"} for frame in sink.frames)
    first_state = sink.frames[0][1]
    assert first_state[:3] == pytest.approx([0.40, 0.0, 0.25], abs=1e-3)


def test_a_policy_that_returns_nan_makes_a_void_trial_and_the_arm_holds():
    arm, sink = ToyArm(), Sink()
    bad = rows(5)
    bad[3, 0] = np.nan
    outcome = run_episode(setup(arm, ToyCell(arm)), Script(bad), 0, sink)
    assert outcome.success is None
    assert "NaN" in outcome.note
    assert sink.ends == [None]
    assert arm.driven[-1].joints_rad.tolist() == arm.driven[-2].joints_rad.tolist()


def test_a_fault_discards_the_episode_and_stops_the_arm():
    class Faulty(ToyArm):
        def _drive(self, command: ArmCommand) -> None:
            super()._drive(command)
            if len(self.driven) == 3:
                raise ArmError("controller error 31: collision")

    arm, sink = Faulty(), Sink()
    with pytest.raises(ArmError, match="collision"), arm:
        run_episode(setup(arm, ToyCell(arm)), Script(rows(9)), 0, sink)
    assert sink.ends == [None]
    assert arm.stops == 1


def test_home_outside_the_box_is_refused():
    from dataclasses import replace

    low = replace(HARDWARE.limits, box_max_m=(0.62, 0.35, 0.20))
    with pytest.raises(RecipeError, match="the workspace box excludes home"):
        ToyArm(replace(HARDWARE, limits=low))
