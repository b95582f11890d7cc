"""Sequences that come to an instance in virtual time while their KV blocks are elsewhere.

As the controller's scheduler has them (`controller/scheduler/hand_over.py`), by its rule: they wait for
blocks that went ahead of them, then for memory, and are fetched, each in its turn; or computed where that is
quicker.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.scheduler.fetch_rule import Fetching, FetchRule
from controller.scheduler.loans import waited_s
from simulator.borrowed import Loans
from simulator.job import NOT_YET, Job
from simulator.kv_memory import KvMemory
from simulator.transfers import NOT_FETCHED, Arriving, handle_of
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.kv_transfer import MOST_LEASE_S, KvFetched, KvHandle


@dataclass(slots=True)
class _InLine:
    """One that has no memory yet. ahead_until: how long it waits for blocks that are on their way."""

    job: Job
    handle: KvHandle
    ahead_until: float = NOT_YET


class Coming:
    """Of one instance. tokens: that those in line will take."""

    def __init__(
        self, memory: KvMemory, loans: Loans, rule: FetchRule, token_bytes: float, chunk: int
    ) -> None:
        """token_bytes: of KV cache. chunk: prompt tokens of a step."""
        self.tokens = 0
        self._memory, self._loans, self._rule = memory, loans, rule
        self._token_bytes, self._chunk = token_bytes, chunk
        self._line: list[_InLine] = []
        self._fetches: dict[Job, Fetching] = {}

    def __len__(self) -> int:
        return len(self._line) + len(self._fetches)

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [*(one.job for one in self._line), *self._fetches]

    @property
    def fetching(self) -> list[Job]:
        """Those that hold memory which is being filled."""
        return [*self._fetches]

    def come(self, job: Job, giver: str) -> None:
        """One comes from an instance of that node."""
        job.make_keys()
        job.begun_at, job.given = NOT_YET, job.generated
        self.tokens += job.to_compute + 1
        self._line.append(_InLine(job, handle_of(giver, job.to_compute - 1, self._token_bytes, MOST_LEASE_S)))

    def plan(self, others: int, now: float) -> tuple[list[Arriving], list[Job]]:
        """What is to be fetched now, and who is to be computed. others: sequences that run here."""
        arriving: list[Arriving] = []
        computed: list[Job] = []
        line, self._line = self._line, []
        for place, one in enumerate(line):
            job = one.job
            if self._awaits(one, now):
                self._line.append(one)
                continue
            here = self._memory.find(job.findable_keys)
            missing = -(-one.handle.computed // BLOCK_SIZE) - here
            nbytes, rest = missing * one.handle.block_bytes, missing < here
            if not self._worth(one, here, nbytes, others, now, rest=rest):
                computed.append(job)
                arriving.append(Arriving(job, 0.0, NOT_FETCHED))
            elif self._memory.reserve(job, alone=not (others or self._fetches)):
                self._fetches[job] = self._rule.begin(one.handle, nbytes, now, rest=rest)
                arriving.append(Arriving(job, nbytes, job.index))
            else:
                # In turn: who comes later may not take its memory.
                self._line += line[place:]
                break
            self.tokens -= job.to_compute + 1
        return arriving, computed

    def fetched(self, job: Job, nbytes: float, seconds: float, now: float) -> None:
        """Its blocks are here."""
        self._rule.ended(
            self._fetches.pop(job), KvFetched(job.index, nbytes=round(nbytes), seconds=seconds), now
        )
        job.begun_at = now
        job.computed = job.to_compute
        self._memory.computed(job)

    def _awaits(self, one: _InLine, now: float) -> bool:
        if not self._loans.comes(one.job):
            return False
        if one.ahead_until == NOT_YET:
            nbytes = -(-one.handle.computed // BLOCK_SIZE) * one.handle.block_bytes
            one.ahead_until = now + waited_s(self._rule.expected_s(one.handle, nbytes, now))
        return now < one.ahead_until

    def _worth(self, one: _InLine, here: int, nbytes: int, others: int, now: float, *, rest: bool) -> bool:
        """Is it fetched, not computed?"""
        handle, begin = one.handle, here * BLOCK_SIZE
        if handle.computed <= begin:
            return False
        left, chunk = handle.computed - begin, self._chunk
        against = self._rule.against(
            handle, begin, left, nbytes, others=others, chunk=chunk, now=now, rest=rest
        )
        return against is None
