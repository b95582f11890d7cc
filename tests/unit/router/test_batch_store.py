"""Files and batches in SQLite: what is stored is stored as a whole, and a full disk breaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.batches import files, lines
from router.batches.answering import Reading
from router.batches.database import Database
from router.batches.intake import BatchIntake, LineSplitter
from router.batches.jobs import BatchJobs
from router.batches.limits import FileLimits, expires_after
from router.batches.lines import AnsweredLine
from router.batches.records import (
    COMPLETED,
    IN_PROGRESS,
    UNFINISHED,
    VALIDATING,
    BatchRecord,
    FileRecord,
    safe_name,
)
from router.batches.writer import BatchWriter, durably
from tidepipe_common.errors import (
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StorageBrokenError,
    StorageError,
)
from tidepipe_common.openai.batch import BatchItem
from tidepipe_common.security.caller import Caller

MIB = 1 << 20
RELEASED = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, created INTEGER NOT NULL, bytes INTEGER NOT NULL, filename TEXT NOT NULL,
    purpose TEXT NOT NULL, complete INTEGER NOT NULL,
    batch_id TEXT, failed INTEGER
);
CREATE TABLE chunks (
    file_id TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (file_id, number)
);
CREATE TABLE batches (
    id TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL, status TEXT NOT NULL, record TEXT NOT NULL
);
CREATE TABLE lines (
    batch_id TEXT NOT NULL, number INTEGER NOT NULL, custom_id BLOB NOT NULL,
    request BLOB,
    answer BLOB, failed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_id, number)
);
CREATE UNIQUE INDEX one_custom_id ON lines (batch_id, custom_id);
PRAGMA user_version = 1;
"""
"""As folders were made by the first release that counted versions."""


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    one = Database(tmp_path)
    yield one
    one.close()


def record(name: str) -> FileRecord:
    return FileRecord(name, 1, 0, f"{name}.jsonl", "batch")


