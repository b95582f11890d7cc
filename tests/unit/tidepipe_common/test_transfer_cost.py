"""Laws of what fetches are learned to take."""

from __future__ import annotations

import random
from dataclasses import replace
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe.v1 import controller_pb2 as pb
from tidepipe_common.codec.kv_transfer import transfer_from_wire, transfer_to_wire
from tidepipe_common.latency.transfer import LEAST_S, TransferCost
from tidepipe_common.types.kv_transfer import KvHandle, KvStage, KvTransfer, KvWay, is_near, node_of

SIZES = (1 << 16, 1 << 20, 1 << 24, 1 << 27, 1 << 30)
"""From one small block to a long prompt of a large model."""
NOISE = st.floats(0.9, 1.1)
LINKS = st.tuples(st.floats(-3.5, 0.0), st.floats(6.5, 10.5)).map(lambda one: (10 ** one[0], 10 ** one[1]))


@given(
    st.lists(LINKS, min_size=1, max_size=2),
    st.floats(7.0, 10.5),
    st.lists(st.tuples(st.floats(0.5, 2.0), NOISE), min_size=30, max_size=30),
    st.randoms(use_true_random=False),
)
def test_small_and_large_fetches_are_predicted_alike(
    links: list[tuple[float, float]],
    prior: float,
    course: list[tuple[float, float]],
    chance: random.Random,
) -> None:
    """Whatever was expected and came before, in any order, with one in ten held up."""
    cost = TransferCost(10**prior)
    for fixed_s, bytes_per_s in links:
        chance.shuffle(course)
        for number, (scale, noise) in enumerate(course):
            held_up = 10.0 if number % 10 == 3 else 1.0
            size = scale * SIZES[number % len(SIZES)]
            cost.observe(size, 0.0, held_up * noise * (fixed_s + size / bytes_per_s))
    for size in SIZES:
        truth = fixed_s + size / bytes_per_s
        assert truth / 2.0 < cost.seconds(size) < 2.0 * truth, (size, truth, cost.seconds(size))


@given(
    st.floats(1e3, 1e13),
    st.lists(st.tuples(st.floats(), st.floats(), st.floats()), max_size=40),
    st.floats(0.0, 1e12),
)
def test_it_is_a_time_whatever_is_observed(
    prior: float, course: list[tuple[float, float, float]], nbytes: float
) -> None:
    cost = TransferCost(prior)
    for seen in course:
        cost.observe(*seen)
    assert cost.seconds(nbytes) >= LEAST_S and isfinite(cost.seconds(nbytes))
    assert isfinite(cost.bytes_per_s) and cost.bytes_per_s > 0.0


@given(
    LINKS,
    st.floats(1.0, 1e9),
    st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0.0, 1.0)), min_size=1, max_size=30),
)
def test_what_blocks_that_go_ahead_explain_teaches_nothing(
    link: tuple[float, float], beside: float, course: list[tuple[int, float]]
) -> None:
    """Nobody knows how many of them were before a fetch; what takes longer than all of them is learned."""
    cost = TransferCost(link[1], link[0])
    before = cost.way(0.0)
    for size, part in course:
        cost.observe(size, 0.0, cost.seconds(size, part * beside), beside)
    assert cost.way(0.0) == before
    cost.observe(SIZES[2], 0.0, 1.5 * cost.seconds(SIZES[2], beside), beside)
    assert cost.seconds(SIZES[2]) > before.seconds(SIZES[2])


