"""An epoch of vLLM's workers whose report cannot be taken ends, as one of our own stages does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from controller.engines.vllm import body
from controller.engines.vllm.engine_options import EngineOptions
from controller.runtime.stage_client import StageLostError
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.types.plan import Phase, SampledTokens, StepPlan, StepReport


class OneStep:
    """Workers that have done a step as soon as they begin."""

    def __init__(self, engine: Any, plans: Any, done: Callable[[body._Done], None], lost: Any) -> None:
        self._done = done

    def start(self) -> None:
        self._done(body._Done(StepPlan(1, Phase.DECODE, ()), SampledTokens((7,)), 0.0, 0.1))

    def join(self) -> None:
        pass


@pytest.mark.parametrize("error", [StageLostError("has 1 tokens of 0 sequences", 1), ValueError("a defect")])
async def test_it_ends(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_Work", OneStep)
    engine: Any = SimpleNamespace(shutdown=lambda: None)
    workers = body.VllmBody(EngineOptions("m", "p", 1, block_size=16, kv_blocks=4), LearnedCost)
    workers._engine = engine

    def report(stage: int, news: StepReport) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        async with asyncio.timeout(20):
            await workers.run_epoch(report)
