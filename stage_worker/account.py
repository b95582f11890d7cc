"""What a worker has done since it started, by the phase of its steps. Times in seconds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from stage_worker.runner import StepOutcome
from tidepipe_common.types.plan import Phase


@dataclass(slots=True)
class PhaseAccount:
    """Steps of one phase.

    busy: computing. bubble: idle before a step although its plan was here, so waiting for the stage before.
    plan_wait: idle before a step without its plan: there was no work, or all of it was in flight elsewhere.
    """

    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    bubble_s: float = 0.0
    plan_wait_s: float = 0.0


@dataclass(slots=True)
class WorkAccount:
    """One worker over all its epochs."""

    phases: defaultdict[Phase, PhaseAccount] = field(default_factory=lambda: defaultdict(PhaseAccount))
    activation_bytes: int = 0
    failures: int = 0

    def count(self, outcome: StepOutcome) -> None:
        """A step is done."""
        account, times = self.phases[outcome.phase], outcome.times
        account.steps += 1
        account.tokens += outcome.tokens
        account.busy_s += times.compute
        account.plan_wait_s += times.plan_wait
        account.bubble_s += times.idle - times.plan_wait
        if outcome.hidden is not None:
            self.activation_bytes += (
                outcome.hidden.nbytes if isinstance(outcome.hidden, memoryview) else len(outcome.hidden)
            )
