"""The router's link to one instance: hands sequences over, takes results in, survives any break.

One concept, since all three need to know where each sequence stands (`Stay`); queues that need not are beside
it (`borrowing.py`, `offers.py`, `departures.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import grpc
import structlog

from router.instances.borrowing import Borrowings
from router.instances.controller_client import (
    MAX_BATCH_SEQUENCES,
    MAX_FAILURES,
    RETRY_S,
    ControllerClient,
    HandOverMessage,
    Outcome,
)
from router.instances.departures import Cancellations, Departures
from router.instances.offers import Offers
from router.instances.sequence import Placement, PlacementTable, Progress, Source, Stay
from router.instances.served_model import InstanceDescription
from router.scheduler.instance_report import InstanceReport
from router.scheduler.prefill import PrefillTime, ReportedCost
from router.scheduler.view import InstanceFacts
from tidepipe_common.errors import IncompatibleError, InvalidRequestError, TidePipeError
from tidepipe_common.latency.work import StepCosts
from tidepipe_common.notifier import Notifier
from tidepipe_common.rpc.channel import open_channel
from tidepipe_common.rpc.status import TRANSIENT, from_rpc_error, translated
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.needs import lacking
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.sampling import FinishReason

MAX_GAPS = 5
"""Gaps in a row after which a sequence is taken elsewhere; one is healed by asking again."""
GREETING_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
SILENCE_S = 2.0
"""Many times the interval between reports: longer, and the instance's state is unknown."""


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """An instance as it announces itself; address is HOST:PORT of its controller."""

    instance_id: str
    address: str
    incarnation: str


class LinkListener(Protocol):
    """Hears of the coming, going and reports of links (InstanceDirectory)."""

    def report_interval_s(self) -> float:
        """How often instances shall report, seconds."""

    def attach(self, link: InstanceLink) -> None:
        """It is there."""

    def detach(self, link: InstanceLink) -> None:
        """It is gone."""

    def silent(self, link: InstanceLink) -> None:
        """It gets nothing new."""

    def reported(self, link: InstanceLink, report: InstanceReport | None) -> None:
        """Its newest report; None: the connection was lost, and is back."""


class SequenceOwner(Protocol):
    """Owns the sequences whose stays links have (Dispatcher)."""

    @property
    def directory(self) -> LinkListener:
        """Where links belong."""

    def first_token(self, placement: Placement) -> None:
        """A sequence has got its first token."""

    def ended(self, placement: Placement, error: TidePipeError | None) -> None:
        """A stay is over, and with it the sequence. error: it can run nowhere."""

    def evacuate(self, link: InstanceLink, reason: str) -> int:
        """Have all that an instance has go on elsewhere; how many sequences do."""

    def give_back(self, placements: Sequence[Placement], reason: str) -> None:
        """These stays are over and their sequences need another."""

    def handed_over(self, placement: Placement, source: Source) -> None:
        """A stay is over because we wanted it to be."""

    def announced(self, placement: Placement, handle: KvHandle) -> None:
        """The prompt of a sequence is being computed, and its blocks can go ahead of it."""


