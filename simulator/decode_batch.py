"""The sequences of an instance in virtual time that decode together: a token for each of them in a round."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.job import NOT_YET, Job


class Numbers(NamedTuple):
    """What one that decodes is judged by.

    first_at: when it had its first token, or came with some. due: its first token; ttft_s: time that it had
    for that when it came here; both infinite if it came with some. begun: tokens that it would have had in
    round 0. given: those that it came with.
    """

    prompt: float
    expected: float
    first_at: float
    due: float
    ttft_s: float
    tpot_s: float
    begun: float
    given: float

    @classmethod
    def of(cls, job: Job) -> Numbers:
        """Of one that takes part from now on."""
        due = NOT_YET if job.given else job.arrival + job.slo.ttft_s
        begun = job.generated - job.start_round
        return cls(
            job.prompt, job.expected, job.begun_at, due, due - job.submitted, job.slo.tpot_s, begun, job.given
        )


class DecodeBatch:
    """Nothing changes from round to round but the contexts' length, so any number of rounds is one stroke.

    number: rounds so far. context: tokens that all of them attend to.
    """

    def __init__(self) -> None:
        self.number = 0
        self.context = 0
        self._by_end: list[tuple[int, int, Job, int]] = []  # heap by last round; the place in the table
        self._by_age: list[Job] = []  # the newest last; some have left
        self._table = np.empty((len(Numbers._fields), 0))
        self._places: list[int] = []  # that are free in it
        self._columns: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._by_end)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, _, job, _ in self._by_end)

    @property
    def columns(self) -> npt.NDArray[np.float64]:
        """The `Numbers` of all, in the order of iteration: one kind after the other."""
        if self._columns is None:
            places = np.fromiter((entry[3] for entry in self._by_end), np.intp, len(self))
            self._columns = self._table[:, places]
        return self._columns

    @property
    def to_next_end(self) -> int:
        """Rounds until the first output ends; only if there is one."""
        return self._by_end[0][0] - self.number

    def join(self, jobs: Iterable[Job]) -> None:
        """They take part from the next round on."""
        for job in jobs:
            job.start_round = self.number
            job.last_round = self.number + job.output - job.generated
            job.decoding = True
            self.context += job.to_compute
            heapq.heappush(self._by_end, (job.last_round, job.index, job, self._place(Numbers.of(job))))
            self._by_age.append(job)
            self._columns = None

    def grown(self, job: Job) -> int:
        """Tokens of one of them, or of one that just left, since it joined: one a round."""
        return self.number - job.start_round

    def go(self, rounds: int) -> list[Job]:
        """So many rounds, none of them beyond the first end; returns those whose outputs end."""
        self.number += rounds
        self.context += rounds * len(self)
        ended = []
        while self._by_end and self._by_end[0][0] <= self.number:
            _, _, job, place = heapq.heappop(self._by_end)
            self._places.append(place)
            self._stop(job, job.output)
            ended.append(job)
        while self._by_age and not self._by_age[-1].decoding:
            self._by_age.pop()
        return ended

    def give_way(self) -> Job:
        """Take out the newest."""
        job = self._by_age.pop()
        while not job.decoding:
            job = self._by_age.pop()
        self._stop(job, job.generated + self.number - job.start_round)
        self._take_out(job)
        return job

    def leave(self, job: Job) -> int:
        """One of them goes on elsewhere; its tokens since it joined."""
        grown = self.grown(job)
        self._stop(job, job.generated + grown)
        self._take_out(job)
        return grown

    def _place(self, numbers: Numbers) -> int:
        """Write them down; where they stand."""
        if not self._places:
            count = self._table.shape[1]
            self._table = np.pad(self._table, ((0, 0), (0, max(64, count))))
            self._places.extend(range(self._table.shape[1] - 1, count - 1, -1))
        place = self._places.pop()
        self._table[:, place] = numbers
        return place

    def _take_out(self, job: Job) -> None:
        self._places += [entry[3] for entry in self._by_end if entry[2] is job]
        self._by_end = [entry for entry in self._by_end if entry[2] is not job]
        heapq.heapify(self._by_end)

    def _stop(self, job: Job, generated: int) -> None:
        job.generated = generated
        job.decoding = False
        self._columns = None
        self.context -= job.to_compute
