"""The sequences that other routers have here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.instances.dispatcher import Dispatcher
from router.parent.sequence import ForwardedSequence
from tidepipe_common.rpc.results import ABANDONED_AFTER_S, ResultsHub
from tidepipe_common.types.sampling import FinishReason

SWEEP_S = 0.5


class UpstreamHost:
    """Gives them to the dispatcher, and keeps their results for whoever asked."""

    def __init__(self, dispatcher: Dispatcher, clock: Callable[[], float], max_sequences: int) -> None:
        """max_sequences: of all other routers together at a time."""
        self.hub = ResultsHub()
        self.max_sequences = max_sequences
        self._dispatcher = dispatcher
        self._clock = clock
        self._sequences: dict[str, ForwardedSequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    async def run(self) -> None:
        """Forget what routers left behind that do not come back, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for name in self.hub.abandoned(self._clock(), ABANDONED_AFTER_S):
                self.drop(name)
            self.hub.close_mailboxes(self._clock(), ABANDONED_AFTER_S)
            for name in [name for name, one in self._sequences.items() if one.finished]:
                del self._sequences[name]

    def now(self) -> float:
        """The clock of sequences' times, seconds."""
        return self._clock()

    def take(self, router_id: str, sequence: ForwardedSequence) -> bool:
        """Known ones count as taken. False: there are too many here."""
        name = sequence.key
        if name in self.hub.records:
            return True
        if len(self._sequences) >= self.max_sequences:
            return False
        self.hub.open(name, router_id, tuple(sequence.output), self._clock())
        self._sequences[name] = sequence
        self._dispatcher.submit(sequence)
        return True

    def note_ordinal(self, router_id: str, ordinal: int) -> None:
        """How many sequences the router has meant for us so far."""
        self.hub.note_ordinal(router_id, ordinal, self._clock())

    def ordinal(self, router_id: str) -> int:
        """See note_ordinal."""
        return self.hub.ordinal(router_id)

    def cancel(self, sequence_id: str) -> None:
        """The other router does not want it any more."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            sequence.end(FinishReason.CANCELLED)
            self._dispatcher.withdraw(sequence)

    def drop(self, sequence_id: str) -> None:
        """Nobody will ask for it again."""
        self.cancel(sequence_id)
        self.hub.forget(sequence_id)
