"""A simulated lab in real time on loopback: the emulated controller, the cell's cameras and a judge.

`MockLab.recipe` returns a hardware recipe like that of a real arm, so the driver cannot tell the difference. The judge
sets the table and decides success, so that runs need no person. A real lab has no judge.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.mock import tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.controller import CellPlant, ControllerServer, free_host
from srpo_robot.mock.judge import JudgeServer
from srpo_robot.mock.streams import CameraStreams
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe
from srpo_robot.records import ArmCommand

NAME = "mock-lab"
# The emulator shares a busy machine with other processes. On a real arm such delays would be faults.
_REPORT_AGE_S = 0.5
_COMMAND_TIMEOUT_S = 1.5
_PICTURE_AGE_S = 2.0
_GRIPPER_RPM = 5000  # maximum speed of the vendor's gripper (the cell's demonstrations use a faster one)


class MockLab:
    """Runs the lab inside a `with` block. `plant`, `controller` and `streams` have methods to inject faults."""

    def __init__(
        self,
        cell: HardwareRecipe,
        task: TaskRecipe,
        *,
        host: str = "",
        command_port: int = 0,
        seed: int = 0,
        randomization: float = 0.0,
    ) -> None:
        """Lays out the scene for `seed`. The scene stays until a client resets it.

        Args:
            cell: a recipe of kind "mock" with home, limits and cameras.
            task: the task to lay out and judge.
            host: a loopback address. With "", a free one is used.
            command_port: port of the controller. The vendor's port 502 needs privileges. With 0, a free one is used.
            seed: seed of the first layout.
            randomization: visual randomization between layouts, 0 (none) to 1.

        Raises:
            RecipeError: the mock cell has no such task or camera.
        """
        if cell.kind != "mock":
            raise RecipeError(f"{cell.name} is a recipe for a {cell.kind}; the mock lab needs one of kind 'mock'")
        self.cell, self.task = cell, task
        self.plant = CellPlant(CellSim(cell, task, randomization))
        self.plant.place(tasks.layout(task, seed), ArmCommand(np.array(cell.home_rad), cell.limits.gripper_max_m))
        self.controller = ControllerServer(self.plant, host=host or free_host(), command_port=command_port)
        self.streams = CameraStreams(self.plant)
        self.judge = JudgeServer(self.plant, self.controller)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Starts all servers. Raises ArmError if a port is taken or needs privileges."""
        with ExitStack() as started:
            for part in (self.controller, self.streams, self.judge):
                started.enter_context(part)
            self._running = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops all servers. Raises ArmError if one of them has failed."""
        self._running.__exit__(kind, error, trace)

    def recipe(self, arm: HardwareRecipe) -> HardwareRecipe:
        """Returns the driver's recipe: `arm` with the cell's geometry and the addresses of this lab.

        Raises:
            RecipeError: `arm` has no controller.
        """
        if arm.controller is None:
            raise RecipeError(f"{arm.name} has no [controller]; start from a recipe of kind 'xarm7'")
        controller = replace(
            arm.controller,
            address=self.controller.host,
            command_port=self.controller.command_port,
            serial="",
            max_report_age_s=_REPORT_AGE_S,
            command_timeout_s=_COMMAND_TIMEOUT_S,
            gripper_rpm=_GRIPPER_RPM,
        )
        cell = self.cell
        return replace(
            arm,
            name=NAME,
            fps=cell.fps,
            home_rad=cell.home_rad,
            tcp_offset_m=cell.tcp_offset_m,
            cameras=tuple(self._camera(camera) for camera in cell.cameras),
            limits=cell.limits,
            controller=controller,
            judge_url=self.judge.url,
        )

    def check(self) -> None:
        """Raises ArmError if a server has failed."""
        self.controller.arm_state()
        if self.streams.failed:
            raise ArmError(f"the mock cameras failed: {self.streams.failed}")

    def _camera(self, camera: CameraRecipe) -> CameraRecipe:
        source = self.streams.url(camera.name)
        return CameraRecipe(camera.name, camera.height_px, camera.width_px, source, max_age_s=_PICTURE_AGE_S)
