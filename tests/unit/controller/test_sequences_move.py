"""Laws of handing sequences over, and of lending beginnings, between two instances that take turns as the one
and the other."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.actions import (
    Announced,
    Fetch,
    Finish,
    Grant,
    GrantEnded,
    GrantGrown,
    HandedOver,
    Preempted,
    PrefixFound,
    PrefixLent,
    TakenOver,
)
from controller.scheduler.events import (
    BlocksFetched,
    Event,
    HandOverAsked,
    NewSequence,
    PrefixAsked,
    PrefixCacheCleared,
    PrefixOffered,
    SequenceCancelled,
    SequencesArrived,
    Tick,
)
from controller.scheduler.fetch_rule import FetchRule
from controller.scheduler.hand_over import HandOver
from controller.scheduler.sequence import State
from tests.unit.controller.policy_cases import CASES, COST
from tests.unit.controller.test_scheduler import (
    NO_OFFLOAD,
    OFFLOAD,
    ROOTS,
    World,
    expected_output,
    prompt_of,
)
from tidepipe_common.latency.transfer import TransferCost, TransferCosts
from tidepipe_common.types.kv_transfer import KvFetched, KvGrant, KvHandle, KvLayout, KvStage, KvWay
from tidepipe_common.types.sampling import SamplingParams


@dataclass
class Site(World):
    """An instance whose blocks others can fetch, and that fetches theirs."""

    granted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    announced: list[Announced] = field(default_factory=list)
    lent: dict[str, Grant] = field(default_factory=dict)
    borrowed: int = 0
    ahead: int = 0
    fetches: list[Fetch] = field(default_factory=list)
    left: list[HandedOver] = field(default_factory=list)

    def handle(self, event: Event) -> None:
        begin = len(self.trace)
        super().handle(event)
        for action in self.trace[begin:]:
            match action:
                case HandedOver(_, grant):
                    self.left.append(action)
                    if grant is not None:
                        self.granted[grant.order.ticket] = grant.order.blocks
                case PrefixLent(_, Grant(order) as grant):
                    self.lent[order.ticket] = grant
                    self.granted[order.ticket] = order.blocks
                case Announced(_, Grant(order)):
                    self.announced.append(action)
                    self.granted[order.ticket] = order.blocks
                    self.parts[order.ticket] = [(len(order.blocks), order.after_step)]
                case GrantGrown(order):
                    self.granted[order.ticket] += order.blocks
                    self.parts[order.ticket].append((len(self.granted[order.ticket]), order.after_step))
                case GrantEnded(ticket):
                    del self.granted[ticket]
                    self.parts.pop(ticket, None)
                case Fetch():
                    self.fetches.append(action)

    def lose_stages(self, *arguments: object, **options: object) -> None:  # type: ignore[override]
        self.granted.clear()
        self.parts.clear()
        self.announced.clear()
        self.fetches.clear()
        super().lose_stages(*arguments, **options)  # type: ignore[arg-type]

    def content(self, ticket: str, place: int) -> list[tuple[int, int] | None]:
        """Of a block that was granted."""
        begin = self.granted[ticket][place] * self.block_size
        return [self.fake.slots.get(slot) for slot in range(begin, begin + self.block_size)]

    def end_fetch(self, chance: random.Random, source: Site) -> None:
        """One of them ends, well if its grant still stands and chance wants it."""
        fetch = self.fetches.pop(chance.randrange(len(self.fetches)))
        ticket, hand_over = fetch.handle.ticket, self.scheduler.hand_over
        while self.fake.queue and self.fake.queue[0].step_id <= fetch.after_step:
            self.handle(self.fake.execute())
            if fetch.fetch_id not in (*hand_over._fetches, *hand_over.loans._loans):
                return
        while ticket in source.granted and ticket in source.lent and source.fake.queue:
            if source.fake.queue[0].step_id > source.lent[ticket].order.after_step:
                break
            source.handle(source.fake.execute())
        self.ahead += fetch.ahead
        stands = self.written(fetch, source) if fetch.ahead else ticket in source.granted
        self.borrowed += bool(fetch.handle.last_key)
        error = "" if stands and chance.random() < 0.8 else "did not come"
        if not error:
            for place, block in enumerate(fetch.blocks, start=fetch.first):
                for offset, content in enumerate(source.content(fetch.handle.ticket, place)):
                    if content is not None:
                        self.fake.slots[block * self.block_size + offset] = content
        else:
            # Whatever came before it broke.
            for block in fetch.blocks:
                self.fake.slots[block * self.block_size] = (-1, -1)
        self.handle(BlocksFetched(KvFetched(fetch.fetch_id, error, 100, 0.1)))

    def written(self, fetch: Fetch, source: Site) -> bool:
        """As a stage does: wait until the prompt is computed. False: it is not, or the grant is over."""
        ticket, last = fetch.handle.ticket, fetch.first + len(fetch.blocks)
        while parts := source.parts.get(ticket):
            done = not source.fake.queue or source.fake.queue[0].step_id > parts[-1][1]
            if parts[-1][0] >= last and done:
                return True
            if not source.fake.queue:
                return False
            source.handle(source.fake.execute())
        return False


NOTHING = Grant(KvGrant("", ()), 0, 0.0)


def handle_of(grant: Grant, block_size: int) -> KvHandle:
    """As the router passes it on."""
    return KvHandle(
        "m",
        "float32",
        "plain",
        block_size,
        grant.order.ticket,
        grant.computed,
        100,
        grant.lease_s,
        last_key=grant.last_key,
    )


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60)), min_size=1, max_size=16),
    stages=st.integers(1, 4),
    block_size=st.sampled_from([4, 8, 16]),
    spare=st.integers(0, 40),
    seed=st.integers(0, 2**16),
    offload=st.booleans(),
)
def test_whoever_moves_goes_on_as_if_it_had_not(
    case: str,
    requests: list[tuple[int, int]],
    stages: int,
    block_size: int,
    spare: int,
    seed: int,
    offload: bool,
) -> None:
    """However tight memory is, with fetches that fail, stages lost on either side, leases that end early and
    sequences cancelled on the way: the same tokens, each once, and all blocks are free at the end."""
    chance = random.Random(seed)
    kv_blocks = -(-150 // block_size) + spare
    sites = [
        Site(stages, kv_blocks, block_size, 0, case, OFFLOAD if offload else NO_OFFLOAD),
        Site(3, kv_blocks + 5, block_size, 0, case),
    ]
    home: dict[str, Site] = {}
    specs: dict[str, NewSequence] = {}
    outputs: dict[str, list[int]] = {}
    ended: set[str] = set()
    cancelled: set[str] = set()
    tickets = count(1)
    todo = list(requests)

    def settle() -> None:
        for site in sites:
            other = sites[1 - sites.index(site)]
            while site.announced:
                told = site.announced.pop()
                spec = specs[told.sequence_id]
                offered = PrefixOffered(handle_of(told.grant, block_size), spec.prompt, spec.prefix_root)
                if chance.random() < 0.8:
                    other.handle(offered)
            while site.left:
                gone = site.left.pop(0)
                name = gone.sequence_id
                outputs[name] = outputs.get(name, []) + site.outputs.pop(name, [])
                handle = replace(
                    handle_of(gone.grant or NOTHING, block_size), lease_s=chance.choice((9.0, 0.05))
                )
                home[name] = other
                usable = not KvLayout("m", "float32", "plain", block_size).obstacle(handle)
                spec = specs[name]
                other.handle(
                    SequencesArrived(
                        (
                            NewSequence(
                                name,
                                spec.prompt,
                                spec.sampling,
                                output=tuple(outputs[name]),
                                prefix_root=spec.prefix_root,
                                background=spec.background,
                                kv=handle if usable else None,
                            ),
                        )
                    )
                )
            for name in set(site.ends) - ended:
                if home[name] is site:
                    ended.add(name)
                    outputs[name] = outputs.get(name, []) + site.outputs.pop(name, [])
                    # The router gives back what it needs no more.
                    for any_site in sites:
                        any_site.handle(SequenceCancelled(name))
                        any_site.handle(SequenceCancelled(f"loan-{name}"))

    while todo or any(site.fake.queue or site.fetches for site in sites):
        draw, site = chance.random(), chance.choice(sites)
        other = sites[1 - sites.index(site)]
        if todo and draw < 0.2:
            prompt_tokens, limit = todo.pop()
            name = f"s{len(specs)}"
            spec = NewSequence(
                name,
                prompt_of(chance, prompt_tokens),
                SamplingParams(max_tokens=limit),
                prefix_root=chance.choice(ROOTS),
                background=chance.random() < 0.2,
                ahead=f"{next(tickets):032x}" if chance.random() < 0.4 else "",
            )
            if chance.random() < 0.5:
                ticket, lease_s = f"{next(tickets):032x}", chance.choice((9.0, 0.05))
                root = spec.prefix_root if chance.random() < 0.9 else ROOTS[0]
                other.handle(PrefixAsked(f"loan-{name}", ticket, spec.prompt, root, lease_s))
                if (lent := other.lent.get(ticket)) is not None:
                    spec = replace(spec, kv=handle_of(lent, block_size))
            specs[name], home[name] = spec, site
            site.handle(SequencesArrived((spec,)))
        elif draw < 0.35:
            here = [name for name, where in home.items() if where is site and name not in ended]
            asked = tuple((name, f"{next(tickets):032x}") for name in here if chance.random() < 0.5)
            site.handle(HandOverAsked(asked, chance.choice((9.0, 0.05))))
        elif draw < 0.5 and site.fetches:
            site.end_fetch(chance, other)
        elif draw < 0.52 and home:
            name = chance.choice(sorted(home))
            if name not in ended:
                cancelled.add(name)
            home[name].handle(SequenceCancelled(name))
        elif draw < 0.54:
            site.lose_stages(died=False)
        elif draw < 0.55:
            site.handle(PrefixCacheCleared())
        elif draw < 0.6:
            site.handle(Tick())
        elif site.fake.queue:
            site.handle(site.fake.execute())
        settle()
    for _ in range(2000):
        for site in sites:
            site.now += 1.0
            site.handle(Tick())
            while site.fake.queue or site.fetches:
                if site.fetches:
                    site.end_fetch(chance, sites[1 - sites.index(site)])
                else:
                    site.handle(site.fake.execute())
            settle()
        if len(ended) == len(specs):
            break

    assert ended == set(specs)
    for name, spec in specs.items():
        expected, reason = expected_output(spec.prompt, spec.sampling.max_tokens or 0)
        if name in cancelled:
            assert outputs[name] == expected[: len(outputs[name])]
        else:
            assert (outputs[name], home[name].ends[name].reason) == (expected, reason)
    for site in sites:
        site.now += 20.0
        site.handle(Tick())
        assert site.scheduler.allocator.used == 0
        assert not site.granted


def site_with(
    transfer: TransferCost,
    prompt: int = 60,
    mode: str = "auto",
    others: int = 0,
    near: TransferCost | None = None,
    giver: str = "",
) -> Site:
    """others: that decode here already. giver: the host of the blocks; this one is on "here"."""
    site = Site(2, 64, 4, 0, "auto")
    site.scheduler.hand_over = HandOver(COST, TransferCosts(transfer, near), mode)
    site.scheduler.hand_over.rule.node = "here"
    here = tuple(NewSequence(f"o{n}", (1, 2, 3), SamplingParams(max_tokens=50)) for n in range(others))
    site.handle(SequencesArrived(here))
    while any(one.state is not State.DECODE for one in site.scheduler.sequences.values()):
        site.handle(site.fake.execute())
    handle = KvHandle("m", "float32", "plain", 4, "ab" * 16, prompt, 1000)
    if giver:
        handle = replace(handle, stages=(KvStage(f"{giver}:1", 0, 2, 1), KvStage(f"{giver}:2", 2, 4, 1)))
    tokens = tuple(range(1, prompt + 1))
    spec = NewSequence("s", tokens, SamplingParams(max_tokens=5), output=(7,), kv=handle)
    site.handle(SequencesArrived((spec,)))
    return site


def test_what_is_quicker_computed_is_not_fetched() -> None:
    """And it says so with its numbers; what was measured decides the next one."""
    slow, fast = TransferCost(1.0), TransferCost(1e12, 0.0)
    site = site_with(slow)
    assert not site.fetches
    (verdict,) = [action for action in site.trace if isinstance(action, TakenOver)]
    assert "quicker computed" in str(verdict.reason) and "fetch_s" in str(verdict.reason)
    assert str(site_with(slow, mode="always").fetches[0].reason).startswith("whatever can be fetched")

    # A prompt's steps would be waited for by all who decode here, blocks by it alone.
    twice = TransferCost(1e12, 2.0 * verdict.reason.numbers["compute_s"])
    assert not site_with(twice).fetches
    assert "less time from all" in str(site_with(twice, others=2).fetches[0].reason)

    site = site_with(fast)
    (fetch,) = site.fetches
    assert len(fetch.blocks) == 15 and fetch.first == 0
    site.handle(BlocksFetched(KvFetched(fetch.fetch_id, "", 1_000_000, 10.0)))
    assert fast.seconds(1_000_000) > 0
    assert fast.bytes_per_s < 1e12


@pytest.mark.parametrize("giver", ["here", "elsewhere"])
def test_what_comes_within_the_node_is_priced_and_learned_apart(giver: str) -> None:
    far, near = TransferCost(1e12, 0.0), TransferCost(1.0)
    site = site_with(far, near=near, giver=giver)
    assert bool(site.fetches) is (giver == "elsewhere")
    far, near = TransferCost(1.0), TransferCost(1e12, 0.0)
    site = site_with(far, near=near, giver=giver)
    assert bool(site.fetches) is (giver == "here")
    for fetch in site.fetches:
        assert (far.under_way(0.0), near.under_way(0.0)) == (0, len(fetch.blocks) * 1000)
        site.handle(BlocksFetched(KvFetched(fetch.fetch_id, "", round(near.under_way(0.0)), 10.0)))
        assert far.bytes_per_s == 1.0 and near.bytes_per_s < 1e12 and near.under_way(0.0) == 0


@pytest.mark.parametrize(("ahead", "here"), [(50, 48), (20, 0)])
def test_what_went_ahead_was_not_in_vain_if_the_rest_is_computed(ahead: int, here: int) -> None:
    """Most of it is here, and a few tokens are quicker computed than a block of them is fetched."""
    site, prompt = Site(2, 64, 4, 0, "auto"), tuple(range(1, 61))
    site.scheduler.hand_over = HandOver(COST, TransferCosts(TransferCost(1.0)))
    first = NewSequence("a", prompt[:ahead], SamplingParams(max_tokens=2), prefix_root=ROOTS[0])
    site.handle(SequencesArrived((first,)))
    site.run_dry()
    handle = KvHandle("m", "float32", "plain", 4, "ab" * 16, 60, 1000)
    spec = NewSequence(
        "b", prompt, SamplingParams(max_tokens=5), output=(7,), prefix_root=ROOTS[0], kv=handle
    )
    site.handle(SequencesArrived((spec,)))
    (verdict,) = [one for one in site.trace if isinstance(one, TakenOver)]
    assert "quicker computed" in str(verdict.reason) and verdict.positions == 0
    stats = site.scheduler.hand_over.stats
    assert (stats.taken_over, stats.recomputed) == ((1, 0) if here else (0, 1))
    assert not here or verdict.here == here == 4 * stats.found_blocks
    site.run_dry()
    assert site.ends["b"]


def test_what_fetches_of_rests_take_is_learned_and_not_taken_for_the_rate() -> None:
    """A fetch waits for steps under way, however few blocks are left: then the next rest is computed, while
    whole sequences are fetched as before, after one of which rests are tried again."""
    site, way = Site(2, 64, 4, 0, "auto"), TransferCost(1e12, 0.0)
    site.scheduler.hand_over = HandOver(COST, TransferCosts(way))

    def come(number: int, ahead: int) -> bool:
        """Is it fetched for one, of which that much is here? It then takes ten seconds."""
        prompt = tuple(range(number, number + 60))
        first = NewSequence(f"a{number}", prompt[:ahead], SamplingParams(max_tokens=2), prefix_root=ROOTS[0])
        site.handle(SequencesArrived((first,) if ahead else ()))
        site.run_dry()
        handle = KvHandle("m", "float32", "plain", 4, "ab" * 16, 60, 1000)
        spec = NewSequence(
            f"b{number}", prompt, SamplingParams(max_tokens=2), output=(7,), prefix_root=ROOTS[0], kv=handle
        )
        site.handle(SequencesArrived((spec,)))
        fetches, site.fetches = site.fetches, []
        for fetch in fetches:
            site.handle(SequenceCancelled(fetch.sequence_id))
            seconds = 10.0 if ahead else 1e-4
            site.handle(BlocksFetched(KvFetched(fetch.fetch_id, "", len(fetch.blocks) * 1000, seconds)))
        site.run_dry()
        return bool(fetches)

    assert come(1, 56) and not come(2, 56)
    assert way.bytes_per_s == 1e12 and way.latency_s == 0.0
    assert come(3, 0) and come(4, 56)


def fetched(site: Site, fetch: Fetch) -> None:
    """It ends well: the blocks of `site_with`'s prompt are there."""
    trace = 0
    for position, token in enumerate(range(1, 61)):
        trace = hash((trace, token))
        site.fake.slots[fetch.blocks[position // 4] * 4 + position % 4] = token, trace
    site.handle(BlocksFetched(KvFetched(fetch.fetch_id)))


def test_one_that_came_decodes_at_once_and_computes_nothing_again() -> None:
    site = site_with(TransferCost(1e12, 0.0))
    before = site.fake.computed
    (fetch,) = site.fetches
    sequence = site.scheduler.sequences["s"]
    assert sequence.state is State.FETCHED
    fetched(site, fetch)
    site.run_dry()
    assert isinstance(site.ends["s"], Finish)
    assert site.fake.computed - before == len(site.outputs["s"]) + (site.ends["s"].stop_token is not None)
    assert not any(isinstance(action, Preempted) for action in site.trace)


def test_what_came_with_one_is_found_by_others_while_it_runs() -> None:
    """By those of its owner."""
    site, prompt = Site(2, 64, 4, 0, "auto"), tuple(range(1, 61))
    handle = KvHandle("m", "float32", "plain", 4, "ab" * 16, 60, 1000)
    limit = SamplingParams(max_tokens=50)
    came = NewSequence("s", prompt, limit, output=(7,), prefix_root=ROOTS[0], kv=handle)
    site.handle(SequencesArrived((came,)))
    (fetch,) = site.fetches
    fetched(site, fetch)
    for name, root in (("another's", ROOTS[1]), ("own", ROOTS[0])):
        new = NewSequence(name, prompt, SamplingParams(max_tokens=3), prefix_root=root)
        site.handle(SequencesArrived((new,)))
        while name not in site.scheduler.state.running:
            site.handle(site.fake.execute())
    assert site.scheduler.sequences["s"].state is State.DECODE
    found = {one.sequence_id: one.cached_tokens for one in site.trace if isinstance(one, PrefixFound)}
    assert found == {"own": 56}


def lent_to(site: Site, prompt: tuple[int, ...], root: str, asked_root: str = "") -> tuple[Site, KvHandle]:
    """A neighbour of that site which has computed a prompt, and what it lends of its beginning."""
    lender = Site(1, 64, 4, 0, "auto")
    lender.handle(
        SequencesArrived((NewSequence("a", prompt, SamplingParams(max_tokens=2), prefix_root=root),))
    )
    lender.run_dry()
    lender.handle(PrefixAsked("loan", "ab" * 16, prompt, asked_root or root, 9.0))
    return lender, handle_of(lender.lent.get("ab" * 16, NOTHING), 4)


def test_a_beginning_is_fetched_once_and_found_by_all() -> None:
    """Two that come together wait for one fetch, and compute what stands behind it; a third finds it."""
    site, prompt = Site(2, 64, 4, 0, "auto"), tuple(range(1, 61))
    lender, handle = lent_to(site, prompt, ROOTS[0])
    assert handle.computed == 56 and lender.scheduler.allocator.used == 14
    new = [
        NewSequence(name, (*prompt[:58], own), SamplingParams(max_tokens=3), prefix_root=ROOTS[0], kv=handle)
        for name, own in (("b", 7), ("c", 8))
    ]
    site.handle(SequencesArrived(tuple(new)))
    assert len(site.fetches) == 1 and not site.fake.queue, "they wait for it"
    site.end_fetch(random.Random(1), lender)
    site.handle(SequencesArrived((replace(new[0], sequence_id="d", kv=None),)))
    site.run_dry()
    found = {one.sequence_id: one.cached_tokens for one in site.trace if isinstance(one, PrefixFound)}
    assert found == {"b": 56, "c": 56, "d": 56}
    assert all(site.outputs[name] for name in "bcd")
    lender.handle(SequenceCancelled("loan"))
    assert lender.scheduler.allocator.used == 0


def test_nobody_gets_what_is_another_s() -> None:
    """Nothing is lent under another root; and what was lent of other content is not fetched."""
    site, prompt = Site(2, 64, 4, 0, "auto"), tuple(range(1, 61))
    _, refused = lent_to(site, prompt, ROOTS[0], asked_root=ROOTS[1])
    assert not refused.ticket
    _, handle = lent_to(site, prompt, ROOTS[0])
    for name, other, root in (("b", (99, *prompt[1:]), ROOTS[0]), ("c", prompt, ROOTS[1]), ("d", prompt, "")):
        new = NewSequence(name, other, SamplingParams(max_tokens=3), prefix_root=root, kv=handle)
        site.handle(SequencesArrived((new,)))
        assert not site.fetches
        assert "another beginning" in str(site.trace)
        site.run_dry()
        assert site.ends[name]


def test_a_fetch_that_fails_bars_its_source_for_a_while() -> None:
    """For beginnings and for sequences that come alike, but not where the grant was over; other sources stay
    open. When the time is up one tries again, alone; if that is well, all is as before."""
    site, numbers = Site(2, 64, 4, 0, "auto"), count(1)

    def come(giver: str, *, lent: bool) -> list[Fetch]:
        """What is fetched for one that comes; it ends before the next one."""
        number = next(numbers)
        prompt, root = tuple(range(number, number + 60)), ROOTS[0]
        _, handle = lent_to(site, prompt, root)
        kv = replace(handle, giver=giver, last_key=handle.last_key if lent else "")
        output = () if lent else (7,)
        spec = NewSequence(
            f"b{number}", prompt, SamplingParams(max_tokens=3), output=output, prefix_root=root, kv=kv
        )
        before = len(site.trace)
        site.handle(SequencesArrived((spec,)))
        began = [one for one in site.trace[before:] if isinstance(one, Fetch)]
        if not began:
            assert f"fetches from {giver} failed" in str(site.trace[before:])
        return began

    def end(fetch: Fetch, error: str = "", gone: bool = False) -> None:
        site.fetches.remove(fetch)
        site.handle(SequenceCancelled(fetch.sequence_id))
        site.handle(BlocksFetched(KvFetched(fetch.fetch_id, error, seconds=0.1, gone=gone)))
        site.run_dry()

    (fetch,) = come("a", lent=True)
    end(fetch, "the grant is over", gone=True)
    (fetch,) = come("a", lent=True)
    end(fetch, "not here within 5 s")
    for lent in (True, False):
        assert not come("a", lent=lent)
    site.run_dry()
    rule = site.scheduler.hand_over.rule
    assert rule.barred(site.now) == ("a",)
    site.now += 58.0
    (fetch,) = come("c", lent=False)
    end(fetch)
    site.now += 3.0
    assert not rule.barred(site.now)
    (fetch,) = come("a", lent=False)
    assert not come("a", lent=False), "one at a time"
    end(fetch)
    assert len(come("a", lent=False)) == len(come("a", lent=False)) == 1


def test_who_waits_too_long_is_computed() -> None:
    site, prompt = Site(2, 64, 4, 0, "auto"), tuple(range(1, 61))
    _, handle = lent_to(site, prompt, ROOTS[0])
    new = NewSequence("b", prompt, SamplingParams(max_tokens=3), prefix_root=ROOTS[0], kv=handle)
    site.handle(SequencesArrived((new,)))
    assert site.fetches and not site.fake.queue
    site.now += 20.0
    site.handle(Tick())
    assert site.fake.queue
    site.run_dry()
    (fetch,) = site.fetches
    site.handle(BlocksFetched(KvFetched(fetch.fetch_id)))
    assert site.ends["b"] and site.scheduler.allocator.used == 0


def test_what_goes_ahead_is_no_slow_link() -> None:
    """A fetch that waited for blocks going ahead teaches nothing; when they are there, one as slow does."""
    ways = TransferCosts(TransferCost(1e9, 0.005))
    rule, handle = FetchRule(COST, ways), KvHandle("t", 16, 64)
    ahead = rule.begin(handle, 10**9, 0.0, ahead=True)
    behind = rule.begin(handle, 10**8, 0.0)
    rule.ended(behind, KvFetched(1, nbytes=10**8, seconds=1.0), 1.0)
    rule.ended(ahead, KvFetched(2, nbytes=10**9, seconds=1.1), 1.1)
    assert ways.far.way(2.0) == KvWay(1e9, 0.005)
    alone = rule.begin(handle, 10**8, 2.0)
    rule.ended(alone, KvFetched(3, nbytes=10**8, seconds=1.0), 3.0)
    assert ways.far.seconds(1e8) > 0.5
