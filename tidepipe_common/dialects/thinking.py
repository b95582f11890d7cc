"""Where the thoughts of a dialect begin and end, in tokens, so that they can be bounded."""

from __future__ import annotations

from collections.abc import Callable

from tidepipe_common.dialects.dialect import Dialect
from tidepipe_common.dialects.harmony import CALL, CHANNEL, END, MESSAGE, RETURN, START
from tidepipe_common.types.thought import ThoughtMarks


def thought_marks(
    dialect: Dialect,
    tokens: Callable[[str], tuple[int, ...]],
    *,
    open: bool,  # noqa: A002
) -> ThoughtMarks | None:
    """None if it has no thoughts, or they end with text that may be part of other tokens.

    tokens: of a mark; none if it does not begin with a token of its own.
    """
    if dialect.harmony:
        begins = tokens(f"{CHANNEL}analysis{MESSAGE}")
        ends = tuple(ids[0] for mark in (END, START, CALL, RETURN) if (ids := tokens(mark)))
        forced = tokens(f"{END}{START}assistant{CHANNEL}")
        return ThoughtMarks(begins, ends, forced) if begins and forced and ends else None
    if dialect.thoughts is None:
        return None
    begins = tokens(dialect.thoughts.begins[0])
    closing = [ids[0] for mark in dialect.thoughts.ends if len(ids := tokens(mark)) == 1]
    if not closing or not begins:
        return None
    opens = () if dialect.grammar is None else dialect.grammar.opens
    calls = [ids[0] for mark in opens if len(ids := tokens(mark)) == 1]
    return ThoughtMarks(begins, tuple(dict.fromkeys([*closing, *calls])), tuple(closing[:1]), open)
