"""Shares of prefill: where prompts go, who goes on elsewhere, and how shares move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.demand import Mix
from router.scheduler.events import (
    AnswerEnded,
    FetchAhead,
    FirstToken,
    HandOver,
    InstanceDraining,
    InstanceJoined,
    InstanceLeft,
    InstanceReported,
    PromptBegun,
    RequestArrived,
    RequestWithdrawn,
    RoleMoved,
    Route,
    SetPolicy,
    Tick,
)
from router.scheduler.instance_report import InstanceReport
from router.scheduler.policies import roles as roles_policy
from router.scheduler.policies.moving import Asked
from router.scheduler.policies.roles import LOOK_S, STEP, WATCHED, points
from router.scheduler.prefill import PrefillTime
from router.scheduler.roles import EVEN, Power, Predicted, Prospect, Role, staying
from router.scheduler.routing_scheduler import OverallConfig, RoutingScheduler
from router.scheduler.slo import SloTarget
from router.scheduler.steady_state import Sizes, waits_longer
from router.scheduler.view import InstanceFacts
from tests.unit.router.scheduler.cases import prompt_work, request, slack, status
from tidepipe_common.circuit_breaker import FIRST_S
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.work import StepWork, chunk_pairs
from tidepipe_common.types.kv_transfer import KvTransfer, KvWay

GROUPED, FULL = 200_000.0, 1_600_000.0
"""Bytes of a token's keys and values: of a 34B with grouped heads, of a 30B without."""
TEN_GBIT, BUS = 1.25e9, 20e9


class Floor:
    """A StepCost with a floor: weights are read whatever a step computes."""

    def linear_s(self, tokens: int) -> float:
        return max(0.03, tokens / 4000)

    def attention_s(self, kv_tokens: int, pairs: float) -> float:
        return kv_tokens * 2e-7

    def step_s(self, work: StepWork) -> float:
        return self.linear_s(work.tokens) + self.attention_s(work.kv_tokens, work.pairs)

    def stage_s(self, work: StepWork, layers: int, *, last: bool) -> float:
        return self.step_s(work)

    def transfer_s(self, tokens: int) -> float:
        return 0.0


def power(token_bytes: float, bytes_per_s: float = TEN_GBIT) -> Power:
    transfer = KvTransfer(token_bytes, KvWay(bytes_per_s), KvWay(BUS))
    return Power(PrefillTime(Floor(), 1, 512), 400_000, transfer)


TIGHT = Mix(1.0, Sizes(400.0, chunk_pairs(0, 400), 250.0, 1.5, 1.5), SloTarget(1.0, 0.04))


def report(token_bytes: float, taken: float = 0.0, **changes: object) -> InstanceReport:
    known = status(taken, kv_free=400_000, kv_total=400_000)
    return replace(known, transfer=KvTransfer(token_bytes, KvWay(TEN_GBIT)), **changes)  # type: ignore[arg-type]


def cluster(instances: int, token_bytes: float, prefill: int = 0, policy: str = "roles") -> RoutingScheduler:
    scheduler = RoutingScheduler(OverallConfig(policy, prefill_instances=prefill))
    for number in range(instances):
        facts = InstanceFacts(f"i{number}", PrefillTime(Floor(), 1, 512), 4096, 100)
        scheduler.on(InstanceJoined(facts), 0.0)
        scheduler.on(InstanceReported(f"i{number}", report(token_bytes)), 0.0)
    return scheduler


def routed(scheduler: RoutingScheduler, name: str, now: float = 0.0) -> str:
    (action,) = scheduler.on(RequestArrived(request(name, 400, now, slo=TIGHT.slo)), now)
    assert isinstance(action, Route) and action.choice.instance_id
    return action.choice.instance_id


def shares(scheduler: RoutingScheduler) -> list[float]:
    return [view.role.share for macro in scheduler.macros.values() for view in macro.views]


