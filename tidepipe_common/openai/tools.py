"""Tools: what a chat may call, and the calls in its history. They travel as JSON to the chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOLS, MAX_TOOLS_BYTES, check_characters
from tidepipe_common.openai.validation import NOTHING_ELSE, checked_text, unknown_field
from tidepipe_common.text.json_text import kind, parse_json, write_json
from tidepipe_common.text.text import quoted
from tidepipe_common.types.tool_choice import ToolChoice
from tidepipe_common.types.tool_text import wrong_with_call, wrong_with_tool


def _tools(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of functions, got {kind(value)}")
    if len(value) > MAX_TOOLS:
        raise ValueError(f"may have {MAX_TOOLS} entries, got {len(value)}")
    return tuple(_tool(number, tool) for number, tool in enumerate(value))


def _tool(number: int, value: Any) -> str:
    if wrong := wrong_with_tool(value):
        raise ValueError(f"entry {number} {wrong}")
    return _json(value)


def _tool_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function"}:
            return ToolChoice("required", (_named(value),), parallel=False)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)},
        } if tools:
            _known(value, {"type", "allowed_tools"})
            _known(value["allowed_tools"], {"mode", "tools"})
            if len(tools) > MAX_TOOLS:
                raise ValueError(f"may have {MAX_TOOLS} entries, got {len(tools)}")
            return ToolChoice(mode, tuple(dict.fromkeys(map(_named, tools))))
    raise ValueError(
        "must be 'none', 'auto', 'required', "
        '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", "allowed_tools": '
        f'{{"mode": "auto" or "required", "tools": [...]}}}}, got {quoted(value)}'
    )


def _named(value: Any) -> str:
    """Name of the function that is meant."""
    match value:
        case {"type": "function", "function": {"name": str(name)} as function}:
            _known(value, {"type", "function"})
            _known(function, {"name"})
            return checked_text(name)
    raise ValueError('must name a function as {"type": "function", "function": {"name": ...}}')


def _known(value: dict[str, Any], fields: set[str]) -> None:
    if unknown := unknown_field(value, fields):
        raise ValueError(f"has the unknown field {quoted(unknown)}")


def _tool_calls(value: Any) -> str:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of calls, got {kind(value)}")
    calls = []
    for number, call in enumerate(value):
        if wrong := wrong_with_call(call):
            raise ValueError(f"call {number} {wrong}")
        function = call["function"]
        calls.append({**call, "function": {**function, "arguments": _arguments(number, function)}})
    return _json(calls) if calls else ""


def _arguments(number: int, function: dict[str, Any]) -> Any:
    """Templates want the arguments as an object; OpenAI's clients send them as text."""
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        return arguments
    try:
        check_characters("it", arguments, MAX_TOOLS_BYTES)
        return parse_json(arguments, "it", twice=True) if arguments else {}
    except InvalidRequestError:
        raise ValueError(f"call {number} has arguments that are not JSON, or too many") from None


def _json(value: Any) -> str:
    try:
        return checked_text(write_json(value, MAX_TOOLS_BYTES, ascii_only=False))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _function(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"type": "string"}, **properties},
        "required": ["name"],
    }


_TOOL = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": _function(parameters={"type": "object"})},
    "required": ["type", "function"],
}
_CALL = {
    "type": "object",
    "properties": {"function": _function(arguments={"description": "JSON, or a text that is JSON."})},
    "required": ["function"],
}

_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": NOTHING_ELSE,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": NOTHING_ELSE,
}
_ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _NAMED, "minItems": 1, "maxItems": MAX_TOOLS},
            },
            "required": ["mode", "tools"],
            "additionalProperties": NOTHING_ELSE,
        },
    },
    "required": ["type", "allowed_tools"],
    "additionalProperties": NOTHING_ELSE,
}
_TOOL_CHOICE = {"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED, _ALLOWED]}

Tools = Annotated[
    tuple[str, ...],
    BeforeValidator(_tools),
    WithJsonSchema({"type": "array", "items": _TOOL, "maxItems": MAX_TOOLS}),
]
ToolChoiceField = Annotated[ToolChoice, BeforeValidator(_tool_choice), WithJsonSchema(_TOOL_CHOICE)]
ToolCalls = Annotated[str, BeforeValidator(_tool_calls), WithJsonSchema({"type": "array", "items": _CALL})]
