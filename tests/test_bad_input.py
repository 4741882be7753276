"""Bad input through the real command line: one error line that says what would work, and finished embeddings stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SQUARES, moving_square, record_squares, refused
from PIL import Image
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from srpo_robot.awr.weighting import weights_of
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli import main
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.pipeline import read_progress
from srpo_robot.progress.windows import ends
from srpo_robot.recipes import Weighting

FRONT = "observation.images.front"


@pytest.fixture(scope="session")
def shared_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQUARES with all episodes in one file per camera. Read-only by agreement."""
    return record_squares(tmp_path_factory.mktemp("shared") / "data", SQUARES, commit_every=4)


@pytest.fixture
def shared(shared_squares: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared_squares, tmp_path / "data")


@pytest.fixture
def options(tiny_encoder_folder: Path) -> tuple[object, ...]:
    return ("--encoder", tiny_encoder_folder, "--min-window", 6)


def embedded(root: Path) -> int:
    return len(list((root / "srpo" / "embeddings.zarr").glob("*/zarr.json")))


def progress(root: Path, episode: int) -> np.ndarray:
    table = read_progress(open_buffer(root))
    return table["progress"][table["episode_index"] == episode]


def video(root: Path) -> Path:
    (path,) = (root / "videos" / FRONT).rglob("*.mp4")
    return path


def overwrite(path: Path, *frames: int) -> None:
    """Damages the bytes of these frames, counted over the whole file."""
    with av.open(str(path)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux() if packet.size]
    content = bytearray(path.read_bytes())
    for frame in frames:
        position, size = places[frame]
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)


# --- videos


def test_damage_in_the_middle_of_a_file_loses_only_that_episode(cli, shared, options):
    overwrite(video(shared), SQUARES[0][1] + 6)  # in the second of four episodes
    refused(cli("score-dataset", shared, *options), "episode 1", f"{FRONT}, frame 6", "--skip-bad-episodes")
    assert embedded(shared) == 1
    code, out, err = cli("score-dataset", shared, *options, "--skip-bad-episodes")
    assert code == 0, err
    assert "2 episodes embedded now" in out  # the first episode was kept
    assert f"left out episode 1: episode 1, {FRONT}, frame 6" in err
    assert np.isnan(progress(shared, 1)).all()
    assert all(np.isfinite(progress(shared, index)).all() for index in (0, 2, 3))
    assert "0 episodes embedded now" in cli("score-dataset", shared, *options, "--skip-bad-episodes")[1]


def test_an_episode_beside_a_damaged_one_is_whole(cli, shared, options):
    """Damages the last frame of one episode and the first of another. Decoding begins at an earlier keyframe."""
    first, second, third, _ = (length for _, length, _, _ in SQUARES)
    overwrite(video(shared), first - 1, first + second, first + second + third - 1)
    code, _, err = cli("score-dataset", shared, *options, "--skip-bad-episodes")
    assert code == 0, err
    assert f"episode 0, {FRONT}, frame {first - 1} " in err
    assert f"episode 2, {FRONT}, frame 0 " in err
    assert err.count("left out") == 2
    assert np.isfinite(progress(shared, 1)).all()


def test_a_truncated_file_loses_the_episodes_that_are_cut_off(cli, shared, options):
    path = video(shared)
    with av.open(str(path)) as container:
        ends_at = [(packet.pos or 0) for packet in container.demux() if packet.size]
    content = path.read_bytes()
    length = ends_at[SQUARES[0][1] + SQUARES[1][1] + 4]  # in the third episode
    path.write_bytes(content[:length])
    if content.find(b"moov") > length:
        pytest.skip("the index stands at the end of this file: nothing of it is left")
    refused(cli("score-dataset", shared, *options), "episode 2", "frame 4 ", "--skip-bad-episodes")
    assert embedded(shared) == 2
    code, out, err = cli("score-dataset", shared, *options, "--skip-bad-episodes")
    assert code == 0, err
    assert "0 episodes embedded now" in out
    assert "left out episode 2" in err
    assert "left out episode 3" in err


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"not a video"])
def test_a_file_that_is_not_a_video(cli, shared, options, content):
    video(shared).write_bytes(content)
    refused(cli("score-dataset", shared, *options), "episode 0", "frame 0", "cannot be opened")
    refused(cli("score-dataset", shared, *options, "--skip-bad-episodes"), "'go right' has no success")
    assert embedded(shared) == 0


def test_a_task_whose_every_success_is_damaged(cli, shared, options):
    overwrite(video(shared), 3, SQUARES[0][1] + 3)
    result = cli("score-dataset", shared, *options, "--skip-bad-episodes")
    refused(result, "'go right'", "success")
    assert embedded(shared) == 2


