"""All requests that the router knows: running ones, and complete ones that a client may still ask for."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from router.models.model import ServedModel
from router.requests.admission import Admission, prompt_logprobs_bytes
from router.requests.entry import Pacing, RequestEntry, Subscription, owned_name, request_digest
from router.requests.meter import RequestMeter, Unmeasured
from router.requests.running_answer import RunningAnswer
from router.requests.spans import end_span, request_span
from router.scheduler.pending import LARGEST_SHARE
from router.scheduler.request import UNSAID_TOKENS
from tidepipe_common.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    TidePipeError,
    UnavailableError,
)
from tidepipe_common.security.caller import ANYBODY, Caller
from tidepipe_common.security.key_access import KeyAccess
from tidepipe_common.telemetry.traces import NO_TRACES, Traces
from tidepipe_common.types.request import GenerationRequest
from tidepipe_common.types.results import SequenceUpdate

SWEEP_S = 0.5
DRAIN_POLL_S = 0.05
RETRY_AFTER_MS = 1000
SUBMIT_GRACE_S = 10.0
"""A request that was submitted without a listener waits at least this long for its first one."""
REMEMBERED_BYTES = 128 * 1024 * 1024
"""Complete requests are forgotten early, oldest first, if together they hold more than this."""

RUNNING_BYTES = 1024 * 1024 * 1024
"""Prompts of requests that wait or run, as they came; beside that their tokens, four bytes each."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Watch:
    """How many listen to a running request, and what happens when nobody does."""

    listeners: int = 0
    grace_s: float = 0.0
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class TableCounts:
    """How many requests wait for an instance, have one, have ended well, have failed, were shed.

    shed: told to come again later, at once or while they waited.
    """

    queued: int
    running: int
    finished: int
    failed: int
    shed: int


