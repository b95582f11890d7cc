"""Responses in the background: answered without their clients, also by the next router, and told to whoever
asks for them, as often as they ask.

The events of one are a function of its answer alone (`Cutter`), and its answer one of its request, which has
a seed: so they are made again for each listener, and a client that lost its connection, or its router, goes
on behind the last one that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import structlog

from router.batches.database import Database
from router.batches.writer import durably
from router.requests.admission import draw_seed
from router.requests.entry import Subscription
from router.requests.keyed import KeyedRequests
from router.requests.table import RequestTable
from router.responses import store
from router.responses.store import ResponseLimits, StoredResponse, stored
from router.responses.telling import told
from tidepipe_common.aside import beside
from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.errors import (
    InvalidRequestError,
    OverloadedError,
    StorageBrokenError,
    StorageError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.exception_groups import leaves
from tidepipe_common.responses.answers import OutputItem, ResponseBody, Status
from tidepipe_common.responses.body import parse_response_chat
from tidepipe_common.responses.cuts import Cutter
from tidepipe_common.responses.items import Item
from tidepipe_common.responses.telling import Telling
from tidepipe_common.responses.tools import CUSTOM_INPUT, chat_name, chat_tools
from tidepipe_common.responses.writer import CALLS, Event, ResponseWriter, failure_of, stopped
from tidepipe_common.security.caller import Caller
from tidepipe_common.types.request import GenerationRequest

MAX_STARTS = 8
"""A response at which so many routers died is given up: it may be what kills them."""
UNAVAILABLE_S = 1.0
SWEEP_S = 10.0
CLAIM = "\0response "
"""In front of a response's id: what there is of its answer is kept as that of a request with an idempotency
key, which a client cannot choose so."""

Tell = Callable[[ResponseBody, GenerationRequest, Subscription], Telling]
"""Tells a request's answer as the response of that body, for a request that has been admitted."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Run:
    """A response that waits or runs. over: it is stored as it has ended."""

    head: ResponseBody
    wanted: GenerationRequest
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    attached: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class ResponseRuns:
    """All responses of one router. `run` it."""

    def __init__(
        self,
        database: Database,
        table: RequestTable,
        tell: Tell,
        keyed: KeyedRequests,
        unix_time: Callable[[], float],
        limits: ResponseLimits | None = None,
    ) -> None:
        self.database = database
        self.limits = limits or ResponseLimits()
        self._table = table
        self._tell = tell
        self._keyed = keyed
        self._unix_time = unix_time
        self._runs: dict[str, _Run] = {}
        self._created_bytes = 0
        """Of requests that are being stored, and do not run yet."""
        self._known = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Go on with what an earlier router left, and serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for one in await durably(self.database, store.unfinished):
                    if one.id not in self._runs:
                        log.info("response goes on", response=one.id)
                        await self._resumed(one)
                self._known.set()
                await self._sweep()
        except* StorageBrokenError as errors:
            log.error("no response goes on", reason=str(leaves(errors)[0]))
        except* UnavailableError:
            pass  # another router has the database
        finally:
            self._group = None
            self._known.set()
            with contextlib.suppress(StorageError, UnavailableError):
                await self.database.run(store.stopped_in_order)

    async def _sweep(self) -> None:
        while True:
            lifetime_s = self.limits.lifetime_s
            before = int(self._unix_time()) - lifetime_s
            try:
                while lifetime_s and await self.database.run(store.any_expired, before):
                    await self.database.free(store.drop_expired, before)
            except StorageError as error:
                log.error("expired responses stay for now", reason=str(error))
            await asyncio.sleep(SWEEP_S)

    # -- what clients do ----

    async def create(
        self, head: ResponseBody, items: list[Item], chat: dict[str, Any], wanted: GenerationRequest
    ) -> ResponseBody:
        """Answer it in the background, or find it. chat: the body that `wanted` was made of."""
        wanted.check()
        if self._group is None:
            raise UnavailableError("this router is stopping; try another one, or again in a moment")
        held = self._created_bytes + sum(run.wanted.bytes_held for run in self._runs.values())
        if held + wanted.bytes_held > self.limits.held_bytes:
            raise OverloadedError(
                f"background responses of {held} bytes wait or run already; come again", store.RETRY_MS
            )
        seed = wanted.sampling.seed
        if seed is None and not wanted.sampling.greedy:
            seed = draw_seed()
            wanted = dataclasses.replace(wanted, sampling=dataclasses.replace(wanted.sampling, seed=seed))
        if seed is not None:  # which may be that of an idempotency key
            chat = {**chat, "seed": seed}
        request = {
            "id": wanted.request_id,
            "chat": chat,
            "client": wanted.client,
            "trace_id": wanted.trace_id,
            "ttft_ms": wanted.ttft_ms,
            "tpot_ms": wanted.tpot_ms,
        }
        self._created_bytes += wanted.bytes_held
        try:
            one = await beside(wanted.bytes_held, partial(stored, head, items, wanted.owner, request=request))
            begun = await self.database.run(store.begin, one, self.limits)
        finally:
            self._created_bytes -= wanted.bytes_held
        if not begun:
            there = await self.database.run(store.get, one.id, Caller(wanted.owner))
            return await beside(there.size, there.body)
        self._start(_Run(head, dataclasses.replace(wanted, background=True)))
        return head

    async def cancel(self, response: str, caller: Caller) -> StoredResponse:
        """End it, unless it has; InvalidRequestError if it is none of those in the background."""
        one = await self.database.run(store.get, response, caller)
        if not one.background:
            raise InvalidRequestError(
                f"the response {response} was not created with background: true; only such can be cancelled"
            )
        await self._stopped(response)
        return await self.database.run(store.get, response, caller)

    async def delete(self, response: str, caller: Caller) -> None:
        """Forget it; one that runs is cancelled."""
        await self.database.run(store.get, response, caller)
        await self._stopped(response)
        await self.database.free(store.delete, response, caller)

    async def _stopped(self, response: str) -> None:
        await self._known.wait()
        run = self._runs.get(response)
        if run is not None:
            run.stop.set()
            await run.over.wait()

    async def events(self, response: str, caller: Caller, after: int) -> AsyncIterator[list[Event]]:
        """All events behind the one of that number, until the last one."""
        await self._known.wait()
        while True:
            one = await self.database.run(store.get, response, caller)
            run = self._runs.get(response)
            if run is None or run.over.is_set():
                break
            with contextlib.suppress(TidePipeError):
                async for events in self._live(run):
                    if news := [event for event in events if event["sequence_number"] > after]:
                        after = news[-1]["sequence_number"]
                        yield news
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNAVAILABLE_S):
                    await run.over.wait()
        if one.request is not None:
            raise UnavailableError("the response goes on at another router; ask again")
        again = await beside(one.size, partial(_told_again, one))
        if one.status not in ("completed", "incomplete"):
            # What was told before it was cut is not kept; but how it ended comes last.
            again[-1]["sequence_number"] = max(again[-1]["sequence_number"], after + 1)
        if news := [event for event in again if event["sequence_number"] > after]:
            yield news

    async def _live(self, run: _Run) -> AsyncIterator[list[Event]]:
        """Events as they come, but for the last one."""
        yield ResponseWriter(run.head, chat_tools(), _no_call).begin()
        await _either(run.attached, run.over)
        if run.over.is_set():
            return
        with self._table.attach_known(run.wanted.request_id, Caller(run.wanted.owner)) as subscription:
            await subscription.admitted()
            telling = self._tell(run.head, run.wanted, subscription)
            telling.begin()
            async for deltas in subscription.deltas():
                for delta in deltas:
                    yield await told(telling, run.wanted, delta.piece)
            yield list(telling.rest())

    # -- how they are answered ----

    async def _resumed(self, one: StoredResponse) -> None:
        """Of an earlier router."""
        head = cast(ResponseBody, {**one.body(), "status": "queued"})
        try:
            run = await beside(one.size, partial(_run_of, one, head))
        except Exception as error:  # a later version may read requests otherwise
            log.exception("a response cannot be gone on with", response=one.id)
            await self._end(stopped(head, "failed", failure_of(error)), one.owner)
            return
        if one.starts >= MAX_STARTS:
            log.error("a response is given up: routers died of it", response=one.id, deaths=one.starts)
            text = f"the router ended {one.starts} times while it answered this; it is not tried again"
            await self._end(stopped(head, "failed", failure_of(TidePipeError(text))), one.owner)
            return
        self._start(run)

    def _start(self, run: _Run) -> None:
        if self._group is not None:
            self._runs[run.head["id"]] = run
            self._group.create_task(self._guarded(run))

    async def _guarded(self, run: _Run) -> None:
        name = run.head["id"]
        try:
            await durably(self.database, store.begun, name)
            await self._end(await self._until_stopped(run), run.wanted.owner)
        except StorageBrokenError as error:
            log.error("a response cannot be stored", response=name, reason=str(error))
        finally:
            run.over.set()
            self._runs.pop(name, None)

    async def _until_stopped(self, run: _Run) -> ResponseBody:
        """The body with which it ends."""
        answering = asyncio.create_task(self._answered(run))
        stopping = asyncio.create_task(run.stop.wait())
        try:
            await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
            # Whoever listens would keep it alive.
            self._table.cancel([run.wanted.request_id], Caller(run.wanted.owner))
            return stopped(run.head, "cancelled", None)
        except TidePipeError as error:
            return stopped(run.head, "failed", failure_of(error))
        except Exception as error:
            log.exception("a response failed", response=run.head["id"])
            return stopped(run.head, "failed", failure_of(error))
        finally:
            answering.cancel()
            stopping.cancel()
            await asyncio.wait({answering, stopping})

    async def _answered(self, run: _Run) -> ResponseBody:
        """Waits as long as the service is full or away."""
        while True:
            try:
                await self._table.ready()
                return await self._answered_now(run)
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after_ms / 1000)
            except StorageBrokenError:
                raise
            except (UnavailableError, StorageError):
                await asyncio.sleep(UNAVAILABLE_S)
            finally:
                run.attached.clear()

    async def _answered_now(self, run: _Run) -> ResponseBody:
        wanted, name = run.wanted, run.head["id"]
        claim = await self._keyed.claim(wanted.owner, CLAIM + name, wanted)
        subscription = self._table.attach(wanted, 0.0, given=claim.given)
        with subscription:
            self._keyed.follow(subscription.entry, claim)
            run.attached.set()
            await subscription.admitted()
            await self.database.run(store.admitted, name)
            telling = self._tell(run.head, wanted, subscription)
            async for deltas in subscription.deltas():
                for delta in deltas:
                    await told(telling, wanted, delta.piece)
            list(telling.rest())
            return telling.body(subscription.entry.usage, int(self._unix_time()))

    async def _end(self, body: ResponseBody, owner: str) -> None:
        one = stored(body, [], owner)
        await durably(self.database, store.end, one)


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _run_of(one: StoredResponse, head: ResponseBody) -> _Run:
    request = json.loads(one.request or "")
    wanted = dataclasses.replace(
        parse_response_chat(request["chat"], request["id"]),
        owner=one.owner,
        background=True,
        **{name: request[name] for name in ("client", "trace_id", "ttft_ms", "tpot_ms")},
    )
    return _Run(head, wanted)


