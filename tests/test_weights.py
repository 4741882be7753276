"""Tests of RA-BC against lerobot, hand-computed action weights, the weight grid, and `srpo-robot weights`."""

import csv
import json
import math
import struct
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from conftest import record_squares, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lerobot.rewards.sarm.rabc import RABCWeights
from scipy.stats import spearmanr

from srpo_robot.awr import weight_grid as wg
from srpo_robot.awr.export import export_rabc
from srpo_robot.awr.weighting import Chunk, check_horizon, mean_weight_by_label, weights_of
from srpo_robot.awr.weights import (
    action_weights,
    awr_weights,
    effective_sample_size,
    rabc_weights,
    success_weights,
    uniform_weights,
)
from srpo_robot.awr.weights_table import TABLE as ADVANTAGE
from srpo_robot.awr.weights_table import read_weights, write_weights
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import write_table
from srpo_robot.errors import StaleTable, TrainingError, UsageError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.pipeline import FORMAT, TABLE, EncoderInfo, read_progress
from srpo_robot.recipes import PolicyRecipe, Weighting
from srpo_robot.records import Episode
from srpo_robot.report.weights_figure import draw_weighting

BETAS, CAPS = (0.1, 0.3, 1.0, 3.0), (5.0, 20.0, 100.0)
LENGTHS = (24, 20, 22, 18)  # of the squares in conftest


def write_scores(buffer, values, dataset=None):
    """Writes a progress table with these step values (one array per episode), as `score-dataset` would."""
    config = ScoringConfig(cameras=("observation.images.front",), frames_per_clip=16)
    lengths = [episode.length for episode in buffer.episodes]
    value = np.concatenate(values)
    columns = {
        "index": np.arange(len(value)),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "distance": 1 - value,
        "progress": value,
        "value": value,
        "scored": np.ones(len(value), dtype=bool),
        "reward": np.repeat([1.0 if e.success else 0.4 for e in buffer.episodes], lengths),
        "trajectory_advantage": np.repeat([1.0 if e.success else -1.0 for e in buffer.episodes], lengths),
    }
    metadata = {
        "kind": "progress",
        "format": FORMAT,
        "dataset": dataset or buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "config": asdict(config),
        "encoder": asdict(EncoderInfo("an-encoder", "float32", "an-identity")),
    }
    return write_table(buffer.sidecar / TABLE, columns, metadata)


def ramps(lengths=LENGTHS, reaches=(1.0, 1.0, 0.3, 0.5), noise=0.03, seed=0):
    """Returns noisy rising step values. Successes reach 1, failures stop at their reach."""
    random = np.random.default_rng(seed)
    pairs = zip(lengths, reaches, strict=True)
    return [np.clip(np.linspace(0, reach, n) + random.normal(0, noise, n), 0, 1) for n, reach in pairs]


@pytest.fixture
def buffer(squares_copy):
    """Four labelled episodes with a score written by hand."""
    buffer = open_buffer(squares_copy)
    write_scores(buffer, ramps())
    return buffer


# --- RA-BC, compared with lerobot's code


@pytest.mark.parametrize(("chunk", "kappa"), [(1, 0.01), (5, 0.1), (10, 0.3), (50, 0.01)])
@pytest.mark.parametrize("holes", [False, True])
def test_rabc_weights_equal_lerobots_on_the_exported_file(squares_copy, tmp_path, chunk, kappa, holes):
    buffer = open_buffer(squares_copy)
    values = ramps()
    if holes:
        values[1][3:7] = np.nan
        values[3][:] = np.nan
    progress = write_scores(buffer, values)
    export_rabc(buffer, progress, tmp_path / "sarm_progress.parquet")
    reference = RABCWeights(tmp_path / "sarm_progress.parquet", chunk_size=chunk, kappa=kappa, device="cpu")  # type: ignore[arg-type]
    batch = {"index": np.arange(buffer.total_frames)}
    want, stats = reference.compute_batch_weights(batch)  # one batch of all frames, scaled to mean 1 like ours
    result = rabc_weights(values, chunk, kappa)
    assert result.values == pytest.approx(want.numpy(), rel=1e-5, abs=1e-7)
    assert int((result.values == 0).sum()) == stats["num_zero_weight"]
    assert len(np.unique(result.values)) > 2  # some weights lie between 0 and 1
    assert (result.undefined > 0) == holes
    if kappa == 0.01:
        weights = weights_of(buffer, progress, Weighting(), "rabc", Chunk(chunk, chunk)).frames
        assert weights.values == pytest.approx(result.values)


