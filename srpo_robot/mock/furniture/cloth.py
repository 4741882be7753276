"""A cloth towel: a grid of vertices with fixed edge lengths. It folds, drapes and crumples, at 20 times the cost.

Friction cannot hold a sheet of points between the fingers. The hem is therefore tied to closed fingers until they open.
"""
# pyright: reportAttributeAccessIssue=false
# (mujoco is a compiled module without stubs)

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from srpo_robot.errors import RecipeError
from srpo_robot.mock.furniture.base import Furniture, FurnitureState
from srpo_robot.mock.layout import Layout
from srpo_robot.mock.objects import FOLD_M, HEM_M, TOWEL_HALF_M
from srpo_robot.mock.scene import TIMESTEP_S, Parts
from srpo_robot.recipes import HardwareRecipe

COUNT = 8  # vertices along each side
_OLDEST = 330  # first MuJoCo version with edges as equalities, in the numbering of mj_version
_RADIUS_M = 0.004
_HEM = tuple(range(COUNT - 1, COUNT * COUNT, COUNT))  # vertices of the far edge, along the fold
_BEND_M = 0.015  # length that the bend takes up: a folded hem ends this far short of the other edge
_TIED_M = 0.024  # largest distance from the fingertips at which a vertex is tied to them
_CLOSED_M = 0.020  # largest opening at which vertices are tied
_TIE = slice(0, 6)  # anchors on the hand and on the vertex, within the data of a connect equality


class Cloth(Furniture):
    """A cloth with the size and place of `Towel`. `fold_rad` is computed from the hem's position across the fold.

    An appearance does not change its colour, because the colour belongs to the flex and not to a body.
    """

    place = "towel"
    every = round(0.010 / TIMESTEP_S)

    @staticmethod
    def parts(hardware: HardwareRecipe) -> Parts:
        """See `Furniture.parts`.

        Raises:
            RecipeError: MuJoCo is too old for cloth.
        """
        if mujoco.mj_version() < _OLDEST:
            raise RecipeError(
                f"a towel of cloth needs MuJoCo 3.3 or later, this is {mujoco.__version__}; take material 'hinge'"
            )
        x, y = 2 * TOWEL_HALF_M / (COUNT - 1), 2 * HEM_M / (COUNT - 1)
        world = f"""<body name="towel" mocap="true" pos="0 0 0"/>
    <flexcomp name="cloth" type="grid" dim="2" count="{COUNT} {COUNT} 1" spacing="{x} {y} 0.01" mass="0.06"
              radius="{_RADIUS_M}" rgba="0.10 0.55 0.60 1" pos="0 0 {_RADIUS_M}">
      <edge equality="true" damping="0.001"/>
      <contact selfcollide="none" condim="3" friction="0.8 0.02 0.001" solref="0.01 1"/>
    </flexcomp>"""
        ties = "".join(
            f'<connect name="tie{i}" body1="hand" body2="cloth_{vertex}" anchor="0 0 0" active="false"/>'
            for i, vertex in enumerate(_HEM)
        )
        apart = "".join(
            f'<exclude body1="finger_{side}" body2="cloth_{vertex}"/>'
            for side in ("left", "right")
            for vertex in range(COUNT * COUNT)
        )
        return Parts(world, "", f"<equality>{ties}</equality><contact>{apart}</contact>")

    def __init__(self, model: Any, data: Any) -> None:
        """See `Furniture`."""
        super().__init__(model, data)
        bodies = [model.body(f"cloth_{vertex}") for vertex in range(COUNT * COUNT)]
        self._ids = np.array([body.id for body in bodies])
        first = np.array([model.jnt_qposadr[body.jntadr[0]] for body in bodies])
        self._slides = first[:, None] + np.arange(3)  # (n, 3) qpos addresses of displacements from the compiled sheet
        self._flat_m = _flat()
        self._ties = np.array([model.eq(f"tie{i}").id for i in range(len(_HEM))])
        self._fold_m, self._across = np.zeros(3), np.array([0.0, 1.0, 0.0])

    def lay_out(self, layout: Layout) -> None:
        """See `Furniture.lay_out`."""
        super().lay_out(layout)
        cosine, sine = np.cos(layout.plate_yaw_rad), np.sin(layout.plate_yaw_rad)
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        placed = self._flat_m @ turn.T + [*layout.plate_m, 0.0]
        self._data.qpos[self._slides] = placed - self._flat_m
        self._data.eq_active[self._ties] = 0
        self._fold_m, self._across = np.array([*layout.plate_m, FOLD_M]), turn[:, 1]

    def step(self) -> None:
        """Ties hem vertices between closed fingers to the hand at their current position. Unties them on opening."""
        opening = sum(float(self._data.joint(f"finger_{side}").qpos[0]) for side in ("left", "right"))
        if opening > _CLOSED_M:
            self._data.eq_active[self._ties] = 0
        elif not self._data.eq_active[self._ties].any():
            hand = self._data.body("hand")
            hem = self._data.xpos[self._ids[list(_HEM)]]
            near = np.linalg.norm(hem - self._data.site("tcp").xpos, axis=1) < _TIED_M
            anchors = (hem - hand.xpos) @ hand.xmat.reshape(3, 3)
            for tie, anchor in zip(self._ties[near], anchors[near], strict=True):
                self._model.eq_data[tie, _TIE] = [*anchor, 0.0, 0.0, 0.0]
                self._data.eq_active[tie] = 1

    def observe(self) -> FurnitureState:
        """Returns the hem's middle as the object "hem", and the angle of a hinge with its hem there [rad]."""
        middle = [_HEM[COUNT // 2 - 1], _HEM[COUNT // 2]]
        hem = self._data.xpos[self._ids[list(_HEM)]].mean(axis=0)
        place = self._data.xpos[self._ids[middle]].mean(axis=0)
        over = float(np.clip((hem - self._fold_m) @ self._across / (HEM_M - _BEND_M), -1.0, 1.0))
        speed = float(np.linalg.norm(self._data.qvel[self._model.body_dofadr[self._ids[middle[0]]] + np.arange(3)]))
        measurements = {"fold_rad": float(np.arccos(over)), "hem_m": 0.0}
        return FurnitureState({"hem": place}, {"hem": speed}, measurements)


def _flat() -> np.ndarray:
    """Returns the vertices of the compiled sheet, (n, 3) [m]."""
    along = np.linspace(-TOWEL_HALF_M, TOWEL_HALF_M, COUNT)
    across = np.linspace(-HEM_M, HEM_M, COUNT)
    return np.array([[x, y, _RADIUS_M] for x in along for y in across])
