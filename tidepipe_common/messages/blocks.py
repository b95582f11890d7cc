"""Blocks: what the messages of a conversation consist of, and the messages of a chat that say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_SPEAKER_CHARACTERS, MAX_TURNS, check_count
from tidepipe_common.openai.validation import checked_text, unknown_field
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted

Block = dict[str, Any]
Message = dict[str, Any]

THOUGHT = "reasoning_content"
"""Where a chat's message has the thought of an assistant."""
_IGNORED = {"type", "cache_control", "citations"}
_FIELDS: Mapping[str, set[str]] = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}
_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}
_ELSEWHERE = "only text is supported, no images, documents or searches"


def chat_messages(value: Any) -> list[Message]:
    """The `messages` of a body as a chat has them. InvalidRequestError says which cannot be had here."""
    if not isinstance(value, list):
        raise _wrong(f"messages must be a list, got {kind(value)}")
    if not value:
        raise _wrong("messages must not be empty")
    check_count("messages", len(value), MAX_TURNS)
    messages: list[Message] = []
    for number, message in enumerate(value):
        where = f"messages.{number}"
        if not isinstance(message, dict):
            raise _wrong(f"{where} must be an object, got {kind(message)}")
        if unknown := unknown_field(message, {"role", "content"}):
            raise _wrong(f"{where} has the unknown field {quoted(unknown)}")
        match message.get("role"):
            case "user":
                messages += _user(_blocks(f"{where}.content", message.get("content"), "user"))
            case "assistant":
                messages.append(_assistant(_blocks(f"{where}.content", message.get("content"), "assistant")))
            case "system":
                blocks = _blocks(f"{where}.content", message.get("content"), "system")
                messages.append({"role": "system", "content": _joined(blocks)})
            case role:
                raise _wrong(f"{where}.role must be 'user' or 'assistant', got {quoted(role)}")
    return messages


def system_text(value: Any) -> str:
    """The `system` of a body."""
    return _joined(_blocks("system", value, "system"))


def _blocks(where: str, value: Any, role: str) -> list[Block]:
    """Each checked, with its texts; a text is one block."""
    if isinstance(value, str):
        return [{"type": "text", "text": _text(where, value)}]
    if not isinstance(value, list):
        given = "nothing" if value is None else kind(value)
        raise _wrong(f"{where} must be a string or a list of blocks, got {given}", where)
    return [_block(f"{where}.{number}", block, role) for number, block in enumerate(value)]


def _block(where: str, block: Any, role: str) -> Block:
    if not isinstance(block, dict):
        raise _wrong(f"{where} must be an object, got {kind(block)}", where)
    of, allowed = block.get("type"), _BY_ROLE.get(role, ("text",))
    if not isinstance(of, str) or of not in _FIELDS:
        raise _wrong(f"{where} has the type {quoted(of)}; {_ELSEWHERE}", where)
    if of not in allowed:
        raise _wrong(f"{where}: a block of type {quoted(of)} has no place in what the {role} says", where)
    if unknown := unknown_field(block, _FIELDS[of] | _IGNORED):
        raise _wrong(f"{where} has the unknown field {quoted(unknown)}", where)
    match of:
        case "text" | "thinking":
            return {"type": of, of: _text(f"{where}.{of}", block.get(of))}
        case "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise _wrong(f"{where}.input must be an object, got {kind(arguments)}", where)
            names = {name: _name(where, block, name) for name in ("id", "name")}
            return {"type": of, **names, "input": arguments}
        case "tool_result":
            content = block.get("content")
            said = "" if content is None else _joined(_blocks(f"{where}.content", content, "tool"))
            return {"type": of, "id": _name(where, block, "tool_use_id"), "text": said}
    return {"type": of}  # a thought that only its author can read


def _user(blocks: Sequence[Block]) -> list[Message]:
    """Results of tools are turns of their own in a chat, in front of what the user says to them."""
    results = [
        {"role": "tool", "tool_call_id": block["id"], "content": block["text"]}
        for block in blocks
        if block["type"] == "tool_result"
    ]
    said = [block for block in blocks if block["type"] == "text"]
    return [*results, *([{"role": "user", "content": _joined(said)}] if said or not results else [])]


def _assistant(blocks: Sequence[Block]) -> Message:
    message: Message = {"role": "assistant", "content": _joined([b for b in blocks if b["type"] == "text"])}
    if thoughts := [block["thinking"] for block in blocks if block["type"] == "thinking"]:
        message[THOUGHT] = "\n".join(thoughts)
    if calls := [block for block in blocks if block["type"] == "tool_use"]:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["input"]},
            }
            for call in calls
        ]
    return message


def _joined(blocks: Sequence[Block]) -> str:
    return "\n".join(block["text"] for block in blocks)


def _text(where: str, value: Any) -> str:
    try:
        return checked_text(value)
    except ValueError as error:
        raise _wrong(f"{where} {error}", where) from None


def _name(where: str, block: Mapping[str, Any], name: str) -> str:
    value = _text(f"{where}.{name}", block.get(name))
    if not 0 < len(value) <= MAX_SPEAKER_CHARACTERS:
        raise _wrong(
            f"{where}.{name} may have 1 to {MAX_SPEAKER_CHARACTERS} characters, got {len(value)}", where
        )
    return value


def _wrong(text: str, where: str = "messages") -> InvalidRequestError:
    return InvalidRequestError(text, where.partition(".")[0])
