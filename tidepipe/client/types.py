"""What the SDK takes and returns."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidepipe_common.dialects import Part, Reading, Spoken
from tidepipe_common.errors import TidePipeError
from tidepipe_common.types.prompt_reading import PromptLogprobs, PromptPosition, positions
from tidepipe_common.types.request import Answer, ChatTurn, Usage
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams

Conversation = Sequence[ChatTurn | Mapping[str, str]]
"""Turns, oldest first; a turn may also be a mapping with the keys role, content, name and tool_call_id."""

Prompt = str | Sequence[int] | Conversation
"""Text, token ids, or a conversation."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A prompt of `generate_batch` with its own sampling parameters or request id."""

    prompt: Prompt
    sampling: SamplingParams | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """New tokens and text of one answer, or what was read off its prompt.

    index: which of the n answers. text: whole characters only. finish_reason: set in the answer's last
    event, as are usage and stopped_by (the stop token id or stop string that ended it). parts: what the
    text consists of, as far as that is certain: words, and of chats thoughts and calls of tools. warning: in
    the last event, what looked like a call and was none. reading: how its text was read, if not as words.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    usage: Usage | None = None
    parts: tuple[Part, ...] = ()
    warning: str = ""
    reading: Reading | None = None
    prompt_logprobs: PromptLogprobs | None = None
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. arguments: a JSON object. id: the tool's answer names it (ChatTurn.tool_call_id)."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> dict[str, Any]:
        """Its arguments."""
        arguments: dict[str, Any] = json.loads(self.arguments)
        return arguments


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to a prompt; the properties are those of the first one.

    spoken: what each of them consists of. reading: how they were read, if not as words.
    """

    request_id: str
    answers: tuple[Answer, ...]
    usage: Usage
    spoken: tuple[Spoken, ...] = ()
    reading: Reading | None = None

    @property
    def text(self) -> str:
        """Text of the first answer, as the model wrote it."""
        return self.answers[0].text

    @property
    def content(self) -> str:
        """What the first answer says, without thoughts and calls of tools."""
        return self.spoken[0].words if self.spoken else self.text

    @property
    def reasoning(self) -> str:
        """What the model thought before its first answer."""
        return self.spoken[0].thought if self.spoken else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tools that the first answer calls."""
        return self.calls_of(0)

    @property
    def warning(self) -> str:
        """What looked like a call in the first answer and was none; its text is in `content`."""
        return self.spoken[0].warning if self.spoken else ""

    @property
    def message(self) -> ChatTurn:
        """The first answer as the next turn of its conversation."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.parsed()},
            }
            for call in self.tool_calls
        ]
        written = json.dumps(calls, ensure_ascii=False) if calls else ""
        return ChatTurn("assistant", self.content, tool_calls=written, reasoning=self.reasoning)

    def calls_of(self, index: int) -> tuple[ToolCall, ...]:
        """Tools that one of the answers calls."""
        if self.reading is None or not self.spoken:
            return ()
        reading, key = self.reading, f"{self.request_id}/{index}"
        return tuple(
            ToolCall(reading.call_id(f"{key}/{call.index}", call.name, call.index), call.name, call.arguments)
            for call in self.spoken[index].calls
        )

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Output tokens of the first answer."""
        return self.answers[0].token_ids

    @property
    def prompt_logprobs(self) -> list[PromptPosition]:
        """Of each token of the prompt but the first, if asked for."""
        read = self.answers[0].prompt_logprobs
        return [] if read is None else positions(read)

    @property
    def vector(self) -> list[float]:
        """Of the prompt, if asked for (`pooling`)."""
        return array("f", self.answers[0].vector).tolist()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first answer ended."""
        return self.answers[0].finish_reason


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Outcome of one prompt of a batch: either `completion` or `error` is set.

    index: the prompt's position in the iterable, from 0.
    """

    index: int
    completion: Completion | None
    error: TidePipeError | None

    def unwrap(self) -> Completion:
        """The completion; raises the error if there is none."""
        if self.completion is None:
            raise self.error or TidePipeError("neither answer nor error")
        return self.completion


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model, by one of its names; sizes in tokens.

    alias_of: its first name, if this is another. ttft_ms, tpot_ms: targets of requests that bring none.
    adapter_of: the model of which this is an adapter (LoRA), by its first name; empty: it is a model itself.
    """

    name: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str
    alias_of: str = ""
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    adapter_of: str = ""
