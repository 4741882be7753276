"""Layouts and success rules of the mock cell: pure functions, so laws and hand-made scenes."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.errors import RecipeError
from srpo_robot.mock import tasks
from srpo_robot.mock.demonstrator import SCRIPTS, Failure
from srpo_robot.mock.objects import BOARD_HALF_M, CARDS, MARKS, RACK_PITCH_M
from srpo_robot.mock.tasks import SceneFacts
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load

RECIPE = load(TaskRecipe, "datasets", "put-apple")
RULES = tasks.task_named("put-apple")
FIVE = ("put-apple", "put-pear", "wipe-board", "fold-towel", "select-poker")
RECIPES = {name: load(TaskRecipe, "datasets", name) for name in FIVE}
SEEDS = st.integers(0, 2**31 - 1)


Point = tuple[float, float, float]


def scene(apple: Point, tcp: Point, gripper: float, speed: float) -> SceneFacts:
    """A plate at (0.4, -0.2). Its top is 6 mm high and the apple's radius 30 mm, so an apple on it is at 0.036 m."""
    return SceneFacts(
        tcp_m=np.array(tcp),
        gripper_m=gripper,
        objects_m={"apple": np.array(apple)},
        speeds_m_s={"apple": speed},
        plate_m=np.array([0.4, -0.2]),
    )


# --- layouts ------------------------------------------------------------------------------------------------------


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_objects_lie_in_the_region_and_apart(seed: int) -> None:
    layout = tasks.layout(RECIPE, seed)
    points = np.array([[item.x_m, item.y_m] for item in layout.objects])
    assert (points >= tasks.REGION_MIN_M).all() and (points <= tasks.REGION_MAX_M).all()
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
    assert (gaps >= tasks.SPACING_M).all()
    assert (np.abs(np.array(layout.plate_m) - tasks.PLATE_M) <= tasks.PLATE_JITTER_M).all()
    assert [item.name for item in layout.objects[:2]] == ["apple", "pear"]
    assert 2 <= len(layout.objects) <= 4


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_layout_and_it_is_json(seed: int) -> None:
    layout = tasks.layout(RECIPE, seed)
    assert layout == tasks.layout(RECIPE, seed)
    content = json.loads(json.dumps(layout.as_json()))
    assert content == layout.as_json()
    assert [(o["name"], o["x_m"]) for o in content["objects"]] == [(o.name, o.x_m) for o in layout.objects]


def test_region_is_13_by_15_cm() -> None:
    assert np.allclose(np.subtract(tasks.REGION_MAX_M, tasks.REGION_MIN_M), [0.13, 0.15])


def test_layouts_differ_between_seeds_and_hold_zero_to_two_more_objects() -> None:
    layouts = [tasks.layout(RECIPE, seed) for seed in range(60)]
    assert len({item.objects[0].x_m for item in layouts}) == 60
    assert {len(item.objects) - 2 for item in layouts} == {0, 1, 2}


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_swapping_exchanges_target_and_first_distractor(seed: int) -> None:
    plain, swapped = (
        tasks.layout(dataclasses.replace(RECIPE, swap_probability=share), seed).objects for share in (0.0, 1.0)
    )
    spots = [[(item.x_m, item.y_m) for item in objects] for objects in (plain, swapped)]
    assert spots[1] == [spots[0][1], spots[0][0], *spots[0][2:]]


def test_swap_probability_is_the_share_of_swapped_layouts() -> None:
    share = np.mean([tasks.layout(RECIPE, seed).swapped for seed in range(400)])
    assert abs(share - RECIPE.swap_probability) < 0.1  # four standard deviations


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=rf"no task 'put-aple'; did you mean 'put-apple'\? It has: {', '.join(FIVE)}"):
        tasks.layout(dataclasses.replace(RECIPE, name="put-aple"), 0)


def test_unknown_object_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no object 'melon'; it has: apple, pear, cube, can"):
        tasks.layout(dataclasses.replace(RECIPE, distractors=("melon",)), 0)


# --- success and progress -----------------------------------------------------------------------------------------

ON_PLATE, ABOVE = (0.41, -0.19, 0.036), (0.4, -0.2, 0.15)


def test_success_when_it_rests_on_the_plate_and_the_open_gripper_is_away() -> None:
    assert RULES.succeeded(scene(ON_PLATE, ABOVE, 0.085, 0.0), "apple")


@pytest.mark.parametrize(
    ("why", "facts"),
    [
        ("on the table", scene((0.41, 0.0, 0.030), ABOVE, 0.085, 0.0)),
        ("outside the rim", scene((0.4, -0.28, 0.036), ABOVE, 0.085, 0.0)),
        ("held above the plate", scene((0.4, -0.2, 0.100), (0.4, -0.2, 0.3), 0.085, 0.0)),
        ("rolling", scene(ON_PLATE, ABOVE, 0.085, 0.1)),
        ("gripper closed", scene(ON_PLATE, ABOVE, 0.0, 0.0)),
        ("gripper as wide as the apple", scene(ON_PLATE, ABOVE, 0.060, 0.0)),
        ("gripper around it", scene(ON_PLATE, (0.41, -0.19, 0.03), 0.085, 0.0)),
    ],
)
def test_no_success(why: str, facts: SceneFacts) -> None:
    assert not RULES.succeeded(facts, "apple"), why


