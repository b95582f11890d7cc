"""Other engines' schedulers: what evens their steps out, and what does not."""

from __future__ import annotations

import pytest

from controller.scheduler.actions import Dispatch
from controller.scheduler.events import Event, NewSequence, SequencesArrived, StagesReady, StepDone
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.scheduler import Scheduler
from tidepipe_common.types.plan import SampledTokens, StepPlan
from tidepipe_common.types.sampling import SamplingParams

STAGES = 4


def steps_of(policy: str, requests: int, prompt: int, steps: int, kv_blocks: int = 2000) -> list[StepPlan]:
    """The first steps for requests that come all at once; results come one by one."""
    setup = make_setup(policy)
    scheduler = Scheduler(setup.config(2048, (), prefix_caching=False), setup.policy)
    plans: list[StepPlan] = []

    def hear(event: Event) -> None:
        plans.extend(action.plan for action in scheduler.on(event, 0.0) if isinstance(action, Dispatch))

    hear(StagesReady(1, STAGES, kv_blocks))
    params = SamplingParams(max_tokens=500)
    hear(SequencesArrived(tuple(NewSequence(f"s{i}", (1,) * prompt, params) for i in range(requests))))
    for heard in range(steps):
        plan = plans[heard]
        hear(StepDone(plan.step_id, SampledTokens((7,) * plan.samples)))
    return plans[: steps + 1]


@pytest.mark.parametrize(
    ("policy", "even"), [("hybrid", False), ("vllm", False), ("vllm-capped", True), ("gllm", True)]
)
def test_who_came_together_stays_together_unless_that_is_seen_to(policy: str, even: bool) -> None:
    """Forty short prompts fit into one step: with no share for each, three stages of four have nothing."""
    plans = steps_of(policy, requests=40, prompt=5, steps=40)
    rows = [len(plan.decode) for plan in plans[-STAGES:]]
    assert rows == [10] * STAGES if even else max(rows) == 40


def test_throttled_prompts() -> None:
    """An eighth of what waits, but for a single one; at least some; no more than memory allows."""
    assert steps_of("gllm", requests=20, prompt=100, steps=0)[0].tokens == 250
    assert steps_of("gllm", requests=2, prompt=100, steps=0)[0].tokens == 32
    whole = steps_of("gllm", requests=1, prompt=500, steps=0, kv_blocks=100)
    assert whole[0].tokens == 500
    many = steps_of("gllm", requests=300, prompt=100, steps=0, kv_blocks=300)
    # Blocks of the prompts before it are gone: each step has less than the one before.
    assert [plan.tokens for plan in many] == sorted((plan.tokens for plan in many), reverse=True)