class LinkedModel(Protocol):
    """The model of which a link is an instance (ServedModel)."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def dispatcher(self) -> SequenceOwner:
        """Of its sequences."""


class InstanceLink:
    """One instance, its connection, and the sequences that the router has there."""

    def __init__(
        self,
        announced: InstanceAddress,
        router_id: str,
        clock: Callable[[], float],
        *,
        admit: Callable[[InstanceDescription], Awaitable[LinkedModel]],
        changed: Notifier,
    ) -> None:
        """admit: the model that the instance serves; raises IncompatibleError if it fits none.

        changed: beats when the instance comes or goes.
        """
        self.announced = announced
        self.placements = PlacementTable()
        self.facts: InstanceDescription | None = None
        self.connected = False
        self.disconnected_at = clock()
        self.draining = False
        self.lease_valid = True
        self.set_aside = False
        self.report: InstanceReport | None = None
        self.costs: ReportedCost | None = None
        self.serving = False
        self._down_since: float | None = None
        self.count_base = 0
        self.client = ControllerClient(
            open_channel(announced.address), router_id, clock, announced.instance_id
        )
        self._routed = 0
        self._misreported = ""
        self._tell_all = False
        self._clock = clock
        self._admit = admit
        self._model: LinkedModel | None = None
        self._changed = changed
        self._log = log.bind(instance=announced.instance_id)
        self._ready = asyncio.Event()
        self._handover = HandOver(
            self.client, self._ready, is_here=self._is_here, bounced=self._bounced, refused=self._refused
        )
        self._borrowings = Borrowings(self._handover.add, self._is_here)
        self._cancellations = Cancellations(self.client, self._ready)
        self._departures = Departures(self.client, self._ready)
        self._offers = Offers(self._offer)

    @property
    def instance_id(self) -> str:
        """Name of the instance."""
        return self.announced.instance_id

    @property
    def model(self) -> LinkedModel:
        """Of which it is an instance; known once it has described itself."""
        assert self._model is not None, "it was described before anything was given to it"
        return self._model

    @property
    def _dispatcher(self) -> SequenceOwner:
        return self.model.dispatcher

    @property
    def _directory(self) -> LinkListener:
        return self.model.dispatcher.directory

    @property
    def open(self) -> bool:
        """True if it takes new sequences, room permitting."""
        return self.connected and self.lease_valid and not self.draining and not self.set_aside

    @property
    def down_s(self) -> float:
        """For how long its controller has said that a stage does not answer, seconds."""
        return 0.0 if self._down_since is None else self._clock() - self._down_since

    @property
    def context_length(self) -> int:
        """Prompt and output of one sequence together at most, tokens; zero before it is known."""
        return 0 if self.facts is None else self.facts.model.context_length

    def lacking(self, needs: frozenset[str]) -> frozenset[str]:
        """What of this it cannot do for a request, as far as is known."""
        facts = self.facts
        return frozenset() if facts is None else lacking(needs, facts.lacks, facts.fingerprints)

    @property
    def abilities(self) -> tuple[frozenset[str], frozenset[str]]:
        """What it cannot do for a request, and fingerprints of its adapters."""
        assert self.facts is not None, "it was described before it was attached"
        return self.facts.lacks, self.facts.fingerprints

    def routing_facts(self) -> InstanceFacts:
        """What routing needs to know once, after the first report; the costs behind it follow the reports."""
        assert self.facts is not None, "it was described before it was attached"
        assert self.costs is not None, "it has reported"
        told = self.costs.costs
        return InstanceFacts(
            instance_id=self.instance_id,
            prefill=PrefillTime(self.costs, max(1, told.stages), max(1, told.step_tokens)),
            context_length=self.facts.model.context_length,
            max_sequences=self.facts.max_sequences,
            lacks=self.facts.lacks,
            adapters=self.facts.fingerprints,
        )

    def tell_all(self) -> None:
        """Of what the instance holds something was missed: have it told from the beginning."""
        self._tell_all = True

    def restart_count(self) -> None:
        """The routing scheduler counts from 0 what is given to this link from now on."""
        self.count_base = self._routed

    async def describe(self) -> None:
        """Ask what it serves. IncompatibleError if that does not fit, UnavailableError without an answer."""
        announced = self.announced
        with translated(f"instance {announced.instance_id} at {announced.address} does not answer"):
            await self._describe()

    def place(self, placement: Placement) -> None:
        """Give it a sequence, which is handed over with whatever else is queued."""
        self._routed += 1
        placement.ordinal = self._routed
        self.placements.add(placement)
        (self._handover if placement.ask is None else self._borrowings).add(placement)

    async def lend(self, placement: Placement) -> Source | None:
        """Have the beginning of a sequence kept here for another instance; None: nothing is."""
        name, sequence = placement.placement_id, placement.sequence
        source = Source(self.instance_id, KvHandle(), lambda: self._cancellations.add(name))
        if not (self.connected and self.hands_over):
            return None
        try:
            source.handle = await self.client.lend(
                name, sequence.prompt, sequence.prefix.root, sequence.adapter
            )
        except TidePipeError as error:
            self._log.info("lends nothing", sequence=sequence.key, reason=str(error))
            # The call may have arrived all the same.
            source.release()
            return None
        if source.handle.ticket:
            return source
        self._log.debug("lends nothing", sequence=sequence.key, reason=source.handle.reason)
        return None

    def fetch_ahead(self, placement: Placement, handle: KvHandle) -> None:
        """Have the blocks of a prompt fetched, which another instance computes for a sequence that goes on
        here afterwards."""
        if self.connected and self.hands_over:
            self._offers.add(placement, handle)

    async def _offer(self, placement: Placement, handle: KvHandle) -> None:
        sequence = placement.sequence
        await self.client.offer(sequence.prompt, sequence.prefix.root, sequence.adapter, handle)

    def withdraw(self, placement: Placement) -> None:
        """Nobody waits for this sequence any more."""
        if self.placements.remove(placement) and placement.stay is not Stay.QUEUED:
            self._cancellations.add(placement.placement_id)

    def take_back(self, placements: Sequence[Placement], reason: str) -> None:
        """Have these sequences go on elsewhere from what is here of them; the instance is to forget them."""
        for placement in placements:
            if placement.stay is not Stay.QUEUED:
                self._cancellations.add(placement.placement_id)
        self._give_back(list(placements), reason)

    def hand_over(self, placements: Iterable[Placement]) -> int:
        """Have these sequences go on elsewhere, with their KV blocks where those can be fetched; how many do.

        None of those that the instance has begun, if it can hand nothing over: they end here.
        """
        here = [placement for placement in placements if self._is_here(placement)]
        queued = [placement for placement in here if placement.stay is Stay.QUEUED]
        self._give_back(queued, "the instance is being taken out of service")
        begun = [placement for placement in here if placement.stay is not Stay.QUEUED]
        if not self.hands_over:
            return len(queued)
        self._departures.add(placement.placement_id for placement in begun)
        return len(here)

    @property
    def hands_over(self) -> bool:
        """Can what it has begun go on elsewhere?"""
        return self.facts is not None and self.facts.hands_over

    async def run(self) -> None:
        """Work until cancelled. IncompatibleError (in a group) if it comes back with another model."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._handover.run())
            group.create_task(self._borrowings.run())
            group.create_task(self._cancellations.run())
            group.create_task(self._departures.run())
            group.create_task(self._offers.run())
            group.create_task(self._watch_results())
            group.create_task(self._watch_reports())

    async def cancellations_sent(self) -> None:
        """Return when the instance has been told of every sequence that was withdrawn."""
        await self._cancellations.drained()

    async def close(self, reason: str) -> None:
        """Give everything back and hang up. Call it after `run` has ended."""
        self.connected = False
        self._give_back(list(self.placements), reason)
        await self.client.close()

    # -- handing over -------------------------------------------------------------------------------

    def _bounced(self, placement: Placement, reason: str, draining: bool) -> None:
        """The instance has no room, or takes nothing because it is draining."""
        if draining:
            self.draining = True
        placement.stay = Stay.QUEUED
        self._give_back([placement], f"the instance takes no more: {reason}")

    def _refused(self, placement: Placement, error: TidePipeError) -> None:
        """The instance says that the sequence can never run."""
        self.placements.remove(placement, str(error))
        self._dispatcher.ended(placement, error)

    def _give_back(self, placements: list[Placement], reason: str) -> None:
        for placement in placements:
            self.placements.remove(placement, reason)
        if placements:
            self._dispatcher.give_back(placements, reason)

    def _is_here(self, placement: Placement) -> bool:
        return self.placements.get(placement.placement_id) is placement

    # -- results ------------------------------------------------------------------------------------

    async def _watch_results(self) -> None:
        """Open the stream again after every break, until cancelled or until the instance does not fit."""
        retry_s = FIRST_RETRY_S
        while True:
            began = self._clock()
            try:
                if await self._read_results():
                    continue
                reason = "the instance ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except TimeoutError:
                reason = f"no first message within {GREETING_TIMEOUT_S:g} s"
            self._broken(reason)
            if self._clock() - began > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _read_results(self) -> bool:
        """Take results in until the stream ends. True: open it again at once, because of a gap."""
        # Also those whose submission broke or is under way: the instance ends what is not named here.
        begun = {
            placement.placement_id: len(placement.sequence.output)
            for placement in self.placements
            if placement.stay is not Stay.QUEUED
        }
        async with aclosing(self.client.results(begun)) as messages:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                message = await anext(messages, None)
            if message is None:
                return False
            await self._greeted(message.incarnation)
            while message is not None:
                self._lose(message.lost)
                # Updates behind a gap are taken in as well: they belong to other sequences.
                fitting = [self._take(update) for update in message.updates]
                if not all(fitting):
                    # What is handed over until then would not be named, and so be taken for unwanted.
                    self._ready.clear()
                    return True
                message = await anext(messages, None)
            return False

    async def _greeted(self, incarnation: str) -> None:
        """The stream is open. Raises AioRpcError to have it opened anew."""
        if self.facts is None or incarnation != self.facts.incarnation:
            # A restarted controller knows none of the sequences, and might serve another model.
            self._cancellations.forget()
            begun = [placement for placement in self.placements if placement.stay is not Stay.QUEUED]
            self._give_back(begun, "the controller restarted")
            await self._describe()
        if not self.connected:
            self._log.info("connected", address=self.announced.address, incarnation=incarnation)
            self.connected = True
            self._changed.notify_all()
        self._ready.set()

    def _broken(self, reason: str) -> None:
        """The stream has ended; it will be opened again."""
        if self.connected:
            self._log.warning("disconnected", reason=reason)
            self.connected = self.serving = False
            self._down_since = None
            self.disconnected_at = self._clock()
            self._ready.clear()
            self._changed.notify_all()

    async def _describe(self) -> None:
        facts = await self.client.describe()
        if facts.instance_id != self.instance_id:
            raise IncompatibleError(
                f"{self.announced.address} is instance {facts.instance_id}, not {self.instance_id}"
            )
        model = await self._admit(facts)
        if self._model not in (None, model):
            raise IncompatibleError(
                f"instance {self.instance_id} serves {model.name} now, and served {self.model.name} before"
            )
        self._model, self.facts = model, facts
        self.announced = replace(self.announced, incarnation=facts.incarnation)

    def _take(self, news: SequenceUpdate) -> bool:
        """Pass news on to their sequence. False if some before are missing: ask again, with positions."""
        placement = self.placements.get(news.sequence_id)
        if placement is None:
            # A stay that ended here, while the instance did not hear of it.
            if news.end is None:
                self._cancellations.add(news.sequence_id)
            else:
                self._cancellations.acknowledge(news.sequence_id)
            return True
        # News prove that it is there, even if the answer to its submission was lost.
        placement.stay = Stay.HELD
        ended_there = news.end is not None
        ended_unasked = news.end is not None and news.end.reason is FinishReason.CANCELLED
        handle = news.end.kv if isinstance(news.end, SequenceEnd) else None
        if ended_unasked:
            news = replace(news, end=None)
        first = not placement.sequence.output
        progress = placement.sequence.apply(news)
        if progress is Progress.GAP:
            return self._heal_gap(placement)
        placement.gaps = 0
        if news.token_ids:
            placement.settle()
        if ended_there and handle is None:
            self._cancellations.acknowledge(placement.placement_id)
        if news.kv is not None and first and not (news.token_ids or ended_there):
            self._dispatcher.announced(placement, news.kv)
        if first and news.token_ids:
            self._dispatcher.first_token(placement)
        self.placements.recount(placement)
        if progress is not Progress.GOES_ON:
            self.placements.remove(placement)
            if progress is Progress.ENDED_HERE and news.end is None:
                self._cancellations.add(placement.placement_id)
            self._dispatcher.ended(placement, None)
        elif handle is not None:
            self.placements.remove(placement, "handed over")
            name = placement.placement_id
            source = Source(self.instance_id, handle, lambda: self._cancellations.add(name))
            self._dispatcher.handed_over(placement, source)
        elif ended_unasked:
            self._give_back([placement], "the instance cancelled it")
        return True

    def _lose(self, placement_ids: Iterable[str]) -> None:
        """The instance does not have these."""
        lost = [found for name in placement_ids if (found := self.placements.get(name)) is not None]
        for placement in lost:
            if placement.stay is Stay.SENT:
                # Its submission may yet arrive.
                self._cancellations.add(placement.placement_id)
        self._give_back(lost, "the instance no longer has it")

    def _heal_gap(self, placement: Placement) -> bool:
        placement.gaps += 1
        log.warning("gap in results", sequence=placement.sequence.key, gaps=placement.gaps)
        if placement.gaps < MAX_GAPS:
            return False
        self._cancellations.add(placement.placement_id)
        self._give_back([placement], "its results have a gap that does not close")
        return True

    # -- reports ------------------------------------------------------------------------------------

    async def _watch_reports(self) -> None:
        """Open the stream again after every break, and when reports are wanted more or less often."""
        while True:
            await self._ready.wait()
            if not await self._read_reports():
                self.serving = False
                self._directory.reported(self, None)
                await asyncio.sleep(RETRY_S)

    async def _read_reports(self) -> bool:
        """Take reports in until the stream ends. True: open it again: another interval, or all anew."""
        interval_s, self._tell_all = self._directory.report_interval_s(), False
        try:
            async with aclosing(self.client.reports(interval_s)) as reports:
                while interval_s == self._directory.report_interval_s() and not self._tell_all:
                    async with asyncio.timeout(SILENCE_S):
                        told = await anext(reports, None)
                    if told is None:
                        return False
                    self._reported(*told)
            if self._tell_all:
                await asyncio.sleep(RETRY_S)
            return True
        except InvalidRequestError as error:
            if str(error) != self._misreported:
                self._misreported = str(error)
                self._log.warning("takes nothing new: what it reports cannot be", reason=str(error))
            return False
        except (grpc.aio.AioRpcError, TimeoutError):
            return False

    def _reported(self, report: InstanceReport, costs: StepCosts) -> None:
        self.report = report
        self.serving = report.serving
        if not report.stages_down:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = self._clock()
        if self.costs is None:
            self.costs = ReportedCost(costs)
        else:
            self.costs.update(costs)
        self._directory.reported(self, report)