class RequestTable:
    """Attaches clients to requests by id, runs admission, and forgets what is old. Bounded in every way."""

    def __init__(
        self,
        admission: Admission,
        clock: Callable[[], float],
        *,
        max_requests: int,
        remember_s: float,
        meter: RequestMeter | None = None,
        keys: KeyAccess | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        """max_requests: running at most; as many complete ones are remembered, for `remember_s` seconds."""
        self.max_requests = max_requests
        self.admission = admission
        self._clock = clock
        self._remember_s = remember_s
        self._meter = meter or Unmeasured()
        self._keys = keys
        self._traces = traces
        self._counts: Counter[str] = Counter()
        self._running: dict[str, RequestEntry] = {}
        self._watches: dict[str, _Watch] = {}
        self._admissions: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, RequestEntry] = OrderedDict()
        self._ended_bytes = 0
        self._running_bytes = 0
        self._pacing = Pacing()
        self._finished = 0
        self._failed = 0
        self._shed = 0
        self._closed = False
        self._group: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._running)

    @property
    def counts(self) -> TableCounts:
        """For status reports."""
        queued = sum(
            not entry.answers or all(entry.waits(answer) for answer in entry.answers)
            for entry in self._running.values()
        )
        return TableCounts(queued, len(self._running) - queued, self._finished, self._failed, self._shed)

    async def run(self) -> None:
        """Run admissions and forget old requests, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                await asyncio.sleep(SWEEP_S)
                self._forget_old()

    async def ready(self) -> None:
        """Return when requests can be admitted. UnavailableError: no instance came in time."""
        await self.admission.ready()

    def attach(
        self,
        request: GenerationRequest,
        grace_s: float,
        *,
        resuming: bool = False,
        detached: bool = False,
        given: Sequence[SequenceUpdate] = (),
    ) -> Subscription:
        """Listen to a request, which is started if its id is new.

        grace_s: how long it goes on when nobody listens. resuming: the client has a part of the answer.
        detached: the caller will not stay, another call fetches the answer.
        given: what an earlier router had of the answers, should it have to be started.
        Raises InvalidRequestError, OverloadedError, UnavailableError (stopping), or NotFoundError: the
        client has a part of an answer that cannot be computed again.
        """
        self.admission.check(request)
        entry = self._find(owned_name(request.owner, request.request_id))
        digest = request_digest(request)
        attached = entry is not None
        if entry is None:
            if resuming and not request.sampling.greedy and request.sampling.seed is None:
                raise NotFoundError(
                    f"the request {request.request_id} is not known here any more, and without a seed its "
                    "answer cannot be continued; start it anew, or send a seed if it must survive this"
                )
            entry = self._begin(request, digest, given)
        elif entry.digest != digest:
            raise InvalidRequestError(
                f"the request id {request.request_id} belongs to another request; choose a new one",
                "request_id",
            )
        grace_s = max(grace_s, SUBMIT_GRACE_S) if detached else grace_s
        return self._listen(entry, attached, grace_s, request.piece_gap_s)

    def attach_known(self, request_id: str, caller: Caller = ANYBODY) -> Subscription:
        """Listen to a request that was submitted before; NotFoundError if it is unknown, forgotten, or
        another's."""
        entry = self._find(owned_name(caller.owner, request_id))
        if entry is None and caller.sees_all:
            entry = next(self._of_anybody(request_id), None)
        if entry is None:
            raise NotFoundError(
                f"there is no request {request_id}; it may have been cancelled, or complete and forgotten"
            )
        watch = self._watches.get(entry.name)
        return self._listen(entry, True, watch.grace_s if watch is not None else 0.0)

    def cancel(self, request_ids: Collection[str], caller: Caller = ANYBODY) -> int:
        """End requests of the caller; returns how many of them had not ended."""
        names = [owned_name(caller.owner, request_id) for request_id in request_ids]
        running = [entry for name in names if (entry := self._running.get(name)) is not None]
        if caller.sees_all and len(running) < len(names):
            wanted = frozenset(request_ids)
            running = [entry for entry in self._running.values() if entry.request_id in wanted]
        for entry in running:
            self._cancel(entry)
        return len(running)

    def uses(self, model: ServedModel) -> bool:
        """Does one of them run for it?"""
        return any(entry.model is model for entry in self._running.values())

    @property
    def owners(self) -> set[str]:
        """Whose requests run."""
        return {entry.owner for entry in self._running.values()}

    def fail_owner(self, owner: str, error: TidePipeError) -> None:
        """End what runs for somebody with an error that every listener gets, and forget what has ended."""
        for entry in [entry for entry in self._running.values() if entry.owner == owner]:
            entry.fail(error)
        for entry in [entry for entry in self._ended.values() if entry.owner == owner]:
            del self._ended[entry.name]
            self._ended_bytes -= entry.bytes_held

    def fail_all(self, error: TidePipeError) -> None:
        """End everything with an error that every listener gets."""
        for entry in list(self._running.values()):
            entry.fail(error)

    async def drained(self) -> None:
        """Return when no request runs, and whoever listened has the end of its answer."""
        while self._running or self._pacing.streams:  # noqa: ASYNC110 (rare, and others' state)
            await asyncio.sleep(DRAIN_POLL_S)

    def close(self) -> None:
        """Take no new requests."""
        self._closed = True

    def _over(self, entry: RequestEntry) -> None:
        """All answers of a request have ended, or it failed."""
        name = entry.name
        if entry.work is not None:
            work, entry.work = entry.work, None
            work.end(entry.usage.prompt_tokens + entry.usage.output_tokens)
        end_span(entry.span, entry.usage, [one.finish_reason for one in entry.answers], entry.failure)
        if self._running.pop(name, None) is not None:
            self._running_bytes -= entry.brought_bytes
            self._counts[entry.owner] -= 1
            if not self._counts[entry.owner]:
                del self._counts[entry.owner]
        watch = self._watches.pop(name, None)
        if watch is not None and watch.timer is not None:
            watch.timer.cancel()
        trace = entry.trace_id or None
        if entry.failure is not None:
            self._shed += bool(entry.answers) and entry.shed
            self._failed += bool(entry.answers) and not entry.shed
            log.info("request failed", request=name, trace=trace, reason=_loggable(entry.failure))
            return
        self._failed += entry.broken
        self._finished += not entry.broken
        if not entry.complete:
            # Forgotten at once, whatever cut it: who asks again wants the whole answer, which starts anew.
            log.info("request was cut", request=name, trace=trace)
            return
        self._ended[name] = entry
        self._ended_bytes += entry.bytes_held
        self._forget_old()

    def _find(self, name: str) -> RequestEntry | None:
        return self._running.get(name) or self._ended.get(name)

    def _of_anybody(self, request_id: str) -> Iterator[RequestEntry]:
        known = itertools.chain(self._running.values(), self._ended.values())
        return (entry for entry in known if entry.request_id == request_id)

    def _begin(
        self, request: GenerationRequest, digest: str, given: Sequence[SequenceUpdate]
    ) -> RequestEntry:
        if self._closed or self._group is None:
            raise UnavailableError("this router is stopping; try another one, or again in a moment")
        if len(self._running) >= self.max_requests:
            self._shed += 1
            raise OverloadedError(
                f"this router has {len(self._running)} requests already, as many as it accepts; "
                "come again in a moment",
                RETRY_AFTER_MS,
            )
        size = request.bytes_held
        if self._running_bytes + size > RUNNING_BYTES:
            raise OverloadedError(
                f"the prompts of the requests here take {self._running_bytes} bytes already; "
                "come again in a moment",
                RETRY_AFTER_MS,
            )
        most = max(1, int(self.max_requests * LARGEST_SHARE))
        if request.owner and self._counts[request.owner] >= most:
            self._shed += 1
            raise OverloadedError(
                f"{most} of your requests run or wait here already, as many as one client's may; "
                "come again in a moment",
                RETRY_AFTER_MS,
            )
        entry = RequestEntry(
            request.request_id,
            digest,
            request.sampling,
            self._over,
            self._clock,
            self._meter,
            trace_id=request.trace_id,
            owner=request.owner,
            span=request_span(self._traces, request),
        )
        if self._keys is not None:
            entry.work = self._keys.begin(
                request.owner, request.sampling.n * len(request.prompts), background=request.background
            )
        entry.brought_bytes = size
        self._running_bytes += size
        self._running[entry.name] = entry
        self._counts[entry.owner] += 1
        self._admissions[entry.name] = self._group.create_task(self._admit(entry, request, given))
        return entry

    async def _admit(
        self, entry: RequestEntry, request: GenerationRequest, given: Sequence[SequenceUpdate]
    ) -> None:
        """Carry a request in; whatever is wrong with it, its listeners hear of it."""
        try:
            await self._carry_in(entry, request, given)
        except TidePipeError as error:
            entry.fail(error)
        except Exception:
            log.exception("admission failed", request=entry.request_id)
            entry.fail(TidePipeError("internal error while the request was checked"))
        finally:
            self._admissions.pop(entry.name, None)

    async def _carry_in(
        self, entry: RequestEntry, request: GenerationRequest, given: Sequence[SequenceUpdate]
    ) -> None:
        """The way of a request in, from what its client said to the instances.

        given: what an earlier router had of its answers.
        """
        if self._keys is not None and self._keys.unlearned(request.owner):
            request = replace(request, unlearned=True)
        # Checked against the model, the chat template filled in, tokenized: sequences of token ids.
        answers = await self.admission.admit(request, entry)
        if entry.ended:
            return
        entry.span.event("tokenized", {"gen_ai.usage.input_tokens": len(answers[0].prompt)})
        if entry.work is not None:
            entry.work.charge(_foreseen(request, answers))
        self._hold(entry, prompt_logprobs_bytes(request, sum(len(one.prompt) for one in answers)))
        entry.begin(answers)
        for answer, news in zip(answers, given, strict=False):
            answer.resume(news)
        for answer in answers:
            if not answer.finished:
                # The routing scheduler finds an instance, now or when one has room; its link hands it over.
                entry.submit(answer)

    def _hold(self, entry: RequestEntry, more: int) -> None:
        """Count what it will take besides; OverloadedError if there is no room for it."""
        if not more:
            return
        if self._running_bytes + more > RUNNING_BYTES:
            raise OverloadedError(
                f"the requests here take {self._running_bytes} bytes already; come again in a moment",
                RETRY_AFTER_MS,
            )
        entry.brought_bytes += more
        self._running_bytes += more

    def _listen(
        self, entry: RequestEntry, attached: bool, grace_s: float, gap_s: float = 0.0
    ) -> Subscription:
        if entry.ended:
            return Subscription(entry, attached, lambda: None, self._pacing, gap_s)
        watch = self._watches.setdefault(entry.name, _Watch())
        watch.listeners += 1
        watch.grace_s = grace_s
        if watch.timer is not None:
            watch.timer.cancel()
            watch.timer = None
        return Subscription(entry, attached, lambda: self._leave(entry, watch), self._pacing, gap_s)

    def _leave(self, entry: RequestEntry, watch: _Watch) -> None:
        watch.listeners -= 1
        if entry.ended or watch.listeners:
            return
        if watch.grace_s <= 0:
            self._cancel(entry)
        else:
            loop = asyncio.get_running_loop()
            watch.timer = loop.call_later(watch.grace_s, self._cancel, entry)

    def _cancel(self, entry: RequestEntry) -> None:
        admission = self._admissions.pop(entry.name, None)
        if admission is not None:
            admission.cancel()
        entry.cancel()

    def _forget_old(self) -> None:
        deadline = self._clock() - self._remember_s
        while self._ended:
            name, entry = next(iter(self._ended.items()))
            old = entry.ended_at is not None and entry.ended_at <= deadline
            crowded = len(self._ended) > self.max_requests or self._ended_bytes > REMEMBERED_BYTES
            if not (old or crowded):
                return
            del self._ended[name]
            self._ended_bytes -= entry.bytes_held


def _loggable(error: TidePipeError) -> str:
    """Why a request failed, for the log. What is wrong with it quotes it, and is for its caller alone."""
    if isinstance(error, InvalidRequestError):
        return f"{type(error).__name__}: {error.param or 'the request'}"
    return str(error)


def _foreseen(request: GenerationRequest, answers: Sequence[RunningAnswer]) -> int:
    """Tokens of prompt and answers, as far as that can be said."""
    most = UNSAID_TOKENS if request.sampling.max_tokens is None else request.sampling.max_tokens
    prompts = sum(len(one.prompt) for one in answers[:: request.sampling.n])
    return prompts + sum(min(most, one.sampling.max_tokens or most) for one in answers)
