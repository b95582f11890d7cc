"""Work that nobody waits for: it runs in what the others leave, and makes way for them.

Lines of batches are such work. They wait in a line of their own, which policies do not see, and are let into
the waiting queue as far as the others' targets allow: one rule for all policies, before each of them plans.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from math import inf

from controller.scheduler.actions import Reason
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import ANY_TOKENS, PipelineState
from tidepipe_common.latency.model import StepCost

KEPT_SHARE = 0.7
"""Of the tightest TPOT target that a round may take while background work is part of it: predictions err, and
who comes meanwhile needs room, too."""
ALONE_S = 1.0
"""After the last of the others has ended, until all of it is let in; before, what fits beside others."""
LEAST_CHUNK = 16
"""Prompt tokens in a step, below which a prompt would take for ever."""


class Background:
    """The background sequences of one instance. Pure."""

    def __init__(self, cost: StepCost | None) -> None:
        """cost: of steps; None: nothing is known of it, so nothing runs beside sequences with a target."""
        self._cost = cost
        self._line: deque[Sequence] = deque()
        self._inside: dict[str, Sequence] = {}
        self._busy_at = -inf

    def __len__(self) -> int:
        """Those that were not let in."""
        return len(self._line)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """They come."""
        self._line.extend(sequences)

    def came(self, sequence: Sequence) -> None:
        """One that ran elsewhere until now goes on here, with its KV blocks."""
        self._inside[sequence.sequence_id] = sequence

    def ended(self, sequence: Sequence) -> bool:
        """It has ended. True if it had not been let in, so that nobody else knows of it."""
        if self._inside.pop(sequence.sequence_id, None) is not None:
            return False
        self._line.remove(sequence)
        return True

    def plan(self, state: PipelineState, now: float) -> None:
        """Let in, or make way, before the policy plans."""
        if not self._line and not self._inside:
            return
        others = [s for s in (*state.running.values(), *state.waiting) if not s.background]
        if others:
            self._busy_at = now
        elif now - self._busy_at >= ALONE_S:
            state.background_tokens = ANY_TOKENS
            self._let_in(state, len(self._line))
            return
        self._take_back(state)
        tightest = min((s.tpot_s for s in others if s.tpot_s is not None), default=inf)
        state.background_tokens = self._room(state, KEPT_SHARE * tightest)
        first = state.waiting.first
        if first is not None and not state.fits(first):
            # Also one whose prompt is not done: without room in steps it would hold its blocks for ever.
            holding = (State.PREFILL, State.DECODE)
            self._make_way(state, "a request waits for memory", holding, lambda: not state.fits(first))
        elif state.background_tokens < LEAST_CHUNK:
            self._make_way(
                state,
                "rounds take longer than a token may",
                (State.DECODE,),
                lambda: self._room(state, KEPT_SHARE * tightest) <= 0,
            )
        elif first is None and self._line and not self._arriving() and state.fits(self._line[0]):
            self._let_in(state, 1)

    def _arriving(self) -> bool:
        """One of them has been let in, and its prompt is not done."""
        return any(s.state is not State.DECODE for s in self._inside.values())

    def _let_in(self, state: PipelineState, count: int) -> None:
        admitted = [self._line.popleft() for _ in range(min(count, len(self._line)))]
        if admitted:
            self._inside |= {sequence.sequence_id: sequence for sequence in admitted}
            state.waiting.add(admitted)

    def _take_back(self, state: PipelineState) -> None:
        """Those that were let in and hold nothing yet, or nothing any more."""
        back = [s for s in self._inside.values() if s.state is State.WAITING]
        state.waiting.remove(back)
        for sequence in reversed(back):
            del self._inside[sequence.sequence_id]
            self._line.appendleft(sequence)

    def _make_way(
        self, state: PipelineState, why: str, states: Collection[State], needed: Callable[[], bool]
    ) -> None:
        """Take their KV blocks, of the newest first, as long as that is needed; what is in them is found
        again as far as nobody needs them. Those in a step in flight have their turn when it is back.

        states: of those that may have to."""
        travelling = state.steps.travelling()
        free = [s for s in self._inside.values() if s.state in states and s not in travelling]
        numbers = {"background": len(self._inside)}
        while free and needed():
            victim = max(free, key=lambda s: s.admitted_order)
            free.remove(victim)
            state.preempt(victim, Reason(f"makes way: {why}", numbers))
        self._take_back(state)

    def _room(self, state: PipelineState, round_s: float) -> int:
        """Tokens that a step may have beside its decode rows, so that a round takes no longer than that."""
        if round_s == inf:
            return ANY_TOKENS
        if self._cost is None:
            return 0
        batches = max(1, len(state.batches.batches))
        rows = -(-len(state.running) // batches)
        context = sum(sequence.length for sequence in state.running.values()) // batches
        attention = self._cost.attention_s(context, 0.0)

        def quick(tokens: int) -> bool:
            return batches * (self._cost_of(rows + tokens) + attention) <= round_s

        if not quick(0):
            return 0
        most = LEAST_CHUNK
        while most < state.config.prefill_tokens and quick(2 * most):
            most *= 2
        return most if quick(most) else 1

    def _cost_of(self, tokens: int) -> float:
        assert self._cost is not None
        return self._cost.linear_s(max(1, tokens))
