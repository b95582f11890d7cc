"""Items: what a response's input and output consist of, and the messages of a chat that say the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_SPEAKER_CHARACTERS, MAX_TURNS, check_count
from tidepipe_common.openai.validation import NOTHING_ELSE, checked_text, unknown_field
from tidepipe_common.responses.names import INPUT, item_id
from tidepipe_common.responses.tools import CUSTOM_INPUT, TOOLS_SCHEMA, chat_name
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted

Item = dict[str, Any]

ITEM_REFERENCE = "item_reference"
ADDITIONAL_TOOLS = "additional_tools"
"""Tools that stand among the input: of this response, as those beside it."""
ROLES = ("user", "system", "developer", "assistant")
TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
_BESIDE_TEXT = ("annotations", "logprobs", "parsed")
"""Of what came as an answer; the last one is made by clients."""
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "cto",
    ADDITIONAL_TOOLS: "at",
}
_ALWAYS = {"type", "id", "status"}
ITEM_FIELDS: Mapping[str, set[str]] = {
    "message": {"role", "content", "phase", "end_turn"},
    "reasoning": {"summary", "content", "encrypted_content"},
    "function_call": {"call_id", "name", "arguments", "namespace", "caller", "async", "parsed_arguments"},
    "function_call_output": {"call_id", "output", "caller"},
    "custom_tool_call": {"call_id", "name", "input", "namespace", "caller", "async"},
    "custom_tool_call_output": {"call_id", "output", "caller"},
    ITEM_REFERENCE: set(),
    ADDITIONAL_TOOLS: {"role", "tools"},
}
"""By type, beside those of _ALWAYS."""


def prefix(of: str) -> str:
    """With which the id of an item of that type begins."""
    return _PREFIXES[of]


def input_items(value: Any) -> list[Item]:
    """The `input` of a body, as items with nothing left out and without ids.

    InvalidRequestError says which of them cannot be had here.
    """
    if isinstance(value, str):
        return [_message("input", {"role": "user", "content": value})]
    if not isinstance(value, list):
        raise InvalidRequestError(f"input must be a string or a list of items, got {kind(value)}", "input")
    check_count("input", len(value), MAX_TURNS, "items")
    return [_item(f"input.{number}", item) for number, item in enumerate(value)]


def named(items: Iterable[Item], response: str) -> list[Item]:
    """The same with ids, as items of the input of that response."""
    return [
        {**item, "id": item_id(response, prefix(item["type"]), INPUT, number)}
        for number, item in enumerate(items)
    ]


def _item(where: str, item: Any) -> Item:
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{where} must be an object, got {kind(item)}", "input")
    of = item.get("type")
    if of is None:
        of = "message" if item.keys() & {"role", "content"} else ITEM_REFERENCE if "id" in item else None
    if not isinstance(of, str) or of not in ITEM_FIELDS:
        raise InvalidRequestError(
            f"{where} has the type {quoted(of)}; here there are {', '.join(ITEM_FIELDS)}", "input"
        )
    known = ITEM_FIELDS[of] | _ALWAYS
    if unknown := unknown_field(item, known):
        raise InvalidRequestError(f"{where} has the unknown field {quoted(unknown)}", "input")
    match of:
        case "message":
            return _message(where, item)
        case "reasoning":
            return _reasoning(where, item)
        case "function_call" | "custom_tool_call":
            text = "arguments" if of == "function_call" else "input"
            call = {
                "type": of,
                "status": "completed",
                "call_id": _name(where, item, "call_id"),
                "name": _name(where, item, "name"),
                text: _text(f"{where}.{text}", item.get(text)),
            }
            return call | ({"namespace": _name(where, item, "namespace")} if item.get("namespace") else {})
        case "function_call_output" | "custom_tool_call_output":
            output = item.get("output")
            said = output if isinstance(output, str) else _parts(f"{where}.output", output, "input_text")
            return {
                "type": of,
                "status": "completed",
                "call_id": _name(where, item, "call_id"),
                "output": _text(f"{where}.output", said) if isinstance(said, str) else said,
            }
        case "additional_tools":
            return {"type": of, "role": "developer", "tools": item.get("tools")}
    return {"type": ITEM_REFERENCE, "id": _name(where, item, "id")}


def _message(where: str, item: Mapping[str, Any]) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(ROLES)}, got {quoted(role)}", "input"
        )
    of = "output_text" if role == "assistant" else "input_text"
    parts = (
        [_part(of, _text(f"{where}.content", content))]
        if isinstance(content, str)
        else _parts(f"{where}.content", content, of)
    )
    return {"type": "message", "status": "completed", "role": role, "content": parts}


def _reasoning(where: str, item: Mapping[str, Any]) -> Item:
    content, summary = item.get("content"), item.get("summary")
    return {
        "type": "reasoning",
        "status": "completed",
        "summary": _parts(f"{where}.summary", summary, "summary_text") if summary is not None else [],
        "content": _parts(f"{where}.content", content, "reasoning_text") if content is not None else [],
    }


def _parts(where: str, value: Any, of: str) -> list[Item]:
    if not isinstance(value, list):
        raise InvalidRequestError(
            f"{where} must be a string or a list of parts, got {'nothing' if value is None else kind(value)}",
            "input",
        )
    return [_read_part(f"{where}.{number}", part, of) for number, part in enumerate(value)]


def _read_part(where: str, part: Any, of: str) -> Item:
    if not isinstance(part, dict):
        raise InvalidRequestError(f"{where} must be an object, got {kind(part)}", "input")
    given = part.get("type")
    if given not in TEXT_PARTS:
        raise InvalidRequestError(
            f"{where} has the type {quoted(given)}; only text is supported, no images or files",
            "input",
        )
    name = "refusal" if given == "refusal" else "text"
    if unknown := unknown_field(part, {"type", name, *_BESIDE_TEXT}):
        raise InvalidRequestError(f"{where} has the unknown field {quoted(unknown)}", "input")
    return _part(of, _text(f"{where}.{name}", part.get(name)))


def _part(of: str, text: str) -> Item:
    return {"type": of, "text": text} | ({"annotations": []} if of == "output_text" else {})


def _text(where: str, value: Any) -> str:
    try:
        return checked_text(value)
    except ValueError as error:
        raise InvalidRequestError(f"{where} {error}", "input") from None


def _name(where: str, item: Mapping[str, Any], name: str) -> str:
    value = _text(f"{where}.{name}", item.get(name))
    if not 0 < len(value) <= MAX_SPEAKER_CHARACTERS:
        raise InvalidRequestError(
            f"{where}.{name} may have 1 to {MAX_SPEAKER_CHARACTERS} characters, got {len(value)}", "input"
        )
    return value


def chat_messages(items: Sequence[Item], fields: Collection[str]) -> list[Item]:
    """The messages of a chat that say what the items say: of one speaker in a row, an assistant's thoughts,
    words and calls are one. fields: that a message may have; thoughts are left out if it has no place."""
    messages: list[Item] = []
    mine: Item = {}

    def over() -> None:
        nonlocal mine
        if mine.keys() - {"role"}:
            messages.append(mine)
        mine = {}

    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                if mine.keys() & {"content", "tool_calls"}:
                    over()
                mine |= {"role": "assistant", "content": joined(item["content"])}
            case "reasoning":
                if mine:
                    over()
                mine = {"role": "assistant"}
                thought = joined(item["content"] or item["summary"])
                if thought and "reasoning_content" in fields:
                    mine["reasoning_content"] = thought
            case "function_call" | "custom_tool_call":
                mine.setdefault("role", "assistant")
                mine.setdefault("tool_calls", []).append(_chat_call(item))
            case "additional_tools":
                pass
            case "message":
                over()
                messages.append({"role": item["role"], "content": joined(item["content"])})
            case _:
                over()
                output = item["output"]
                said = output if isinstance(output, str) else joined(output)
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": said})
    over()
    return messages


def joined(parts: Iterable[Item]) -> str:
    """The text of parts."""
    return "\n".join(part["text"] for part in parts)


def _chat_call(item: Item) -> Item:
    custom = item["type"] == "custom_tool_call"
    arguments: Any = {CUSTOM_INPUT: item["input"]} if custom else item["arguments"]
    name = chat_name(item["name"], item.get("namespace", ""))
    return {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


_STRING = {"type": "string"}
_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_SPEAKER_CHARACTERS}
_TEXT_PARTS = [one for one in TEXT_PARTS if one != "refusal"]


def _described_part(types: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": types, text: _STRING} | {name: {} for name in _BESIDE_TEXT},
        "required": ["type", text],
        "additionalProperties": NOTHING_ELSE,
    }


_PARTS = {
    "type": "array",
    "items": {
        "oneOf": [
            _described_part({"enum": _TEXT_PARTS}, "text"),
            _described_part({"const": "refusal"}, "refusal"),
        ]
    },
}
_SAID = {"anyOf": [_STRING, _PARTS]}
_THOUGHT = {"anyOf": [_PARTS, {"type": "null"}]}
_PROPERTIES: Mapping[str, dict[str, Any]] = {
    "message": {"role": {"enum": list(ROLES)}, "content": _SAID},
    "reasoning": {"summary": _THOUGHT, "content": _THOUGHT},
    "function_call": {"call_id": _NAME, "name": _NAME, "arguments": _STRING},
    "function_call_output": {"call_id": _NAME, "output": _SAID},
    "custom_tool_call": {"call_id": _NAME, "name": _NAME, "input": _STRING},
    "custom_tool_call_output": {"call_id": _NAME, "output": _SAID},
    ITEM_REFERENCE: {"id": _NAME},
    ADDITIONAL_TOOLS: {"tools": TOOLS_SCHEMA},
}


def _described(of: str) -> dict[str, Any]:
    own = _PROPERTIES[of]
    properties: dict[str, Any] = {name: {} for name in ITEM_FIELDS[of] | _ALWAYS if name != "namespace"}
    required = [] if of == "reasoning" else list(own)
    return {
        "type": "object",
        "properties": {**properties, **own, "type": {"const": of}},
        "required": required if of == "message" else ["type", *required],
        "additionalProperties": NOTHING_ELSE,
    }


INPUT_SCHEMA = {
    "anyOf": [
        _STRING,
        {
            "type": "array",
            "items": {"oneOf": [_described(of) for of in ITEM_FIELDS]},
            "minItems": 1,
            "maxItems": MAX_TURNS,
        },
    ]
}
"""What `input_items` takes, but for namespaces of calls."""
