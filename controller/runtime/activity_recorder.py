"""The recorder of an instance's latest activity: busy shares, switches, forecast errors, steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.scheduler.actions import Action, Dispatch, Finish, HandedOver, PhaseSwitched
from controller.scheduler.events import Event, LengthPredicted, StagesLost, StagesReady
from controller.scheduler.scheduler import Scheduler
from tidepipe_common.types.plan import Phase, StageTimes, StepPlan, StepReport
from tidepipe_common.types.sampling import FinishReason
from tidepipe_common.types.timeline import MemorySample, PhaseTurn, StageSpan, Timeline

SPANS = 16_384
"""Kept at most: four minutes of a CPU's steps, about one of a GPU's. A span takes some 350 bytes."""
TURNS = 1024
SAMPLES = 2400
SAMPLE_EVERY_S = 0.25
WINDOW_S = 10.0
"""Time over which busy shares are taken."""
SCORED = 256
MAX_PREDICTED = 65_536
"""Predictions that wait for their outputs at most."""


class _Step(NamedTuple):
    """One that is not over. times, waits: seconds that each stage computed, and had waited for its inputs; 0:
    not known."""

    phase: Phase
    tokens: int
    decode_rows: int
    times: list[float]
    waits: list[float]


class _Kept(NamedTuple):
    """A span, and when it was told of."""

    at_s: float
    span: StageSpan


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where everything stood at some time, seconds since start."""

    at_s: float
    busy_s: tuple[float, ...]


