"""KV blocks that travel: protobuf <-> domain (`controller.proto`, `stage.proto`)."""

from __future__ import annotations

from collections.abc import Sequence

from tidepipe.v1 import controller_pb2, stage_pb2
from tidepipe_common.codec.numbers import strange_number
from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import check_characters, check_count
from tidepipe_common.prefix import KEY_BYTES
from tidepipe_common.types.kv_transfer import (
    LATENCY_S,
    LEASE_S,
    MOST_LEASE_S,
    KvFetch,
    KvFetched,
    KvGrant,
    KvHandle,
    KvOrders,
    KvPiece,
    KvStage,
    KvTransfer,
    KvWanted,
    KvWay,
)

TICKET_BYTES = 16
MOST_STAGES = 256
MOST_CHARACTERS = 512
LONGEST_NODE = 255
"""Characters of a node's name that are told."""
MOST_BARRED = 64
"""Sources that a report names."""


def handle_to_wire(handle: KvHandle) -> controller_pb2.KvHandle:
    """Domain to protobuf."""
    return controller_pb2.KvHandle(
        model_fingerprint=handle.fingerprint,
        dtype=handle.dtype,
        kv_layout=handle.layout,
        block_size=handle.block_size,
        ticket=bytes.fromhex(handle.ticket),
        computed_tokens=handle.computed,
        block_bytes=handle.block_bytes,
        lease_ms=int(1000 * handle.lease_s),
        stages=[
            controller_pb2.KvStage(
                address=one.address, layer_begin=one.layer_begin, layer_end=one.layer_end, epoch=one.epoch
            )
            for one in handle.stages
        ],
        reason=handle.reason,
        last_key=bytes.fromhex(handle.last_key),
        giver=handle.giver,
    )


def handle_from_wire(message: controller_pb2.KvHandle) -> KvHandle:
    """Protobuf to domain, as far as `check_handle` lets it through."""
    return KvHandle(
        fingerprint=message.model_fingerprint,
        dtype=message.dtype,
        layout=message.kv_layout,
        block_size=message.block_size,
        ticket=message.ticket.hex(),
        computed=message.computed_tokens,
        block_bytes=message.block_bytes,
        lease_s=lease_from_wire(message.lease_ms),
        stages=tuple(
            KvStage(one.address, one.layer_begin, one.layer_end, one.epoch) for one in message.stages
        ),
        reason=message.reason,
        last_key=message.last_key.hex(),
        giver=message.giver,
    )


def check_handle(message: controller_pb2.KvHandle) -> None:
    """Raise InvalidRequestError if it carries more than it may."""
    if len(message.ticket) not in (0, TICKET_BYTES):
        raise InvalidRequestError(f"a ticket has {TICKET_BYTES} bytes, got {len(message.ticket)}", "kv")
    if len(message.last_key) not in (0, KEY_BYTES):
        raise InvalidRequestError(f"a key has {KEY_BYTES} bytes, got {len(message.last_key)}", "kv")
    check_count("kv", len(message.stages), MOST_STAGES, "stages")
    texts = (message.model_fingerprint, message.dtype, message.kv_layout, message.reason, message.giver)
    for text in (*texts, *(one.address for one in message.stages)):
        check_characters("kv", text, MOST_CHARACTERS)


def transfer_to_wire(transfer: KvTransfer, barred: Sequence[str]) -> controller_pb2.KvTransfer:
    """Domain to protobuf. barred: instances from which nothing is fetched for now."""
    return controller_pb2.KvTransfer(
        token_bytes=transfer.token_bytes,
        bytes_per_s=transfer.far.bytes_per_s,
        latency_s=transfer.far.latency_s,
        under_way_bytes=transfer.far.under_way,
        near_bytes_per_s=transfer.near.bytes_per_s,
        near_latency_s=transfer.near.latency_s,
        near_under_way_bytes=transfer.near.under_way,
        node=transfer.node if len(transfer.node) <= LONGEST_NODE else "",
        barred=barred[:MOST_BARRED],
    )


def transfer_from_wire(told: controller_pb2.KvTransfer) -> KvTransfer:
    """Protobuf to domain."""
    return KvTransfer(
        told.token_bytes,
        KvWay(told.bytes_per_s, told.latency_s or LATENCY_S, told.under_way_bytes),
        KvWay(told.near_bytes_per_s, told.near_latency_s or LATENCY_S, told.near_under_way_bytes),
        told.node[:LONGEST_NODE],
    )


