"""The benchmark's rows, its ablations, and its commands as a user types them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from conftest import record_squares, refused

from srpo_robot.errors import UsageError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.evidence.benchmark import alpha_sweep, beside_oracle, own_rows, step_values, worst_gains
from srpo_robot.progress.evidence.metrics import Resampling
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.records import Episode

NONE = Resampling(0, 0)
RULES = ScoringConfig(profile="loo")


def line(index: int, reach: float, success: bool, length: int = 20) -> tuple[Episode, WindowEmbeddings]:
    """Returns windows of an episode with embeddings that go from (1, 0) towards (1, reach)."""
    ends = np.arange(10, length)
    along = reach * ends / (length - 1) + 0.01 * index
    return (
        Episode(
            index=index,
            task="go",
            length=length,
            fps=10.0,
            first_frame=length * index,
            cameras=("front",),
            success=success,
        ),
        WindowEmbeddings(ends, np.stack([np.ones(len(ends)), along], axis=1)),
    )


EPISODES, WINDOWS = zip(
    *(line(i, 1.0 if i < 4 else 0.3 + 0.05 * i, i < 4) for i in range(8)),
    strict=True,
)


def test_the_score_under_test_gets_one_row_per_profile_and_per_ablation():
    external = {"go": np.array([[1.0, 5.0]])}
    rows = own_rows(EPISODES, WINDOWS, RULES, ("nearest", "external"), external, resampling=NONE)
    assert [row.name for row in rows] == ["paper", "loo", "paper, nearest", "paper, external"]
    assert rows[1].macro["auc"].value == 1.0  # failures stop short of the successes' end
    assert not any(row.control for row in rows)


@pytest.mark.parametrize(("names", "says"), [(("clusters",), "no ablation"), (("external",), "--reference")])
def test_an_impossible_ablation_is_refused(names, says):
    with pytest.raises(UsageError, match=says):
        own_rows(EPISODES, WINDOWS, RULES, names, resampling=NONE)


def test_alpha_scales_failures_and_at_zero_the_reward_is_the_label():
    rows = {row.alpha: row for row in alpha_sweep(EPISODES, WINDOWS, RULES)}
    assert rows[0.0].failure == rows[0.0].highest_failure == rows[0.0].within == 0.0
    assert rows[0.8].failure == pytest.approx(0.8 * rows[1.0].failure)
    assert 0.0 < rows[0.3].within < rows[1.0].within


def test_the_worst_gain_is_the_deepest_fall_over_a_chunk():
    value = np.array([0.0, 0.5, 0.9, 0.2, 0.3, 1.0])
    assert worst_gains([value], 1)[0] == pytest.approx(-0.7)
    assert worst_gains([value], 2)[0] == pytest.approx(-0.6)  # 0.9 -> 0.3
    assert np.isnan(worst_gains([value, value * np.nan], 6)).all()  # without a chunk there is no value
    with pytest.raises(UsageError, match="horizon"):
        worst_gains([value], 0)


def test_a_value_that_is_the_oracle_agrees_with_it():
    values = step_values(EPISODES, WINDOWS, RULES, ("progress", "knn-time"))
    assert set(values) == {"progress", "knn-time"}
    assert [len(row) for row in values["knn-time"]] == [e.length for e in EPISODES]
    rng = np.random.default_rng(0)
    stage = [np.cumsum(rng.normal(size=20)) for _ in EPISODES]
    carrying = [np.ones(20, dtype=bool)] * 8
    drops = [None] * 4 + [10] * 4
    rows = beside_oracle({"oracle": stage}, stage, drops, carrying, [e.success for e in EPISODES], 3, 0, NONE)
    assert rows[0].chunks.pooled.value == pytest.approx(1.0)


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled_dataset(tmp_path_factory):
    """Eight short episodes of one task. Read-only by agreement."""
    rows = [("go", 16 + i, 1.0 if i < 4 else 0.2 + 0.05 * i, i < 4) for i in range(8)]
    return record_squares(tmp_path_factory.mktemp("bench") / "data", rows, commit_every=8)


def test_benchmark_and_audit_of_a_scored_dataset(labelled_dataset, tmp_path, cli, tiny_encoder_folder):
    code, _, err = cli("score-dataset", labelled_dataset, "--encoder", tiny_encoder_folder, "--windows", "stride:2")
    assert code == 0, err
    out_json = tmp_path / "bench.json"
    code, out, err = cli(
        *("benchmark-progress", labelled_dataset, "--resamples", "50", "--latex", "--json", out_json, "--episode", "5"),
        *("--counterfactuals", "2", "--swap-colours", "250,250,250:250,20,20"),
        *("--scorer", "pixel-last10", "--scorer", "frozen-tail", "--scorer", "pixel", "--ablate", "nearest,alpha"),
    )
    assert code == 0, err
    content = json.loads(out_json.read_text())
    assert content["encoder"]["name"] == str(tiny_encoder_folder)  # the encoder of the score
    names = [row["scorer"] for row in content["rows"]]
    assert names == ["paper", "loo", "paper, nearest", "pixel-last10", "frozen-tail", "pixel"]
    assert len(content["alpha"]) == 5
    assert content["oracle"] == {}
    counts = {row["variant"]: row["count"] for row in content["counterfactuals"]}
    assert counts == {"frozen": 2, "early-cut": 2, "reversed": 2, "wrong-ending:failure": 2, "wrong-object": 2}
    assert "4 successes, 4 failures" in out
    srpo = labelled_dataset / "srpo"
    with (srpo / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["scorer"] for row in rows} == set(names)
    assert "toprule" in (srpo / "benchmark.tex").read_text()
    assert (srpo / "benchmark.png").read_bytes().startswith(b"\x89PNG")

    code, out, err = cli("audit", labelled_dataset, "--resamples", "100", "--horizon", "4")
    assert code in (0, 1), err
    assert ("The audit passed." in out) == (code == 0)
    assert json.loads((srpo / "audit.json").read_text())["passed"] == (code == 0)


def test_training_by_advantage_asks_for_the_audit(labelled_dataset, cli, tmp_path, tiny_encoder_folder):
    assert cli("score-dataset", labelled_dataset, "--encoder", tiny_encoder_folder)[0] == 0
    (labelled_dataset / "srpo" / "audit.json").unlink(missing_ok=True)
    command = ("train-awr", labelled_dataset, "--policy", "pi0-tiny", "--output", tmp_path / "out", "--steps", "1")
    refused(cli(*command), "never audited", "srpo-robot audit", "--accept-audit")
    assert cli("audit", labelled_dataset, "--resamples", "20", "--level", "0.000001")[0] == 1
    code, _, err = cli(*command)
    assert code == 1  # the recipe has its own level, and random weights on 8 squares do not beat a control
    assert "the audit failed" in err
    assert "--accept-audit" in err
    assert not (tmp_path / "out").exists()
    code, _, err = cli(*command, "--accept-audit", "--batch-size", "2")
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--scorer", "pixels"), ("no scorer 'pixels'", "pixel-last10")),
        (("--scorer", "image"), ("--image",)),
        (("--image", "nobody/nothing"), ("nobody/nothing",)),
        (("--ablate", "external"), ("--reference",)),
        (("--episode", "99", "--scorer", "none"), ("no episode 99",)),
    ],
)
def test_benchmark_refuses_invalid_options(labelled_dataset, cli, tiny_encoder_folder, options, says):
    refused(cli("benchmark-progress", labelled_dataset, "--encoder", tiny_encoder_folder, *options), *says)


def test_a_single_class_and_unlabelled_episodes(tmp_path, cli, tiny_encoder_folder):
    wins = record_squares(tmp_path / "wins", [("go", 14, 1.0, True), ("go", 15, 0.9, True)], commit_every=2)
    code, out, err = cli("audit", wins, "--encoder", tiny_encoder_folder, "--resamples", "20")
    assert code == 1, err
    assert "cannot be compared" in out
    assert "too few failures" in out
    code, out, err = cli("benchmark-progress", wins, "--encoder", tiny_encoder_folder, "--scorer", "none")
    assert code == 0, err
    assert "undefined" in out
    refused(cli("audit", wins, "--level", "2"), "level")
