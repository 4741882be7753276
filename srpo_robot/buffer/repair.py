"""Repairs a dataset whose recording was cut off (kill -9, power loss): keeps finished episodes, moves the rest aside.

lerobot writes the footers of its parquet files only when it finalises a dataset, and files without a footer cannot be
read. They are moved to DATASET/srpo/cut_off/. If no episode was finished, the whole folder is moved to
DATASET.cut_off_1. Nothing is deleted, because the video may still be useful.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srpo_robot.errors import DatasetError

CUT_OFF = Path("srpo") / "cut_off"


def repair(root: Path) -> int:
    """Restores the dataset in `root` to its finished episodes. Returns the number of files moved aside.

    Changes nothing if the dataset is whole or does not exist. Do not call it while another process records there.

    Raises:
        DatasetError: a file of a finished episode is unreadable or gone, so the damage is more than a cut.
    """
    info_path = root / "meta" / "info.json"
    if not info_path.is_file():
        return 0
    info, rows, broken = _state(root)
    unfinished = [path for path in root.glob("tmp*") if path.is_dir()]  # lerobot's folders of an unfinished episode
    if not rows and (info["total_episodes"] or unfinished):
        _move_whole(root)
        return 1
    if not broken and len(rows) == info["total_episodes"]:
        return 0
    needed = {path for row in rows for path in _files(root, info, row)}
    there = {path for folder in ("data", "videos") for path in (root / folder).rglob("*") if path.is_file()}
    if needed - there:
        missing = sorted(needed - there)[0].relative_to(root)
        raise DatasetError(f"{root}: {missing} is gone, and finished episodes refer to it; restore it from a copy")
    aside = [*broken, *sorted(there - needed), *unfinished]
    for path in aside:
        _move_aside(root, path)
    frames = sum(int(row["length"]) for row in rows)
    info |= {"total_episodes": len(rows), "total_frames": frames, "splits": {"train": f"0:{len(rows)}"}}
    _write_stats(root, rows)
    info_path.write_text(json.dumps(info, indent=4, ensure_ascii=False))
    return len(aside)


def is_cut_off(root: Path) -> bool:
    """Returns whether the dataset in `root` has unfinished files: its recording was cut off or is still running."""
    info, rows, broken = _state(root)
    return bool(broken) or len(rows) != info["total_episodes"]


def _state(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[Path]]:
    """Returns info.json, the rows of all readable episode tables in order, and the tables without a footer."""
    info = json.loads((root / "meta" / "info.json").read_text())
    rows, broken = [], []
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        try:
            rows += pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError):
            broken.append(path)
    return info, sorted(rows, key=lambda row: row["episode_index"]), broken


def _files(root: Path, info: dict[str, Any], row: dict[str, Any]) -> list[Path]:
    """Returns the files that hold an episode's frames."""
    data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    videos = [
        info["video_path"].format(
            video_key=key, chunk_index=row[f"videos/{key}/chunk_index"], file_index=row[f"videos/{key}/file_index"]
        )
        for key, feature in info["features"].items()
        if feature["dtype"] == "video"
    ]
    return [root / name for name in (data, *videos)]


def _move_aside(root: Path, path: Path) -> None:
    place = root / CUT_OFF / path.relative_to(root)
    number = 1
    while place.exists():
        place = root / CUT_OFF / str(number) / path.relative_to(root)
        number += 1
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, place)


def _move_whole(root: Path) -> None:
    """Renames the whole folder, for a dataset without a finished episode."""
    number = 1
    while (place := root.with_name(f"{root.name}.cut_off_{number}")).exists():
        number += 1
    root.rename(place)


def _write_stats(root: Path, rows: list[dict[str, Any]]) -> None:
    """Recomputes the dataset's statistics from the statistics of the finished episodes."""
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.io_utils import write_stats
    from lerobot.utils.utils import unflatten_dict

    flat = [{k.removeprefix("stats/"): np.array(v) for k, v in row.items() if k.startswith("stats/")} for row in rows]
    write_stats(aggregate_stats([unflatten_dict(stats) for stats in flat]), root)