def test_rabc_by_hand():
    # gains over one frame: .5, -.25, .005, 0 (the last frame): mu .06375; kappa .01
    weights = rabc_weights([np.array([0.0, 0.5, 0.25, 0.255])], 1, undefined=0.0)
    gain = np.array([0.5, -0.25, 0.005, 0.0])
    soft = (gain - (gain.mean() - 2 * gain.std())) / (4 * gain.std() + 1e-6)
    raw = np.array([1.0, 0.0, soft[2], soft[3]])
    assert weights.values == pytest.approx(raw / raw.mean(), rel=1e-5)


def test_undefined_progress_has_lerobots_weight_by_default():
    values = [np.array([0.0, np.nan, 0.5])]
    assert rabc_weights(values, 1).values == pytest.approx([1.2, 1.2, 0.6], rel=0.3)  # NaN gains count as 1
    assert rabc_weights([np.array([0.0, 0.5]), np.full(2, np.nan)], 1, undefined=0.0).values[2:].tolist() == [0, 0]
    assert rabc_weights([np.full(3, np.nan)], 1).values.tolist() == [1.0, 1.0, 1.0]


def test_rabc_refuses_invalid_options():
    with pytest.raises(TrainingError, match="every weight is zero"):
        rabc_weights([np.full(3, np.nan)], 5, undefined=0.0)
    for chunk, wrong in (
        (0, {}),
        (2, {"kappa": -1.0}),
        (2, {"kappa": np.nan}),
        (2, {"epsilon": 0.0}),
        (2, {"undefined": -1.0}),
    ):
        with pytest.raises(UsageError, match="rabc takes"):
            rabc_weights([np.arange(4.0)], chunk, **wrong)


# --- weights of actions


def test_action_weights_by_hand():
    advantage = np.log([1.0, 2.0, 3.0, 4.0, 9.0])  # two episodes of 3 and 2 frames. The last one is capped at 5
    weights = action_weights(advantage, [3, 2], chunk=3, beta=1.0, w_max=5.0)
    raw = np.array([[1, 2, 3], [2, 3, 0], [3, 0, 0], [4, 5, 0], [5, 0, 0]])
    assert weights == pytest.approx(raw / raw[raw > 0].mean(), rel=1e-6)
    assert weights.dtype == np.float32


actions = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-5, 5))


@given(actions, st.integers(1, 60), st.floats(0.3, 3), st.integers(1, 39))
def test_action_weights_have_mean_1_and_are_0_past_the_end(advantage, chunk, beta, cut):
    lengths = [cut, len(advantage) - cut] if cut < len(advantage) else [len(advantage)]
    weights = action_weights(advantage, lengths, chunk, beta, 20.0)
    ends = np.repeat(np.cumsum(lengths), lengths)
    valid = np.arange(len(advantage))[:, None] + np.arange(chunk) < ends[:, None]
    assert weights.shape == (len(advantage), chunk)
    assert not weights[~valid].any()
    assert weights[valid].mean() == pytest.approx(1, rel=1e-4)
    # the first column equals the frames' weights, up to the scale
    frames = awr_weights(advantage, beta, 20.0).values
    assert weights[:, 0] * frames.mean() / weights[:, 0].mean() == pytest.approx(frames, rel=1e-4)