class HandOver:
    """The queue in front of SubmitSequences: what is queued travels together.

    Bounded by what the dispatcher gives the link: max_sequences.
    """

    def __init__(
        self,
        client: ControllerClient,
        connected: asyncio.Event,
        *,
        is_here: Callable[[Placement], bool],
        bounced: Callable[[Placement, str, bool], None],
        refused: Callable[[Placement, TidePipeError], None],
    ) -> None:
        """bounced: no room, for the reason given; True: because it is draining. refused: it can never run."""
        self._client = client
        self._connected = connected
        self._is_here = is_here
        self._bounced = bounced
        self._refused = refused
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
            batch, message = self._next_batch()
            if not batch:
                if not self._queue:
                    self._filled.clear()
                continue
            try:
                verdicts = await message.send(self._ordinal)
            except grpc.aio.AioRpcError as error:
                self._failed(batch, error)
                await asyncio.sleep(RETRY_S)
            else:
                self._judge(batch, verdicts)

    def _next_batch(self) -> tuple[list[Placement], HandOverMessage]:
        """As many as fit into a message."""
        batch: list[Placement] = []
        message = self._client.hand_over()
        while self._queue and len(batch) < MAX_BATCH_SEQUENCES and not (batch and batch[-1].alone):
            placement = self._queue.popleft()
            # It may have left meanwhile, or news may have shown that a broken call did arrive.
            if self._is_here(placement) and placement.stay is not Stay.HELD:
                try:
                    fits = not (batch and placement.alone) and message.add(placement)
                except InvalidRequestError as error:
                    self._refused(placement, error)
                else:
                    if not fits:
                        self._queue.appendleft(placement)
                        break
                    placement.stay = Stay.SENT
                    batch.append(placement)
            self._ordinal = max(self._ordinal, placement.ordinal)
        return batch, message

    def _judge(self, batch: Sequence[Placement], verdicts: Mapping[str, tuple[Outcome, str]]) -> None:
        for placement in batch:
            if not self._is_here(placement):
                continue
            outcome, reason = verdicts.get(placement.placement_id, (Outcome.UNKNOWN, "no verdict"))
            match outcome:
                case Outcome.ACCEPTED:
                    placement.stay = Stay.HELD
                case Outcome.QUEUE_FULL | Outcome.DRAINING:
                    self._bounced(placement, reason, outcome is Outcome.DRAINING)
                case Outcome.INVALID:
                    self._refused(placement, InvalidRequestError(reason))
                case Outcome.UNKNOWN:
                    error = TidePipeError(f"no usable verdict from the instance: {reason}")
                    self._count_failure(placement, error)

    def _failed(self, batch: Sequence[Placement], error: grpc.aio.AioRpcError) -> None:
        log.warning("handing over failed", code=error.code().name, details=error.details(), size=len(batch))
        transient = error.code() in TRANSIENT
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
            self._refused(placement, error)
        else:
            self.add(placement)
