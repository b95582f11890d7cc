"""Steps: plans written, steps in flight, what the stages must be told with the next one."""

from __future__ import annotations

from dataclasses import dataclass

from common.plan import Phase, PlanRow, SequenceStart, StepPlan
from controller.core.actions import Dispatch
from controller.core.decode import MicroBatch
from controller.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """A step in flight. decode_rows: how many of its tokens are decode's; the rest are prompts'.

    rows: sequences of all rows, decode's first. sampled: those that sample, in their order.
    """

    phase: Phase
    tokens: int
    decode_rows: int
    rows: tuple[Sequence, ...]
    sampled: tuple[Sequence, ...]
    batch: MicroBatch | None
    plan: StepPlan


class StepBook:
    """Writes plans and remembers those in flight."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos = eos_token_ids
        self._steps: dict[int, Step] = {}
        self._releases: list[int] = []
        self._last_step = 0
        self._last_key = 0

    @property
    def in_flight(self) -> int:
        """Steps that have not come back."""
        return len(self._steps)

    def reset(self) -> None:
        """A new epoch begins: nothing is in flight, the stages know no sequence, step ids start at 1."""
        self._steps.clear()
        self._releases.clear()
        self._last_step = 0

    def new_key(self) -> int:
        """A name for a sequence at the stages; never used twice."""
        self._last_key += 1
        return self._last_key

    def release(self, sequence: Sequence) -> None:
        """The stages may forget a sequence (they are told with the next plan)."""
        if sequence.told_blocks:
            self._releases.append(sequence.key)
            sequence.told_blocks = 0

    def done(self, step_id: int) -> Step | None:
        """A step came back; None if it is none of this epoch."""
        return self._steps.pop(step_id, None)

    def build(
        self,
        phase: Phase,
        batch: MicroBatch | None,
        members: list[Sequence],
        chunks: list[tuple[Sequence, int]],
    ) -> Dispatch:
        """A step of a batch: the newest token of each of its members, and prompt tokens.

        chunks: (sequence, tokens) pairs; `planned` of each stands behind its tokens already. All have their
        blocks.
        """
        rows: list[PlanRow] = []
        for sequence in members:
            key, output, blocks = sequence.key, sequence.output, sequence.blocks
            length = len(sequence.prompt) + len(output)
            new_blocks: tuple[int, ...] = ()
            if sequence.told_blocks != len(blocks):
                new_blocks = tuple(blocks[sequence.told_blocks :])
                sequence.told_blocks = len(blocks)
            token = output[-1] if output else sequence.prompt[-1]
            rows.append(PlanRow(key, length - 1, 1, (token,), new_blocks, True))
            sequence.planned = length
            sequence.in_flight += 1
        sampled = list(members)
        sequences = list(members)
        for sequence, count in chunks:
            ends = sequence.planned == sequence.length
            rows.append(self._chunk(sequence, sequence.planned - count, count, sample=ends))
            sequence.in_flight += 1
            sequences.append(sequence)
            if ends:
                sampled.append(sequence)
        self._last_step += 1
        starts = tuple(self._start(s) for s, count in chunks if s.planned == count)
        plan = StepPlan(self._last_step, phase, tuple(rows), starts, tuple(self._releases))
        self._releases.clear()
        tokens = len(members) + sum(count for _, count in chunks)
        self._steps[plan.step_id] = Step(
            phase, tokens, len(members), tuple(sequences), tuple(sampled), batch, plan
        )
        return Dispatch(plan)

    def _chunk(self, sequence: Sequence, begin: int, count: int, *, sample: bool) -> PlanRow:
        known = sequence.told_blocks
        sequence.told_blocks = len(sequence.blocks)
        return PlanRow(
            key=sequence.key,
            first_position=begin,
            count=count,
            token_ids=sequence.tokens(begin, begin + count),
            new_blocks=tuple(sequence.blocks[known:]),
            sample=sample,
        )

    def _start(self, sequence: Sequence) -> SequenceStart:
        params = sequence.sampling
        return SequenceStart(
            key=sequence.key,
            sampling=params,
            prompt_tokens=len(sequence.prompt),
            history=sequence.tokens(0, sequence.length) if params.needs_history else (),
            eos_token_ids=() if params.ignore_eos else self._eos,
        )
