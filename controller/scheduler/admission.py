"""The waiting line, and which of its sequences may have KV memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

from controller.scheduler.awaited import AwaitedPrefixes
from controller.scheduler.block_store import BlockStore
from controller.scheduler.expectation import LengthBelief, belief_of, expected_output
from controller.scheduler.forecast import KvForecast
from controller.scheduler.overflow import OverflowMargin
from controller.scheduler.sequence import Sequence

UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """max_running: sequences that hold KV blocks at a time.
    reserve: share of the blocks that the forecast peak must leave free; below 0 it overcommits. While lengths
        are in doubt it is at least what keeps to `overflow`, unless it overcommits.
    overflow: share of the fills of the memory that may run out of blocks while lengths are in doubt.
    risk: standard deviations of the forecast that must fit as well, errors taken as independent.
    occupancy: without a forecast, the share of the blocks that may be in use when a sequence is admitted
        (what engines without predictions do); None forecasts.
    waited_for: the same for sequences with latency targets, whom waiting for memory that nobody may need in
        the end would cost their target; None: as for all.
    """

    max_running: int = UNLIMITED
    reserve: float = 0.0
    overflow: float = 0.1
    risk: float = 0.0
    occupancy: float | None = None
    waited_for: float | None = None


class WaitingQueue:
    """First come, first served unless an order is set; preempted sequences come back to the front.

    With priorities those go first who would have come first (`Sequence.turn`): everybody's turn comes.

    Of those that come together the ones with the same beginning follow each other.
    """

    def __init__(self, prefixes: AwaitedPrefixes) -> None:
        # Newest first, so that taking the next one is cheap.
        self._line: list[Sequence] = []
        self.prefixes = prefixes
        self.changes = 0
        self._urgent = 0

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Sequence]:
        return reversed(self._line)

    @property
    def first(self) -> Sequence | None:
        """Whose turn it is."""
        return self._line[-1] if self._line else None

    def add(self, sequences: Iterable[Sequence]) -> None:
        """To the end, in this order as far as they have nothing in common."""
        arrived = list(sequences)
        for sequence in arrived:
            self.prefixes.add(sequence)
        newest_first = self.prefixes.side_by_side(arrived)[::-1]
        self._line[:0] = newest_first
        self._urgent += sum(bool(sequence.priority) for sequence in arrived)
        if self._urgent:
            self.order_by(lambda s: 0.0)
        self.changes += len(newest_first)

    def put_back(self, sequences: Iterable[Sequence]) -> None:
        """To the front, the one that arrived first foremost."""
        for sequence in (line := sorted(sequences, key=lambda s: s.turn, reverse=True)):
            self.prefixes.add(sequence)
            self._urgent += bool(sequence.priority)
        self._line.extend(line)

    def insert(self, sequence: Sequence) -> None:
        """Among those that came before and after it, as if it had waited here all the time."""
        line, place = self._line, len(self._line)
        while place and (line[place - 1].preemptions or line[place - 1].turn <= sequence.turn):
            place -= 1
        line.insert(place, sequence)
        self.prefixes.add(sequence)
        self._urgent += bool(sequence.priority)
        self.changes += 1

    def expect_again(self) -> None:
        """What they will find is not what it was."""
        line = list(self)
        for sequence in line:
            self.prefixes.remove(sequence)
        for sequence in line:
            self.prefixes.add(sequence)

    def take(self) -> Sequence:
        """Remove the first."""
        sequence = self._line.pop()
        self.prefixes.remove(sequence)
        self._urgent -= bool(sequence.priority)
        return sequence

    def discard(self, sequence: Sequence) -> None:
        """Remove one that ended."""
        self.remove([sequence])

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Take several out, wherever they stand."""
        gone = set(sequences)
        if not gone:
            return
        for sequence in gone:
            self.prefixes.remove(sequence)
            self._urgent -= bool(sequence.priority)
        self._line = [sequence for sequence in self._line if sequence not in gone]

    def order_by(self, rank: Callable[[Sequence], float]) -> None:
        """Lowest rank first, but for priorities; preempted ones stay in front of all others."""
        if self._urgent:
            self._line.sort(key=lambda s: (s.preemptions > 0, -s.turn, -rank(s)))
        else:
            self._line.sort(key=lambda s: (s.preemptions > 0, -rank(s)))


