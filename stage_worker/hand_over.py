"""KV blocks of a stage that go to stages of other instances, and that come from them.

What is granted, and what is fetched, the controller says, between the plans of steps: a granted block is
written to by no step before its grant is revoked here. Bytes are read beside the compute thread, and then
sent only if the grant still stands: what was read before the revocation is right.

A fetch asks for each stage that holds layers of this one, layer by layer; a stream that breaks is asked again
from where it was, a few times.

A grant may grow while its prompt is computed: then blocks are sent as soon as they are written, of the parts
that one step computes one after the other, and of the step under way layer by layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
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
AHEAD_AT_ONCE = 32
"""Likewise of blocks that are still being computed, which mostly wait for that."""
STORED_S = 0.005
"""How far the step under way is, is looked at so often."""
TRIES = 3
RETRY_S = 0.2
MOST_GRANTS = 8192
MOST_FETCHES = 8192
GRANT_WAIT_S = 2.0
"""For a grant that is asked for before it is here: the handle goes another way, which may be quicker."""
REMEMBERED = 1024
"""Tickets that were revoked lately: for those nobody waits."""

log = structlog.get_logger()


class _Place:
    """How far the fetch of one part has come: so many leading blocks of each of its layers are here."""

    def __init__(self, part: KvStage, count: int) -> None:
        """count: blocks of each layer."""
        self._begin, self._count = part.layer_begin, count
        self._done = [0] * (part.layer_end - part.layer_begin)

    @property
    def whole(self) -> bool:
        """Is all of it here?"""
        return min(self._done) == self._count

    def restart(self) -> tuple[int, int]:
        """Layer and block from which on it is asked for (again): all before that is here."""
        layer = next(i for i, done in enumerate(self._done) if done < self._count)
        first = min(self._done[layer:])
        for i in range(layer, len(self._done)):
            self._done[i] = first
        return self._begin + layer, first

    def take(self, layer: int, first: int, count: int) -> None:
        """Some blocks of a layer have come. ValueError: not in turn."""
        index = layer - self._begin
        fits = 0 <= index < len(self._done) and first == self._done[index]
        if not (fits and 0 < count <= self._count - first):
            raise ValueError(f"blocks of layer {layer} from {first} on came out of turn")
        self._done[index] += count


class _Granted:
    """A grant, as far as it has grown. parts: (one past the last block, the step that computes it)."""

    def __init__(self, grant: KvGrant) -> None:
        self.blocks: tuple[int, ...] = ()
        self.total = grant.total or len(grant.blocks)
        self.parts: list[tuple[int, int]] = []
        self.grow(grant)

    def grow(self, grant: KvGrant) -> None:
        """More blocks. ValueError: more than were announced, or none."""
        if not grant.blocks or len(self.blocks) + len(grant.blocks) > self.total:
            raise ValueError(
                f"a grant of {self.total} blocks has {len(self.blocks)}, and {len(grant.blocks)} more come"
            )
        self.blocks += grant.blocks
        self.parts.append((len(self.blocks), grant.after_step))

    def part_of(self, block: int) -> tuple[int, int] | None:
        """See `parts`: of that block; None: it has not come so far."""
        return next((part for part in self.parts if block < part[0]), None)


class _Slot:
    """A place among those that are served, which is given up while there is nothing to send."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._held = False

    async def take(self) -> None:
        """Wait for one, unless it is held already."""
        if not self._held:
            await self._places.acquire()
            self._held = True

    def leave(self) -> None:
        """Give it up, if it is held."""
        if self._held:
            self._places.release()
            self._held = False


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
        self._grants: dict[str, _Granted] = {}
        self._revoked: OrderedDict[str, None] = OrderedDict()
        self._granting = Notifier()
        self._sources = BlockSources(max_message_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = asyncio.Semaphore(AT_ONCE)
        self._fetching = asyncio.Semaphore(AT_ONCE)
        self._ahead = asyncio.Semaphore(AHEAD_AT_ONCE)
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
        if orders.grants or orders.revoked:
            self._granting.notify_all()
        for fetch in orders.fetches:
            if len(self._tasks) >= MOST_FETCHES:
                raise ValueError(f"more than {MOST_FETCHES} fetches at a time")
            if not self._has(fetch.blocks):
                raise ValueError(f"fetch {fetch.fetch_id} names blocks that the pool does not have")
            task = asyncio.create_task(self._run(fetch), name=f"fetch-{fetch.fetch_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _grant(self, grant: KvGrant) -> None:
        if not self._has(grant.blocks) or grant.total > self._kv_blocks:
            raise ValueError("a grant names blocks that the pool does not have")
        if (known := self._grants.get(grant.ticket)) is not None:
            known.grow(grant)
            return
        if len(self._grants) >= MOST_GRANTS:
            raise ValueError(f"more than {MOST_GRANTS} grants at a time")
        self._grants[grant.ticket] = _Granted(grant)

    def _has(self, blocks: Sequence[int]) -> bool:
        return len(blocks) <= self._kv_blocks and all(0 <= block < self._kv_blocks for block in blocks)

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
        """End all of it; returns when nothing is written any more.

        The KV pool is given up: who still reports or streams may hold this for longer, and a device has no
        room for the next epoch's beside it.
        """
        self._grants.clear()
        self._access = None
        # Those that are served wait for no more.
        self._granting.notify_all()
        self._stepped.notify_all()
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
        total = self._granted(ticket).total
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
        if not 0 < wanted.count <= total - wanted.first:
            raise InvalidRequestError(f"blocks {wanted.first} to {last - 1} are not within {total}")
        layer_bytes = access.layer_block_bytes
        size = max(1, MESSAGE_BYTES // layer_bytes)
        del access  # whoever takes pieces slowly must not hold the pool of an epoch that is over
        begin, slot = wanted.first, _Slot(self._serving)
        try:
            while begin < last:
                end, step_id = await self._part(ticket, begin, slot)
                end = min(end, last)
                for layer in range(wanted.layer_begin, wanted.layer_end):
                    await self._until_stored(ticket, step_id, layer, slot)
                    for first in range(begin, end, size):
                        count = min(size, end - first)
                        blocks = self._granted(ticket).blocks[first : first + count]
                        data = await asyncio.to_thread(self._pool().read, layer, blocks)
                        # It was read before it could be written to, if it is still granted now.
                        self._granted(ticket)
                        nbytes = count * layer_bytes
                        if (way_s := self._pool().way_out_s(nbytes)) > 0:
                            await asyncio.sleep(way_s)
                        self.sent_bytes += nbytes
                        yield KvPiece(layer, first, count, data)
                begin = end
        finally:
            slot.leave()

    async def _part(self, ticket: str, block: int, slot: _Slot) -> tuple[int, int]:
        """Where the part of the grant ends that this block is in, and the step that computes it."""
        while (part := self._granted(ticket).part_of(block)) is None:
            slot.leave()
            await self._granting.next().wait()
        return part

    async def _until_stored(self, ticket: str, step_id: int, layer: int, slot: _Slot) -> None:
        """Return when that step has written the layer, with a slot. IncompatibleError: the grant is over."""
        own = layer - self._layers[0]
        while self._steps_done < step_id and self._pool().layers_stored(step_id) <= own:
            self._granted(ticket)
            slot.leave()
            self._await_steps += 1
            try:
                with contextlib.suppress(TimeoutError):
                    # It may be under way: nobody tells of its layers.
                    due = self._steps_done >= step_id - 1
                    async with asyncio.timeout(STORED_S if due else None):
                        await self._stepped.next().wait()
            finally:
                self._await_steps -= 1
        await slot.take()

    async def _until_granted(self, ticket: str) -> None:
        """Return when it is, or may be waited for no longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRANT_WAIT_S):
                while ticket not in self._grants and ticket not in self._revoked:
                    await self._granting.next().wait()

    def _pool(self) -> KvAccess:
        if self._access is None:
            raise IncompatibleError("the epoch of these KV blocks is over")
        return self._access

    def _granted(self, ticket: str) -> _Granted:
        grant = self._grants.get(ticket)
        if grant is None:
            raise IncompatibleError("the grant of these KV blocks is over, or never was")
        return grant

    # -- fetching -----------------------------------------------------------------------------------

    async def _run(self, fetch: KvFetch) -> None:
        began, error, nbytes, gone = time.monotonic(), "", 0, False
        try:
            slots = self._ahead if fetch.ahead else self._fetching
            async with asyncio.timeout(fetch.timeout_s), slots:
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
        place, nbytes, tries = _Place(part, len(fetch.blocks)), 0, 0
        while not place.whole:
            before = place.restart()
            try:
                nbytes += await self._stream(fetch, part, place)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                tries = tries + 1 if place.restart() == before else 1
                if tries >= TRIES:
                    raise
                await asyncio.sleep(RETRY_S)
        return nbytes

    async def _stream(self, fetch: KvFetch, part: KvStage, place: _Place) -> int:
        """Take one stream in; what came is counted in `place` as well."""
        access = self._access
        if access is None:
            raise ValueError("this stage takes no KV blocks over")
        nbytes = 0
        layer, begin = place.restart()
        count = len(fetch.blocks) - begin
        wanted = KvWanted(
            part.epoch, fetch.ticket, layer, part.layer_end, fetch.first + begin, count, access.layout
        )
        async with aclosing(self._sources.stream(part.address, wanted, fetch.timeout_s)) as pieces:
            async for piece in pieces:
                first = piece.first - fetch.first
                place.take(piece.layer, first, piece.count)
                blocks = fetch.blocks[first : first + piece.count]
                await _whole(asyncio.to_thread(access.write, piece.layer, blocks, piece.data))
                size = piece.count * access.layer_block_bytes
                if (way_s := access.way_s(size)) > 0:
                    await asyncio.sleep(way_s)
                nbytes += size
        if not place.whole:
            raise ConnectionError(
                f"the stage at {part.address} ended the stream in layer {place.restart()[0]}"
            )
        return nbytes


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Wait for a thread's work, also when cancelled: nobody can stop it, and it writes."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
