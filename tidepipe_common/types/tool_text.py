"""Tools and calls as they travel, in JSON: what each must have, whatever door it came in by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.text.json_text import kind, parse_json
from tidepipe_common.text.text import quoted


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


def read_tools(texts: Sequence[str]) -> list[dict[str, Any]]:
    """A request's tools. InvalidRequestError: one of them is none, or two have one name."""
    tools = [_read_tool(text, number) for number, text in enumerate(texts)]
    names = Counter(tool["function"]["name"] for tool in tools)
    if len(names) < len(tools):
        # A call of one of them would be either's.
        twice = next(name for name, count in names.items() if count > 1)
        raise InvalidRequestError(f"two tools have the name {quoted(twice)}", "tools")
    return tools


def _read_tool(text: str, number: int) -> dict[str, Any]:
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
