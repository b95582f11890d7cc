"""SQL of batches and of their lines: requests until they are answered, then answers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from router.batches import files
from router.batches.pages import page
from router.batches.records import UNFINISHED, BatchRecord, Counts, FileRecord
from tidepipe_common.errors import NotFoundError
from tidepipe_common.openai.answers import BatchError
from tidepipe_common.security.caller import ANYBODY, Caller

log = structlog.get_logger()


class DamagedRecordError(NotFoundError):
    """A batch that was stored, and cannot be read any more."""


@dataclass(frozen=True, slots=True)
class Line:
    """A request as it stands in the input file. number: from 1, blank lines included."""

    number: int
    request: bytes


@dataclass(frozen=True, slots=True)
class AnsweredLine:
    """An output line, with its newline."""

    number: int
    answer: bytes
    failed: bool


def create(db: sqlite3.Connection, record: BatchRecord) -> BatchRecord:
    """A new batch; gets its number here."""
    (number,) = db.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM batches").fetchone()
    record = replace(record, number=number)
    db.execute(
        "INSERT INTO batches (id, number, status, record, owner) VALUES (?, ?, ?, ?, ?)",
        (record.id, number, record.status, record.to_json(), record.owner),
    )
    return record


def get(db: sqlite3.Connection, batch_id: str, caller: Caller = ANYBODY) -> BatchRecord:
    """NotFoundError if there is none that the caller may see."""
    row = db.execute(
        "SELECT record FROM batches WHERE id = ? AND (? OR owner = ?)",
        (batch_id, caller.sees_all, caller.owner),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no batch {batch_id[:100]}")
    try:
        record = BatchRecord.from_json(row[0])
    except ValueError as error:
        raise DamagedRecordError(f"the record of the batch {batch_id} is damaged: {error}") from None
    return record if record.finished else replace(record, counts=_counts(db, batch_id))


def listing(
    db: sqlite3.Connection,
    after: str | None,
    limit: int,
    newest_first: bool,
    caller: Caller = ANYBODY,
) -> list[BatchRecord]:
    """A page of the caller's batches, behind the one named `after`."""
    compare, direction, start = ("<", "DESC", 2**62) if newest_first else (">", "ASC", -(2**62))
    behind = get(db, after, caller).number if after is not None else start
    rows = db.execute(
        f"SELECT id FROM batches WHERE number {compare} ? AND (? OR owner = ?) "
        f"ORDER BY number {direction} LIMIT ?",
        (behind, caller.sees_all, caller.owner, limit),
    ).fetchall()
    return _readable(db, rows)


def unfinished(db: sqlite3.Connection) -> list[BatchRecord]:
    """Batches to go on with, oldest first."""
    places = ", ".join("?" * len(UNFINISHED))
    rows = db.execute(f"SELECT id FROM batches WHERE status IN ({places}) ORDER BY number", UNFINISHED)
    return _readable(db, rows.fetchall())


def advance(
    db: sqlite3.Connection,
    batch_id: str,
    status: str,
    now: int,
    only_from: Sequence[str],
    errors: Sequence[BatchError] = (),
    results: Sequence[FileRecord] = (),
) -> BatchRecord:
    """Take a batch to its next state, if it is in one of `only_from`; returns it as it is then.

    results: files of its good and its failed answers, which come into being with the last state; those
    without any answer do not.
    """
    record = get(db, batch_id)
    if record.status not in only_from:
        return record
    counts = _counts(db, batch_id)  # kept with the batch: a client may delete the answers
    record = record.entered(status, now, counts=counts, errors=list(errors))
    for file in results:
        if not (counts.failed if file.failed else counts.completed):
            continue
        (size,) = db.execute(
            "SELECT SUM(LENGTH(answer)) FROM lines WHERE batch_id = ? AND failed = ?", (batch_id, file.failed)
        ).fetchone()
        files.insert(db, replace(file, bytes=size, batch_id=batch_id), complete=True)
        if file.failed:
            record = replace(record, error_file_id=file.id)
        else:
            record = replace(record, output_file_id=file.id)
    if record.finished:  # requests that will never be answered
        db.execute("DELETE FROM lines WHERE batch_id = ? AND answer IS NULL", (batch_id,))
    db.execute("UPDATE batches SET status = ?, record = ? WHERE id = ?", (status, record.to_json(), batch_id))
    return record


def forget_lines(db: sqlite3.Connection, batch_id: str) -> None:
    """Before the input file is read, perhaps a second time."""
    db.execute("DELETE FROM lines WHERE batch_id = ?", (batch_id,))


def add_lines(db: sqlite3.Connection, batch_id: str, lines: Iterable[tuple[int, bytes, bytes]]) -> int | None:
    """Take (number, custom_id, request) in; returns the first number whose custom_id is not new."""
    for number, custom_id, request in lines:
        added = db.execute(
            "INSERT OR IGNORE INTO lines (batch_id, number, custom_id, request) VALUES (?, ?, ?, ?)",
            (batch_id, number, custom_id, request),
        )
        if not added.rowcount:
            return number
    return None


def unanswered(db: sqlite3.Connection, batch_id: str, after: int, limit: int) -> list[Line]:
    """The next requests, in their order: `limit`, or as many as a page holds."""
    rows = db.execute(
        "SELECT number, request FROM lines WHERE batch_id = ? AND number > ? AND answer IS NULL "
        "ORDER BY number LIMIT ?",
        (batch_id, after, limit),
    )
    return [Line(number, request) for number, request in page(rows)[0]]


def record_answers(db: sqlite3.Connection, answers: Sequence[tuple[str, AnsweredLine]]) -> None:
    """Answers of (batch, line); the requests are not needed any more."""
    db.executemany(
        "UPDATE lines SET answer = ?, failed = ?, request = NULL WHERE batch_id = ? AND number = ?",
        [(line.answer, line.failed, batch_id, line.number) for batch_id, line in answers],
    )


def _readable(db: sqlite3.Connection, rows: Iterable[tuple[str]]) -> list[BatchRecord]:
    """The batches of these rows; one that is damaged is left out, so that it hides no other."""
    found = []
    for (batch_id,) in rows:
        try:
            found.append(get(db, batch_id))
        except DamagedRecordError as error:
            log.error("batch left out", reason=str(error))
    return found


def _counts(db: sqlite3.Connection, batch_id: str) -> Counts:
    total, answered, failed = db.execute(
        "SELECT COUNT(*), COUNT(answer), COALESCE(SUM(failed), 0) FROM lines WHERE batch_id = ?", (batch_id,)
    ).fetchone()
    return Counts(total, answered - failed, failed)
