"""SQL of files. A batch's answers are files as well; their content is made from the batch's lines."""

from __future__ import annotations

import sqlite3
from typing import Any

from router.batches.pages import page
from router.batches.records import VALIDATING, FileRecord
from tidepipe_common.errors import InvalidRequestError, NotFoundError
from tidepipe_common.security.caller import ANYBODY, Caller

CHUNK_BYTES = 1 << 20
_LINES_AT_A_TIME = 256
_COLUMNS = "id, created, bytes, filename, purpose, batch_id, failed, owner"
_SELECTED = f"{_COLUMNS}, (SELECT expires FROM expiries WHERE file_id = files.id)"


def begin(db: sqlite3.Connection, record: FileRecord) -> None:
    """A file whose content is still to come; unknown to everyone else until `complete`."""
    insert(db, record, complete=False)


def insert(db: sqlite3.Connection, record: FileRecord, *, complete: bool) -> None:
    """A new row."""
    db.execute(
        f"INSERT INTO files ({_COLUMNS}, complete) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(record.id, record.created, record.bytes, record.filename, record.purpose),
            *(record.batch_id, record.failed, record.owner, complete),
        ),
    )
    expire(db, record)


def expire(db: sqlite3.Connection, record: FileRecord) -> None:
    """Note when a file ends, if ever."""
    if record.expires is not None:
        db.execute("INSERT OR REPLACE INTO expiries VALUES (?, ?)", (record.id, record.expires))


def append(db: sqlite3.Connection, file_id: str, number: int, data: bytes) -> None:
    """The next piece of its content."""
    db.execute("INSERT INTO chunks VALUES (?, ?, ?)", (file_id, number, data))


def complete(db: sqlite3.Connection, file_id: str, size: int) -> None:
    """All of its content is there."""
    db.execute("UPDATE files SET complete = 1, bytes = ? WHERE id = ?", (size, file_id))


def drop(db: sqlite3.Connection, file_id: str) -> None:
    """Remove a file without questions."""
    db.execute("DELETE FROM chunks WHERE file_id = ?", (file_id,))
    db.execute("DELETE FROM files WHERE id = ?", (file_id,))
    db.execute("DELETE FROM expiries WHERE file_id = ?", (file_id,))


def drop_incomplete(db: sqlite3.Connection) -> None:
    """Remove what a router left that was killed while files came in."""
    for (file_id,) in db.execute("SELECT id FROM files WHERE NOT complete").fetchall():
        drop(db, file_id)


def get(db: sqlite3.Connection, file_id: str, caller: Caller = ANYBODY) -> FileRecord:
    """NotFoundError if there is none that the caller may see."""
    row = db.execute(
        f"SELECT {_SELECTED} FROM files WHERE id = ? AND complete AND (? OR owner = ?)",
        (file_id, caller.sees_all, caller.owner),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no file {file_id[:100]}")
    return _record(row)


def listing(
    db: sqlite3.Connection,
    purpose: str | None,
    after: str | None,
    limit: int,
    newest_first: bool,
    caller: Caller = ANYBODY,
) -> list[FileRecord]:
    """A page of the caller's files by age, behind the one named `after`."""
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    rowid = 0
    if after is not None:
        (rowid,) = db.execute("SELECT rowid FROM files WHERE id = ?", (get(db, after, caller).id,)).fetchone()
    rows = db.execute(
        f"SELECT {_SELECTED} FROM files WHERE complete AND (? IS NULL OR purpose = ?) "
        f"AND (? IS NULL OR rowid {beyond} ?) AND (? OR owner = ?) ORDER BY rowid {order} LIMIT ?",
        (purpose, purpose, after, rowid, caller.sees_all, caller.owner, limit),
    )
    return [_record(row) for row in rows]


def delete(db: sqlite3.Connection, file_id: str, caller: Caller = ANYBODY) -> None:
    """NotFoundError if the caller has none, InvalidRequestError while a batch reads it."""
    record = get(db, file_id, caller)
    readers = db.execute(
        "SELECT id FROM batches WHERE status = ? AND json_extract(record, '$.input_file_id') = ?",
        (VALIDATING, file_id),
    ).fetchone()
    if readers:
        raise InvalidRequestError(f"the batch {readers[0]} reads the file {file_id}; wait, or cancel it")
    _remove(db, record)


def any_expired(db: sqlite3.Connection, now: int) -> bool:
    """True if the time of a file is over."""
    return db.execute("SELECT 1 FROM expiries WHERE expires <= ? LIMIT 1", (now,)).fetchone() is not None


def drop_expired(db: sqlite3.Connection, now: int) -> int:
    """Remove the files whose time is over, but for those that a batch reads; how many there were."""
    rows = db.execute(
        f"SELECT {_SELECTED} FROM files WHERE complete AND id IN (SELECT file_id FROM expiries "
        "WHERE expires <= ?) AND NOT EXISTS (SELECT 1 FROM batches WHERE status = ? "
        "AND json_extract(record, '$.input_file_id') = files.id)",
        (now, VALIDATING),
    ).fetchall()
    for row in rows:
        _remove(db, _record(row))
    return len(rows)


def _remove(db: sqlite3.Connection, record: FileRecord) -> None:
    """A file, with the answers that it consists of."""
    if record.batch_id is not None:
        db.execute(
            "DELETE FROM lines WHERE batch_id = ? AND failed = ? AND answer IS NOT NULL",
            (record.batch_id, record.failed),
        )
    drop(db, record.id)


def read(db: sqlite3.Connection, record: FileRecord, place: int) -> tuple[bytes, int | None]:
    """A piece of the content, and the place of the next one (None: that was the last). Places begin at 0."""
    if record.batch_id is None:
        row = db.execute(
            "SELECT data FROM chunks WHERE file_id = ? AND number = ?", (record.id, place)
        ).fetchone()
        return (row[0], place + 1) if row else (b"", None)
    cursor = db.execute(
        "SELECT number, answer FROM lines WHERE batch_id = ? AND failed = ? AND answer IS NOT NULL "
        "AND number > ? ORDER BY number LIMIT ?",
        (record.batch_id, record.failed, place, _LINES_AT_A_TIME),
    )
    rows, full = page(cursor)
    goes_on = full or len(rows) == _LINES_AT_A_TIME
    return b"".join(answer for _, answer in rows), rows[-1][0] if goes_on else None


def _record(row: tuple[Any, ...]) -> FileRecord:
    """From a row of `_SELECTED`."""
    file_id, created, size, filename, purpose, batch_id, failed, owner, expires = row
    failed = None if failed is None else bool(failed)
    return FileRecord(file_id, created, size, filename, purpose, batch_id, failed, expires, owner)
