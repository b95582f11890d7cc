"""Which sequences decode together: micro-batches, and work stealing between them (TD-Pipe, inter-batch work
stealing). Each time a batch comes back it gives what it has above the average to a pool, or takes from there.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import Protocol

from controller.scheduler.decode import DecodeBatches, MicroBatch
from controller.scheduler.sequence import Sequence
from tidepipe_common.latency.model import StepCost

_length = attrgetter("length")


class Stealing(Protocol):
    """Brings a batch that is not in flight to its share, through the pool."""

    def balance(self, batches: DecodeBatches, batch: MicroBatch, arriving: int) -> int:
        """Give or take; returns how many were given.

        arriving: sequences whose prefill is on its way. They count for the average, so that the first batches
        after a prefill phase do not take everything.
        """
        ...


class NoStealing:
    """Nobody gives; whoever is smallest takes what is new."""

    def balance(self, batches: DecodeBatches, batch: MicroBatch, arriving: int) -> int:
        """See the class."""
        smallest = min(len(other.members) for other in batches.batches)
        if batches.pool and len(batch.members) == smallest:
            share = -(-(len(batches) + arriving) // len(batches.batches))
            take_spread(batches, batch, max(1, share - len(batch.members)))
        return 0


class StealByCount:
    """The paper's: every batch gets the same number of sequences.

    It does not say which ones a batch gives. Every n-th by length, so that what leaves is like what stays: to
    give the longest, say, evens out the numbers and makes the contexts uneven.
    """

    def balance(self, batches: DecodeBatches, batch: MicroBatch, arriving: int) -> int:
        """See the class."""
        target = -(-(len(batches) + arriving) // len(batches.batches))
        surplus = len(batch.members) - target
        if surplus > 0:
            batch.members.sort(key=_length)
            count = len(batch.members)
            leave = {int((place + 0.5) * count / surplus) for place in range(surplus)}
            batches.pool.extend(one for place, one in enumerate(batch.members) if place in leave)
            batch.members[:] = [one for place, one in enumerate(batch.members) if place not in leave]
            return surplus
        if surplus < 0 and batches.pool:
            take_spread(batches, batch, -surplus)
        return 0


class StealByTime:
    """Batches equal in predicted step time: as many rows (whole tiles cost alike) and as much context.

    Decode reads the KV cache, so that two batches of equally many sequences can differ by a tenth in time.
    Counts are kept within `slack` of the average; within that, members move whose contexts even out the sums.
    """

    def __init__(self, cost: StepCost | None = None, slack: float = 0.03) -> None:
        """cost: weighs a row against its context; without it only the contexts count."""
        self._slack = slack
        self._per_row = 0.0
        if cost is not None:
            # A row's own cost, in units of one KV token read.
            rise = (cost.linear_s(512) - cost.linear_s(256)) / 256
            self._per_row = rise / max(cost.attention_s(1, 0.0), 1e-15)

    def balance(self, batches: DecodeBatches, batch: MicroBatch, arriving: int) -> int:
        """See the class."""
        count = len(batches.batches)
        pool, members = batches.pool, batch.members
        rows = [len(other.members) for other in batches.batches]
        mean_rows = (sum(rows) + len(pool) + arriving) / count
        batch.context = load = _context(members)
        pooled = _context(pool)
        arriving_load = arriving * (pooled / len(pool)) if pool else 0.0
        mean_load = (sum(other.context for other in batches.batches) + pooled + arriving_load) / count
        most = self._most(mean_rows)
        given = 0
        if self._gives(len(members), load, mean_rows, mean_load):
            # By length, as it stays: all members grow alike. Then the closest one is found by halving.
            members.sort(key=_length)
        while self._gives(len(members), load, mean_rows, mean_load):
            surplus = load - mean_load
            number = max(1, round(len(members) - mean_rows))
            index = _closest(members, surplus / number)
            one = members[index]
            if load - one.length < mean_load - one.length / 2 and len(members) <= most:
                break
            del members[index]
            pool.append(one)
            load -= one.length
            given += 1
            if given > 2 + len(members) // 8:
                break
        if pool and not given:
            self._take(pool, members, load, mean_rows, mean_load, most)
        if given or pooled:
            batch.context = _context(members)
        return given

    def _gives(self, rows: int, load: float, mean_rows: float, mean_load: float) -> bool:
        """Is a batch of so many rows and so much context too large?"""
        if rows <= 1:
            return False
        if rows > self._most(mean_rows):
            return True
        over = (load - mean_load) + self._per_row * (rows - mean_rows)
        one = mean_load / max(mean_rows, 1.0) + self._per_row
        return over > one

    def _most(self, mean_rows: float) -> float:
        return mean_rows * (1 + self._slack) + 1

    def _take(
        self,
        pool: list[Sequence],
        members: list[Sequence],
        load: float,
        mean_rows: float,
        mean_load: float,
        most: float,
    ) -> None:
        wanted = round(mean_rows - len(members))
        pool.sort(key=_length)
        if wanted > 8 and len(pool) > 8:
            # Far below: all at once, long and short ones alike.
            taken = _every(pool, min(wanted, len(pool)))
            load += _context(taken)
            members.extend(taken)
        while pool and len(members) < most:
            lack = mean_load - load
            number = max(1, round(mean_rows - len(members)))
            index = _closest(pool, lack / number)
            one = pool[index]
            if len(members) >= mean_rows and one.length / 2 + self._per_row / 2 > lack:
                break
            del pool[index]
            members.append(one)
            load += one.length


def take_spread(batches: DecodeBatches, batch: MicroBatch, wanted: int) -> None:
    """Take from the pool, every n-th by length, so that each batch gets long and short contexts alike."""
    batches.pool.sort(key=_length)
    batch.members.extend(_every(batches.pool, wanted))


def _every(pool: list[Sequence], wanted: int) -> list[Sequence]:
    step = max(1, len(pool) // wanted)
    taken = pool[::step][:wanted]
    chosen = set(map(id, taken))
    pool[:] = [s for s in pool if id(s) not in chosen]
    return taken


def _context(sequences: list[Sequence]) -> int:
    return sum([s.length for s in sequences])


def _closest(ordered: list[Sequence], length: float) -> int:
    """Index of the sequence whose length is closest, of some that are sorted by length."""
    index = bisect_left(ordered, length, key=_length)
    if index == len(ordered) or (
        index and length - ordered[index - 1].length <= ordered[index].length - length
    ):
        return index - 1
    return index