# -- what a point serves --------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5), st.floats(1e7, 1e11))
def test_a_slower_link_never_serves_more(point: list[float], rate: float) -> None:
    """And none at all serves what needs none; somebody must compute prompts, somebody decode."""
    quick, slow = (
        Prospect(TIGHT).goodput(point, [power(GROUPED, each)] * len(point)).rate for each in (rate, rate / 3)
    )
    assert slow <= quick * 1.001
    even = [point[0] * 0.98 + 0.01] * len(point)
    linked, alone = (
        Prospect(TIGHT).goodput(even, [power(size, rate)] * len(even)).rate for size in (FULL, 0.0)
    )
    assert linked == alone > 0.0
    assert Prospect(TIGHT).goodput([1.0] * 3, [power(GROUPED)] * 3).rate == 0.0


@pytest.mark.parametrize(("token_bytes", "apart"), [(GROUPED, True), (FULL, False)])
def test_prompts_and_decoding_apart_where_the_link_bears_it(token_bytes: float, apart: bool) -> None:
    """Tight targets, 10 Gbit/s: with grouped heads the best point is a split, with full ones it is not."""
    best = max(points(4), key=lambda point: Prospect(TIGHT).goodput(point, [power(token_bytes)] * 4).rate)
    assert (best[0] == 1.0 and best[-1] == 0.0) is apart


@given(st.floats(0.01, 0.99), st.integers(1, 16), st.floats(0.0, 10.0))
def test_more_servers_of_one_line_are_waited_for_less(busy: float, servers: int, times: float) -> None:
    """As busy as before. One alone is M/G/1; of two that are half busy one in three waits (textbook)."""
    assert waits_longer(busy, 1, times) == pytest.approx(busy * math.exp(-(1.0 - busy) * times))
    assert 0.0 <= waits_longer(busy, servers + 1, times) <= waits_longer(busy, servers, times) <= 1.0
    assert waits_longer(0.5, 2, 0.0) == pytest.approx(1 / 3)


def test_few_long_prompts_are_computed_apart() -> None:
    """Each takes a quarter of its target: an instance with a line of its own could not be busy for long."""
    long = Mix(1.0, Sizes(4000.0, chunk_pairs(0, 4000), 100.0, 1.2, 1.8), SloTarget(4.0, 0.045))
    even, half = (
        Prospect(long).goodput(point, [power(GROUPED)] * 8).rate
        for point in ((EVEN,) * 8, (1.0,) * 4 + (0.0,) * 4)
    )
    alone = Prospect(long).goodput((1.0, 0.0), [power(GROUPED)] * 2).rate
    assert half > 1.15 * even > 0.0 and half > 1.5 * 4 * alone


def test_who_prefills_is_spread_over_nodes() -> None:
    """Four instances on two nodes: a split of two takes one of each, as they share ways in and out."""
    scheduler = cluster(4, GROUPED, prefill=2)
    for number in range(4):
        told = report(GROUPED, 0.1)
        there = replace(told.transfer, node=f"n{number // 2}")
        scheduler.on(InstanceReported(f"i{number}", replace(told, transfer=there)), 0.1)
    routed(scheduler, "r", 0.2)
    assert shares(scheduler) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("node", "busy", "target"), [("n0", 0, "i1"), ("n0", 60, "i2"), ("n1", 0, "i2")])
def test_within_the_node_unless_that_costs_more(node: str, busy: int, target: str) -> None:
    """One that decodes a little more than another one takes it, if its blocks stay in the node."""
    scheduler = cluster(3, GROUPED, prefill=1)
    for name, where, rows in (("i0", "n0", 0), ("i1", node, 3 + busy), ("i2", "n2", 2)):
        told = report(GROUPED, 1.0, sequences=rows, tokens=1000 * rows)
        there = replace(told.transfer, near=KvWay(BUS), node=where)
        scheduler.on(InstanceReported(name, replace(told, transfer=there)), 1.0)
    routed(scheduler, "r", 1.0)
    (asked,) = scheduler.on(
        FirstToken(0.5, request("r", 2001, max_tokens=99, slo=SloTarget(5.0, 0.2)), "i0"), 1.1
    )
    assert isinstance(asked, HandOver) and asked.target == target
    rate = BUS if target == node.replace("n0", "i1") else TEN_GBIT
    assert asked.numbers["transfer_s"] == pytest.approx(2001 * GROUPED / rate, abs=0.006)


