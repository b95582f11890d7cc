"""/v1/responses: answers that are kept, gone on from, and given in the background."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from router.api.http.answers import AnswerBodies
from router.api.http.body import read_json
from router.api.http.endpoint import (
    REQUEST_ID,
    CompletionEndpoint,
    idempotency_key,
    stream_headers,
    trace_id,
    wanted_by,
)
from router.api.http.failures import failure, guarded
from router.api.http.forms import Events
from router.api.http.paging import item_list, page_of, parameter
from router.requests.entry import Subscription
from router.requests.keyed import KeyedRequests
from router.requests.table import RequestTable
from router.responses import store
from router.responses.runs import ResponseRuns, Tell
from router.responses.store import stored
from router.responses.telling import told
from tidepipe_common.aside import beside
from tidepipe_common.errors import (
    InvalidRequestError,
    NotFoundError,
    StorageError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.limits import text_bytes
from tidepipe_common.numerals import count
from tidepipe_common.openai.responses import answer_bytes
from tidepipe_common.responses.answers import DeletedResponse, ResponseBody
from tidepipe_common.responses.body import INCLUDED, ResponseAsk, in_our_names, parse_response
from tidepipe_common.responses.items import ITEM_REFERENCE, Item, named
from tidepipe_common.responses.names import response_id, response_of
from tidepipe_common.responses.telling import Telling
from tidepipe_common.responses.tools import chat_tools
from tidepipe_common.responses.writer import Event, broken, failure_of, head_of, sse, stopped
from tidepipe_common.security.caller import current
from tidepipe_common.types.request import Answer, GenerationRequest, Usage
from tidepipe_common.types.request_ids import draw_request_id

MAX_EVENTS = 1 << 40
"""A number that no event has."""
WITHOUT = "this router keeps no responses; start it with --data-dir"

log = structlog.get_logger()


def teller(bodies: AnswerBodies) -> Tell:
    """Tells responses in the background."""

    def tell(head: ResponseBody, wanted: GenerationRequest, subscription: Subscription) -> Telling:
        tools = chat_tools(head["tools"])
        return Telling(head, tools, bodies.context(wanted, subscription), cut=True)

    return tell


class ResponsesForm:
    """A Form. runs: None for a router that keeps nothing."""

    def __init__(self, bodies: AnswerBodies, runs: ResponseRuns | None) -> None:
        self._bodies = bodies
        self._runs = runs

    async def read(self, request: Request) -> AskedResponse:
        """Part of Form."""
        request_id = draw_request_id()

        def make(body: object) -> tuple[ResponseAsk, GenerationRequest | None]:
            ask = parse_response(body)
            alone = ask.previous is None and not ask.references
            return ask, ask.request(request_id) if alone else None

        ask, wanted = await read_json(request, make)
        if self._runs is None and ask.stored_by_wish:
            name = "background" if ask.background else "store"
            raise InvalidRequestError(f"{WITHOUT}, or send store: false", name)
        before: list[Item] = []
        if wanted is None:
            ask, before, size = await self._with_others(ask)
            wanted = await beside(size, functools.partial(ask.request, request_id, before))
        return AskedResponse(ask, before, wanted, self._bodies, self._runs)

    def failure(self, error: Exception, headers: Mapping[str, str]) -> Response:
        """Part of Form, for what could be read: it became a chat, whose fields have other names."""
        return failure(_ours(error), headers)

    async def _with_others(self, ask: ResponseAsk) -> tuple[ResponseAsk, list[Item], int]:
        """With the items that it names, the conversation before it, and how large that is."""
        if self._runs is None:
            name = "input" if ask.previous is None else "previous_response_id"
            raise InvalidRequestError(WITHOUT, name)
        database, caller, now = self._runs.database, current(), int(time.time())
        chain = []
        if ask.previous is not None:
            chain = await database.run(store.chain, ask.previous, caller, now)
        wanted = {response_of(one) for one in ask.references}
        others = await database.run(store.find_all, sorted(filter(None, wanted)), caller)
        size = sum(one.size for one in (*chain, *others))

        def make() -> tuple[list[Item], list[Item]]:
            before = [item for one in chain for item in one.conversation()]
            known = store.referred(ask.references, others)
            return before, [_resolved(item, known) for item in ask.items]

        before, items = await beside(size, make)
        return dataclasses.replace(ask, items=items), before, size


def _resolved(item: Item, known: Mapping[str, Item]) -> Item:
    if item["type"] != ITEM_REFERENCE:
        return item
    if item["id"] not in known:
        raise InvalidRequestError(f"there is no item {item['id'][:100]}; send the item itself", "input")
    return known[item["id"]]


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """An Asked. before: what was said in the responses before it."""

    ask: ResponseAsk
    before: Sequence[Item]
    request: GenerationRequest
    bodies: AnswerBodies
    runs: ResponseRuns | None

    async def whole(self, wanted: GenerationRequest, subscription: Subscription) -> bytes:
        """Part of Asked."""
        telling = self._telling(wanted, subscription)
        async for deltas in subscription.deltas():
            for delta in deltas:
                await told(telling, wanted, delta.piece)
        list(telling.rest())
        usage = subscription.entry.usage
        body = await self.kept(telling.body(usage, int(time.time())), wanted)
        return await beside(answer_bytes(wanted, usage.output_tokens), functools.partial(_json, body))

    def events(self, wanted: GenerationRequest, subscription: Subscription) -> Events:
        """Part of Asked."""
        return _Events(self, wanted, self._telling(wanted, subscription))

    def head(self, wanted: GenerationRequest, model: str) -> ResponseBody:
        """The body before there is an answer."""
        name = response_id(wanted.request_id)
        return head_of(self.ask, name, model, int(time.time()), stored=self._stores)

    async def kept(self, body: ResponseBody, wanted: GenerationRequest) -> ResponseBody:
        """The body, which is stored if that is wanted. One that cannot be says so: the answer is not lost."""
        if not self._stores or self.runs is None:
            return body
        size = wanted.bytes_held + answer_bytes(
            wanted, (body["usage"] or {"output_tokens": 0})["output_tokens"]
        )
        one = await beside(size, lambda: stored(body, named(self.ask.items, body["id"]), wanted.owner))
        try:
            await self.runs.database.run(store.keep, one, self.runs.limits)
        except (StorageError, UnavailableError) as error:
            log.error("a response is not kept", response=body["id"], reason=str(error))
            return {**body, "store": False}
        return body

    @property
    def _stores(self) -> bool:
        return self.ask.store and self.runs is not None

    def _telling(self, wanted: GenerationRequest, subscription: Subscription) -> Telling:
        context = self.bodies.context(wanted, subscription)
        return Telling(self.head(wanted, context.model), self.ask.tools, context)


class _Events:
    """One response's answer as server-sent events; see Events."""

    def __init__(self, asked: AskedResponse, wanted: GenerationRequest, telling: Telling) -> None:
        self._asked = asked
        self._wanted = wanted
        self._telling = telling

    async def begin(self) -> bytes:
        return await _written(self._telling.begin(), self._wanted.bytes_held)

    def piece(self, piece: Answer) -> bytes:
        return b"".join(map(sse, self._telling.piece(piece)))

    async def end(self, usage: Usage) -> bytes:
        size = self._wanted.bytes_held + 4 * answer_bytes(self._wanted, usage.output_tokens)
        events = list(self._telling.rest())
        body = await self._asked.kept(self._telling.body(usage, int(time.time())), self._wanted)
        return await _written([*events, self._telling.writer.ended(body)], size)

    async def failure(self, error: Exception) -> bytes:
        if not isinstance(error, TidePipeError):
            log.exception("a response failed", exc_info=error)
        body = stopped(self._telling.head, "failed", failure_of(_ours(error)), self._telling.writer.output)
        return await _written([self._telling.writer.ended(body)], self._wanted.bytes_held)


