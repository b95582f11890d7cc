"""Opens the store and makes the jobs, if the router was given a folder for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from router.batches.answering import Answer
from router.batches.database import Database
from router.batches.jobs import BatchJobs


@contextlib.asynccontextmanager
async def open_jobs(folder: str, answer: Answer, *, concurrency: int) -> AsyncIterator[BatchJobs | None]:
    """None without a folder. ConfigError if it cannot be used."""
    if not folder:
        yield None
        return
    with contextlib.closing(Database(Path(folder))) as database:
        yield BatchJobs(database, answer, time.time, concurrency=concurrency)
