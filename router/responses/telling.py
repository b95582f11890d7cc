"""The telling of an answer's pieces as events, beside the event loop if they are large."""

from __future__ import annotations

from functools import partial

from tidepipe_common.aside import beside
from tidepipe_common.openai.responses import answer_bytes
from tidepipe_common.responses.telling import Telling
from tidepipe_common.responses.writer import Event
from tidepipe_common.types.request import Answer, GenerationRequest


async def told(telling: Telling, wanted: GenerationRequest, piece: Answer) -> list[Event]:
    """The events of a piece."""
    return await beside(answer_bytes(wanted, len(piece.token_ids)), partial(_told, telling, piece))


def _told(telling: Telling, piece: Answer) -> list[Event]:
    return list(telling.piece(piece))
