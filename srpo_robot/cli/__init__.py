"""The command line. The only room that knows every other; each is imported when its command runs: --help is quick."""

from __future__ import annotations

import sys

from srpo_robot.cli.app import app
from srpo_robot.cli.console import errors
from srpo_robot.errors import SrpoRobotError, one_line

INTERRUPTED = 130


def main() -> None:
    """Entry point: exit code 0, 1 for a failure, 2 for bad usage or input, 130 after Ctrl-C."""
    try:
        app()
    except SrpoRobotError as error:
        errors.print("[red]error:[/] ", end="")
        errors.print(one_line(error), markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer has turned Ctrl-C into this
            errors.print(
                "stopped; what was finished is on disk, the same command goes on from there (train-awr: with --resume)"
            )
        raise
