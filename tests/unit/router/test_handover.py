"""Handing over: messages stay small; a call that fails for what is in it is the fault of its maker alone."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
from grpc.aio import Metadata

from router.api.grpc.timeline import TimelineServicer
from router.instances.borrowing import Borrowings
from router.instances.controller_client import ControllerClient
from router.instances.link import HandOver, InstanceAddress, InstanceLink
from router.instances.sequence import Placement
from router.requests.entry import RequestEntry
from router.requests.meter import Unmeasured
from tidepipe.v1 import controller_pb2 as pb
from tidepipe.v1 import timeline_pb2
from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.limits import MAX_STRUCTURE_BYTES, PIECE_BYTES
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.sampling import SamplingParams
from tidepipe_common.types.structure import Structure


class Host:
    """The link, and the table behind it."""

    def __init__(self) -> None:
        self.refusals: dict[str, TidePipeError] = {}

    def bounced(self, placement: Placement, reason: str, draining: bool) -> None:
        raise AssertionError(reason)

    def refused(self, placement: Placement, error: TidePipeError) -> None:
        self.refusals[placement.placement_id] = error

    def over(self, entry: RequestEntry) -> None:
        raise AssertionError


class Instance:
    """Takes all but a sequence named `poison`: a call with it fails as a whole, as if too large."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.taken: set[str] = set()

    async def SubmitSequences(  # noqa: N802
        self, request: pb.SubmitSequencesRequest, timeout: float, metadata: object = ()
    ) -> pb.SubmitSequencesResponse:
        self.sizes.append(request.ByteSize())
        names = [spec.sequence_id for spec in request.sequences]
        if "poison" in names:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise grpc.aio.AioRpcError(code, Metadata(), Metadata(), "Sent message larger than max")
        self.taken.update(names)
        verdict = pb.SubmitVerdict.OUTCOME_ACCEPTED
        return pb.SubmitSequencesResponse(
            verdicts=[pb.SubmitVerdict(sequence_id=name, outcome=verdict) for name in names]
        )


def placed(name: str, host: Any, sampling: SamplingParams) -> Placement:
    entry = RequestEntry(name, "", sampling, host.over, lambda: 0.0, Unmeasured())
    entry.begin([entry.new_answer(0, array("I", [1, 2]), sampling)])
    return Placement(name, entry.answers[0])


async def handed_over(names: list[str], sampling: SamplingParams) -> tuple[Instance, Host]:
    """All of them at once, until each was taken or refused."""
    host, instance, connected = Host(), Instance(), asyncio.Event()
    client = ControllerClient(grpc.aio.insecure_channel("127.0.0.1:1"), "r", lambda: 0.0)
    stub: Any = instance
    client._stub = stub
    handover = HandOver(
        client,
        connected,
        is_here=lambda placement: placement.placement_id not in host.refusals,
        bounced=host.bounced,
        refused=host.refused,
    )
    for name in names:
        handover.add(placed(name, host, sampling))
    connected.set()
    running = asyncio.create_task(handover.run())
    async with asyncio.timeout(30):
        while len(instance.taken) + len(host.refusals) < len(names):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    return instance, host


async def test_a_batch_with_poison_costs_nobody_else_anything() -> None:
    innocent = [str(number) for number in range(5)]
    instance, host = await handed_over([*innocent[:2], "poison", *innocent[2:]], SamplingParams(max_tokens=1))
    assert instance.taken == set(innocent)
    assert isinstance(host.refusals["poison"], InvalidRequestError)
    assert "too large" in str(host.refusals["poison"])


async def test_messages_are_cut_by_their_own_size() -> None:
    """100 structures of 64 KiB do not fit into one."""
    structure = Structure("json_schema", "x" * MAX_STRUCTURE_BYTES)
    names = [str(number) for number in range(100)]
    instance, host = await handed_over(names, SamplingParams(max_tokens=1, structure=structure))
    assert instance.taken == set(names) and not host.refusals
    assert len(instance.sizes) >= 100 * MAX_STRUCTURE_BYTES // PIECE_BYTES
    assert max(instance.sizes) < PIECE_BYTES + 4096


