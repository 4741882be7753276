"""Layouts and success rules of the mock cell: pure functions, so laws and hand-made scenes."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_robot.errors import RecipeError
from srpo_robot.mock import tasks
from srpo_robot.mock.tasks import SceneFacts
from srpo_robot.recipes import TaskRecipe, load

RECIPE = load(TaskRecipe, "datasets", "put-apple")
RULES = tasks.task_named("put-apple")
SEEDS = st.integers(0, 2**31 - 1)


Point = tuple[float, float, float]


def scene(apple: Point, tcp: Point, gripper: float, speed: float) -> SceneFacts:
    """A plate at (0.4, -0.2); its top is 6 mm high and the apple's radius 30 mm, so an apple on it is at 0.036 m."""
    return SceneFacts(np.array(tcp), gripper, {"apple": np.array(apple)}, {"apple": speed}, np.array([0.4, -0.2]))


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
    read = json.loads(json.dumps(layout.as_json()))
    assert read == layout.as_json()
    assert [(o["name"], o["x_m"]) for o in read["objects"]] == [(o.name, o.x_m) for o in layout.objects]


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
    with pytest.raises(RecipeError, match=r"no task 'put-aple'; did you mean 'put-apple'\? It has: put-apple"):
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
def test_stage_never_falls_as_the_gripper_nears_the_apple(one: float, other: float) -> None:
    near, far = sorted((one, other))
    stages = [RULES.stage(scene((0.4, 0.1, 0.03), (0.4, 0.1, 0.03 + d), 0.085, 0.0), "apple") for d in (near, far)]
    assert stages[0] >= stages[1]
