"""The mock cell in MuJoCo. It runs in lockstep: nothing moves between calls of `step`, and no wall clock is read.

All randomness comes from the seeds of the layouts.
"""
# pyright: reportAttributeAccessIssue=false
# (mujoco is a compiled module without stubs)

from __future__ import annotations

import mujoco
import numpy as np

from srpo_robot.errors import ArmError, RecipeError
from srpo_robot.mock import rendering, scene
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import THINGS
from srpo_robot.mock.randomization import Appearance, check_randomization, draw_appearance
from srpo_robot.mock.tasks import SUCCESS_HOLD_S, SceneFacts, Task, task_named
from srpo_robot.recipes import HardwareRecipe, TaskRecipe
from srpo_robot.records import JOINTS, ArmCommand, ArmState

_IN_THE_WAY_M = 0.070  # distance from the fingertips to an object below which no swap happens
_SETTLE_S = 0.1  # objects come to rest before a trial starts
_APPEARANCE_FIELDS = (
    "geom_rgba",
    "cam_pos",
    "cam_quat",
    "cam_fovy",
)  # model fields that an appearance changes, besides the light
_DIVERGED = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


class CellSim:
    """Simulates arm, gripper, objects and cameras. Only scripts and judges may use its ground truth."""

    def __init__(self, hardware: HardwareRecipe, task: TaskRecipe, randomization: float = 0.0) -> None:
        """Compiles the model.

        Args:
            hardware: an arm recipe.
            task: the task of all layouts.
            randomization: visual randomization between layouts, 0 (none) to 1. See `draw_appearance`.

        Raises:
            RecipeError: the mock cell has no such task, camera or tool.
            UsageError: `randomization` is outside 0 to 1.
        """
        self.hardware = hardware
        self.recipe = task
        self.randomization = check_randomization(randomization)
        self.task: Task = task_named(task.name)
        self.layout: Layout | None = None
        self.intent = ""  # failure that a script plans in this layout, for the record, or "" if a policy drives
        self.strategy = ""  # strategy of the script, or "" if a policy drives
        self.placed_for_s = 0.0  # time for which the success rule has held until now
        kind = self.task.furniture(task)
        self._model = mujoco.MjModel.from_xml_string(scene.mjcf(hardware, kind.parts(hardware), self.task.things))
        self._data = mujoco.MjData(self._model)
        self._furniture = kind(self._model, self._data)
        self._sizes = {camera.name: (camera.height_px, camera.width_px) for camera in hardware.cameras}
        self._arm_q = np.array([self._model.joint(f"joint{i + 1}").qposadr[0] for i in range(JOINTS)])
        self._arm_v = np.array([self._model.joint(f"joint{i + 1}").dofadr[0] for i in range(JOINTS)])
        self._finger_q = np.array([self._model.joint(f"finger_{side}").qposadr[0] for side in ("left", "right")])
        self._nominal = {name: getattr(self._model, name).copy() for name in _APPEARANCE_FIELDS}
        coloured = (*self.task.things, *kind.bodies)
        self._things = [i for i in range(self._model.ngeom) if self._body_of(i) in coloured]
        self._ticks = 0  # physics steps since the reset (the emulated controller runs two at a time)
        self._swap_at_s: float | None = None  # time of the pending swap, or None
        self._renderer: rendering.Renderer | None = None
        self._target = np.zeros(JOINTS + 1)  # motor targets: joints [rad] and opening [m]
        self._place_arm(ArmCommand(np.array(hardware.home_rad), hardware.limits.gripper_max_m))
        self._park(set(self.task.things))

    def close(self) -> None:
        """Frees the renderer. Safe to call twice. The next `render` makes a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # --- time -----------------------------------------------------------------------------------------------------

    def reset(self, layout: Layout, start: ArmCommand) -> None:
        """Lays out the scene with the arm at rest at `start`. Draws the appearance from the layout's seed.

        The clock starts at 0.

        Raises:
            RecipeError: `layout` is of another task.
        """
        if layout.task != self.recipe.name:
            raise RecipeError(f"this cell is set up for {self.recipe.name!r}, the layout is of {layout.task!r}")
        mujoco.mj_resetData(self._model, self._data)
        self.set_appearance(draw_appearance(layout.seed, self.randomization))
        self._park(set(self.task.things) - {item.name for item in layout.objects})
        for item in layout.objects:
            half = item.yaw_rad / 2.0
            self.move_object(item.name, np.array([item.x_m, item.y_m, THINGS[item.name].rest_m]))
            self._pose(item.name)[3:7] = [np.cos(half), 0.0, 0.0, np.sin(half)]
        self._furniture.lay_out(layout)
        self._place_arm(start)
        self.layout, self.intent, self.strategy = layout, "", ""
        self._swap_at_s, self._ticks = layout.swap_at_s, 0
        for _ in range(round(_SETTLE_S / scene.TIMESTEP_S)):
            mujoco.mj_step(self._model, self._data)
        self._data.time = 0.0
        self.placed_for_s = 0.0
        mujoco.mj_forward(self._model, self._data)

    def step(self, command: ArmCommand, period_s: float) -> None:
        """Steps physics by `period_s` while the motor targets move linearly to `command`.

        Raises:
            ArmError: physics diverged. MuJoCo has then reset the model to its zero pose.
        """
        self._swap_if_due()
        start, goal = self._target, np.append(command.joints_rad, command.gripper_m)
        steps, every = round(period_s / scene.TIMESTEP_S), self._furniture.every
        for i in range(1, steps + 1):
            self._drive(start + (goal - start) * (i / steps))
            mujoco.mj_step(self._model, self._data)
            self._ticks += 1
            if every and self._ticks % every == 0:
                self._furniture.step()
        if any(self._data.warning[kind].number for kind in _DIVERGED):
            raise ArmError("the mock cell's physics diverged; reset the workcell and lower the speed limits")
        mujoco.mj_forward(self._model, self._data)  # update positions for images and facts
        placed = self.layout is not None and self.task.succeeded(self.facts(), self.layout.target)
        self.placed_for_s = self.placed_for_s + period_s if placed else 0.0

    def freeze(self) -> None:
        """Stops the arm and makes the motors hold the measured position."""
        self._data.qvel[self._arm_v] = 0.0
        state = self.state()
        self._drive(np.append(state.joints_rad, state.gripper_m))
        mujoco.mj_forward(self._model, self._data)

    # --- state ----------------------------------------------------------------------------------------------------

    def state(self) -> ArmState:
        """Returns the state as the arm's encoders would measure it."""
        return ArmState(
            float(self._data.time), self._data.qpos[self._arm_q], float(self._data.qpos[self._finger_q].sum())
        )

    def facts(self) -> SceneFacts:
        """Returns the ground truth about the objects of the layout."""
        names = [] if self.layout is None else [item.name for item in self.layout.objects]
        furniture = self._furniture.observe()
        speeds = {name: float(np.linalg.norm(self._data.joint(name).qvel[:3])) for name in names}
        return SceneFacts(
            tcp_m=self._data.site("tcp").xpos.copy(),
            gripper_m=self.state().gripper_m,
            objects_m={name: self._data.body(name).xpos.copy() for name in names} | dict(furniture.objects_m),
            speeds_m_s=speeds | dict(furniture.speeds_m_s),
            plate_m=self._data.mocap_pos[0, :2].copy(),
            measurements=furniture.measurements,
            marks_m=furniture.marks_m,
        )

    def succeeded(self) -> bool:
        """Returns True if the success rule has held for the last `SUCCESS_HOLD_S`."""
        return self.placed_for_s > SUCCESS_HOLD_S - scene.TIMESTEP_S  # tolerance for rounding in the sum of periods

    def score(self) -> float:
        """Returns how well the task is done now, 0 to 1. See `Task.score`.

        Raises:
            ArmError: the cell has no layout yet.
        """
        if self.layout is None:
            raise ArmError("the cell has no layout yet; reset the workcell before asking for a score")
        return self.task.score(self.facts(), self.layout.target)

    def stage(self) -> float:
        """Returns the ground-truth progress in [0, 1], or 0 before the first layout. See `Task.stage`."""
        return 0.0 if self.layout is None else self.task.stage(self.facts(), self.layout.target)

    def render(self, camera: str) -> np.ndarray:
        """Renders a camera. Returns uint8 (H, W, 3) RGB in the size of the recipe.

        Raises:
            SrpoRobotError: SRPO_RENDERER forces a renderer that does not work here.
        """
        if self._renderer is None:
            self._renderer = rendering.make_renderer(self._model)
        return self._renderer.render(self._data, camera, *self._sizes[camera])

    def move_object(self, name: str, position_m: np.ndarray) -> None:
        """Moves an object, upright and at rest, as a person's hand would. Tests and swaps use it."""
        self._pose(name)[:] = [*position_m, 1.0, 0.0, 0.0, 0.0]
        self._data.joint(name).qvel[:] = 0.0
        mujoco.mj_forward(self._model, self._data)

    def set_appearance(self, appearance: Appearance) -> None:
        """Sets light, colours and cameras until the next `reset`. Does not change joints or objects."""
        model = self._model
        for name, values in self._nominal.items():
            getattr(model, name)[:] = values
        light = model.vis.headlight
        light.ambient[:], light.diffuse[:] = (
            appearance.ambient * np.array(appearance.tint),
            appearance.diffuse * np.array(appearance.tint),
        )
        model.geom_rgba[model.geom("table").id, :3] = appearance.table_rgb
        model.geom_rgba[self._things, :3] = np.clip(
            model.geom_rgba[self._things, :3] * appearance.object_gain, 0.0, 1.0
        )
        for name, mount in zip(scene.CAMERAS, appearance.cameras, strict=True):
            camera = model.camera(name)
            turn, nominal = np.empty(4), camera.quat.copy()
            mujoco.mju_euler2Quat(turn, mount.turn_rad, "xyz")
            camera.pos[:] += mount.shift_m
            mujoco.mju_mulQuat(camera.quat, nominal, turn)  # rotated in the camera's frame
            camera.fovy[:] *= mount.fovy_factor
        self._furniture.repaint()
        mujoco.mj_camlight(model, self._data)  # not mj_forward, which would change the solver's warm start

    # --- inside ---------------------------------------------------------------------------------------------------

    def _body_of(self, geom: int) -> str:
        return self._model.body(self._model.geom_bodyid[geom]).name

    def _swap_if_due(self) -> None:
        """Swaps target and first distractor when it is due. Does nothing if the gripper is near one of them."""
        if self.layout is None or self._swap_at_s is None or self._data.time < self._swap_at_s:
            return
        self._swap_at_s = None
        facts, target = self.facts(), self.layout.target
        other = next(item.name for item in self.layout.objects if item.name != target)
        spots = {name: facts.objects_m[name] for name in (target, other)}
        if any(np.linalg.norm(facts.tcp_m - spot) < _IN_THE_WAY_M for spot in spots.values()):
            return
        if any(self.task.placed(facts, name) for name in spots):
            return
        for name, spot in ((target, spots[other]), (other, spots[target])):
            self.move_object(name, np.array([*spot[:2], THINGS[name].rest_m]))

    def _pose(self, name: str) -> np.ndarray:
        """Returns position and quaternion (7,) of a free object as a writable view."""
        return self._data.joint(name).qpos

    def _park(self, names: set[str]) -> None:
        """Parks unused objects behind the arm, out of sight of both cameras."""
        for i, name in enumerate(sorted(names)):
            self.move_object(name, np.array([-1.0, 0.2 * i, THINGS[name].rest_m]))

    def _place_arm(self, start: ArmCommand) -> None:
        self._data.qpos[self._arm_q] = start.joints_rad
        self._data.qpos[self._finger_q] = start.gripper_m / 2.0
        self._data.qvel[self._arm_v] = 0.0
        self._drive(np.append(start.joints_rad, start.gripper_m))
        mujoco.mj_forward(self._model, self._data)

    def _drive(self, target: np.ndarray) -> None:
        """Sets the motor targets: seven joints [rad], then the opening [m], half of it for each finger."""
        self._target = target
        self._data.ctrl[:JOINTS] = target[:JOINTS]
        self._data.ctrl[JOINTS:] = target[JOINTS] / 2.0
