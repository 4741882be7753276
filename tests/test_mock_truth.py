"""The recorded truth of the mock cell, and the method evaluated on it with a perfect encoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import moving_square

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import make_action_space
from srpo_robot.awr.advantage import chunk_gain
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.recorder import Recorder, dataset_features
from srpo_robot.errors import ArmError, DatasetError, UsageError
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.mock import tasks
from srpo_robot.mock.arm import make_mock
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.demonstrator import Demonstrator, Failure
from srpo_robot.mock.truth import (
    ABSENT_M,
    FEATURES,
    KIND,
    STAGE,
    STATE,
    STATE_NAMES,
    STRATEGY,
    Pool,
    StateView,
    Truth,
    drop_frame,
    read_truth,
    snapshot,
    true_windows,
)
from srpo_robot.progress.config import ScoringConfig, WindowShape
from srpo_robot.progress.evidence.metrics import Resampling, auc, chunk_correlation, drop_auc
from srpo_robot.progress.score import Scores, score
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ActionChunk, ArmCommand, Episode, Observation

HARDWARE = load(HardwareRecipe, "hardware", "mock")
TASK = load(TaskRecipe, "datasets", "put-apple")
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.085)
PLAN = (*[Failure.NONE] * 3, Failure.DROP, *[Failure.NONE] * 3, Failure.MISS, Failure.WRONG, Failure.STOP) * 5
EVERY_3RD = ScoringConfig(windows="stride:3", frames_per_clip=16)
HORIZON = 9


class Planned:
    """The expert with a failure planned by the seed: 30 successes and 5 failures of each kind."""

    name = "planned"

    def __init__(self, sim: CellSim) -> None:
        self._expert = Demonstrator(sim)

    def reset(self, seed: int) -> None:
        self._expert.reset(seed, PLAN[seed])

    def act(self, observation: Observation) -> ActionChunk | None:
        return self._expert.act(observation)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """50 mock episodes with one camera of 32 px, in two recordings: the second appends to the first.

    No test looks at the pictures, and rendering them takes longer than the physics, so they are black.
    """
    root = tmp_path_factory.mktemp("truth") / "data"
    camera = CameraRecipe(name="front", height_px=32, width_px=32)
    arm, cell = make_mock(
        dataclasses.replace(HARDWARE, cameras=(camera,)), TASK, wide_starts=0.6, disturbance_m=0.006, randomization=1.0
    )
    space = make_action_space(TASK.action_space, arm.limits, arm.home_rad)
    features = dataset_features({"front": (32, 32)}, space.state_names, space.names) | FEATURES
    setup = Setup(
        arm=arm,
        workcell=cell,
        space=space,
        instruction=TASK.instruction,
        time_limit_s=20.0,
        cameras=("front",),
        stop_on_success=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellSim, "render", lambda self, camera: np.zeros((32, 32, 3), dtype=np.uint8))
        for seeds in (range(40), range(40, len(PLAN))):
            with Recorder(root, HARDWARE.fps, features, "mock", commit_every=len(PLAN)) as recorder, arm:
                for seed in seeds:
                    run_episode(setup, Planned(arm.sim), seed, recorder)
    return open_buffer(root)


@pytest.fixture(scope="session")
def truth(recording: Buffer) -> Truth:
    return read_truth(recording)


def column(truth: Truth, episode: int, name: str) -> np.ndarray:
    return truth.state[episode][:, STATE_NAMES.index(name)]


# --- recorded columns


def test_the_columns_are_not_inputs_of_a_policy() -> None:
    from lerobot.utils.feature_utils import dataset_to_policy_features

    inputs = dataset_to_policy_features(dataset_features({"front": (32, 32)}, ("x",), ("x",)) | FEATURES)
    assert set(inputs) == {"observation.images.front", "observation.state", "action"}
    assert len(set(STATE_NAMES)) == len(STATE_NAMES) == FEATURES[STATE]["shape"][0]


def test_a_snapshot_holds_the_place_of_every_object() -> None:
    sim = CellSim(HARDWARE, TASK)
    with pytest.raises(ArmError, match="no layout yet; reset the workcell"):
        snapshot(sim)
    layout = tasks.layout(TASK, 1)
    sim.reset(layout, HOME)
    sim.move_object("apple", np.array([0.40, 0.05, 0.030]))
    sim.move_object("pear", np.array([*layout.plate_m, 0.033]))
    columns = snapshot(sim)
    assert columns[STAGE] == pytest.approx([sim.stage()]) and columns[KIND] == ""
    state = dict(zip(STATE_NAMES, np.asarray(columns[STATE]), strict=True))
    tcp = kinematics.tcp_position(HOME.joints_rad, np.array(HARDWARE.tcp_offset_m))
    plate = np.array([*layout.plate_m, 0.006])
    for name, value in {
        "tcp": tcp,
        "target": [0.40, 0.05, 0.030],
        "target-tcp": np.array([0.40, 0.05, 0.030]) - tcp,
        "target-plate": np.array([0.40, 0.05, 0.030]) - plate,
        "distractor": [*layout.plate_m, 0.033],
        "distractor-plate": [0.0, 0.0, 0.027],
    }.items():
        assert [state[f"{name}.{axis}"] for axis in "xyz"] == pytest.approx(list(value), abs=1e-3), name
    flags = {name: state[name] for name in ("held", "on_plate", "wrong_held", "wrong_on_plate")}
    assert flags == {"held": 0.0, "on_plate": 0.0, "wrong_held": 0.0, "wrong_on_plate": 1.0}
    assert state["gripper"] == pytest.approx(0.085, abs=1e-3)


def test_the_intent_is_the_demonstrators_and_ends_with_the_layout() -> None:
    sim = CellSim(HARDWARE, TASK)
    sim.reset(tasks.layout(TASK, 0), HOME)
    Demonstrator(sim).reset(0, Failure.DROP)
    assert (snapshot(sim)[KIND], snapshot(sim)[STRATEGY]) == ("drop", "direct")
    sim.reset(tasks.layout(TASK, 0), HOME)
    assert (snapshot(sim)[KIND], snapshot(sim)[STRATEGY]) == ("", "")


def test_a_task_without_a_distractor_records_it_out_of_sight() -> None:
    sim = CellSim(HARDWARE, dataclasses.replace(TASK, distractors=()))
    sim.reset(tasks.layout(sim.recipe, 0), HOME)
    state = dict(zip(STATE_NAMES, np.asarray(snapshot(sim)[STATE]), strict=True))
    assert [state[f"distractor.{axis}"] for axis in "xyz"] == list(ABSENT_M)
    assert state["wrong_on_plate"] == 0.0


def test_truth_and_frame_are_of_one_instant_also_after_appending(recording: Buffer, truth: Truth) -> None:
    assert len(recording.episodes) == len(PLAN)
    assert list(truth.kind) == [kind.value for kind in PLAN]
    assert set(truth.strategy) == {"direct"}
    tcp_m = recording.column("observation.state")[:, :3]  # TCP by the arm's encoders
    assert np.abs(np.concatenate(truth.state)[:, :3] - tcp_m).max() < 2e-3
    assert np.abs(np.concatenate(truth.state)[1:, :3] - tcp_m[:-1]).max() > 0.02  # one frame off would show
    for episode, stage in zip(recording.episodes, truth.stage, strict=True):
        assert len(stage) == episode.length
        assert (stage[-1] == 1.0) == episode.success, episode.index
        assert truth.score[episode.index].tolist() == (stage == 1.0).tolist()  # the score is 0 or 1


def test_lerobot_reads_the_columns(recording: Buffer) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/truth", root=recording.root, video_backend="pyav")
    item: Any = dataset[recording.episodes[3].first_frame]
    assert item[KIND] == "drop"
    assert item[STATE].tolist() == recording.column(STATE)[recording.episodes[3].first_frame].tolist()
    assert KIND not in recording.meta.stats


# --- reading the truth


def test_a_buffer_without_truth_names_the_source_of_truth(squares: Path) -> None:
    with pytest.raises(DatasetError, match=r"no column 'truth.stage'; only the mock cell knows .* record --arm mock"):
        read_truth(open_buffer(squares))


def test_columns_of_one_kind_are_not_appended_to_a_dataset_of_the_other(recording: Buffer, squares: Path) -> None:
    def features(root: Path) -> dict[str, Any]:
        names = {**open_buffer(root).meta.features}
        return {k: v for k, v in names.items() if "." in k or k == "action"}

    with pytest.raises(DatasetError, match=r"has no column 'truth.kind', unlike this run: .* use another --root"):
        Recorder(squares, 10.0, features(squares) | FEATURES, "mock")
    plain = {k: v for k, v in features(recording.root).items() if k not in FEATURES}
    with pytest.raises(DatasetError, match=r"has a column 'truth.kind' of its own, unlike this run"):
        Recorder(recording.root, 10.0, plain, "mock")


def test_a_recorder_without_the_columns_records_none_of_the_truth(tmp_path: Path) -> None:
    features = dataset_features({"front": (48, 48)}, ("x",), ("x",))
    with Recorder(tmp_path / "data", 10.0, features, "mock") as recorder:
        recorder.begin()
        for image in moving_square(4, 1.0):
            recorder.add({"front": image}, np.zeros(1), np.zeros(1), "go", {KIND: "none"})
        recorder.end(True)
    assert not FEATURES.keys() & open_buffer(tmp_path / "data").meta.features.keys()


def test_a_cut_off_recording_keeps_its_truth(recording: Buffer, tmp_path: Path) -> None:
    import shutil

    from srpo_robot.buffer.repair import repair

    root = shutil.copytree(recording.root, tmp_path / "cut")
    tables = sorted((root / "meta" / "episodes").rglob("*.parquet"))
    tables[-1].write_bytes(tables[-1].read_bytes()[:-100])  # the second recording lost its footer
    assert repair(root) > 0
    truth_after = read_truth(open_buffer(root))
    assert truth_after.kind == tuple(kind.value for kind in PLAN[:40])


@pytest.mark.parametrize(
    ("holds", "placed_flags", "expected"),
    [
        ("000", "000", None),
        ("0110", "0000", 3),
        ("0110", "0011", None),  # let go on the plate
        ("01101100", "00000011", 3),  # dropped, picked up again
        ("111", "000", None),
        ("0100", "0010", 3),  # it lay on the plate and fell off
    ],
)
def test_the_drop_is_the_first_frame_without_the_object(holds: str, placed_flags: str, expected: int | None) -> None:
    state = np.zeros((len(holds), len(STATE_NAMES)))
    state[:, STATE_NAMES.index("held")] = [int(flag) for flag in holds]
    state[:, STATE_NAMES.index("on_plate")] = [int(flag) for flag in placed_flags]
    assert drop_frame(state) == expected


def test_every_planned_drop_is_found_and_no_success_ends_dropped(recording: Buffer, truth: Truth) -> None:
    for number, (kind, drop) in enumerate(zip(truth.kind, truth.drop, strict=True)):
        if kind == "drop":
            assert drop is not None and column(truth, number, "held")[drop - 1] == 1.0
        elif not recording.episodes[number].success:
            assert drop is None, kind


# --- a perfect encoder


def toy(lengths: tuple[int, ...] = (12, 20)) -> tuple[Truth, list[Episode]]:
    rng = np.random.default_rng(0)
    states = tuple(rng.normal(size=(n, len(STATE_NAMES))) for n in lengths)
    stages = tuple(np.zeros(n) for n in lengths)
    episodes = [
        Episode(index=i, task="go", length=n, fps=10.0, first_frame=0, cameras=(), success=True)
        for i, n in enumerate(lengths)
    ]
    kinds, strategies = ("none",) * len(lengths), ("direct",) * len(lengths)
    drops = (None,) * len(lengths)
    truth = Truth(stage=stages, state=states, score=stages, kind=kinds, strategy=strategies, drop=drops)
    return truth, episodes


def test_true_windows_are_the_standardised_state() -> None:
    truth, episodes = toy()
    spec = ScoringConfig(windows="dense", min_window=0)
    windows = true_windows(truth, episodes, spec, "absolute")
    frames = np.concatenate([w.embeddings for w in windows])
    assert frames.mean(axis=0) == pytest.approx(0.0, abs=1e-12)
    assert frames.std(axis=0) == pytest.approx(1.0)
    assert np.corrcoef(frames[:, 0], np.concatenate(truth.state)[:, 0])[0, 1] == pytest.approx(1.0)
    assert [w.ends.tolist() for w in windows] == [list(range(12)), list(range(20))]
    last = true_windows(truth, episodes, dataclasses.replace(EVERY_3RD, frames_per_clip=None), "absolute")
    assert last[1].ends.tolist() == [10, 13, 16, 19]
    assert (last[1].embeddings == windows[1].embeddings[[10, 13, 16, 19]]).all()


def test_true_windows_may_be_means_over_the_clip() -> None:
    truth, episodes = toy((40,))
    frames = true_windows(truth, episodes, ScoringConfig(windows="dense", min_window=0))[0].embeddings
    prefix, recent = (
        ScoringConfig(windows="dense", frames_per_clip=4, window_shape=shape) for shape in get_args(WindowShape)
    )
    for spec, frame_indices in ((prefix, [0, 13, 26, 39]), (recent, [36, 37, 38, 39])):
        mean = true_windows(truth, episodes, spec, pool="mean")[0].embeddings[-1]
        assert mean == pytest.approx(frames[frame_indices].mean(axis=0))


def test_views_leave_out_invisible_columns() -> None:
    truth, episodes = toy()
    views: tuple[tuple[StateView, str], ...] = (("absolute", "target-plate.x"), ("relative", "target.x"))
    for view, column_name in views:
        state = [rows.copy() for rows in truth.state]
        for rows in state:
            rows[:, STATE_NAMES.index(column_name)] *= -7.0
        changed_truth = dataclasses.replace(truth, state=tuple(state))
        first, second = (true_windows(t, episodes, EVERY_3RD, view)[0].embeddings for t in (truth, changed_truth))
        assert (first == second).all(), view


def test_constant_values_are_0_and_unknown_views_are_refused() -> None:
    truth, episodes = toy()
    constant_truth = dataclasses.replace(truth, state=tuple(np.ones_like(rows) for rows in truth.state))
    assert not true_windows(constant_truth, episodes, EVERY_3RD)[0].embeddings.any()
    with pytest.raises(UsageError, match="views: absolute, relative; pools: last, mean"):
        true_windows(truth, episodes, EVERY_3RD, "sideways")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the truth is of other episodes"):
        true_windows(truth, episodes[:1], EVERY_3RD)


# --- the method with a perfect encoder


def judged(buffer: Buffer, truth: Truth, value: str, **view: Any) -> Scores:
    windows = true_windows(truth, buffer.episodes, EVERY_3RD, **view)
    return score(buffer.episodes, windows, ScoringConfig(profile="loo", value=value))


def success(buffer: Buffer) -> list[bool | None]:
    return [episode.success for episode in buffer.episodes]


def noticed(buffer: Buffer, truth: Truth, scores: Scores) -> float:
    """AUC that the gain at a drop is lower than the gains of successes while they carry (1: noticed)."""
    gains = [chunk_gain(value, HORIZON, tail="raw") for value in scores.values]
    carrying = []
    for number, gain in enumerate(gains):
        full = np.arange(len(gain)) < len(gain) - HORIZON  # a gain over a whole horizon
        carrying.append((column(truth, number, "held") > 0.5) & full)
    return drop_auc(gains, truth.drop, carrying, success(buffer), Resampling(0)).value


@pytest.mark.parametrize("view", ["absolute", "relative"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_loo_separates_success_from_failure(recording: Buffer, truth: Truth, view: StateView, pool: Pool) -> None:
    scores = judged(recording, truth, "progress", view=view, pool=pool)
    final = np.array([curve.progress[-1] for curve in scores.curves])
    good = np.array(success(recording), dtype=bool)
    assert good.sum() == 30
    assert auc(final[good], final[~good]) >= 0.95


@pytest.mark.parametrize("view", ["absolute", "relative"])
@pytest.mark.parametrize(("value", "least_correlation"), [("knn-time", 0.60), ("knn-return", 0.40)])
def test_knn_time_and_knn_return_follow_the_task_and_notice_a_drop(
    recording: Buffer, truth: Truth, value: str, least_correlation: float, view: StateView
) -> None:
    scores = judged(recording, truth, value, view=view)
    assert noticed(recording, truth, scores) >= 0.9
    correlation = chunk_correlation(scores.values, truth.stage, success(recording), HORIZON, first=10)
    assert correlation.pooled.value >= least_correlation
    assert correlation.failure.value >= 0.15


@pytest.mark.parametrize("view", ["absolute", "relative"])
def test_distance_to_an_end_state_does_not_notice_a_drop(recording: Buffer, truth: Truth, view: StateView) -> None:
    # This is why `knn-time` and `knn-return` exist: the same progress does separate success from failure at the end.
    scores = judged(recording, truth, "progress", view=view)
    assert noticed(recording, truth, scores) < 0.7
    correlation = chunk_correlation(scores.values, truth.stage, success(recording), HORIZON, first=10)
    assert abs(correlation.pooled.value) < 0.25
