"""Tests of recipes: every packaged recipe loads, and errors name the wrong key."""

from __future__ import annotations

import pytest

from srpo_robot.errors import RecipeError
from srpo_robot.recipes import (
    HardwareRecipe,
    PolicyRecipe,
    TaskRecipe,
    build,
    digest,
    find,
    load,
    packaged_folder,
)

KINDS = {"datasets": TaskRecipe, "policies": PolicyRecipe, "hardware": HardwareRecipe}


@pytest.mark.parametrize("folder", KINDS)
def test_every_packaged_recipe_loads_under_its_name(folder):
    paths = sorted(packaged_folder(folder).glob("*.toml"))
    assert paths
    for path in paths:
        recipe = load(KINDS[folder], folder, path.stem.replace("_", "-"))
        assert recipe.name.replace("-", "_") == path.stem


def test_a_lab_recipe_overrides_the_packaged_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    text = (packaged_folder("datasets") / "put_apple.toml").read_text().replace("the plate", "our plate")
    (tmp_path / "datasets" / "put_apple.toml").write_text(text)
    assert load(TaskRecipe, "datasets", "put-apple").instruction == "put the apple on our plate"
    assert find("hardware", "mock").parent == packaged_folder("hardware")


def test_an_unknown_name_is_answered_with_the_closest_and_the_list():
    message = r"no recipe 'put-aple' .* did you mean 'put-apple'\? There are: fold-towel, put-apple"
    with pytest.raises(RecipeError, match=message):
        load(TaskRecipe, "datasets", "put-aple")


def table(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {"name": "p", "family": "pi0"}
    return base | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bta": 0.5}, "unknown key 'bta'; did you mean 'beta'"),
        ({"zzzzqqq": 1}, "unknown key 'zzzzqqq'; known keys: name, family"),
        ({"beta": "1"}, "beta is '1'; expected float"),
        ({"steps": 1.5}, "steps is 1.5; expected int"),
        ({"steps": True}, "steps is True; expected int"),
        ({"tail": "cut"}, "tail is 'cut'; choices: 'divide', 'raw', 'drop'"),
        ({"family": "act"}, "family is 'act'; choices: 'pi0'"),
    ],
)
def test_a_wrong_key_or_value_is_named(changes, says):
    with pytest.raises(RecipeError, match=says):
        build(PolicyRecipe, table(**changes), "here")


def test_a_missing_key_and_broken_toml_are_named(tmp_path):
    with pytest.raises(RecipeError, match="missing key 'family'"):
        build(PolicyRecipe, {"name": "p"}, "here")
    path = tmp_path / "bad.toml"
    path.write_text("name = \n")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load(PolicyRecipe, "policies", str(path))


def test_integers_are_accepted_for_float_fields():
    recipe = build(PolicyRecipe, table(beta=2), "here")
    assert recipe.beta == 2.0
    assert isinstance(recipe.beta, float)


def test_a_digest_follows_the_content():
    first, second = build(PolicyRecipe, table(), "here"), build(PolicyRecipe, table(beta=0.5), "here")
    assert digest(first) == digest(build(PolicyRecipe, table(), "there"))
    assert digest(first) != digest(second)
