"""Beginnings that an instance in virtual time lends to others, that it borrows, and that go ahead of those
who are to go on there: as the controller's scheduler does (`controller/scheduler/loans.py`), by its rule and
its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.scheduler.fetch_rule import Fetching, FetchRule
from controller.scheduler.grants import Held
from controller.scheduler.loans import BORROWED, LENT, waited_s
from simulator.job import Job
from simulator.kv_memory import KvMemory
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.kv_transfer import KvFetched, KvHandle


@dataclass(slots=True)
class _Loan:
    """A fetch under way: of the blocks with these keys the ones from `found` on. until: when nobody waits for
    it any more."""

    held: Held
    keys: Sequence[bytes]
    found: int
    fetching: Fetching
    until: float
    waiting: list[Job] = field(default_factory=list)


class Loans:
    """Of one instance."""

    def __init__(self, memory: KvMemory, rule: FetchRule, chunk: int) -> None:
        """chunk: prompt tokens of a step."""
        self._memory = memory
        self._rule = rule
        self._chunk = chunk
        self._lent: dict[Job, Held] = {}
        self._loans: dict[tuple[int, bool], _Loan] = {}
        """By numbers of fetches, and whether they go ahead."""
        self._coming: dict[bytes, _Loan] = {}

    @property
    def held(self) -> list[Held]:
        """What they hold (for checks)."""
        return [*self._lent.values(), *(loan.held for loan in self._loans.values())]

    @property
    def waiting(self) -> int:
        """Requests that wait for their beginning."""
        return sum(len(loan.waiting) for loan in self._loans.values())

    def lend(self, job: Job) -> int:
        """Pin what is here of a prompt's beginning: so many tokens."""
        keys = job.keys[: (job.prompt - 1) // BLOCK_SIZE]
        lent = sum(len(held.blocks) for held in self._lent.values())
        found = self._memory.find(keys)
        if not found or found > LENT * self._memory.total // BLOCK_SIZE - lent:
            return 0
        self._lent[job] = self._memory.hold(keys[:found], found)
        return found * BLOCK_SIZE

    def take_back(self, job: Job) -> None:
        """Nobody fetches it any more."""
        if (held := self._lent.pop(job, None)) is not None:
            self._memory.let_go(held)

    def borrow(self, job: Job, handle: KvHandle, others: int, now: float) -> int | None:
        """Bytes of a beginning to be fetched for one that waits then; 0: it waits for what comes for another
        one; None: it is to be computed. others: who hold memory here."""
        if (loan := self._coming_of(job)) is not None:
            if loan.fetching.ahead_of_it or now >= loan.until:
                return None
            loan.waiting.append(job)
            return 0
        return self._fetch(job, handle, others, now, ahead=False)

    def offer(self, job: Job, handle: KvHandle, others: int, now: float) -> int | None:
        """The same of a prompt that is being computed elsewhere and is to go on here: nobody waits for it."""
        return self._fetch(job, handle, others, now, ahead=True)

    def comes(self, job: Job) -> bool:
        """Is what stands behind what is here of it on its way?"""
        return self._coming_of(job) is not None

    def _coming_of(self, job: Job) -> _Loan | None:
        if not self._coming:
            return None
        keys = job.findable_keys
        found = self._memory.find(keys)
        return self._coming.get(keys[found]) if found < len(keys) else None

    def _fetch(self, job: Job, handle: KvHandle, others: int, now: float, *, ahead: bool) -> int | None:
        keys, count = job.findable_keys, handle.computed // BLOCK_SIZE
        found = self._memory.find(keys)
        missing = count - found
        nbytes = missing * handle.block_bytes
        under_way = sum(len(one.keys) - one.found for one in self._loans.values())
        room = int(BORROWED * self._memory.total) // BLOCK_SIZE - under_way
        if missing <= 0 or missing > min(room, self._memory.free // BLOCK_SIZE):
            return None
        if any(key in self._coming for key in keys[found:count]):
            return None
        begin, left = found * BLOCK_SIZE, missing * BLOCK_SIZE
        against = self._rule.against(handle, begin, left, nbytes, others=others, chunk=self._chunk, now=now)
        if against is not None:
            return None
        fetching = self._rule.begin(handle, nbytes, now, ahead=ahead)
        held = self._memory.hold(keys[:found], count)
        waiting = [] if ahead else [job]
        loan = _Loan(held, keys[:count], found, fetching, now + waited_s(fetching.predicted_s), waiting)
        self._loans[job.index, ahead] = loan
        self._coming.update(dict.fromkeys(keys[found:count], loan))
        return nbytes

    def fetched(self, number: int, seconds: float, now: float, *, ahead: bool) -> list[Job] | None:
        """It is here: who waited for it. None: it is none of ours."""
        loan = self._loans.pop((number, ahead), None)
        if loan is None:
            return None
        self._rule.ended(loan.fetching, KvFetched(number, nbytes=loan.fetching.nbytes, seconds=seconds), now)
        for key in loan.keys[loan.found :]:
            self._coming.pop(key, None)
        self._memory.seal(loan.held, loan.keys, loan.found)
        return loan.waiting

    def late(self, now: float) -> list[Job]:
        """Who does not wait any longer."""
        gone: list[Job] = []
        for loan in self._loans.values():
            if loan.waiting and now >= loan.until:
                gone += loan.waiting
                loan.waiting = []
        return gone
