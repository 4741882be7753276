"""Tests that help pages and typos are answered before torch, lerobot or another heavy package is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Runs command lines in one interpreter: [exit code, error lines, heavy packages imported by it] for each.
_RUN = """
import contextlib, io, json, sys

from srpo_robot.cli import main
import srpo_robot.cli.console as console

lines, heavy = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
results, known = [], set()  # what importing the command line imports is counted for the first line
for line in lines:
    sys.argv = ["srpo-robot", *line]
    out, err = io.StringIO(), io.StringIO()
    console.errors.file, console.console.file = err, out
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    says = [part for part in err.getvalue().splitlines() if part.strip()]
    new = heavy & set(sys.modules) - known
    known |= new
    results.append([code, says, sorted(new)])
print(json.dumps(results))
"""

HEAVY_FOR_TYPOS = ("torch", "lerobot", "transformers")
HEAVY_FOR_HELP = (*HEAVY_FOR_TYPOS, "zarr", "scipy", "matplotlib", "numpy", "pyarrow", "pandas", "av", "cv2", "mujoco")


def run_lines(lines: list[list[str]], heavy: tuple[str, ...], folder: Path) -> list[list[Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    command = [sys.executable, "-c", _RUN, json.dumps(lines), json.dumps(heavy)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def command_names() -> list[str]:
    from typer.main import get_command

    from srpo_robot.cli.app import app

    return sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_no_help_page_imports_a_heavy_package(tmp_path: Path):
    lines = [["--help"], *([name, "--help"] for name in command_names())]
    assert len(lines) == 22
    results = run_lines(lines, HEAVY_FOR_HELP, tmp_path)
    assert [(line, code, heavy) for line, (code, _, heavy) in zip(lines, results, strict=True) if code or heavy] == []


# --- typos --------------------------------------------------------------------------------------------------------

DEVICE = "cuda:9x"
# (command line, a part of its error line). `laboratory` creates the folder in which they run.
TYPOS: dict[str, tuple[str, str]] = {
    "run: arm": ("run --arm mok --task put-apple --policy ckpt --output new", "no recipe 'mok' in hardware/"),
    "run: task": ("run --task put-aple --policy ckpt --output new", "did you mean 'put-apple'"),
    "run: checkpoint": ("run --task put-apple --policy ./nowhere --output new", "no checkpoint ./nowhere"),
    "run: Hub id": ("run --task put-apple --policy outputs/awrr --output new", "outputs/awrr is no folder here"),
    "run: incomplete": ("run --task put-apple --policy half --output new", "has no policy_preprocessor.json"),
    "run: empty": ("run --task put-apple --policy notes --output new", "notes holds no checkpoint"),
    "run: output": ("run --task put-apple --policy ckpt --output notes", "notes exists and is not a run"),
    "run: device": (f"run --task put-apple --policy ckpt --output new --device {DEVICE}", "no device 'cuda:9x'"),
    "run: protocol": ("run --protocol sheet.json --output new", "no sheet at sheet.json"),
    "serve: task": ("serve --policy ckpt --task put-aple", "did you mean 'put-apple'"),
    "serve: checkpoint": ("serve --policy ./nowhere --task put-apple", "no checkpoint ./nowhere"),
    "serve: device": (f"serve --policy ckpt --task put-apple --device {DEVICE}", "no device 'cuda:9x'"),
    "check: arm": ("check --arm xarm8", "no recipe 'xarm8' in hardware/"),
    "check: task": ("check --policy ckpt --task put-aple", "did you mean 'put-apple'"),
    "check: device": (f"check --device {DEVICE}", "no device 'cuda:9x'"),
    "record: task": ("record --task put-aple --episodes 1 --root new", "did you mean 'put-apple'"),
    "record: root": ("record --task put-apple --episodes 1 --root notes", "notes exists and is no dataset"),
    "protocol: arm": ("protocol --arm mok --task put-apple --policy ckpt --output s.json", "no recipe 'mok'"),
    "protocol: task": ("protocol --task put-aple --policy ckpt --output s.json", "did you mean 'put-apple'"),
    "mock-lab: task": ("mock-lab --task put-aple", "did you mean 'put-apple'"),
    "mock-lab: recipe": ("mock-lab --task put-apple --recipe lab.txt", "lab.txt is no .toml"),
    "demo: root": ("demo --root notes", "notes exists and is not a demo"),
    "init: folder": ("init taken", "taken already has datasets"),
    "label: dataset": ("label ./nowhere --all-success", "./nowhere is no folder"),
    "label: folder": ("label notes --all-success", "notes is no LeRobot dataset"),
    "report: dataset": ("report ./nowhere", "./nowhere is no folder"),
    "report: version": ("report old", "old is in LeRobot format v2.1"),
    "repair: dataset": ("repair notes", "notes is no LeRobot dataset"),
    "compare: run": ("compare notes ./nowhere", "notes has no trials.jsonl"),
    "rounds: run": ("rounds ./nowhere", "nowhere has no trials.jsonl"),
    "append: run": ("append new notes", "notes holds no recorded trials"),
    "append: dataset": ("append old run", "old is in LeRobot format v2.1"),
    "score-dataset: dataset": ("score-dataset ./nowhere", "./nowhere is no folder"),
    "score-dataset: device": (f"score-dataset whole --device {DEVICE}", "no device 'cuda:9x'"),
    "store: dataset": ("store ./nowhere", "./nowhere is no folder"),
    "benchmark-progress: dataset": ("benchmark-progress ./nowhere", "./nowhere is no folder"),
    "audit: dataset": ("audit ./nowhere", "./nowhere is no folder"),
    "weights: dataset": ("weights ./nowhere", "./nowhere is no folder"),
    "weights: policy": ("weights whole --policy pi0-tny", "did you mean 'pi0-tiny'"),
    "export: dataset": ("export ./nowhere --to weights", "./nowhere is no folder"),
    "train-awr: dataset": ("train-awr ./nowhere --policy pi0-tiny --output new", "./nowhere is no folder"),
    "train-awr: policy": ("train-awr whole --policy pi0-tny --output new", "did you mean 'pi0-tiny'"),
    "train-awr: output": ("train-awr whole --policy pi0-tiny --output notes", "notes exists"),
    "train-awr: device": (f"train-awr whole --policy pi0-tiny --output new --device {DEVICE}", "no device 'cuda:9x'"),
}


@pytest.fixture
def laboratory(tmp_path: Path) -> Path:
    """A folder with a checkpoint of empty files, an incomplete checkpoint, and unrelated folders."""
    files = {
        "ckpt": ("config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"),
        "half": ("config.json", "model.safetensors"),
        "notes": ("notes.txt",),
        "taken": ("datasets",),
        "run/dataset": ("notes.txt",),
    }
    for folder, names in files.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_text("")
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    return tmp_path


def test_a_typo_is_answered_in_one_line_before_anything_heavy_is_imported(laboratory: Path, squares: Path):
    (laboratory / "whole").symlink_to(squares)
    results = run_lines([line.split() for line, _ in TYPOS.values()], HEAVY_FOR_TYPOS, laboratory)
    wrong = {}
    for (name, (_, says)), (code, errors, heavy) in zip(TYPOS.items(), results, strict=True):
        one_line = len(errors) == 1 and errors[0].startswith("error:") and says in errors[0]
        if code != 2 or heavy or not one_line:
            wrong[name] = (code, errors, heavy)
    assert wrong == {}
    assert not (laboratory / "new").exists()