def test_an_undefined_action_has_weight_0_in_every_chunk():
    weights = action_weights(np.array([0.0, np.nan, 0.0]), [3], 2, 1.0, 20.0)
    assert (weights == 0).tolist() == [[False, True], [True, False], [False, True]]
    assert weights.sum() == pytest.approx(5)  # mean 1 over the five entries that exist
    with pytest.raises(TrainingError, match="no finite advantage"):
        action_weights(np.full(3, np.nan), [3], 2, 1.0, 20.0)
    with pytest.raises(UsageError, match="chunk of 0"):
        action_weights(np.zeros(3), [3], 0, 1.0, 20.0)


def test_actions_are_weighted_by_their_gain(buffer):
    progress = read_progress(buffer)
    recipe = PolicyRecipe(name="p", family="pi0", horizon=5, step_horizon=1)
    assert weights_of(buffer, progress, recipe, chunk=Chunk(4, 4)).actions is None
    recipe = replace(recipe, action_weights=True)
    by_action = weights_of(buffer, progress, recipe, chunk=Chunk(4, 4)).actions
    assert by_action is not None
    value = progress["value"]
    gains = value[1:6] - value[:5]  # R[t+k+1] - R[t+k] of frame 0's first actions
    assert np.argsort(by_action[0]).tolist() == np.argsort(gains[:4]).tolist()
    assert by_action[1, :3] == pytest.approx(by_action[0, 1:])  # an action has the same weight in every chunk
    share = weights_of(buffer, progress, replace(recipe, kappa=1.0), chunk=Chunk(4, 4)).actions
    assert share is not None
    assert share[:24].mean() > by_action[:24].mean()  # a success


# --- the grid


def episodes(lengths, successes, tasks=None):
    tasks = tasks or ["go"] * len(lengths)
    starts = np.cumsum([0, *lengths])
    rows = enumerate(zip(lengths, successes, tasks, strict=True))
    return [
        Episode(index=i, task=task, length=n, fps=10.0, first_frame=int(starts[i]), cameras=("c",), success=ok)
        for i, (n, ok, task) in rows
    ]


def test_frames_have_label_task_and_tenth():
    frames = wg.frames_of(episodes([20, 5, 1], [True, False, None], ["a", "b", "a"]))
    assert frames.label.tolist() == ["success"] * 20 + ["failure"] * 5 + ["unlabelled"]
    assert frames.phase.tolist() == [*np.repeat(np.arange(10), 2), 0, 2, 4, 6, 8, 0]
    assert set(frames.task[:20]) == {"a"}


def test_a_view_by_hand():
    frames = wg.frames_of(episodes([10, 10], [True, False], ["a", "b"]))
    advantage = np.log(np.concatenate([np.full(10, 3.0), np.ones(10)]))
    (view,) = wg.weight_grid(advantage, frames, (1.0,), (20.0,))
    assert view.by_label == pytest.approx({"success": 1.5, "failure": 0.5})
    assert view.ratio == pytest.approx(3.0)
    assert view.effective == pytest.approx(20**2 / (10 * 1.5**2 + 10 * 0.5**2) / 20)
    assert view.by_task["a"] == pytest.approx({"all": 1.5, "success": 1.5})
    assert view.by_task["b"] == pytest.approx({"all": 0.5, "failure": 0.5})
    assert view.by_phase["success"] == pytest.approx([1.5] * 10)
    assert view.top == pytest.approx(1.5 / 20)  # one frame of twenty
    assert view.clipped == 0


@given(hnp.arrays(np.float64, 60, elements=st.floats(-4, 4)))
def test_effective_frames_never_rise_with_a_sharper_beta_or_fall_with_a_lower_cap(advantage):
    frames = wg.frames_of(episodes([30, 30], [True, False]))
    grid = {(v.beta, v.w_max): v for v in wg.weight_grid(advantage, frames, BETAS, (1e20,))}
    shares = [grid[beta, 1e20].effective for beta in BETAS]
    assert np.all(np.diff(shares) >= -1e-9)
    effective = [v.effective for v in wg.weight_grid(advantage, frames, (1.0,), CAPS)]
    assert np.all(np.diff(effective) <= 1e-9)


