"""The carrying tasks: put fruit onto a plate, or a card from a rack into a tray."""

from __future__ import annotations

import numpy as np

from srpo_robot.errors import RecipeError
from srpo_robot.mock.furniture.plate import Plate, RackAndTray
from srpo_robot.mock.layout import Layout, Placement
from srpo_robot.mock.objects import (
    CARDS,
    FRUIT,
    PLATE_RADIUS_M,
    PLATE_TOP_M,
    RACK_PITCH_M,
    THINGS,
    TRAY_HALF_M,
    TRAY_TOP_M,
)
from srpo_robot.mock.tasks.base import OPEN_M, PLATE_JITTER_M, PLATE_M, Fact, SceneFacts, Task, nearness
from srpo_robot.recipes import TaskRecipe

REGION_MIN_M = (0.355, -0.010)  # corner of the 13 x 15 cm rectangle for fruit (x, y), base frame
REGION_MAX_M = (0.485, 0.140)
SPACING_M = 0.078  # smallest distance between the centres of two objects, so that an open finger fits beside each
RACK_M = (0.415, 0.080)  # nominal middle of the rack
RACK_JITTER_M = (0.015, 0.025)
SWAP_WINDOW_S = (0.2, 1.6)  # time of a swap during a trial, mostly on the way (cancelled if the arm is at the objects)

_INSIDE_M = PLATE_RADIUS_M - 0.020  # distance up to which an object's centre counts as on the plate
_HEIGHT_TOLERANCE_M = 0.010
_REST_SPEED_M_S = 0.03
_AWAY_M = 0.070  # distance from the fingertips to the object's centre beyond which it is released
_LIFTED_M = 0.010  # height above the table beyond which an object is lifted
_TRAY_MARGIN_M = 0.005


def on_plate(facts: SceneFacts, name: str) -> bool:
    """Returns True if the object `name` lies on the plate: inside the rim and at the plate's height."""
    position = facts.objects_m[name]
    height = position[2] - PLATE_TOP_M - THINGS[name].rest_m
    return bool(np.linalg.norm(position[:2] - facts.plate_m) < _INSIDE_M and abs(height) < _HEIGHT_TOLERANCE_M)


def in_tray(facts: SceneFacts, name: str) -> bool:
    """Returns True if the card `name` is in the tray, whether flat, leaning or on edge."""
    position = facts.objects_m[name]
    inside = np.abs(position[:2] - facts.plate_m) < np.array(TRAY_HALF_M) - _TRAY_MARGIN_M
    return bool(inside.all() and position[2] < TRAY_TOP_M + THINGS[name].rest_m + _HEIGHT_TOLERANCE_M)


def held(facts: SceneFacts, name: str) -> bool:
    """Returns True if the object is between the fingertips and off the table."""
    position = facts.objects_m[name]
    grasp = position + np.array([0.0, 0.0, THINGS[name].grasp_m])
    lifted = position[2] - THINGS[name].rest_m > _LIFTED_M
    return bool(lifted and np.linalg.norm(facts.tcp_m - grasp) < 0.035 and facts.gripper_m < OPEN_M)


def _task(placed: Fact, alone: bool, **others: object) -> Task:
    """Returns a carrying task whose goal is `placed`. With `alone`, no other object may be at the goal."""

    def succeeded(facts: SceneFacts, target: str) -> bool:
        away = np.linalg.norm(facts.tcp_m - facts.objects_m[target]) > _AWAY_M
        at_rest = facts.speeds_m_s[target] < _REST_SPEED_M_S
        intruders = alone and any(placed(facts, name) for name in facts.objects_m if name != target)
        return bool(placed(facts, target) and at_rest and facts.gripper_m > OPEN_M and away and not intruders)

    def stage(facts: SceneFacts, target: str) -> float:
        """Returns up to 0.4 for reaching, 0.45 to 0.90 for carrying to the plate, 0.95 on it, 1 after release."""
        if succeeded(facts, target):
            return 1.0
        if placed(facts, target):
            return 0.95
        position = facts.objects_m[target]
        if held(facts, target):
            return 0.45 + 0.45 * nearness(float(np.linalg.norm(position[:2] - facts.plate_m)))
        return 0.4 * nearness(float(np.linalg.norm(facts.tcp_m - position)))

    return Task(
        strategies=("direct", "around"),
        failures=("miss", "drop", "wrong", "stop"),
        succeeded=succeeded,
        score=lambda facts, target: float(succeeded(facts, target)),
        stage=stage,
        held=held,
        placed=placed,
        **others,  # pyright: ignore[reportArgumentType]
    )


