"""Carry an object to where it belongs: fruit onto a plate, a card out of a rack into a tray."""

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

REGION_MIN_M = (0.355, -0.010)  # fruit lies in this 13 x 15 cm rectangle (x, y), base frame
REGION_MAX_M = (0.485, 0.140)
SPACING_M = 0.078  # between the centres of two objects: an open finger fits beside each
RACK_M = (0.415, 0.080)  # nominal middle of the rack
RACK_JITTER_M = (0.015, 0.025)
SWAP_WINDOW_S = (0.2, 1.6)  # when a swap during a trial comes: on the way, mostly; at the objects it is called off

_INSIDE_M = PLATE_RADIUS_M - 0.020  # an object's centre counts as on the plate up to here
_HEIGHT_TOLERANCE_M = 0.010
_REST_SPEED_M_S = 0.03
_AWAY_M = 0.070  # fingertips to the object's centre
_LIFTED_M = 0.010
_TRAY_MARGIN_M = 0.005


def on_plate(facts: SceneFacts, name: str) -> bool:
    """Whether the object `name` lies on the plate: inside its rim, at its height."""
    position = facts.objects_m[name]
    height = position[2] - PLATE_TOP_M - THINGS[name].rest_m
    return bool(np.linalg.norm(position[:2] - facts.plate_m) < _INSIDE_M and abs(height) < _HEIGHT_TOLERANCE_M)


def in_tray(facts: SceneFacts, name: str) -> bool:
    """Whether the card `name` is in the tray, flat, leaning or on edge."""
    position = facts.objects_m[name]
    inside = np.abs(position[:2] - facts.plate_m) < np.array(TRAY_HALF_M) - _TRAY_MARGIN_M
    return bool(inside.all() and position[2] < TRAY_TOP_M + THINGS[name].rest_m + _HEIGHT_TOLERANCE_M)


def held(facts: SceneFacts, name: str) -> bool:
    """Whether the object is between the fingertips and off the table."""
    position = facts.objects_m[name]
    grasp = position + np.array([0.0, 0.0, THINGS[name].grasp_m])
    lifted = position[2] - THINGS[name].rest_m > _LIFTED_M
    return bool(lifted and np.linalg.norm(facts.tcp_m - grasp) < 0.035 and facts.gripper_m < OPEN_M)


def _task(placed: Fact, alone: bool, **others: object) -> Task:
    """A task of carrying to where `placed` holds; `alone`: nothing else may be there."""

    def succeeded(facts: SceneFacts, target: str) -> bool:
        away = np.linalg.norm(facts.tcp_m - facts.objects_m[target]) > _AWAY_M
        at_rest = facts.speeds_m_s[target] < _REST_SPEED_M_S
        intruders = alone and any(placed(facts, name) for name in facts.objects_m if name != target)
        return bool(placed(facts, target) and at_rest and facts.gripper_m > OPEN_M and away and not intruders)

    def stage(facts: SceneFacts, target: str) -> float:
        """Up to 0.4 for reaching the target, 0.45 to 0.90 for carrying it to the plate, 0.95 on it, 1 when let go."""
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
    """Target, first distractor, and up to two of the others; the target nearer the plate unless swapped."""
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
    where = np.column_stack([points, turns]).tolist()
    objects = tuple(Placement(name, *spot) for name, spot in zip(present, where, strict=True))
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
    """Every card in a slot of the rack, in random order; the target is drawn where the recipe asks for that."""
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
    """Names of target and distractors.

    Raises:
        RecipeError: one that the task does not have, or twice the same.
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
    """`count` points of the region, (count, 2) [m], at least `SPACING_M` apart; drawn until they are."""
    while True:
        points = rng.uniform(REGION_MIN_M, REGION_MAX_M, (count, 2))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(count)
        if gaps.min() >= SPACING_M:
            return points


PUT_FRUIT = _task(on_plate, alone=False, things=FRUIT, furniture=lambda recipe: Plate, lay_out=_lay_out_fruit)
SELECT_CARD = _task(in_tray, alone=True, things=CARDS, furniture=lambda recipe: RackAndTray, lay_out=_lay_out_cards)
