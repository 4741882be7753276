"""Opens a LeRobot v3.0 dataset by folder or Hub id, checks its format version and reads its labels.

The module imports neither lerobot nor pyarrow at its top, so that a mistyped folder is answered at once.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo_robot.errors import DatasetError, one_line
from srpo_robot.records import Episode

if TYPE_CHECKING:
    from srpo_robot.buffer.episodes import Buffer

CODEBASE = "v3.0"
INFO = Path("meta") / "info.json"


def quiet_lerobot() -> None:
    """Silences lerobot's output. Call it before importing lerobot.

    Without system ffmpeg lerobot logs a 100-line torchcodec traceback before it falls back to PyAV. The AV1 encoder
    prints its settings for every file.
    """
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # errors only; the variable is read when an encoder opens


def open_buffer(dataset: str | Path) -> Buffer:
    """Opens a LeRobot v3.0 dataset by folder, or downloads it by Hub id ("user/name").

    Raises:
        DatasetError: the folder does not exist, holds no dataset or another format version, or the Hub does not answer.
    """
    check_dataset(dataset)
    from srpo_robot.buffer.episodes import Buffer
    from srpo_robot.buffer.labels import read_labels

    root = Path(dataset)
    meta = _load_metadata(root, None if root.is_dir() else str(dataset))
    root = Path(meta.root)
    unlabelled = tuple(_unlabelled_episode(meta, row) for row in meta.episodes)
    labels = read_labels(Buffer(root, meta, unlabelled))
    labelled = (replace(e, success=labels[e.index].success, group=labels[e.index].group) for e in unlabelled)
    return Buffer(root, meta, tuple(labelled))


def check_dataset(dataset: str | Path) -> None:
    """Checks that `dataset` is the folder of a whole LeRobot v3.0 dataset. A Hub id ("user/name") passes unchecked.

    A folder that is missing, holds no dataset or has another format is refused before anything heavy is imported.

    Raises:
        DatasetError: no such folder, no dataset in it, another format version, or its recording was cut off.
    """
    root = Path(dataset)
    if root.is_dir():
        _check_folder(root)
    elif str(dataset).count("/") != 1 or str(dataset).startswith((".", "/", "~")):
        raise DatasetError(f"{dataset} is no folder; give a LeRobot v3.0 dataset's folder or a Hub id like user/name")


def _check_folder(root: Path) -> None:
    info = root / INFO
    if not info.is_file():
        raise DatasetError(f"{root} is no LeRobot dataset: it has no meta/info.json; give the folder that holds meta/")
    try:
        version = json.loads(info.read_text()).get("codebase_version", "unknown")
    except json.JSONDecodeError as error:
        raise DatasetError(f"{info} is not readable: {error}") from None
    if version != CODEBASE:
        raise DatasetError(
            f"{root} is in LeRobot format {version}; convert it with "
            f"'python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=USER/NAME --root={root}'"
            if str(version).startswith("v2")
            else f"{root} is in LeRobot format {version}; this version reads {CODEBASE}"
        )
    from srpo_robot.buffer.repair import is_cut_off  # reads parquet files

    if is_cut_off(root):
        raise DatasetError(
            f"{root} has unfinished files: it is being recorded just now, or its recording was cut off; "
            f"if nobody records there: srpo-robot repair {root}"
        )


def _load_metadata(root: Path, hub_id: str | None) -> Any:
    quiet_lerobot()
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    try:
        if hub_id is None:
            meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
        else:
            from lerobot.datasets.lerobot_dataset import LeRobotDataset

            meta = LeRobotDataset(hub_id).meta
    except Exception as error:  # the Hub client and the parquet readers raise dozens of kinds
        if hub_id is None:
            raise DatasetError(f"{root} cannot be read: {one_line(error)[:200]}; restore it from a copy") from None
        raise DatasetError(
            f"there is no folder {hub_id}, and the Hub does not give a dataset of that name "
            f"({one_line(error)[:120]}); a folder on this machine works offline"
        ) from None
    if meta.episodes is None or len(meta.episodes) == 0:
        raise DatasetError(f"{root} holds no episodes yet; record some with 'srpo-robot record'")
    return meta


def _unlabelled_episode(meta: Any, row: dict[str, Any]) -> Episode:
    tasks = row["tasks"]
    return Episode(
        index=int(row["episode_index"]),
        task=str(tasks[0]) if len(tasks) else "",
        length=int(row["length"]),
        fps=float(meta.fps),
        first_frame=int(row["dataset_from_index"]),
        cameras=tuple(meta.camera_keys),
    )
