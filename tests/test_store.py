"""Tests of the embedding store: entries stay complete with several writers, full disks or kills. Also its plans."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from srpo_robot.errors import SrpoRobotError, StaleTable
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import Geometry, tflop_per_clip
from srpo_robot.progress.plan import plan
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore, Pruned, entry_bytes
from srpo_robot.records import Episode


def windows(count: int, value: float = 1.0, width: int = 4) -> WindowEmbeddings:
    return WindowEmbeddings(np.arange(count), np.full((count, width), value, dtype=np.float32))


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "s.zarr")


# --- entries


def test_an_entry_records_its_source_and_size(store):
    store.put("b", windows(3), {"camera": "front", "episode": 7, "windows": {"kind": "dense"}})
    store.put("a", windows(2))
    first, second = store.entries()
    assert (first.key, first.windows, first.metadata) == ("a", 2, {})
    assert second.metadata == {"camera": "front", "episode": 7, "windows": {"kind": "dense"}}
    files = [path for path in (store.path / "b").rglob("*") if path.is_file()]
    assert second.bytes == sum(path.stat().st_size for path in files)
    assert store.keys() == ["a", "b"]


def test_an_entry_has_the_planned_size(store):
    noise = np.random.default_rng(0).normal(size=(74, 256)).astype(np.float32)
    store.put("a", WindowEmbeddings(np.arange(74), noise))
    on_disk = store.entries()[0].bytes
    assert 0.8 * entry_bytes(74, 256) < on_disk <= 1.05 * entry_bytes(74, 256)


def test_an_entry_without_metadata_of_an_older_version_is_listed(store):
    store.put("a", windows(2))
    path = store.path / "a" / "zarr.json"
    path.write_text('{"zarr_format": 3, "node_type": "group"}')
    assert store.entries()[0].metadata == {}
    assert store.get("a").ends.tolist() == [0, 1]


# --- prune


def test_prune_keeps_the_given_entries_and_frees_the_rest(store):
    for key in "abc":
        store.put(key, windows(2))
    size = store.entries()[0].bytes
    messages: list[str] = []
    assert store.prune({"b"}, messages.append) == Pruned(2, 0, 2 * size)
    assert (store.keys(), messages) == (["b"], ["a", "c"])
    assert store.prune({"b"}) == Pruned(0, 0, 0)
    assert store.get("b").embeddings.tolist() == windows(2).embeddings.tolist()
    assert EmbeddingStore(store.path).keys() == ["b"]


def test_prune_removes_the_leftovers_of_a_killed_writer(store):
    script = (
        "import numpy as np, os, sys\n"
        "from pathlib import Path\n"
        "import srpo_robot.progress.store as m\n"
        "s = m.EmbeddingStore(Path(sys.argv[1]))\n"
        "s.put('whole', m.WindowEmbeddings(np.array([1]), np.ones((1, 2))))\n"
        "m.os.rename = lambda *a: os.kill(os.getpid(), 9)\n"
        "s.put('half', m.WindowEmbeddings(np.array([1]), np.ones((1, 2))))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(store.path)], check=False).returncode == -9
    assert len(list(store.path.glob(".half.*"))) == 1
    assert len(store) == 1
    result = store.prune({"whole"})
    assert (result.entries, result.leftovers) == (0, 1)
    assert result.bytes > 0
    assert sorted(child.name for child in store.path.iterdir()) == ["srpo.json", "whole", "zarr.json"]


def test_an_interrupted_prune_leaves_complete_entries_only(store, monkeypatch):
    store.put("a", windows(2))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("srpo_robot.progress.store.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            store.prune(set())
    assert "a" not in store
    assert store.prune(set()).leftovers == 1


@pytest.mark.parametrize("moment", ["between arrays", "before the rename"])
def test_a_writer_restarts_an_entry_that_was_pruned(store, monkeypatch, moment):
    import zarr

    rename, create, prunes = os.rename, zarr.Group.create_array, []

    def prune_once() -> None:
        if not prunes:
            prunes.append(True)
            assert store.prune(set()).leftovers == 1

    def create_array(group, name, **options):
        if name == "embeddings" and moment == "between arrays":
            prune_once()
        return create(group, name, **options)

    def rename_after(source, target):
        if moment == "before the rename" and ".pruned" not in str(target):
            prune_once()
        rename(source, target)

    monkeypatch.setattr(zarr.Group, "create_array", create_array)
    monkeypatch.setattr("srpo_robot.progress.store.os.rename", rename_after)
    store.put("a", windows(2))
    assert prunes == [True]
    assert store.get("a").ends.tolist() == [0, 1]
    assert not list(store.path.glob(".*"))


# --- two writers


def test_two_processes_on_one_store_lose_nothing(tmp_path):
    """Both processes open the store at once and write private keys and shared keys."""
    script = (
        "import numpy as np, sys\n"
        "from pathlib import Path\n"
        "from srpo_robot.progress.store import EmbeddingStore\n"
        "from srpo_robot.progress.score import WindowEmbeddings\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "s = EmbeddingStore(Path(sys.argv[1]))\n"
        "for i in range(12):\n"
        "    s.put(f'shared{i}', WindowEmbeddings(np.array([i]), np.full((1, 8), i)))\n"
        "    s.put(f'{sys.argv[2]}{i}', WindowEmbeddings(np.array([i]), np.full((1, 8), i)))\n"
    )
    path = tmp_path / "s.zarr"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], stdin=-1, stdout=-1, text=True)
        for name in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    store = EmbeddingStore(path)
    assert len(store) == 36
    for name in ("shared", "left", "right"):
        for i in range(12):
            entry = store.get(f"{name}{i}")
            assert (entry.ends.tolist(), entry.embeddings.tolist()) == ([i], [[float(i)] * 8])
    assert not list(path.glob(".*"))


# --- refusals


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("target", ["zarr.Group.create_array", "srpo_robot.progress.store.os.rename"])
def test_a_full_disk_is_a_one_line_error_and_keeps_the_entries(store, monkeypatch, code, target):
    store.put("early", windows(2))

    def full(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(SrpoRobotError, match=r"needs 2\.0 MB, [\d.]+ MB are free; earlier episodes are kept") as e:
            store.put("late", windows(1000, width=500))
    assert "\n" not in str(e.value)
    assert e.value.exit_code == 1
    assert (store.keys(), list(store.path.glob(".late*"))) == (["early"], [])
    store.put("late", windows(2))
    assert store.keys() == ["early", "late"]


def test_a_real_full_disk(tmp_path):
    """On a file system of 256 kB, if mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system")
    try:
        store = EmbeddingStore(disk / "s.zarr")
        store.put("early", windows(2))
        noise = np.random.default_rng(0).normal(size=(500, 500)).astype(np.float32)
        with pytest.raises(SrpoRobotError, match=r"needs 1\.0 MB, 0\.\d MB are free"):
            store.put("late", WindowEmbeddings(np.arange(500), noise))
        assert store.keys() == ["early"]
        assert not list(store.path.glob(".*"))
        assert store.get("early").ends.tolist() == [0, 1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_a_one_line_error(store, tmp_path, monkeypatch):
    store.put("early", windows(2))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("srpo_robot.progress.store.zarr.open_group", refuse)
    with pytest.raises(SrpoRobotError, match=r"may not be written \(read-only file system\); make .* writable"):
        store.put("late", windows(2))
    with pytest.raises(SrpoRobotError, match="may not be written"):
        EmbeddingStore(tmp_path / "new.zarr")
    assert EmbeddingStore(store.path).keys() == ["early"]  # reading needs no permission to write


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_real_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SrpoRobotError, match="may not be written"):
            EmbeddingStore(tmp_path / "s.zarr")
    finally:
        tmp_path.chmod(0o700)


