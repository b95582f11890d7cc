"""Tools and the choice among them, as a chat has them."""

from __future__ import annotations

from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOLS, check_count
from tidepipe_common.openai.validation import unknown_field
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted

_KNOWN = {"type", "name", "description", "input_schema", "strict"}
_IGNORED = {"cache_control", "defer_loading", "allowed_callers", "eager_input_streaming", "input_examples"}


def chat_tools(value: Any) -> list[dict[str, Any]]:
    """The functions of a chat. InvalidRequestError for tools that only Anthropic's servers have."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequestError(f"tools must be a list, got {kind(value)}", "tools")
    check_count("tools", len(value), MAX_TOOLS)
    return [_function(f"tools.{number}", tool) for number, tool in enumerate(value)]


def _function(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidRequestError(f"{where} must be an object, got {kind(tool)}", "tools")
    if tool.get("type") not in (None, "custom"):
        raise InvalidRequestError(
            f"{where} has the type {quoted(tool.get('type'))}: a server's tool, and this server runs none; "
            "only your own are supported",
            "tools",
        )
    if unknown := unknown_field(tool, _KNOWN | _IGNORED):
        raise InvalidRequestError(f"{where} has the unknown field {quoted(unknown)}", "tools")
    if not isinstance(schema := tool.get("input_schema"), dict):
        raise InvalidRequestError(f"{where}.input_schema must be a JSON schema, got {kind(schema)}", "tools")
    said = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**said, "parameters": schema}}


def chat_tool_choice(value: Any) -> dict[str, Any]:
    """`tool_choice` and `parallel_tool_calls` of a chat."""
    if value is None:
        return {}
    if isinstance(value, dict):
        single = value.get("disable_parallel_tool_use")
        if single is not None and not isinstance(single, bool):
            raise InvalidRequestError(
                f"tool_choice.disable_parallel_tool_use must be true or false, got {kind(single)}",
                "tool_choice",
            )
        chosen: Any = None
        match value:
            case {"type": "auto"}:
                chosen = "auto"
            case {"type": "any"}:
                chosen = "required"
            case {"type": "none"}:
                chosen = "none"
            case {"type": "tool", "name": str(name)}:
                chosen = {"type": "function", "function": {"name": name}}
        if chosen is not None:
            return {"tool_choice": chosen} | ({"parallel_tool_calls": False} if single else {})
    raise InvalidRequestError(
        'tool_choice must be {"type": "auto"}, "any", "none", or {"type": "tool", "name": ..}', "tool_choice"
    )
