"""Steps: plans written, steps in flight, what the stages must be told with the next one."""

from __future__ import annotations

from dataclasses import dataclass

from common.plan import Phase, PlanRow, SequenceStart, StepPlan
from controller.core.actions import Dispatch
from controller.core.decode import MicroBatch
from controller.core.ledger import KvLedger
from controller.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """A step in flight. sampled: sequences of the rows that sample, in their order."""

    phase: Phase
    tokens: int
    rows: tuple[Sequence, ...]
    sampled: tuple[Sequence, ...]
    batch: MicroBatch | None


class StepBook:
    """Writes plans and remembers those in flight."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos = eos_token_ids
        self._steps: dict[int, Step] = {}
        self._releases: list[int] = []
        self._told: dict[int, int] = {}
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
        self._told.clear()
        self._last_step = 0

    def new_key(self) -> int:
        """A name for a sequence at the stages; never used twice."""
        self._last_key += 1
        return self._last_key

    def release(self, key: int) -> None:
        """The stages may forget a sequence (they are told with the next plan)."""
        if self._told.pop(key, None) is not None:
            self._releases.append(key)

    def done(self, step_id: int) -> Step | None:
        """A step came back; None if it is none of this epoch."""
        return self._steps.pop(step_id, None)

    def prefill(self, rows: list[tuple[Sequence, int]]) -> Dispatch:
        """A step over (sequence, tokens) pairs; `planned` of each stands behind its tokens already."""
        plan_rows = []
        for sequence, count in rows:
            begin = sequence.planned - count
            plan_rows.append(
                self._row(sequence, begin, sequence.planned, sample=sequence.planned == sequence.length)
            )
        sampled = tuple(s for s, _ in rows if s.planned == s.length)
        return self._dispatch(Phase.PREFILL, plan_rows, [s for s, _ in rows], sampled, None)

    def decode(self, batch: MicroBatch, ledger: KvLedger) -> Dispatch:
        """A step that computes the newest token of each member; blocks are taken from the ledger."""
        rows = []
        for sequence in batch.members:
            ledger.extend(sequence.blocks, sequence.length)
            rows.append(self._row(sequence, sequence.length - 1, sequence.length, sample=True))
            sequence.planned = sequence.length
        return self._dispatch(Phase.DECODE, rows, batch.members, tuple(batch.members), batch)

    def _row(self, sequence: Sequence, begin: int, end: int, *, sample: bool) -> PlanRow:
        known = self._told.get(sequence.key, 0)
        self._told[sequence.key] = len(sequence.blocks)
        return PlanRow(
            key=sequence.key,
            first_position=begin,
            count=end - begin,
            token_ids=sequence.tokens(begin, end),
            new_blocks=tuple(sequence.blocks[known:]),
            sample=sample,
        )

    def _dispatch(
        self,
        phase: Phase,
        rows: list[PlanRow],
        sequences: list[Sequence],
        sampled: tuple[Sequence, ...],
        batch: MicroBatch | None,
    ) -> Dispatch:
        self._last_step += 1
        starts = tuple(
            self._start(sequence)
            for sequence, row in zip(sequences, rows, strict=True)
            if row.first_position == 0
        )
        plan = StepPlan(self._last_step, phase, tuple(rows), starts, tuple(self._releases))
        self._releases.clear()
        for sequence in sequences:
            sequence.in_flight += 1
        self._steps[plan.step_id] = Step(phase, plan.tokens, tuple(sequences), sampled, batch)
        return Dispatch(plan)

    def _start(self, sequence: Sequence) -> SequenceStart:
        params = sequence.sampling
        return SequenceStart(
            key=sequence.key,
            sampling=params,
            prompt_tokens=len(sequence.prompt),
            history=sequence.tokens(0, sequence.length) if params.needs_history else (),
            eos_token_ids=() if params.ignore_eos else self._eos,
        )
