"""Where requests go whose beginnings were computed before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from router.scheduler.choice import Choice
from router.scheduler.events import InstanceJoined, InstanceReported, RequestArrived, Route
from router.scheduler.lending import borrowing, lender_of
from router.scheduler.mitosis import Bounds
from router.scheduler.policies.constraints import LatestResume, MeanSlack
from router.scheduler.prefix_index import Prefix
from router.scheduler.request import RouteRequest
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.slo import SloTarget
from router.scheduler.taking_over import take_over
from router.scheduler.view import InstanceView
from tests.unit.router.scheduler.cases import facts, request, slack, status, view
from tidepipe_common.latency.work import PrefillWork, prompt_work
from tidepipe_common.prefix import STRIDE
from tidepipe_common.types.holdings import PrefixHoldings
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer, KvWay

KEY_TOKENS = 16 * STRIDE
PATIENT = SloTarget(60.0, 1.0)


def told(keys: Prefix = (), version: int = 1, removed: Prefix = ()) -> PrefixHoldings:
    """The first piece of a stream is whole."""
    return PrefixHoldings(version, version == 1, 16, STRIDE, keys, removed)


def ask(name: str, prefix: Prefix, own: int = 20, **changes: Any) -> RouteRequest:
    """A prompt of these beginnings and `own` tokens behind them."""
    return request(name, len(prefix) * KEY_TOKENS + own, prefix=prefix, **{"slo": PATIENT, **changes})


def cluster(policy: str, instances: int, bounds: Bounds | None = None) -> RoutingScheduler:
    """Idle instances that reuse blocks and hold none."""
    scheduler = RoutingScheduler(OverallConfig(policy, bounds or Bounds()))
    for number in range(instances):
        scheduler.on(InstanceJoined(facts(f"i{number}")), 0.0)
        report(scheduler, f"i{number}")
    return scheduler


def report(scheduler: RoutingScheduler, name: str, keys: Prefix = (), **changes: Any) -> None:
    scheduler.on(InstanceReported(name, status(holdings=told(keys), **changes)), 0.0)


def send(scheduler: RoutingScheduler, wanted: RouteRequest) -> Choice:
    (action,) = scheduler.on(RequestArrived(wanted), 0.0)
    assert isinstance(action, Route)
    return action.choice


@pytest.mark.parametrize("policy", ["padg", "prefix"])
@pytest.mark.parametrize("bounds", [Bounds(), Bounds(1, 1)])
def test_a_conversation_finds_its_instance_again(policy: str, bounds: Bounds) -> None:
    """Its second turn goes where its first one was, also into another macro instance; not to an instance at
    which more waits than it would save. The reason has the numbers."""
    scheduler = cluster(policy, 3, bounds)
    home = send(scheduler, ask("turn-1", (1, 2, 3))).instance_id
    assert home is not None
    there = {"keys": (1, 2, 3), "accepted": 1, "tokens": 400, "sequences": 1}
    work = prompt_work(400)
    report(scheduler, home, **there, taken=1.0, left=work, window=work)
    assert send(scheduler, ask("other", (7, 8, 9), own=1)).instance_id != home
    report(scheduler, home, **there, taken=2.0)
    again = send(scheduler, ask("turn-2", (1, 2, 3, 4)))
    assert again.instance_id == home
    assert again.numbers["cached_tokens"] == 3 * KEY_TOKENS
    assert again.numbers["predicted_s"] > 0
    work = prompt_work(3000)
    report(scheduler, home, **there, taken=3.0, left=work, window=work)
    assert send(scheduler, ask("turn-3", (1, 2, 3, 4))).instance_id != home


def test_a_hit_does_not_pile_everybody_on_one_instance() -> None:
    """40 requests with the same beginning of 1,536 tokens, 1 ms a token, which one of four instances holds:
    by predicted time it is computed at others as soon as that is quicker; by hits alone never."""
    shares = {}
    for policy in ("prefix", "padg", "most-hits"):
        scheduler = cluster(policy, 4)
        shared = tuple(range(12))
        report(scheduler, "i2", shared, taken=1.0)
        went = Counter(send(scheduler, ask(f"r{n}", shared, own=200)).instance_id for n in range(40))
        shares[policy] = sorted(went.values())
    assert shares["most-hits"] == [40]
    assert len(shares["prefix"]) == len(shares["padg"]) == 4
    assert max(shares["prefix"]) < 20 > max(shares["padg"])


def test_a_hit_is_left_where_it_would_delay_many() -> None:
    """It would end sooner where a part of it is found, but all who are there would wait for the rest."""
    for others, chosen in ((0, "i1"), (50, "i0")):
        scheduler = cluster("prefix", 2)
        report(scheduler, "i1", (1, 2, 3), taken=1.0, sequences=others, tokens=1000)
        wanted = ask("r", (1, 2, 3), own=600, max_tokens=1)
        found, empty = scheduler.view("i1"), scheduler.view("i0")
        assert found is not None and empty is not None
        assert found.done_s(wanted) < empty.done_s(wanted)
        choice = send(scheduler, wanted)
        assert choice.instance_id == chosen
        assert choice.numbers["cost_s"] <= choice.numbers["least_loaded_cost_s"]


@pytest.mark.parametrize(("low_s", "chosen"), [(0.01, "i0"), (9.0, "i1")])
def test_a_hit_is_left_where_it_would_break_a_promise(low_s: float, chosen: str) -> None:
    """The instance that has it would be quicker, but those who decode there may not be able to wait."""
    scheduler = cluster("padg", 2)
    report(scheduler, "i1", (1, 2, 3), taken=1.0, slack=slack(5, 9.0, low=low_s))
    choice = send(scheduler, ask("r", (1, 2, 3), own=100))
    assert choice.instance_id == chosen
    if chosen == "i1":
        assert choice.numbers["turn_s"] > choice.numbers["predicted_s"]


def test_checks_count_what_is_left_to_compute() -> None:
    """A prompt that would not fit into the window does where most of it is found; its attention reads all."""
    seen = InstanceView(facts("i"))
    begun = prompt_work(10)
    seen.handle(status(holdings=told((1, 2, 3, 4, 5, 6)), window=begun, left=begun))
    new = ask("r", (1, 2, 3, 4, 5, 6, 7), own=72, slo=SloTarget(0.5, 0.1))
    tokens = new.prompt_tokens - 6 * KEY_TOKENS
    assert seen.work_of(new) == PrefillWork(tokens, tokens * (6 * KEY_TOKENS + (tokens + 1) / 2))
    for constraint in (MeanSlack(), LatestResume()):
        assert constraint.check(new, seen, 0.0).satisfied
        assert not constraint.check(new, view("j", window=begun, left=begun), 0.0).satisfied
    # All of it is there: the last token is computed all the same.
    assert seen.work_of(ask("s", (1, 2), own=0)).tokens == 1


def test_what_was_sent_is_found_until_a_report_accounts_for_it() -> None:
    """Who follows finds what is still to be computed for those before; not what was withdrawn, nor what the
    instance has computed and given up since."""
    seen = InstanceView(facts("i"))
    seen.handle(status(holdings=told()))
    first, second, third = (ask(name, (1, 2, 3)) for name in "abc")
    seen.routed(first)
    seen.routed(second)
    assert seen.left.tokens == first.prompt_tokens + 20
    assert seen.kv_free == 10_000 - first.prompt_tokens - 20 - 2
    seen.forget("a")
    assert seen.left.tokens == second.prompt_tokens, "nobody else computes it now"
    # The instance has it in its queue.
    left = prompt_work(second.prompt_tokens)
    seen.handle(status(1.0, 2, left=left, holdings=told(version=2)))
    assert seen.cached_tokens(third) == 3 * KEY_TOKENS
    assert seen.kv_of(third) == 20
    # It has computed it, and some of it was evicted already.
    seen.handle(status(2.0, 2, holdings=told((1, 2), version=3)))
    assert seen.cached_tokens(third) == 2 * KEY_TOKENS
    seen.routed(third)
    seen.handle(status(3.0, 2, holdings=told((), 4, removed=(2,))))
    assert seen.left.tokens == third.prompt_tokens - KEY_TOKENS, "less than was found when it was sent"


def test_nothing_is_found_where_nothing_is_reused() -> None:
    """Nor after a gap, until all is told anew."""
    seen = InstanceView(facts("i"))
    seen.handle(status())
    seen.routed(ask("a", (1, 2, 3)))
    assert seen.cached_tokens(ask("b", (1, 2, 3))) == 0
    seen.handle(status(1.0, 1, holdings=told((1, 2, 3))))
    assert not seen.prefixes.missed
    seen.handle(status(2.0, 1, holdings=told((4,), version=3)))
    assert seen.prefixes.missed
    assert seen.cached_tokens(ask("b", (1, 2, 3))) == 0
    seen.handle(status(3.0, 1, holdings=told((1,), version=1)))
    assert (seen.prefixes.missed, seen.cached_tokens(ask("b", (1, 2, 3)))) == (False, KEY_TOKENS)


LINK = KvTransfer(1000.0, KvWay(1e7))
"""A tenth of what computing takes here."""


@pytest.mark.parametrize("policy", ["prefix", "padg"])
def test_what_is_found_elsewhere_is_fetched(policy: str) -> None:
    """Where the instance that holds a beginning has much to do, another one takes the request and borrows,
    unless the link is slower than computing, or the lender has other blocks; what is on the link counts."""
    for transfer, lender in ((LINK, "i1"), (KvTransfer(1000.0, KvWay(5e5)), ""), (NO_TRANSFER, "")):
        scheduler = cluster(policy, 2)
        work = prompt_work(3000)
        report(scheduler, "i0", transfer=transfer)
        report(scheduler, "i1", (1, 2, 3), taken=1.0, left=work, window=work, transfer=LINK, tokens=3000)
        choice = send(scheduler, ask("r", (1, 2, 3)))
        assert (choice.instance_id, choice.lender) == ("i0", lender)
        if lender:
            assert choice.numbers["lent_tokens"] == choice.numbers["cached_tokens"] == 3 * KEY_TOKENS
            assert choice.numbers["fetch_s"] == pytest.approx(0.005 + 3 * KEY_TOKENS / 1e4)
            seen = scheduler.view("i0")
            assert seen is not None and seen.left.tokens == 20
            assert seen.under_way(near=False) == 3 * KEY_TOKENS * 1000
            # It is expected there, as if it were there already; another one waits for the link.
            report(
                scheduler,
                "i1",
                (1, 2, 3, 7, 8),
                taken=2.0,
                left=work,
                window=work,
                transfer=LINK,
                tokens=3000,
            )
            assert not send(scheduler, ask("s", (1, 2, 3))).lender


def test_a_lender_is_not_asked_where_the_link_is_busy() -> None:
    lender, taker = InstanceView(facts("i1")), InstanceView(facts("i0"))
    lender.handle(status(holdings=told((1, 2, 3)), transfer=LINK))
    wanted = ask("r", (1, 2, 3))
    for fetching, lent in ((0.0, 3 * KEY_TOKENS), (1e7, 0)):
        link = replace(LINK, far=replace(LINK.far, under_way=fetching))
        taker.handle(status(1.0 + fetching, holdings=told(), transfer=link))
        assert borrowing(wanted, taker, lender_of(wanted, [lender, taker])).lent == lent
    assert lender_of(ask("r", (9,)), [lender, taker]) is None
    # What is within its node comes by another way.
    for node, lent in (("n1", 3 * KEY_TOKENS), ("n0", 0)):
        lender.handle(status(2e7, holdings=told((1, 2, 3)), transfer=replace(LINK, node=node)))
        taker.handle(status(2e7, holdings=told(), transfer=replace(link, near=KvWay(1e7), node="n1")))
        assert borrowing(wanted, taker, lender_of(wanted, [lender, taker])).lent == lent
    # Nor where fetches from it failed; what comes along from there is computed like all else.
    taker.handle(status(1e8, holdings=told(), transfer=LINK, barred=frozenset({"i1"})))
    assert borrowing(wanted, taker, lender_of(wanted, [lender, taker])).lent == 0
    brought = replace(wanted, giver="i1", brought=3 * KEY_TOKENS)
    assert taker.cached_tokens(brought) == 0 and take_over(brought, [taker]) is None
    assert take_over(replace(brought, giver="i2"), [taker]) is not None
