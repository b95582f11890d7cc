"""A model's chat template: what it takes, and the text that it makes of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.text.template_trial import environment
from router.text.told_tools import tools_in_words
from tidepipe_common.dialects.dialect import Dialect
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_TEMPLATE_DEPTH
from tidepipe_common.text.json_text import depth, parse_json
from tidepipe_common.text.text import quoted
from tidepipe_common.types.request import ChatTurn
from tidepipe_common.types.thought import TemplateOptions
from tidepipe_common.types.tool_text import read_calls, read_tools

_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Arguments that are not a client's to set; nor are the tokenizer's special tokens."""
_SWITCHES = frozenset({"enable_thinking", "thinking"})
_EFFORTS = _SWITCHES | {"reasoning_effort"}
_NEAREST = {"none": "low", "minimal": "low", "xhigh": "high"}
_MAX_NAMES_CHARACTERS = 200


class ChatTemplate:
    """The template, or templates by name, of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        template = tokenizer.chat_template or {}
        self._tokenizer = tokenizer
        self._sources = [template] if isinstance(template, str) else list(template.values())
        self.text = "\n".join(self._sources)
        found = frozenset[str]().union(*map(_arguments, self._sources))
        self.shows_tools = "tools" in found
        """True if it has a place for tools."""
        self._shows_xml_tools = not self.shows_tools and "xml_tools" in found  # SmolLM3's name for them
        self._arguments = found - _OURS - set(tokenizer.special_tokens_map)

    @property
    def knows_effort(self) -> bool:
        """True if it can be told how much to think, or not to."""
        return not _EFFORTS.isdisjoint(self._arguments)

    def render(
        self, messages: Sequence[ChatTurn], tools: Sequence[str], dialect: Dialect, options: TemplateOptions
    ) -> str:
        """The text of a conversation, ready for the assistant's turn.

        Raises InvalidRequestError if the model has no template, or the template refuses the conversation.
        """
        if not messages:
            raise InvalidRequestError("messages must not be empty", "messages")
        if not self._sources:
            raise InvalidRequestError(
                "this model has no chat template; send a plain prompt instead (/v1/completions)", "messages"
            )
        arguments = self._options(options)
        turns = [_template_turn(turn) for turn in messages]
        shown = read_tools(tools) or None
        try:
            if shown is not None and self._shows_xml_tools:
                return self._apply(turns, None, {**arguments, "xml_tools": shown})
            if shown is None or self.shows_tools or dialect.form is None:
                return self._apply(turns, shown, arguments)
            try:
                return self._apply(tools_in_words(turns, tools, dialect.form), None, arguments)
            except Exception:
                if turns[0]["role"] == "system":
                    raise
                # Some templates have no system messages.
                told = tools_in_words(turns, tools, dialect.form, system=False)
                return self._apply(told, None, arguments)
        except Exception as error:  # whatever the model's template raises
            raise InvalidRequestError(
                f"the model's chat template does not accept these messages: {error}", "messages"
            ) from error

    def _apply(
        self, turns: Sequence[dict[str, Any]], tools: list[Any] | None, arguments: Mapping[str, Any]
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, **arguments)
        return text

    def _options(self, options: TemplateOptions) -> dict[str, Any]:
        """What the template gets besides messages and tools. InvalidRequestError for other arguments."""
        given: dict[str, Any] = {}
        if options.arguments:
            given = parse_json(options.arguments, "chat_template_kwargs")
            if not isinstance(given, dict) or depth(given, MAX_TEMPLATE_DEPTH) > MAX_TEMPLATE_DEPTH:
                raise InvalidRequestError(
                    f"chat_template_kwargs must be an object, nested {MAX_TEMPLATE_DEPTH} levels at most",
                    "chat_template_kwargs",
                )
        if unknown := given.keys() - self._arguments:
            known = ", ".join(sorted(self._arguments)) or "none"
            raise InvalidRequestError(
                f"chat_template_kwargs: this model's chat template has no argument {quoted(min(unknown))}; "
                f"it has: {known[:_MAX_NAMES_CHARACTERS]}",
                "chat_template_kwargs",
            )
        return {
            **self._thinking(options.effort),
            **given,
            "add_generation_prompt": options.opened,
            "continue_final_message": options.continued,
        }

    def _thinking(self, effort: str) -> dict[str, Any]:
        """An effort in the template's own arguments."""
        made: dict[str, Any] = {}
        if not effort:
            return made
        for switch in _SWITCHES & self._arguments:
            made[switch] = effort != "none"
        if "reasoning_effort" in self._arguments:
            # Templates know three at least; other words only those that name them.
            named = f"'{effort}'" in self.text or f'"{effort}"' in self.text
            made["reasoning_effort"] = effort if named else _NEAREST.get(effort, effort)
        return made


def _arguments(source: str) -> frozenset[str]:
    """Names that the template takes from outside."""
    from jinja2 import meta

    surroundings = environment()
    return frozenset(meta.find_undeclared_variables(surroundings.parse(source))) - surroundings.globals.keys()


def _template_turn(turn: ChatTurn) -> dict[str, Any]:
    """The turn as chat templates expect it."""
    entry: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name:
        entry["name"] = turn.name
    if turn.tool_calls:
        entry["tool_calls"] = read_calls(turn.tool_calls)
    if turn.tool_call_id:
        entry["tool_call_id"] = turn.tool_call_id
    if turn.reasoning:
        # Templates differ in its name: Qwen's and GLM's, vLLM's and gpt-oss's.
        entry["reasoning_content"] = entry["reasoning"] = turn.reasoning
        if not turn.content:
            entry["thinking"] = turn.reasoning
    return entry
