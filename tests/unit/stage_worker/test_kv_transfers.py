"""What travels between stages belongs to one epoch, and ends with it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import cast

import pytest

from stage_worker.executors.protocol import KvAccess
from stage_worker.hand_over import KvTransfers
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.types.kv_transfer import KvGrant, KvOrders, KvWanted


class Pool:
    """Stands for the KV blocks of a device, of which no step has written any."""

    layout = "as there"
    layer_block_bytes = 8

    def layers_stored(self, step_id: int) -> int:
        return 0


async def test_what_has_ended_holds_no_pool() -> None:
    """Who still reports, or waits to be served, may stay for longer: a device has no room for two pools."""
    pool = Pool()
    gone = weakref.ref(pool)
    transfers = KvTransfers(1, (0, 1), cast(KvAccess, pool), 4, 1 << 20, lambda fetched: None)
    del pool
    transfers.order(KvOrders(grants=(KvGrant("t", (0, 1), after_step=5),)))
    pieces = transfers.serve(KvWanted(1, "t", 0, 1, 0, 2, "as there"))
    gc.disable()
    try:
        served = asyncio.ensure_future(anext(aiter(pieces)))
        await asyncio.sleep(0.01)
        assert not served.done(), "it waits for the step that computes its blocks"
        await transfers.close()
        with pytest.raises(IncompatibleError):
            async with asyncio.timeout(10):
                await served
        assert gone() is None
    finally:
        gc.enable()
