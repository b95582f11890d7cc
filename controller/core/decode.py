"""Decode micro-batches: several, so that every stage has work; balanced, so that none waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.core.sequence import Sequence


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Sequences that take their decode steps together."""

    members: list[Sequence] = field(default_factory=list)
    in_flight: bool = False


class DecodeBatches:
    """The micro-batches of one instance, and the pool between them.

    Work stealing (TD-Pipe, inter-batch work stealing): each time a batch comes back it gives what it has
    above the average to the pool, or takes what it lacks from there.
    """

    def __init__(self, microbatches: int) -> None:
        self.batches = [MicroBatch() for _ in range(microbatches)]
        self.pool: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.pool) + sum(len(batch.members) for batch in self.batches)

    def add(self, sequence: Sequence) -> None:
        """A sequence is ready to decode."""
        self.pool.append(sequence)

    def discard(self, sequence: Sequence) -> None:
        """A sequence ended or was preempted."""
        for group in (self.pool, *(batch.members for batch in self.batches)):
            if sequence in group:
                group.remove(sequence)
                return

    def sizes(self) -> list[int]:
        """Sequences in each micro-batch."""
        return [len(batch.members) for batch in self.batches]

    def rebalance(self, batch: MicroBatch, arriving: int) -> int:
        """Bring a batch that is not in flight to the average size, through the pool; how many it gave.

        arriving: sequences whose prefill is on its way; they count, so that the first batches after a
        prefill phase do not take everything.
        """
        target = -(-(len(self) + arriving) // len(self.batches))
        surplus = len(batch.members) - target
        if surplus > 0:
            # The longest ones move: whoever takes them is short of work.
            batch.members.sort(key=lambda s: s.length)
            self.pool.extend(batch.members[-surplus:])
            del batch.members[-surplus:]
            return surplus
        if surplus < 0 and self.pool:
            self.pool.sort(key=lambda s: s.length)
            # Every second one, so that each batch gets long and short contexts alike.
            step = max(1, len(self.pool) // -surplus)
            taken = self.pool[::step][:-surplus]
            chosen = set(map(id, taken))
            self.pool = [s for s in self.pool if id(s) not in chosen]
            batch.members.extend(taken)
        return 0

    def lacks_company(self, batch: MicroBatch, arriving: int) -> bool:
        """True if a batch is far below its share and sequences that could fill it are on their way."""
        return arriving > 0 and 2 * len(batch.members) * len(self.batches) < len(self) + arriving

    def idle(self) -> Iterable[MicroBatch]:
        """Batches that are not in flight."""
        return [batch for batch in self.batches if not batch.in_flight]
