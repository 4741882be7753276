"""Objects of the tasks behave like the things that they model, and every renderer shows them."""

import dataclasses

import mujoco
import numpy as np
import pytest

from srpo_robot.arm import kinematics
from srpo_robot.arm.actions import make_action_space
from srpo_robot.errors import RecipeError, SrpoRobotError
from srpo_robot.mock import rendering, tasks
from srpo_robot.mock.arm import make_mock
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.demonstrator import Demonstrator, Failure
from srpo_robot.mock.objects import BOARD_TOP_M, CARDS, ERASER_REACH_M, MARKS
from srpo_robot.mock.randomization import draw_appearance
from srpo_robot.mock.truth import SCORE, STATE, STATE_NAMES, snapshot
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

HARDWARE = load(HardwareRecipe, "hardware", "mock")
RECIPES = {name: load(TaskRecipe, "datasets", name) for name in tasks.TASKS}
HOME = ArmCommand(np.array(HARDWARE.home_rad), 0.085)
TOUCH_M = BOARD_TOP_M + ERASER_REACH_M  # of the fingertips' height: the felt touches the board


def laid_out(name: str, seed: int = 0) -> CellSim:
    sim = CellSim(HARDWARE, RECIPES[name])
    sim.reset(tasks.layout(RECIPES[name], seed), HOME)
    return sim


def reach(sim: CellSim, x_m: float, y_m: float, z_m: float, opening_m: float = 0.024, seconds: float = 1.0) -> None:
    """Moves there in a straight line of joint space and settles."""
    limits = HARDWARE.limits
    solution = kinematics.inverse(
        np.array([x_m, y_m, z_m]),
        kinematics.TOOL_DOWN,
        sim.state().joints_rad,
        np.array(HARDWARE.tcp_offset_m),
        np.array(limits.joint_min_rad),
        np.array(limits.joint_max_rad),
        posture_rad=HOME.joints_rad,
    )
    assert solution.reached
    for _ in range(2):
        sim.step(ArmCommand(solution.joints_rad, opening_m), seconds / 2)


# --- the board


def test_only_a_pressed_eraser_takes_ink_off_and_only_below_it() -> None:
    sim = laid_out("wipe-board")
    ink = sim.facts().marks_m
    assert len(ink) == MARKS and sim.facts().measurements["erased"] == 0.0
    x, y = (float(value) for value in ink[7])
    reach(sim, x, y, TOUCH_M + 0.010)
    assert len(sim.facts().marks_m) == MARKS and sim.facts().measurements["pressure_n"] == 0.0
    reach(sim, x, y, TOUCH_M - 0.012)
    # 12 mm of a spring of 300 N/m. Gravity compensation carries the eraser's weight.
    assert sim.facts().measurements["pressure_n"] == pytest.approx(3.6, rel=0.25)
    off = np.abs(ink - [x, y])
    below = (off < [0.026, 0.020]).all(axis=1)
    ink_left = {tuple(spot) for spot in np.round(sim.facts().marks_m, 6)}
    assert not ink_left & {tuple(spot) for spot in np.round(ink[below], 6)}
    far = (off > [0.034, 0.028]).any(axis=1)
    assert {tuple(spot) for spot in np.round(ink[far], 6)} <= ink_left
    assert sim.score() == pytest.approx(1.0 - len(ink_left) / MARKS)


def test_removed_ink_stays_removed_in_another_look_and_is_back_after_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(rendering.CHOICE, "ray")
    sim = laid_out("wipe-board", 1)
    reach(sim, 0.30, -0.25, 0.30)
    fresh = sim.render("front")
    sim._furniture._erased[:] = True  # pyright: ignore[reportAttributeAccessIssue]
    sim.set_appearance(draw_appearance(1, 0.0))
    clean = sim.render("front")
    assert (clean != fresh).any(axis=-1).sum() > 60  # pixels of ink
    sim.set_appearance(draw_appearance(5, 1.0))
    sim.set_appearance(draw_appearance(1, 0.0))
    assert (sim.render("front") == clean).all()
    sim.reset(tasks.layout(RECIPES["wipe-board"], 1), HOME)
    reach(sim, 0.30, -0.25, 0.30)
    assert (sim.render("front") == fresh).all()


