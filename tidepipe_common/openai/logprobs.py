"""Log-probabilities in the two forms that OpenAI's APIs have for them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tidepipe_common.openai.answers import ChatLogprobs, CompletionLogprobs, TokenEntry
from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

TokenBytes: TypeAlias = Callable[[int], bytes]
"""The bytes that a token id stands for; half a character is possible."""

LOWEST_LOGPROB = -9999.0
"""Stands for impossible tokens: JSON has no -Infinity. OpenAI sends the same."""


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

    def __init__(self, text_bytes: TokenBytes) -> None:
        """text_bytes: what a token adds to the text; nothing for those that are hidden."""
        self._text_bytes = text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

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
        "tokens": [_spelled(token_bytes(p.chosen.token_id)) for p in positions],
        "token_logprobs": [_finite(p.chosen.logprob) for p in positions],
        # The chosen token is always there, so there may be one more than asked for.
        "top_logprobs": [
            {_spelled(token_bytes(t.token_id)): _finite(t.logprob) for t in (*p.top, p.chosen)}
            for p in positions
        ],
        "text_offset": [offsets.take(p.chosen.token_id) for p in positions],
    }


def _spelled(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # OpenAI's spelling; replacement characters would make different tokens look the same.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
