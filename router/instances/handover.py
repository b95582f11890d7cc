"""Hands sequences over to an instance: what is queued travels together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc
import structlog

from router.instances.placement import Placement, Stay
from router.instances.wire import sequence_spec
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import controller_pb2_grpc as pb_grpc
from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.limits import PIECE_BYTES, SPEC_BYTES
from tidepipe_common.rpc.status import from_rpc_error

SUBMIT_TIMEOUT_S = 10.0
RETRY_S = 0.2
MAX_BATCH_SEQUENCES = 256
MAX_FAILURES = 3
"""Calls that the instance answered with an error that waiting does not heal."""

_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

log = structlog.get_logger()


class HandOverHost(Protocol):
    """The link, as its hand-over sees it."""

    def bounced(self, placement: Placement, reason: str, *, draining: bool) -> None:
        """The instance has no room, or takes nothing because it is draining."""
        ...

    def refused(self, placement: Placement, error: TidePipeError) -> None:
        """The instance says that the sequence can never run."""
        ...


class HandOver:
    """Queue in front of SubmitSequences. Bounded by what the dispatcher gives the link: max_sequences."""

    def __init__(
        self,
        stub: pb_grpc.ControllerServiceAsyncStub,
        router_id: str,
        connected: asyncio.Event,
        host: HandOverHost,
        is_here: Callable[[Placement], bool],
        clock: Callable[[], float],
    ) -> None:
        self._stub = stub
        self._router_id = router_id
        self._connected = connected
        self._host = host
        self._is_here = is_here
        self._clock = clock
        self._ordinal = 0
        self._queue: deque[Placement] = deque()
        self._filled = asyncio.Event()

    def add(self, placement: Placement) -> None:
        """Queue a sequence."""
        self._queue.append(placement)
        self._filled.set()

    async def run(self) -> None:
        """Hand over until cancelled."""
        while True:
            await self._filled.wait()
            # Results need a watcher; and without a connection a call would only use up its deadline.
            await self._connected.wait()
            batch, specs = self._next_batch()
            if not batch:
                if not self._queue:
                    self._filled.clear()
                continue
            request = pb.SubmitSequencesRequest(
                router_id=self._router_id, sequences=specs, ordinal=self._ordinal
            )
            try:
                reply = await self._stub.SubmitSequences(request, timeout=SUBMIT_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                self._failed(batch, error)
                await asyncio.sleep(RETRY_S)
            else:
                self._judge(batch, reply.verdicts)

    def _next_batch(self) -> tuple[list[Placement], list[pb.SequenceSpec]]:
        """As much as fits into PIECE_BYTES, or one sequence; and how it looks in the message."""
        batch: list[Placement] = []
        specs: list[pb.SequenceSpec] = []
        size, now = 0, self._clock()
        while self._queue and len(batch) < MAX_BATCH_SEQUENCES and not (batch and batch[-1].alone):
            placement = self._queue.popleft()
            # It may have left meanwhile, or news may have shown that a broken call did arrive.
            if self._is_here(placement) and placement.stay is not Stay.HELD:
                spec = sequence_spec(placement, now)
                spec_size = spec.ByteSize()
                if batch and (placement.alone or size + spec_size > PIECE_BYTES):
                    self._queue.appendleft(placement)
                    break
                if spec_size > SPEC_BYTES:
                    self._host.refused(placement, _too_large(spec_size))
                else:
                    placement.stay = Stay.SENT
                    batch.append(placement)
                    specs.append(spec)
                    size += spec_size
            self._ordinal = max(self._ordinal, placement.ordinal)
        return batch, specs

    def _judge(self, batch: Sequence[Placement], verdicts: Sequence[pb.SubmitVerdict]) -> None:
        by_id = {verdict.sequence_id: verdict for verdict in verdicts}
        for placement in batch:
            if not self._is_here(placement):
                continue
            verdict = by_id.get(placement.placement_id)
            outcome = pb.SubmitVerdict.OUTCOME_UNSPECIFIED if verdict is None else verdict.outcome
            reason = "no verdict" if verdict is None else verdict.reason
            if outcome == pb.SubmitVerdict.OUTCOME_ACCEPTED:
                placement.stay = Stay.HELD
            elif outcome == pb.SubmitVerdict.OUTCOME_QUEUE_FULL:
                self._host.bounced(placement, reason, draining=False)
            elif outcome == pb.SubmitVerdict.OUTCOME_DRAINING:
                self._host.bounced(placement, reason, draining=True)
            elif outcome == pb.SubmitVerdict.OUTCOME_INVALID:
                self._host.refused(placement, InvalidRequestError(reason))
            else:
                self._count_failure(
                    placement, TidePipeError(f"no usable verdict from the instance: {reason}")
                )

    def _failed(self, batch: Sequence[Placement], error: grpc.aio.AioRpcError) -> None:
        log.warning("handing over failed", code=error.code().name, details=error.details(), size=len(batch))
        transient = error.code() in _TRANSIENT
        for placement in reversed(batch):
            if not self._is_here(placement):
                continue
            if transient or len(batch) > 1:
                # The instance may have taken it all the same; it knows it by its id then. A call that fails
                # for what is in it fails again: each by itself, it is the fault of its maker alone.
                placement.alone = placement.alone or not transient
                self._queue.appendleft(placement)
            else:
                self._count_failure(placement, from_rpc_error(error))

    def _count_failure(self, placement: Placement, error: TidePipeError) -> None:
        placement.failures += 1
        if placement.failures >= MAX_FAILURES or isinstance(error, InvalidRequestError):
            self._host.refused(placement, error)
        else:
            self.add(placement)


def _too_large(size: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the request is too large to be handed over: {size} bytes with its output so far, of {SPEC_BYTES} "
        "that may be"
    )
