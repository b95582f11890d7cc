"""PaDG's instance: prompts first, as long as decoding can wait."""

from __future__ import annotations

from itertools import pairwise

from controller.scheduler.actions import Dispatch, PhaseSwitched
from controller.scheduler.events import LengthPredicted, NewSequence, SequencesArrived, StagesReady, StepDone
from controller.scheduler.policies import PadgPolicy
from controller.scheduler.scheduler import Scheduler, SchedulerConfig
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase, SampledTokens
from tidepipe_common.types.sampling import SamplingParams


class TenMilliseconds:
    """Of a step, whatever is in it, and another millisecond per token."""

    def linear_s(self, tokens: int) -> float:
        return 0.01 + tokens / 1000

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        return 0.0

    def step_s(self, work: StepWork) -> float:
        return self.linear_s(work.tokens)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        return self.step_s(work)

    def transfer_s(self, tokens: int) -> float:
        return 0.0


class Course:
    """A scheduler whose steps are answered one by one."""

    def __init__(self) -> None:
        config = SchedulerConfig(context_length=2000, eos_token_ids=(2,), prefill_tokens=100)
        self.scheduler = Scheduler(config, PadgPolicy(TenMilliseconds()))
        self.flight: list[Dispatch] = []
        self.phases: list[str] = []
        self._hear(StagesReady(1, 1, 200), 0.0)

    def arrive(self, name: str, prompt: int, now: float, due: float, tpot: float = 0.1) -> None:
        """A request with targets, whose output is expected to have no tokens but those it has."""
        new = NewSequence(
            name, (7,) * prompt, SamplingParams(max_tokens=500), first_token_due=due, tpot_s=tpot
        )
        self._hear(SequencesArrived((new,)), now)
        self._hear(LengthPredicted(name, 1.0, 1.0), now)

    def step(self, now: float) -> Phase:
        """The first step in flight is done; returns what it was."""
        plan = self.flight.pop(0).plan
        rows = len(plan.decode) + sum(row.sample for row in plan.listed)
        self._hear(StepDone(plan.step_id, SampledTokens((5,) * rows)), now)
        return plan.phase

    def _hear(self, event: object, now: float) -> None:
        for action in self.scheduler.on(event, now):  # type: ignore[arg-type]
            if isinstance(action, Dispatch):
                self.flight.append(action)
            elif isinstance(action, PhaseSwitched):
                self.phases.append(action.reason.text)


def decode_for_a_while(course: Course, until: float) -> None:
    """Steps of 20 ms: a token each, so that 80 ms are saved with each at a TPOT of 100 ms."""
    now = 1.0
    while now < until:
        course.step(now)
        now += 0.02


def test_saved_time_pays_for_a_window() -> None:
    """With slack a request is prefilled at once; without, it waits until it is due itself."""
    course = Course()
    course.arrive("a", 50, 0.0, due=5.0)
    assert course.step(1.0) is Phase.PREFILL
    decode_for_a_while(course, 1.5)
    course.arrive("b", 100, 1.5, due=6.0)
    assert course.step(1.5) is Phase.DECODE
    assert course.step(1.7) is Phase.PREFILL
    assert "decoding can wait" in course.phases

    course = Course()
    course.arrive("a", 50, 0.0, due=5.0, tpot=0.02)
    course.step(1.0)
    course.arrive("b", 100, 1.01, due=2.0, tpot=0.02)
    now = 1.02
    while course.step(now) is Phase.DECODE:
        now += 0.02
    # Two steps of 110 ms before it is due.
    assert 1.7 < now < 2.0
    assert "a prompt is due" in course.phases


def test_a_long_prompt_is_interrupted_for_decoding() -> None:
    """Its chunks use the slack up; decoding goes on between them, and the prompt ends all the same."""
    course = Course()
    course.arrive("a", 50, 0.0, due=5.0)
    course.step(1.0)
    decode_for_a_while(course, 1.2)
    course.arrive("long", 1500, 1.2, due=60.0)
    now, phases = 1.2, []
    while course.scheduler.sequences["long"].planned < 1500:
        phases.append(course.step(now))
        now += 0.11 if phases[-1] is Phase.PREFILL else 0.02
    assert "decoding cannot wait" in course.phases
    turns = sum(a is not b for a, b in pairwise(phases))
    assert turns >= 3
