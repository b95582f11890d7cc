"""Writes answers: what comes while a transaction runs goes into the next one together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from common.errors import StorageError
from router.batches import lines
from router.batches.database import Database
from router.batches.lines import AnsweredLine

STORAGE_RETRY_S = 2.0

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()


async def durably(
    database: Database,
    work: Callable[Concatenate[sqlite3.Connection, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Result of `work`, tried again until the disk has room: what is computed must not be lost."""
    while True:
        try:
            return await database.run(work, *args, **kwargs)
        except StorageError as error:
            log.error("batches wait for storage", reason=str(error), retry_s=STORAGE_RETRY_S)
            await asyncio.sleep(STORAGE_RETRY_S)


class AnswerWriter:
    """Its queue is as long as there are requests in flight: who writes waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[str, AnsweredLine, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def write(self, batch_id: str, line: AnsweredLine) -> None:
        """Return when the answer is on the disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((batch_id, line, written))
        self._wake.set()
        await written

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, []
            answers = [(batch_id, line) for batch_id, line, _ in taken]
            await durably(self._database, lines.record_answers, answers)
            for *_, written in taken:
                if not written.done():
                    written.set_result(None)
