"""KV blocks of a stage that go to stages of other instances, and that come from them.

What is granted, and what is fetched, the controller says, between the plans of steps: a granted block is
written to by no step before its grant is revoked here. Bytes are read beside the compute thread, and then
sent only if the grant still stands: what was read before the revocation is right.

A fetch asks for each stage that holds layers of this one, layer by layer; a stream that breaks is asked again
from where it was, a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from stage_worker.block_source import BlockSources
from stage_worker.executors.protocol import KvAccess
from stage_worker.link import describe
from tidepipe_common.errors import IncompatibleError, InvalidRequestError
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.kv_transfer import (
    KvFetch,
    KvFetched,
    KvGrant,
    KvOrders,
    KvPiece,
    KvStage,
    KvWanted,
)

MESSAGE_BYTES = 1 << 20
"""Of blocks in one message; one block of one layer if that is larger."""
AT_ONCE = 4
"""Fetches that a stage serves, or does, side by side; the others wait. Streams bound what is on the way."""
TRIES = 3
RETRY_S = 0.2
MOST_GRANTS = 8192
MOST_FETCHES = 8192
GRANT_WAIT_S = 2.0
"""For a grant that is asked for before it is here: the handle goes another way, which may be quicker."""
REMEMBERED = 1024
"""Tickets that were revoked lately: for those nobody waits."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Place:
    """How far the fetch of one part has come: all before this layer and place within it is here."""

    layer: int
    done: int = 0


