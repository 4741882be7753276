"""Shared fixtures: small real datasets, written by the project's own recorder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # set before transformers and lerobot are imported, so that tests never use the network
)

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a background job of a shell ignores SIGINT, and its children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, longest first. Workers begin with them, so that the last files are short and all workers end
# at about the same time (pytest-xdist keeps this order with --no-loadscope-reorder).
LONG_FILES = (
    "test_cli.py",
    "test_scripts.py",
    "test_train.py",
    "test_export.py",
    "test_bad_input.py",
    "test_mock_truth.py",
    "test_end_to_end.py",
    "test_report.py",
    "test_buffer.py",
    "test_decode.py",
    "test_training_cli.py",
    "test_baselines.py",
    "test_rounds.py",
)

REAL_DATA = Path(os.environ.get("SRPO_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests of `LONG_FILES` to the front."""
    rank = {name: number for number, name in enumerate(LONG_FILES)}
    # the sort is stable: the order within a file stays
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(autouse=True)
def no_default_timeout() -> None:
    """Resets the process-wide socket timeout, which threads of the vendor's SDK may set even after their test ended."""
    socket.setdefaulttimeout(None)


def moving_square(length: int, reach: float, size: int = 48) -> np.ndarray:
    """Returns a video of a bright square that goes `reach` of the way across: uint8 (T, size, size, 3)."""
    frames = np.full((length, size, size, 3), 40, dtype=np.uint8)
    for t in range(length):
        x = round((size - 12) * reach * t / max(length - 1, 1))
        frames[t, 18:30, x : x + 12] = (230, 60, 50)
    return frames


def record_squares(root: Path, episodes: list[tuple[str, int, float, bool]], commit_every: int = 1) -> Path:
    """Record (task, length, reach, success) episodes of two cameras with state and action. Returns `root`."""
    from srpo_robot.buffer.recorder import Recorder, dataset_features

    names = ("x", "y")
    features = dataset_features({"front": (48, 48), "side": (48, 48)}, names, names)
    with Recorder(root, 10.0, features, "test", commit_every) as recorder:
        for task, length, reach, success in episodes:
            recorder.begin()
            video = moving_square(length, reach)
            for t in range(length):
                state = np.array([t / length, reach])
                recorder.add({"front": video[t], "side": video[t].transpose(1, 0, 2).copy()}, state, state * 2, task)
            recorder.end(success)
    return root


SQUARES = [
    ("go right", 24, 1.0, True),
    ("go right", 20, 0.95, True),
    ("go right", 22, 0.3, False),
    ("go right", 18, 0.5, False),
]


def unpacked_wheel(plugin: str, folder: Path) -> Path:
    """Returns the folder that pip would put into site-packages: a plugin's wheel, built offline and unpacked."""
    source = Path(__file__).resolve().parents[1] / "srpo_robot" / "plugins" / plugin
    shutil.copytree(source, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=folder / "source", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four labelled episodes of one task. Read-only by agreement: copy it to write."""
    return record_squares(tmp_path_factory.mktemp("squares") / "data", SQUARES)


@pytest.fixture
def squares_copy(squares: Path, tmp_path: Path) -> Path:
    """A copy of `squares` that a test may change."""
    import shutil

    return shutil.copytree(squares, tmp_path / "data")


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V-JEPA 2 of 32 px and 4 frames, saved with save_pretrained like those of the Hub."""
    from transformers import VJEPA2Config, VJEPA2Model

    sizes: dict[str, Any] = {"crop_size": 32, "frames_per_clip": 4, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "mlp_ratio": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1}
    sizes |= {"pred_num_attention_heads": 2, "pred_num_mask_tokens": 1}
    config = VJEPA2Config(**sizes)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "vjepa2"
    VJEPA2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def cli(monkeypatch, capsys):
    """Returns a function that runs a command in this process: (exit code, standard output, standard error)."""

    from srpo_robot.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srpo-robot", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def refused(result: tuple[int, str, str], *says: str) -> None:
    """Asserts exit code 2 and one error line that contains each of `says`."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for text in says:
        assert text in lines[0]


def real_data(name: str) -> Path:
    """Returns the path of a real dataset. Skips the test, with the reason, if the machine does not have it."""
    path = REAL_DATA / name
    if not path.is_dir():
        pytest.skip(f"no real recordings at {path}; set SRPO_REAL_DATA to the folder that holds {name}")
    return path
