"""One SQLite database, used from one thread of its own."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from common.errors import ConfigError, StorageError
from common.sqlite_schema import migrate
from router.batches.ballast import Ballast
from router.batches.limits import FileLimits

_VERSION_1 = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, created INTEGER NOT NULL, bytes INTEGER NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, complete INTEGER NOT NULL,
    batch_id TEXT, failed INTEGER  -- of a batch's answers: which of them
);
CREATE TABLE chunks (
    file_id TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (file_id, number)
);
CREATE TABLE batches (
    id TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL, status TEXT NOT NULL, record TEXT NOT NULL
);
CREATE TABLE lines (
    batch_id TEXT NOT NULL, number INTEGER NOT NULL, custom_id BLOB NOT NULL,
    request BLOB,    -- until it is answered
    answer BLOB, failed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, number)
);
CREATE UNIQUE INDEX one_custom_id ON lines (batch_id, custom_id);
"""
_EXPIRIES = """
CREATE TABLE expiries (file_id TEXT PRIMARY KEY, expires INTEGER NOT NULL);  -- without one a file stays
"""
_FILES = ("batches.sqlite", "batches.sqlite-wal", "batches.sqlite-shm")
_PAGES_AT_A_TIME = 256
_MIGRATIONS = (_VERSION_1, _EXPIRIES)

P = ParamSpec("P")
R = TypeVar("R")


class Database:
    """Calls run in order, each in a transaction of its own: done as a whole, durably, or not at all."""

    def __init__(
        self, folder: Path, *, max_bytes: int | None = None, limits: FileLimits | None = None
    ) -> None:
        """Opens or creates the database in `folder`. max_bytes: it never grows beyond.
        limits: of files.

        ConfigError if the folder cannot be used, or another process uses it.
        """
        self.limits = limits or FileLimits()
        folder = folder.expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # autocommit: transactions are begun and ended here, in `_transaction`.
            self._connection = sqlite3.connect(
                folder / "batches.sqlite", isolation_level=None, check_same_thread=False
            )
            self._prepare(max_bytes)
            self._ballast = Ballast(folder / "ballast")
            for name in _FILES:
                if (folder / name).exists():
                    (folder / name).chmod(0o600)
        except BlockingIOError as error:
            raise ConfigError(f"another router uses the data folder {folder}; give each its own") from error
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot use the data folder {folder}: {error}") from error
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")

    def _prepare(self, max_bytes: int | None) -> None:
        run = self._connection.execute
        if run("PRAGMA page_count").fetchone() == (0,):
            run("PRAGMA auto_vacuum = INCREMENTAL")  # the file's end can be given back to the disk
        run("PRAGMA secure_delete = FAST")  # else each deleted byte is written once more
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what was acknowledged survives a loss of power as well
        if max_bytes is not None:
            (page,) = run("PRAGMA page_size").fetchone()
            run(f"PRAGMA max_page_count = {max(1, max_bytes // page)}")
        migrate(self._connection, _MIGRATIONS)

    async def run(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Result of `work(connection, ...)`. StorageError (disk full or broken): nothing has changed."""
        call = functools.partial(work, self._connection, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._transaction, call)

    async def free(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `run`, of work that deletes: it is done on a full disk as well, and gives the room back."""
        call = functools.partial(work, self._connection, *args, **kwargs)
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._executor, self._transaction_on_a_full_disk, call)
        # By the slice: others want the database as well.
        while await loop.run_in_executor(self._executor, self._shrink):
            pass
        return result

    def _transaction_on_a_full_disk(self, call: Callable[[], R]) -> R:
        try:
            return self._transaction(call)
        except StorageError:
            self._ballast.give()
            return self._transaction(call)

    def _shrink(self) -> bool:
        """Give some of the free pages at the file's end back; True if there are more, and it can be done."""
        run = self._connection.execute
        try:
            (before,) = run("PRAGMA freelist_count").fetchone()
            # `execute` would stop after the first page: there are no rows to fetch.
            self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_A_TIME})")
            # What was written ahead goes to its place: the journal's room is the disk's again.
            run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            (left,) = run("PRAGMA freelist_count").fetchone()
            more = bool(0 < left < before)
        except sqlite3.Error:
            more = False
        if not more:
            self._ballast.take()
        return more

    def _transaction(self, call: Callable[[], R]) -> R:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = call()
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise StorageError(
                f"the router cannot store this: {error}; free disk space, or delete files, and try again"
            ) from error
        return result

    def close(self) -> None:
        """Wait for what runs, then close."""
        self._executor.shutdown()
        self._connection.close()
        os.close(self._lock)
