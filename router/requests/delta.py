"""What listeners get of an answer, and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.types.request import Answer, Usage


@dataclass(frozen=True, slots=True)
class Position:
    """Where a client stands in one answer: tokens and characters that it has."""

    index: int
    tokens: int = 0
    characters: int = 0


@dataclass(slots=True)
class Cursor:
    """A listener's place in one answer; moves on with each read. done: it has the end as well."""

    tokens: int = 0
    characters: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one answer, and what was before it. usage: of this answer, with its last piece."""

    piece: Answer
    token_offset: int
    character_offset: int
    usage: Usage | None = None