class AdmissionController:
    """Decides on admission for one instance: the present memory, and the forecast of its future."""

    def __init__(
        self, rules: AdmissionRules, allocator: BlockStore, longest: int, margin: OverflowMargin
    ) -> None:
        """longest: tokens of one sequence at most."""
        self.rules = rules
        self._margin = margin
        self.forecast = KvForecast(allocator.block_size, longest)
        self._allocator = allocator

    def fits(self, candidate: Sequence, running: int, seen: LengthBelief | None, shared: int = 0) -> bool:
        """May the candidate be admitted beside `running` others?

        Its present tokens and the next one must fit now, and the forecast peak of all must leave the reserve
        free. Alone it may always run (the edge refuses sequences that could never fit).
        shared: blocks of its beginning that others use already.
        """
        rules, allocator = self.rules, self._allocator
        needed = allocator.blocks_for(candidate.length + 1) - shared
        if needed > allocator.free:
            return False
        if not running:
            return True
        if running >= rules.max_running:
            return False
        occupancy = rules.occupancy if candidate.tpot_s is None else rules.waited_for or rules.occupancy
        if occupancy is not None:
            return allocator.used + needed <= occupancy * allocator.total
        generated = len(candidate.output)
        peak = self.forecast.peak_with(
            candidate.length - shared * allocator.block_size,
            generated,
            belief_of(candidate, seen),
            candidate.max_tokens - generated,
            rules.risk,
        )
        return peak <= self.room_tokens

    def peak_with(self, waiting: Many[Sequence], seen: LengthBelief | None) -> float:
        """The forecast peak if all of these were admitted now; each as long as they are in the mean."""
        tokens = sum(one.length - one.expected_cached for one in waiting)
        rest = sum(expected_output(one, seen) - len(one.output) for one in waiting)
        return self.forecast.peak_with_mean(tokens, rest, len(waiting))

    def adopt(self, rules: AdmissionRules) -> None:
        """Other rules from now on; what was learned stays."""
        self.rules = rules
        self._margin.rate = rules.overflow

    @property
    def room_tokens(self) -> float:
        """Tokens that the forecast peak may reach."""
        return self._allocator.capacity_tokens * (1.0 - self.reserve)

    @property
    def reserve(self) -> float:
        """Share of the blocks that the forecast peak must leave free now."""
        own = self.rules.reserve
        return max(own, self._margin.share) if own >= 0.0 and self.forecast.doubtful else own

    def admitted(self, sequence: Sequence, seen: LengthBelief | None) -> None:
        """A sequence runs; or one that runs has outlived its forecast."""
        generated = len(sequence.output)
        allowed = sequence.max_tokens - generated
        belief = belief_of(sequence, seen)
        own = sequence.length - sequence.shared_blocks * self._allocator.block_size
        review_at = self.forecast.put(sequence.key, own, generated, belief, allowed)
        sequence.review_at = len(sequence.prompt) + review_at

    def left(self, sequence: Sequence) -> None:
        """A sequence holds nothing any more."""
        self.forecast.remove(sequence.key)

    def shared(self) -> None:
        """Other blocks than before may be nobody's own."""
        self.forecast.unpaid = float(self._allocator.unpaid * self._allocator.block_size)

    def slack(self) -> float:
        """Share of the memory that neither present use nor the forecast peak takes; may be negative."""
        capacity = max(1, self._allocator.capacity_tokens)
        used = self._allocator.used / self._allocator.total if self._allocator.total else 1.0
        if self.rules.occupancy is not None:
            return self.rules.occupancy - used
        forecast = 1.0 - self.reserve - self.forecast.peak_tokens(self.rules.risk) / capacity
        return min(forecast, 1.0 - used)