def test_ink_comes_off_for_steps_of_any_length() -> None:
    sim = laid_out("wipe-board")
    x, y = (float(value) for value in sim.facts().marks_m[7])
    reach(sim, x, y, TOUCH_M + 0.010)
    for _ in range(20):
        reach(sim, x, y, TOUCH_M - 0.012, seconds=0.008)
    for _ in range(40):
        sim.step(ArmCommand(sim._target[:-1], 0.024), 0.004)
    assert sim.score() > 0.0


def test_a_spring_keeps_the_eraser_from_hurting_anything() -> None:
    sim = laid_out("wipe-board")
    x, y = sim.facts().plate_m
    reach(sim, x, y, TOUCH_M + 0.02)
    reach(sim, x, y, TOUCH_M - 0.03, seconds=0.2)
    assert sim.facts().measurements["pressure_n"] < 15.0


# --- the towel


@pytest.mark.parametrize(("angle_rad", "ends_rad"), [(0.9, 0.0), (2.2, 3.05)])
def test_a_flap_let_go_falls_to_the_side_it_leans_to(angle_rad: float, ends_rad: float) -> None:
    sim = laid_out("fold-towel")
    sim._data.joint("fold").qpos[0] = angle_rad
    for _ in range(20):
        sim.step(HOME, 0.1)
    assert sim.facts().measurements["fold_rad"] == pytest.approx(ends_rad, abs=0.05)
    assert sim.succeeded() == (ends_rad > 1.0)


def test_the_layout_sets_the_place_of_the_hem() -> None:
    for seed in range(5):
        sim = laid_out("fold-towel", seed)
        layout = tasks.layout(RECIPES["fold-towel"], seed)
        yaw = layout.plate_yaw_rad
        expected = np.array([*layout.plate_m, 0.014]) + 0.130 * np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        assert sim.facts().objects_m["hem"] == pytest.approx(expected, abs=2e-3)


# --- the towel of cloth

CLOTH = dataclasses.replace(RECIPES["fold-towel"], material="cloth", strategies=("lay",))


def test_cloth_lies_flat_folds_under_the_expert_and_stays_open_when_its_hem_is_missed() -> None:
    arm, cell = make_mock(dataclasses.replace(HARDWARE, cameras=()), CLOTH)
    space, expert = make_action_space("tcp", arm.limits, arm.home_rad), Demonstrator(arm.sim)
    scores = {}
    with arm:
        for failure in (Failure.NONE, Failure.MISS):
            cell.reset(4)
            assert cell.score() < 0.01 and arm.sim.facts().objects_m["hem"][2] == pytest.approx(0.004, abs=2e-3)
            expert.reset(4, failure)
            while (chunk := expert.act(arm.observe())) is not None:
                arm.send(space.command(chunk.actions[0], arm.reference()).command)
            scores[failure] = cell.score()
    assert scores[Failure.NONE] > 0.8 and scores[Failure.MISS] < 0.05


def test_gl_renders_cloth_and_rays_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = CellSim(HARDWARE, CLOTH)
    sim.reset(tasks.layout(CLOTH, 0), HOME)
    monkeypatch.setenv(rendering.CHOICE, "ray")
    with pytest.raises(SrpoRobotError, match="rays do not see cloth; install libegl1 .* or take material 'hinge'"):
        sim.render("front")
    available = [backend for backend in rendering.GL_BACKENDS if rendering.works(backend)]
    if not available:
        pytest.skip("no GL library on this machine")
    monkeypatch.setenv(rendering.CHOICE, available[0])
    image = sim.render("front").astype(int)
    assert ((image[..., 2] > 1.8 * image[..., 0]) & (image[..., 2] > 80)).sum() > 300
    sim.close()


def test_cloth_needs_a_mujoco_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "mj_version", lambda: 320)
    with pytest.raises(RecipeError, match=r"a towel of cloth needs MuJoCo 3.3 or later, .*; take material 'hinge'"):
        CellSim(HARDWARE, CLOTH)


# --- the cards


def test_cards_stand_in_their_slots() -> None:
    for seed in range(4):
        sim = laid_out("select-poker", seed)
        before = sim.facts().objects_m
        for _ in range(20):
            sim.step(HOME, 0.1)
        after = sim.facts().objects_m
        assert set(after) == set(CARDS)
        for card in CARDS:
            assert after[card] == pytest.approx(before[card], abs=1e-3)
            assert after[card][2] == pytest.approx(0.044, abs=2e-3)


