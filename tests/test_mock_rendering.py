"""Renderers of the mock cell: rays always, GL if there is one, with the same picture."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from srpo_robot.errors import SrpoRobotError
from srpo_robot.mock import rendering, tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

HARDWARE = load(HardwareRecipe, "hardware", "mock")
TASK = load(TaskRecipe, "datasets", "put-apple")
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.085)

_SCRIPT = """
import numpy as np
from srpo_robot.mock import rendering, tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand
hardware, task = load(HardwareRecipe, "hardware", "mock"), load(TaskRecipe, "datasets", "put-apple")
sim = CellSim(hardware, task)
sim.reset(tasks.layout(task, 0), ArmCommand(np.array(hardware.home_rad), 0.085))
print(rendering.backend(), *sim.render("front").shape, *sim.render("wrist").shape)
"""


def pictures(backend: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> dict[str, np.ndarray]:
    monkeypatch.setenv(rendering.CHOICE, backend)
    sim = CellSim(HARDWARE, TASK)
    sim.reset(tasks.layout(TASK, seed), HOME)
    try:
        return {name: sim.render(name) for name in ("front", "wrist")}
    finally:
        sim.close()


def red(image: np.ndarray) -> np.ndarray:
    """Returns the mask of the apple's pixels: much red, little else."""
    channels = image.astype(int)
    return (channels[..., 0] > 80) & (channels[..., 1] < 50) & (channels[..., 2] < 60)


def green(image: np.ndarray) -> np.ndarray:
    """Returns the mask of the pear's pixels: red and green, no blue."""
    channels = image.astype(int)
    return (channels[..., 1] > 90) & (channels[..., 2] < 60) & (channels[..., 1] > channels[..., 0])


def test_a_process_that_already_uses_one_library_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rendering.CHOICE, raising=False)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    for working, expected in (({"egl", "osmesa"}, "osmesa"), ({"egl"}, "ray")):
        monkeypatch.setattr(rendering, "works", working.__contains__)
        assert rendering.backend() == expected


@pytest.mark.parametrize("seed", range(4))
def test_rays_show_apple_and_pear_in_both_cameras(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    for name, image in pictures("ray", monkeypatch, seed).items():
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert red(image).sum() > 40, name
        assert green(image).sum() > 30, name


def test_the_apple_is_rendered_at_the_pixel_of_the_camera_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "ray")
    sim = CellSim(HARDWARE, TASK)
    sim.reset(tasks.layout(TASK, 0), HOME)
    centres = []
    for y in (0.0, 0.1):
        sim.move_object("apple", np.array([0.42, y, 0.030]))
        rows, columns = np.nonzero(red(sim.render("front")))
        centres.append((rows.mean(), columns.mean()))
    # The front camera looks back at the arm, so +y is to its right. It is hypot(0.44, 0.61) = 0.752 m away and has 37
    # degrees on 96 px: 0.1 m is 0.1 / 0.752 * 48 / tan(18.5 deg) = 19.1 px.
    assert centres[1][1] - centres[0][1] == pytest.approx(19.1, abs=1.0)
    assert abs(centres[1][0] - centres[0][0]) < 2.0


def test_renderers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    available = [name for name in rendering.GL_BACKENDS if rendering.works(name)]
    if not available:
        pytest.skip("no GL library on this machine")
    gl, ray = pictures(available[0], monkeypatch), pictures("ray", monkeypatch)
    for name in gl:
        difference = np.abs(gl[name].astype(int) - ray[name].astype(int))
        assert difference.mean() < 4.0, name  # antialiased edges differ, surfaces do not
        assert np.median(difference) <= 2, name
        assert abs(int(red(gl[name]).sum()) - int(red(ray[name]).sum())) < 0.35 * red(ray[name]).sum(), name


def test_two_gl_renderers_live_side_by_side_and_close_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    available = [name for name in rendering.GL_BACKENDS if rendering.works(name)]
    if not available:
        pytest.skip("no GL library on this machine")
    monkeypatch.setenv(rendering.CHOICE, available[0])
    cells = [CellSim(HARDWARE, TASK) for _ in range(2)]
    for cell in cells:
        cell.reset(tasks.layout(TASK, 0), HOME)
    first, second = (cell.render("front") for cell in cells)
    cells[0].close()
    cells[0].close()
    assert (first == second).all() and (cells[1].render("front") == second).all()
    assert (cells[0].render("front") == first).all()  # a closed cell draws again with a new renderer
    for cell in cells:
        cell.close()


def test_an_unknown_renderer_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "vulkan")
    with pytest.raises(SrpoRobotError, match="'vulkan' is no renderer; choices: egl, osmesa, ray"):
        rendering.backend()


def test_a_forced_renderer_that_does_not_work_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "osmesa")
    monkeypatch.setattr(rendering, "works", lambda name: False)
    with pytest.raises(
        SrpoRobotError, match="SRPO_RENDERER=osmesa does not work here; unset it or use SRPO_RENDERER=ray"
    ):
        rendering.backend()


def test_the_first_working_renderer_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rendering.CHOICE, raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    for working, expected in (({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa"), (set(), "ray")):
        monkeypatch.setattr(rendering, "works", working.__contains__)
        assert rendering.backend() == expected


def _run(extra: dict[str, str], *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", rendering.CHOICE)}
    root = Path(__file__).resolve().parents[1]
    environment |= extra | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, root)))}
    command = [sys.executable, "-W", "error", "-c", _SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_without_any_gl_library_it_draws_with_rays_and_exits_silently(tmp_path: Path) -> None:
    for library in ("OpenGL", "glfw"):
        (tmp_path / library).mkdir()
        (tmp_path / library / "__init__.py").write_text(f"raise ImportError('no {library} here')\n")
    process = _run({}, tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "ray 96 96 3 96 96 3\n", "")


def test_the_chosen_renderer_exits_silently_without_close() -> None:
    process = _run({})
    assert process.returncode == 0 and process.stderr == ""
    assert process.stdout.split()[0] in rendering.BACKENDS
