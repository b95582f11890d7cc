"""A model's chat template: what it takes, and the text that it makes of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.text.template_trial import environment
from router.text.told_tools import tools_in_words
from tidepipe_common.dialects.dialect import Dialect
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.types.request import ChatTurn

_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
"""Arguments that are not a client's to set."""


class ChatTemplate:
    """The template, or templates by name, of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        template = tokenizer.chat_template or {}
        self._tokenizer = tokenizer
        self._sources = [template] if isinstance(template, str) else list(template.values())
        self.text = "\n".join(self._sources)
        self._arguments = frozenset().union(*map(_arguments, self._sources)) if self._sources else frozenset()

    @property
    def shows_tools(self) -> bool:
        """True if it has a place for tools."""
        return "tools" in self._arguments

    def render(self, messages: Sequence[ChatTurn], tools: Sequence[str], dialect: Dialect) -> str:
        """The text of a conversation, ready for the assistant's turn.

        Raises InvalidRequestError if the model has no template, or the template refuses the conversation.
        """
        if not messages:
            raise InvalidRequestError("messages must not be empty", "messages")
        if not self._sources:
            raise InvalidRequestError(
                "this model has no chat template; send a plain prompt instead (/v1/completions)", "messages"
            )
        try:
            turns = [_template_turn(turn) for turn in messages]
            shown = [json.loads(tool) for tool in tools] or None
            if shown is None or self.shows_tools or dialect.form is None:
                return self._apply(turns, shown, {})
            try:
                return self._apply(tools_in_words(turns, tools, dialect.form), None, {})
            except Exception:
                if turns[0]["role"] == "system":
                    raise
                # Some templates have no system messages.
                return self._apply(tools_in_words(turns, tools, dialect.form, system=False), None, {})
        except Exception as error:  # whatever the model's template raises
            raise InvalidRequestError(
                f"the model's chat template does not accept these messages: {error}", "messages"
            ) from error

    def _apply(
        self, turns: Sequence[dict[str, Any]], tools: list[Any] | None, arguments: Mapping[str, Any]
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(turns), tools=tools, tokenize=False, add_generation_prompt=True, **arguments
        )
        return text


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
        entry["tool_calls"] = json.loads(turn.tool_calls)
    if turn.tool_call_id:
        entry["tool_call_id"] = turn.tool_call_id
    return entry
