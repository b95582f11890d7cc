"""Requests with an idempotency key on disk, so that they outlive the router that answers them.

A file of its own beside the batches, without a lock: a router and its successor use it together. Per key
there is what the request is (digest, seed), and what there is of its answers, appended while they grow.
Requests themselves are not stored: who asks again sends them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from router.batches.database import Database
from router.requests.entry import RequestEntry
from router.requests.keyed import CLAIM_S, MAX_CLAIMS, Claim, new_claim
from router.requests.output import TokenLog
from router.requests.running_answer import Cursor
from tidepipe_common.codec.inference import output_from_bytes, output_to_bytes
from tidepipe_common.errors import StorageError, UnavailableError
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.results import SequenceUpdate

SAVE_S = 0.5
"""What is younger is computed again after a kill."""
SWEEP_S = 30.0
MAX_STORED_BYTES = 256 * 2**20
MAX_FILE_BYTES = 2 * MAX_STORED_BYTES
_ROW_BYTES = 200

_VERSION_1 = """
CREATE TABLE requests (
    owner TEXT NOT NULL, key TEXT NOT NULL, request_id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL,
    seed TEXT, used REAL NOT NULL, PRIMARY KEY (owner, key)
);
CREATE INDEX by_age ON requests (used);
CREATE TABLE pieces (
    request_id TEXT NOT NULL, answer INTEGER NOT NULL, place INTEGER NOT NULL,  -- tokens before this piece
    data BLOB NOT NULL, PRIMARY KEY (request_id, answer, place)
);
"""

log = structlog.get_logger()


class KeyedDatabase(Database):
    """The file; see Database."""

    FILE = "requests.sqlite"
    MIGRATIONS = (_VERSION_1,)
    EXCLUSIVE = False


@dataclass(slots=True)
class _Followed:
    """stored: tokens of each answer that are on the disk already."""

    entry: RequestEntry
    stored: list[int]
    cursors: list[Cursor] = field(default_factory=list)


class StoredKeys:
    """A KeyedRequests. `run` it."""

    def __init__(self, database: KeyedDatabase, unix_time: Callable[[], float]) -> None:
        self._database = database
        self._unix_time = unix_time
        self._followed: dict[str, _Followed] = {}
        self._saving = asyncio.Lock()
        self._full = False

    async def claim(self, owner: str, key: str, request: GenerationRequest) -> Claim:
        """Part of KeyedRequests."""
        new = await asyncio.to_thread(new_claim, request)
        return await self._database.run(_claim, owner, key, new, self._unix_time())

    def follow(self, entry: RequestEntry, claim: Claim) -> None:
        """Part of KeyedRequests."""
        stored = [len(news.token_ids) for news in claim.given]
        followed = self._followed.get(entry.request_id)
        if followed is None or followed.entry is not entry:
            self._followed[entry.request_id] = _Followed(entry, stored)

    async def run(self) -> None:
        """Save what is new, and forget what is old, until cancelled."""
        swept = -SWEEP_S
        loop = asyncio.get_running_loop()
        while True:
            await self.save()
            if loop.time() - swept >= SWEEP_S:
                swept = loop.time()
                with contextlib.suppress(StorageError):
                    await self._database.run(_forget_old, self._unix_time())
            await asyncio.sleep(SAVE_S)

    async def save(self) -> None:
        """Everything that there is of the answers goes to the disk. A full one costs only computing again."""
        async with self._saving:
            pieces: list[tuple[str, int, int, bytes]] = []
            broken = []
            for name, followed in list(self._followed.items()):
                entry = followed.entry
                if entry.ended:
                    del self._followed[name]
                if _failed(entry):
                    broken.append((name,))
                else:
                    pieces += _new_pieces(name, followed)
            if not (pieces or broken):
                return
            try:
                await self._database.run(_save, pieces, broken)
                self._full = False
            except StorageError as error:
                if not self._full:
                    log.error("answers with idempotency keys are not kept", reason=str(error))
                self._full = True


@contextlib.asynccontextmanager
async def open_keyed(folder: str, unix_time: Callable[[], float]) -> AsyncIterator[StoredKeys | None]:
    """None without a folder. ConfigError if it cannot be used."""
    if not folder:
        yield None
        return
    with contextlib.closing(KeyedDatabase(Path(folder), max_bytes=MAX_FILE_BYTES)) as database:
        yield StoredKeys(database, unix_time)


def _failed(entry: RequestEntry) -> bool:
    """True if something was wrong with the request; not if only its router, or all instances, went away."""
    if entry.failure is not None:
        return not isinstance(entry.failure, UnavailableError)
    return entry.broken


def _new_pieces(name: str, followed: _Followed) -> list[tuple[str, int, int, bytes]]:
    """What is new of each answer. Text comes from the tokens again."""
    answers = followed.entry.answers
    if not followed.cursors:
        stored = followed.stored + [0] * (len(answers) - len(followed.stored))
        followed.cursors = [Cursor(tokens) for tokens in stored[: len(answers)]]
    pieces = []
    for index, (answer, cursor) in enumerate(zip(answers, followed.cursors, strict=True)):
        while (delta := answer.read(cursor)) is not None:
            if data := output_to_bytes(delta):
                # The end may come without a token.
                place = 2 * delta.token_offset + (not delta.piece.token_ids)
                pieces.append((name, index, place, data))
    return pieces


def _claim(db: sqlite3.Connection, owner: str, key: str, new: Claim, now: float) -> Claim:
    row = db.execute(
        "SELECT request_id, digest, seed, used FROM requests WHERE owner = ? AND key = ?", (owner, key)
    ).fetchone()
    if row is not None and row[3] < now - CLAIM_S:
        _forget(db, row[0])
        row = None
    if row is None:
        seed = None if new.seed is None else str(new.seed)
        db.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)",
            (owner, key, new.request_id, new.digest, seed, now),
        )
        return new
    request_id, digest, seed, _ = row
    db.execute("UPDATE requests SET used = ? WHERE request_id = ?", (now, request_id))
    rows = db.execute(
        "SELECT answer, data FROM pieces WHERE request_id = ? ORDER BY answer, place", (request_id,)
    ).fetchall()
    pieces: list[list[SequenceUpdate]] = [[] for _ in range(max((row[0] for row in rows), default=-1) + 1)]
    for answer, data in rows:
        pieces[answer].append(output_from_bytes(data))
    given = [_joined(of_one) for of_one in pieces]
    return Claim(digest, request_id, None if seed is None else int(seed), given)


def _joined(pieces: Sequence[SequenceUpdate]) -> SequenceUpdate:
    """Pieces may overlap: a router and its successor may both have computed an answer, which is the same."""
    log, end = TokenLog(), None
    for piece in pieces:
        if log.merge(piece.token_offset, piece.token_ids, piece.logprobs) is None:
            break
        end = piece.end or end
    return SequenceUpdate("", 0, log.tokens, log.logprobs.read(0, len(log.logprobs)), end)


def _save(
    db: sqlite3.Connection, pieces: Sequence[tuple[str, int, int, bytes]], broken: Sequence[tuple[str]]
) -> None:
    # A router and its successor may both compute an answer; both have the same.
    db.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?)", pieces)
    db.executemany("DELETE FROM pieces WHERE request_id = ?", broken)


def _forget_old(db: sqlite3.Connection, now: float) -> None:
    """What was not asked for in a day, and beyond the limits the oldest of whoever has most."""
    for (name,) in db.execute("SELECT request_id FROM requests WHERE used < ?", (now - CLAIM_S,)).fetchall():
        _forget(db, name)
    rows = db.execute(
        "SELECT owner, request_id, COALESCE(held, 0) FROM requests LEFT JOIN (SELECT request_id, "
        f"SUM(LENGTH(data) + {_ROW_BYTES}) AS held FROM pieces GROUP BY request_id) USING (request_id) "
        "ORDER BY used"
    )
    of_owners: dict[str, deque[tuple[str, int]]] = defaultdict(deque)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for owner, name, held in rows:
        of_owners[owner].append((name, held))
        counts[owner] += 1
        sizes[owner] += held
    while counts.total() > MAX_CLAIMS or sizes.total() > MAX_STORED_BYTES:
        # Whoever has most makes room: nobody pushes out what is another's.
        crowd = sizes if sizes.total() > MAX_STORED_BYTES else counts
        owner = max(crowd, key=lambda one: crowd[one])
        name, held = of_owners[owner].popleft()
        _forget(db, name)
        counts[owner] -= 1
        sizes[owner] -= held


def _forget(db: sqlite3.Connection, request_id: str) -> None:
    db.execute("DELETE FROM pieces WHERE request_id = ?", (request_id,))
    db.execute("DELETE FROM requests WHERE request_id = ?", (request_id,))