def _no_call(name: str, call: int) -> str:
    return ""


def _told_again(one: StoredResponse) -> list[Event]:
    """All events of one that has ended."""
    body = one.body()
    status: Status = "queued"
    head = cast(
        ResponseBody,
        {**body, "status": status, "output": [], "usage": None, "completed_at": None}
        | {"error": None, "incomplete_details": None},
    )
    calls = [item["call_id"] for item in body["output"] if item["type"] in CALLS]  # type: ignore[typeddict-item]
    writer = ResponseWriter(head, chat_tools(body["tools"]), lambda name, call: calls[call], quiet=True)
    events = writer.begin()
    if body["status"] in ("completed", "incomplete"):
        cutter = Cutter()
        for part, logprobs in _parts_of(body["output"]):
            cut = [*cutter.feed([part]), *(cutter.end() if logprobs else ())]
            for one_part in cut:
                events += writer.say(one_part)
            if logprobs:
                events += writer.say(Words(""), logprobs)
        for one_part in cutter.end():
            events += writer.say(one_part)
        events += writer.end(whole=body["status"] == "completed")
    return [*events, writer.ended(body)]


def _parts_of(output: Sequence[OutputItem]) -> Iterator[tuple[Part, list[Any]]]:
    """What an output was made of, with the log-probabilities of words."""
    calls = itertools.count()
    for item in output:
        match item["type"]:
            case "message":
                for text in item["content"]:
                    yield Words(text["text"]), text["logprobs"]
            case "reasoning":
                for thought in item["content"]:
                    yield Thought(thought["text"]), []
            case _:
                if item["type"] == "custom_tool_call":
                    arguments = json.dumps({CUSTOM_INPUT: item["input"]})
                else:
                    arguments = item["arguments"]
                number = next(calls)
                yield CallBegins(number, chat_name(item["name"], item.get("namespace", ""))), []
                yield CallArguments(number, arguments), []
                if item["status"] == "completed":
                    yield CallEnds(number), []
