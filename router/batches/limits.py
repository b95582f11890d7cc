"""Limits of stored files, in bytes and in days."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from router.batches.quotas import LEAST_BYTES, Quotas, stored
from tidepipe_common.errors import InvalidRequestError, StorageError
from tidepipe_common.numerals import count
from tidepipe_common.settings.defaults import FILES_BYTES, FILES_LIFETIME_S

MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 30 * 24 * 3600
"""What `expires_after` may say; OpenAI's."""
LARGEST_SHARE = 2
"""One owner's files may have the limit divided by this: nobody fills everybody's."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """max_bytes: of all files, batches' answers included.

    lifetime_s: of a file that brings none; 0: for ever. quotas: of what each owner may store.
    """

    max_bytes: int = FILES_BYTES
    lifetime_s: int = FILES_LIFETIME_S
    quotas: Quotas = field(default_factory=Quotas)

    def check_room(self, db: sqlite3.Connection, size: int, owner: str = "") -> None:
        """StorageError if a file of that size is too much beside those that are there, or those of its owner.

        One whose content is still on its way counts already. What others have is nobody's business.
        QuotaError if it is more than its owner may store.
        """
        counted = max(size, LEAST_BYTES)
        self.quotas.check(db, owner, counted)
        if owner:
            most, used = self.max_bytes // LARGEST_SHARE, stored(db, owner).file_bytes
            if used + counted > most:
                raise StorageError(
                    f"your files may have {most} bytes together, {used} are stored, and this has {size}: "
                    "delete files that are not needed any more, and try again"
                )
        used = stored(db, None).file_bytes
        if used + counted > self.max_bytes:
            known = "" if owner else f", {used} are stored"
            raise StorageError(
                f"files may have {self.max_bytes} bytes together (--files-max-bytes){known}, and this has "
                f"{size}: delete files that are not needed any more, and try again"
            )

    def expiry(self, created: int, wanted_s: int | None = None) -> int | None:
        """Unix time at which a file ends; None: never. wanted_s: seconds that its owner asked for."""
        seconds = self.lifetime_s if wanted_s is None else wanted_s
        return created + seconds if seconds else None


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
