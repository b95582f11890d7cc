"""The batches of a router at work: taken in, answered, finished, gone on with after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

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
from router.batches.writer import BatchWriter, durably
from tidepipe_common.aside import beside
from tidepipe_common.errors import (
    InvalidRequestError,
    OverloadedError,
    StorageBrokenError,
    StorageError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.exception_groups import leaves
from tidepipe_common.openai.answers import BatchError
from tidepipe_common.openai.failures import error_code
from tidepipe_common.security.caller import ANYBODY, Caller
from tidepipe_common.security.key_access import ENDED, KeyAccess

MAX_UNFINISHED = 100
MAX_OF_ONE = MAX_UNFINISHED // 2
_PAGE = 64
READERS = 16
"""Lines that are read at a time: reading is the router's own work, and so few share the blame for a death."""
APART_S, MAX_APART_S = 10.0, 3600.0
"""For which nothing is begun beside a line that was being answered at several deaths; twice as long after
each more."""
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
        self._writer = BatchWriter(database)
        self._readers = asyncio.Semaphore(READERS)
        self._one_file = asyncio.Lock()
        self._cleared = asyncio.Event()
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
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._writer.run())
                await durably(self.database, deaths.count)
                for batch in await durably(self.database, lines.unfinished):
                    log.info("batch goes on", batch=batch.id, status=batch.status)
                    self._start(batch)
                await self._try_suspects()
                self._cleared.set()
                await asyncio.Event().wait()
        except* StorageBrokenError as errors:
            # Requests are answered without it; `trouble` says why no batch goes on.
            log.error("no batch goes on", reason=str(leaves(errors)[0]))
        finally:
            self._group = None
            for task in self._apart.values():
                task.cancel()
            with contextlib.suppress(StorageError, UnavailableError):
                await self.database.run(deaths.ended_in_order)

    async def _try_suspects(self) -> None:
        """Give up what kills routers, and begin one by one what may. Nothing else goes on meanwhile."""
        for batch_id, (times, place) in (await durably(self.database, deaths.deadly_intakes)).items():
            log.error("a batch's input file is given up: routers died of it", batch=batch_id, deaths=times)
            text = (
                f"the router ended {times} times while it read this file, behind line {place}; it is not "
                "tried again"
            )
            errors: list[BatchError] = [BatchError(code="file_given_up", message=text, line=None, param=None)]
            await durably(self.database, lines.forget_lines, batch_id)
            await self._advance(batch_id, FAILED, (VALIDATING,), errors=errors)
        for suspect in await durably(self.database, deaths.suspects):
            batch = await durably(self.database, lines.get, suspect.batch_id)
            if batch.id not in self._jobs or self._jobs[batch.id].stop.is_set():
                continue
            number = suspect.line.number
            if suspect.given_up:
                log.error("a batch's line is given up: routers died of it", batch=batch.id, line=number)
                await self._writer.write(batch.id, given_up_line(batch, suspect))
                continue
            read = asyncio.Event()
            task = asyncio.create_task(self._answered(batch, suspect.line, read))
            self._apart[batch.id, number] = task
            if suspect.in_answering:
                apart_s = min(MAX_APART_S, APART_S * 2 ** (suspect.deaths - deaths.SUSPECT_DEATHS))
                await asyncio.wait({task}, timeout=apart_s)
            else:
                reading = asyncio.create_task(read.wait())
                await asyncio.wait({task, reading}, return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()

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
        await self.database.run(self.database.limits.check_room, file.bytes, caller.owner)
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
        # It counts from now on: others are created while this one is stored.
        self._jobs[record.id] = _Job(caller.owner)
        try:
            record = await self.database.run(lines.create, record)
        finally:
            del self._jobs[record.id]
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
        except Exception as error:
            log.exception("batch stopped", batch=batch.id)
            all_of_it = leaves(error) if isinstance(error, ExceptionGroup) else [error]
            known = [one for one in all_of_it if isinstance(one, TidePipeError)]
            text = str(known[0]) if known else "internal error; see the router's log"
            code = error_code(known[0]) if known else "internal_error"
            try:
                reason = BatchError(code=code, message=text, line=None, param=None)
                await self._finish(batch, FAILED, [reason])
            except Exception as again:
                self.database.trouble = f"the batch {batch.id} stands still: {again}"
                log.error("not even that can be stored; the next start tries again", reason=str(again))
        finally:
            del self._jobs[batch.id]
            for of in [of for of in self._apart if of[0] == batch.id]:
                self._apart.pop(of).cancel()

    async def _process(self, batch: BatchRecord, job: _Job) -> None:
        if batch.status in (VALIDATING, IN_PROGRESS) and not job.abandoned:
            await self._until_stopped(batch, job)
        batch = await durably(self.database, lines.get, batch.id)
        if job.abandoned and batch.status in (VALIDATING, IN_PROGRESS):
            reason = BatchError(code="key_ended", message=job.abandoned, line=None, param=None)
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
        """Do all the work once nothing is tried apart, unless the batch is cancelled or expires."""
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
        await self._cleared.wait()
        async with asyncio.TaskGroup() as group:
            after, owner = 0, batch.owner or ""
            while page := await durably(self.database, lines.unanswered, batch.id, after, _PAGE):
                for line in page:
                    await self._places.acquire(owner)
                    task = group.create_task(self._one(batch, line))
                    # Not within the task: one that is cancelled at once never begins.
                    task.add_done_callback(lambda _: self._places.release(owner))
                after = page[-1].number
        await self._advance(batch.id, FINALIZING, (IN_PROGRESS,))

    async def _take_in(self, batch: BatchRecord) -> BatchRecord:
        intake = BatchIntake(self.database, batch)
        await self._cleared.wait()
        async with self._one_file:
            await intake.run()
            await durably(self.database, deaths.over, batch.id, deaths.INTAKE)
        if not intake.errors:
            return await self._advance(batch.id, IN_PROGRESS, (VALIDATING,))
        await durably(self.database, lines.forget_lines, batch.id)
        return await self._advance(batch.id, FAILED, (VALIDATING,), errors=intake.errors)

    async def _one(self, batch: BatchRecord, line: lines.Line) -> None:
        begun = self._apart.pop((batch.id, line.number), None)
        await (begun if begun is not None else self._answered(batch, line))

    async def _answered(
        self, batch: BatchRecord, line: lines.Line, read: asyncio.Event | None = None
    ) -> None:
        """read: set once it has been read."""
        pause = asyncio.sleep if read is not None else partial(self._places.aside, batch.owner or "")
        reading = partial(self._reading, batch.id, line.number, read)
        await self._writer.write(batch.id, await answer_line(self._answer, batch, line, reading, pause))

    @contextlib.asynccontextmanager
    async def _reading(self, batch_id: str, number: int, read: asyncio.Event | None) -> AsyncIterator[None]:
        stage = deaths.AT_REST
        async with self._readers:
            await self._writer.do(partial(deaths.begin, batch_id=batch_id, numbers=[number]))
            try:
                yield
                stage = deaths.ANSWERING
            finally:
                entered = self._writer.soon(
                    partial(deaths.enter, batch_id=batch_id, number=number, stage=stage)
                )
                if read is not None:
                    await asyncio.wait({entered})
                    read.set()

    async def _expire(self, batch: BatchRecord) -> None:
        """Each request that is left gets a line that says so."""
        while page := await durably(self.database, lines.unanswered, batch.id, 0, _PAGE):
            size = sum(len(line.request) for line in page)
            expired = await beside(size, partial(_expired, batch, page))
            await durably(self.database, lines.record_answers, expired)

    async def _finish(self, batch: BatchRecord, outcome: str, errors: Sequence[BatchError] = ()) -> None:
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
        errors: Sequence[BatchError] = (),
        results: Sequence[FileRecord] = (),
    ) -> BatchRecord:
        now = int(self._unix_time())
        return await durably(self.database, lines.advance, batch_id, status, now, only_from, errors, results)


def _abandon(job: _Job) -> None:
    job.abandoned = ENDED
    job.stop.set()


def _expired(batch: BatchRecord, page: Sequence[lines.Line]) -> list[tuple[str, lines.AnsweredLine]]:
    return [(batch.id, expired_line(batch, line)) for line in page]
