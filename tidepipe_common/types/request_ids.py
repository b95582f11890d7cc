"""Ids of requests that no client chose: the one place where they are made."""

from __future__ import annotations

import secrets


def draw_request_id(prefix: str = "") -> str:
    """An id that nobody can guess: who knows it may fetch, cancel, or get in the way of its request."""
    return prefix + secrets.token_hex(16)
