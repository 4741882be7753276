"""`srpo-robot init`: the packaged recipes, copied to where a lab edits them."""

from __future__ import annotations

import shutil
from pathlib import Path

from srpo_robot.cli.console import say
from srpo_robot.errors import UsageError
from srpo_robot.recipes import FOLDERS, packaged_folder


def init_lab(folder: Path) -> None:
    """Copy datasets/, policies/ and hardware/ into `folder`.

    Raises:
        UsageError: it holds recipes already, or is a file.
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
