"""The mock lab's judge over HTTP: lays out a scene by seed and reports success. A real lab has no such server.

POST /reset {"seed": 3} -> the layout. The arm does not move, as if a person set the table.
GET /verdict            -> {"success": true} if the success rule has held for half a second
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler

from srpo_robot.errors import SrpoRobotError, one_line
from srpo_robot.http_server import HttpServer, body, refuse, respond_json
from srpo_robot.mock import tasks
from srpo_robot.mock.controller import CellPlant, ControllerServer
from srpo_robot.records import ArmCommand


class JudgeServer(HttpServer):
    """Serves the judge of the cell behind an emulated controller as long as the `with` block lasts."""

    def __init__(self, plant: CellPlant, controller: ControllerServer, port: int = 0) -> None:
        super().__init__(self._judge, port=port)
        self._plant, self._controller = plant, controller

    def reset(self, seed: int) -> dict[str, object]:
        """Lays out the scene for `seed` around the arm. Returns the layout as JSON values. Raises as `tasks.layout`."""
        layout = tasks.layout(self._plant.sim.recipe, seed)
        arm = self._controller.arm_state()
        self._controller.place(layout, ArmCommand(arm.joints_rad, arm.gripper_m))
        return layout.as_json()

    def succeeded(self) -> bool:
        """Returns True if the success rule has held for half a second."""
        with self._plant.lock:
            return self._plant.sim.succeeded()

    def _judge(self, handler: BaseHTTPRequestHandler) -> None:
        try:
            match handler.command, handler.path:
                case "POST", "/reset":
                    respond_json(handler, self.reset(int(json.loads(body(handler))["seed"])))
                case "GET", "/verdict":
                    respond_json(handler, {"success": self.succeeded()})
                case _:
                    refuse(handler, 404, "there are: POST /reset, GET /verdict")
        except (ValueError, KeyError, TypeError):
            refuse(handler, 400, 'send a seed: {"seed": 3}')
        except SrpoRobotError as error:
            refuse(handler, 409, one_line(error))
