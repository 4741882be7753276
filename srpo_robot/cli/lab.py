"""`srpo-robot init` copies the recipes for a lab. `srpo-robot repair` restores a recording that was cut off."""

from __future__ import annotations

import shutil
from pathlib import Path

from srpo_robot.cli.console import say
from srpo_robot.errors import DatasetError, UsageError
from srpo_robot.recipes import FOLDERS, packaged_folder


def init_lab(folder: Path) -> None:
    """Copies datasets/, policies/ and hardware/ into `folder`.

    Raises:
        UsageError: `folder` already holds recipes, or is a file.
    """
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give a new folder")
    taken = [name for name in FOLDERS if (folder / name).exists()]
    if taken:
        raise UsageError(f"{folder} already has {', '.join(taken)}; nothing was changed. Give a new folder")
    for name in FOLDERS:
        shutil.copytree(packaged_folder(name), folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in sorted((folder / name).iterdir()):
            say(f"{path}")
    say(f"Edit them, then run srpo-robot inside {folder}: it finds your recipes first, the packaged ones after.")


def repair_dataset(root: Path) -> None:
    """Repairs the dataset in `root` and prints the result. Raises DatasetError if there is none, or it is damaged."""
    from srpo_robot.buffer.opening import INFO
    from srpo_robot.buffer.recorder import recorded_episodes
    from srpo_robot.buffer.repair import CUT_OFF, repair

    if not (root / INFO).is_file():
        raise DatasetError(f"{root} is no LeRobot dataset: it has no {INFO}")
    moved = repair(root)
    if moved == 0:
        say(f"{root} is whole: {recorded_episodes(root)} episodes.")
    elif not root.exists():
        say(f"Not one episode of {root} was finished; the folder is now beside it, as {root.name}.cut_off_1 or higher.")
    else:
        say(f"{root}: {recorded_episodes(root)} finished episodes; {moved} unfinished files are in {root / CUT_OFF}.")
