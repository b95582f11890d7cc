"""How much is kept of files, and how long."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from router.batches.records import UNFINISHED
from tidepipe_common.errors import InvalidRequestError, StorageError
from tidepipe_common.numerals import count
from tidepipe_common.settings.defaults import FILES_BYTES, FILES_LIFETIME_S

MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 30 * 24 * 3600
"""What `expires_after` may say; OpenAI's."""
LARGEST_SHARE = 2
"""One owner's files may have the limit divided by this: nobody fills everybody's."""
LEAST_BYTES = 4096
"""That a file counts for: rows take room as well."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """max_bytes: of all files, batches' answers included.

    lifetime_s: of a file that brings none; 0: for ever.
    """

    max_bytes: int = FILES_BYTES
    lifetime_s: int = FILES_LIFETIME_S

    def check_room(self, db: sqlite3.Connection, size: int, owner: str = "") -> None:
        """StorageError if a file of that size is too much beside those that are there, or those of its owner.

        One whose content is still on its way counts already. What others have is nobody's business.
        """
        counted = max(size, LEAST_BYTES)
        if owner:
            most, used = self.max_bytes // LARGEST_SHARE, _used(db, owner)
            if used + counted > most:
                raise StorageError(
                    f"your files may have {most} bytes together, {used} are stored, and this has {size}: "
                    "delete files that are not needed any more, and try again"
                )
        used = _used(db, None)
        if used + counted > self.max_bytes:
            stored = "" if owner else f", {used} are stored"
            raise StorageError(
                f"files may have {self.max_bytes} bytes together (--files-max-bytes){stored}, and this has "
                f"{size}: delete files that are not needed any more, and try again"
            )

    def expiry(self, created: int, wanted_s: int | None = None) -> int | None:
        """Unix time at which a file ends; None: never. wanted_s: seconds that its owner asked for."""
        seconds = self.lifetime_s if wanted_s is None else wanted_s
        return created + seconds if seconds else None


def _used(db: sqlite3.Connection, owner: str | None) -> int:
    """Bytes of somebody's files and unfinished batches; None: everybody's."""
    (stored,) = db.execute(
        "SELECT COALESCE(SUM(MAX(bytes, ?)), 0) FROM files WHERE ? IS NULL OR owner = ?",
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
    return int(stored + requests)


def expires_after(anchor: object, seconds: object) -> int | None:
    """Seconds of OpenAI's `expires_after`; None if it is not there.

    InvalidRequestError if it makes no sense.
    """
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError("expires_after[anchor] must be 'created_at'", "expires_after[anchor]")
    number = count(seconds, MAX_EXPIRES_S) if isinstance(seconds, str) else None
    if number is None or number < MIN_EXPIRES_S:
        raise InvalidRequestError(
            f"expires_after[seconds] must be a whole number from {MIN_EXPIRES_S} to {MAX_EXPIRES_S}",
            "expires_after[seconds]",
        )
    return number