async def test_a_full_disk_is_an_error_and_no_damage(tmp_path: Path) -> None:
    database = Database(tmp_path, max_bytes=4 * MIB)
    run = database.run
    await run(files.begin, record("small"))
    await run(files.append, "small", 0, b"kept")
    await run(files.complete, "small", 4)
    await run(files.begin, record("large"))
    with pytest.raises(StorageError, match="full"):
        for number in range(8):
            await run(files.append, "large", number, b"x" * MIB)
    with pytest.raises(NotFoundError):
        await run(files.get, "large")
    await run(files.drop_incomplete)
    assert await run(files.read, await run(files.get, "small"), 0) == (b"kept", 1)
    await run(files.begin, record("again"))  # there is room again
    await run(files.append, "again", 0, b"x" * MIB)
    database.close()
    reopened = Database(tmp_path)
    assert await reopened.run(lambda db: db.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    reopened.close()


async def test_a_folder_of_the_released_version(tmp_path: Path) -> None:
    """What is in it is an admin's, and a batch goes on."""
    with contextlib.closing(sqlite3.connect(tmp_path / "batches.sqlite")) as old, old:
        old.executescript(RELEASED)
        old.execute("INSERT INTO files VALUES ('f', 1, 4, 'in.jsonl', 'batch', 1, NULL, NULL)")
        old.execute("INSERT INTO chunks VALUES ('f', 0, x'6b657074')")
        record = {
            "id": "b",
            "number": 1,
            "endpoint": "/v1/completions",
            "input_file_id": "f",
            "window": "24h",
        }
        record |= {"created": 1, "expires": 2, "status": IN_PROGRESS, "metadata": None, "times": {}}
        record |= {"counts": {"total": 0, "completed": 0, "failed": 0}, "errors": []}
        record |= {"output_file_id": None, "error_file_id": None}
        old.execute("INSERT INTO batches VALUES ('b', 1, ?, ?)", (IN_PROGRESS, json.dumps(record)))
        old.execute("INSERT INTO lines VALUES ('b', 1, x'31', x'7b7d', NULL, 0)")
    database = Database(tmp_path)
    run = database.run
    admin, client = Caller("root", sees_all=True), Caller("somebody")
    assert await run(files.read, await run(files.get, "f", admin), 0) == (b"kept", 1)
    assert [one.id for one in await run(lines.listing, None, 9, True, admin)] == ["b"]
    assert [(one.id, one.owner, one.counts.total) for one in await run(lines.unfinished)] == [("b", None, 1)]
    for reader in (client, Caller("")):
        assert await run(files.listing, None, None, 9, True, reader) == []
        assert await run(lines.listing, None, 9, True, reader) == []
        with pytest.raises(NotFoundError):
            await run(files.delete, "f", reader)
    database.close()


async def test_one_router_per_folder(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another router uses"):
        Database(tmp_path)


async def test_a_batch_moves_only_as_allowed_and_keeps_its_answers(database: Database) -> None:
    run = database.run
    batch = await run(lines.create, BatchRecord("b", 0, "/v1/completions", "f", "24h", 1, 2))
    assert await run(lines.add_lines, "b", [(n, b"%d" % n, b"{}") for n in (1, 2, 4)]) is None
    assert await run(lines.add_lines, "b", [(5, b"2", b"{}")]) == 5
    started = await run(lines.advance, "b", IN_PROGRESS, 5, (VALIDATING,))
    assert (started.status, started.counts.total, started.times) == (IN_PROGRESS, 3, {IN_PROGRESS: 5})
    assert await run(lines.advance, "b", VALIDATING, 6, (VALIDATING,)) == started
    await run(
        lines.record_answers,
        [("b", AnsweredLine(4, b"four\n", False)), ("b", AnsweredLine(1, b"one\n", False))],
    )
    assert [line.number for line in await run(lines.unanswered, "b", 0, 9)] == [2]
    good, bad = (FileRecord(f"out-{f}", 7, 0, "o", "batch_output", "b", f) for f in (False, True))
    ended = await run(lines.advance, "b", COMPLETED, 7, UNFINISHED, (), (good, bad))
    assert (ended.output_file_id, ended.error_file_id) == ("out-False", None)
    assert await run(lines.get, "b") == ended and not await run(lines.unfinished)
    output = await run(files.get, "out-False")
    assert (output.bytes, await run(files.read, output, 0)) == (9, (b"one\nfour\n", None))
    assert batch.number == 1


@given(st.lists(st.binary(max_size=30)), st.integers(1, 7))
def test_lines_do_not_depend_on_how_a_file_is_cut(pieces: list[bytes], size: int) -> None:
    content = b"\n".join(pieces)
    splitter = LineSplitter()
    cut = [content[i : i + size] for i in range(0, len(content), size)]
    found = [line for piece in cut for line in splitter.feed(piece)] + list(splitter.flush())
    assert found == [(n, line.strip()) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]


async def test_what_is_deleted_gives_its_room_back_to_the_disk(database: Database, tmp_path: Path) -> None:
    run, path = database.run, tmp_path / "batches.sqlite"
    for name in ("first", "second"):
        await run(files.begin, record(name))
        for number in range(8):
            await run(files.append, name, number, b"x" * MIB)
        await run(files.complete, name, 8 * MIB)
    await database.free(files.delete, "first")
    assert 8 * MIB < path.stat().st_size < 10 * MIB
    assert (tmp_path / "batches.sqlite-wal").stat().st_size < MIB
    await database.free(files.delete, "second")
    assert path.stat().st_size < MIB


async def test_files_end_at_their_time_unless_a_batch_reads_them(database: Database) -> None:
    run = database.run
    for name, expires in (("old", 5), ("read", 5), ("new", 50), ("kept", None)):
        await run(files.begin, dataclasses.replace(record(name), expires=expires))
        await run(files.append, name, 0, b"x")
        await run(files.complete, name, 1)
    await run(lines.create, BatchRecord("b", 0, "/v1/completions", "read", "24h", 1, 2))
    assert (await run(files.get, "new")).body()["expires_at"] == 50
    assert await database.free(files.drop_expired, 10) == 1
    left = [one.id for one in await run(files.listing, None, None, 9, False)]
    assert left == ["read", "new", "kept"]
    await run(lines.advance, "b", IN_PROGRESS, 5, (VALIDATING,))
    assert await database.free(files.drop_expired, 10**9) == 2
    assert not await run(files.any_expired, 10**9)
    # The answers of a batch end with their file.
    assert await run(lines.add_lines, "b", [(1, b"1", b"{}")]) is None
    await run(lines.record_answers, [("b", AnsweredLine(1, b"one\n", False))])
    out = FileRecord("out", 7, 0, "o", "batch_output", "b", False, expires=20)
    await run(lines.advance, "b", COMPLETED, 7, UNFINISHED, (), (out,))
    assert await database.free(files.drop_expired, 20) == 1
    assert await run(lambda db: db.execute("SELECT COUNT(*) FROM lines").fetchone()) == (0,)


async def test_files_have_a_limit_together(database: Database) -> None:
    limits = FileLimits(max_bytes=10_000)
    for name, size in (("a", 0), ("b", 5_000)):
        await database.run(limits.check_room, size)
        await database.run(files.begin, dataclasses.replace(record(name), bytes=size))
    with pytest.raises(StorageError, match="files-max-bytes"):
        await database.run(limits.check_room, 0)  # an empty file is a row, too
    await database.run(files.drop, "a")
    await database.run(files.drop, "b")
    await database.run(files.begin, dataclasses.replace(record("hers"), bytes=4_500, owner="alice"))
    with pytest.raises(StorageError, match="your files"):
        await database.run(limits.check_room, 600, "alice")  # half of it is for others
    await database.run(limits.check_room, 4_500, "bob")
    await database.run(files.drop, "hers")
    await database.run(files.begin, dataclasses.replace(record("b"), bytes=5_000))
    await database.run(files.drop, "b")
    await database.run(limits.check_room, 5_000)


def test_expires_after_is_openais() -> None:
    assert expires_after(None, None) is None
    assert expires_after("created_at", "3600") == 3600
    created = "created_at"
    for wrong in ((created, "3599"), ("now", "3600"), (None, "3600"), (created, "²"), (created, "9" * 5000)):
        with pytest.raises(InvalidRequestError, match="expires_after"):
            expires_after(*wrong)


async def test_one_damaged_record_hides_no_other(tmp_path: Path) -> None:
    """Earlier versions took metadata with lone surrogates; it is shown repaired, also after a restart."""
    database = Database(tmp_path)
    for name in ("old", "broken", "new"):
        await database.run(lines.create, BatchRecord(name, 0, "/v1/completions", "f", "24h", 1, 2))

    def spoil(db: sqlite3.Connection) -> None:
        old = dataclasses.replace(lines.get(db, "old"), metadata={"k\ud800": "v\udfff"})
        db.execute("UPDATE batches SET record = ? WHERE id = 'old'", (old.to_json(),))
        db.execute("UPDATE batches SET record = ? WHERE id = 'broken'", ('{"id": 5}',))

    await database.run(spoil)
    for _ in range(2):
        listed = await database.run(lines.listing, None, 9, True)
        assert [record.id for record in listed] == ["new", "old"]
        assert listed[1].metadata == {"k\N{REPLACEMENT CHARACTER}": "v\N{REPLACEMENT CHARACTER}"}
        assert [record.id for record in await database.run(lines.unfinished)] == ["old", "new"]
        with pytest.raises(NotFoundError, match="damaged"):
            await database.run(lines.get, "broken")
        database.close()
        database = Database(tmp_path)
    database.close()


async def test_a_line_with_another_url_breaks_the_file_whatever_its_body(database: Database) -> None:
    run = database.run
    body = {"prompt": "a", "unheard": 1}
    for url, codes in (("/v1/chat/completions", ["mismatched_endpoint"]), ("/v1/completions", [])):
        line = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        await run(files.begin, record(url))
        await run(files.append, url, 0, json.dumps(line).encode())
        await run(files.complete, url, 1)
        intake = BatchIntake(database, BatchRecord(url, 0, "/v1/completions", url, "24h", 1, 2))
        await intake.run()
        assert [error["code"] for error in intake.errors] == codes


async def test_waiting_is_for_what_waiting_mends(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's lock: tried again, and `trouble` says why. A damaged page, an error of the program: raised
    at once, with what else was written beside it done."""
    monkeypatch.setattr("router.batches.writer.STORAGE_RETRY_S", 0.01)

    def write(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO expiries VALUES (hex(randomblob(4)), 1)")

    await database.run(lambda db: db.execute("PRAGMA busy_timeout = 10").fetchall())
    with contextlib.closing(sqlite3.connect(tmp_path / "batches.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(durably(database, write))
        while "another program" not in database.trouble:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        other.execute("ROLLBACK")
        await waiting
    assert not database.trouble

    def damaged(db: sqlite3.Connection) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    def mistaken(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM nowhere")

    writer = BatchWriter(database)
    writing = asyncio.create_task(writer.run())
    beside = asyncio.gather(writer.do(write), writer.do(write))
    with pytest.raises(StorageBrokenError, match="damaged"):
        await writer.do(damaged)
    with pytest.raises(StorageBrokenError, match="no such table"):
        await writer.do(mistaken)
    await beside
    writing.cancel()
    assert await database.run(lambda db: db.execute("SELECT COUNT(*) FROM expiries").fetchone()) == (3,)


async def test_a_batch_whose_store_is_broken_fails_with_a_sentence(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(db: sqlite3.Connection, answers: object) -> None:
        db.execute("UPDATE lines SET nowhere = 1")

    monkeypatch.setattr(lines, "record_answers", broken)

    async def answer(item: BatchItem, reading: Reading) -> dict[str, object]:
        return {"text": "there"}

    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
    await database.run(files.begin, record("f"))
    await database.run(files.append, "f", 0, json.dumps(line).encode())
    await database.run(files.complete, "f", 1)
    jobs = BatchJobs(database, answer, lambda: 0.0, concurrency=2)
    running = asyncio.create_task(jobs.run())
    await asyncio.sleep(0)
    batch = await jobs.create("/v1/completions", "f", 1, None)
    async with asyncio.timeout(20):
        while not batch.finished:
            await asyncio.sleep(0.01)
            batch = await database.run(lines.get, batch.id)
    assert batch.status == "failed" and batch.errors[0]["code"] == "storage_broken"
    assert "no such column" in batch.errors[0]["message"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_of_batches_that_are_created_together_no_more_are_taken_than_may_be(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.batches.jobs.MAX_UNFINISHED", 2)

    async def answer(item: BatchItem, reading: Reading) -> dict[str, object]:
        return {"text": "there"}

    await database.run(files.begin, record("f"))
    await database.run(files.append, "f", 0, b"{}")
    await database.run(files.complete, "f", 1)
    jobs = BatchJobs(database, answer, lambda: 0.0, concurrency=2)
    creating = [jobs.create("/v1/completions", "f", 1, None) for _ in range(5)]
    made = await asyncio.gather(*creating, return_exceptions=True)
    assert sum(isinstance(one, OverloadedError) for one in made) == 3


def test_names_of_files_lead_nowhere() -> None:
    for named, shown in (
        ("../../../tmp/x\0", "x_"),
        ("C:\\a\\b.jsonl", "b.jsonl"),
        ("\u202egpj.exe", "_gpj.exe"),
        ("a\nb\udc80", "a_b_"),
        ("日本 🌊.jsonl", "日本 🌊.jsonl"),
        *((nothing, "file.jsonl") for nothing in ("", "..", ".", " ", "/", "x/")),
    ):
        assert safe_name(named) == shown
        # A row of an earlier version, which kept names as they came.
        assert FileRecord("f", 0, 0, named, "batch").body()["filename"] == shown
