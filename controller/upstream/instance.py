"""The sequences at one server: a bounded queue before it, so many requests under way, results for routers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from controller.scheduler.actions import Refusal, Refused
from controller.scheduler.events import NewSequence
from controller.scheduler.report import InstanceReport
from controller.scheduler.slack import Decoding, slack_of, window_left_s
from controller.upstream.client import BYTES_PER_TOKEN, LINE_BYTES, Allowance, Failure, UpstreamError
from controller.upstream.dialects import BrokenAnswerError, Piece, tokens_left
from controller.upstream.link import UpstreamLink
from controller.upstream.pace import Pace
from tidepipe_common.latency.work import PrefillWork, prompt_work
from tidepipe_common.notifier import Notifier
from tidepipe_common.rpc.results import ABANDONED_AFTER_S, ResultsHub
from tidepipe_common.telemetry.traces import NO_TRACES, Attribute, Traces, trace_headers
from tidepipe_common.types.needs import needs_of, said
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.results import SequenceEnd
from tidepipe_common.types.sampling import FinishReason

TICK_S = 0.1
TRIES = 4
"""Of a request that has not begun, before a router looks for another instance."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Nothing new is sent for so long to a server that has no room or broke off."""
AFTERMATH_S = 2.0
"""What comes behind an answer's end (usage) is waited for so long."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Flight:
    """One sequence here. output: new tokens so far. tried: how often it was sent in vain."""

    sequence: NewSequence
    arrived: float
    output: int = 0
    sent_at: float = 0.0
    first_at: float | None = None
    last_at: float = 0.0
    tried: int = 0
    stop_token: int | None = None
    task: asyncio.Task[None] | None = None

    @property
    def length(self) -> int:
        """Prompt and output so far."""
        return len(self.sequence.prompt) + len(self.sequence.output) + self.output


@dataclass(slots=True)
class UpstreamStats:
    """Since start. returned: given back to routers, by why; retried: sent again."""

    finished: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class UpstreamInstance:
    """One instance. All methods run on the event loop."""

    def __init__(
        self,
        link: UpstreamLink,
        places: int,
        room: int,
        first_token_s: float,
        silence_s: float,
        traces: Traces = NO_TRACES,
    ) -> None:
        """places: requests under way at most. room: all that are accepted.

        first_token_s, silence_s: how long an answer's first token, and each further one, is waited for.
        """
        self.link = link
        self.places = places
        self.room = room
        self.hub = ResultsHub()
        self.changed = Notifier()
        self.pace = Pace()
        self.stats = UpstreamStats()
        self.draining = False
        self._first_token_s = first_token_s
        self._silence_s = silence_s
        self._traces = traces
        self._flights: dict[str, Flight] = {}
        self._waiting: deque[Flight] = deque()
        self._under_way = 0
        self._pause_s = 0.0
        self._paused_until = 0.0
        self._group: asyncio.TaskGroup | None = None

    @staticmethod
    def now() -> float:
        """The clock of all times here, seconds."""
        return time.monotonic()

    @property
    def serving(self) -> bool:
        """Does the server answer?"""
        return self.link.up and not self.draining

    @property
    def waiting(self) -> int:
        """Not sent yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sent."""
        return self._under_way

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._tick(), name="ticks")
            group.create_task(self._follow_link(), name="up or down")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.now()
            late = [one for one in self._flights.values() if (one.sequence.deadline or now) < now]
            for flight in late:
                self._end(flight, FinishReason.DEADLINE)
            for sequence_id in self.hub.abandoned(now, ABANDONED_AFTER_S):
                self.drop(sequence_id)
            self.hub.close_mailboxes(now, ABANDONED_AFTER_S)
            self._send()

    async def _follow_link(self) -> None:
        while True:
            changed = self.link.changed.next()
            if not self.link.up:
                # Those that have begun may yet go on: their own limits end them.
                for flight in [one for one in self._flights.values() if not one.output]:
                    self._return(flight, "down")
            self.changed.notify_all()
            self._send()
            await changed.wait()

    # -- from the routers ---------------------------------------------------------------------------

    def submit(
        self, router_id: str, arrivals: Sequence[NewSequence], ordinal: int = 0
    ) -> Mapping[str, Refused]:
        """Take sequences; returns the refusals. Known ones count as taken."""
        now = self.now()
        self.hub.note_ordinal(router_id, ordinal, now)
        refused: dict[str, Refused] = {}
        for one in arrivals:
            if one.sequence_id in self.hub.records:
                continue
            if (refusal := self._refusal(one)) is not None:
                refused[one.sequence_id] = refusal
                continue
            self.hub.open(one.sequence_id, router_id, one.output, now, one.piece_gap_s)
            flight = self._flights[one.sequence_id] = Flight(one, now)
            self._waiting.append(flight)
        self._send()
        self.changed.notify_all()
        return refused

    def _refusal(self, one: NewSequence) -> Refused | None:
        name, link = one.sequence_id, self.link
        if not link.up:
            return Refused(name, Refusal.QUEUE_FULL, f"{link.url} does not answer: {link.problem}")
        if len(self._flights) >= self.room:
            return Refused(
                name, Refusal.QUEUE_FULL, f"{self.room} sequences wait or run here, as many as may"
            )
        length = len(one.prompt) + len(one.output)
        if not one.prompt or max([*one.prompt, *one.output]) >= link.vocab_size:
            return Refused(name, Refusal.INVALID, f"a token id is not below {link.vocab_size}")
        if length >= link.context_length:
            text = f"{length} tokens do not fit into the context of {link.context_length}"
            return Refused(name, Refusal.INVALID, text)
        if lacking := needs_of(one.sampling, begun=bool(one.output)) & link.dialect.lacks:
            text = f"the server behind this instance does not do: {said(lacking)}"
            return Refused(name, Refusal.INVALID, text)
        return None

    def cancel(self, sequence_id: str) -> None:
        """End a sequence."""
        if (flight := self._flights.get(sequence_id)) is not None:
            self._end(flight, FinishReason.CANCELLED)

    def drop(self, sequence_id: str) -> None:
        """End a sequence that nobody will ask for again."""
        self.cancel(sequence_id)
        self.hub.forget(sequence_id)

    async def drain(self, patience_s: float) -> None:
        """Take nothing new; wait until all is done, nobody listens any more, or patience ends."""
        self.draining = True
        self.changed.notify_all()
        end = self.now() + patience_s
        while self.now() < end and self.link.up and self._flights:
            if all(box.unwatched_since is not None for box in self.hub.mailboxes.values()):
                return
            await asyncio.sleep(0.05)

    # -- to the server ------------------------------------------------------------------------------

    def _send(self) -> None:
        """Whatever may go now, first come, first served."""
        now = self.now()
        if self._group is None or not self.link.up or now < self._paused_until:
            return
        while self._waiting and self._under_way < self.places:
            flight = self._waiting.popleft()
            self._under_way += 1
            flight.sent_at = now
            flight.task = self._group.create_task(self._fly(flight), name="flight")

    async def _fly(self, flight: Flight) -> None:
        """One attempt. Whatever the server does, it ends, or is given back, or waits again."""
        self.pace.sent(self.now())
        try:
            await self._answer(flight)
        except UpstreamError as error:
            self._failed(flight, error)
        except BrokenAnswerError as error:
            self._failed(flight, UpstreamError(Failure.BROKEN, str(error)))
        finally:
            if flight.first_at is None or flight.first_at < flight.sent_at:
                self.pace.gave_up(self.now())
            self._under_way -= 1
            flight.task = None
            self._send()

    async def _answer(self, flight: Flight) -> None:
        """Within a span, which the server is told of: it may record one of its own."""
        sequence = flight.sequence
        if not sequence.trace_context:
            await self._hear(flight, {})
            return
        attributes: dict[str, Attribute] = {
            "tidepipe.sequence": sequence.sequence_id,
            "gen_ai.request.model": self.link.model_name,
            "gen_ai.usage.input_tokens": len(sequence.prompt),
            "tidepipe.output_tokens_before": len(sequence.output),
        }
        span, error = self._traces.begin("ask", sequence.trace_context, attributes, "client"), "given up"
        try:
            await self._hear(flight, trace_headers(span.context))
            error = ""
        except UpstreamError as failure:
            error = str(failure)
            raise
        finally:
            span.note({"gen_ai.usage.output_tokens": flight.output})
            span.end(error)

    async def _hear(self, flight: Flight, headers: Mapping[str, str]) -> None:
        link, sequence = self.link, flight.sequence
        reader = link.dialect.reader(sequence)
        body = link.dialect.body(link.model_name, sequence, link.ends)
        allowance = Allowance(LINE_BYTES + BYTES_PER_TOKEN * link.context_length)
        loop = asyncio.get_running_loop()
        ended: FinishReason | None = None
        patience_s = self._first_token_s
        async with aclosing(link.client.events(link.dialect.path, body, allowance, headers)) as events:
            try:
                async with asyncio.timeout(patience_s) as limit:
                    async for event in events:
                        piece = reader.read(event)
                        if piece.cached is not None:
                            self.hub.found(sequence.sequence_id, min(piece.cached, len(sequence.prompt)))
                        if ended is not None or not piece.progress:
                            continue
                        allowance.renew()
                        ended = self._take(flight, piece)
                        if ended is not None and piece.finish is None:
                            break  # by us: the server would go on
                        patience_s = self._silence_s if ended is None else AFTERMATH_S
                        limit.reschedule(loop.time() + patience_s)
            except TimeoutError as error:
                if ended is None:
                    raise UpstreamError(Failure.BROKEN, f"no token for {patience_s:g} s") from error
            except UpstreamError:
                if ended is None:
                    raise
        if ended is None:
            raise UpstreamError(Failure.BROKEN, "it broke off before the answer's end")
        self._pause_s = 0.0
        self._end(flight, ended)

    def _take(self, flight: Flight, piece: Piece) -> FinishReason | None:
        """News of an answer; why it has ended, if so. The last token, if one ended it, is remembered."""
        sequence, now = flight.sequence, self.now()
        tokens = self._tokens(piece)
        logprobs = list(piece.logprobs)
        left = tokens_left(sequence) - flight.output
        ended = piece.finish
        ends = () if sequence.sampling.ignore_eos else self.link.ends
        stops = {*ends, *sequence.sampling.stop_token_ids}
        stop = next((at for at, one in enumerate(tokens) if one in stops), None)
        if stop is None and ended is FinishReason.STOP and piece.token_ids:
            stop = len(tokens) - 1  # an end that the server knows and we do not
        if stop is not None and stop < left:
            flight.stop_token = tokens[stop]
            del tokens[stop:]
            ended = FinishReason.STOP
        if len(tokens) >= left and ended is not FinishReason.STOP:
            ended = FinishReason.LENGTH
        del tokens[left:]
        if tokens:
            self._count(flight, len(tokens), now)
            self.hub.extend(sequence.sequence_id, tokens, logprobs[: len(tokens)])
        return ended

    def _tokens(self, piece: Piece) -> list[int]:
        if piece.token_ids is None:
            tokens = self.link.text.continuation(piece.text) if piece.text else []
            if tokens is None:
                raise BrokenAnswerError("its text has no tokens in this model's tokenizer")
        else:
            tokens = list(piece.token_ids)
        if tokens and max(tokens) >= self.link.vocab_size:
            raise BrokenAnswerError(f"token {max(tokens)} is not one of the model's {self.link.vocab_size}")
        return tokens

    def _count(self, flight: Flight, fresh: int, now: float) -> None:
        if flight.first_at is None or flight.first_at < flight.sent_at:
            flight.first_at = now
            self.pace.first_token(flight.length, now - flight.sent_at, now)
            self.stats.prompt_tokens += flight.length
            self.changed.notify_all()
        else:
            self.pace.round_done(self._under_way, (now - flight.last_at) / fresh)
        flight.last_at = now
        flight.output += fresh
        self.stats.output_tokens += fresh

    def _failed(self, flight: Flight, error: UpstreamError) -> None:
        link, sequence = self.link, flight.sequence
        if error.failure is Failure.REFUSED and not flight.output:
            self._end(flight, FinishReason.ERROR, f"the server refuses the request: {error}", fault="")
            return
        log.warning(
            "no answer",
            sequence=sequence.sequence_id,
            failure=error.failure.value,
            reason=str(error),
            output=flight.output,
        )
        link.doubt(error)
        if flight.output:
            if link.dialect.tells_tokens:
                self._return(flight, error.failure.value)
                return
            text = (
                f"the server behind the instance failed in the middle of the answer ({error}); it tells text "
                "and no tokens, so that no other can continue it: send the request again"
            )
            self._end(flight, FinishReason.ERROR, text)
            return
        self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._paused_until = self.now() + self._pause_s
        flight.tried += 1
        if not link.up or flight.tried >= TRIES or error.failure is Failure.DENIED:
            self._return(flight, error.failure.value)
        else:
            self.stats.retried += 1
            self._waiting.appendleft(flight)

    # -- ends ---------------------------------------------------------------------------------------

    def _return(self, flight: Flight, why: str) -> None:
        """A router shall find another instance, which goes on with what there is."""
        self.stats.returned[why] += 1
        self._end(flight, FinishReason.CANCELLED)

    def _end(self, flight: Flight, reason: FinishReason, error: str = "", fault: str | None = None) -> None:
        name = flight.sequence.sequence_id
        if self._flights.pop(name, None) is None:
            return
        if flight in self._waiting:
            self._waiting.remove(flight)
        if flight.task is not None and flight.task is not asyncio.current_task():
            flight.task.cancel()
        self.stats.finished[reason.value] += 1
        stop = flight.stop_token if reason is FinishReason.STOP else None
        self.hub.finish(SequenceEnd(name, reason, stop, error, 0, fault))
        self.changed.notify_all()

    # -- how it stands ------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """By what is waited for."""
        begun = sum(flight.output > 0 for flight in self._flights.values())
        if not self._flights:
            return Phase.IDLE
        if not begun:
            return Phase.PREFILL
        return Phase.DECODE if begun == len(self._flights) else Phase.MIXED

    def report(self, now: float) -> InstanceReport:
        """What routing needs to know. Memory is reckoned as if each place had a whole context, as nobody
        tells."""
        tokens = 0
        left = PrefillWork()
        decoding: list[Decoding] = []
        idle: list[float] = []
        dues: list[float] = []
        for flight in self._flights.values():
            sequence = flight.sequence
            tokens += flight.length
            if flight.output and flight.first_at is not None:
                if sequence.tpot_s is not None:
                    decoding.append(Decoding(flight.first_at, flight.output, 0.0, sequence.tpot_s))
                continue
            left = left.plus(prompt_work(flight.length))
            if sequence.tpot_s is not None:
                idle.append(sequence.tpot_s)
            if sequence.first_token_due is not None:
                dues.append(sequence.first_token_due)
        count = len(self._flights)
        total = self.places * self.link.context_length
        return InstanceReport(
            phase=self.phase,
            phase_age_s=0.0,
            sequences=count,
            tokens=tokens,
            kv_total=total,
            kv_free=max(0, total - tokens),
            kv_peak=min(tokens, total),
            window=left,
            left=left,
            window_left_s=window_left_s(dues, now),
            slack=slack_of(decoding, idle, self.pace.round_s(min(count, self.places)), now),
            policy=f"upstream:{self.link.dialect.name}",
        )