@given(hnp.arrays(np.float64, 60, elements=st.floats(-4, 4)), st.sampled_from(BETAS))
def test_the_parts_of_a_view_add_up(advantage, beta):
    frames = wg.frames_of(episodes([20, 25, 15], [True, False, True], ["a", "b", "b"]))
    (view,) = wg.weight_grid(advantage, frames, (beta,), (20.0,))
    assert (35 * view.by_label["success"] + 25 * view.by_label["failure"]) / 60 == pytest.approx(1)
    assert (20 * view.by_task["a"]["all"] + 40 * view.by_task["b"]["all"]) / 60 == pytest.approx(1)
    assert 0.01 <= view.top <= 1


def test_without_failures_there_is_no_ratio():
    frames = wg.frames_of(episodes([10, 10], [True, None]))
    view = wg.view(uniform_weights(20), frames, 1.0, 20.0)
    assert math.isnan(view.ratio)
    assert wg.advice(view) == ()
    only = wg.frames_of(episodes([10, 10], [True, False]))
    assert wg.view(success_weights(only.label == "success"), only, 1.0, 20.0).ratio == math.inf


def one_view(**changes):
    sound = wg.GridCell(
        beta=1.0,
        w_max=20.0,
        effective=0.5,
        clipped=0.1,
        top=0.05,
        by_label={"success": 1.8, "failure": 0.3},
        by_task={},
        by_phase={},
    )
    return replace(sound, **changes)


def test_advice_is_given_for_each_reason():
    assert one_view().sound
    assert "a handful of frames" in wg.advice(one_view(top=0.25))[0]
    assert "as much as 5%" in wg.advice(one_view(effective=0.05))[0]
    prototype = one_view(by_label={"success": 2.5, "failure": 0.8})
    assert "hardly tell successes from failures: 2.50 against 0.80" in wg.advice(prototype)[0]
    assert "40% of the frames are at the cap" in wg.advice(one_view(clipped=0.4))[0]
    assert len(wg.advice(one_view(clipped=0.4, top=0.3))) == 2
    slow = one_view(by_phase={"success": (0.14, 0.3, *[2.2] * 8), "failure": (0.0,) * 10})
    assert "hardly train: 0 to 10 % of the episode" in wg.advice(slow)[0]
    assert len(wg.advice(slow)) == 1
    hasty = one_view(by_phase={"success": (*[1.5] * 9, 3.06), "failure": (3.0,) * 10})
    assert "their last 10 % weigh 1.7 times their mean" in wg.advice(hasty)[0]
    assert len(wg.advice(hasty)) == 1
    assert one_view(by_phase={"success": (*[1.7] * 9, 2.6)}).sound  # 1.4 times


def test_advice_names_a_better_setting_of_the_grid():
    bad = one_view(clipped=0.4)
    better, best = one_view(beta=0.3, effective=0.3), one_view(beta=0.5, effective=0.4)
    assert "--beta 0.5 --w-max 20 has none of this" in wg.advice(bad, (bad, better, best))[-1]
    assert "no beta and w_max of the grid" in wg.advice(bad, (bad,))[-1]
    assert wg.advice(better, (bad, better)) == ()


# --- the figure


def test_the_figure_takes_a_grid_of_one_and_data_without_failures(tmp_path):
    frames = wg.frames_of(episodes([10, 3], [None, True], ["$x_1 put", "b"]))
    advantage = np.linspace(-1, 1, 13)
    grid = wg.weight_grid(advantage, frames, (1.0,), (20.0,))
    values = awr_weights(advantage, 1.0, 20.0).values
    weights = {name: values[frames.label == name] for name in ("success", "unlabelled")}
    draw_weighting(weights, grid[0], grid, tmp_path / "deep" / "w.png", "a note with $ and _")
    width, height = struct.unpack(">II", (tmp_path / "deep" / "w.png").read_bytes()[16:24])
    assert (width, height) == (1320, 484)


# --- tables


