"""Visual randomization of the mock cell: the properties that it changes, by how much, and that physics stays."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.arm.actions import make_action_space
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.mock import rendering, tasks
from srpo_robot.mock.arm import make_mock
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.demonstrator import Demonstrator
from srpo_robot.mock.randomization import NOMINAL, Appearance, CameraOffset, draw_appearance
from srpo_robot.mock.scene import AMBIENT, CAMERAS, DIFFUSE
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

HARDWARE = load(HardwareRecipe, "hardware", "mock")
TASK = load(TaskRecipe, "datasets", "put-apple")
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.085)
BRIGHT = dataclasses.replace(NOMINAL, ambient=1.4 * AMBIENT, diffuse=1.4 * DIFFUSE, tint=(1.12, 1.0, 0.88))
SEEDS = st.integers(0, 2**31)


def gl() -> str:
    """A GL backend that works here. Skips the test if there is none."""
    backends = [name for name in rendering.GL_BACKENDS if rendering.works(name)]
    if not backends:
        pytest.skip("no GL library on this machine")
    return backends[0]


def pictures(sim: CellSim) -> np.ndarray:
    return np.stack([sim.render(name) for name in CAMERAS])


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "ray")


# --- drawn appearances


@given(SEEDS)
def test_amount_0_is_the_nominal_look_for_every_seed(seed: int) -> None:
    assert draw_appearance(seed, 0.0) == NOMINAL


@given(SEEDS, st.floats(0.0, 1.0))
def test_a_look_stays_in_the_promised_range(seed: int, amount: float) -> None:
    look = draw_appearance(seed, amount)
    room = amount + 1e-9
    assert abs(look.ambient + look.diffuse - 1.0) <= 0.4 * room
    assert 0.2 < look.ambient / (look.ambient + look.diffuse) < 0.7
    assert np.abs(np.subtract(look.tint, 1.0)).max() <= 0.12 * room
    assert np.abs(np.subtract(look.object_gain, 1.0)).max() <= 0.15 * room
    assert min(look.table_rgb) >= 0.0 and max(look.table_rgb) <= 0.7 + 1e-9
    assert len(look.cameras) == len(CAMERAS)
    for camera in look.cameras:
        assert np.abs(camera.shift_m).max() <= 0.020 * room
        assert np.degrees(np.abs(camera.turn_rad).max()) <= 2.0 * room
        assert abs(camera.fovy_factor - 1.0) <= 0.05 * room


def test_looks_spread_over_their_range() -> None:
    looks = [draw_appearance(seed, 1.0) for seed in range(300)]
    assert looks == [draw_appearance(seed, 1.0) for seed in range(300)]
    light = np.array([d.ambient + d.diffuse for d in looks])
    assert light.min() < 0.63 and light.max() > 1.37
    assert (np.ptp([d.table_rgb for d in looks], axis=0) > 0.5).all()
    mounts = np.array([[*c.shift_m, *c.turn_rad] for d in looks for c in d.cameras])
    assert (np.ptp(mounts, axis=0) > 0.95 * 2 * np.repeat([0.020, np.radians(2.0)], 3)).all()
    assert np.abs(np.corrcoef(mounts[::2].T, mounts[1::2].T)[:6, 6:]).max() < 0.2  # cameras are mounted one by one


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_an_amount_outside_0_to_1_is_refused(amount: float) -> None:
    with pytest.raises(UsageError, match=r"randomization is .*; give 0 \(always the same\) to 1"):
        CellSim(HARDWARE, TASK, amount)


# --- rendered pictures


@pytest.mark.parametrize("kind", ["gl", "ray"])
def test_the_next_reset_takes_a_look_off_to_the_last_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, gl() if kind == "gl" else kind)
    plain_sim, random_sim = CellSim(HARDWARE, TASK), CellSim(HARDWARE, TASK)
    plain_sim.reset(tasks.layout(TASK, 2), HOME)
    random_sim.reset(tasks.layout(TASK, 2), HOME)
    random_sim.set_appearance(draw_appearance(2, 1.0))
    nominal = pictures(plain_sim)
    assert np.abs(pictures(random_sim).astype(int) - nominal).mean() > 5
    random_sim.set_appearance(NOMINAL)
    assert (pictures(random_sim) == nominal).all()
    random_sim.set_appearance(draw_appearance(3, 1.0))
    random_sim.reset(tasks.layout(TASK, 2), HOME)
    assert (pictures(random_sim) == nominal).all()
    for sim in (plain_sim, random_sim):
        sim.close()


@pytest.mark.parametrize("look", [BRIGHT, *(draw_appearance(seed, 1.0) for seed in range(4))])
def test_renderers_agree_on_a_look(look: Appearance, monkeypatch: pytest.MonkeyPatch) -> None:
    images = []
    for backend in (gl(), "ray"):
        monkeypatch.setenv(rendering.CHOICE, backend)
        sim = CellSim(HARDWARE, TASK)
        sim.reset(tasks.layout(TASK, 0), HOME)
        sim.set_appearance(look)
        images.append(pictures(sim).astype(int))
        sim.close()
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < 4.0  # antialiased edges differ, surfaces do not
    assert np.percentile(difference, 90) <= 2


def test_a_cell_with_looks_wears_the_look_of_the_layouts_seed(rays: None) -> None:
    random_sim, plain_sim = CellSim(HARDWARE, TASK, 0.7), CellSim(HARDWARE, TASK)
    for sim in (random_sim, plain_sim):
        sim.reset(tasks.layout(TASK, 5), HOME)
    plain_sim.set_appearance(draw_appearance(5, 0.7))
    assert (pictures(random_sim) == pictures(plain_sim)).all()


@pytest.mark.parametrize(
    ("mount", "rows", "columns"),
    [
        # The front camera looks back at the arm: +y is to its right, 0.02 m at 0.75 m are 3.8 px (see the geometry
        # test of the renderers), and pictures move against the camera.
        (CameraOffset(shift_m=(0.0, 0.02, 0.0)), 0.0, -3.8),
        # 2 degrees are 48 / tan(18.5 deg) * tan(2 deg) = 5.0 px; turned to its left (about up), things go right.
        (CameraOffset(turn_rad=(0.0, np.radians(2.0), 0.0)), 0.0, 5.0),
        (CameraOffset(turn_rad=(np.radians(2.0), 0.0, 0.0)), 5.0, 0.0),
    ],
)
def test_a_mount_moves_the_picture_as_geometry_says(
    rays: None, mount: CameraOffset, rows: float, columns: float
) -> None:
    sim = CellSim(HARDWARE, TASK)
    sim.reset(tasks.layout(TASK, 0), HOME)
    sim.move_object("apple", np.array([0.40, -0.06, 0.030]))  # near the middle of the picture
    before = _apple(sim)
    sim.set_appearance(dataclasses.replace(NOMINAL, cameras=(mount, CameraOffset())))
    assert _apple(sim) - before == pytest.approx(np.array([rows, columns]), abs=0.6)


def test_a_wider_lens_shrinks_the_picture(rays: None) -> None:
    sim = CellSim(HARDWARE, TASK)
    sim.reset(tasks.layout(TASK, 0), HOME)
    sim.move_object("apple", np.array([0.40, 0.10, 0.030]))
    before = _apple(sim)[1] - 47.5
    sim.set_appearance(dataclasses.replace(NOMINAL, cameras=(CameraOffset(fovy_factor=1.05), CameraOffset())))
    wider = np.tan(np.radians(18.5)) / np.tan(np.radians(18.5 * 1.05))
    assert _apple(sim)[1] - 47.5 == pytest.approx(before * wider, abs=0.5)


def _apple(sim: CellSim) -> np.ndarray:
    """Returns row and column of the apple's middle in the front camera."""
    image = sim.render("front").astype(int)
    red = (image[..., 0] > 80) & (image[..., 1] < 50) & (image[..., 2] < 60)
    return np.array([pixels.mean() for pixels in np.nonzero(red)])