def lease_from_wire(lease_ms: int) -> float:
    """Milliseconds to seconds; 0: the usual."""
    return min(lease_ms / 1000, MOST_LEASE_S) if lease_ms else LEASE_S


def orders_to_wire(epoch: int, orders: KvOrders) -> stage_pb2.RunRequest:
    """Domain to protobuf."""
    return stage_pb2.RunRequest(
        epoch=epoch,
        grants=[
            stage_pb2.KvGrant(
                ticket=bytes.fromhex(one.ticket),
                blocks=one.blocks,
                after_step=one.after_step,
                total=one.total,
            )
            for one in orders.grants
        ],
        revoked_tickets=[bytes.fromhex(ticket) for ticket in orders.revoked],
        fetches=[_fetch_to_wire(one) for one in orders.fetches],
    )


def _fetch_to_wire(fetch: KvFetch) -> stage_pb2.KvFetch:
    return stage_pb2.KvFetch(
        fetch_id=fetch.fetch_id,
        ticket=bytes.fromhex(fetch.ticket),
        first=fetch.first,
        blocks=fetch.blocks,
        after_step=fetch.after_step,
        timeout_s=fetch.timeout_s,
        parts=[
            stage_pb2.KvPart(
                address=one.address, epoch=one.epoch, layer_begin=one.layer_begin, layer_end=one.layer_end
            )
            for one in fetch.parts
        ],
        ahead=fetch.ahead,
    )


def orders_from_wire(message: stage_pb2.RunRequest) -> KvOrders | None:
    """Protobuf to domain; None if the message has none. ValueError: one of them cannot be."""
    if not (message.grants or message.revoked_tickets or message.fetches):
        return None
    tickets = [
        *message.revoked_tickets,
        *[one.ticket for one in message.grants],
        *[one.ticket for one in message.fetches],
    ]
    if any(len(ticket) > TICKET_BYTES for ticket in tickets):
        raise ValueError(f"a ticket has {TICKET_BYTES} bytes")
    for one in message.fetches:
        if fault := strange_number(one):
            raise ValueError(f"fetch {one.fetch_id} has {fault}, which cannot be")
    return KvOrders(
        tuple(
            KvGrant(one.ticket.hex(), tuple(one.blocks), one.after_step, one.total) for one in message.grants
        ),
        tuple(ticket.hex() for ticket in message.revoked_tickets),
        tuple(
            KvFetch(
                one.fetch_id,
                one.ticket.hex(),
                one.first,
                tuple(one.blocks),
                one.after_step,
                min(one.timeout_s, MOST_LEASE_S),
                tuple(
                    KvStage(part.address, part.layer_begin, part.layer_end, part.epoch) for part in one.parts
                ),
                one.ahead,
            )
            for one in message.fetches
        ),
    )


def fetched_to_wire(news: KvFetched) -> stage_pb2.RunResponse:
    """Domain to protobuf."""
    fetched = stage_pb2.KvFetched(
        fetch_id=news.fetch_id, error=news.error, bytes=news.nbytes, seconds=news.seconds, gone=news.gone
    )
    return stage_pb2.RunResponse(fetched=fetched)


def fetched_from_wire(message: stage_pb2.KvFetched) -> KvFetched:
    """Protobuf to domain."""
    return KvFetched(message.fetch_id, message.error, message.bytes, message.seconds, message.gone)


def wanted_to_wire(wanted: KvWanted) -> stage_pb2.FetchBlocksRequest:
    """Domain to protobuf."""
    return stage_pb2.FetchBlocksRequest(
        epoch=wanted.epoch,
        ticket=bytes.fromhex(wanted.ticket),
        layer_begin=wanted.layer_begin,
        layer_end=wanted.layer_end,
        first=wanted.first,
        count=wanted.count,
        kv_layout=wanted.layout,
    )


def wanted_from_wire(message: stage_pb2.FetchBlocksRequest) -> KvWanted:
    """Protobuf to domain."""
    return KvWanted(
        message.epoch,
        message.ticket.hex(),
        message.layer_begin,
        message.layer_end,
        message.first,
        message.count,
        message.kv_layout,
    )


def piece_to_wire(piece: KvPiece) -> stage_pb2.FetchBlocksResponse:
    """Domain to protobuf."""
    return stage_pb2.FetchBlocksResponse(
        layer=piece.layer, first=piece.first, count=piece.count, data=piece.data
    )


def piece_from_wire(message: stage_pb2.FetchBlocksResponse) -> KvPiece:
    """Protobuf to domain."""
    return KvPiece(message.layer, message.first, message.count, message.data)