def test_stage_by_hand() -> None:
    # 0.175 m of the 0.35 m reach away: half of 0.4. Held at the same distance from the plate: 0.45 + half of 0.45.
    reaching = scene((0.4, 0.1, 0.03), (0.4, 0.1, 0.205), 0.085, 0.0)
    carrying = scene((0.4, -0.025, 0.10), (0.4, -0.025, 0.09), 0.06, 0.2)
    lowered = scene(ON_PLATE, (0.41, -0.19, 0.026), 0.06, 0.0)
    placed = scene(ON_PLATE, ABOVE, 0.085, 0.0)
    stages = [RULES.stage(facts, "apple") for facts in (reaching, carrying, lowered, placed)]
    assert stages == pytest.approx([0.2, 0.675, 0.95, 1.0])


@given(st.floats(0.0, 0.6), st.floats(0.0, 0.6))
@settings(max_examples=50, deadline=None)
def test_stage_never_falls_as_the_gripper_nears_the_apple(height_1: float, height_2: float) -> None:
    near, far = sorted((height_1, height_2))
    stages = [RULES.stage(scene((0.4, 0.1, 0.03), (0.4, 0.1, 0.03 + d), 0.085, 0.0), "apple") for d in (near, far)]
    assert stages[0] >= stages[1]


# --- all five -----------------------------------------------------------------------------------------------------


def facts(**values: object) -> SceneFacts:
    """Returns scene facts. Values that are not given have no effect on the test."""
    nowhere = {"tcp_m": np.zeros(3), "gripper_m": 0.085, "objects_m": {}, "speeds_m_s": {}, "plate_m": np.zeros(2)}
    return SceneFacts(**(nowhere | values))  # pyright: ignore[reportArgumentType]


def test_every_task_has_a_recipe_an_expert_strategies_and_failures() -> None:
    assert tuple(tasks.TASKS) == FIVE == tuple(SCRIPTS)
    for name, task in tasks.TASKS.items():
        assert RECIPES[name].name == name
        assert len(task.strategies) >= 2 and len(task.failures) >= 3
        assert set(task.failures) < set(Failure)
        assert set(RECIPES[name].strategies) <= set(task.strategies)


@pytest.mark.parametrize("name", FIVE)
@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_layout_depends_on_its_seed_is_json_and_lies_in_the_arms_box(name: str, seed: int) -> None:
    layout = tasks.layout(RECIPES[name], seed)
    assert layout == tasks.layout(RECIPES[name], seed)
    assert json.loads(json.dumps(layout.as_json())) == layout.as_json()
    limits = load(HardwareRecipe, "hardware", "mock").limits
    spots = [(item.x_m, item.y_m) for item in (*layout.objects, *layout.fixtures)]
    spots += [layout.plate_m, *(np.array(layout.marks_m).reshape(-1, 2) + layout.plate_m).tolist()]
    assert (np.array(spots) > limits.box_min_m[:2]).all() and (np.array(spots) < limits.box_max_m[:2]).all()


@pytest.mark.parametrize("name", FIVE)
def test_layouts_differ_from_seed_to_seed(name: str) -> None:
    layouts = [tasks.layout(RECIPES[name], seed) for seed in range(40)]
    assert len({layout.plate_m for layout in layouts}) == 40


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_ink_is_on_the_board(seed: int) -> None:
    marks = np.array(tasks.layout(RECIPES["wipe-board"], seed).marks_m)
    assert marks.shape == (MARKS, 2)
    assert (np.abs(marks) + 0.006 < BOARD_HALF_M).all()


def test_the_layout_names_the_card_and_every_card_has_a_slot_of_its_own() -> None:
    layouts = [tasks.layout(RECIPES["select-poker"], seed) for seed in range(60)]
    assert {layout.target for layout in layouts} == set(CARDS)
    assert {layout.instruction for layout in layouts} == {f"select the {card}" for card in CARDS}
    for layout in layouts:
        assert {item.name for item in layout.objects} == set(CARDS)
        assert np.diff(sorted(item.x_m for item in layout.objects)) == pytest.approx([RACK_PITCH_M] * 4)
        assert layout.instruction == f"select the {layout.target}"
    fixed = dataclasses.replace(RECIPES["select-poker"], draw_target=False)
    assert {tasks.layout(fixed, seed).target for seed in range(20)} == {"queen of hearts"}


