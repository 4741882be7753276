"""`srpo-robot mock-lab`: an emulated lab in one terminal, for `srpo-robot run --arm FILE` in another one."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from srpo_robot.cli.console import say
from srpo_robot.cli.inputs import load_recipes
from srpo_robot.cli.options import MockLabOptions
from srpo_robot.cli.running import recipe_space
from srpo_robot.errors import ArmError, UsageError
from srpo_robot.evaluation.served_policy import PolicyServer, describe
from srpo_robot.files import write_whole
from srpo_robot.interrupts import ending
from srpo_robot.recipes import HardwareRecipe, dump, load
from srpo_robot.records import ActionChunk, Observation

if TYPE_CHECKING:
    from srpo_robot.mock.lab import MockLab

CELL, ARM = "mock", "xarm7"  # recipes: the emulated cell, and the arm whose controller settings the driver gets
_MARK = "# Written by srpo-robot mock-lab; it goes when the lab closes.\n"
_PRIVILEGED = 1024


def mock_lab(options: MockLabOptions) -> None:
    """Opens a mock lab, writes a hardware recipe that points at it, prints what to type and waits for Ctrl-C.

    Raises:
        RecipeError: the mock cell does not have the task.
        UsageError: another file is in the recipe's place, or only root may open the port.
        ArmError: a port or address is taken.
    """
    cell, task = load_recipes(CELL, options.task)
    arm = load(HardwareRecipe, "hardware", ARM)
    recipe = options.recipe
    _check_place(recipe)
    from srpo_robot.mock.lab import MockLab

    with ExitStack() as opened:
        lab = MockLab(
            cell,
            task,
            host=options.host,
            command_port=options.port,
            seed=options.seed,
            randomization=options.randomization,
        )
        try:
            opened.enter_context(lab)
        except ArmError as error:
            raise _privileges(options.port, error) from None
        space = recipe_space(cell, task)
        script = ScriptedPolicy(lab)
        server = opened.enter_context(PolicyServer(script, describe(script, space, task.cameras)))
        ended = opened.enter_context(ending())  # Ctrl-C must work as soon as the lab is announced
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
        """Plans for the scene as it is laid out now."""
        with self._lock:
            self._demonstrator.reset(seed)

    def act(self, observation: Observation) -> ActionChunk | None:
        """Returns one action for the current state of the scene."""
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
    """Returns the error to raise if a port cannot be opened."""
    if 0 < port < _PRIVILEGED and os.geteuid() != 0:
        return UsageError(
            f"port {port} needs privileges; leave --port out (a free one goes into the recipe), or allow it with: "
            f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
        )
    return error