@given(
    LINKS,
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.5, 2.0)), min_size=30, max_size=60),
)
def test_of_what_is_under_way_only_what_is_to_come_counts(
    link: tuple[float, float], course: list[tuple[float, float]]
) -> None:
    """One fetch after the other over a link, asked for whenever it may be: each is predicted as it comes, and
    the rate that is learned is the link's."""
    latency_s, rate = link
    cost = TransferCost(rate, latency_s)
    now, free, open_ = 0.0, 0.0, list[tuple[float, int, float, float]]()
    for pause, scale in course:
        nbytes = round(scale * SIZES[3])
        now += pause * nbytes / rate
        for end, size, begin, ahead in [one for one in open_ if one[0] <= now]:
            cost.ended(size, end)
            cost.observe(size, ahead, end - begin)
        open_ = [one for one in open_ if one[0] > now]
        free = max(free, now) + nbytes / rate
        ahead = cost.begin(nbytes, now)
        assert free + latency_s - now == pytest.approx(cost.seconds(nbytes, ahead), rel=0.02)
        open_.append((free + latency_s, nbytes, now, ahead))
    assert cost.bytes_per_s == pytest.approx(rate, rel=0.02)
    cost.interrupted()
    begun = [cost.begin(100, 0.0), cost.begin(50, 0.0), cost.under_way(1e9)]
    assert begun == pytest.approx([0.0, 100.0, 150.0])


def layers_on(hosts: list[str]) -> list[KvStage]:
    """Stages of a model, one for each host's name in turn, of two layers if it begins with a letter."""
    begin, found = 0, []
    for number, host in enumerate(hosts):
        end = begin + 2 if host.isalpha() else begin + 1
        found.append(KvStage(f"{host}:{7000 + number}", begin, end, 1))
        begin = end
    return found


HOSTS = st.lists(st.sampled_from(["a", "b", "10.0.0.1"]), min_size=1, max_size=5)


@given(HOSTS, HOSTS)
def test_near_is_what_leaves_no_host(one: list[str], other: list[str]) -> None:
    """Two instances are within a node if and only if each layer is on the same host in both."""
    here, there = layers_on(one), layers_on(other)
    hosts = [
        [stage.address.split(":")[0] for stage in stages for _ in range(stage.layer_begin, stage.layer_end)]
        for stages in (here, there)
    ]
    same = hosts[0] == hosts[1] or len({*hosts[0], *hosts[1]}) == 1
    assert is_near(node_of(here), KvHandle(stages=tuple(there)).node) is same
    assert not is_near(node_of([]), "")


def test_ways_are_told_and_one_who_says_nothing_of_near_has_one_way() -> None:
    told = KvTransfer(7.0, KvWay(1e9, 0.1, 5.0), KvWay(2e10, 0.001, 3.0), "h")
    again = transfer_from_wire(transfer_to_wire(told, ["i3"]))
    assert again == told and again.way("h") == told.near and again.way("g") == told.far == again.way("")
    older = pb.KvTransfer(token_bytes=7.0, bytes_per_s=1e9, node="h")
    assert transfer_from_wire(older).way("h") == KvWay(1e9)
    # A cut name could be another node's.
    assert not transfer_from_wire(transfer_to_wire(replace(told, node="h" * 300), [])).node


def test_the_fixed_time_is_not_taken_for_the_rate() -> None:
    """Live, fetches of some blocks from stages at work: the same 60 ms, whatever the size."""
    cost = TransferCost(1.1e9)
    for size in (1.5e6, 3e6, 2e6, 8e6, 1e6, 5e6, 12e6, 2e6):
        cost.observe(size, 0.0, 0.06 + size / 1.1e9)
    assert cost.bytes_per_s > 0.5e9
    assert 0.05 < cost.latency_s < 0.07


def test_what_waited_is_no_slow_link_and_a_slow_link_no_wait() -> None:
    """Fetches of one size leave open what takes so long: little is held up, much comes slowly."""
    for size, spent, rate in ((3e6, 0.12, 1e9), (6e6, 0.4, 1e9), (47e6, 0.42, 1.1e8), (47e6, 0.047, 1.1e9)):
        cost = TransferCost(1.125e9)
        for _ in range(6):
            cost.observe(size, 0.0, spent)
            assert 0.8 * rate < cost.bytes_per_s < 1.2 * rate, (size, spent)
            assert 0.9 * spent < cost.seconds(size) < 1.1 * spent
    # What little is left has told how long the wait is.
    cost = TransferCost(1.125e9)
    for _ in range(4):
        cost.observe_rest(3e6, 0.0, 0.1)
    cost.observe(12e6, 0.0, 0.12)
    assert cost.bytes_per_s > 0.8e9