class ActivityRecorder:
    """An observer of the scheduler's events and actions, and of the stages' reports. Bounded.

    All times are the core's clock.
    """

    def __init__(self, stages: int) -> None:
        self.turns: deque[PhaseTurn] = deque(maxlen=TURNS)
        self.scored = 0
        self._stages = stages
        self._spans: deque[_Kept] = deque(maxlen=SPANS)
        self._samples: deque[MemorySample] = deque(maxlen=SAMPLES)
        self._marks: deque[_Mark] = deque(maxlen=int(WINDOW_S / SAMPLE_EVERY_S) + 1)
        self._steps: dict[int, _Step] = {}
        self._ends: list[float | None] = [None] * stages
        self._busy_s = [0.0] * stages
        self._phase = Phase.IDLE
        self._worked_s = 0.0
        self._working_since = 0.0
        self._predicted: dict[str, float] = {}
        self._errors: deque[float] = deque(maxlen=SCORED)

    # -- what it hears ------------------------------------------------------------------------------

    def note(self, event: Event, actions: Sequence[Action], now: float, seconds: float) -> None:
        """The scheduler heard an event, and decided."""
        if isinstance(event, LengthPredicted) and not event.at:
            self._predicted[event.sequence_id] = event.p50
            if len(self._predicted) > MAX_PREDICTED:
                del self._predicted[next(iter(self._predicted))]
        elif isinstance(event, (StagesReady, StagesLost)):
            self._steps.clear()
            self._ends = [None] * self._stages
        for action in actions:
            if isinstance(action, Dispatch):
                self._steps[action.plan.step_id] = _step(action.plan, self._stages)
            elif isinstance(action, PhaseSwitched):
                self._turn(action, now)
            elif isinstance(action, Finish):
                self._score(action)
            elif isinstance(action, HandedOver):
                self._predicted.pop(action.sequence_id, None)

    def stage_done(
        self, stage: int, report: StepReport, now: float
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A stage reported a step, just now; returns what each stage took for it, and how long it waited for
        it; 0 if not known yet.

        The stage's own times are exact where the arrival of its report is not: each span follows the one
        before by what the stage says it waited, unless that would end after the report arrived.
        """
        told = report.times
        later_s = sum(one.compute_s for one in told)
        for index, one in enumerate(told, start=stage + 1 - len(told)):
            # So long ago it has ended at least: the stages behind it have computed since.
            later_s -= one.compute_s
            self._note_times(index, report.step_id, one, now - max(0.0, later_s), now)
        step = self._steps.get(report.step_id)
        if step is None:
            return (0.0,) * self._stages, (0.0,) * self._stages
        if stage == self._stages - 1:
            del self._steps[report.step_id]
        return tuple(step.times), tuple(step.waits)

    def _note_times(self, stage: int, step_id: int, took: StageTimes, latest: float, now: float) -> None:
        """latest: when it has ended at least."""
        self._busy_s[stage] += took.compute_s
        before = self._ends[stage]
        end = latest if before is None else before + took.idle_s + took.compute_s
        if end > latest or latest - end > SAMPLE_EVERY_S:
            end = latest
        self._ends[stage] = end
        # A report that came late made the span before end late, too; this one then begins where that ends.
        start = end - took.compute_s if before is None else max(before, end - took.compute_s)
        if (step := self._steps.get(step_id)) is not None:
            step.times[stage], step.waits[stage] = took.compute_s, took.input_wait_s
            span = StageSpan(stage, step_id, step.phase, step.tokens, step.decode_rows, start, end)
            self._spans.append(_Kept(now, span))

    def sample(self, scheduler: Scheduler, now: float) -> None:
        """Note how things stand, if it is time to."""
        if self._marks and now - self._marks[-1].at_s < SAMPLE_EVERY_S:
            return
        self._marks.append(_Mark(now, tuple(self._busy_s)))
        if scheduler.allocator.total and scheduler.sequences:
            used = scheduler.allocator.used / scheduler.allocator.total
            self._samples.append(
                MemorySample(now, used, forecast_share(scheduler), scheduler.running, len(scheduler.waiting))
            )

    def _turn(self, action: PhaseSwitched, now: float) -> None:
        self.turns.append(PhaseTurn(now, action.before, action.after, str(action.reason)))
        if self._phase is not Phase.IDLE:
            self._worked_s += now - self._working_since
        self._phase, self._working_since = action.after, now

    def _score(self, action: Finish) -> None:
        predicted = self._predicted.pop(action.sequence_id, None)
        # An output that was cut says nothing about how long it would have become.
        if predicted is not None and action.reason is FinishReason.STOP:
            self.scored += 1
            self._errors.append(abs(predicted - action.output_tokens))

    # -- what it tells ------------------------------------------------------------------------------

    def working_s(self, now: float) -> float:
        """Time with something to do since start."""
        return self._worked_s + (now - self._working_since if self._phase is not Phase.IDLE else 0.0)

    def window_s(self, now: float) -> float:
        """Time over which `busy_shares` is taken."""
        return now - self._marks[0].at_s if self._marks else 0.0

    def busy_shares(self, now: float) -> tuple[float, ...]:
        """Of each stage, over the window. Steps count when they end."""
        window = self.window_s(now)
        if window <= 0.0:
            return (0.0,) * self._stages
        busy = zip(self._busy_s, self._marks[0].busy_s, strict=True)
        return tuple(min(1.0, (later - earlier) / window) for later, earlier in busy)

    def bubble_shares(self, now: float) -> tuple[float, ...]:
        """Of each stage: working time since start that it did not compute."""
        working = self.working_s(now)
        return tuple(max(0.0, 1.0 - busy / working) if working else 0.0 for busy in self._busy_s)

    def forecast_error(self) -> float:
        """Mean of |predicted median - length| over the last outputs, tokens; 0 before the first."""
        return sum(self._errors) / len(self._errors) if self._errors else 0.0

    def timeline(self, instance_id: str, since: float, offset_s: float) -> Timeline:
        """All that is kept since then. offset_s: added to all times."""
        return Timeline(
            instance_id,
            self._stages,
            [_moved(span, offset_s) for span in self._spans_since(since)],
            [
                PhaseTurn(turn.at_s + offset_s, turn.before, turn.after, turn.reason)
                for turn in self.turns
                if turn.at_s >= since
            ],
            [
                MemorySample(one.at_s + offset_s, one.used, one.forecast, one.running, one.waiting)
                for one in self._samples
                if one.at_s >= since
            ],
        )

    def _spans_since(self, since: float) -> list[StageSpan]:
        """Spans that were told of since then, so all that ended since then: who asks from when it asked last
        misses none, however long after a stage's part the last stage tells of it."""
        found = []
        for kept in reversed(self._spans):
            if kept.at_s < since:
                break
            found.append(kept.span)
        found.reverse()
        return found


def forecast_share(scheduler: Scheduler) -> float:
    """KV memory at the forecast peak, as a share of all."""
    return scheduler.state.admission.forecast.peak_tokens() / max(1, scheduler.allocator.capacity_tokens)


def _step(plan: StepPlan, stages: int) -> _Step:
    decode_rows = len(plan.decode) + sum(row.count == 1 for row in plan.listed)
    return _Step(plan.phase, plan.tokens, decode_rows, [0.0] * stages, [0.0] * stages)


def _moved(span: StageSpan, offset_s: float) -> StageSpan:
    return StageSpan(
        span.stage,
        span.step_id,
        span.phase,
        span.tokens,
        span.decode_rows,
        span.start_s + offset_s,
        span.end_s + offset_s,
    )
