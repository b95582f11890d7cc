"""What travels between stages belongs to one epoch, and ends with it."""

from __future__ import annotations

import gc
import weakref
from typing import cast

from stage_worker.executors.protocol import KvAccess
from stage_worker.hand_over import KvTransfers


class Pool:
    """Stands for the KV blocks of a device."""


async def test_what_has_ended_holds_no_pool() -> None:
    """Who still reports may hold the rest for longer: a device has no room for two pools."""
    pool = Pool()
    gone = weakref.ref(pool)
    transfers = KvTransfers(1, (0, 1), cast(KvAccess, pool), 4, 1 << 20, lambda fetched: None)
    del pool
    gc.disable()
    try:
        await transfers.close()
        assert gone() is None
    finally:
        gc.enable()
