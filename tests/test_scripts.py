"""Runs each script as a user would, at the smallest size."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from srpo_robot.errors import UsageError
from srpo_robot.progress.encoder import load_encoder

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch):
    def run(name: str, *arguments: object) -> None:
        monkeypatch.syspath_prepend(SCRIPTS)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


def test_a_small_encoder_is_trained_resumed_and_evaluated(script, tmp_path, capsys):
    video, run = tmp_path / "video", tmp_path / "run"
    script("pretrain_small_vjepa2.py", "record", video, "--seed", 700_000, "--each", 4, 1, "--views", 2)
    script("pretrain_small_vjepa2.py", "record", video, "--seed", 701_000, "--episodes", 2, "--views", 2)
    episodes = json.loads((video / "episodes.json").read_text())
    assert [x["success"] for x in episodes[:8]] == [True] * 4 + [False] * 4
    frames = sum(x["length"] * 2 for x in episodes)
    assert (video / "frames.u8").stat().st_size == frames * 96 * 96 * 3

    for steps in (2, 3):  # the second run resumes the first
        script("pretrain_small_vjepa2.py", "train", run, "--data", video, "--validation", video, "--steps", steps)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "predicted" in line] == [2, 3]
    assert {"resumed": 2} in log
    assert load_encoder(str(run / "encoder")).frames_per_clip == 2

    output = tmp_path / "encoders.json"
    script("bench_encoders.py", "--data", video, "--encoder", run / "encoder", "--resamples", 50, "--json", output)
    result = json.loads(output.read_text())
    assert {
        "embedded, prefix",
        "embedded-random, recent",
        f"{run / 'encoder'}, prefix",
        "pixel-last10",
        "length",
    } < set(result["scorers"])
    for row in result["scorers"].values():
        assert 0.0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1.0
        assert {"miss", "drop", "wrong", "stop"} == set(row["failures"])
    assert all(math.isfinite(row["difference"]) for row in result["best_less_scorer"].values())
    assert "pixel-last10" in capsys.readouterr().out


def test_too_little_video_is_refused_with_the_amount(script, tmp_path):
    script("pretrain_small_vjepa2.py", "record", tmp_path / "few", "--seed", 700_000, "--each", 1, 0)
    both = ("--data", tmp_path / "few", "--validation", tmp_path / "few")
    with pytest.raises(UsageError, match="1 episodes of --data, 1 successes among 1 .* at least 8, and 4 successes"):
        script("pretrain_small_vjepa2.py", "train", tmp_path / "run", *both)


def test_a_missing_recording_option_is_named(script, tmp_path):
    with pytest.raises(UsageError, match="give --episodes N or --each SUCCESSES FAILURES"):
        script("pretrain_small_vjepa2.py", "record", tmp_path / "video", "--seed", 1)


@pytest.mark.parametrize("family", ["pi0", "pi0_fast"])
def test_awr_learns_the_good_half_of_the_demonstrations(script, tmp_path, family):
    path = tmp_path / "learns.json"
    script("learns_from_scores.py", "--family", family, "--seeds", 1, "--steps", 100, "--episodes", 12, "--json", path)
    result = json.loads(path.read_text())[family]
    assert result["gain"] == pytest.approx(result["sft"][0] - result["awr"][0])
    assert result["awr"][0] < 0.75 * result["sft"][0]
    assert result["interval"] is None  # one seed has no interval


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would measure")
def test_gpu_memory_needs_a_gpu(script):
    with pytest.raises(SystemExit, match="error: .* finds no CUDA; train-awr --dry-run"):
        script("bench_memory_gpu.py")


def test_a_small_study_of_figure_8_runs_and_resumes(script, tmp_path, capsys):
    study, output, figure = tmp_path / "study", tmp_path / "figure8.json", tmp_path / "figure8.png"
    sizes = (
        "--task",
        "put-apple",
        "wipe-board",
        "--policy",
        "pi0-tiny",
        "--method",
        "sft",
        "bc",
        "awr",
        "--episodes",
        4,
    )
    sizes += ("--trials", 1, "--steps", 4, "--base-steps", 2)
    script("reproduce_figure8_mock.py", study, *sizes, "--prepare")
    script("reproduce_figure8_mock.py", study, *sizes, "--seeds", 1, "--part", 1, 2)
    assert len(list((study / "trials").rglob("*.jsonl"))) == 3  # every second one of six cells
    table = tmp_path / "cells.csv"
    script("reproduce_figure8_mock.py", study, *sizes, "--seeds", 1, "--cells", table)
    assert len(table.read_text().splitlines()) == 1 + 6  # earlier cells of the folder are included
    once = {path: path.read_bytes() for path in study.rglob("*.jsonl")}
    script("reproduce_figure8_mock.py", study, *sizes, "--seeds", 2, "--json", output, "--figure", figure)
    assert {path: path.read_bytes() for path in once} == once  # existing cells were not run again
    result = json.loads(output.read_text())["pi0-tiny"]
    assert set(result["methods"]) == {"sft", "bc", "awr"}
    assert set(result["methods"]["awr"]["tasks"]) == {"put-apple", "wipe-board"}
    assert len(result["awr_minus_sft"]["seeds"]) == 2
    low, high = result["awr_minus_sft"]["interval"]
    assert low <= result["awr_minus_sft"]["mean"] <= high
    bc_metrics = study / "runs" / "put-apple" / "pi0-tiny" / "bc" / "0" / "metrics.jsonl"
    assert 1 <= len(bc_metrics.read_text().splitlines()) < 4  # the same passes over the good half take fewer steps
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="holds a study of other sizes"):
        script("reproduce_figure8_mock.py", study, *sizes, "--episodes", 5)
    shutil.rmtree(study / "base" / "wipe-board")
    script("reproduce_figure8_mock.py", study, *sizes, "--seeds", 2, "--only-done", "--json", output)
    assert list(json.loads(output.read_text())["pi0-tiny"]["methods"]["awr"]["tasks"]) == ["put-apple"]
    assert not (study / "base" / "wipe-board" / "pi0-tiny").exists()  # would be another base
    assert "wipe-board pi0-tiny sft 0 is left out" in capsys.readouterr().out


def test_a_table_of_cells_carries_results_to_another_machine(script, tmp_path, capsys):
    table, output = tmp_path / "cells.csv", tmp_path / "figure8.json"
    sizes = ("--task", "put-apple", "--policy", "pi0-tiny", "--trials", 4, "--episodes", 4, "--cells", table)
    table.write_text(
        "policy,task,base,method,seed,successes,episodes,failure_rate,trials,base_steps,steps,learning_rate\n"
        "pi0-tiny,put-apple,one,sft,0,1,4,0.5,4,8000,3000,recipe\n"
        "pi0-tiny,put-apple,one,awr,0,3,4,0.5,4,8000,3000,recipe\n"
        "pi0-tiny,put-apple,other,awr,0,1,4,0.5,4,8000,3000,recipe\n"  # must not be compared with the sft above
        "pi0-tiny,put-apple,one,awr,1,3,4,0.5,4,8000,3000,0.001\n"  # other sizes belong to another study
        "pi0-tiny,put-apple,one,bc,1,2,4,0.5,4,8000,3000,recipe\n"  # its first seed is missing
    )
    there = (*sizes, "--method", "sft", "bc", "rabc", "awr", "--seeds", 2, "--only-done", "--json", output)
    script("reproduce_figure8_mock.py", tmp_path / "other", *there)
    result = json.loads(output.read_text())["pi0-tiny"]
    assert result["methods"]["awr"]["seeds"] == [0.5]  # of both bases
    assert result["awr_minus_sft"]["tasks"]["put-apple"]["seeds"] == [0.5]
    assert list(result["methods"]) == ["sft", "bc", "awr"]  # in the requested order, and rabc has no cell
    assert not (tmp_path / "other" / "data").exists()  # no output was written
    assert "1 cells are of other sizes" in capsys.readouterr().out
    with pytest.raises(UsageError, match="none of these cells is done"):
        script("reproduce_figure8_mock.py", tmp_path / "other", *sizes, "--method", "rabc", "--only-done")
    with pytest.raises(UsageError, match="--cells is for the study's own cells"):
        script("reproduce_figure8_mock.py", tmp_path / "other", *sizes, "--tuning")
    with table.open("a") as file:
        file.write("pi0-tiny,put-apple,one,sft,0,2,4,0.5,4,8000,3000,recipe\n")
    with pytest.raises(UsageError, match="line 7: put-apple pi0-tiny sft 0 is there twice"):
        script("reproduce_figure8_mock.py", tmp_path / "other", *there)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="line 2: not a row of a table that --cells wrote"):
        script("reproduce_figure8_mock.py", tmp_path / "other", *there)


@pytest.mark.parametrize("policy", ["pi0-tiny", "pi0-fast-tiny"])
def test_the_published_figures_match_the_cells(script, tmp_path, policy):
    output = tmp_path / "figure8.json"
    study = (tmp_path / "study", "--steps", 3000, "--learning-rate", 1e-3, "--policy", policy)
    options = ("--cells", SCRIPTS / "figure8_mock.csv", "--only-done", "--json", output)
    script("reproduce_figure8_mock.py", *study, "--method", "sft", "bc", "rabc", "awr", *options)
    result = json.loads(output.read_text())[policy]
    readme = (SCRIPTS.parent / "README.md").read_text()
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{policy}`, all five"))
    for other in ("sft", "bc", "rabc"):
        gain = result[f"awr_minus_{other}"]
        assert len(gain["seeds"]) == 5
        mean, low, high = (
            f"{100 * x:+.0f}".replace("+0", "0").replace("-0", "0") for x in (gain["mean"], *gain["interval"])
        )
        assert f"{mean} ({low} to {high})" in row


def test_the_published_ablations_match_the_cells(script, tmp_path):
    output = tmp_path / "figure8.json"
    study = (
        tmp_path / "study",
        "--steps",
        3000,
        "--learning-rate",
        1e-3,
        "--policy",
        "pi0-tiny",
        "--task",
        "put-apple",
    )
    options = ("--cells", SCRIPTS / "figure8_mock.csv", "--only-done", "--json", output)
    script("reproduce_figure8_mock.py", *study, "--method", "awr", "awr-paper", "awr-chunk", "awr-pixel", *options)
    result = json.loads(output.read_text())["pi0-tiny"]
    readme = " ".join((SCRIPTS.parent / "README.md").read_text().split())
    for other, says in (
        ("paper", "{} points ({} to {}) ahead"),
        ("chunk", "{} ({} to {}) ahead"),
        ("pixel", "{} ({} to {})."),
    ):
        gain = result[f"awr_minus_awr-{other}"]
        assert len(gain["seeds"]) == 3
        assert says.format(*(f"{100 * x:.0f}" for x in (gain["mean"], *gain["interval"]))) in readme


def test_differences_over_seeds_by_hand(script, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    study = runpy.run_path(str(SCRIPTS / "reproduce_figure8_mock.py"))
    rates = {("t", "p", "sft", 0): {"b": 0.2}, ("t", "p", "awr", 0): {"b": 0.5, "c": 0.9}}  # c has no sft
    rates |= {("t", "p", "sft", 1): {"b": 0.4}, ("t", "p", "awr", 1): {"b": 0.5}}
    rates |= {("u", "p", name, seed): {"b": 0.3} for name in ("sft", "awr") for seed in (0, 1)}
    rates |= {("t", "p", "sft", 2): {"b": 0.1}, ("t", "p", "awr", 2): {"c": 0.9}}  # no base has both
    rates |= {("u", "p", name, 2): {"b": 0.3} for name in ("sft", "awr")}
    gain = study["summarise"](rates)["p"]["awr_minus_sft"]
    assert gain["seeds"] == pytest.approx([0.15, 0.05])
    assert gain["mean"] == pytest.approx(0.1)
    assert gain["interval"] == pytest.approx([0.1 - 12.706 * 0.05, 0.1 + 12.706 * 0.05], abs=1e-4)
    assert study["over_seeds"]([0.98, 1.0, 0.9])["interval"][1] == 1.0  # a rate above 1 is invalid


def test_two_processes_of_a_study_never_build_the_same_output_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    alone = runpy.run_path(str(SCRIPTS / "reproduce_figure8_mock.py"))["alone"]
    order = []

    def other():
        with alone(tmp_path / "cells" / "0.jsonl"):
            order.append("other begins")

    thread = threading.Thread(target=other)
    with alone(tmp_path / "cells" / "0.jsonl"), alone(tmp_path / "cells" / "1.jsonl"):
        thread.start()
        thread.join(0.3)
        order.append("first ends")
    thread.join()
    assert order == ["first ends", "other begins"]
    assert "waiting for it" in capsys.readouterr().out


def test_missing_runs_are_not_drawn_as_zero(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    study = runpy.run_path(str(SCRIPTS / "reproduce_figure8_mock.py"))
    axes = Figure().subplots()
    rows = [study["over_seeds"]([0.0, 0.0]), study["over_seeds"]([])]
    study["_bars"](axes, [0.0, 1.0], rows, 0.5, "RA-BC", "#93c5fd")
    assert len(axes.patches) == 1  # a rate of 0 has its bar
    assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("not run", 1.0)]