def test_the_mean_by_label_equals_the_views(buffer):
    weights = weights_of(buffer, read_progress(buffer), Weighting(horizon=5)).frames
    view = wg.view(weights, wg.frames_of(buffer.episodes), 1.0, 20.0)
    assert mean_weight_by_label(buffer, weights.values) == pytest.approx(view.by_label)
    assert view.ratio > 1


def test_a_horizon_longer_than_every_episode_is_refused(buffer):
    check_horizon(buffer, 23)
    with pytest.raises(UsageError, match="horizon 24 is longer than every episode.*24 frames.*at most 23"):
        check_horizon(buffer, 24)


def test_effective_sample_size():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([0.0, 5.0, 0.0])) == pytest.approx(1)


def test_the_table_holds_weights_and_their_recipe(buffer):
    progress = read_progress(buffer)
    weighting = Weighting(horizon=5, beta=2.0, w_max=1e6, kappa=0.7, baseline="value")
    weights = weights_of(buffer, progress, weighting)
    write_weights(buffer, progress, weights)
    table = read_weights(buffer, progress)
    names = ["index", "increment", "step_advantage", "chunk_advantage", "advantage", "weight"]
    assert list(table.columns) == names
    correlation: Any = spearmanr(table["advantage"], table["weight"])
    assert correlation.statistic == pytest.approx(1)
    assert np.exp(table["advantage"] / 2) / table["weight"] == pytest.approx(
        np.full(84, (np.exp(table["advantage"] / 2)).mean())
    )
    share = 0.7 * progress["trajectory_advantage"]
    assert table["advantage"] == pytest.approx(table["chunk_advantage"] + share)
    assert table["step_advantage"] != pytest.approx(table["advantage"], abs=0.1)
    assert Weighting(**table.metadata["weighting"]) == weighting
    assert table.metadata["parent"] == progress.metadata["content"]
    with pytest.raises(ValueError, match="no advantages to write"):
        write_weights(buffer, progress, weights_of(buffer, None, Weighting(), "uniform"))


def test_a_table_of_an_older_version_or_another_score_is_refused(cli, buffer):
    progress = read_progress(buffer)
    with pytest.raises(StaleTable, match="does not exist; run: srpo-robot weights"):
        read_weights(buffer, progress)
    assert cli("weights", buffer.root, "--horizon", 5)[0] == 0
    table = read_weights(buffer, progress)
    old = {key: value for key, value in table.metadata.items() if key not in ("format", "weighting")}
    write_table(buffer.sidecar / ADVANTAGE, table.columns, old | {"recipe": "0123456789abcdef"})
    with pytest.raises(StaleTable, match="another state of its format; run: srpo-robot weights .*train-awr"):
        read_weights(buffer, progress)
    assert cli("weights", buffer.root, "--horizon", 5)[0] == 0
    assert read_weights(buffer, progress).metadata["weighting"]["horizon"] == 5
    other = write_scores(buffer, ramps(seed=1))
    with pytest.raises(StaleTable, match="another state of its parent; run: srpo-robot weights"):
        read_weights(buffer, other)


# --- the command


def test_weights_shows_saves_and_changes_no_other_table(cli, buffer, tmp_path):
    before = {path.name: path.read_bytes() for path in buffer.sidecar.iterdir()}
    files = ("--json", tmp_path / "w.json", "--csv", tmp_path / "out" / "w.csv")
    code, out, err = cli("weights", buffer.root, "--horizon", 5, "--betas", "0.3,1", "--caps", "5,20", *files)
    assert code == 0, err
    for text in ("mean weight of a frame", "first third", "the grid", "weights.png"):
        assert text in out
    after = {path.name: path.read_bytes() for path in buffer.sidecar.iterdir()}
    assert after.pop("weights.png").startswith(b"\x89PNG")
    assert after.pop("advantage.parquet")
    assert after == before
    content = json.loads((tmp_path / "w.json").read_text())
    assert (content["frames"], content["weighting"]["horizon"], len(content["grid"])) == (84, 5, 4)
    weights = weights_of(buffer, read_progress(buffer), Weighting(horizon=5)).frames
    assert content["chosen"]["effective"] == pytest.approx(weights.effective_sample_size / 84)
    assert content["chosen"]["by_label"] == pytest.approx(mean_weight_by_label(buffer, weights.values))
    rows = list(csv.DictReader((tmp_path / "out" / "w.csv").read_text().splitlines()))
    assert [(row["beta"], row["w_max"]) for row in rows] == [(b, w) for b in ("0.3", "1.0") for w in ("5.0", "20.0")]
    chosen = rows[-1]
    assert float(chosen["ratio"]) == pytest.approx(content["chosen"]["ratio"])
    assert chosen["mean_unlabelled"] == ""


