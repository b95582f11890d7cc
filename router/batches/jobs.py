"""Runs batches: takes their input in, answers their lines, finishes them, and goes on after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from common.errors import InvalidRequestError, OverloadedError, StorageError
from common.security.caller import ANYBODY, Caller
from common.security.key_access import ENDED, KeyAccess
from router.batches import deaths, files, lines
from router.batches.answering import Answer, answer_line, expired_line, given_up_line
from router.batches.database import Database
from router.batches.intake import BatchIntake
from router.batches.places import Places
from router.batches.records import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FAILED,
    FINALIZING,
    IN_PROGRESS,
    UNFINISHED,
    VALIDATING,
    BatchRecord,
    FileRecord,
)
from router.batches.writer import AnswerWriter, durably

MAX_UNFINISHED = 100
MAX_OF_ONE = MAX_UNFINISHED // 2
_PAGE = 64
APART_S = 10.0
"""For which nothing is begun beside a line that was under way when routers died."""
_CANCELLABLE = (VALIDATING, IN_PROGRESS)

log = structlog.get_logger()


@dataclass(slots=True)
class _Job:
    """stop: work on it no more. abandoned: why, unless its client cancelled it."""

    owner: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    abandoned: str = ""


class BatchJobs:
    """All batches of one router. `concurrency`: requests of all batches in flight together."""

    def __init__(
        self,
        database: Database,
        answer: Answer,
        unix_time: Callable[[], float],
        *,
        concurrency: int,
        keys: KeyAccess | None = None,
    ) -> None:
        self.database = database
        self._answer = answer
        self._unix_time = unix_time
        self._keys = keys
        self._places = Places(concurrency, keys.background_places) if keys else Places(concurrency)
        self._writer = AnswerWriter(database)
        self._jobs: dict[str, _Job] = {}
        self._apart: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Go on with what an earlier router left, and serve until cancelled."""
        await self.database.open_when_free()
        try:
            await self.database.run(files.drop_incomplete)
        except StorageError as error:  # a full disk is no reason not to start
            log.error("broken uploads stay until the next start", reason=str(error))
        await durably(self.database, deaths.count)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._writer.run())
                await self._try_suspects(group)
                for batch in await self.database.run(lines.unfinished):
                    log.info("batch goes on", batch=batch.id, status=batch.status)
                    self._start(batch)
                await asyncio.Event().wait()
        finally:
            with contextlib.suppress(StorageError):
                await self.database.run(deaths.ended_in_order)

    async def _try_suspects(self, group: asyncio.TaskGroup) -> None:
        """Give up what kills routers, and begin one by one what may."""
        for batch_id, times in (await durably(self.database, deaths.deadly_intakes)).items():
            log.error("a batch's input file is given up: routers died of it", batch=batch_id, deaths=times)
            text = f"the router ended {times} times while it read this file; it is not tried again"
            errors = [{"code": "file_given_up", "message": text, "line": None, "param": None}]
            await durably(self.database, lines.forget_lines, batch_id)
            await self._advance(batch_id, FAILED, (VALIDATING,), errors=errors)
        for suspect in await durably(self.database, deaths.suspects):
            batch = await self.database.run(lines.get, suspect.batch_id)
            if self._keys is not None and self._keys.ended(batch.owner or ""):
                continue
            number = suspect.line.number
            if suspect.given_up:
                log.error("a batch's line is given up: routers died of it", batch=batch.id, line=number)
                await self._writer.write(batch.id, given_up_line(batch, suspect))
                continue
            await durably(self.database, deaths.begin, batch.id, [number])
            task = self._apart[batch.id, number] = group.create_task(self._answered(batch, suspect.line))
            await asyncio.wait({task}, timeout=APART_S)
            await durably(self.database, deaths.survived, batch.id, number)

    async def create(
        self,
        endpoint: str,
        input_file_id: str,
        hours: int,
        metadata: dict[str, str] | None,
        caller: Caller = ANYBODY,
    ) -> BatchRecord:
        """A new batch. NotFoundError, InvalidRequestError (file), OverloadedError, StorageError."""
        file = await self.database.run(files.get, input_file_id, caller)
        if file.purpose != "batch":
            raise InvalidRequestError(
                f"the file {file.id} was uploaded for {file.purpose}, not for batch", "input_file_id"
            )
        await self.database.run(self.database.limits.check_room, file.bytes)
        mine = sum(job.owner == caller.owner for job in self._jobs.values())
        if caller.owner and mine >= MAX_OF_ONE:
            raise OverloadedError(f"{MAX_OF_ONE} of your batches are unfinished; wait for one to end", 60_000)
        if len(self._jobs) >= MAX_UNFINISHED:
            raise OverloadedError(
                f"{MAX_UNFINISHED} batches are unfinished already; wait for one to end", 60_000
            )
        now = int(self._unix_time())
        record = BatchRecord(
            id=f"batch_{secrets.token_hex(12)}",
            number=0,
            endpoint=endpoint,
            input_file_id=input_file_id,
            window=f"{hours}h",
            created=now,
            expires=now + hours * 3600,
            metadata=metadata,
            owner=caller.owner,
        )
        record = await self.database.run(lines.create, record)
        self._start(record)
        return record

    async def cancel(self, batch_id: str, caller: Caller = ANYBODY) -> BatchRecord:
        """Answer no more of its requests. InvalidRequestError if it has ended, or is about to."""
        await self.database.run(lines.get, batch_id, caller)
        record = await self._advance(batch_id, CANCELLING, _CANCELLABLE)
        if record.status != CANCELLING:
            raise InvalidRequestError(f"the batch {batch_id} is {record.status}; it cannot be cancelled")
        job = self._jobs.get(batch_id)
        if job is not None:
            job.stop.set()
        return record

    def end_revoked(self) -> None:
        """Work no more for keys that have ended: not now, and not after a restart."""
        for job in self._jobs.values():
            if not job.abandoned and self._keys is not None and self._keys.ended(job.owner):
                _abandon(job)

    def _start(self, batch: BatchRecord) -> None:
        # One that was created while suspects were tried is among the unfinished as well.
        if self._group is not None and batch.id not in self._jobs:
            self._jobs[batch.id] = job = _Job(batch.owner or "")
            if self._keys is not None and self._keys.ended(job.owner):
                _abandon(job)
            self._group.create_task(self._guarded(batch, job))

    async def _guarded(self, batch: BatchRecord, job: _Job) -> None:
        try:
            await self._process(batch, job)
        except Exception:
            log.exception("batch stopped; the next start of the router tries it again", batch=batch.id)
        finally:
            del self._jobs[batch.id]

    async def _process(self, batch: BatchRecord, job: _Job) -> None:
        if batch.status in (VALIDATING, IN_PROGRESS) and not job.abandoned:
            await self._until_stopped(batch, job)
        batch = await self.database.run(lines.get, batch.id)
        if job.abandoned and batch.status in (VALIDATING, IN_PROGRESS):
            reason = {"code": "key_ended", "message": job.abandoned, "line": None, "param": None}
            await self._finish(batch, FAILED, [reason])
            log.info("batch ended", batch=batch.id, reason=job.abandoned)
            return
        match batch.status:
            case "cancelling":
                await self._finish(batch, CANCELLED)
            case "finalizing":
                await self._finish(batch, COMPLETED)
            case "in_progress" | "validating":
                await self._expire(batch)
                await self._finish(batch, EXPIRED)
        log.info("batch ended", batch=batch.id)

    async def _until_stopped(self, batch: BatchRecord, job: _Job) -> None:
        """Do all the work, unless the batch is cancelled or expires."""
        work = asyncio.create_task(self._work(batch), name=batch.id)
        stop = asyncio.create_task(job.stop.wait())
        try:
            left = max(0.0, batch.expires - self._unix_time())
            await asyncio.wait({work, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.wait({work, stop})

    async def _work(self, batch: BatchRecord) -> None:
        if batch.status == VALIDATING:
            batch = await self._take_in(batch)
        if batch.status != IN_PROGRESS:
            return
        async with asyncio.TaskGroup() as group:
            after, owner = 0, batch.owner or ""
            while page := await durably(self.database, lines.unanswered, batch.id, after, _PAGE):
                await durably(self.database, deaths.begin, batch.id, [line.number for line in page])
                for line in page:
                    await self._places.acquire(owner)
                    task = group.create_task(self._one(batch, line))
                    # Not within the task: one that is cancelled at once never begins.
                    task.add_done_callback(lambda _: self._places.release(owner))
                after = page[-1].number
        await self._advance(batch.id, FINALIZING, (IN_PROGRESS,))

    async def _take_in(self, batch: BatchRecord) -> BatchRecord:
        intake = BatchIntake(self.database, batch)
        await durably(self.database, deaths.begin, batch.id, [deaths.INTAKE])
        await intake.run()
        await durably(self.database, deaths.survived, batch.id, deaths.INTAKE)
        if not intake.errors:
            return await self._advance(batch.id, IN_PROGRESS, (VALIDATING,))
        await durably(self.database, lines.forget_lines, batch.id)
        return await self._advance(batch.id, FAILED, (VALIDATING,), errors=intake.errors)

    async def _one(self, batch: BatchRecord, line: lines.Line) -> None:
        begun = self._apart.pop((batch.id, line.number), None)
        await (begun if begun is not None else self._answered(batch, line))

    async def _answered(self, batch: BatchRecord, line: lines.Line) -> None:
        pause = partial(self._places.aside, batch.owner or "")
        await self._writer.write(batch.id, await answer_line(self._answer, batch, line, pause))

    async def _expire(self, batch: BatchRecord) -> None:
        """Each request that is left gets a line that says so."""
        while page := await durably(self.database, lines.unanswered, batch.id, 0, _PAGE):
            expired = [(batch.id, expired_line(batch, line)) for line in page]
            await durably(self.database, lines.record_answers, expired)

    async def _finish(self, batch: BatchRecord, outcome: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        """The last state, and the files of the answers; what was cancelled has those that were ready."""
        now = int(self._unix_time())
        results = [
            FileRecord(
                id=f"file-{secrets.token_hex(12)}",
                created=now,
                bytes=0,
                filename=f"{batch.id}_{'error' if failed else 'output'}.jsonl",
                purpose="batch_output",
                batch_id=batch.id,
                failed=failed,
                expires=self.database.limits.expiry(now),
                owner=batch.owner,
            )
            for failed in (False, True)
        ]
        await self._advance(batch.id, outcome, UNFINISHED, results=results, errors=errors)

    async def _advance(
        self,
        batch_id: str,
        status: str,
        only_from: Sequence[str],
        *,
        errors: Sequence[dict[str, Any]] = (),
        results: Sequence[FileRecord] = (),
    ) -> BatchRecord:
        now = int(self._unix_time())
        return await durably(self.database, lines.advance, batch_id, status, now, only_from, errors, results)


def _abandon(job: _Job) -> None:
    job.abandoned = ENDED
    job.stop.set()
