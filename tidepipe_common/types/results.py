"""News of sequences: their new output and their ends (domain types, no protobuf)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.prompt_reading import PromptLogprobs
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs


class End(Protocol):
    """How a sequence ended. stop_token: the token that ended it, if one did; not part of its output.

    fault: with an error, the field of the request that is at fault, or empty; None: it is not the request's.
    """

    @property
    def sequence_id(self) -> str: ...
    @property
    def reason(self) -> FinishReason: ...
    @property
    def stop_token(self) -> int | None: ...
    @property
    def error(self) -> str: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def fault(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class SequenceEnd:
    """An End that is nothing else: one that came from another process.

    kv: set if it is to go on elsewhere, for which its instance was asked to hand it over.
    """

    sequence_id: str
    reason: FinishReason
    stop_token: int | None = None
    error: str = ""
    preemptions: int = 0
    fault: str | None = None
    kv: KvHandle | None = None


@dataclass(frozen=True, slots=True)
class SequenceUpdate:
    """New output of a sequence, and its end if it has ended. token_offset: its output tokens before these.

    cached_tokens: of its prompt, not computed for it.
    prompt_logprobs: the next ones of its prompt; all of them are told before its first token.
    vector: with its end. kv: where the blocks of its prompt can be fetched while that is computed, if it was
        to be announced; with its end see SequenceEnd.
    """

    sequence_id: str
    token_offset: int
    token_ids: Sequence[int]
    logprobs: Sequence[PositionLogprobs] = ()
    end: End | None = None
    cached_tokens: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    vector: bytes = b""
    kv: KvHandle | None = None
