"""The writer of messages: an answer's parts become blocks, whole or as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.messages.answers import MessageUsage
from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason

Event = dict[str, Any]
SIGNATURE = ""
"""Of thoughts: they come as they are, so nobody has to vouch for them."""


def usage_body(usage: Usage) -> MessageUsage:
    """The `usage` object: what was computed of the prompt, and what was found."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def message_sse(event: Event) -> bytes:
    """A server-sent event, which has its type as a name, too."""
    data = json.dumps(event, allow_nan=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {data}\n\n".encode()


@dataclass(slots=True)
class MessageWriter:
    """One message in the making. However the parts of its answer are cut, the blocks are the same.

    White space alone begins no block of text beside others. A call that broke off is none: its text comes
    again as words, and a stream, where its block has begun, says so by the reason for which it stopped.
    call_id: of a call, by its tool's name and its index.
    """

    name: str
    model: str
    call_id: Callable[[str, int], str]
    blocks: list[dict[str, Any]] = field(default_factory=list)
    _open: str = ""
    _texts: list[str] = field(default_factory=list)
    _space: str = ""
    _calls: set[int] = field(default_factory=set)
    """Places of those blocks that are whole calls."""

    def begin(self, prompt_tokens: int) -> list[Event]:
        """Before there is anything of the answer."""
        return [{"type": "message_start", "message": self._message(Usage(prompt_tokens, 0), None, None)}]

    def say(self, parts: Sequence[Part]) -> list[Event]:
        """The next parts."""
        events: list[Event] = []
        for part in parts:
            match part:
                case Words(text):
                    events += self._words(text)
                case Thought(text):
                    if self._open != "thinking":
                        events += self._opened({"type": "thinking", "thinking": "", "signature": SIGNATURE})
                    events.append(self._delta("thinking_delta", thinking=text))
                    self._texts.append(text)
                case CallBegins(index, name):
                    block = {
                        "type": "tool_use",
                        "id": self.call_id(name, index),
                        "name": name,
                        "input": {},
                    }
                    events += self._opened(block)
                case CallArguments(_, text):
                    events.append(self._delta("input_json_delta", partial_json=text))
                    self._texts.append(text)
                case CallEnds():
                    self._calls.add(len(self.blocks) - 1)
                    events += self._closed()
        return events

    def end(
        self, usage: Usage, reason: FinishReason | None, stopped_by: int | str | None
    ) -> tuple[list[Event], dict[str, Any]]:
        """The last events, and the message as a whole. reason: STOP or LENGTH."""
        events: list[Event] = []
        if not self.blocks:
            events += self._opened({"type": "text", "text": ""})
            if self._space:
                events.append(self._delta("text_delta", text=self._space))
                self._texts.append(self._space)
        events += self._closed()
        sequence = stopped_by if isinstance(stopped_by, str) else None
        said = self._stop_reason(reason, sequence)
        delta = {"stop_reason": said, "stop_sequence": sequence}
        events.append({"type": "message_delta", "delta": delta, "usage": usage_body(usage)})
        events.append({"type": "message_stop"})
        return events, self._message(usage, said, sequence)

    def _stop_reason(self, reason: FinishReason | None, sequence: str | None) -> str:
        if reason is FinishReason.LENGTH:
            return "max_tokens"
        if sequence is not None:
            return "stop_sequence"
        return "tool_use" if self._calls else "end_turn"

    def _message(self, usage: Usage, stop_reason: str | None, sequence: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self.name}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [
                block
                for place, block in enumerate(self.blocks)
                if block["type"] != "tool_use" or place in self._calls
            ],
            "stop_reason": stop_reason,
            "stop_sequence": sequence,
            "usage": usage_body(usage),
        }

    def _words(self, text: str) -> Iterable[Event]:
        events: list[Event] = []
        if self._open != "text":
            self._space += text
            if not self._space.strip():
                return events
            text, self._space = self._space, ""
            events = self._opened({"type": "text", "text": ""})
        events.append(self._delta("text_delta", text=text))
        self._texts.append(text)
        return events

    def _opened(self, block: dict[str, Any]) -> list[Event]:
        events = self._closed()
        if block["type"] != "text":
            self._space = ""
        self._open = block["type"]
        self.blocks.append(block)
        start = {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}
        return [*events, start]

    def _delta(self, kind: str, **said: str) -> Event:
        return {
            "type": "content_block_delta",
            "index": len(self.blocks) - 1,
            "delta": {"type": kind, **said},
        }

    def _closed(self) -> list[Event]:
        if not self._open:
            return []
        block, text = self.blocks[-1], "".join(self._texts)
        events: list[Event] = []
        match self._open:
            case "tool_use":
                block["input"] = json.loads(text or "{}") if len(self.blocks) - 1 in self._calls else {}
            case "thinking":
                block["thinking"] = text
                events.append(self._delta("signature_delta", signature=SIGNATURE))
            case _:
                block["text"] = text
        self._open, self._texts = "", []
        return [*events, {"type": "content_block_stop", "index": len(self.blocks) - 1}]
