"""Log-probabilities in the two forms that OpenAI's APIs have for them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from common.sampling import PositionLogprobs, TokenLogprob

TokenBytes: TypeAlias = Callable[[int], bytes]
"""The bytes that a token id stands for; half a character is possible."""

LOWEST_LOGPROB = -9999.0
"""Stands for impossible tokens: JSON has no -Infinity. OpenAI sends the same."""


def chat_logprobs(positions: Sequence[PositionLogprobs], token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""

    def entry(token: TokenLogprob) -> dict[str, Any]:
        raw = token_bytes(token.token_id)
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": _finite(token.logprob), "bytes": list(raw)}

    content = [entry(p.chosen) | {"top_logprobs": [entry(top) for top in p.top]} for p in positions]
    return {"content": content, "refusal": None}


def completion_logprobs(
    positions: Sequence[PositionLogprobs], token_bytes: TokenBytes, text_offset: int = 0
) -> dict[str, Any]:
    """The `logprobs` object of a completion choice.

    text_offset: characters of the answer before the first of the positions.
    """
    offsets = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for position in positions:
        offsets.append(text_offset)
        text_offset += len(decoder.decode(token_bytes(position.chosen.token_id)))
    return {
        "tokens": [_spelled(token_bytes(p.chosen.token_id)) for p in positions],
        "token_logprobs": [_finite(p.chosen.logprob) for p in positions],
        # The chosen token is always there, so there may be one more than asked for.
        "top_logprobs": [
            {_spelled(token_bytes(t.token_id)): _finite(t.logprob) for t in (*p.top, p.chosen)}
            for p in positions
        ],
        "text_offset": offsets,
    }


def _spelled(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # OpenAI's spelling; replacement characters would make different tokens look the same.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
