"""JSON schemas as the library takes them: without what it would overlook, or read otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from tidepipe_common.structures.errors import StructureError
from tidepipe_common.structures.expressions import portable

LARGEST_INTEGER = 2**53
"""Numbers are 64-bit floats to the library, as they are to most who read JSON."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_NOTES = ("default", "examples", "example")
_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
r"""Characters that JSON has no way to write but \u and a number."""
_DATE = (
    r"^(?:[1-9]|0[1-9]|00[1-9]|000[1-9])",
    r"^[0-9]{4}-(?:02-(?:[01][0-9]|2[0-8])|(?:0[13-9]|1[0-2])-[0-9]{2})"
    r"|^(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29",
)
_FORMATS = {"date": _DATE, "date-time": _DATE, "hostname": (r"^[^.]{1,63}(?:\.[^.]{1,63})*$",)}
"""What the library's own idea of a format leaves out: leap years, the year 0, the length of labels."""
_BOUNDS = (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1))
_LITTLE, _LITTLE_DIGITS = 1e-9, 10
_ESCAPES = 'nrbtf\\"'


def prepared(schema: dict[str, Any]) -> tuple[dict[str, Any], str]:
    r"""The schema, and what may stand behind a backslash in JSON. StructureError if it is refused.

    \u is left out wherever possible: a name that nobody expects could be written as one that is excluded.
    """
    made = _schema(schema)
    _part_bounds(made)
    if not any(map(_UNWRITABLE.search, _literal_texts(schema))):
        return made, _ESCAPES
    if _open_objects(schema):
        raise StructureError(
            "it has control characters, which is supported only with additionalProperties false"
        )
    return made, f"{_ESCAPES}u"


def _schema(node: Any) -> Any:
    if isinstance(node, list):
        return [_schema(item) for item in node]
    if not isinstance(node, dict):
        _check_number(node)
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("const", "enum"):
            _check_literal(value)
            made[key] = value
        elif key == "pattern" and isinstance(value, str):
            made[key] = portable(value, quoted=True, narrow_dot=True)
        elif key == "patternProperties" and isinstance(value, dict):
            made[key] = {_names(name, node): _schema(part) for name, part in value.items()}
            if len(made[key]) != len(value):
                raise StructureError("two expressions of patternProperties fit the same name")
        elif key in _NAMED and isinstance(value, dict):
            made[key] = {name: _schema(part) for name, part in value.items()}
        elif key not in _NOTES:
            made[key] = _schema(value)
    _check_counts(made)
    form = made.get("format")
    if isinstance(form, str) and form in _FORMATS and isinstance(made.get("allOf", []), list):
        made["allOf"] = [*made.get("allOf", []), *({"pattern": pattern} for pattern in _FORMATS[form])]
    return made


def _names(expression: str, node: dict[str, Any]) -> str:
    """An expression of patternProperties. Narrowed, it would let others than its own values through."""
    if portable(expression) != expression:
        named = [*_texts(node.get("properties")), *_texts(node.get("required"))]
        if node.get("additionalProperties") is not False or not all(map(str.isascii, named)):
            raise StructureError(
                r"\d, \w and \s in patternProperties are supported only with additionalProperties false; "
                "write [0-9] and the like"
            )
    return portable(expression, quoted=True)


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, dict | list) else []


def _check_counts(node: dict[str, Any]) -> None:
    # Names that the schema does not have may come twice, and count once.
    least = node.get("minProperties")
    if isinstance(least, int | float) and least > len(set(_texts(node.get("required")))) + 1:
        raise StructureError(
            "minProperties is supported only up to one more than there are required properties beside it"
        )


def _part_bounds(schema: Any) -> None:
    """Keep exclusive bounds from what is equal to them.

    Beside an equal inclusive bound, of a part that is joined later too, the library forgets them; and numbers
    of many digits are beyond them as they are written, but not as the floats that most will read.
    """
    nodes = [node for node in _nodes(schema) if isinstance(node, dict)]
    for inclusive, exclusive, inwards in _BOUNDS:
        known = {node[inclusive] for node in nodes if _is_number(node.get(inclusive))}
        for node in nodes:
            bound: Any = node.get(exclusive)
            other: Any = node.get(inclusive)
            if not _is_number(bound):
                continue
            if _is_number(other) and (bound - other) * inwards >= 0:
                del node[inclusive]
            if bound in known or node.get("type") != "integer":
                node[exclusive] = round(bound + inwards * _LITTLE * max(1, abs(bound)), _LITTLE_DIGITS)


def _nodes(node: Any) -> Iterable[Any]:
    yield node
    if isinstance(node, dict | list):
        for key, part in node.items() if isinstance(node, dict) else enumerate(node):
            if key not in ("const", "enum") or not isinstance(node, dict):
                yield from _nodes(part)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_literal(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_literal(item)
    else:
        _check_number(value)


def _check_number(value: Any) -> None:
    if not _is_number(value):
        return
    if not math.isfinite(value) if isinstance(value, float) else abs(value) > LARGEST_INTEGER:
        raise StructureError(
            "it has a number beyond 2^53, which most who read JSON cannot tell from its neighbours"
        )


def _literal_texts(node: Any, literal: bool = False) -> Iterable[str]:
    """Names and values that an output may have to repeat."""
    if isinstance(node, str) and literal:
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from _literal_texts(item, literal)
    elif isinstance(node, dict):
        for key, value in node.items():
            if literal:
                yield key
                yield from _literal_texts(value, True)
            elif key in ("const", "enum", "required"):
                yield from _literal_texts(value, True)
            elif key in _NAMED and isinstance(value, dict):
                if key == "properties":
                    yield from value
                for part in value.values():
                    yield from _literal_texts(part)
            elif key not in _NOTES:
                yield from _literal_texts(value)


def _open_objects(node: Any) -> bool:
    """True if an object somewhere has names of its own, and may have others."""
    if isinstance(node, list):
        return any(map(_open_objects, node))
    if not isinstance(node, dict):
        return False
    if ("properties" in node or "patternProperties" in node or "required" in node) and (
        node.get("additionalProperties") is not False
    ):
        return True
    return any(
        any(map(_open_objects, value.values()))
        if key in _NAMED and isinstance(value, dict)
        else _open_objects(value)
        for key, value in node.items()
        if key not in (*_NOTES, "const", "enum")
    )
