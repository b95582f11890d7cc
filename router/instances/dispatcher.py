"""Finds an instance for every sequence: the pending queue, and what became of those handed out."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence

import structlog

from common.errors import TidePipeError, UnavailableError
from common.pulse import Pulse
from router.core.routing import Choice, RoutingPolicy, SequenceFacts
from router.instances.link import InstanceLink
from router.instances.placement import Placement, Stay
from router.instances.sequence import RoutedSequence

DEFAULT_PATIENCE_S = 60.0
"""A sequence waits this long while there is no instance at all."""
TICK_S = 0.2
EXPIRY_S = 0.5
"""Looking for sequences that waited too long takes a look at each, so it is done only now and then."""

log = structlog.get_logger()

Order = tuple[int, int]


class Dispatcher:
    """Owns every sequence from its submission to its end; links own only stays.

    The pending queue is bounded by the requests that the router accepts, and served in order of arrival:
    what an instance gives back goes on in its old place.
    """

    def __init__(
        self,
        policy: RoutingPolicy,
        name_stay: Callable[[RoutedSequence], str],
        clock: Callable[[], float],
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> None:
        """name_stay: a new, unique id for a stay at an instance."""
        self.changed = Pulse()
        self.moved = 0
        self._policy = policy
        self._name_stay = name_stay
        self._clock = clock
        self._patience_s = patience_s
        self._links: dict[str, InstanceLink] = {}
        self._pending: dict[Order, tuple[RoutedSequence, float]] = {}
        self._heap: list[Order] = []
        self._placed: dict[Order, tuple[InstanceLink, Placement]] = {}
        self._last_open = clock()
        self._next_expiry = 0.0
        self._wake = asyncio.Event()

    def attach(self, link: InstanceLink) -> None:
        """Use an instance from now on."""
        self._links[link.instance_id] = link
        self.wake()

    def detach(self, link: InstanceLink) -> None:
        """Use an instance no more; its sequences come back when the link is closed."""
        if self._links.get(link.instance_id) is link:
            del self._links[link.instance_id]
        self.wake()

    def submit(self, sequence: RoutedSequence) -> None:
        """Find an instance for a new sequence."""
        self._queue(sequence)

    def withdraw(self, sequence: RoutedSequence) -> None:
        """The sequence has ended here; wherever it is, it must not run on."""
        self._pending.pop(sequence.order, None)
        if (entry := self._placed.pop(sequence.order, None)) is not None:
            link, placement = entry
            link.withdraw(placement)
            self.wake()

    def is_pending(self, sequence: RoutedSequence) -> bool:
        """True while it waits for an instance."""
        return sequence.order in self._pending

    def ended(self, placement: Placement) -> None:
        """Part of LinkHost."""
        self._placed.pop(placement.sequence.order, None)
        self.wake()

    def give_back(self, placements: Sequence[Placement], reason: str) -> None:
        """Part of LinkHost."""
        self.moved += len(placements)
        log.info("sequences came back", count=len(placements), reason=reason)
        for placement in placements:
            sequence = placement.sequence
            self._placed.pop(sequence.order, None)
            if placement.stay is Stay.QUEUED or sequence.moved():
                self._queue(sequence)

    def refused(self, placement: Placement, error: TidePipeError) -> None:
        """Part of LinkHost."""
        self._placed.pop(placement.sequence.order, None)
        placement.sequence.fail(error)

    def wake(self) -> None:
        """Part of LinkHost."""
        self._wake.set()
        self.changed.beat()

    async def run(self) -> None:
        """Place sequences until cancelled."""
        while True:
            try:
                # Pauses of instances and the patience of sequences end without an event.
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            self._place_pending()
            self._expire_pending()

    def _queue(self, sequence: RoutedSequence) -> None:
        self._pending[sequence.order] = (sequence, self._clock())
        heapq.heappush(self._heap, sequence.order)
        self._wake.set()

    def _place_pending(self) -> None:
        views = {view.instance_id: view for link in self._links.values() if (view := link.view()) is not None}
        longest = self._longest_context()
        set_aside: list[Order] = []
        while self._heap:
            order = heapq.heappop(self._heap)
            entry = self._pending.get(order)
            if entry is None:
                continue
            facts = _facts(entry[0])
            if facts.longest > longest:
                # No instance here is large enough; one that is may come. Others need not wait for that.
                set_aside.append(order)
                continue
            choice = self._policy.choose(facts, list(views.values()), self._clock())
            if choice is None:
                # Those behind it wait as well: overtaking would starve whoever needs the most room.
                set_aside.append(order)
                break
            self._place(entry[0], choice)
            if (view := self._links[choice.instance_id].view()) is not None:
                views[choice.instance_id] = view
            else:
                del views[choice.instance_id]
        for order in set_aside:
            heapq.heappush(self._heap, order)

    def _place(self, sequence: RoutedSequence, choice: Choice) -> None:
        log.debug(
            "routed",
            sequence=sequence.key,
            instance=choice.instance_id,
            reason=choice.reason,
            numbers=dict(choice.numbers),
        )
        link = self._links[choice.instance_id]
        placement = Placement(self._name_stay(sequence), sequence)
        del self._pending[sequence.order]
        self._placed[sequence.order] = (link, placement)
        link.place(placement)

    def _longest_context(self) -> int:
        return max((link.context_length for link in self._links.values() if link.open), default=0)

    def _expire_pending(self) -> None:
        now = self._clock()
        if now < self._next_expiry:
            return
        self._next_expiry = now + EXPIRY_S
        longest = self._longest_context()
        if longest:
            self._last_open = now
        expired = [
            sequence
            for sequence, since in self._pending.values()
            if _facts(sequence).longest > longest
            and now - (since if longest else max(since, self._last_open)) > self._patience_s
        ]
        for sequence in expired:
            self._pending.pop(sequence.order, None)
            sequence.fail(
                UnavailableError(
                    f"no instance that can take the request was there for {self._patience_s:g} s; "
                    "check that a controller is running and registered with this router"
                )
            )


def _facts(sequence: RoutedSequence) -> SequenceFacts:
    return SequenceFacts(len(sequence.prompt), len(sequence.output), sequence.sampling.max_tokens or 0)
