"""JSON of large values, in pieces: Python's writer keeps its lock until all of a value is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

AT_ONCE = 64
"""Entries of a long list, of some kilobytes each at most."""
_FEW = 16
"""Entries of a list that may be large each, such as a request's answers."""


def json_pieces(value: Any, dumps: Callable[[Any], str], comma: str = ",", colon: str = ":") -> Iterator[str]:
    """What `dumps` makes of a value, in pieces. comma, colon: as `dumps` writes them. Names are texts."""
    if isinstance(value, dict) and value:
        mark = "{"
        for name, part in value.items():
            yield f"{mark}{dumps(name)}{colon}"
            yield from json_pieces(part, dumps, comma, colon)
            mark = comma
        yield "}"
    elif isinstance(value, list) and value:
        mark = "["
        for begin in range(0, len(value), AT_ONCE if len(value) > _FEW else 1):
            yield mark
            if len(value) > _FEW:
                yield dumps(value[begin : begin + AT_ONCE])[1:-1]
            else:
                yield from json_pieces(value[begin], dumps, comma, colon)
            mark = comma
        yield "]"
    else:
        yield dumps(value)
