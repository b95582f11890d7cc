"""Which tokens vLLM's sampler may choose, for outputs held to a structure or with a bounded thought."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.structures.errors import StructureError
from tidepipe_common.structures.state import Allowed, Grammars, GrammarState
from tidepipe_common.structures.thought import ThoughtState
from tidepipe_common.types.plan import PlanRow, RowError, SequenceStart, StepPlan

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput


class _Held:
    """A sequence's place in its grammar and in its bounded thought, of which it has one or both."""

    def __init__(self, start: SequenceStart, grammar: GrammarState | None, vocab_size: int) -> None:
        sampling, output = start.sampling, start.history[start.prompt_tokens :]
        self._grammar = grammar
        self._thought: ThoughtState | None = None
        if sampling.thought is not None and sampling.max_reasoning_tokens is not None:
            self._thought = ThoughtState(sampling.thought, sampling.max_reasoning_tokens, output)
        self._vocab_size = vocab_size
        self._known = len(start.history)
        self._ends = tuple(dict.fromkeys((*start.eos_token_ids, *sampling.stop_token_ids)))
        self._named_by_client = bool(sampling.stop_token_ids)

    def packed(self, row: PlanRow) -> bytes | None:
        """A bit for each token that may come behind the row; None: all may. StructureError if none may."""
        for place, token in enumerate(row.token_ids, row.first_position):
            if place >= self._known:
                self._known += 1
                if self._grammar is not None:
                    self._grammar.append(token)
                if self._thought is not None:
                    self._thought.append(token)
        allowed = self._allowed()
        return None if allowed is None else np.packbits(allowed, bitorder="little").tobytes()

    def _allowed(self) -> Allowed | None:
        allowed: Allowed | None = None
        if self._grammar is not None:
            allowed = self._grammar.allowed_besides(self._ends, named_by_client=self._named_by_client)
            self._grammar.check()
        if self._thought is None:
            return allowed
        forced, barred = self._thought.forced, self._thought.barred
        if forced is not None and forced < self._vocab_size and (allowed is None or allowed[forced]):
            only: Allowed = np.zeros(self._vocab_size, np.bool_)
            only[forced] = True
            return only
        if barred is not None and barred < self._vocab_size:
            allowed = np.ones(self._vocab_size, np.bool_) if allowed is None else allowed
            allowed[barred] = not np.count_nonzero(allowed) - allowed[barred]
        return allowed


class StructureMasks:
    """Of one epoch; plans are to be asked about in their order.

    A sequence that cannot be held any further is an error of its own: the others of the step are not touched.
    """

    def __init__(self, grammars: Grammars, vocab_size: int) -> None:
        self._grammars = grammars
        self._vocab_size = vocab_size
        self._held: dict[int, _Held] = {}
        self._failed: dict[int, RowError] = {}

    def _begin(self, plan: StepPlan) -> None:
        for key in plan.releases:
            self._held.pop(key, None)
            self._failed.pop(key, None)
        for start in plan.starts:
            sampling, grammar = start.sampling, None
            if sampling.structure is None and not sampling.thought_bounded:
                continue
            try:
                if sampling.structure is not None:
                    output = start.history[start.prompt_tokens :]
                    grammar = self._grammars.state(sampling.structure, start.eos_token_ids, output)
            except StructureError as error:
                self._failed[start.key] = _row_error(start.key, error)
            else:
                self._held[start.key] = _Held(start, grammar, self._vocab_size)

    def masks(self, plan: StepPlan) -> tuple[GrammarOutput | None, tuple[RowError, ...]]:
        """What vLLM's sampler is told of this step, and who cannot go on; their tokens mean nothing."""
        self._begin(plan)
        if not self._held and not self._failed:
            return None, ()
        packed: dict[str, bytes] = {}
        errors: list[RowError] = []
        for row in _sampling(plan):
            held = self._held.get(row.key)
            if held is not None:
                try:
                    mask = held.packed(row)
                    if mask is not None:
                        packed[str(row.key)] = mask
                except StructureError as error:
                    del self._held[row.key]
                    self._failed[row.key] = _row_error(row.key, error)
            if row.key in self._failed:
                errors.append(self._failed[row.key])
        return self._told(packed), tuple(errors)

    def _told(self, packed: dict[str, bytes]) -> GrammarOutput | None:
        if not packed:
            return None
        from vllm.v1.core.sched.output import GrammarOutput

        bits = np.zeros((len(packed), 4 * -(-self._vocab_size // 32)), np.uint8)
        for place, mask in enumerate(packed.values()):
            bits[place, : len(mask)] = np.frombuffer(mask, np.uint8)
        return GrammarOutput(list(packed), bits.view(np.int32))


def _sampling(plan: StepPlan) -> Iterator[PlanRow]:
    return (row for row in plan.rows if row.sample)


def _row_error(key: int, error: InvalidRequestError) -> RowError:
    return RowError(key, str(error), error.param or "")
