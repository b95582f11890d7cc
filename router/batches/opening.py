"""Opens the store and makes the jobs, if the router was given a folder for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from router.background import background
from router.batches import files
from router.batches.answering import Answer
from router.batches.database import Database
from router.batches.jobs import BatchJobs
from router.batches.limits import FileLimits
from tidepipe_common.errors import StorageError, UnavailableError
from tidepipe_common.security.key_access import KeyAccess

SWEEP_S = 10.0

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def open_jobs(
    folder: str,
    answer: Answer,
    *,
    concurrency: int,
    limits: FileLimits,
    wait: bool = False,
    keys: KeyAccess | None = None,
) -> AsyncIterator[BatchJobs | None]:
    """None without a folder. ConfigError if it cannot be used. wait: until another router has given it up."""
    if not folder:
        yield None
        return
    with contextlib.closing(Database(Path(folder), limits=limits, wait=wait)) as database:
        async with background() as start:
            start(sweep(database))
            yield BatchJobs(database, answer, time.time, concurrency=concurrency, keys=keys)


async def sweep(database: Database) -> None:
    """Remove files whose time is over, until cancelled, or another router has them."""
    while True:
        try:
            now = int(time.time())
            if await database.run(files.any_expired, now):
                log.info("files expired", count=await database.free(files.drop_expired, now))
        except StorageError as error:
            log.error("expired files stay for now", reason=str(error))
        except UnavailableError:
            return
        await asyncio.sleep(SWEEP_S)
