"""Renders the mock cell with EGL, OSMesa, or MuJoCo's own ray caster, which needs no graphics library.

MuJoCo picks its GL library once, at import, from MUJOCO_GL. PyOpenGL does the same with PYOPENGL_PLATFORM. A library
that is present but broken can raise, print at exit or crash. So each library is first tried in a child process, and
contexts are created from MuJoCo's backend modules directly, independent of MUJOCO_GL. The light is at the camera, so
that all renderers shade alike: brightness follows the angle between surface and viewing direction.
"""
# pyright: reportAttributeAccessIssue=false
# (mujoco is a compiled module without stubs)

from __future__ import annotations

import atexit
import functools
import importlib
import os
import subprocess
import sys
from typing import Protocol

import mujoco
import numpy as np

from srpo_robot.errors import SrpoRobotError

CHOICE = "SRPO_RENDERER"
GL_BACKENDS = ("egl", "osmesa")
BACKENDS = (*GL_BACKENDS, "ray")

_PROBE = """
import sys, importlib, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(32, 32)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
print("works", flush=True)
"""


class Renderer(Protocol):
    """Renders one model."""

    def render(self, data: mujoco.MjData, camera: str, height_px: int, width_px: int) -> np.ndarray:
        """Returns uint8 (H, W, 3) RGB of `camera` at the state of `data`, whose positions must be up to date."""
        ...

    def close(self) -> None:
        """Frees all resources. Safe to call twice."""
        ...


@functools.cache
def works(backend: str) -> bool:
    """Returns True if a GL backend can render here. Tries it once, in a child process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment["MUJOCO_GL"] = "disable"
    command = [sys.executable, "-c", _PROBE, backend]
    try:
        probe = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:  # the driver hangs
        return False
    return probe.stdout.startswith("works")  # PyOpenGL may print more lines when OSMesa shuts down


def backend() -> str:
    """Returns the backend in use: SRPO_RENDERER if it is set, else the first of egl, osmesa that works, else ray.

    Raises:
        SrpoRobotError: SRPO_RENDERER names no backend, or one that does not work here.
    """
    forced = os.environ.get(CHOICE, "").strip().lower()
    if forced and forced not in BACKENDS:
        raise SrpoRobotError(f"{CHOICE}={forced!r} is no renderer; choices: {', '.join(BACKENDS)}")
    # PyOpenGL keeps the first library that a process used, and records it in PYOPENGL_PLATFORM.
    available = [name for name in GL_BACKENDS if os.environ.get("PYOPENGL_PLATFORM", name) == name]
    if forced in GL_BACKENDS and not (forced in available and works(forced)):
        raise SrpoRobotError(f"{CHOICE}={forced} does not work here; unset it or use {CHOICE}=ray")
    return forced or next((name for name in available if works(name)), "ray")


def make_renderer(model: mujoco.MjModel) -> Renderer:
    """Returns a renderer of `backend()` for `model`. Raises as `backend`."""
    name = backend()
    return RayRenderer(model) if name == "ray" else GLRenderer(model, name)


class GLRenderer:
    """Renders with OpenGL, off screen. All cameras share one context of the size of the model's off-screen buffer."""

    def __init__(self, model: mujoco.MjModel, backend: str) -> None:
        buffer = model.vis.global_
        self._context = importlib.import_module(f"mujoco.{backend}").GLContext(buffer.offwidth, buffer.offheight)
        self._context.make_current()
        self._mjr: mujoco.MjrContext | None = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 16)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0  # a shadow pass costs ten times the image
        self._model = model
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        # Registered after the backend's exit handler, so it runs first and frees the context while the display exists.
        atexit.register(self.close)

    def render(self, data: mujoco.MjData, camera: str, height_px: int, width_px: int) -> np.ndarray:
        """See `Renderer.render`."""
        if self._mjr is None:
            raise SrpoRobotError("the renderer is closed; make a new one")
        self._view.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._view, everything, self._scene)
        self._context.make_current()
        window = mujoco.MjrRect(0, 0, width_px, height_px)
        mujoco.mjr_render(window, self._scene, self._mjr)
        pixels = np.empty((height_px, width_px, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, window, self._mjr)
        return np.ascontiguousarray(pixels[::-1])  # GL's rows start at the bottom

    def close(self) -> None:
        """Frees the context. Safe to call twice."""
        if self._mjr is None:
            return
        atexit.unregister(self.close)
        self._context.make_current()
        self._mjr.free()
        self._mjr = None
        self._context.free()


class RayRenderer:
    """Renders with one ray per pixel by `mj_multiRay`: flat colours, shaded by the surface normal, no antialiasing.

    Like OpenGL, it reads light, colours and cameras from the model for every image, because an appearance may change
    them.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        """Raises SrpoRobotError if the model has cloth, which rays do not hit."""
        if model.nflex:
            raise SrpoRobotError("rays do not see cloth; install libegl1 or libosmesa6, or take material 'hinge'")
        self._model = model

    def render(self, data: mujoco.MjData, camera: str, height_px: int, width_px: int) -> np.ndarray:
        """See `Renderer.render`."""
        view = data.camera(camera)
        axes = view.xmat.reshape(3, 3)
        rays = _pixel_rays(float(self._model.camera(camera).fovy[0]), height_px, width_px) @ axes.T
        count = len(rays)
        geom, distance, normal = np.empty(count, np.int32), np.empty(count), np.empty(count * 3)
        mujoco.mj_multiRay(
            self._model, data, view.xpos, rays.ravel(), None, True, -1, geom, distance, normal, count, mujoco.mjMAXVAL
        )
        facing = np.clip(normal.reshape(-1, 3) @ axes[:, 2], 0.0, 1.0)  # the light shines along the camera's -z
        light = self._model.vis.headlight
        shade = light.ambient + light.diffuse * facing[:, None]
        # One extra row for the black background, which index -1 ("nothing hit") selects.
        colours = np.vstack([self._model.geom_rgba[:, :3], np.zeros(3)])[geom]
        lit = np.clip(colours * shade, 0.0, 1.0)  # as in OpenGL, the product saturates and not the light
        return (lit * 255.0 + 0.5).astype(np.uint8).reshape(height_px, width_px, 3)

    def close(self) -> None:
        """Does nothing: there are no resources to free."""


@functools.lru_cache(maxsize=8)
def _pixel_rays(fovy_deg: float, height_px: int, width_px: int) -> np.ndarray:
    """Returns unit directions through pixel centres, (H*W, 3), row by row from the top left.

    Directions are in the camera frame, which looks along -z.
    """
    scale = np.tan(np.radians(fovy_deg) / 2.0) / (height_px / 2.0)
    x = (np.arange(width_px) + 0.5 - width_px / 2.0) * scale
    y = (height_px / 2.0 - np.arange(height_px) - 0.5) * scale
    grid_x, grid_y = np.meshgrid(x, y)
    rays = np.stack([grid_x, grid_y, -np.ones_like(grid_x)], axis=-1).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    rays.setflags(write=False)
    return rays
