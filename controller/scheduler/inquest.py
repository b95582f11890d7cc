"""Suspects of a lost step, run apart until the one that cannot be computed is found (decision 026).

A step that failed, or in which a stage died, says only that one of its rows may be at fault. So in the next
epoch they run in groups, one step in flight at a time and nothing else beside it: the group in whose step
the stages are lost again holds the culprit, and is divided further. Whoever passes is a suspect no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from controller.scheduler.actions import Reason
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import PipelineState

WAYS = 16
"""Groups that suspects are divided into: n of them take log16(n) epochs more, not n steps."""
MOST_ALONE = 2
"""Losses of the stages with a sequence alone in the step, at one place of it, after which it is given up."""
MOST_PLACES = 8
"""Places at which a sequence was met by losses that are remembered, the last ones: how a prompt is cut into
steps depends on its neighbours, so a culprit may be met at several places in turn."""
GAIN = 2
"""Tokens that a suspect must gain to prove itself: the first comes from a prompt's step, the next one from a
decode step, which is computed otherwise."""


class Span(NamedTuple):
    """Positions of a sequence, from `begin` to before `end`, that were being computed."""

    begin: int
    end: int

    def near(self, other: Span) -> bool:
        """True if both could be the same failure, met again after a recomputation."""
        return self.begin < other.end + GAIN and other.begin < self.end + GAIN


class Inquest:
    """Who is suspected, and whose turn it is. Holds no blocks; sequences that end are passed over."""

    def __init__(self) -> None:
        self._groups: deque[list[Sequence]] = deque()
        self._trial: list[Sequence] = []
        self._goals: dict[Sequence, int] = {}
        self._struck: dict[Sequence, deque[Span]] = {}

    @property
    def open(self) -> bool:
        """True while there are suspects to be tried, or one is."""
        return bool(self._trial or self._groups)

    @property
    def suspects(self) -> int:
        """How many are left."""
        return len(self._trial) + sum(map(len, self._groups))

    def blame(self, rows: Mapping[Sequence, Span], *, certain: bool) -> Sequence | None:
        """The stages were lost while these rows were in flight; who is found guilty, if anyone is.

        certain: one of them failed. Else a stage died, which may have been anybody's doing: a suspect is only
        whose rows were in flight at the same place before.
        """
        again = {s for s, span in rows.items() if s.state is not State.ENDED and self._again(s, span)}
        accused = [s for s in rows if s.state is not State.ENDED and (certain or s in again)]
        found = set(accused)
        # Those of a trial whose turn had not come, or that a loss which says nothing has interrupted.
        self._groups.appendleft(self._trial)
        self._groups = deque(filter(None, ([s for s in g if s not in found] for g in self._groups)))
        self._trial = []
        if len(rows) == 1 and accused:
            alone = accused[0]
            alone.failures = alone.failures + 1 if alone in again else 1
            if alone.failures >= MOST_ALONE:
                return alone
        size = max(1, -(-len(accused) // WAYS))
        parts = [accused[i : i + size] for i in range(0, len(accused), size)]
        if certain:
            self._groups.extendleft(reversed(parts))
        else:
            # Last, so that who only had bad luck is not met by the next blow from outside as well.
            self._groups.extend(parts)
        return None

    def _again(self, sequence: Sequence, span: Span) -> bool:
        """True if the stages were lost at this place of it before. Takes note of this time."""
        places = self._struck.setdefault(sequence, deque(maxlen=MOST_PLACES))
        again = any(before.near(span) for before in places)
        places.append(span)
        return again

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._struck.pop(sequence, None)

    def plan(self, state: PipelineState) -> None:
        """Dispatch the next step of a trial, if none is in flight and there is a suspect left."""
        if state.steps.in_flight:
            return
        while self.open:
            if self._step(state):
                return
            self._trial = self._groups.popleft() if self._groups else []
            self._goals = {s: s.length + GAIN for s in self._trial}

    def _step(self, state: PipelineState) -> bool:
        """The next step of the present trial; False if it is over."""
        trial = self._trial = [
            s for s in self._trial if s.state is not State.ENDED and s.length < self._goals[s]
        ]
        for place, sequence in enumerate(trial):
            if sequence.state is not State.WAITING:
                continue
            if not self._room(state, state.allocator.blocks_for(sequence.length + 1)):
                # Together they do not fit; but each of them does.
                self._trial, rest = trial[:place], trial[place:]
                if place:
                    self._groups.appendleft(rest)
                break
            state.waiting.discard(sequence)
            state.admit(sequence)
        if chunks := state.prompts_under_way(state.config.prefill_tokens):
            state.send(None, chunks)
            return True
        members = [s for s in self._trial if s.state is State.DECODE and self._grow(state, s)]
        if members:
            state.send_apart(members)
        return bool(members)

    def _grow(self, state: PipelineState, sequence: Sequence) -> bool:
        """A block for its next token, if it needs one and there is one."""
        if sequence.room >= sequence.length:
            return True
        if not self._room(state, 1):
            return False
        state.extend(sequence)
        return True

    def _room(self, state: PipelineState, blocks: int) -> bool:
        """Make so many blocks free, at the expense of those that have proved themselves; False: too few."""
        trial = set(self._trial)
        others = [s for s in state.running.values() if s not in trial]
        while state.allocator.free < blocks and others:
            state.preempt(others.pop(), Reason("room for a suspect", {"blocks": blocks}))
        return state.allocator.free >= blocks
