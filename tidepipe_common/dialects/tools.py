"""The tools that an answer may call: their names, and what their arguments are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tidepipe_common.dialects.json_text import MAX_DEPTH
from tidepipe_common.text.json_text import NotJsonError, decode_json, depth
from tidepipe_common.text.text import repaired_json

_MAX_REFERENCES = 16
_TYPES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


class Tools:
    """Tools by name, read when the first call comes."""

    def __init__(self, tools: Sequence[str]) -> None:
        """tools: JSON of each, as the API has it."""
        self._tools = tools

    def __bool__(self) -> bool:
        return bool(self._tools)

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def is_text(self, tool: str, argument: str) -> bool:
        """True if this argument can be nothing but text."""
        return self._types(tool, argument) == {"string"}

    def value(self, tool: str, argument: str, text: str) -> str:
        """JSON of an argument that was written without quotes, as its schema has it."""
        types = self._types(tool, argument)
        bare = text.strip()
        try:
            said = {"True": "true", "False": "false", "None": "null"}.get(bare, bare)
            value = repaired_json(decode_json(said, counted=False, twice=True))
        except NotJsonError:
            return json.dumps(text, ensure_ascii=False)
        kind = "null" if value is None else _TYPES[type(value)]
        if "string" in types and (kind not in types or kind == "string"):
            return json.dumps(text, ensure_ascii=False)
        return json.dumps(text if depth(value, MAX_DEPTH) >= MAX_DEPTH else value, ensure_ascii=False)

    @cached_property
    def _parameters(self) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for tool in self._tools:
            function = json.loads(tool)
            function = function.get("function", function)
            parameters = function.get("parameters")
            found[function["name"]] = parameters if isinstance(parameters, dict) else {}
        return found

    def _types(self, tool: str, argument: str) -> frozenset[str]:
        """What the argument may be; empty: anything."""
        schema = self._parameters.get(tool, {})
        properties = schema.get("properties")
        wanted = properties.get(argument) if isinstance(properties, dict) else None
        return frozenset(_types_of(wanted, schema, _MAX_REFERENCES) or ())


def _types_of(schema: object, root: Mapping[str, Any], most: int) -> set[str] | None:
    """None: anything."""
    if not isinstance(schema, dict) or most == 0:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _types_of(_referred(reference, root), root, most - 1)
    kinds = schema.get("type")
    if isinstance(kinds, str | list):
        named = {kinds} if isinstance(kinds, str) else {kind for kind in kinds if isinstance(kind, str)}
        return {"number" if kind == "integer" else kind for kind in named}
    for word in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(word), list):
            found: set[str] = set()
            for choice in choices:
                if (types := _types_of(choice, root, most - 1)) is None:
                    return None
                found |= types
            return found
    constants = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(constants, list):
        return {"null" if value is None else _TYPES.get(type(value), "object") for value in constants}
    return None


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    place: object = root
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        place = place.get(step) if isinstance(place, dict) else None
    return place
