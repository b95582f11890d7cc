"""Steps: plans written, steps in flight, what the stages must be told with the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from controller.scheduler.actions import Dispatch
from controller.scheduler.decode import MicroBatch
from controller.scheduler.offload import NO_COPIES, SecondTier
from controller.scheduler.sequence import Sequence
from tidepipe_common.types.plan import (
    DecodeRows,
    Phase,
    PlanRow,
    SampledTokens,
    SequenceStart,
    StepPlan,
)
from tidepipe_common.types.prompt_reading import PromptPiece


@dataclass(frozen=True, slots=True)
class Step:
    """A step in flight. decode_rows: how many of its tokens are decode's; the rest are prompts'.

    rows: sequences of all rows, decode's first. sampled: those that sample, in their order. planned_at: when
    it was decided upon.
    """

    phase: Phase
    tokens: int
    decode_rows: int
    rows: tuple[Sequence, ...]
    sampled: tuple[Sequence, ...]
    batch: MicroBatch | None
    plan: StepPlan
    planned_at: float

    def places(self) -> Iterator[tuple[Sequence, int, int]]:
        """Each row's sequence, its first position, and one past its last."""
        for sequence, row in zip(self.rows, self.plan.rows, strict=True):
            yield sequence, row.first_position, row.first_position + row.count


class StepBook:
    """Writes plans and remembers those in flight.

    unsent_blocks: sequences with blocks that no plan has told the stages of.
    arrived: those that decode and that no plan has told the stages of: their blocks came from elsewhere.
    now: when what happens now happened.
    """

    def __init__(
        self, eos_token_ids: tuple[int, ...], *, histories: bool = False, signals: bool = False
    ) -> None:
        """histories: every start tells all tokens so far. signals: who has no token yet wants its signal."""
        self.unsent_blocks: set[Sequence] = set()
        self.arrived: set[Sequence] = set()
        self.tier: SecondTier | None = None
        self.now = 0.0
        self._eos = eos_token_ids
        self._histories = histories
        self._signals = signals
        self._steps: dict[int, Step] = {}
        self._releases: list[int] = []
        self._last_step = 0
        self._last_key = 0

    @property
    def in_flight(self) -> int:
        """Steps that have not come back."""
        return len(self._steps)

    @property
    def last_step(self) -> int:
        """The newest step of this epoch; 0 before the first."""
        return self._last_step

    def travelling(self) -> set[Sequence]:
        """Sequences with a row in a step that has not come back."""
        return {sequence for step in self._steps.values() for sequence in step.rows}

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

    def holds(self, step_id: int) -> bool:
        """Is it in flight?"""
        return step_id in self._steps

    def open(self, step_id: int) -> Step:
        """One that is in flight."""
        return self._steps[step_id]

    def misfit(self, step_id: int, sampled: SampledTokens, vocab_size: int) -> str:
        """Why a report cannot be of this step; "" if it can be, or is of none that is in flight.

        It comes from another process, and what does not fit would give sequences each other's tokens.
        """
        step = self._steps.get(step_id)
        if step is None:
            return ""
        tokens, wanted = len(sampled.token_ids), len(step.sampled)
        if tokens != wanted:
            return f"has {tokens} tokens of {wanted} sequences"
        if len(sampled.logprobs) not in (0, wanted):
            return f"has log-probabilities of {len(sampled.logprobs)} of {wanted} tokens"
        if tokens and (min(sampled.token_ids) < 0 or max(sampled.token_ids) >= vocab_size):
            odd = next(one for one in sampled.token_ids if not 0 <= one < vocab_size)
            return f"has token {odd} of a vocabulary of {vocab_size}"
        if sampled.prompts:
            return _strange_piece(step, sampled.prompts)
        return ""

    def replace(self, step: Step) -> None:
        """Whoever computes it does something else than was planned."""
        self._steps[step.plan.step_id] = step

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
        sampled = list(members)
        sequences = list(members)
        for sequence, count in chunks:
            ends = sequence.planned == sequence.length
            rows.append(self._chunk(sequence, sequence.planned - count, count, sample=ends))
            sequences.append(sequence)
            if ends:
                sampled.append(sequence)
        self._last_step += 1
        starts = tuple(self._start(s) for s, count in chunks if s.planned == s.begins_at + count)
        if self.arrived and (begun := [s for s in members if s in self.arrived]):
            self.arrived.difference_update(begun)
            starts += tuple(self._start(s) for s in begun)
        decode = self._decode_rows(members)
        copies = NO_COPIES if self.tier is None else self.tier.take_copies()
        plan = StepPlan(self._last_step, phase, tuple(rows), starts, tuple(self._releases), decode, copies)
        self._releases.clear()
        tokens = len(members) + sum(count for _, count in chunks)
        self._steps[plan.step_id] = Step(
            phase, tokens, len(members), tuple(sequences), tuple(sampled), batch, plan, self.now
        )
        return Dispatch(plan)

    def _chunk(self, sequence: Sequence, begin: int, count: int, *, sample: bool) -> PlanRow:
        return PlanRow(
            key=sequence.key,
            first_position=begin,
            count=count,
            token_ids=sequence.tokens(begin, begin + count),
            new_blocks=self._tell(sequence),
            sample=sample,
        )

    def _tell(self, sequence: Sequence) -> tuple[int, ...]:
        """Its blocks that the stages do not know of; from now on they do."""
        known, sequence.told_blocks = sequence.told_blocks, len(sequence.blocks)
        self.unsent_blocks.discard(sequence)
        return tuple(sequence.blocks[known:])

    def _decode_rows(self, members: list[Sequence]) -> DecodeRows:
        """One row per member. A loop per column is quicker than one over all: there are hundreds."""
        if not members:
            return DecodeRows()
        unsent_blocks = self.unsent_blocks
        granted = (
            [(index, s) for index, s in enumerate(members) if s in unsent_blocks] if unsent_blocks else []
        )
        return DecodeRows(
            tuple([s.key for s in members]),
            tuple([s.length - 1 for s in members]),
            tuple([s.output[-1] for s in members]),
            tuple([(index, self._tell(s)) for index, s in granted]),
        )

    def _start(self, sequence: Sequence) -> SequenceStart:
        params = sequence.sampling
        if sequence.prompt_read and params.reads_prompt:
            params = replace(params, prompt_logprobs=None, pooling=None)
        told = self._histories or params.needs_history or params.prompt_logprobs is not None
        return SequenceStart(
            key=sequence.key,
            sampling=params,
            prompt_tokens=len(sequence.prompt),
            history=sequence.tokens(0, sequence.length) if told else (),
            eos_token_ids=() if params.ignore_eos else self._eos,
            adapter=sequence.adapter,
            trace_context=sequence.trace_context,
            begins_at=sequence.begins_at if sequence.fetched else 0,
            wants_signal=self._signals and not sequence.output and sequence.ends_by_itself,
        )


def _strange_piece(step: Step, pieces: tuple[PromptPiece, ...]) -> str:
    """Why these cannot have been read off the step's prompts; "" if they can."""
    computed = {sequence.key: (begin, end) for sequence, begin, end in step.places()}
    for piece in pieces:
        begin, end = computed.get(piece.key, (0, 0))
        if piece.first != begin or not 0 < piece.count <= end - begin:
            return f"tells of positions {piece.first} to {piece.first + piece.count} of a prompt"
        read = piece.prompt_logprobs_read
        if read is not None and not (begin < read.first and read.first + len(read) <= end + 1):
            return f"tells of {len(read)} tokens from position {read.first} on of a prompt"
    return ""