def test_pears_change_places_under_way_as_often_as_the_recipe_says() -> None:
    moments = [tasks.layout(RECIPES["put-pear"], seed).swap_at_s for seed in range(400)]
    due = [moment for moment in moments if moment is not None]
    assert abs(len(due) / 400 - 0.5) < 0.1  # four standard deviations
    assert min(due) >= 0.2 and max(due) <= 1.6 and len(set(due)) == len(due)
    assert {tasks.layout(RECIPES["put-apple"], seed).swap_at_s for seed in range(100)} == {None}
    alone = dataclasses.replace(RECIPES["put-pear"], distractors=())
    assert {tasks.layout(alone, seed).swap_at_s for seed in range(20)} == {None}  # nothing to change places with


def test_an_object_named_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="name an object twice: pear, apple, pear"):
        tasks.layout(dataclasses.replace(RECIPES["put-pear"], distractors=("apple", "pear")), 0)
    with pytest.raises(RecipeError, match="no object 'ace of hearts'; it has: ace of spades, queen of hearts"):
        tasks.layout(dataclasses.replace(RECIPES["select-poker"], target="ace of hearts"), 0)


def board(erased_share: float, height_m: float) -> SceneFacts:
    """An eraser `height_m` [m] over a board whose ink is 0.10 m away along x."""
    return facts(
        tcp_m=np.array([0.4, 0.0, height_m]),
        objects_m={"marks": np.array([0.5, 0.0, height_m])},
        measurements={"erased": erased_share, "pressure_n": 0.0},
    )


def test_a_board_is_wiped_by_the_erased_share_and_with_the_eraser_off_it() -> None:
    rules = tasks.task_named("wipe-board")
    # Felt 48 mm below the fingertips, board 8 mm high: 86 mm is 30 mm clear of it.
    for share, height, success in ((0.95, 0.087, True), (0.94, 0.2, False), (1.0, 0.085, False)):
        assert rules.succeeded(board(share, height), "marks") is success
        assert rules.score(board(share, height), "marks") == share
    # 0.10 m of the 0.35 m reach away: 0.15 * 5 / 7; then 0.15 + 0.8 * share.
    stages = [
        rules.stage(board(*arguments), "marks") for arguments in ((0.0, 0.2), (0.5, 0.2), (1.0, 0.05), (1.0, 0.2))
    ]
    assert stages == pytest.approx([0.107143, 0.55, 0.95, 1.0], abs=1e-6)


def towel(angle_rad: float, opening_m: float = 0.085, away_m: float = 0.1, speed: float = 0.0) -> SceneFacts:
    hem = np.array([0.4, 0.1, 0.02])
    return facts(
        tcp_m=hem + np.array([0.0, 0.0, away_m]),
        gripper_m=opening_m,
        objects_m={"hem": hem},
        speeds_m_s={"hem": speed},
        measurements={"fold_rad": angle_rad},
    )


def test_a_towel_is_folded_by_its_angle_at_rest_and_let_go() -> None:
    rules = tasks.task_named("fold-towel")
    assert rules.succeeded(towel(2.75), "hem")
    for scene_facts in (towel(2.65), towel(3.0, speed=0.1), towel(3.0, opening_m=0.01), towel(3.0, away_m=0.05)):
        assert not rules.succeeded(scene_facts, "hem")
    assert [rules.score(towel(angle), "hem") for angle in (-0.02, 1.525, 3.05, 3.06)] == [0.0, 0.5, 1.0, 1.0]
    # 0.175 m of 0.35 m away: half of 0.3. Pinched at 1.525 of 3.05 rad: 0.35 + half of 0.6.
    pinched = towel(1.525, opening_m=0.018, away_m=0.0)
    stages = [rules.stage(scene_facts, "hem") for scene_facts in (towel(0.0, away_m=0.175), pinched, towel(3.05))]
    assert stages == pytest.approx([0.15, 0.65, 1.0])
    assert rules.held(pinched, "hem") and not rules.held(towel(1.525), "hem")


def cards(target_spot: Point, other_spot: Point) -> SceneFacts:
    spots = {"joker": np.array(target_spot), "ace of spades": np.array(other_spot)}
    return facts(
        tcp_m=np.array([0.4, -0.2, 0.3]),
        objects_m=spots,
        speeds_m_s=dict.fromkeys(spots, 0.0),
        plate_m=np.array([0.42, -0.19]),
    )


def test_a_card_is_selected_alone() -> None:
    rules = tasks.task_named("select-poker")
    flat, racked, upright = (0.45, -0.20, 0.01), (0.42, 0.08, 0.044), (0.40, -0.17, 0.050)
    assert rules.succeeded(cards(flat, racked), "joker") and rules.succeeded(cards(upright, racked), "joker")
    for target_spot, other_spot in ((racked, flat), (flat, upright), (racked, racked), ((0.45, -0.20, 0.10), racked)):
        assert not rules.succeeded(cards(target_spot, other_spot), "joker")
    assert rules.score(cards(racked, flat), "joker") == 0.0
