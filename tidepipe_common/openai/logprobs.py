"""Log-probabilities in the two forms that OpenAI's APIs have for them."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tidepipe_common.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobsBody,
    TokenEntry,
)
from tidepipe_common.types.prompt_reading import PromptLogprobs, positions
from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

TokenBytes: TypeAlias = Callable[[int], bytes]
"""The bytes that a token id stands for; half a character is possible."""

LOWEST_LOGPROB = -9999.0
"""Stands for impossible tokens: JSON has neither -Infinity nor NaN. OpenAI sends the same."""


def chat_logprobs(positions: Sequence[PositionLogprobs], token_bytes: TokenBytes) -> ChatLogprobs:
    """The `logprobs` object of a chat choice."""

    def entry(token: TokenLogprob) -> TokenEntry:
        raw = token_bytes(token.token_id)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": _finite(token.logprob), "bytes": list(raw)}

    return {
        "content": [{**entry(p.chosen), "top_logprobs": [entry(top) for top in p.top]} for p in positions],
        "refusal": None,
    }


class TextOffsets:
    """Where each token of one answer begins in its text, in characters.

    They follow from the tokens alone: text comes later than its tokens where it is held back, be it half a
    character, or what could become a stop string.
    """

    def __init__(self, text_bytes: TokenBytes, begin: int = 0) -> None:
        """text_bytes: what a token adds to the text; nothing for those that are hidden. begin: what stands
        before it."""
        self._text_bytes = text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = begin

    @property
    def end(self) -> int:
        """Where the last token that was taken ends."""
        return self._characters

    def take(self, token_id: int) -> int:
        """The next token's offset."""
        offset = self._characters
        self._characters += len(self._decoder.decode(self._text_bytes(token_id)))
        return offset


def completion_logprobs(
    positions: Sequence[PositionLogprobs], token_bytes: TokenBytes, offsets: TextOffsets
) -> CompletionLogprobs:
    """The `logprobs` object of a completion choice. offsets: have taken the answer's tokens so far."""
    return {
        "tokens": [spelled(token_bytes(p.chosen.token_id)) for p in positions],
        "token_logprobs": [_finite(p.chosen.logprob) for p in positions],
        # The chosen token is always there, so there may be one more than asked for.
        "top_logprobs": [_by_token(p, token_bytes) for p in positions],
        "text_offset": [offsets.take(p.chosen.token_id) for p in positions],
    }


def echoed_logprobs(
    prompt: Sequence[int],
    text: str,
    read: PromptLogprobs | None,
    top: int,
    token_bytes: TokenBytes,
    special: Callable[[int], bool],
) -> CompletionLogprobs:
    """The `logprobs` object of a prompt that stands before its answer. read: None if it has one token.

    text: as it is shown; what the tokenizer puts around it, such as a mark of its beginning, is not in it.
    """
    known = positions(read) if read is not None else []
    offsets, taken = [], TextOffsets(token_bytes)
    hidden = 0
    for token in prompt:
        offset = taken.take(token) - hidden
        offsets.append(min(offset, len(text)))
        mark = token_bytes(token).decode("utf-8", "replace")
        if special(token) and not text.startswith(mark, offset):
            hidden += len(mark)
    first: list[None] = [None]
    cut = [PositionLogprobs(one.logprobs.chosen, one.logprobs.top[:top]) for one in known]
    return {
        "tokens": [spelled(token_bytes(token)) for token in prompt],
        "token_logprobs": [*first, *[_finite(one.chosen.logprob) for one in cut]],
        "top_logprobs": [*first, *[_by_token(one, token_bytes) for one in cut]],
        "text_offset": offsets,
    }


def joined(before: CompletionLogprobs, after: CompletionLogprobs | None) -> CompletionLogprobs:
    """Those of a prompt and of its answer."""
    if after is None:
        return before
    return {
        "tokens": before["tokens"] + after["tokens"],
        "token_logprobs": before["token_logprobs"] + after["token_logprobs"],
        "top_logprobs": before["top_logprobs"] + after["top_logprobs"],
        "text_offset": before["text_offset"] + after["text_offset"],
    }


def prompt_logprobs_body(
    read: PromptLogprobs | None, top: int, token_bytes: TokenBytes
) -> PromptLogprobsBody:
    """vLLM's form of them: by position, then by token id. read: None if the prompt has one token."""

    def entry(token: TokenLogprob, rank: int) -> PromptLogprob:
        text = token_bytes(token.token_id).decode("utf-8", "replace")
        return {"logprob": _finite(token.logprob), "rank": rank, "decoded_token": text}

    body: PromptLogprobsBody = [None]
    for one in positions(read) if read is not None else ():
        own = one.logprobs.chosen
        entries = {str(own.token_id): entry(own, one.rank)}
        for rank, token in enumerate(one.logprobs.top[:top], start=1):
            entries.setdefault(str(token.token_id), entry(token, rank))
        body.append(entries)
    return body


def _by_token(position: PositionLogprobs, token_bytes: TokenBytes) -> dict[str, float]:
    return {
        spelled(token_bytes(token.token_id)): _finite(token.logprob)
        for token in (*position.top, position.chosen)
    }


def spelled(raw: bytes) -> str:
    """A token as text; half a character as its bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # OpenAI's spelling; replacement characters would make different tokens look the same.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if LOWEST_LOGPROB < logprob < math.inf else LOWEST_LOGPROB
