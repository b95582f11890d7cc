"""Prompts that an instance in virtual time has still to compute, and the steps they are packed into."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from simulator.job import Job
from simulator.kv_memory import KvMemory
from tidepipe_common.latency.work import chunk_pairs


@dataclass(slots=True)
class PromptStep:
    """What one step computes of prompts.

    jobs: whose prompts it computes, or parts of them. ready: those who came with their KV cache, and need
    nothing computed. tokens, pairs: as of PrefillWork. cached: tokens computed or found before that it reads.
    """

    jobs: list[Job] = field(default_factory=list)
    ready: list[Job] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    pairs: float = 0.0


class PromptLine:
    """Waiting requests, first come, first served; those that were preempted are first."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._left = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def left_tokens(self) -> int:
        """Prompt tokens still to be computed."""
        return self._left

    def add(self, job: Job) -> None:
        """A new request."""
        self._expect(job)
        self._jobs.append(job)

    def add_computed(self, job: Job) -> None:
        """A request whose prompt was computed elsewhere."""
        job.computed = job.to_compute
        # In a line of their own, which prompts do not hold up.
        place = next(
            (i for i, one in enumerate(self._jobs) if one.computed < one.to_compute), len(self._jobs)
        )
        self._jobs.insert(place, job)

    def put_back(self, job: Job) -> None:
        """A preempted request: its prompt, and its output so far, are to be computed again."""
        self._expect(job)
        self._jobs.appendleft(job)

    def pack(self, room: int, memory: KvMemory, *, whole: bool, alone: bool) -> PromptStep:
        """Take one step's prompts off the line, as far as there is memory for them.

        room: tokens. whole: whole prompts share a step, and only one that is longer than a step is cut;
            else any prompt is. alone: nobody but the step's requests has memory.
        """
        step = PromptStep()
        while self._jobs and room > 0:
            job = self._jobs[0]
            here_already = job.computed == job.to_compute
            if job.computed == 0 or here_already:
                first = not (step.jobs or step.ready)
                longest = room if whole and step.jobs else 0
                if not memory.admit(job, alone=alone and first, longest=longest):
                    break
                if not here_already:
                    self._left -= job.computed
            rest = job.to_compute - job.computed
            if here_already:
                memory.computed(job)
                step.ready.append(self._jobs.popleft())
                continue
            count = min(rest, room)
            step.pairs += chunk_pairs(job.computed, count)
            step.cached += job.computed
            job.computed += count
            memory.computed(job)
            room -= count
            step.tokens += count
            step.jobs.append(job)
            if job.computed == job.to_compute:
                self._jobs.popleft()
        self._left -= step.tokens
        return step

    def _expect(self, job: Job) -> None:
        job.computed = 0
        self._left += job.to_compute
