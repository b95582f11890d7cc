"""Quotas of what each owner may store: files, batches and responses, in bytes and in number."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from router.batches.records import UNFINISHED
from tidepipe_common.errors import QuotaError

LEAST_BYTES = 4096
"""That a file counts for: rows take room as well."""
_BATCHES_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Quota:
    """max_bytes, max_items: at most; None: no limit but what all share."""

    max_bytes: int | None = None
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What somebody has stored. file_bytes: of files and of unfinished batches' requests."""

    files: int = 0
    batches: int = 0
    responses: int = 0
    file_bytes: int = 0
    response_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.file_bytes + self.response_bytes

    @property
    def items(self) -> int:
        """All of it."""
        return self.files + self.batches + self.responses


KeyQuota = Callable[[str], tuple[int | None, int | None]]
"""Bytes and items that an owner's key says; None: it does not."""


class Quotas:
    """The rule. Who has no name has no quota: there everybody is one owner."""

    def __init__(
        self,
        max_bytes: int | None = None,
        max_items: int | None = None,
        of_key: KeyQuota = lambda owner: (None, None),
    ) -> None:
        """max_bytes, max_items: of owners whose keys say nothing else. of_key: called from any thread."""
        self._usual = Quota(max_bytes, max_items)
        self._of_key = of_key

    def of(self, owner: str) -> Quota:
        """What an owner may store."""
        if not owner:
            return Quota()
        size, items = self._of_key(owner)
        usual = self._usual
        return Quota(usual.max_bytes if size is None else size, usual.max_items if items is None else items)

    def check(self, db: sqlite3.Connection, owner: str, size: int, items: int = 1) -> None:
        """QuotaError if so much more is too much for its owner. Batches that have ended, and whose files are
        gone, make room."""
        quota = self.of(owner)
        if quota.max_bytes is None and quota.max_items is None:
            return
        there = stored(db, owner)
        if quota.max_bytes is not None and there.bytes + size > quota.max_bytes:
            raise QuotaError(
                f"your API key may store {quota.max_bytes} bytes, {there.bytes} are stored "
                f"({_words(there)}), and this has {size}: {_FREE}"
            )
        over = 0 if quota.max_items is None else there.items + items - quota.max_items
        if over > 0 and _forget_batches(db, owner, over) < over:
            raise QuotaError(
                f"your API key may store {quota.max_items} files, batches and responses, and has "
                f"{there.items} ({_words(there)}): {_FREE}"
            )

    def left_for_responses(self, db: sqlite3.Connection, owner: str) -> Quota:
        """What files and batches leave to an owner's responses."""
        quota = self.of(owner)
        if quota == Quota():
            return quota
        there = stored(db, owner)
        return Quota(
            None if quota.max_bytes is None else max(0, quota.max_bytes - there.file_bytes),
            None if quota.max_items is None else max(0, quota.max_items - there.files - there.batches),
        )


_FREE = (
    "delete files (DELETE /v1/files/ID; a batch goes when its files have gone) or responses "
    "(DELETE /v1/responses/ID), and try again"
)


def stored(db: sqlite3.Connection, owner: str | None) -> Stored:
    """What an owner has; None: everybody together."""
    files, file_bytes = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(MAX(bytes, ?)), 0) FROM files WHERE ? IS NULL OR owner = ?",
        (LEAST_BYTES, owner, owner),
    ).fetchone()
    # A batch has its requests once more until they are answered.
    places = ", ".join("?" * len(UNFINISHED))
    (requests,) = db.execute(
        "SELECT COALESCE(SUM(bytes), 0) FROM batches JOIN files "
        f"ON files.id = json_extract(record, '$.input_file_id') WHERE status IN ({places}) "
        "AND (? IS NULL OR batches.owner = ?)",
        (*UNFINISHED, owner, owner),
    ).fetchone()
    (batches,) = db.execute(
        "SELECT COUNT(*) FROM batches WHERE ? IS NULL OR owner = ?", (owner, owner)
    ).fetchone()
    responses, response_bytes = db.execute(
        "SELECT COALESCE(SUM(count), 0), COALESCE(SUM(bytes), 0) FROM response_sums "
        "WHERE ? IS NULL OR owner = ?",
        (owner, owner),
    ).fetchone()
    return Stored(files, batches, responses, int(file_bytes + requests), response_bytes)


def by_owner(db: sqlite3.Connection, most: int) -> dict[str, Stored]:
    """What each owner has, `most` of them at most; empty: what nobody in particular has."""
    owners = db.execute(
        "SELECT owner FROM (SELECT COALESCE(owner, '') AS owner FROM files UNION SELECT COALESCE(owner, '') "
        "FROM batches UNION SELECT owner FROM response_sums) ORDER BY owner LIMIT ?",
        (most,),
    ).fetchall()
    return {owner: stored(db, owner) for (owner,) in owners}


def _forget_batches(db: sqlite3.Connection, owner: str, count: int) -> int:
    """Remove ended batches of an owner without files, the oldest first; how many were."""
    places = ", ".join("?" * len(UNFINISHED))
    rows = db.execute(
        f"SELECT id FROM batches WHERE owner = ? AND status NOT IN ({places}) AND NOT EXISTS "
        "(SELECT 1 FROM files WHERE files.batch_id = batches.id) ORDER BY number LIMIT ?",
        (owner, *UNFINISHED, max(count, _BATCHES_AT_A_TIME)),
    ).fetchall()
    db.executemany("DELETE FROM lines WHERE batch_id = ?", rows)
    db.executemany("DELETE FROM batches WHERE id = ?", rows)
    return len(rows)


def _words(there: Stored) -> str:
    return f"{there.files} files, {there.batches} batches, {there.responses} responses"