class ResponseEndpoints:
    """Responses are known by their ids, also after a restart."""

    def __init__(
        self, bodies: AnswerBodies, table: RequestTable, keyed: KeyedRequests, runs: ResponseRuns | None
    ) -> None:
        self._bodies = bodies
        self._admission = table.admission
        self._keyed = keyed
        self._runs = runs
        self._form = ResponsesForm(bodies, runs)
        self._answers = CompletionEndpoint(self._form, table, keyed)

    def routes(self) -> list[Route]:
        """All paths."""
        create = _Create(self._form, self._answers, self.in_background)
        asking = Route("/v1/responses", create, methods=["POST"])
        if self._runs is None:
            methods = ["GET", "POST", "DELETE"]
            return [asking, Route("/v1/responses/{rest:path}", guarded(self.without), methods=methods)]
        one = "/v1/responses/{response_id}"
        return [
            asking,
            Route(one, guarded(self.show), methods=["GET"]),
            Route(one, guarded(self.delete), methods=["DELETE"]),
            Route(one + "/cancel", guarded(self.cancel), methods=["POST"]),
            Route(one + "/input_items", guarded(self.input_items), methods=["GET"]),
        ]

    async def in_background(
        self, asked: AskedResponse, wanted: GenerationRequest, key: str | None
    ) -> Response:
        """Begin a response that goes on without its client, or find that of this idempotency key."""
        runs = self._kept()
        await self._admission.check_model(wanted.model)
        if key is not None:
            wanted.check()
            wanted = (await self._keyed.claim(wanted.owner, key, wanted)).request(wanted)
        head = asked.head(wanted, self._bodies.name(wanted))
        size = wanted.bytes_held
        chat = await beside(size, lambda: asked.ask.chat_body(asked.before))
        items = named(asked.ask.items, head["id"])
        body = await runs.create(head, items, chat, wanted)
        headers = {REQUEST_ID: wanted.trace_id}
        if asked.ask.stream:
            return self._stream(head["id"], -1, headers, size)
        return Response(await beside(size, functools.partial(_json, body)), 200, headers, "application/json")

    async def without(self, request: Request) -> Response:
        """Nothing is kept here."""
        raise NotFoundError(WITHOUT)

    async def show(self, request: Request) -> Response:
        """One response as it stands; with stream=true its events."""
        name = request.path_params["response_id"]
        _check_included(request)
        streamed = parameter(request, "stream")
        if streamed not in (None, "true", "false"):
            raise InvalidRequestError(f"stream must be true or false, got {streamed[:40]!r}", "stream")
        after = parameter(request, "starting_after")
        one = await self._kept().database.run(store.get, name, current())
        if streamed == "true":
            if not one.background:
                raise InvalidRequestError(
                    f"the response {one.id} was not created with background: true; only such can be streamed "
                    "again",
                    "stream",
                )
            number = -1 if after is None else count(after, MAX_EVENTS)
            if number is None:
                raise InvalidRequestError(
                    f"starting_after must be the number of an event, got {(after or '')[:40]!r}",
                    "starting_after",
                )
            return self._stream(one.id, number, {}, one.size)
        if after is not None:
            raise InvalidRequestError("starting_after is only allowed with stream=true", "starting_after")
        return await _shown(one)

    async def delete(self, request: Request) -> Response:
        """Forget one."""
        name = request.path_params["response_id"]
        await self._kept().delete(name, current())
        return JSONResponse(DeletedResponse(id=name, object="response", deleted=True))

    async def cancel(self, request: Request) -> Response:
        """End one that is answered in the background."""
        return await _shown(await self._kept().cancel(request.path_params["response_id"], current()))

    async def input_items(self, request: Request) -> Response:
        """Pages of what it was asked with, last first unless asked otherwise."""
        _check_included(request)
        page = page_of(request, most=100, default=20)
        one = await self._kept().database.run(store.get, request.path_params["response_id"], current())

        def write() -> bytes:
            items: list[Item] = json.loads(one.items)
            ordered = items[::-1] if page.newest_first else items
            ids = [item["id"] for item in ordered]
            if page.after is not None and page.after not in ids:
                raise NotFoundError(f"there is no item {page.after[:100]} in the input of {one.id}")
            begin = 0 if page.after is None else ids.index(page.after) + 1
            return _json(item_list(ordered[begin : begin + page.limit + 1], page.limit))

        return Response(await beside(text_bytes(one.items), write), media_type="application/json")

    def _kept(self) -> ResponseRuns:
        if self._runs is None:
            raise NotFoundError(WITHOUT)
        return self._runs

    def _stream(self, name: str, after: int, headers: Mapping[str, str], size: int) -> Response:
        """size: of what its events repeat."""
        events = self._kept().events(name, current(), after)
        return StreamingResponse(_lines(events, after, size), headers=stream_headers(headers))