class KvTransfers:
    """Grants and fetches of one epoch of a stage. All methods run on the event loop."""

    def __init__(
        self,
        epoch: int,
        layers: tuple[int, int],
        access: KvAccess | None,
        kv_blocks: int,
        max_message_bytes: int,
        report: Callable[[KvFetched], None],
    ) -> None:
        """layers: first, and one past the last. access: None: nothing travels. report: of ended fetches."""
        self._epoch = epoch
        self._layers = layers
        self._access = access
        self._kv_blocks = kv_blocks
        self._report = report
        self._grants: dict[str, KvGrant] = {}
        self._revoked: OrderedDict[str, None] = OrderedDict()
        self._granting = Notifier()
        self._sources = BlockSources(max_message_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = asyncio.Semaphore(AT_ONCE)
        self._fetching = asyncio.Semaphore(AT_ONCE)
        self._steps_done = 0
        self._stepped = Notifier()
        self._await_steps = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def order(self, orders: KvOrders) -> None:
        """What the controller wants. ValueError: that makes no sense."""
        for ticket in orders.revoked:
            self._grants.pop(ticket, None)
            self._revoked[ticket] = None
            if len(self._revoked) > REMEMBERED:
                self._revoked.popitem(last=False)
        for grant in orders.grants:
            self._grant(grant)
        if orders.grants:
            self._granting.notify_all()
        for fetch in orders.fetches:
            if len(self._tasks) >= MOST_FETCHES:
                raise ValueError(f"more than {MOST_FETCHES} fetches at a time")
            if any(not 0 <= block < self._kv_blocks for block in fetch.blocks):
                raise ValueError(f"fetch {fetch.fetch_id} names blocks that the pool does not have")
            task = asyncio.create_task(self._run(fetch), name=f"fetch-{fetch.fetch_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _grant(self, grant: KvGrant) -> None:
        if len(self._grants) >= MOST_GRANTS:
            raise ValueError(f"more than {MOST_GRANTS} grants at a time")
        if any(not 0 <= block < self._kv_blocks for block in grant.blocks):
            raise ValueError("a grant names blocks that the pool does not have")
        self._grants[grant.ticket] = grant

    def step_done(self, step_id: int) -> None:
        """All steps up to this one have left the compute thread."""
        self._steps_done = step_id
        if self._await_steps:
            self._stepped.notify_all()

    async def _until_done(self, step_id: int) -> None:
        """Return when that step, and all before it, have left the compute thread."""
        self._await_steps += 1
        try:
            while self._steps_done < step_id:
                await self._stepped.next().wait()
        finally:
            self._await_steps -= 1

    async def close(self) -> None:
        """End all of it; returns when nothing is written any more."""
        self._grants.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sources.close()

    # -- handing out --------------------------------------------------------------------------------

    async def serve(self, wanted: KvWanted) -> AsyncIterator[KvPiece]:
        """The blocks that are asked for. IncompatibleError, InvalidRequestError."""
        access, ticket = self._access, wanted.ticket
        await self._until_granted(ticket)
        await self._until_done(self._granted(ticket).after_step)
        blocks = self._granted(ticket).blocks
        if access is None or access.layout != wanted.layout:
            ours = "none" if access is None else access.layout
            raise IncompatibleError(f"KV blocks are laid out as {ours} here, as {wanted.layout} there")
        begin, end = self._layers
        if not begin <= wanted.layer_begin < wanted.layer_end <= end:
            raise InvalidRequestError(
                f"layers {wanted.layer_begin} to {wanted.layer_end - 1} are not all among {begin} to "
                f"{end - 1}"
            )
        last = wanted.first + wanted.count
        if not 0 < wanted.count <= len(blocks) - wanted.first:
            raise InvalidRequestError(f"blocks {wanted.first} to {last - 1} are not within {len(blocks)}")
        size = max(1, MESSAGE_BYTES // access.layer_block_bytes)
        async with self._serving:
            for layer in range(wanted.layer_begin, wanted.layer_end):
                for first in range(wanted.first, last, size):
                    count = min(size, last - first)
                    data = await asyncio.to_thread(access.read, layer, blocks[first : first + count])
                    # It was read before it could be written to, if it is still granted now.
                    self._granted(ticket)
                    nbytes = count * access.layer_block_bytes
                    if (way_s := access.way_out_s(nbytes)) > 0:
                        await asyncio.sleep(way_s)
                    self.sent_bytes += nbytes
                    yield KvPiece(layer, first, count, data)

    async def _until_granted(self, ticket: str) -> None:
        """Return when it is, or may be waited for no longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRANT_WAIT_S):
                while ticket not in self._grants and ticket not in self._revoked:
                    await self._granting.next().wait()

    def _granted(self, ticket: str) -> KvGrant:
        grant = self._grants.get(ticket)
        if grant is None:
            raise IncompatibleError("the grant of these KV blocks is over, or never was")
        return grant

    # -- fetching -----------------------------------------------------------------------------------

    async def _run(self, fetch: KvFetch) -> None:
        began, error, nbytes, gone = time.monotonic(), "", 0, False
        try:
            async with asyncio.timeout(fetch.timeout_s), self._fetching:
                await self._until_done(fetch.after_step)
                nbytes = await self._fetch(fetch)
        except TimeoutError:
            error = f"not here within {fetch.timeout_s:.1f} s"
        except grpc.aio.AioRpcError as broken:
            error, gone = describe(broken), broken.code() is grpc.StatusCode.FAILED_PRECONDITION
        except (ValueError, ConnectionError) as wrong:
            error = str(wrong)
        except Exception as wrong:
            # Whoever waits for it must hear of it.
            log.exception("a fetch failed", fetch=fetch.fetch_id)
            error = repr(wrong)
        seconds = time.monotonic() - began
        if error:
            log.warning("KV blocks did not come", fetch=fetch.fetch_id, reason=error)
        self.received_bytes += nbytes
        self._report(KvFetched(fetch.fetch_id, error, nbytes, seconds, gone))

    async def _fetch(self, fetch: KvFetch) -> int:
        """All parts side by side; bytes that came."""
        begin, end = self._layers
        parts = [
            KvStage(one.address, max(begin, one.layer_begin), min(end, one.layer_end), one.epoch)
            for one in fetch.parts
            if one.layer_begin < end and one.layer_end > begin
        ]
        parts.sort(key=lambda one: one.layer_begin)
        covered = begin
        for part in parts:
            if part.layer_begin != covered:
                raise ValueError(f"nobody says to have layer {covered}")
            covered = part.layer_end
        if covered != end:
            raise ValueError(f"nobody says to have layer {covered}")
        tasks = [asyncio.create_task(self._fetch_part(fetch, part)) for part in parts]
        try:
            return sum(await asyncio.gather(*tasks))
        finally:
            # Who writes must have ended before anybody is told that the blocks are free.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch_part(self, fetch: KvFetch, part: KvStage) -> int:
        place, nbytes, tries = _Place(part.layer_begin), 0, 0
        while place.layer < part.layer_end:
            before = place.layer
            try:
                nbytes += await self._stream(fetch, part, place)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                tries = tries + 1 if place.layer == before else 1
                if tries >= TRIES:
                    raise
                await asyncio.sleep(RETRY_S)
        return nbytes

    async def _stream(self, fetch: KvFetch, part: KvStage, place: _Place) -> int:
        """Take one stream in; what came is counted in `place` as well."""
        access = self._access
        if access is None:
            raise ValueError("this stage takes no KV blocks over")
        nbytes, count = 0, len(fetch.blocks)
        # From the layer that is not whole yet: nobody asks for a part of a layer.
        place.done = 0
        wanted = KvWanted(
            part.epoch, fetch.ticket, place.layer, part.layer_end, fetch.first, count, access.layout
        )
        async with aclosing(self._sources.stream(part.address, wanted, fetch.timeout_s)) as pieces:
            async for piece in pieces:
                first = piece.first - fetch.first
                fits = piece.layer == place.layer and first == place.done
                if not (fits and 0 < piece.count <= count - first):
                    raise ValueError(f"blocks of layer {piece.layer} from {piece.first} on came out of turn")
                blocks = fetch.blocks[first : first + piece.count]
                await _whole(asyncio.to_thread(access.write, piece.layer, blocks, piece.data))
                size = piece.count * access.layer_block_bytes
                if (way_s := access.way_s(size)) > 0:
                    await asyncio.sleep(way_s)
                nbytes += size
                place.done += piece.count
                if place.done == count:
                    place.layer, place.done = place.layer + 1, 0
        if place.layer < part.layer_end:
            raise ConnectionError(f"the stage at {part.address} ended the stream in layer {place.layer}")
        return nbytes


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Wait for a thread's work, also when cancelled: nobody can stop it, and it writes."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
