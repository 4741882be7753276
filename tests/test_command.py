"""A command's options as a dataclass: the parameters that Typer reads and the values that the command receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from srpo_robot.cli.command import COMMAS, command


@dataclass(frozen=True, kw_only=True)
class Inner:
    beta: Annotated[float | None, typer.Option(help="A temperature.", min=0.0)] = None


@dataclass(frozen=True, kw_only=True)
class Options:
    dataset: Annotated[str, typer.Argument(help="A folder.")]
    camera: Annotated[tuple[str, ...], typer.Option(help="Repeated.")] = ()
    inner: Inner = Inner()
    compare: Annotated[tuple[str, ...], typer.Option(help="Listed."), COMMAS] = ("a", "b")
    policy: Annotated[tuple[str, ...], typer.Option(help="Repeated, required.")]


def invoke(*arguments: str) -> tuple[int, str, list[Options]]:
    app, values = typer.Typer(), []
    app.callback()(lambda: None)

    @command(app, "go", example="go folder")
    def go(options: Options) -> None:
        """Go somewhere."""
        values.append(options)

    result = CliRunner().invoke(app, ["go", *arguments])
    return result.exit_code, result.output, values


def test_fields_become_options_and_come_back_as_the_dataclass():
    _, _, values = invoke("d", "--camera", "x", "--camera", "y", "--beta", "2", "--compare", "p, q", "--policy", "sft")
    assert values == [
        Options(dataset="d", camera=("x", "y"), inner=Inner(beta=2.0), compare=("p", "q"), policy=("sft",))
    ]


def test_defaults_come_from_the_dataclass_only():
    _, _, values = invoke("d", "--policy", "sft")
    assert values == [Options(dataset="d", policy=("sft",))]


def test_the_help_page_shows_every_leaf_with_its_text_its_default_and_the_example():
    code, page, _ = invoke("--help")
    assert code == 0
    for text in ("--camera", "A temperature.", "x>=0", "default: a,b", "Example: go folder", "Go somewhere."):
        assert text in page
    assert "--inner" not in page


@pytest.mark.parametrize(
    ("arguments", "says"), [(("d",), "--policy"), (("d", "--policy", "x", "--beta", "-1"), "beta")]
)
def test_bad_usage_gives_typers_own_errors(arguments: tuple[str, ...], says: str):
    code, page, values = invoke(*arguments)
    assert code == 2 and says in page and values == []


def test_a_field_without_a_typer_option_is_a_type_error():
    @dataclass(frozen=True, kw_only=True)
    class Bare:
        dataset: str

    def go(options: Bare) -> None: ...

    go.__annotations__ = {"options": Bare, "return": None}
    with pytest.raises(TypeError, match="'dataset' needs Annotated"):
        command(typer.Typer(), example="x")(go)