# --- frames that are not numbers


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three episodes with camera frames stored as images inside the data files."""
    from srpo_robot.buffer.recorder import Recorder, dataset_features

    features = dataset_features({"front": (48, 48)}, ("x",), ("x",))
    features[FRONT]["dtype"] = "image"
    with Recorder(tmp_path / "pictures", 10.0, features, "test") as recorder:
        for length, reach, success in ((12, 1.0, True), (11, 0.9, True), (10, 0.3, False)):
            recorder.begin()
            for frame in moving_square(length, reach):
                recorder.add({"front": frame}, np.zeros(1), np.zeros(1), "go")
            recorder.end(success)
    return tmp_path / "pictures"


def replace_cell(root: Path, column: str, row: int, value: Any) -> None:
    """Changes one value of the second episode's rows."""
    path = sorted((root / "data").rglob("*.parquet"))[1]
    table = pq.read_table(path)
    cells = table[column].to_pylist()
    cells[row] = value
    at = table.schema.get_field_index(column)
    changed_table = table.set_column(at, table.schema.field(at), pa.array(cells, table.schema.field(at).type))
    pq.write_table(changed_table.replace_schema_metadata(table.schema.metadata), path)


def tiff(pixels: np.ndarray) -> dict[str, Any]:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "TIFF")
    return {"bytes": content.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (tiff(np.full((48, 48), np.nan, dtype=np.float32)), "may be NaN"),
        (tiff(np.full((48, 48), 0.5, dtype=np.float32)), "8-bit colours"),
        (None, "the frame is missing"),
        ({"bytes": b"\x89PNG\r\n", "path": None}, "cannot identify"),
    ],
)
def test_an_image_without_8_bit_colours_is_named(cli, pictures, options, cell, why):
    replace_cell(pictures, FRONT, 4, cell)
    refused(cli("score-dataset", pictures, *options), f"episode 1, {FRONT}, frame 4 cannot be decoded", why)
    assert embedded(pictures) == 1
    code, out, err = cli("score-dataset", pictures, *options, "--skip-bad-episodes")
    assert code == 0, err
    assert "1 episodes embedded now" in out
    assert np.isnan(progress(pictures, 1)).all()
    assert np.isfinite(progress(pictures, 0)).all()


def test_images_are_scored_and_a_changed_image_is_embedded_again(cli, pictures, options):
    code, out, err = cli("score-dataset", pictures, *options)
    assert code == 0, err
    assert "3 episodes embedded now" in out
    replace_cell(pictures, FRONT, 4, tiff(np.zeros((48, 48, 3), dtype=np.uint8)))  # another picture, another identity
    assert "1 episodes embedded now" in cli("score-dataset", pictures, *options)[1]


def test_a_missing_image_frame_is_named(cli, pictures, options):
    replace_cell(pictures, "frame_index", 4, 5)
    refused(cli("score-dataset", pictures, *options), "episode 1", "frame 4", "the frame is missing")


def test_a_timestamp_that_is_nan_is_not_read(cli, shared, options):
    (path,) = (shared / "data").rglob("*.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index("timestamp")
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(np.full(len(table), np.nan), field.type)), path)
    code, _, err = cli("score-dataset", shared, *options)
    assert code == 0, err
    assert all(np.isfinite(progress(shared, index)).all() for index in range(4))


def test_a_place_in_the_video_that_is_nan_is_named(cli, shared, options):
    (path,) = (shared / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index(f"videos/{FRONT}/from_timestamp")
    values = table.column(at).to_pylist()
    values[2] = float("nan")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)
    refused(cli("score-dataset", shared, *options), "episode 2", "meta/episodes says it is at nan")
    code, _, err = cli("score-dataset", shared, *options, "--skip-bad-episodes")
    assert code == 0, err
    assert np.isnan(progress(shared, 2)).all()


# --- lengths and sizes


def test_an_episode_of_one_frame_has_no_progress_and_the_others_do(cli, tmp_path, options):
    root = record_squares(tmp_path / "d", [*SQUARES, ("go right", 1, 0.5, False), ("go right", 1, 1.0, True)])
    code, out, err = cli("score-dataset", root, *options)
    assert code == 0, err
    assert "5 episodes embedded now" in out  # the last two frames are the same picture
    assert "progress of 2 episodes is undefined" in err
    assert "[4, 5]" in err
    assert np.isnan(progress(root, 4)).all()
    assert np.isnan(progress(root, 5)).all()
    assert all(np.isfinite(progress(root, index)).all() for index in range(4))
    buffer = open_buffer(root)
    weights = weights_of(buffer, read_progress(buffer), Weighting())
    assert weights.advantages is not None
    increments = weights.advantages.increment
    assert np.isnan(increments[-2:]).all()  # undefined, not "no progress"


@pytest.mark.parametrize("frames", [1, 15, 0, -2])
def test_a_clip_of_an_odd_number_of_frames(cli, shared, options, frames):
    refused(cli("score-dataset", shared, *options, "--frames-per-clip", frames), f"clips of {frames} frames", "16")


