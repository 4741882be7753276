"""The command line. The only package that imports all others, each when its command runs, so that --help is quick."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Any

from srpo_robot.cli.app import app
from srpo_robot.cli.console import errors, warn
from srpo_robot.errors import SrpoRobotError, one_line
from srpo_robot.renames import OPTIONS, RenamedWarning, current

INTERRUPTED = 130
_FULL = "free some space; what was finished is on disk, the same command goes on from there"
_REFUSED = "make its folder writable, or work on a copy of the dataset"
_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _REFUSED),
}


def main() -> None:
    """Entry point: exit code 0, 1 for a failure, 2 for bad usage or input, 130 after Ctrl-C."""
    warnings.simplefilter("always", RenamedWarning)
    _shown.clear()
    warnings.showwarning = _show_warning
    sys.argv[1:] = [_current_option(argument) for argument in sys.argv[1:]]
    try:
        app()
    except SrpoRobotError as error:
        _say(one_line(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        path = f"{error.filename}" if error.filename else "a file"
        _say(f"{path} cannot be written: {os.strerror(error.errno).lower()}; {_DISK[error.errno]}")
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            errors.print(
                "stopped; what was finished is on disk, the same command goes on from there (train-awr: with --resume)"
            )
        raise


def _current_option(argument: str) -> str:
    """Returns `--new=value` for `--old=value`, with a warning. Returns any other argument unchanged."""
    name, equals, value = argument.partition("=")
    return current(name, OPTIONS) + equals + value if name.startswith("--") else argument


_show_warning_of_python = warnings.showwarning
_shown: set[str] = set()  # warnings about old names that this command has printed


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Prints the warning about an old name as one line, once for each name; leaves other warnings to Python."""
    if not issubclass(category, RenamedWarning):
        _show_warning_of_python(message, category, *rest)
    elif str(message) not in _shown:
        _shown.add(str(message))
        warn(str(message))


def _say(text: str) -> None:
    errors.print("[red]error:[/] ", end="")
    errors.print(text, markup=False, soft_wrap=True)