def test_the_target_stays_in_sight_in_every_look(rays: None) -> None:
    sim = CellSim(HARDWARE, TASK, 1.0)
    for seed in range(40):
        sim.reset(tasks.layout(TASK, seed), HOME)
        there = sim.render("front").astype(int)
        sim.move_object("apple", np.array([-1.0, 1.0, 0.030]))
        contrast = np.abs(there - sim.render("front")).max(axis=-1)
        assert (contrast > 25).sum() > 20, seed  # nominally it has some 70 pixels


# --- properties that must not change


@pytest.mark.parametrize("seed", range(4))
def test_motion_does_not_depend_on_the_look(seed: int) -> None:
    def states(randomization: float) -> tuple[bool | None, np.ndarray]:
        hardware = dataclasses.replace(HARDWARE, cameras=())
        arm, cell = make_mock(hardware, TASK, wide_starts=0.6, disturbance_m=0.006, randomization=randomization)
        rows: list[np.ndarray] = []
        with arm:
            space = make_action_space("tcp", arm.limits, arm.home_rad)
            setup = Setup(
                arm=arm,
                workcell=cell,
                space=space,
                instruction="go",
                time_limit_s=20.0,
                cameras=(),
                stop_on_success=False,
            )
            expert = Demonstrator(arm.sim, failure_rate=0.5)
            outcome = run_episode(setup, expert, seed, on_step=lambda _: rows.append(arm.observe().state.joints_rad))
        return outcome.success, np.array(rows)

    plain_states, random_states = states(0.0), states(1.0)
    assert plain_states[0] == random_states[0]
    assert (plain_states[1] == random_states[1]).all()