def test_other_rename_errors_propagate(store, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("srpo_robot.progress.store.os.rename", fail)
    with pytest.raises(OSError, match="input/output error"):
        store.put("a", windows(1))
    assert (len(store), list(store.path.glob(".a*"))) == (0, [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "x"}'])
def test_a_store_whose_format_cannot_be_read_is_refused(store, content):
    (store.path / "srpo.json").write_text(content)
    with pytest.raises(StaleTable, match="cannot be read; delete the folder"):
        EmbeddingStore(store.path)


# --- plan


def test_a_plan_counts_the_remaining_windows_of_every_camera():
    geometry = Geometry(layers=24, hidden=1024, mlp_ratio=4, crop_px=256)
    episodes = [
        Episode(index=i, task="t", length=length, fps=10.0, first_frame=0, cameras=("a", "b"))
        for i, length in enumerate([100, 20, 5])
    ]
    spec = ScoringConfig(windows="stride:4", frames_per_clip=64)
    keys = {0: ("a0", "b0"), 1: ("a1", "b1"), 2: ("a2", "b2")}
    result = plan(episodes, spec, geometry, keys, {"a0", "b2"}, tflops=100.0)
    counts = [24, 4, 1]  # ends 10, 14, .., 98, 99 / 10, 14, 18, 19 / 4
    remaining = counts[0] + 2 * counts[1] + counts[2]
    assert (result.windows, result.windows_stored) == (2 * sum(counts), counts[0] + counts[2])
    assert result.tflop == pytest.approx(remaining * 11.571, rel=1e-3)
    assert result.seconds == pytest.approx(result.tflop / 100)
    assert result.bytes == sum(entry_bytes(n, 1024) for n in (24, 4, 4, 1))


def test_a_plan_of_nested_windows_uses_the_length_of_each_window():
    geometry = Geometry(layers=24, hidden=1024, mlp_ratio=4, crop_px=256)
    episode = Episode(index=3, task="t", length=300, fps=10.0, first_frame=0, cameras=("a",))
    cost = plan([episode], ScoringConfig(windows="nested", min_window=0, frames_per_clip=64), geometry, {3: ("k",)}, ())
    assert cost.windows == 32
    assert cost.seconds is None
    assert cost.tflop == pytest.approx(sum(tflop_per_clip(geometry, t) for t in range(2, 65, 2)))
    assert cost.tflop == pytest.approx(156, rel=0.01)


def test_a_plan_with_all_windows_stored_or_omitted_costs_nothing():
    episodes = [Episode(index=i, task="t", length=30, fps=10.0, first_frame=0, cameras=("a",)) for i in range(2)]
    result = plan(
        episodes,
        ScoringConfig(windows="dense", frames_per_clip=4),
        Geometry(layers=2, hidden=32, mlp_ratio=2, crop_px=32),
        {0: ("k",)},
        {"k"},
        1.0,
    )
    assert (result.windows, result.windows_stored, result.tflop, result.seconds, result.bytes) == (20, 20, 0, 0, 0)