def test_weights_of_a_policys_recipe(cli, buffer, tmp_path):
    code, out, err = cli("weights", buffer.root, "--policy", "pi0-tiny", "--kappa", 0.5, "--json", tmp_path / "w.json")
    assert code == 0, err
    weighting = json.loads((tmp_path / "w.json").read_text())["weighting"]
    assert (weighting["horizon"], weighting["kappa"]) == (3, 0.5)  # its n_action_steps
    assert "horizon 3" in " ".join(out.split())


def test_several_tasks_have_a_separate_table(cli, tmp_path):
    names = [f"task {number}" for number in range(12)]
    root = record_squares(tmp_path / "d", [(name, 6, 1.0, bool(n % 2)) for n, name in enumerate(names)], 12)
    buffer = open_buffer(root)
    lengths, reaches = [6] * 12, [1.0, 0.4] * 6
    write_scores(buffer, ramps(lengths, reaches))
    code, out, err = cli("weights", root, "--horizon", 2)
    assert code == 0, err
    assert "mean weight of a frame by task" in out
    assert "and 2 more tasks" in out


# --- refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--beta", 0), "beta 0.0 and w_max 20.0 must be positive"),
        (("--w-max", -1), "must be positive"),
        (("--beta", "nan"), "must be positive"),
        (("--horizon", 30), "at most 23"),
        (("--betas", "0.3,x"), "--betas is '0.3,x'; give positive numbers"),
        (("--caps", "5,0"), "--caps is '5,0'; give positive numbers"),
        (("--policy", "pi0-tinny"), "did you mean 'pi0-tiny'?"),
    ],
)
def test_invalid_options_are_refused(cli, buffer, options, says):
    refused(cli("weights", buffer.root, *options), says)
    assert not (buffer.sidecar / "weights.png").exists()


def test_scores_that_are_missing_stale_or_of_another_dataset(cli, squares_copy):
    refused(cli("weights", squares_copy, "--horizon", 99), "does not exist", "srpo-robot score-dataset")
    buffer = open_buffer(squares_copy)
    write_scores(buffer, ramps(), dataset="another")
    refused(cli("weights", squares_copy), "another state of its dataset", "srpo-robot score-dataset")
    with pytest.raises(StaleTable, match="not of"):
        weights_of(buffer, write_scores(buffer, ramps(), dataset="another"), Weighting())
    write_scores(buffer, ramps())
    (squares_copy / "relabel.csv").write_text("episode_index,success\n0,false\n")
    assert cli("label", squares_copy, "--csv", squares_copy / "relabel.csv")[0] == 0
    refused(cli("weights", squares_copy), "another state of its labels", "srpo-robot score-dataset")


def test_scores_without_any_value(cli, squares_copy):
    write_scores(open_buffer(squares_copy), [np.full(n, np.nan) for n in LENGTHS])
    code, _, err = cli("weights", squares_copy)
    assert code == 1
    assert "error: no finite advantage to train on" in err


def test_a_dropped_tail_leaves_frames_without_weight_and_warns(cli, buffer, tmp_path):
    code, _, err = cli("weights", buffer.root, "--horizon", 19, "--tail", "drop", "--json", tmp_path / "w.json")
    assert code == 0, err
    assert "1 of 4 episodes are no longer than the horizon of 19" in err
    assert json.loads((tmp_path / "w.json").read_text())["undefined"] == 84 - (5 + 1 + 3)
