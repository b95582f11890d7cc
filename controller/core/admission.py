"""Which waiting sequences are prefilled next: the waiting line, admission by KV memory, packing of steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from controller.core.forecast import peak_blocks
from controller.core.ledger import KvLedger
from controller.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """max_running: sequences that hold KV blocks at a time. reserve: share of the blocks that the
    forecast peak must leave free, for predictions that were too short; below 0 it overcommits."""

    max_running: int = 256
    reserve: float = 0.05


class WaitingLine:
    """First come, first served; preempted sequences come back to the front."""

    def __init__(self) -> None:
        self._line: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._line)

    @property
    def first(self) -> Sequence | None:
        """Whose turn it is."""
        return self._line[0] if self._line else None

    def add(self, sequence: Sequence) -> None:
        """To the end."""
        self._line.append(sequence)

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """To the front, the one that arrived first foremost."""
        self._line.extendleft(sorted(sequences, key=lambda s: s.arrived, reverse=True))

    def take(self) -> Sequence:
        """Remove the first."""
        return self._line.popleft()

    def discard(self, sequence: Sequence) -> None:
        """Remove one that ended."""
        self._line.remove(sequence)


def fits(candidate: Sequence, running: Iterable[Sequence], ledger: KvLedger, rules: AdmissionRules) -> bool:
    """May the candidate be admitted beside those that run?

    Its present tokens and the next one must fit now, and the forecast peak of all must leave the reserve
    free.
    Alone it may always run (the edge refuses sequences that could never fit).
    """
    if ledger.blocks_for(candidate.length + 1) > ledger.free:
        return False
    others = list(running)
    if not others:
        return True
    if len(others) >= rules.max_running:
        return False
    everyone = [*others, candidate]
    lengths = np.array([s.length for s in everyone], dtype=np.float64)
    remaining = np.array([s.expected_remaining() for s in everyone])
    peak = peak_blocks(lengths, remaining, ledger.block_size)
    return peak <= ledger.total * (1.0 - rules.reserve)