def test_what_goes_ahead_is_no_pause() -> None:
    """A link that sends a prompt's blocks while it is computed is as good as any."""
    rates = [Prospect(TIGHT).goodput((1.0, 0.0), [power(GROUPED, way)] * 2).rate for way in (TEN_GBIT, 1e13)]
    assert rates[0] == rates[1] > 0.0
    assert Prospect(TIGHT).goodput((1.0, 0.0), [power(FULL)] * 2).rate < rates[0]


def test_what_stays_in_a_node_does_not_fill_its_link() -> None:
    """Full heads, over links that would be full: two instances of a node can be apart, of two nodes not."""
    patient = Prospect(replace(TIGHT, slo=SloTarget(60.0, 1.0)))
    prospect, powers = patient, [power(FULL)] * 4
    apart = 1.0, 0.0, 1.0, 0.0
    over = prospect.goodput(apart, powers, ["n0", "n1", "n2", "n3"])
    assert over == prospect.goodput(apart, powers) and over.limit == "the links are full"
    assert prospect.goodput(apart, powers, ["n0", "n0", "n1", "n1"]).rate > 2 * over.rate
    # Half of what one sends stays, if half as much is taken there as it gives away.
    assert staying([1.0, -0.5, -0.5], ["n0", "n0", "n1"]) == [0.5, 1.0, 0.0]
    assert staying([1.0, -1.0], ["", ""]) == [0.0, 0.0]


# -- a fixed split ----------------------------------------------------------------------------------------


def test_of_a_split_that_leaves_nobody_to_decode_one_decodes() -> None:
    scheduler = cluster(2, GROUPED, prefill=2)
    routed(scheduler, "r", 0.0)
    assert shares(scheduler) == [1.0, 0.0]
    assert {str(view.role) for macro in scheduler.macros.values() for view in macro.views} == {
        "a fixed split, with one left to decode (prefill_instances 2, instances 2)"
    }


def test_a_prompt_is_computed_at_one_and_goes_on_at_another() -> None:
    """To the one that decodes least; and stays where nobody has room, or its target is kept only so."""
    scheduler = cluster(3, GROUPED, prefill=1)
    assert {routed(scheduler, f"r{n}") for n in range(3)} == {"i0"}
    scheduler.on(InstanceReported("i1", report(GROUPED, 1.0, sequences=20, tokens=9000)), 1.0)
    done = request("r0", 401, max_tokens=99, slo=TIGHT.slo)
    (asked,) = scheduler.on(FirstToken(0.5, done, "i0"), 1.0)
    assert isinstance(asked, HandOver)
    assert (asked.source, asked.target, asked.numbers["share"]) == ("i0", "i2", 1.0)
    assert asked.numbers["transfer_s"] == pytest.approx(401 * GROUPED / TEN_GBIT, abs=0.01)
    (again,) = scheduler.on(RequestArrived(replace(done, brought=400, wish=asked.target)), 1.1)
    assert isinstance(again, Route) and again.choice.instance_id == "i2"
    for name in ("i1", "i2"):
        scheduler.on(InstanceReported(name, report(GROUPED, 2.0, accepted=9, kv_free=300)), 2.0)
    assert not scheduler.on(FirstToken(0.5, replace(done, request_id="r1"), "i0"), 2.0)
    roles = next(iter(scheduler.macros.values())).moving
    assert roles is not None and (roles.handed, list(roles.stayed)) == (1, ["those that decode have no room"])


