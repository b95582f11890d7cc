"""The end of whatever runs for API keys that were revoked or have expired."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from router.requests.table import RequestTable
from tidepipe_common.errors import UnauthenticatedError
from tidepipe_common.security.key_access import ENDED, KeyAccess

LOOK_S = 0.2
"""With the time in which the key store notices, within a second."""

log = structlog.get_logger()


class Batches(Protocol):
    """What runs in the background."""

    def end_revoked(self) -> None:
        """Work no more for keys that have ended."""
        ...


async def end_revoked(keys: KeyAccess, table: RequestTable, batches: Batches | None) -> None:
    """Look again and again, until cancelled. Streams end with an error, batches as failed."""
    while True:
        await asyncio.sleep(LOOK_S)
        for owner in table.owners:
            if keys.ended(owner):
                log.info("requests end with their key", key=owner)
                table.fail_owner(owner, UnauthenticatedError(ENDED))
        if batches is not None:
            batches.end_revoked()
        keys.end_calls()
