"""A stage's report that does not fit its step ends the epoch: no sequence gets another one's token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.runtime.body import Body
from controller.runtime.live import LiveInstance
from controller.scheduler.actions import Action, Emit
from controller.scheduler.events import Event, NewSequence, StagesLost
from controller.scheduler.offload import NO_OFFLOAD
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.state import SchedulerConfig
from tidepipe_common.types.plan import SampledTokens, StageTimes, StepPlan, StepReport
from tidepipe_common.types.prompt_reading import PromptPiece
from tidepipe_common.types.sampling import PositionLogprobs, SamplingParams, TokenLogprob

TOKENS = 3
ABOUT = SimpleNamespace(fingerprint="f", shape=SimpleNamespace(vocab_size=8))
ONE = PositionLogprobs(TokenLogprob(1, 0.0), ())


class OneStage:
    """A body whose first report is what it is told; later ones have a token for each who samples."""

    block_size, offload, replaced, kv, about = 16, NO_OFFLOAD, False, None, ABOUT
    stages = (SimpleNamespace(index=0, address="here"),)

    def __init__(self, first: SampledTokens | None) -> None:
        self.epoch = 0
        self._first = [first]
        self._plans: asyncio.Queue[StepPlan] = asyncio.Queue()

    async def bring_up(self) -> int:
        self.epoch += 1
        self._plans = asyncio.Queue()
        return 64

    def send(self, plan: StepPlan) -> None:
        self._plans.put_nowait(plan)

    def look_for_hangs(self, now: float) -> None:
        pass

    async def run_epoch(self, report: Callable[[int, StepReport], None]) -> None:
        while True:
            plan = await self._plans.get()
            right = SampledTokens((7,) * sum(row.sample for row in plan.rows))
            sampled = self._first.pop() if self._first else right
            report(0, StepReport(plan.step_id, StageTimes(0.01), sampled))


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (None, "does not say what was sampled"),
        (SampledTokens((1,)), "has 1 tokens of 2 sequences"),
        (SampledTokens((1, 2, 3)), "has 3 tokens of 2 sequences"),
        (SampledTokens((1, 2), (ONE,)), "has log-probabilities of 1 of 2 tokens"),
        (SampledTokens((1, 8)), "has token 8 of a vocabulary of 8"),
        (SampledTokens((-1, 2)), "has token -1"),
        (SampledTokens((1, 2), prompts=(PromptPiece(1, 0, 3),)), "tells of positions 0 to 3 of a prompt"),
        (SampledTokens((1, 2), prompts=(PromptPiece(9, 0, 1),)), "tells of positions 0 to 1 of a prompt"),
    ],
)
async def test_it_ends_the_epoch(first: SampledTokens | None, said: str) -> None:
    config = SchedulerConfig(context_length=100, eos_token_ids=frozenset())
    body = OneStage(first)
    lost: list[str] = []
    output: dict[str, list[int]] = {"a": [], "b": []}

    def observe(event: Event, actions: Any, now: float, seconds: float) -> None:
        if isinstance(event, StagesLost):
            lost.append(event.detail)
        for action in actions:
            note(action)

    def note(action: Action) -> None:
        if isinstance(action, Emit):
            for name, token in zip(action.sequence_ids, action.token_ids, strict=True):
                output[name].append(token)

    instance = LiveInstance(
        cast(Body, body), lambda about: Scheduler(config), None, lambda serving: None, observer=observe
    )
    running = asyncio.create_task(instance.run())
    async with asyncio.timeout(20):
        while not instance.serving:  # noqa: ASYNC110 (tasks of its own serve)
            await asyncio.sleep(0.01)
        arrivals = [NewSequence(name, (1, 2), SamplingParams(max_tokens=TOKENS)) for name in output]
        instance.submit("router", arrivals, 1)
        while min(map(len, output.values())) < TOKENS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    assert body.epoch == 2 and len(lost) == 1 and said in lost[0] and "here" in lost[0]
    assert output == {"a": [7] * TOKENS, "b": [7] * TOKENS}