def test_blocks_go_ahead_and_their_sequence_follows_them() -> None:
    """Before its prompt is done, to where it would go; it then goes there though another decodes less by now,
    and only what is left of its blocks counts. Who cannot go there any more goes elsewhere, or stays."""
    scheduler = cluster(3, GROUPED, prefill=1)
    arriving = [request(f"r{n}", 400, 0.0, slo=TIGHT.slo) for n in range(3)]
    done = [replace(one, prompt_tokens=401, max_tokens=99) for one in arriving]
    for one in arriving:
        (route,) = scheduler.on(RequestArrived(one), 0.0)
        assert isinstance(route, Route) and route.passes_on
    found = [scheduler.on(PromptBegun(one, "i0"), 0.0)[0] for one in arriving]
    targets = [one.target for one in found if isinstance(one, FetchAhead)]
    assert targets == ["i1", "i2", "i1"], "those on their way count"
    scheduler.on(InstanceReported("i1", report(GROUPED, 1.0, sequences=20, tokens=9000)), 1.0)
    (asked,) = scheduler.on(FirstToken(0.5, done[0], "i0"), 1.0)
    assert isinstance(asked, HandOver)
    assert asked.target == "i1" and asked.numbers["transfer_s"] < 0.01
    scheduler.on(InstanceReported("i2", report(GROUPED, 2.0, accepted=9, kv_free=300)), 2.0)
    (other,) = scheduler.on(FirstToken(0.5, done[1], "i0"), 2.0)
    assert isinstance(other, HandOver)
    assert other.target == "i1" and other.numbers["transfer_s"] > 0.05
    scheduler.on(RequestWithdrawn("r2", "i0"), 2.1)
    roles = next(iter(scheduler.macros.values())).moving
    assert roles is not None and not roles._ahead
    assert not scheduler.on(FirstToken(0.1, None, "i0"), 2.2)


def test_blocks_that_would_take_too_long_stay() -> None:
    """Many at once over one link: only as many go as keep their targets."""
    scheduler = cluster(3, FULL, prefill=1)
    scheduler.on(Tick(), 0.0)
    moved = 0
    for number in range(40):
        done = request(f"r{number}", 401, max_tokens=99, slo=SloTarget(1.0, 0.2))
        moved += len(scheduler.on(FirstToken(0.5, done, "i0"), 0.0))
    roles = next(iter(scheduler.macros.values())).moving
    assert roles is not None and 0 < moved == roles.handed < 8
    assert any("longer than its target" in why for why in roles.stayed)


def test_a_prompt_that_would_be_late_goes_where_others_decode_if_these_can_wait() -> None:
    """And stays there; where they cannot, it waits for one that computes prompts."""
    scheduler = cluster(3, GROUPED, prefill=1, policy="auto")
    assert routed(scheduler, "r0") == "i0"
    busy = report(GROUPED, 1.0, accepted=1, left=prompt_work(8000), window=prompt_work(8000))
    scheduler.on(InstanceReported("i0", busy), 1.0)
    for name, saved in (("i1", 0.01), ("i2", 30.0)):
        decodes = report(GROUPED, 1.0, sequences=9, tokens=4000, slack=slack(9, saved, 1.0))
        scheduler.on(InstanceReported(name, decodes), 1.0)
    (action,) = scheduler.on(RequestArrived(request("r1", 400, 1.0, slo=TIGHT.slo)), 1.0)
    assert isinstance(action, Route) and action.choice.instance_id == "i2" and not action.passes_on
    assert "late where prompts are computed" in action.choice.reason
    assert not scheduler.on(FirstToken(0.5, request("r1", 401, 1.0, slo=TIGHT.slo), "i2"), 1.5)
    tight = report(GROUPED, 2.0, accepted=1, sequences=9, tokens=4000, slack=slack(9, 0.01, 2.0))
    scheduler.on(InstanceReported("i2", tight), 2.0)
    assert not scheduler.on(RequestArrived(request("r2", 400, 2.0, slo=TIGHT.slo)), 2.0)


# -- moving shares ------------------------------------------------------------------------------------------


def test_shares_move_slowly_and_say_why() -> None:
    """Two looks alike, a quarter at a time; another policy leaves everybody alike."""
    scheduler = cluster(4, GROUPED)
    moves: list[RoleMoved] = []
    now = 0.0
    while now < 40.0:
        now += 0.1
        routed(scheduler, f"r{now:.1f}", now)
        if now > 2.0:
            scheduler.on(AnswerEnded("i0", 250), now)
        before = shares(scheduler)
        told = [action for action in scheduler.on(Tick(), now) if isinstance(action, RoleMoved)]
        assert not told or now >= 2 * LOOK_S
        assert all(abs(a - b) <= STEP + 1e-6 for a, b in zip(before, shares(scheduler), strict=True))
        moves += told
    assert shares(scheduler) == [1.0, 1.0, 0.0, 0.0]
    assert len(moves) == 8 and all("predicted to serve more" in move.role.reason for move in moves)
    assert moves[0].role.numbers["predicted_rps"] > 1.1 * moves[0].role.numbers["before_rps"]
    scheduler.on(SetPolicy("least-loaded"), now)
    assert shares(scheduler) == [EVEN] * 4


