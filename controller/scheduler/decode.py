"""Micro-batches: several, so that every stage has work."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from controller.scheduler.sequence import Sequence


@dataclass(slots=True, eq=False)
class MicroBatch:
    """Sequences that take their decode steps together.

    context: tokens of all members when the batch was last balanced.
    """

    members: list[Sequence] = field(default_factory=list)
    in_flight: bool = False
    context: int = 0


class DecodeBatches:
    """The micro-batches of one instance, and the pool between them: ready to decode, in no batch yet.

    leaving: ready as well, and kept out of batches while they are expected to go on elsewhere.
    """

    def __init__(self, microbatches: int) -> None:
        self.batches = [MicroBatch() for _ in range(microbatches)]
        self.pool: list[Sequence] = []
        self.leaving: list[Sequence] = []
        self._wanted = microbatches

    def __len__(self) -> int:
        return len(self.pool) + len(self.leaving) + sum(len(batch.members) for batch in self.batches)

    def resize(self, microbatches: int) -> None:
        """Have so many from now on; members of those too many go into the pool when their step is back."""
        self.pool += self.leaving
        self.leaving.clear()
        self._wanted = microbatches
        self.batches.extend(MicroBatch() for _ in range(microbatches - len(self.batches)))
        for batch in self.idle():
            self._dissolve_surplus(batch)

    def returned(self, batch: MicroBatch) -> None:
        """Its step is back."""
        batch.in_flight = False
        self._dissolve_surplus(batch)

    def _dissolve_surplus(self, batch: MicroBatch) -> None:
        if len(self.batches) > self._wanted and batch in self.batches:
            self.batches.remove(batch)
            self.pool.extend(batch.members)
            batch.members.clear()

    def add(self, sequence: Sequence) -> None:
        """A sequence is ready to decode."""
        self.pool.append(sequence)

    def discard(self, sequence: Sequence, probably: MicroBatch | None = None) -> None:
        """A sequence ended or was preempted. probably: the batch to look into first."""
        likely = () if probably is None else (probably.members,)
        for group in (*likely, self.pool, self.leaving, *(batch.members for batch in self.batches)):
            # Not list.remove: it asks each one before for equality, which costs more than all else here.
            for index, member in enumerate(group):
                if member is sequence:
                    del group[index]
                    return

    def sizes(self) -> list[int]:
        """Sequences in each micro-batch."""
        return [len(batch.members) for batch in self.batches]

    def lacks_company(self, batch: MicroBatch, arriving: int) -> bool:
        """True if a batch is far below its share and sequences that could fill it are on their way."""
        return arriving > 0 and 2 * len(batch.members) * len(self.batches) < len(self) + arriving

    def idle(self) -> Many[MicroBatch]:
        """Batches that are not in flight."""
        return [batch for batch in self.batches if not batch.in_flight]
