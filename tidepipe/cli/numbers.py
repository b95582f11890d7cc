"""Numbers among a command's arguments: read strictly, and never larger than what they become can hold.

Left to itself the parser takes `1_0` and ` 10`, infinity and numbers of any size; what is made of them, such
as an integer of a message, raises far from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from pydantic_core import PydanticCustomError
from typer.models import ParameterInfo

from tidepipe_common.numerals import NumberRange


def strict_numbers(app: typer.Typer) -> typer.Typer:
    """The application, all of whose options and arguments of type int or float are read by `number`."""
    for command in app.registered_commands:
        if command.callback is not None:
            _make_strict(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            strict_numbers(group.typer_instance)
    return app


def _make_strict(command: Callable[..., Any]) -> None:
    hints = get_type_hints(command, include_extras=True)
    command.__annotations__ = hints  # else each look at them makes new ones of their texts
    for name in inspect.signature(command).parameters:
        if get_origin(hints.get(name)) is not Annotated:
            continue
        kind, *details = get_args(hints[name])
        kinds = {int, float}.intersection((kind, *get_args(kind)))
        for detail in details:
            if kinds and isinstance(detail, ParameterInfo) and detail.parser is None:
                whole = int in kinds
                detail.metavar = detail.metavar or ("N" if whole else "X")
                detail.parser = number(NumberRange.within(whole, detail.min, detail.max))


def number(allowed: NumberRange) -> Callable[[Any], int | float]:
    """What reads such a number; its error says in which range it must be, and what was given."""

    def read(value: Any) -> int | float:
        found = value if isinstance(value, int | float) else allowed.parse(value)
        if found is None or found not in allowed:
            said = allowed.refusal(value if found is None else found)
            # Of a ValueError pydantic would say that it is one.
            raise PydanticCustomError("number", "{said}", {"said": said})
        return found

    return read
