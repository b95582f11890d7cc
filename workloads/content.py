"""What prompts consist of, as far as it matters who has computed it before: parts that are equal where their
ids are."""

from __future__ import annotations

from collections.abc import Iterable

Content = tuple[tuple[int, int], ...]
"""A prompt by parts: the id of each, and how many tokens it has. In virtual time a part's tokens all are its
id, so that equal parts in equal places are equal KV blocks; a load generator draws a text for each."""

ANSWER = 1
"""The part, and the token, that simulated answers consist of; a next turn's prompt has it where the answer
before stands."""
FIRST_PART = 2
OWN_PARTS = 1 << 31
"""From here on: prompts without content, one part each, that nobody else has."""


def content_tokens(content: Content) -> int:
    """How many tokens it has."""
    return sum(tokens for _, tokens in content)


def token_ids(content: Content) -> tuple[int, ...]:
    """As a simulated model reads it."""
    ids: tuple[int, ...] = ()
    for part, tokens in content:
        ids += (part,) * tokens
    return ids


def joined(parts: Iterable[tuple[int, int]]) -> Content:
    """Without parts that have no token."""
    return tuple((part, tokens) for part, tokens in parts if tokens > 0)
