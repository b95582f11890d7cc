"""Puts the pieces of answers together."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidepipe_common.types.request import Answer
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs


@dataclass(slots=True)
class _Parts:
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: int | str | None = None
    error: str = ""


class AnswerCollector:
    """Takes pieces in their order, gives whole answers."""

    def __init__(self) -> None:
        self._parts: dict[int, _Parts] = {}

    def add(self, piece: Answer) -> None:
        """Take the next piece of an answer."""
        parts = self._parts.setdefault(piece.index, _Parts())
        parts.token_ids += piece.token_ids
        parts.text.append(piece.text)
        parts.logprobs += piece.logprobs
        if piece.finish_reason is not None:
            parts.finish_reason = piece.finish_reason
            parts.stopped_by = piece.stopped_by
            parts.error = piece.error

    def answers(self) -> list[Answer]:
        """The answers by index."""
        return [
            Answer(
                index=index,
                token_ids=tuple(parts.token_ids),
                text="".join(parts.text),
                logprobs=tuple(parts.logprobs),
                finish_reason=parts.finish_reason,
                stopped_by=parts.stopped_by,
                error=parts.error,
            )
            for index, parts in sorted(self._parts.items())
        ]
