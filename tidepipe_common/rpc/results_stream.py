"""ControllerService.WatchResults over a hub of results."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from tidepipe.v1 import controller_pb2
from tidepipe_common.codec.controller import update_to_wire
from tidepipe_common.limits import PIECE_BYTES
from tidepipe_common.types.results import Mailbox, ResultsHub, SequenceUpdate

UPDATES_PER_MESSAGE = 512
IDS_PER_MESSAGE = 1024


async def stream_results(
    hub: ResultsHub,
    request: controller_pb2.WatchResultsRequest,
    incarnation: str,
    drop: Callable[[str], None],
) -> AsyncIterator[controller_pb2.WatchResultsResponse]:
    """Answer the router's positions, then tell all that is new, until a newer watcher of it comes.

    drop: ends a sequence that the router does not know of.
    """
    router_id = request.router_id
    box = hub.mailbox(router_id)
    box.watcher += 1
    mine = box.watcher
    box.unwatched_since = None
    box.news.set()  # an older watcher wakes up and leaves
    positions = {one.sequence_id: one.output_tokens for one in request.positions}
    lost, unwanted = hub.reposition(router_id, positions)
    for sequence_id in unwanted:
        drop(sequence_id)
    try:
        yield controller_pb2.WatchResultsResponse(incarnation=incarnation)
        for message in _losses(lost):
            yield message
        while True:
            await box.news.wait()
            if box.watcher != mine:
                return
            for message in (*_losses(box.take_lost()), *_messages(hub.collect(router_id))):
                yield message
    finally:
        _leave(box, mine)


def _leave(box: Mailbox, watcher: int) -> None:
    if box.watcher == watcher:
        box.unwatched_since = time.monotonic()


def _losses(lost: Sequence[str]) -> Iterator[controller_pb2.WatchResultsResponse]:
    for begin in range(0, len(lost), IDS_PER_MESSAGE):
        ids = lost[begin : begin + IDS_PER_MESSAGE]
        yield controller_pb2.WatchResultsResponse(lost_sequence_ids=ids)


def _messages(updates: Sequence[SequenceUpdate]) -> Iterator[controller_pb2.WatchResultsResponse]:
    """As few as may be, of PIECE_BYTES or one update each."""
    message, size = controller_pb2.WatchResultsResponse(), 0
    for update in updates:
        entry = update_to_wire(update)
        entry_size = entry.ByteSize()
        if size and (size + entry_size > PIECE_BYTES or len(message.updates) == UPDATES_PER_MESSAGE):
            yield message
            message, size = controller_pb2.WatchResultsResponse(), 0
        message.updates.append(entry)
        size += entry_size
    if size:
        yield message
