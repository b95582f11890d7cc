"""TaiChi's and Arrow's policies: who computes prompts, who goes on elsewhere, who changes sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.events import (
    FetchAhead,
    FirstToken,
    HandOver,
    InstanceJoined,
    InstanceLeft,
    InstanceReconnected,
    InstanceReported,
    PromptBegun,
    RequestArrived,
    Route,
    Tick,
)
from router.scheduler.instance_report import InstanceReport
from router.scheduler.policies.arrow import COOL_S, DECODE, PREFILL
from router.scheduler.policies.moving import prompt_done_s
from router.scheduler.policies.taichi import BACK, WATERMARK
from router.scheduler.prefill import PrefillTime
from router.scheduler.request import Decoding
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.slo import SloTarget
from router.scheduler.view import InstanceFacts, InstanceView
from tests.unit.router.scheduler.cases import request, status
from tests.unit.router.scheduler.test_role_shares import GROUPED, TEN_GBIT, Floor
from tidepipe_common.latency.work import prompt_work
from tidepipe_common.types.kv_transfer import KvTransfer, KvWay

SLO = SloTarget(1.0, 0.1)
KV = 100_000


def report(taken: float, **changes: object) -> InstanceReport:
    known = status(taken, kv_free=KV, kv_total=KV)
    return replace(known, transfer=KvTransfer(GROUPED, KvWay(TEN_GBIT)), **changes)  # type: ignore[arg-type]


def cluster(policy: str, *chunks: int, prefill: int = 0) -> RoutingScheduler:
    scheduler = RoutingScheduler(OverallConfig(policy, prefill_instances=prefill))
    for number, chunk in enumerate(chunks):
        facts = InstanceFacts(f"i{number}", PrefillTime(Floor(), 1, chunk), 4096, 1000)
        scheduler.on(InstanceJoined(facts), 0.0)
        scheduler.on(InstanceReported(f"i{number}", report(0.0)), 0.0)
    scheduler.on(Tick(), 0.0)
    return scheduler


def routed(scheduler: RoutingScheduler, name: str, prompt: int, now: float) -> str | None:
    (action,) = scheduler.on(RequestArrived(request(name, prompt, now, slo=SLO)), now)
    assert isinstance(action, Route)
    return action.choice.instance_id


def sides(scheduler: RoutingScheduler) -> dict[str, float]:
    return {view.instance_id: view.role.share for macro in scheduler.macros.values() for view in macro.views}


@pytest.mark.parametrize(
    ("policy", "chunks", "prefill"), [("taichi", (1024, 64, 64), 0), ("arrow", (2048,) * 3, 1)]
)
def test_blocks_go_ahead_under_both(policy: str, chunks: tuple[int, ...], prefill: int) -> None:
    """Chosen when the prompt begins, and kept to, though another one has less to do by then."""
    scheduler = cluster(policy, *chunks, prefill=prefill)
    asked = request("r", 1000, slo=SLO)
    (route,) = scheduler.on(RequestArrived(asked), 0.0)
    assert isinstance(route, Route) and (route.choice.instance_id, route.passes_on) == ("i0", True)
    (ahead,) = scheduler.on(PromptBegun(asked, "i0"), 0.0)
    assert isinstance(ahead, FetchAhead) and ahead.target == "i1"
    scheduler.on(InstanceReported("i1", report(0.4, sequences=2, tokens=900)), 0.4)
    (goes,) = scheduler.on(FirstToken(0.5, replace(asked, prompt_tokens=1001), "i0"), 0.5)
    assert isinstance(goes, HandOver) and goes.target == "i1"
    assert goes.numbers["transfer_s"] < 0.01


# -- TaiChi -------------------------------------------------------------------------------------------------


def test_prompts_that_have_time_go_where_it_takes_longer() -> None:
    """To a decode-heavy instance while it is in time there; a long one, or one that has waited, not."""
    scheduler = cluster("taichi", 1024, 64)
    assert routed(scheduler, "short", 60, 0.0) == "i1"
    assert routed(scheduler, "long", 1000, 0.0) == "i0"
    waited = request("waited", 60, -0.9, slo=SLO)
    (action,) = scheduler.on(RequestArrived(waited), 0.0)
    assert isinstance(action, Route) and action.choice.reason.startswith("in time nowhere")


def test_all_alike_is_hybrid_batching() -> None:
    """No kinds, nobody moves: the prompt goes where least waits."""
    scheduler = cluster("taichi", 256, 256)
    assert [routed(scheduler, f"r{n}", 100, 0.0) for n in range(4)] == ["i0", "i1", "i0", "i1"]
    assert not scheduler.on(FirstToken(0.1, request("r0", 101, slo=SLO), "i0"), 0.2)


def test_an_instance_that_is_away_still_tells_the_kinds_apart() -> None:
    """Chosen while the only prefill-heavy one is not ready; refused where no kinds are at all."""
    scheduler = cluster("least-loaded", 1024, 64)
    scheduler.on(InstanceReconnected("i0"), 0.0)
    assert not scheduler.lacks("taichi")
    assert "all have the same" in cluster("least-loaded", 64, 64).lacks("taichi")


def test_only_what_decodes_is_read_beside_a_prompt() -> None:
    """Not the tokens of prompts that wait: they have no keys and values yet."""
    seconds = []
    for tokens in (0, 600, 1600):
        view = InstanceView(InstanceFacts("i0", PrefillTime(Floor(), 1, 512), 4096, 100))
        view.handle(status(tokens=tokens, left=prompt_work(600)))
        seconds.append(prompt_done_s(view, request("r", 400, 0.0)))
    assert seconds[0] == seconds[1] < seconds[2]


def test_decoding_flows_down_where_memory_ends_and_back_where_time_does() -> None:
    """It begins at a decode-heavy instance; the longest is degraded, once; it comes back near its target."""
    scheduler = cluster("taichi", 1024, 64)
    for name in ("old", "young"):
        (begins,) = scheduler.on(FirstToken(0.1, request(name, 500, slo=SLO), "i0"), 0.0)
        assert isinstance(begins, HandOver) and begins.target == "i1"
        scheduler.on(RequestArrived(request(name, 501, slo=SLO, brought=500, wish="i1")), 0.1)
    over = round((1 - WATERMARK) * KV) - 100
    full = report(1.0, accepted=2, sequences=2, tokens=KV - over, kv_free=over)
    scheduler.on(InstanceReported("i1", full), 1.0)
    here = [Decoding("young", "i1", 20), Decoding("old", "i1", 30)]
    (goes,) = scheduler.on(Tick(here), 1.1)
    assert isinstance(goes, HandOver)
    assert (goes.request_id, goes.source, goes.target) == ("old", "i1", "i0")
    scheduler.on(RequestArrived(request("old", 530, slo=SLO, brought=529, wish="i0")), 1.2)
    scheduler.on(InstanceReported("i1", report(1.3, accepted=2, sequences=1, tokens=600)), 1.3)
    slow = [Decoding("old", "i0", 31)]
    in_time = 30 * BACK * SLO.tpot_s
    assert not scheduler.on(Tick(slow), in_time - 0.01)
    (back,) = scheduler.on(Tick(slow), in_time + 0.01)
    assert isinstance(back, HandOver) and (back.request_id, back.target) == ("old", "i1")
    scheduler.on(RequestArrived(request("old", 531, slo=SLO, brought=530, wish="i1")), 4.0)
    scheduler.on(InstanceReported("i1", replace(full, taken=4.1, accepted=3)), 4.1)
    assert not scheduler.on(Tick([Decoding("old", "i1", 60)]), 4.2), "it goes to and fro"


# -- Arrow --------------------------------------------------------------------------------------------------

LOADS = st.tuples(st.integers(0, 800), st.integers(0, 60_000), st.integers(0, 8000))


@given(st.lists(LOADS, min_size=2, max_size=6), st.integers(0, 3), st.integers(1, 1000))
def test_who_computes_prompts_never_decodes_when_others_can(
    loads: list[tuple[int, int, int]], prefill: int, prompt: int
) -> None:
    """Links are free, those that decode compute no prompts: from each prefill instance it goes on there."""
    scheduler = cluster("arrow", *[2048] * len(loads), prefill=prefill)
    for number, (rows, tokens, left) in enumerate(loads):
        left *= sides(scheduler)[f"i{number}"] == PREFILL
        known = report(1.0, sequences=rows, tokens=tokens + left, kv_free=KV - tokens, left=prompt_work(left))
        scheduler.on(InstanceReported(f"i{number}", known), 1.0)
    before = sides(scheduler)
    for name, share in before.items():
        actions = scheduler.on(FirstToken(0.1, request(f"r{name}", prompt, slo=SLO), name), 1.0)
        after = sides(scheduler)
        if share == DECODE:
            assert not actions
        elif after[name] == PREFILL:
            (goes,) = actions
            assert isinstance(goes, HandOver) and after[goes.target] == DECODE


@given(
    st.lists(st.tuples(st.sampled_from("qfrt"), st.integers(0, 3), LOADS), max_size=60),
    st.integers(0, 3),
)
def test_sides_are_never_empty_and_cool_down(
    course: list[tuple[str, int, tuple[int, int, int]]], prefill: int
) -> None:
    """Whatever happens: somebody computes prompts, somebody decodes, and prefill gives away only so often."""
    scheduler = cluster("arrow", *[2048] * 4, prefill=prefill)
    gave = -COOL_S
    for number, (what, which, (rows, tokens, left)) in enumerate(course):
        now, name, before = 0.4 * number, f"i{which}", sides(scheduler)
        asked = request(f"r{number}", min(left, 3900) + 1, now, slo=replace(SLO, ttft_s=0.3))
        match what:
            case "q":
                scheduler.on(RequestArrived(asked), now)
            case "f":
                scheduler.on(FirstToken(0.1, asked, name), now)
            case "r":
                known = report(now, sequences=rows, tokens=tokens + left, left=prompt_work(left))
                scheduler.on(InstanceReported(name, known), now)
            case _:
                scheduler.on(Tick(), now)
        after = sides(scheduler)
        assert set(after.values()) == {PREFILL, DECODE}
        if any(before[one] == PREFILL and after[one] == DECODE for one in after):
            assert now >= gave + COOL_S
            gave = now


def test_an_instance_comes_over_for_prompts_only_while_decoding_has_little_to_do() -> None:
    """And the least busy one; what it still decodes stays with it."""
    scheduler = cluster("arrow", *[2048] * 4, prefill=1)
    late = report(1.0, sequences=9, tokens=9000, left=prompt_work(9000))
    scheduler.on(InstanceReported("i0", late), 1.0)
    for name, tokens in (("i1", 90_000), ("i2", 50_000), ("i3", 70_000)):
        busy = report(1.0, sequences=330, tokens=tokens)
        scheduler.on(InstanceReported(name, busy), 1.0)
    assert routed(scheduler, "r0", 100, 1.0) == "i0"
    for name, tokens in (("i1", 900), ("i2", 500), ("i3", 700)):
        scheduler.on(InstanceReported(name, report(2.0, sequences=1, tokens=tokens)), 2.0)
    assert routed(scheduler, "r1", 100, 2.0) == "i2"
    assert sides(scheduler) == {"i0": PREFILL, "i1": DECODE, "i2": PREFILL, "i3": DECODE}
    assert not scheduler.on(FirstToken(0.1, request("r2", 100, slo=SLO), "i1"), 2.0)
    scheduler.on(InstanceLeft("i0"), 3.0)
    assert routed(scheduler, "r3", 100, 3.0) == "i2"


@pytest.mark.parametrize("policy", ["taichi", "arrow"])
def test_one_instance_does_both(policy: str) -> None:
    """Nothing to take apart."""
    scheduler = cluster(policy, 256)
    assert routed(scheduler, "r0", 100, 0.0) == "i0"
    assert not scheduler.on(FirstToken(0.1, request("r0", 101, slo=SLO), "i0"), 0.2)