# --- a hand that exchanges two objects


def test_a_hand_does_not_reach_between_the_fingers() -> None:
    recipe = dataclasses.replace(RECIPES["put-pear"], swap_during_probability=1.0)
    layout = tasks.layout(recipe, 0)
    sim = CellSim(HARDWARE, recipe)
    sim.reset(layout, HOME)
    pear = layout.objects[0]
    reach(sim, pear.x_m, pear.y_m, 0.05, 0.085, seconds=0.6)
    before = sim.facts().objects_m
    while sim.state().time_s < 4.0:
        sim.step(ArmCommand(sim.state().joints_rad, 0.085), 0.1)
    after = sim.facts().objects_m
    assert layout.swap_at_s is not None and after["pear"] == pytest.approx(before["pear"], abs=5e-3)


# --- recordings and pictures


@pytest.mark.parametrize("name", tasks.TASKS)
def test_truth_has_the_same_columns_for_every_task(name: str) -> None:
    sim = laid_out(name, 3)
    columns = snapshot(sim)
    state = np.asarray(columns[STATE])
    assert state.shape == (len(STATE_NAMES),) and np.isfinite(state).all()
    assert np.asarray(columns[SCORE]).tolist() == pytest.approx([0.0], abs=1e-3)
    assert [state[STATE_NAMES.index(flag)] for flag in ("held", "on_plate", "wrong_held", "wrong_on_plate")] == [0] * 4


@pytest.mark.parametrize("name", tasks.TASKS)
def test_renderers_agree_on_every_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    available = [backend for backend in rendering.GL_BACKENDS if rendering.works(backend)]
    if not available:
        pytest.skip("no GL library on this machine")
    images = []
    for backend in (available[0], "ray"):
        monkeypatch.setenv(rendering.CHOICE, backend)
        sim = laid_out(name, 2)
        images.append(np.stack([sim.render(camera) for camera in ("front", "wrist")]).astype(int))
        sim.close()
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < 4.0 and np.median(difference) <= 2


COLOURS = {  # RGB and least number of pixels of the things that both cameras must show
    "put-apple": {"apple": ((204, 15, 20), 40), "pear": ((173, 204, 31), 30)},
    "put-pear": {"apple": ((204, 15, 20), 40), "pear": ((173, 204, 31), 30)},
    "fold-towel": {"towel": ((26, 140, 153), 150), "hem": ((250, 230, 77), 20)},
    "select-poker": {"tray": ((77, 82, 92), 150), "faces": ((247, 247, 242), 20)},
}


@pytest.mark.parametrize("name", COLOURS)
def test_rays_show_the_task_in_both_cameras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "ray")
    sim = laid_out(name, 1)
    for camera in ("front", "wrist"):
        image = sim.render(camera).astype(float)
        assert image.shape == (96, 96, 3)
        hue = image / np.linalg.norm(image, axis=-1, keepdims=True).clip(1.0)
        for thing, (rgb, pixels) in COLOURS[name].items():
            direction = np.array(rgb) / np.linalg.norm(rgb)
            bright = np.linalg.norm(image, axis=-1) > 0.4 * np.linalg.norm(rgb)
            assert ((hue @ direction > 0.98) & bright).sum() > pixels, (camera, thing)


def test_every_card_has_its_colour_in_the_front_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.CHOICE, "ray")
    sim = laid_out("select-poker", 1)
    reach(sim, 0.30, -0.25, 0.30)
    image = sim.render("front").astype(int)
    red, green, blue = (image[..., i] for i in range(3))
    spread = image.max(axis=-1) - image.min(axis=-1)
    masks = {
        "queen of hearts": (red > 2 * green) & (red > 2 * blue) & (spread > 60),
        "ten of diamonds": (blue > 1.6 * red) & (blue > 1.6 * green) & (spread > 60),
        "jack of clubs": (green > 1.6 * red) & (green > 1.6 * blue) & (spread > 40),
        "joker": (red > 1.5 * green) & (blue > 1.5 * green) & (spread > 40),
        "ace of spades": image.max(axis=-1) < 30,
    }
    assert {card: int(mask.sum()) for card, mask in masks.items() if mask.sum() < 8} == {}