@pytest.mark.parametrize("stride", [7, 23, 1000])
def test_a_stride_that_does_not_divide_still_ends_at_the_last_frame(cli, shared, options, stride):
    code, _, err = cli("score-dataset", shared, *options, "--windows", f"stride:{stride}", "--frames-per-clip", 10)
    assert code == 0, err
    table = read_progress(open_buffer(shared))
    for index, (_, length, _, _) in enumerate(SQUARES):
        scored_frames = np.flatnonzero(table["scored"][table["episode_index"] == index])
        assert scored_frames.tolist() == ends(length, ScoringConfig(windows=f"stride:{stride}", min_window=6)).tolist()
        assert scored_frames[-1] == length - 1


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (481, 641)])
@pytest.mark.parametrize("crop", [256, 384])
def test_frames_of_any_size_are_prepared_as_transformers_does(tiny_encoder_folder, tmp_path, height, width, crop):
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config.from_pretrained(tiny_encoder_folder, crop_size=crop)
    VJEPA2Model(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    frames = np.random.default_rng(crop).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    processor = VJEPA2VideoProcessor(size={"shortest_edge": int(crop * 256 / 224)}, crop_size=crop)
    reference = processor(
        torch.from_numpy(frames).permute(0, 3, 1, 2), do_normalize=False, do_rescale=False, return_tensors="pt"
    )
    prepared = torch.from_numpy(encoder.prepare(frames)).permute(0, 3, 1, 2)
    assert prepared.shape == (2, 3, crop, crop)
    assert torch.equal(prepared, reference["pixel_values_videos"][0].to(torch.uint8))


# --- checkpoints and stores


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_checkpoint_of_another_architecture(cli, shared, tmp_path, name):
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(**sizes)) if name == "vit" else BertModel(BertConfig(**sizes))
    model.save_pretrained(tmp_path / name)
    result = cli("score-dataset", shared, "--encoder", tmp_path / name)
    refused(result, f"is a '{name}' model", "V-JEPA 2 is needed", "facebook/vjepa2")
    assert embedded(shared) == 0


def test_a_store_of_a_newer_version(cli, shared, options):
    assert cli("score-dataset", shared, *options)[0] == 0
    (shared / "srpo" / "embeddings.zarr" / "srpo.json").write_text(json.dumps({"format": 99}))
    refused(cli("score-dataset", shared, *options), "has format 99", "update srpo-robot")
    refused(cli("store", shared), "has format 99", "update srpo-robot")
    assert embedded(shared) == 4


# --- disks

READ_ONLY = 'mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"'
FULL = (
    'size=$(( $(du -sk "$0" | cut -f1) + 60 )); mkdir -p "$0.disk"; mount -t tmpfs -o size=${size}k t "$0.disk"; '
    'cp -r "$0/." "$0.disk"; mount --move "$0.disk" "$0"'
)
COMMANDS = """
import contextlib, io, json, sys
from srpo_robot.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, code, err = ["srpo-robot", *arguments], 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    results.append([code, err.getvalue()])
print(json.dumps(results))
"""


@dataclass(frozen=True)
class Disk:
    """A dataset, and exit code and standard error of a command that ran while its folder was read-only or full."""

    root: Path
    code: int
    err: str


@pytest.fixture(scope="module")
def disks(shared_squares, tiny_encoder_folder, tmp_path_factory) -> dict[str, Disk]:
    """Commands on bad disks. One process mounts all of them for itself and runs the commands one after another.

    Skips if mounting is not allowed.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    options = ["--encoder", str(tiny_encoder_folder), "--min-window", "6"]
    folder = tmp_path_factory.mktemp("disks")
    roots = {name: shutil.copytree(shared_squares, folder / name) for name in ("new", "scored", "full")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["srpo-robot", "score-dataset", str(roots["scored"]), *options])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    mounts = {"new": READ_ONLY, "scored": READ_ONLY, "full": FULL}
    script = "; ".join(mount.replace("$0", str(roots[name])) for name, mount in mounts.items())
    if subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    commands = [["score-dataset", str(root), *options] for root in roots.values()]
    commands[1] += ["--profile", "loo"]
    result = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-ec",
            f'{script}; exec "$@"',
            "sh",
            sys.executable,
            "-c",
            COMMANDS,
            json.dumps(commands),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return {
        name: Disk(root, *outcome)
        for (name, root), outcome in zip(roots.items(), json.loads(result.stdout), strict=True)
    }


def assert_failed(disk: Disk, *says: str) -> None:
    """Asserts exit code 1 and one error line that contains each of `says`."""
    lines = [line for line in disk.err.splitlines() if line.startswith("error:")]
    assert disk.code == 1, disk.err
    assert len(lines) == 1, disk.err
    assert "Traceback" not in disk.err
    for text in says:
        assert text in lines[0]


def test_a_dataset_on_a_read_only_disk(disks):
    assert_failed(disks["new"], "read-only file system", "score a copy")
    assert not (disks["new"].root / "srpo").exists()
    # All episodes are embedded. Only the tables cannot be written.
    assert_failed(
        disks["scored"], "progress.parquet", "cannot be written: read-only file system", "a copy of the dataset"
    )
    assert read_progress(open_buffer(disks["scored"].root)).metadata["config"]["profile"] == "paper"


def test_a_dataset_on_a_full_disk(disks):
    """60 kB are too little for embeddings, tables and pictures together."""
    assert_failed(disks["full"], "no space left", "free some space")
