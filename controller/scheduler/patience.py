"""The watch over steps in flight: each stage's time at its oldest one, and its limit (decision 027).

A stage that hangs still sends signs of life: they come from another thread than the one that computes. So its
controller compares the time since the step could begin with what it should take. All it needs is what it has
sent and heard itself, so that a hung link between two stages, or a lost report, is noticed likewise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.work import work_of
from tidepipe_common.types.plan import StepPlan

FLOOR_S = 20.0
"""Of every limit: other work on the machine, a network's retransmissions, a collection of garbage."""
FACTOR = 20.0
"""Times what the step should take, or the longest of the last ones took, whichever is more."""
FIRST_S = 300.0
"""More, while nobody knows the stage's pace, or for a size of step that its device must compile for."""
REMEMBERED = 256
"""Steps of a stage whose longest counts."""
MAX_STRIDE_S = 1.0
"""Time that may pass between two looks. More is this process's own pause, which says nothing of stages."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A stage that has been at a step for `seconds`, of which `limit_s` were given."""

    stage: int
    step_id: int
    seconds: float
    limit_s: float


class _Stage:
    """What was sent to one stage and has not been reported, oldest first."""

    def __init__(self) -> None:
        self.open: dict[int, StepPlan] = {}
        self.since = 0.0
        self.took_s: deque[float] = deque(maxlen=REMEMBERED)
        self.compiles = False
        self.compiled: set[int] = set()

    @property
    def oldest(self) -> int | None:
        return next(iter(self.open), None)


class StepWatch:
    """Of one pipeline, over all its epochs. Pure; its clock runs from look to look."""

    def __init__(self, stages: int, cost: Callable[[], StepCost]) -> None:
        """cost: what steps cost, as far as is known now."""
        self._stages = [_Stage() for _ in range(stages)]
        self._cost = cost
        self._clock = 0.0
        self._looked: float | None = None

    def begin(self, compiling: Sequence[bool]) -> None:
        """A new epoch. compiling: of each stage, that it is a new process on a device that compiles."""
        for stage, new in zip(self._stages, compiling, strict=True):
            stage.open.clear()
            if new:
                stage.compiles = True
                stage.compiled.clear()

    def sent(self, plan: StepPlan) -> None:
        """A step is on its way to all stages."""
        if not self._stages[0].open:
            self._stages[0].since = self._clock
        for stage in self._stages:
            stage.open[plan.step_id] = plan

    def reported(self, index: int, step_id: int, compute_s: float) -> None:
        """A stage has done its part."""
        stage = self._stages[index]
        stage.took_s.append(compute_s)
        if step_id in stage.open:
            self._done(index, step_id)

    def passed(self, index: int, step_id: int) -> None:
        """A stage has done its part of all steps until this one; what they took the last one will report."""
        for one in [known for known in self._stages[index].open if known <= step_id]:
            self._done(index, one)

    def _done(self, index: int, step_id: int) -> None:
        stage = self._stages[index]
        stage.since = self._clock
        stage.compiled.add(_size(stage.open.pop(step_id)))
        if index + 1 < len(self._stages) and self._stages[index + 1].oldest == step_id:
            following = self._stages[index + 1]
            following.since = max(following.since, self._clock)

    def look(self, now: float) -> Overdue | None:
        """The stage that is at a step for too long, if one is. now: on any steady clock; look often."""
        if self._looked is not None:
            self._clock += min(max(0.0, now - self._looked), MAX_STRIDE_S)
        self._looked = now
        for index in range(len(self._stages)):
            seconds = self.running_s(index)
            if seconds > FLOOR_S and seconds > (limit := self._limit_s(index)):
                step_id = self._stages[index].oldest
                assert step_id is not None
                return Overdue(index, step_id, seconds, limit)
        return None

    def running_s(self, index: int) -> float:
        """How long the stage has been at its oldest step; 0 if it has none, or waits for the stage before."""
        oldest = self._stages[index].oldest
        if oldest is None or (index and oldest in self._stages[index - 1].open):
            return 0.0
        return self._clock - self._stages[index].since

    def _limit_s(self, index: int) -> float:
        stage = self._stages[index]
        plan = next(iter(stage.open.values()))
        expected = self._cost().step_s(work_of(plan))
        limit = FLOOR_S + FACTOR * max(expected, max(stage.took_s, default=0.0))
        strange = not stage.took_s or (stage.compiles and _size(plan) not in stage.compiled)
        return limit + FIRST_S if strange else limit


def _size(plan: StepPlan) -> int:
    """Steps of one size are computed alike."""
    return plan.tokens.bit_length()
