"""`srpo-robot mock-lab`: a lab in a terminal, for `srpo-robot run --arm FILE` in another one."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from srpo_robot.arm.actions import make_action_space
from srpo_robot.arm.limits import Limits
from srpo_robot.cli.console import say
from srpo_robot.cli.running import load_recipes
from srpo_robot.errors import ArmError, UsageError
from srpo_robot.evaluation.served_policy import PolicyServer, describe
from srpo_robot.files import write_whole
from srpo_robot.interrupts import ending
from srpo_robot.recipes import HardwareRecipe, dump, load
from srpo_robot.records import ActionChunk, Observation

if TYPE_CHECKING:
    from srpo_robot.mock.lab import MockLab

CELL, ARM = "mock", "xarm7"  # recipes: what is emulated, and whose controller settings the driver gets
_MARK = "# Written by srpo-robot mock-lab; it goes when the lab closes.\n"
_PRIVILEGED = 1024


def mock_lab(task: str, recipe: Path, host: str, port: int, seed: int, randomization: float) -> None:
    """Open a mock lab, write a hardware recipe that points at it, say what to type, and wait for Ctrl-C.

    Raises:
        RecipeError: a task that the mock cell does not have.
        UsageError: a file is in the recipe's place, or a port that only root may take.
        ArmError: a port or address is taken.
    """
    from srpo_robot.mock.lab import MockLab

    cell, task = load_recipes(CELL, task)
    arm = load(HardwareRecipe, "hardware", ARM)
    _check_place(recipe)
    with ExitStack() as opened:
        lab = MockLab(cell, task, host=host, command_port=port, seed=seed, randomization=randomization)
        try:
            opened.enter_context(lab)
        except ArmError as error:
            raise _privileges(port, error) from None
        limits = Limits.from_recipe(cell.limits, cell.tcp_offset_m, 1.0 / cell.fps)
        space = make_action_space(task.action_space, limits, np.array(cell.home_rad))
        script = ScriptedPolicy(lab)
        server = opened.enter_context(PolicyServer(script, describe(script, space, task.cameras)))
        ended = opened.enter_context(ending())  # before anybody hears that the lab is open
        _write(recipe, dump(lab.recipe(arm)))
        opened.callback(recipe.unlink, missing_ok=True)
        name = shlex.quote(str(recipe))
        say(f"[bold]The mock lab is open.[/] Controller: {lab.controller.host}:{lab.controller.command_port}")
        for camera in cell.cameras:
            say(f"  camera {camera.name}: {lab.streams.url(camera.name)}")
        say("In another terminal, with the scripted demonstrator or with a checkpoint:")
        say(f"  srpo-robot run --arm {name} --task {task.name} --policy {server.url} --trials 3 --output outputs/lab")
        say(f"  srpo-robot run --arm {name} --task {task.name} --policy CHECKPOINT --by-hand --output outputs/lab-2")
        say("Trials are laid out and judged by the simulator (judge_url in the recipe), unless --by-hand says that you")
        say("hold the keys. A real arm has no judge. Every number from here is a mock's. Ctrl-C closes the lab.")
        sys.stdout.flush()
        while not ended.wait(0.5):
            lab.check()
    say("The mock lab is closed.")


class ScriptedPolicy:
    """The scripted demonstrator as a policy. It looks at the simulator, not at the cameras."""

    name = "scripted demonstrator"

    def __init__(self, lab: MockLab) -> None:
        from srpo_robot.mock.demonstrator import Demonstrator

        self._lock = lab.plant.lock
        self._demonstrator = Demonstrator(lab.plant.sim)

    def reset(self, seed: int) -> None:
        """Plan for the scene as it is laid out now."""
        with self._lock:
            self._demonstrator.reset(seed)

    def act(self, observation: Observation) -> ActionChunk | None:
        """One action, from where everything is now."""
        with self._lock:
            return self._demonstrator.act(observation)


def _check_place(recipe: Path) -> None:
    if recipe.suffix != ".toml":
        raise UsageError(f"{recipe} is no .toml; --arm finds recipes by that ending")
    if recipe.exists() and not (recipe.is_file() and recipe.read_text(encoding="utf-8").startswith(_MARK)):
        raise UsageError(f"{recipe} exists and is no mock lab's; give another --recipe")


def _write(recipe: Path, content: str) -> None:
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recipe, _MARK + content)  # another process may be waiting for the file


def _privileges(port: int, error: ArmError) -> Exception:
    """What to say where a port cannot be opened."""
    if 0 < port < _PRIVILEGED and os.geteuid() != 0:
        return UsageError(
            f"port {port} needs privileges; leave --port out (a free one goes into the recipe), or allow it with: "
            f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    return error