ONE = (1.0, 0.0, 0.0, 0.0)


class Foreseen(Prospect):
    """Two of four that prefill serve a tenth more than one or all alike, all else half."""

    def goodput(
        self, shares: Sequence[float], powers: Sequence[Power], nodes: Sequence[str] = ()
    ) -> Predicted:
        known = {ONE: 10.0, (EVEN,) * 4: 10.0, (1.0, 1.0, 0.0, 0.0): 11.0}
        return Predicted(known.get(tuple(shares), 5.0), "a limit")

    def serves(
        self, shares: Sequence[float], powers: Sequence[Power], nodes: Sequence[str], rate: float
    ) -> bool:
        return self.goodput(shares, powers, nodes).rate >= rate


@pytest.mark.parametrize(
    ("standing", "rate", "moves"), [(ONE, 9.0, False), (ONE, 10.5, True), ((EVEN,) * 4, 10.5, False)]
)
def test_a_little_is_worth_a_move_where_what_comes_is_not_borne(
    standing: tuple[float, ...], rate: float, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth more is no reason while all is well; where more comes than is borne it is. Nor where all are
    alike: that bears more than is predicted."""
    monkeypatch.setattr(roles_policy, "Prospect", Foreseen)
    (macro,) = cluster(4, GROUPED).macros.values()
    assert macro.moving is not None
    for view, share in zip(macro.views, standing, strict=True):
        view.role = Role(share)
    macro.moving.asked = Asked(replace(TIGHT, rate=rate))
    seen = [macro.moving.look(macro.views, look * LOOK_S) for look in range(1, 4)]
    assert any(seen) is moves


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=5), st.booleans())
def test_a_point_serves_what_it_is_said_to(point: list[float], near: bool) -> None:
    """And no more than that: what is asked at one rate agrees with what is searched for."""
    powers, nodes = [power(GROUPED)] * len(point), ["n0" if near else ""] * len(point)
    most = Prospect(TIGHT).goodput(point, powers, nodes).rate
    assert not most or Prospect(TIGHT).serves(point, powers, nodes, 0.99 * most)
    assert not Prospect(TIGHT).serves(point, powers, nodes, 1.03 * most + 1e-3)


def test_auto_is_padg_until_apart_pays_and_comes_back_at_once() -> None:
    """What instances expect of answers is enough to go apart, before any has ended. When those whose prompts
    are done stay where they are, all are alike in the same tick, and for a while."""
    scheduler = cluster(4, GROUPED, policy="auto")
    (first,) = scheduler.on(RequestArrived(request("first", 400, 0.0, slo=TIGHT.slo)), 0.0)
    assert isinstance(first, Route) and "latest resume" in first.choice.reason
    now = 0.0
    while now < 6 * LOOK_S:
        now += 0.1
        for number in range(4):
            told = report(
                GROUPED, now, accepted=int(10 * now), sequences=10, tokens=5000, expected_output=250
            )
            scheduler.on(InstanceReported(f"i{number}", told), now)
        routed(scheduler, f"r{now:.1f}", now)
        scheduler.on(Tick(), now)
    assert shares(scheduler) == [1.0, 1.0, 0.0, 0.0]
    for name in ("i2", "i3"):
        full = report(GROUPED, now + 0.1, accepted=999, sequences=10, tokens=5000, expected_output=250)
        scheduler.on(InstanceReported(name, replace(full, kv_free=0)), now + 0.1)
    for number in range(WATCHED):
        assert shares(scheduler) == [1.0, 1.0, 0.0, 0.0]
        scheduler.on(FirstToken(0.5, request(f"s{number}", 401, now, slo=TIGHT.slo), "i0"), now + 0.2)
    back = [action for action in scheduler.on(Tick(), now + 0.3) if isinstance(action, RoleMoved)]
    assert len(back) == 4 and all("did not go on" in move.role.reason for move in back)
    scheduler.on(Tick(), now + 0.9 * FIRST_S)
    assert shares(scheduler) == [EVEN] * 4


@pytest.mark.parametrize(("strayed", "back"), [(WATCHED // 2, False), (WATCHED // 2 + 1, True)])
def test_roles_end_where_most_of_those_watched_went_astray(strayed: int, back: bool) -> None:
    """And not before as many have gone as are watched."""
    (macro,) = cluster(4, GROUPED).macros.values()
    assert macro.moving is not None
    for view, share in zip(macro.views, (1.0, 1.0, 0.0, 0.0), strict=True):
        view.role = Role(share)
    for number in range(WATCHED):
        assert not macro.moving.look(macro.views, 0.0)
        macro.moving.went(f"s{number}", well=number >= strayed)
    assert bool(macro.moving.look(macro.views, 0.0)) is back


def test_nobody_is_apart_from_those_who_fetch_nothing_from_it() -> None:
    """All are alike in the same tick, and stay so while it lasts."""
    scheduler = cluster(4, GROUPED, policy="auto")
    seen, back, now = [], [], 0.0
    for bars, pause_s in ((False, 0.0), (True, 0.0), (False, FIRST_S)):
        now += pause_s
        barred = frozenset({"i0"} if bars else ())
        begin = now
        while now < begin + 8 * LOOK_S:
            now += 0.1
            for number in range(4):
                told = report(GROUPED, now, accepted=9999, sequences=10, tokens=5000, expected_output=250)
                scheduler.on(InstanceReported(f"i{number}", replace(told, barred=barred)), now)
            routed(scheduler, f"r{now:.1f}", now)
            moves = [one.role for one in scheduler.on(Tick(), now) if isinstance(one, RoleMoved)]
            back += [role.reason for role in moves if bars]
        seen.append(shares(scheduler))
    assert seen == [[1.0, 1.0, 0.0, 0.0], [EVEN] * 4, [1.0, 1.0, 0.0, 0.0]]
    assert back == ["all alike: fetches of KV blocks failed"] * 4


def test_a_split_needs_a_routing_that_knows_of_it() -> None:
    """It would have no effect, and nobody would be told."""
    with pytest.raises(ConfigError, match="routing auto, roles, taichi, arrow, not for padg"):
        RoutingScheduler(OverallConfig("padg", prefill_instances=1))


@given(st.lists(st.tuples(st.sampled_from("qqqfffetdrl"), st.integers(0, 3)), max_size=60), st.integers(0, 3))
def test_who_moves_was_asked_for_and_can_go_there(course: list[tuple[str, int]], prefill: int) -> None:
    """Whatever happens: from where it is, to another one that is ready and decodes more than that."""
    scheduler = cluster(4, GROUPED, prefill)
    for number, (what, which) in enumerate(course):
        now, name = 0.3 * number, f"i{which}"
        match what:
            case "q":
                actions = scheduler.on(RequestArrived(request(f"r{number}", 300, now)), now)
            case "f":
                actions = scheduler.on(FirstToken(0.1, request(f"r{number}", 301, now), name), now)
            case "e":
                actions = scheduler.on(AnswerEnded(name, 30 * number), now)
            case "t":
                actions = scheduler.on(Tick(), now)
            case "d":
                actions = scheduler.on(InstanceDraining(name), now)
            case "r":
                actions = scheduler.on(InstanceReported(name, report(GROUPED, now, tokens=99 * number)), now)
            case _:
                actions = scheduler.on(InstanceLeft(name), now)
        for action in actions:
            if isinstance(action, HandOver):
                source, target = scheduler.view(action.source), scheduler.view(action.target)
                assert source is not None and target is not None and action.reason
                assert (action.source, action.request_id) == (name, f"r{number}")
                assert target.ready and target.role.share < source.role.share
        scheduler.on(RequestWithdrawn("r0"), now)
