"""Pages of lines, bounded in bytes: one line may take 8 MiB, and its answer more."""

from __future__ import annotations

from collections.abc import Iterable

PAGE_BYTES = 16 * 1024 * 1024


def page(rows: Iterable[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], bool]:
    """(number, content) of the first rows, at least one if any are there; True if PAGE_BYTES ended it."""
    taken: list[tuple[int, bytes]] = []
    size = 0
    for number, content in rows:
        taken.append((number, content))
        size += len(content)
        if size >= PAGE_BYTES:
            return taken, True
    return taken, False
