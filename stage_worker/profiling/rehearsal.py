"""Steps of any make-up on a real executor, without computing the contexts that they stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from stage_worker.executors.protocol import StepOutput
from tidepipe_common.latency.work import StepWork, chunk_pairs
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan
from tidepipe_common.types.sampling import SamplingParams


class RehearsedExecutor(Protocol):
    """What a rehearsal needs of `TorchExecutor`."""

    def execute(self, plan: StepPlan, hidden: bytes | memoryview | None) -> StepOutput:
        """Run one step."""
        ...

    def set_lengths_for_profiling(self, lengths: dict[int, int]) -> None:
        """As if these sequences had so many tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """What a step is made of: (tokens before, tokens) per row; the first `sampled` rows sample."""

    rows: tuple[tuple[int, int], ...]
    sampled: int

    @property
    def work(self) -> StepWork:
        """As the cost model sees it."""
        return StepWork(
            tokens=sum(tokens for _, tokens in self.rows),
            kv_tokens=sum(before + tokens for before, tokens in self.rows),
            pairs=sum(chunk_pairs(before, tokens) for before, tokens in self.rows if tokens > 1),
            rows=len(self.rows),
            sampled=self.sampled,
        )


def prompts(tokens: int, length: int) -> Step:
    """`tokens` of prompts, at most `length` each; none samples."""
    whole, rest = divmod(tokens, length)
    return Step(((0, length),) * whole + (((0, rest),) if rest else ()), 0)


def decodes(rows: int, context: int, sampled: int) -> Step:
    """One token of each row."""
    return Step(((context, 1),) * rows, sampled)


class Rehearsal:
    """Takes the time of steps. Blocks are dealt out in turn, so that contexts lie apart in memory."""

    def __init__(
        self,
        executor: RehearsedExecutor,
        *,
        kv_blocks: int,
        block_size: int,
        hidden: memoryview | None,
        clock: Callable[[], float],
    ) -> None:
        """hidden: activations of the largest step, [tokens, bytes]; None for a first stage."""
        self._executor = executor
        self._kv_blocks = kv_blocks
        self._block_size = block_size
        # One after the other; a view of no rows could not be taken of the matrix.
        self._hidden = None if hidden is None else hidden.cast("B")
        self._width = 0 if hidden is None or not hidden.strides else hidden.strides[0]
        self._clock = clock
        self._steps = count(1)
        self._keys = count(1)

    def seconds(self, step: Step, least_s: float, most_repeats: int) -> list[float]:
        """Times of the step over the same contexts: until it has taken `least_s` in all, or so many repeats.

        The first one warms caches up and does not count, unless it is the only one.
        """
        keys = [next(self._keys) for _ in step.rows]
        starts = tuple(SequenceStart(key, SamplingParams(temperature=0.0), 1) for key in keys)
        opening = [
            PlanRow(key, 0, 1, (1,), self._blocks(index, before + tokens), False)
            for index, (key, (before, tokens)) in enumerate(zip(keys, step.rows, strict=True))
        ]
        self._run(StepPlan(next(self._steps), Phase.DECODE, tuple(opening), starts))
        rows = tuple(
            PlanRow(key, before, tokens, (1,) * tokens, (), index < step.sampled)
            for index, (key, (before, tokens)) in enumerate(zip(keys, step.rows, strict=True))
        )
        taken: list[float] = []
        while sum(taken) < least_s and len(taken) <= most_repeats:
            self._executor.set_lengths_for_profiling({row.key: row.first_position for row in rows})
            plan = StepPlan(next(self._steps), Phase.DECODE, rows)
            taken.append(self._run(plan))
        self._run(StepPlan(next(self._steps), Phase.DECODE, (), (), tuple(keys)))
        return taken[1:] or taken

    def _run(self, plan: StepPlan) -> float:
        hidden = None if self._hidden is None else self._hidden[: plan.tokens * self._width]
        begin = self._clock()
        self._executor.execute(plan, hidden)
        return self._clock() - begin

    def _blocks(self, index: int, length: int) -> tuple[int, ...]:
        needed = -(-length // self._block_size)
        first = index * needed
        return tuple((first + i) % self._kv_blocks for i in range(needed))
