"""Turns the fields of a frozen dataclass into a command's options, so that each option is declared once.

A field is `name: Annotated[type, typer.Option(help=...)] = default`. If its type is such a dataclass itself, the fields
of that dataclass become options of the command too. `tuple[T, ...]` is an option that may be repeated. With `COMMAS`
beside `typer.Option` it is one option whose values are separated by commas. A field without `Annotated` is not an
option and keeps its default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

COMMAS = "separated by commas"


@dataclass(frozen=True)
class _Leaf:
    """One option: the parameter that Typer reads, and the conversion of Typer's value to the field's."""

    parameter: inspect.Parameter
    convert: Callable[[Any], Any]


def command[F: Callable[..., None]](app: typer.Typer, name: str | None = None, *, example: str) -> Callable[[F], F]:
    """Registers `function(options: SomeDataclass)` as a command. `context: typer.Context` may be a second parameter.

    Args:
        name: the command's name; None takes the function's.
        example: a command line that works, printed at the end of the help page.
    """

    def register(function: F) -> F:
        app.command(name, epilog=f"Example: {example}")(_for_typer(function))
        return function

    return register


def _for_typer(function: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(function)
    leaves = dict(_leaves(hints["options"]))
    context = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]

    @functools.wraps(function)
    def call(**arguments: Any) -> None:
        values = {name: leaf.convert(arguments[name]) for name, leaf in leaves.items()}
        extra = {"context": arguments["context"]} if "context" in hints else {}
        function(options=_build(hints["options"], values), **extra)

    parameters = [*(context if "context" in hints else []), *(leaf.parameter for leaf in leaves.values())]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
    return call


def _leaves(options: type) -> Iterator[tuple[str, _Leaf]]:
    """Yields the options of a dataclass and of the dataclasses inside it, in the order of their fields."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        if is_dataclass(hints[field.name]):
            yield from _leaves(hints[field.name])
        elif get_origin(hints[field.name]) is Annotated:
            yield field.name, _leaf(field, hints[field.name])
        elif field.default is MISSING:
            raise TypeError(f"option {field.name!r} needs Annotated[type, typer.Option(help=...)]")


def _leaf(field: Field[Any], hint: Any) -> _Leaf:
    kind, info, *marks = get_args(hint)
    default: Any = field.default if field.default is not MISSING else inspect.Parameter.empty
    convert: Callable[[Any], Any] = _same
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        if COMMAS in marks:
            kind, default, convert = str, ",".join(default or ()), _split
        else:
            kind, convert = list[get_args(kind)[0]], lambda value: tuple(value or ())
            default = default if default is inspect.Parameter.empty else (list(default) or None)
            kind = kind if default is inspect.Parameter.empty else kind | None
    parameter = inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )
    return _Leaf(parameter, convert)


def _same(value: Any) -> Any:
    return value


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _build(options: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(options)
    nested = {
        name: _build(hint, values) for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)
    }
    return options(**nested, **{f.name: values[f.name] for f in fields(options) if f.name in values})
