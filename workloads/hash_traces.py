"""Traces that say which blocks of a prompt others have too, as hashes (Mooncake's and those like it)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tidepipe_common.errors import ConfigError
from workloads.content import FIRST_PART, OWN_PARTS, joined
from workloads.mixes import SimRequest

TOKENS_PER_HASH = (512, 16, 32, 64, 128, 256, 1024)
"""Mooncake's first; other traces have shorter blocks. What fits all lines of a file is taken."""
LONGEST = 1 << 24
"""Tokens of a prompt or an output; no model has such a context."""


def hash_trace(lines: Sequence[Any]) -> list[SimRequest]:
    """Lines of {"timestamp": ms, "input_length", "output_length", "hash_ids": [..]}, in their order.

    A hash stands for so many tokens of the prompt, the last one for what is left; equal hashes are equal
    tokens behind equal beginnings. Without hash_ids, or with none, a prompt is all its own.
    ConfigError names the first line that is none of this kind.
    """
    rows = [_row(line, number) for number, line in enumerate(lines, start=1)]
    size = _tokens_per_hash([(tokens, len(hashes)) for _, tokens, _, hashes in rows])
    parts: dict[int, int] = {}
    requests = []
    for index, (at, tokens, output, hashes) in enumerate(rows):
        content = [
            (parts.setdefault(one, FIRST_PART + len(parts)), min(size, tokens - size * place))
            for place, one in enumerate(hashes)
        ]
        # What lies behind the last hash is this request's own.
        rest = tokens - size * len(hashes)
        if hashes:
            content.append((OWN_PARTS + index, rest))
        requests.append(SimRequest(tokens, output, arrival_s=at / 1000, content=joined(content)))
    return requests


def _row(line: Any, number: int) -> tuple[float, int, int, list[int]]:
    if not isinstance(line, dict):
        raise ConfigError(f"request {number} of the trace is not a JSON object")
    at = line.get("timestamp")
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise ConfigError(f"request {number} of the trace: timestamp must be milliseconds, got {at!r:.40}")
    tokens = _count(line, "input_length", number)
    output = _count(line, "output_length", number)
    hashes = line.get("hash_ids", [])
    if not isinstance(hashes, list) or any(type(one) is not int for one in hashes):
        raise ConfigError(f"request {number} of the trace: hash_ids must be a list of whole numbers")
    return float(at), tokens, output, hashes


def _count(line: dict[str, Any], name: str, number: int) -> int:
    value = line.get(name)
    if type(value) is not int or not 0 <= value <= LONGEST:
        raise ConfigError(
            f"request {number} of the trace: {name} must be a whole number of tokens up to {LONGEST}, "
            f"got {value!r:.40}"
        )
    return value


def _tokens_per_hash(rows: Sequence[tuple[int, int]]) -> int:
    """rows: tokens and hashes of each prompt."""
    for size in TOKENS_PER_HASH:
        wrong = next(
            (
                number
                for number, (tokens, hashes) in enumerate(rows, start=1)
                if hashes and hashes not in (tokens // size, -(-tokens // size))
            ),
            None,
        )
        if wrong is None:
            return size
        if size == TOKENS_PER_HASH[0]:
            first_wrong = wrong
    tokens, hashes = rows[first_wrong - 1]
    raise ConfigError(
        f"request {first_wrong} of the trace: {hashes} hashes do not fit a prompt of {tokens} tokens: "
        f"one stands for {TOKENS_PER_HASH[0]} tokens, or for any of "
        f"{', '.join(map(str, sorted(TOKENS_PER_HASH)))} throughout the file"
    )
