"""Lists in pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import InvalidRequestError

MAX_DIGITS = 9


def page_limit(query: Mapping[str, str], *, most: int, default: int) -> int:
    """Entries wanted at most. InvalidRequestError if that is no number in [1, most]."""
    text = query.get("limit", str(default))
    # Python reads no integers of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and 1 <= int(text) <= most):
        raise InvalidRequestError(f"limit must be a number from 1 to {most}, got {text[:40]!r}", "limit")
    return int(text)


def page_body(entries: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page; the entries have one more than `limit` if there is a next one."""
    page = entries[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(entries) > limit,
    }
