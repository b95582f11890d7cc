"""One SQLite database, of files, batches and responses, used from one thread of its own."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Concatenate, ParamSpec, TypeVar

import structlog

from router.batches import deaths
from router.batches.ballast import Ballast
from router.batches.limits import FileLimits
from router.responses.schema import TABLES
from tidepipe_common.errors import ConfigError, StorageBrokenError, StorageError, UnavailableError
from tidepipe_common.sqlite_schema import Migration, migrate

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
_OWNERS = """
ALTER TABLE files ADD COLUMN owner TEXT;    -- NULL: stored before there were owners, an admin's
ALTER TABLE batches ADD COLUMN owner TEXT;
CREATE INDEX files_by_owner ON files (owner);
CREATE INDEX batches_by_owner ON batches (owner, number);
"""
_PAGES_AT_A_TIME = 256
_MIGRATIONS: Sequence[Migration] = (_VERSION_1, _EXPIRIES, _OWNERS, deaths.FIRST_TABLE, deaths.TABLE, TABLES)
_RETRY_S = 0.05
_MENDS: Mapping[int, str] = {
    sqlite3.SQLITE_FULL: "free disk space, or delete files, and try again",
    sqlite3.SQLITE_IOERR: "the disk does not take it; look at it (dmesg), free space, and try again",
    sqlite3.SQLITE_CANTOPEN: "free disk space, or see why files cannot be made in its folder, and try again",
    sqlite3.SQLITE_NOMEM: "there is too little memory; try again",
    sqlite3.SQLITE_BUSY: "another program holds its file; end that, and try again",
    sqlite3.SQLITE_LOCKED: "another program holds its file; end that, and try again",
    sqlite3.SQLITE_READONLY: "its file system, or its file, is read-only; make it writable, and try again",
    sqlite3.SQLITE_PERM: "its file is not for this user; give it back, and try again",
}
"""What to do about errors that pass, by SQLite's code."""
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")


class Database:
    """Calls run in order, each in a transaction of its own: done as a whole, durably, or not at all."""

    FILE: ClassVar[str] = "batches.sqlite"
    MIGRATIONS: ClassVar[Sequence[Migration]] = _MIGRATIONS
    EXCLUSIVE: ClassVar[bool] = True
    """One router at a time; another kind of content may be used by two."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int | None = None,
        limits: FileLimits | None = None,
        wait: bool = False,
    ) -> None:
        """Opens or creates the database in `folder`. max_bytes: it never grows beyond.
        limits: of files.

        wait: another router has it still; calls wait until `open_when_free` has got it.
        ConfigError if the folder cannot be used, or another process uses it.
        """
        self.limits = limits or FileLimits()
        self.trouble = ""
        """What those wait for that cannot go on without the disk; empty: nothing."""
        self._folder = folder.expanduser()
        self._max_bytes = max_bytes
        self._settled = asyncio.Event()
        self._is_open = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        if not wait and not self._open():
            raise ConfigError(f"another router uses the data folder {folder}; give each its own")

    async def open_when_free(self) -> None:
        """Return when no other router uses the folder any more."""
        while not self._is_open and not self._open():  # noqa: ASYNC110 (another process's lock)
            await asyncio.sleep(_RETRY_S)

    def _open(self) -> bool:
        """False if another process uses it."""
        folder, lock = self._folder, -1
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(folder / ("lock" if self.EXCLUSIVE else self.FILE), os.O_RDWR | os.O_CREAT, 0o600)
            if self.EXCLUSIVE:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # autocommit: transactions are begun and ended here, in `_transaction`.
            self._connection = sqlite3.connect(
                folder / self.FILE, isolation_level=None, check_same_thread=False
            )
            self._prepare(self._max_bytes)
            self._ballast = Ballast(folder / "ballast")
            for name in (self.FILE, f"{self.FILE}-wal", f"{self.FILE}-shm"):
                if (folder / name).exists():
                    (folder / name).chmod(0o600)
        except BlockingIOError:
            os.close(lock)
            return False
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot use the data folder {folder}: {error}") from error
        self._lock, self._is_open = lock, True
        self._settled.set()
        return True

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
        migrate(self._connection, self.MIGRATIONS)

    async def run(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Result of `work(connection, ...)`. StorageError: nothing has changed, and trying again may help;
        StorageBrokenError: it does not.

        UnavailableError if it was closed, for a router that takes this one's place.
        """
        await self._ready()
        call = functools.partial(work, self._connection, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._transaction, call)

    async def free(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `run`, of work that deletes: it is done on a full disk as well, and gives the room back."""
        await self._ready()
        call = functools.partial(work, self._connection, *args, **kwargs)
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._executor, self._transaction_on_a_full_disk, call)
        # By the slice: others want the database as well.
        while await loop.run_in_executor(self._executor, self._shrink):
            pass
        return result

    async def _ready(self) -> None:
        await self._settled.wait()
        if not self._is_open:
            raise UnavailableError("this router's files are with its successor now; ask again")

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
            raise self._explained(error) from error
        return result

    def _explained(self, error: sqlite3.Error) -> StorageError:
        """What the error means for who wanted something stored."""
        extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        code = extended & 0xFF
        if code in _BROKEN or extended == sqlite3.SQLITE_READONLY_DBMOVED:
            state = "damaged" if code in _BROKEN else "not where it was"
            log.error("the store is broken", file=str(self._folder / self.FILE), reason=str(error))
            return StorageBrokenError(
                f"the router's file {self.FILE} is {state}: {error}; its operator has to stop the router, "
                "and restore the file from a backup, or move it away"
            )
        if code in _MENDS:
            return StorageError(f"the router cannot store this: {error}; {_MENDS[code]}")
        log.error("the store's own error", reason=str(error), exc_info=error)
        return StorageBrokenError(f"internal error of the router's store: {error}; see its log")

    def close(self) -> None:
        """Wait for what runs, then close. Harmless when repeated."""
        was_open, self._is_open = self._is_open, False
        self._settled.set()
        self._executor.shutdown()
        if was_open:
            self._connection.close()
            os.close(self._lock)
