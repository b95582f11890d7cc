"""The router's view of one instance: its last report, and what was sent there since."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from router.scheduler.instance_report import FOREVER, InstanceReport, Slack
from router.scheduler.prefill import NOTHING, PrefillTime
from router.scheduler.prefix_index import PrefixIndex
from router.scheduler.request import RouteRequest
from router.scheduler.roles import EVERYBODY, Role
from tidepipe_common.latency.work import PrefillWork, chunk_pairs
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer
from tidepipe_common.types.needs import lacking

BACKLOG_S = 2.0
"""Prompts that wait at an instance, by the time that they take to compute: enough to keep it busy until more
are sent with its next report, and few enough for another tenant's first request not to wait long."""


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What does not change while an instance lives. max_sequences: as many as it accepts.

    context_length: prompt and output of one sequence together, at most. prefill: its predicted prefill time.
    lacks: what it cannot do for a request. adapters: fingerprints of those that it has.
    """

    instance_id: str
    prefill: PrefillTime
    context_length: int
    max_sequences: int
    lacks: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()

    def lacking(self, needs: frozenset[str]) -> frozenset[str]:
        """What of this it cannot do."""
        return lacking(needs, self.lacks, self.adapters)


@dataclass(frozen=True, slots=True)
class _Routed:
    """A request that no report has counted yet; `ordinal` counts those sent to the instance, from 1.

    tokens: of its prompt, to be computed there.
    """

    ordinal: int
    request: RouteRequest
    tokens: int


@dataclass(slots=True)
class InstanceView:
    """Reports are always a little old. Requests sent since then are added to them ("local deltas"), so that
    a stale report never lets more in than a fresh one would have.

    draining: takes nothing new. prefixes: what it has computed, or will have. role: its share of prefill.
    """

    facts: InstanceFacts
    status: InstanceReport | None = None
    draining: bool = False
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    role: Role = EVERYBODY
    _routed: int = 0
    _unheard: deque[_Routed] = field(default_factory=deque)
    _queued: deque[_Routed] = field(default_factory=deque)
    """Counted by a report, but still to be computed there as far as is known."""
    _queued_tokens: int = 0
    _work: PrefillWork = NOTHING
    _kv: int = 0
    _borrowed: list[int] = field(default_factory=lambda: [0, 0])
    """Tokens from other nodes, and from its own."""
    _growth: int = 0
    _tokens: int = 0
    _deadline: float = FOREVER

    @property
    def instance_id(self) -> str:
        """Its name."""
        return self.facts.instance_id

    def handle(self, status: InstanceReport) -> None:
        """A report came. One older than the last is ignored."""
        if self.status is not None and status.taken < self.status.taken:
            return
        self.status = status
        self.prefixes.hear(status.holdings)
        unheard = self._unheard
        if unheard and (unheard[0].ordinal <= status.accepted or self.prefixes.reuses):
            while unheard and unheard[0].ordinal <= status.accepted:
                self._queue(unheard.popleft())
            self._sum_up()
        # First come, first computed: what is left there are the last ones.
        while self._queued and self._queued_tokens - self._queued[0].tokens >= status.left.tokens:
            self._computed(self._queued.popleft())

    def routed(self, request: RouteRequest) -> None:
        """A request was sent there."""
        self._routed += 1
        self._add(self._routed, request)

    def forget(self, request_id: str) -> None:
        """A request will not be computed there after all (cancelled, refused).

        The next ones keep their ordinals: the instance counts refused sequences as well.
        """
        kept = deque(one for one in self._unheard if one.request.request_id != request_id)
        if len(kept) != len(self._unheard):
            gone = next(one for one in self._unheard if one.request.request_id == request_id)
            self.prefixes.unexpect(gone.request.prefix)
            self._unheard = kept
            self._sum_up()
        for one in [one for one in self._queued if one.request.request_id == request_id]:
            self._queued.remove(one)
            self._computed(one)

    def reconnect(self) -> None:
        """A new connection: the instance counts from 0 again, and its next report is awaited."""
        self.status = None
        self.prefixes = PrefixIndex()
        self._routed = 0
        self._unheard.clear()
        self._queued.clear()
        self._queued_tokens = 0
        self._sum_up()

    def age(self, now: float) -> float:
        """Seconds since the last report was true; infinite before the first one."""
        return now - self.status.taken if self.status else FOREVER

    # -- report and deltas together -------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """May it get requests at all?"""
        return self.status is not None and not self.draining

    @property
    def window(self) -> PrefillWork:
        """Prompts of the present or next prefill window."""
        return self.status.window.plus(self._work) if self.status else self._work

    @property
    def left(self) -> PrefillWork:
        """The part of the window that is still to be computed."""
        return self.status.left.plus(self._work) if self.status else self._work

    @property
    def window_deadline(self) -> float:
        """The earliest end of a TTFT target in the window."""
        return min(self.status.window_deadline, self._deadline) if self.status else self._deadline

    @property
    def slack(self) -> Slack:
        """Of the sequences that decode."""
        return self.status.slack if self.status else Slack()

    @property
    def transfer(self) -> KvTransfer:
        """Of KV blocks that come to it."""
        return self.status.transfer if self.status else NO_TRANSFER

    def under_way(self, *, near: bool) -> float:
        """Bytes of KV blocks on their way to it, or that will be for what was sent since the report. near:
        within its node, or else from others."""
        way = self.transfer.near if near else self.transfer.far
        return way.under_way + self._borrowed[near] * self.transfer.token_bytes

    @property
    def kv_free(self) -> int:
        """Tokens of KV memory that are free once all that was sent has its prompt in it."""
        return self.status.kv_free - self._kv if self.status else 0

    @property
    def kv_peak(self) -> int:
        """Tokens of KV memory in use at the forecast peak, with those that were sent since the report."""
        return (self.status.kv_peak if self.status else 0) + self._kv + self._growth

    @property
    def kv_total(self) -> int:
        """Tokens of KV memory."""
        return self.status.kv_total if self.status else 0

    @property
    def sequences(self) -> int:
        """All that it has or will have."""
        return (self.status.sequences if self.status else 0) + len(self._unheard)

    @property
    def tokens(self) -> int:
        """Prompt and output so far of all its sequences."""
        return (self.status.tokens if self.status else 0) + self._tokens

    def fetches_from(self, giver: str) -> bool:
        """Does it take KV blocks of that instance over, as far as is known?"""
        return self.transfer.token_bytes > 0.0 and not self.bars(giver)

    def bars(self, giver: str) -> bool:
        """Does it fetch nothing from there for now, because that failed?"""
        return self.status is not None and giver in self.status.barred

    def cached_tokens(self, request: RouteRequest) -> int:
        """Of its prompt, what will be found there, or comes along; one token is always to be computed."""
        brought = request.brought if request.brought and self.fetches_from(request.giver) else 0
        found = max(self.prefixes.cached_tokens(request.prefix), brought, request.lent)
        return min(found, request.prompt_tokens - 1) if found else 0

    def held_tokens(self, request: RouteRequest) -> int:
        """Of its prompt, what is there now and can be lent."""
        held = self.prefixes.held_tokens(request.prefix) if self.status else 0
        return min(held, request.prompt_tokens - 1) if held else 0

    def work_of(self, request: RouteRequest) -> PrefillWork:
        """What its prompt costs there: what is not found, whose attention reads all before it."""
        cached = self.cached_tokens(request)
        tokens = request.prompt_tokens - cached
        return PrefillWork(tokens, chunk_pairs(cached, tokens))

    def prompt_done_s(self, request: RouteRequest) -> float:
        """Predicted seconds until its prompt would be computed there: what is left before it, while which
        blocks are fetched, and its own."""
        prefill, left = self.facts.prefill, self.left
        waits = max(0.0, request.fetch_s - prefill.seconds(left)) if request.lent else 0.0
        return waits + prefill.seconds(left.plus(self.work_of(request)))

    def done_s(self, request: RouteRequest) -> float:
        """Predicted seconds until its end there: its prompt, and rounds of all that decode there, itself
        included, for as much output as can be foreseen."""
        rounds = request.foreseen
        return self.prompt_done_s(request) + rounds * self.facts.prefill.round_s(self.sequences + 1)

    def cost_s(self, request: RouteRequest) -> float:
        """Predicted seconds that it takes from everybody: its own until its end there, and from each of those
        who are there the time that its prompt takes, and its row in their rounds."""
        others, prefill = self.sequences, self.facts.prefill
        # They do not wait for what is fetched.
        prompt_s = prefill.seconds(self.left.plus(self.work_of(request))) - prefill.seconds(self.left)
        rounds = request.foreseen
        row_s = prefill.round_s(others + 1) - prefill.round_s(others) if others else 0.0
        return self.done_s(request) + others * (prompt_s + rounds * row_s)

    def kv_of(self, request: RouteRequest) -> int:
        """Tokens of KV memory that its prompt takes there. What it shares with others who wait there it does
        not take; what nobody uses was free until now."""
        return request.prompt_tokens - min(self.prefixes.shared_tokens(request.prefix), request.prompt_tokens)

    def growth_of(self, request: RouteRequest) -> int:
        """Tokens of KV memory that its output is expected to take there; 0 while nothing is known."""
        expected = self.expected_output
        return min(request.max_tokens, expected) if request.max_tokens else expected

    @property
    def expected_output(self) -> int:
        """Tokens that an answer is expected to have there; 0: nothing is known."""
        return self.status.expected_output if self.status else 0

    def holds(self, request: RouteRequest) -> bool:
        """Is it able, large enough, and open, for the request?"""
        facts = self.facts
        fits = self.sequences < facts.max_sequences and request.longest <= facts.context_length
        if request.needs and facts.lacking(request.needs):
            return False
        # What waits there cannot be overtaken any more: the rest of a tenant's waits here, beside others'.
        return self.ready and fits and not (request.tenant and self._backlog_s >= BACKLOG_S)

    @property
    def _backlog_s(self) -> float:
        return self.facts.prefill.seconds(self.left)

    def _add(self, ordinal: int, request: RouteRequest) -> None:
        work = self.work_of(request)
        self._unheard.append(_Routed(ordinal, request, work.tokens))
        self._work = self._work.plus(work)
        if request.lent:
            self._borrowed[request.lent_near] += max(
                0, request.lent - self.prefixes.cached_tokens(request.prefix)
            )
        self._kv += self.kv_of(request) + 1
        self._growth += self.growth_of(request)
        self._tokens += request.prompt_tokens
        self._deadline = min(self._deadline, request.first_token_due)
        self.prefixes.expect(request.prefix)

    def _sum_up(self) -> None:
        self._work, self._kv, self._tokens, self._deadline = NOTHING, 0, 0, FOREVER
        self._growth, self._borrowed = 0, [0, 0]
        again, self._unheard = self._unheard, deque()
        for one in again:
            self.prefixes.unexpect(one.request.prefix)
        # Anew: what one finds there may be what another brings.
        for one in again:
            self._add(one.ordinal, one.request)

    def _queue(self, routed: _Routed) -> None:
        self._queued.append(routed)
        self._queued_tokens += routed.tokens

    def _computed(self, routed: _Routed) -> None:
        self._queued_tokens -= routed.tokens
        self.prefixes.unexpect(routed.request.prefix)
