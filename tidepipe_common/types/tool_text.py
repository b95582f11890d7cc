"""Tools and calls as they travel, in JSON: what each must have, whatever door it came in by."""

from __future__ import annotations

from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.json_text import kind, parse_json


def wrong_with_tool(value: Any) -> str | None:
    """Why a decoded value is no function that can be called, as a sentence goes on; None if it is one."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return 'must have {"type": "function", "function": ...}'
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "must have a function with a name"
    parameters, strict = function.get("parameters"), function.get("strict")
    if not isinstance(parameters, dict | None):
        return f"must have a JSON schema as parameters, got {kind(parameters)}"
    if not isinstance(strict, bool | None):
        return f"must have true or false as strict, got {kind(strict)}"
    return None


def wrong_with_call(value: Any) -> str | None:
    """Likewise of a call in a conversation."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "must have a function with a name"
    return None


def read_tool(text: str, number: int) -> dict[str, Any]:
    """A request's tool of that number. InvalidRequestError."""
    value = _parsed(text, f"tools.{number}", "tools")
    if wrong := wrong_with_tool(value):
        raise InvalidRequestError(f"tools.{number} {wrong}", "tools")
    checked: dict[str, Any] = value
    return checked


def read_calls(text: str) -> list[dict[str, Any]]:
    """The calls of a turn. InvalidRequestError."""
    calls = _parsed(text, "tool_calls", "messages")
    if not isinstance(calls, list):
        raise InvalidRequestError(f"tool_calls must be a list of calls, got {kind(calls)}", "messages")
    for number, call in enumerate(calls):
        if wrong := wrong_with_call(call):
            raise InvalidRequestError(f"tool_calls call {number} {wrong}", "messages")
    return calls


def _parsed(text: str, what: str, param: str) -> Any:
    try:
        return parse_json(text, what)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param) from None