@dataclass(frozen=True, slots=True)
class _Create:
    """POST /v1/responses, an ASGI application."""

    form: ResponsesForm
    answers: CompletionEndpoint
    in_background: Any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        trace = trace_id(request.headers)
        try:
            asked = await self.form.read(request)
            if asked.ask.background:
                wanted = wanted_by(asked.request, request.headers, trace)
                response = await self.in_background(asked, wanted, idempotency_key(request.headers))
                await response(scope, receive, send)
                return
        except ClientDisconnect:
            return
        except Exception as error:
            await failure(error, {REQUEST_ID: trace})(scope, receive, send)
            return
        await self.answers.answer(asked, request, trace, send)


def _ours(error: Exception) -> Exception:
    return in_our_names(error) if isinstance(error, InvalidRequestError) else error


def _check_included(request: Request) -> None:
    """What is included is what was asked for when it was made."""
    for name in ("include", "include[]"):
        for value in request.query_params.getlist(name):
            if value not in INCLUDED:
                raise InvalidRequestError(
                    f"include may name {', '.join(INCLUDED)}, got {value[:40]!r}", "include"
                )


async def _shown(one: store.StoredResponse) -> Response:
    return Response(await beside(one.size, lambda: _json(one.body())), media_type="application/json")


async def _lines(events: AsyncIterator[list[Event]], last: int, size: int) -> AsyncIterator[bytes]:
    try:
        async for some in events:
            last = some[-1]["sequence_number"]
            yield await _written(some, size)
    except TidePipeError as error:
        # The response stands as it stands; only this stream ends.
        yield sse(broken(error, last + 1))


async def _written(events: Sequence[Event], size: int) -> bytes:
    return await beside(size, lambda: b"".join(map(sse, events)))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