def _lay_out_fruit(recipe: TaskRecipe, seed: int) -> Layout:
    """Draws target, first distractor and up to two others. The target is nearer to the plate unless swapped."""
    names = _known(recipe, FRUIT)
    rng = np.random.default_rng([seed, 0])
    plate = np.array(PLATE_M) + rng.uniform(-PLATE_JITTER_M, PLATE_JITTER_M, 2)
    others = recipe.distractors[1:]
    extra = rng.permutation(len(others))[: rng.integers(0, min(2, len(others)) + 1)]
    present = [*names[:2], *(others[i] for i in extra)]
    points = _scatter(len(present), rng)
    pair = points[:2]
    points[:2] = pair[np.argsort(np.linalg.norm(pair - plate, axis=1))]
    swapped = bool(len(present) > 1 and rng.random() < recipe.swap_probability)
    if swapped:
        points[:2] = points[1::-1].copy()
    turns = rng.uniform(-0.3, 0.3, len(present))
    poses = np.column_stack([points, turns]).tolist()
    objects = tuple(Placement(name, *pose) for name, pose in zip(present, poses, strict=True))
    return Layout(
        task=recipe.name,
        target=recipe.target,
        seed=seed,
        objects=objects,
        plate_m=(float(plate[0]), float(plate[1])),
        swapped=swapped,
        instruction=recipe.instruction_for(recipe.target),
        swap_at_s=_swap_time(recipe, seed) if len(present) > 1 else None,
    )


def _lay_out_cards(recipe: TaskRecipe, seed: int) -> Layout:
    """Draws a slot of the rack for every card. Also draws the target if the recipe asks for it."""
    names = _known(recipe, CARDS)
    rng = np.random.default_rng([seed, 0])
    tray = np.array(PLATE_M) + rng.uniform(-PLATE_JITTER_M, PLATE_JITTER_M, 2)
    rack = np.array(RACK_M) + rng.uniform(-1.0, 1.0, 2) * RACK_JITTER_M
    order = rng.permutation(len(names))
    slots = rng.permutation(len(CARDS))[: len(names)]
    target = names[order[0]] if recipe.draw_target else recipe.target
    middle = (len(CARDS) - 1) / 2
    objects = tuple(
        Placement(name, float(rack[0] + (slot - middle) * RACK_PITCH_M), float(rack[1]), 0.0)
        for name, slot in zip(names, slots, strict=True)
    )
    return Layout(
        task=recipe.name,
        target=target,
        seed=seed,
        objects=objects,
        plate_m=(float(tray[0]), float(tray[1])),
        swapped=False,
        instruction=recipe.instruction_for(target),
        fixtures=(Placement("rack", float(rack[0]), float(rack[1]), 0.0),),
        swap_at_s=_swap_time(recipe, seed) if len(objects) > 1 else None,
    )


def _known(recipe: TaskRecipe, things: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of target and distractors.

    Raises:
        RecipeError: the task does not have one of the objects, or a name occurs twice.
    """
    names = (recipe.target, *recipe.distractors)
    unknown = [name for name in names if name not in things]
    if unknown:
        raise RecipeError(f"the mock cell has no object {unknown[0]!r}; it has: {', '.join(things)}")
    if len(set(names)) < len(names):
        raise RecipeError(f"{recipe.name}: target and distractors name an object twice: {', '.join(names)}")
    return names


def _swap_time(recipe: TaskRecipe, seed: int) -> float | None:
    rng = np.random.default_rng([seed, 6])
    moment = float(rng.uniform(*SWAP_WINDOW_S))
    return moment if rng.random() < recipe.swap_during_probability else None


def _scatter(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` points of the region, (count, 2) [m], by rejection until they are `SPACING_M` apart."""
    while True:
        points = rng.uniform(REGION_MIN_M, REGION_MAX_M, (count, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count)
        if gaps.min() >= SPACING_M:
            return points


PUT_FRUIT = _task(on_plate, alone=False, things=FRUIT, furniture=lambda recipe: Plate, lay_out=_lay_out_fruit)
SELECT_CARD = _task(in_tray, alone=True, things=CARDS, furniture=lambda recipe: RackAndTray, lay_out=_lay_out_cards)
