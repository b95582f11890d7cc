"""Tools of a response: flat, and of more kinds than a chat's, which has functions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TOOL_NAME_CHARACTERS, MAX_TOOLS, check_count
from tidepipe_common.openai.validation import NOTHING_ELSE, unknown_field
from tidepipe_common.text.json_text import kind
from tidepipe_common.text.text import quoted

CUSTOM_INPUT = "input"
"""The one argument of the function that a custom tool becomes: its text."""
_HOSTED = {
    "web_search": 'the web is not searched (Codex leaves it out with web_search = "disabled")',
    "web_search_2025_08_26": "the web is not searched",
    "web_search_preview": "the web is not searched",
    "web_search_preview_2025_03_11": "the web is not searched",
    "file_search": "no files are searched",
    "code_interpreter": "no code is run",
    "computer": "there is no computer to use",
    "computer_use_preview": "there is no computer to use",
    "mcp": "no MCP servers are called",
    "image_generation": "no images are made",
    "local_shell": "no shell is run, and models here do not know this tool",
    "shell": "no shell is run, and models here do not know this tool",
    "apply_patch": "models here do not know this tool",
    "tool_search": "tools are not searched; all of them are shown to the model",
    "programmatic_tool_calling": "no code is run",
}
_HARMLESS: dict[str, tuple[object, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "defer_loading": (None, False),
    "async": (None, False),
}
_FUNCTION = {"type", "name", "description", "parameters", "strict", "output_schema", *_HARMLESS}
_CUSTOM = {"type", "name", "description", "format", *_HARMLESS}
_NAMESPACE = {"type", "name", "description", "tools"}
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string"}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Tool:
    """What a function's name in the chat stands for. namespace: in which it was given; empty for none."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ChatTools:
    """functions: as a chat has them. by_name: what each of their names stands for."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    by_name: dict[str, Tool] = field(default_factory=dict)

    def called(self, name: str) -> Tool:
        """What the model calls by this name."""
        return self.by_name.get(name) or Tool("function", name)

    def _add(self, tool: Tool, function: dict[str, Any]) -> None:
        name = chat_name(tool.name, tool.namespace)
        if name in self.by_name:
            raise InvalidRequestError(f"tools: {quoted(name)} is there twice", "tools")
        check_count("tools", len(self.functions) + 1, MAX_TOOLS)
        self.by_name[name] = tool
        self.functions.append({"type": "function", "function": {"name": name, **function}})


def chat_name(name: str, namespace: str) -> str:
    """The name under which a chat has a tool."""
    return f"{namespace}__{name}" if namespace else name


def chat_tools(*lists: Any) -> ChatTools:
    """From the `tools` of a body, and those in its input; None: there are none.

    InvalidRequestError names the entry that cannot be had here.
    """
    tools = ChatTools()
    for value in lists:
        if value is None:
            continue
        if not isinstance(value, list):
            raise InvalidRequestError(f"tools must be a list, got {kind(value)}", "tools")
        check_count("tools", len(value), MAX_TOOLS)
        for number, tool in enumerate(value):
            _take(tools, f"tools.{number}", tool, "")
    return tools


def _take(tools: ChatTools, where: str, tool: Any, namespace: str) -> None:
    if not isinstance(tool, dict):
        raise InvalidRequestError(f"{where} must be an object, got {kind(tool)}", "tools")
    of = tool.get("type")
    match of:
        case "function":
            if "function" in tool:
                raise InvalidRequestError(
                    f"{where} is written as in a chat; here its name stands beside its type",
                    "tools",
                )
            _known(where, tool, _FUNCTION)
            given = {
                one: tool[one] for one in ("description", "parameters", "strict") if tool.get(one) is not None
            }
            tools._add(Tool("function", _name(where, tool), namespace), given)
        case "custom":
            _known(where, tool, _CUSTOM)
            function = {"description": _described(where, tool), "parameters": _CUSTOM_PARAMETERS}
            tools._add(Tool("custom", _name(where, tool), namespace), function)
        case "namespace" if not namespace:
            _known(where, tool, _NAMESPACE)
            inner = tool.get("tools")
            if not isinstance(inner, list):
                raise InvalidRequestError(f"{where}.tools must be a list, got {kind(inner)}", "tools")
            for number, one in enumerate(inner):
                _take(tools, f"{where}.tools.{number}", one, _name(where, tool))
        case str() if of in _HOSTED:
            raise InvalidRequestError(
                f"{where} is {of}, which this server does not have: {_HOSTED[of]}; leave it out, or give a "
                "function of your own",
                "tools",
            )
        case _:
            raise InvalidRequestError(
                f"{where}.type must be 'function' or 'custom', got {quoted(of)}", "tools"
            )


def _known(where: str, tool: Mapping[str, Any], known: set[str]) -> None:
    if unknown := unknown_field(tool, known):
        raise InvalidRequestError(f"{where} has the unknown field {quoted(unknown)}", "tools")
    for name, harmless in _HARMLESS.items():
        if not any(type(tool.get(name)) is type(one) and tool.get(name) == one for one in harmless):
            raise InvalidRequestError(f"{where}.{name} is not supported; leave it out", "tools")


def _name(where: str, tool: Mapping[str, Any]) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TOOL_NAME_CHARACTERS:
        text = f"{where}.name must be a text of 1 to {MAX_TOOL_NAME_CHARACTERS} characters"
        raise InvalidRequestError(f"{text}, got {quoted(name)}", "tools")
    return name


def _described(where: str, tool: Mapping[str, Any]) -> str:
    """What the model is told of a custom tool; a grammar is shown to it, it is not held to it."""
    description, form = tool.get("description") or "", tool.get("format")
    if not isinstance(description, str):
        raise InvalidRequestError(f"{where}.description must be a string, got {kind(description)}", "tools")
    match form:
        case None | {"type": "text"}:
            return description
        case {"type": "grammar", "syntax": str(syntax), "definition": str(definition)}:
            return f"{description}\n\n`{CUSTOM_INPUT}` conforms to this grammar ({syntax}):\n{definition}"
    raise InvalidRequestError(
        f"{where}.format must have the type 'text', or 'grammar' with syntax and definition", "tools"
    )


def chat_tool_choice(value: Any) -> Any:
    """`tool_choice` as a chat has it. InvalidRequestError if no chat has it."""
    match value:
        case None | str():
            return value
        case {"type": "function" | "custom", "name": str(name), **rest}:
            if unknown := unknown_field(rest, {"namespace"}):
                raise InvalidRequestError(
                    f"tool_choice has the unknown field {quoted(unknown)}", "tool_choice"
                )
            space = rest.get("namespace")
            named = chat_name(name, space if isinstance(space, str) else "")
            return {"type": "function", "function": {"name": named}}
        case {"type": "allowed_tools", "mode": mode, "tools": list(tools)}:
            allowed = [chat_tool_choice(tool) for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
        case {"type": str(of)}:
            raise InvalidRequestError(
                f"tool_choice must be 'none', 'auto', 'required', or name a function, got the type "
                f"{quoted(of)}",
                "tool_choice",
            )
    raise InvalidRequestError(
        f"tool_choice must be 'none', 'auto', 'required', or name a function, got {kind(value)}",
        "tool_choice",
    )


_NAMED = {"type": "string", "minLength": 1, "maxLength": MAX_TOOL_NAME_CHARACTERS}
_STRING = {"type": "string"}
_OWN = {
    "allowed_callers": {"enum": list(_HARMLESS["allowed_callers"])},
    "defer_loading": {"enum": list(_HARMLESS["defer_loading"])},
    "async": {"enum": list(_HARMLESS["async"])},
}
_FORMAT = {
    "oneOf": [
        {"enum": [None]},
        {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {"type": {"const": "grammar"}, "syntax": _STRING, "definition": _STRING},
            "required": ["type", "syntax", "definition"],
        },
    ]
}
_FUNCTION_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "name": _NAMED,
        "description": {},
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
        "output_schema": {},
        **_OWN,
    },
    "required": ["type", "name"],
    "additionalProperties": NOTHING_ELSE,
}
_CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "custom"},
        "name": _NAMED,
        "description": {"type": ["string", "null"]},
        "format": _FORMAT,
        **_OWN,
    },
    "required": ["type", "name"],
    "additionalProperties": NOTHING_ELSE,
}
TOOLS_SCHEMA = {
    "type": "array",
    "items": {"oneOf": [_FUNCTION_SCHEMA, _CUSTOM_SCHEMA]},
    "maxItems": MAX_TOOLS,
}
"""What `chat_tools` takes, but for namespaces."""
