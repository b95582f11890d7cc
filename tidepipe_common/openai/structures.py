"""`response_format` of OpenAI, and `structured_outputs` and `guided_...` of vLLM."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_STRUCTURE_BYTES
from tidepipe_common.openai.validation import NOTHING_ELSE, checked_text, unknown_field
from tidepipe_common.text.json_text import NotJsonError, check_json_text, decode_json, kind, write_json
from tidepipe_common.text.text import quoted
from tidepipe_common.types.structure import Structure

_ANY_OBJECT = Structure("json_schema", '{"type": "object"}')
_ANY_VALUE = Structure("json_schema", "{}")
"""What the schema `true` means."""


def _response_format(value: Any) -> Structure | str:
    """The structure; "text" for none. (None would look as if the field were absent, which is the same.)"""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {kind(value)}")
    _only(value, "", {"type", "schema", "json_schema"})
    match value.get("type"), value.get("schema"), value.get("json_schema"):
        case "text", None, None:
            return "text"
        case "json_object", None, None:
            return _ANY_OBJECT
        case "json_object", schema, None:  # as llama.cpp and others have it
            return _schema(schema)
        case "json_schema", None, named:
            return _named_schema(named)
        case "text" | "json_object" | "json_schema", *_:
            raise ValueError(f"has a schema at a place where the type {value['type']!r} has none")
        case other, *_:
            raise ValueError(
                f"must have the type 'text', 'json_object' or 'json_schema', got {quoted(other)}"
            )


def _named_schema(value: Any) -> Structure:
    if not isinstance(value, dict) or "schema" not in value:
        raise ValueError('must have {"name": ..., "schema": ...} as json_schema')
    _only(value, "json_schema ", {"name", "schema", "strict", "description"})
    return _schema(value["schema"])


def _only(value: dict[str, Any], where: str, known: set[str]) -> None:
    if unknown := unknown_field(value, known):
        raise ValueError(f"{where}has the unknown field {quoted(unknown)}")


def _schema(value: Any) -> Structure:
    if isinstance(value, str):  # vLLM takes it as text as well
        return _schema_text(value)
    if value is False:
        raise ValueError("has the schema false, which no output fits")
    if value is True:
        return _ANY_VALUE
    if not isinstance(value, dict):
        raise ValueError(f"must have an object as schema, got {kind(value)}")
    try:
        return Structure("json_schema", write_json(value, MAX_STRUCTURE_BYTES))
    except ValueError as error:
        raise ValueError(f"has a schema that {error}") from None
    except RecursionError:
        raise ValueError("has a schema that is nested too deeply") from None


def _schema_text(value: str) -> Structure:
    try:
        schema = decode_json(checked_text(value))
        check_json_text(value, schema, "it")
    except (NotJsonError, InvalidRequestError) as error:
        raise ValueError(f"has a text as schema that is not usable: {error}") from None
    if isinstance(schema, str):
        raise ValueError("has a text as schema that is a text again")
    return Structure("json_schema", value) if isinstance(schema, dict) else _schema(schema)


def _regex(value: Any) -> Structure:
    return Structure("regex", checked_text(value))


def choice_of(texts: Sequence[str]) -> Structure:
    """One of these texts."""
    return Structure("regex", "|".join(map(re.escape, texts)))


def _choice(value: Any) -> Structure:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of strings, got {kind(value) if value != [] else 'an empty list'}")
    if len(value) > MAX_STRUCTURE_BYTES:
        raise ValueError(f"may have {MAX_STRUCTURE_BYTES} bytes, got {len(value)} choices")
    return choice_of([checked_text(item) for item in value])


def _any_object(value: Any) -> Structure:
    if value is not True:
        raise ValueError(f"must have true as json_object, got {kind(value)}")
    return _ANY_OBJECT


_KINDS = {"json": _schema, "regex": _regex, "choice": _choice, "json_object": _any_object}


def _structured_outputs(value: Any) -> Structure:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, got {kind(value)}")
    given = {name: wish for name, wish in value.items() if wish is not None and wish is not False}
    if len(given) != 1 or not given.keys() <= _KINDS.keys():
        raise ValueError(f"must have one of {', '.join(_KINDS)}, got {', '.join(given) or 'nothing'}")
    ((name, wish),) = given.items()
    return _KINDS[name](wish)


_SCHEMA = {"anyOf": [{"type": ["object", "string"]}, {"const": True}]}
_CHOICE = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_NONE = {"type": "null"}
_RESPONSE_FORMAT = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {}, "schema": {}, "json_schema": {}},
    "additionalProperties": NOTHING_ELSE,
    "oneOf": [
        {"properties": {"type": {"const": "text"}, "schema": _NONE, "json_schema": _NONE}},
        {
            "properties": {
                "type": {"const": "json_object"},
                "schema": {"anyOf": [_SCHEMA, _NONE]},
                "json_schema": _NONE,
            }
        },
        {
            "properties": {
                "type": {"const": "json_schema"},
                "schema": _NONE,
                "json_schema": {
                    "type": "object",
                    "properties": {"name": {}, "schema": _SCHEMA, "strict": {}, "description": {}},
                    "required": ["schema"],
                    "additionalProperties": NOTHING_ELSE,
                },
            },
            "required": ["json_schema"],
        },
    ],
}
_NOT_GIVEN = {"enum": [None, False]}
_STRUCTURED_OUTPUTS = {
    "type": "object",
    "description": "One of these; null and false are as good as absent.",
    "properties": {
        "json": {"anyOf": [_SCHEMA, _NOT_GIVEN]},
        "regex": {"anyOf": [{"type": "string"}, _NOT_GIVEN]},
        "choice": {"anyOf": [_CHOICE, _NOT_GIVEN]},
        "json_object": {"enum": [True, False, None]},
    },
    "additionalProperties": NOTHING_ELSE,
    "minProperties": 1,
}

ResponseFormat = Annotated[
    Structure | str, BeforeValidator(_response_format), WithJsonSchema(_RESPONSE_FORMAT)
]
StructuredOutputs = Annotated[
    Structure, BeforeValidator(_structured_outputs), WithJsonSchema(_STRUCTURED_OUTPUTS)
]
GuidedJson = Annotated[Structure, BeforeValidator(_schema), WithJsonSchema(_SCHEMA)]
GuidedRegex = Annotated[Structure, BeforeValidator(_regex), WithJsonSchema({"type": "string"})]
GuidedChoice = Annotated[Structure, BeforeValidator(_choice), WithJsonSchema(_CHOICE)]
