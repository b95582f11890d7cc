"""What the SDK takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidepipe_common.errors import TidePipeError
from tidepipe_common.types.request import Answer, ChatTurn, Usage
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams

Conversation = Sequence[ChatTurn | Mapping[str, str]]
"""Turns, oldest first; a turn may also be a mapping with the keys role, content and name."""

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
    """New tokens and text of one answer.

    index: which of the n answers. text: whole characters only. finish_reason: set in the answer's last
    event, as are usage and stopped_by (the stop token id or stop string that ended it).
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """All answers to a prompt; the properties are those of the first one."""

    request_id: str
    answers: tuple[Answer, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.answers[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Output tokens of the first answer."""
        return self.answers[0].token_ids

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
    """

    name: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str
    alias_of: str = ""
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
