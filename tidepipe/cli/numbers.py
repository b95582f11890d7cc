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

from tidepipe_common.numerals import decimal, whole_number

MOST_WHOLE = 2**31 - 1
MOST_DECIMAL = 1e9
"""Of numbers for which nobody says how large they may be: 30 years in seconds, for one."""


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
                detail.parser = number(whole, detail.min, detail.max)


def number(whole: bool, least: float | None, most: float | None) -> Callable[[Any], int | float]:
    """What reads such a number; its error says in which range it must be."""
    limit = MOST_WHOLE if whole else MOST_DECIMAL
    low = -limit - (1 if whole else 0) if least is None else least
    high = limit if most is None else most
    said = f"must be {'a whole number' if whole else 'a number'} in [{_said(low)}, {_said(high)}]"

    def read(value: Any) -> int | float:
        found = value if isinstance(value, int | float) else (whole_number if whole else decimal)(value)
        if found is None or not low <= found <= high:
            # Of a ValueError pydantic would say that it is one.
            raise PydanticCustomError("number", "{said}", {"said": said})
        return found

    return read


def _said(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
