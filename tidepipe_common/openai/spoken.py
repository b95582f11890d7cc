"""What a chat's bodies say of an answer's thoughts and calls, whole or as they come."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tidepipe_common.dialects import (
    CallArguments,
    CallBegins,
    CallEnds,
    Dialect,
    Part,
    Spoken,
    Thought,
    Words,
)
from tidepipe_common.dialects.reader import PausingReader
from tidepipe_common.openai.answers import AssistantMessage, ChatReason, Delta, FunctionDelta, ToolCall
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.sampling import FinishReason

CallId = Callable[[str, int], str]
"""The id of a call, by its name and its index among the calls of its answer."""


def message_of(spoken: Spoken, call_id: CallId, *, reasoning: bool) -> AssistantMessage:
    """The message of an answer that was read. reasoning: whether thoughts are shown, if only as null."""
    said = bool(spoken.calls or (reasoning and spoken.thought))
    message: AssistantMessage = {
        "role": "assistant",
        "content": None if said and not spoken.words else spoken.words,
        "refusal": None,
    }
    if reasoning:
        message["reasoning_content"] = message["reasoning"] = spoken.thought or None
    if spoken.calls:
        message["tool_calls"] = [
            ToolCall(
                id=call_id(call.name, call.index),
                type="function",
                function={"name": call.name, "arguments": call.arguments},
            )
            for call in spoken.calls
        ]
    return message


def chat_reason(reason: FinishReason | None, *, called: bool) -> ChatReason:
    """Why a whole answer ended, as chats say it. called: a tool, completely."""
    if reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if called else "stop"


@dataclass(slots=True)
class SpokenStream:
    """One answer's deltas."""

    reader: PausingReader
    call_id: CallId
    reasoning: bool
    called: bool = False
    thinking: ThoughtTokens | None = None

    def feed(self, text: str, *, ended: bool) -> list[Delta]:
        """What is new, now that this text has come. ended: nothing more comes."""
        parts = [*self.reader.feed(text), *(self.reader.end() if ended else ())]
        return [delta for part in parts if (delta := self._delta(part)) is not None]

    def _delta(self, part: Part) -> Delta | None:
        match part:
            case Words(text):
                return {"content": text}
            case Thought(text):
                return {"reasoning_content": text, "reasoning": text} if self.reasoning else None
            case CallBegins(index, name):
                call_id = self.call_id(name, index)
                begun = FunctionDelta(name=name, arguments="")
                return {
                    "tool_calls": [{"index": index, "id": call_id, "type": "function", "function": begun}]
                }
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case CallEnds():
                self.called = True
                return None


class Spelling(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def dialect(self) -> Dialect:
        """How the model writes."""
        ...

    def is_special(self, token_id: int) -> bool:
        """True for tokens that are no text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes."""
        ...


def hidden_tokens(request: GenerationRequest, text: Spelling) -> Callable[[int], bool] | None:
    """Tells the tokens that the text of this request's answers leaves out; None: there are none."""
    if request.keep_special_tokens:
        return None
    kept = text.dialect.kept_tokens(tools=request.callable) if request.marks else frozenset()
    if not kept:
        return text.is_special
    shown = frozenset(mark.encode() for mark in kept)
    return lambda token: text.is_special(token) and text.token_bytes(token) not in shown


@dataclass(slots=True)
class ThoughtTokens:
    """Counts the tokens of an answer that are thought, by where they begin in its text."""

    token_bytes: Callable[[int], bytes]
    _begins: array[int] = field(default_factory=lambda: array("I"))
    _characters: int = 0

    def take(self, token_ids: Sequence[int]) -> None:
        """The next tokens."""
        for token_id in token_ids:
            self._begins.append(self._characters)
            # Characters begin with bytes of other kinds than those that continue them.
            self._characters += sum(byte & 0xC0 != 0x80 for byte in self.token_bytes(token_id))

    def count(self, thoughts: Sequence[tuple[int, int]]) -> int:
        """How many of them are in one of these stretches of the text."""
        if not thoughts:
            return 0
        starts = [begin for begin, _ in thoughts]
        found = ((bisect_right(starts, begin) - 1, begin) for begin in self._begins)
        return sum(at >= 0 and begin < thoughts[at][1] for at, begin in found)
