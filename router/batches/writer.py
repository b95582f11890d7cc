"""The writer of batches to the disk: what comes while a transaction runs goes into the next one together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from router.batches import deaths, lines
from router.batches.database import Database
from router.batches.lines import AnsweredLine
from tidepipe_common.errors import StorageBrokenError, StorageError

STORAGE_RETRY_S, MAX_STORAGE_RETRY_S = 1.0, 15.0

P = ParamSpec("P")
R = TypeVar("R")
Work = Callable[[sqlite3.Connection], None]

log = structlog.get_logger()


async def durably(
    database: Database,
    work: Callable[Concatenate[sqlite3.Connection, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Result of `work`, tried again until the disk has room: what is computed must not be lost.

    Meanwhile `database.trouble` says what it waits for. Raises what no waiting mends: StorageBrokenError, or
    an error of the program.
    """
    retry_s = STORAGE_RETRY_S
    while True:
        try:
            result = await database.run(work, *args, **kwargs)
        except StorageBrokenError as error:
            database.trouble = str(error)
            raise
        except StorageError as error:
            if not database.trouble:
                log.error("batches wait for storage", reason=str(error))
            database.trouble = str(error)
            await asyncio.sleep(retry_s)
            retry_s = min(MAX_STORAGE_RETRY_S, 2 * retry_s)
        else:
            if database.trouble:
                log.info("batches go on: there is storage again")
            database.trouble = ""
            return result


class BatchWriter:
    """Its queue is as long as there are requests in flight: who writes waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Work, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    async def write(self, batch_id: str, line: AnsweredLine) -> None:
        """Return when the answer is on the disk. Raises what no waiting mends."""
        await self.do(partial(lines.record_answers, answers=[(batch_id, line)]))
        self.soon(partial(deaths.over, batch_id=batch_id, number=line.number))

    async def do(self, work: Work) -> None:
        """Return when it is done."""
        await asyncio.shield(self.soon(work))

    def soon(self, work: Work) -> asyncio.Future[None]:
        """It is done with what else there is, in the order in which it came."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        self._waiting.append((work, done))
        self._wake.set()
        return done

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, []
            try:
                await self._try(taken)
            except Exception:
                # One of them cannot be done, and must not take the others with it.
                for one in taken:
                    try:
                        await self._try([one])
                    except Exception as error:
                        one[1].set_exception(error)

    async def _try(self, taken: Sequence[tuple[Work, asyncio.Future[None]]]) -> None:
        await durably(self._database, _all, [work for work, _ in taken])
        for _, done in taken:
            if not done.done():
                done.set_result(None)


def _all(db: sqlite3.Connection, works: Sequence[Work]) -> None:
    for work in works:
        work(db)


def _seen(done: asyncio.Future[None]) -> None:
    """Not everybody waits to hear of an error; the log has it."""
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("something of a batch could not be written", reason=str(error))