def linked(address: str = "127.0.0.1:1") -> InstanceLink:
    """To an instance that is not asked what it is."""

    async def admit(facts: object) -> Any:
        return SimpleNamespace(name="m", dispatcher=SimpleNamespace(directory=SimpleNamespace()))

    announced = InstanceAddress("i", address, "one")
    link = InstanceLink(announced, "r", lambda: 0.0, admit=admit, changed=Notifier())
    facts: Any = SimpleNamespace(incarnation="one", hands_over=True)
    link.facts, link.connected = facts, True
    return link


async def silent(service: str, method: str, asked: asyncio.Event) -> tuple[grpc.aio.Server, str]:
    """Whoever calls it is heard, and never answered."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")

    async def wait(request: bytes, context: object) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    calls = {method: grpc.unary_unary_rpc_method_handler(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"tidepipe.v1.{service}", calls),))
    await server.start()
    return server, f"127.0.0.1:{port}"


async def test_an_instance_that_goes_does_not_end_who_asks_all_for_their_timelines() -> None:
    asked = asyncio.Event()
    server, address = await silent("TimelineService", "GetTimeline", asked)
    link, told = linked(address), []
    registry: Any = [link]

    async def ask() -> None:
        context: Any = SimpleNamespace(invocation_metadata=tuple)
        servicer = TimelineServicer(registry, registry)
        told.extend(
            [piece async for piece in servicer.GetTimeline(timeline_pb2.GetTimelineRequest(), context)]
        )

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(30):
        await asked.wait()
        await link.client.close()
        await asking
    assert [(one.instance_id, bool(one.error)) for one in told] == [("i", True)]
    await server.stop(None)


async def test_a_lender_that_goes_while_it_is_asked_lends_nothing() -> None:
    """gRPC ends its call as if its caller had been cancelled: but that is the borrower's, which goes on."""
    asked = asyncio.Event()
    server, address = await silent("ControllerService", "LendPrefix", asked)
    lender, goes_on = linked(address), asyncio.Event()
    placement = placed("borrower", Host(), SamplingParams(max_tokens=1))
    placement.ask = lender.lend
    borrowings = Borrowings(lambda one: goes_on.set(), lambda one: True)
    borrowings.add(placement)
    running = asyncio.create_task(borrowings.run())
    async with asyncio.timeout(30):
        await asked.wait()
        await lender.client.close()
        await goes_on.wait()
    assert placement.source is None
    running.cancel()
    await server.stop(None)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Stream:
    """What an instance tells, message by message."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()

    async def read(self) -> Any:
        return await self.messages.get()

    def cancel(self) -> None:
        pass


async def test_nothing_is_handed_over_while_results_are_asked_for_anew() -> None:
    """After a gap: an instance ends whatever is not named when its results are asked for."""
    instance, streams, link = Instance(), [Stream(), Stream()], linked()
    asked: list[list[str]] = []

    def watch(request: pb.WatchResultsRequest, **_: object) -> Stream:
        asked.append([one.sequence_id for one in request.positions])
        return streams[len(asked) - 1]

    stub: Any = SimpleNamespace(SubmitSequences=instance.SubmitSequences, WatchResults=watch)
    link.client._stub = stub
    reading = asyncio.create_task(link._watch_results())
    handing_over = asyncio.create_task(link._handover.run())
    host, greeting = Host(), pb.WatchResultsResponse(incarnation="one")
    try:
        async with asyncio.timeout(30):
            streams[0].messages.put_nowait(greeting)
            link.place(placed("a", host, SamplingParams(max_tokens=9)))
            await until(lambda: "a" in instance.taken)
            gap = pb.SequenceUpdate(sequence_id="a", token_offset=5, token_ids=[1])
            streams[0].messages.put_nowait(pb.WatchResultsResponse(updates=[gap]))
            await until(lambda: len(asked) == 2)
            link.place(placed("b", host, SamplingParams(max_tokens=9)))
            await asyncio.sleep(0.1)
            assert asked == [[], ["a"]] and instance.taken == {"a"}
            streams[1].messages.put_nowait(greeting)
            await until(lambda: "b" in instance.taken)
    finally:
        reading.cancel()
        handing_over.cancel()
        await link.client.close()
