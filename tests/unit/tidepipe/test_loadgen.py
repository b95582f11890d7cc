"""The load generator's arithmetic, its search, and that it sends on time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from workloads.arrivals import Arrivals
from workloads.files import open_workload
from workloads.loadgen.figures import Figures, figures_of
from workloads.loadgen.outcome import Outcome
from workloads.loadgen.requests import Load, LoadRequest
from workloads.loadgen.run import find_goodput, send_all, send_watched
from workloads.loadgen.targets import Clock
from workloads.mixes import SimRequest, Workload


def outcome(*arrivals: tuple[float, int], due: float = 1.0) -> Outcome:
    return Outcome(due, due, 9.0, list(arrivals), sum(tokens for _, tokens in arrivals))


def test_latencies_by_both_definitions() -> None:
    one = outcome((1.5, 1), (2.5, 1), (2.6, 1), (2.8, 2))
    assert one.ttft(switch_wait=False) == 0.5 and one.ttft(switch_wait=True) == 1.5
    assert one.tpot(switch_wait=False) == pytest.approx(1.3 / 4)
    assert one.tpot(switch_wait=True) == pytest.approx(0.3 / 3)
    assert one.inter_token() == pytest.approx([1.0, 0.1, 0.2, 0.0])
    assert one.met(0.6, 0.4, switch_wait=False) and not one.met(0.6, 0.4, switch_wait=True)
    single = outcome((3.0, 1))
    assert (single.ttft(switch_wait=True), single.tpot(switch_wait=True)) == (2.0, 0.0)


def test_refused_and_failed_requests_count_against_attainment() -> None:
    refused = Outcome(1.0, 1.25, 1.5, rejected=True, error="full")
    figures = figures_of([outcome((1.5, 4)), refused, Outcome(1.0, error="lost")], 2.0, 1.0, 1.0)
    assert (figures.completed, figures.rejected, figures.failed) == (1, 1, 1)
    assert figures.attainment == pytest.approx(1 / 3) and figures.first_error == "lost"
    assert figures.rejection_ms["p50"] == 250.0


@dataclass
class SlowTarget:
    """Never answers in time; open-loop senders do not care."""

    model: str = "m"
    context_length: int = 100
    vocab_size: int = 50
    seen: list[LoadRequest] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def prepare(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        self.seen.append(request)
        if len(self.seen) == 20:
            self.gate.set()
        await self.gate.wait()
        outcome.arrivals.append((clock(), 1))
        outcome.output_tokens = 1


async def test_requests_go_out_whatever_became_of_the_earlier_ones() -> None:
    workload = Workload("w", tuple(SimRequest(n, 3) for n in range(1, 9)))
    load = Load(workload, Arrivals("gamma", 2.0), 5, 50)
    requests = load.requests(400.0, 20)
    assert requests == load.requests(400.0, 20) != replace(load, seed=6).requests(400.0, 20)
    assert all(0 <= token < 50 for one in requests for token in one.prompt)  # type: ignore[operator]
    target = SlowTarget()
    async with asyncio.timeout(20):
        outcomes = await send_all(target, requests, 5.0)
    assert [one.due for one in target.seen] == sorted(one.due for one in requests)
    assert all(one.sent >= one.due for one in outcomes)


@dataclass
class Hog(SlowTarget):
    """Keeps the client's loop from everybody else for so many seconds."""

    deaf_s: float = 0.0

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        time.sleep(self.deaf_s)  # noqa: ASYNC251 (that is what is to be seen)
        outcome.arrivals.append((clock(), 1))
        outcome.output_tokens = 1


async def test_a_client_that_lacks_time_says_so() -> None:
    requests = [LoadRequest(0.0, (7,), 1), LoadRequest(0.05, (7,), 1)]
    outcomes, late = await send_watched(Hog(deaf_s=0.3), requests, 5.0)
    figures = figures_of(outcomes, 2.0, 1.0, 1.0, late)
    assert figures.client_lag_ms["max"] > 200 and figures.lateness_ms["max"] > 200
    assert "ms late" in figures.starved
    calm = replace(figures, client_lag_ms={"max": 50.0}, lateness_ms={"max": 100.0})
    assert not calm.starved


@pytest.mark.parametrize(
    ("limit", "again"), [(0.3, 9.0), (1.0, 9.0), (7.7, 9.0), (4.2, 7.5), (0.0, 9.0)], ids=str
)
async def test_the_search_finds_the_rate_up_to_which_all_is_borne(limit: float, again: float) -> None:
    """Wherever it begins; what is borne above a dip, between `again` and 27.6, does not count."""
    empty: dict[str, Any] = {name: {} for name in Figures.__slots__ if name.endswith("_ms")}

    async def measure(rate: float) -> Figures:
        borne = rate <= limit or (limit and again <= rate < 27.6)
        values: dict[str, Any] = dict.fromkeys(Figures.__slots__, 0) | empty
        return Figures(**{**values, "rate": rate, "attainment": 1.0 if borne else 0.5})

    for begin in (1.0, 3.0):
        found = await find_goodput(measure, 0.9, begin, precision=0.02)
        assert limit / 1.02 <= found <= limit


@dataclass
class Talker(SlowTarget):
    """Answers at once with tokens of its own; refuses the third turn of a conversation."""

    async def send(self, request: LoadRequest, outcome: Outcome, clock: Clock, timeout_s: float) -> None:
        self.seen.append(request)
        if len(request.answers) == 2:
            outcome.rejected, outcome.error = True, "full"
            return
        outcome.arrivals.append((clock(), request.output_tokens))
        outcome.output_tokens = request.output_tokens
        outcome.token_ids = [7] * request.output_tokens


async def test_a_turn_follows_its_answer_and_has_it_in_its_prompt() -> None:
    """Equal beginnings are equal tokens; a conversation ends with the turn that is refused."""
    text = "conversations:systems=1,turns=4,spread=0,system=20,first=5,question=5,answer=3,think=0.01"
    load = Load(open_workload(text, 8, 1), Arrivals(), 5, 50)
    requests = load.requests(400.0, 8)
    target = Talker()
    async with asyncio.timeout(20):
        outcomes = await send_all(target, requests, 5.0)
    sent = [one for one in target.seen if len(one.answers) == 1]
    assert len(sent) == 2 and len(target.seen) == 6
    assert len({one.prompt[:20] for one in requests}) == 1
    for one in sent:
        assert one.prompt[25:28] == (7, 7, 7)
        assert len(one.prompt) == 33
    assert [one.rejected for one in outcomes] == [False, False, True, True] * 2
    assert all(outcomes[i].due >= outcomes[i - 1].ended + 0.01 for i in (1, 2, 5, 6))
