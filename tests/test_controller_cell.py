"""The emulated controller with the MuJoCo cell behind it."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from srpo_robot.mock import tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.controller import CellPlant, ControllerServer, commands, free_host, poses
from srpo_robot.mock.controller.frames import RegisterWrite, Request, encode_floats, encode_rtu, words
from srpo_robot.mock.controller.gripper import CAUGHT
from srpo_robot.mock.controller.state import Controller
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

pytestmark = pytest.mark.real_time

HARDWARE = dataclasses.replace(load(HardwareRecipe, "hardware", "mock"), cameras=())
TASK = load(TaskRecipe, "datasets", "put-apple")
HOME = np.array(HARDWARE.home_rad)
START = ArmCommand(HOME, 0.085)
DT_S = 0.004


class Cell:
    """A controller with the cell behind it, ready in `mode`. Time passes in `run`."""

    def __init__(self, mode: int) -> None:
        self.plant = CellPlant(CellSim(HARDWARE, TASK))
        self.plant.place(tasks.layout(TASK, 1), START)
        self.c = Controller(self.plant)
        self.c.resynchronise()
        self.ask(35, encode_floats(0.0, 0.0, 172.0, 0.0, 0.0, 0.0))
        self.ready(mode)

    def ready(self, mode: int) -> None:
        for function, params in ((16, b""), (11, b"\x08\x01"), (19, bytes([mode])), (12, b"\0")):
            self.ask(function, params)

    def ask(self, function: int, params: bytes) -> int:
        return commands.execute(self.c, Request(1, 2, function, params)).status

    def line(self, x_m: float, y_m: float, z_m: float) -> None:
        wire = poses.to_rpy(self.c.end_tcp())
        wire[:3] = 1000 * x_m, 1000 * y_m, 1000 * z_m
        assert self.ask(21, encode_floats(wire, 250.0, 2000.0, 0.0, -1.0) + bytes(3)) == 0

    def grip(self, opening_m: float) -> None:
        self.ask(124, b"\x09" + encode_rtu(RegisterWrite(8, 0x0700, words(round(opening_m * 1e4)))))

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / DT_S)):
            self.c.advance(DT_S)


def test_full_speed_in_free_space_is_not_a_collision_but_the_table_is() -> None:
    cell = Cell(0)
    cell.ask(37, b"\x05")  # the most sensitive
    cell.ready(0)
    for shift in (1.2, -1.2, 0.0):
        cell.ask(23, encode_floats(HOME + shift * np.eye(7)[0], np.pi, 20.0, 0.0))
    cell.run(4.0)
    assert cell.c.error == 0 and np.abs(cell.c.joints - HOME).max() < 1e-3
    cell.line(0.30, 0.25, 0.15)
    cell.line(0.30, 0.25, -0.06)
    cell.run(4.0)
    assert cell.c.error == 31 and -0.005 < cell.c.tcp[2, 3] < 0.01  # the fingers are on the table


def test_the_apple_is_carried_to_the_plate_through_the_protocol() -> None:
    cell = Cell(0)
    sim = cell.plant.sim
    apple, plate = sim.facts().objects_m["apple"], sim.facts().plate_m
    cell.ask(124, b"\x09" + encode_rtu(RegisterWrite(8, 0x0303, (3000,))))
    cell.ask(124, b"\x09" + encode_rtu(RegisterWrite(8, 0x0100, (1,))))
    cell.line(apple[0], apple[1], 0.15)
    cell.line(apple[0], apple[1], 0.035)
    cell.run(3.0)
    cell.grip(0.03)
    cell.run(1.5)
    assert cell.c.gripper.status == CAUGHT
    for x, y, z in ((apple[0], apple[1], 0.15), (plate[0], plate[1], 0.15), (plate[0], plate[1], 0.06)):
        cell.line(x, y, z)
    cell.run(5.0)
    cell.grip(0.085)
    cell.run(1.0)
    cell.line(plate[0], plate[1], 0.2)
    cell.run(2.0)
    assert cell.c.error == 0 and sim.succeeded()


def test_a_server_lays_out_the_cell_and_steps_it_by_the_clock() -> None:
    plant = CellPlant(CellSim(HARDWARE, TASK))
    command = ArmCommand(HOME + 0.05, 0.04)
    with ControllerServer(plant, host=free_host()) as server:
        server.place(tasks.layout(TASK, 3), command)
        before = server.arm_state()
        while server.arm_state().time_s < before.time_s + 0.1:
            time.sleep(0.01)
        after = server.arm_state()
    assert after.joints_rad == pytest.approx(command.joints_rad, abs=1e-3)
    assert after.gripper_m == pytest.approx(0.04, abs=1e-3)
    assert plant.sim.layout is not None and plant.sim.layout.seed == 3 and plant.sim.state().time_s > 0.09
