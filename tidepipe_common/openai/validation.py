"""Turns what pydantic finds wrong in a body into one readable sentence, and refuses what is not supported."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import NOT_TEXT, is_text, quoted, repaired

MAX_MESSAGE_CHARACTERS = 500
"""A message quotes what the client sent, which may be long."""
MAX_PARAM_CHARACTERS = 100
"""Of a field's name in an error."""

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


NOTHING_ELSE: dict[str, JsonValue] = {"type": "null"}
"""`additionalProperties` of what a body may hold: a field that nobody knows asks for nothing if it is null.

SDKs write out whole objects, with null for what came into their API after this was written.
"""


def unknown_field(given: Mapping[Any, Any], known: Set[str]) -> str | None:
    """The first in order of the fields that are neither known nor null."""
    return min((str(name) for name in given.keys() - known if given[name] is not None), default=None)


class StrictModel(BaseModel):
    """No conversions ("5" is not 5), and no unknown fields but null ones."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_extra={"additionalProperties": NOTHING_ELSE}
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict) or None not in value.values():
            return value
        known = cls.model_fields.keys() | {field.alias for field in cls.model_fields.values()}
        return {name: one for name, one in value.items() if one is not None or name in known}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that is not supported: why, and the values that ask for nothing and are therefore fine."""

    why: str
    harmless: tuple[object, ...] = ()


_Model = TypeVar("_Model", bound=StrictModel)


def validate(
    model: type[_Model], body: object, refused: Mapping[str, Refusal], ignored: Collection[str]
) -> _Model:
    """Check a body against `model`. Raises InvalidRequestError with a message for people."""
    if not isinstance(body, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {kind(body)}")
    for name, refusal in refused.items():
        value = body.get(name)
        if value is not None and not _is_one_of(value, refusal.harmless):
            raise InvalidRequestError(f"{name}: {refusal.why}", name)
    fields = {
        name: value
        for name, value in body.items()
        if name not in refused and name not in ignored and (value is not None or name in model.model_fields)
    }
    unknown = (name for name in fields if name not in model.model_fields)
    if (first := next(unknown, None)) is not None and len(fields) > 2 * len(model.model_fields):
        fields = {first: fields[first]}  # one is enough to say so: each would become an error with its texts
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        known = [*model.model_fields, *ignored]
        raise explain(error.errors(include_url=False)[0], known) from None


def explain(error: ErrorDetails, known: Collection[str] = ()) -> InvalidRequestError:
    """What one finding of pydantic means. `known`: names of fields that a misspelled one may have meant."""
    path = ".".join(str(step)[:MAX_MESSAGE_CHARACTERS] for step in error["loc"])
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            near = (
                difflib.get_close_matches(path, known, n=1)
                if len(error["loc"]) == 1 and len(path) < 100
                else []
            )
            text = f"unknown field {path!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        case "missing":
            text = f"{path} is required"
        case "literal_error":
            text = f"{path} must be {error['ctx']['expected']}, got {quoted(value)}"
        case "greater_than_equal":
            text = f"{path} must be at least {error['ctx']['ge']}, got {value}"
        case "less_than_equal":
            text = f"{path} must be at most {error['ctx']['le']}, got {value}"
        case "too_long":
            text = f"{path} may have {error['ctx']['max_length']} entries"
        case "string_too_long":
            text = f"{path} may have {error['ctx']['max_length']} characters"
        case "string_too_short" | "too_short":
            text = f"{path} must not be empty"
        case "string_unicode":
            text = f"{path} {NOT_TEXT}"
        case "value_error":
            text = f"{path} {error['ctx']['error']}"
        case other if other in _EXPECTED:
            text = f"{path} must be {_EXPECTED[other]}, got {kind(value)}"
        case _:
            text = f"{path}: {error['msg']}"
    param = str(error["loc"][0])[:MAX_PARAM_CHARACTERS] if error["loc"] else None
    return InvalidRequestError(clip(text), param)


def renamed(error: InvalidRequestError, names: Mapping[str, str]) -> InvalidRequestError:
    """What is wrong with a body that another one became, with the names that fields have there."""
    name = error.param or ""
    here = names.get(name)
    if here is None:
        return error
    text = str(error)
    return type(error)(here + text.removeprefix(name) if text.startswith(name) else text, here)


def clip(text: str) -> str:
    """One line of text, not longer than MAX_MESSAGE_CHARACTERS; it may quote what is no text."""
    text = " ".join(repaired(text[: 4 * MAX_MESSAGE_CHARACTERS]).split())
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def checked_text(value: Any) -> str:
    """Raise ValueError if `value` is no string, or one that has no UTF-8 form."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {kind(value)}")
    if not is_text(value):
        raise ValueError(NOT_TEXT)
    return value


def _is_one_of(value: object, candidates: Collection[object]) -> bool:
    # By type too: False == 0 == 0.0 in Python, not in JSON.
    return any(type(value) is type(candidate) and value == candidate for candidate in candidates)
