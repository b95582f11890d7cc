"""The brain beside an engine that owns the blocks: whatever that does, all requests end, and both agree."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from controller.engines.vllm_scheduler.clock import StepClock
from controller.engines.vllm_scheduler.lateness import Load, load_of, put_late_last
from controller.engines.vllm_scheduler.mirror import Did, Held, Mirror, Wanted
from controller.engines.vllm_scheduler.step_size import StepSize, Targets
from controller.engines.vllm_scheduler.step_times import StepTimes
from controller.runtime.scheduler_spec import SchedulerSpec
from controller.scheduler.events import NewSequence
from controller.scheduler.scheduler import new_sequence
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.shapes import SHAPES
from tidepipe_common.prefix import root_key
from tidepipe_common.types.sampling import SamplingParams

BLOCK = 16
BLOCKS = 48


def spec(policy: str) -> SchedulerSpec:
    return SchedulerSpec(
        policy=policy,
        shape=SHAPES["llama2-13b"],
        split=(20, 20),
        device="cpu",
        profile=None,
        modelled=True,
        block_size=BLOCK,
        microbatches=2,
        max_sequences=1 << 30,
        knobs={"max_running": 12},
    )


@dataclass(eq=False)
class Request:
    name: str
    prompt: tuple[int, ...]
    ends_at: int
    output: list[int] = field(default_factory=list)
    computed: int = 0
    runs: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)

    def new(self, root: str) -> NewSequence:
        most = SamplingParams(max_tokens=101)
        return NewSequence(self.name, self.prompt, most, tuple(self.output), prefix_root=root)


class Engine:
    """Does what it was told as far as it likes: finds other prefixes, preempts, skips rows, ends early."""

    def __init__(self, policy: str, seed: int, wild: float) -> None:
        self.mirror = Mirror(spec(policy), 2, BLOCKS)
        self.chance = random.Random(seed)
        self.wild = wild
        self.requests: dict[str, Request] = {}
        self.flights: list[tuple[Wanted, dict[str, Did]]] = []
        self.finished: set[str] = set()
        self.stale = False
        self.rebuilt = 0
        self.now = 0.0
        self.root = root_key("", "").hex()

    def strange(self) -> bool:
        return self.chance.random() < self.wild

    def add(self, request: Request) -> None:
        self.requests[request.name] = request
        if not self.stale:
            assert not self.mirror.arrived([request.new(self.root)], self.now)

    def turn(self) -> None:
        """Schedule while there is room for steps, or take the oldest result."""
        self.now += 0.01
        if self.stale and not self.flights:
            self.rebuild()
        wanted = None if self.stale or len(self.flights) == 2 else self.mirror.next(self.now)
        if wanted is not None:
            self.schedule(wanted)
        elif self.flights:
            self.result()
        else:
            # Only what must not be: nothing is under way, and nothing is wanted.
            assert self.stale or not self.requests

    def schedule(self, wanted: Wanted) -> None:
        for name in wanted.preempt:
            self.drop(self.requests[name])
        did: dict[str, Did] = {}
        for row in wanted.rows:
            request = self.requests[row.sequence_id]
            if self.strange() and not did:
                continue
            if not request.runs:
                request.runs = True
                hit = self.chance.randrange(request.length // BLOCK + 1) * BLOCK if self.strange() else None
                sequence = self.mirror.scheduler.sequences[request.name]
                request.computed = min(sequence.begins_at if hit is None else hit, request.length - 1)
            count = min(row.tokens, request.length - request.computed)
            if count > 0:
                did[row.sequence_id] = Did(request.computed, count)
                request.computed += count
        preempted = set()
        if self.strange() and len(did) > 1:
            victim = self.requests[list(did)[-1]]
            lost = did.pop(victim.name).tokens
            if not any(victim.name in flown for _, flown in self.flights):
                self.drop(victim)
                preempted.add(victim.name)
            else:
                victim.computed -= lost
        self.stale |= not self.mirror.happened(wanted.step_id, did, preempted)
        self.flights.append((wanted, did))

    def drop(self, request: Request) -> None:
        assert not any(request.name in flown for _, flown in self.flights), "it is under way"
        request.runs, request.computed = False, 0

    def result(self) -> None:
        wanted, did = self.flights.pop(0)
        tokens, ended = {}, set()
        for name, done in did.items():
            request = self.requests.get(name)
            if request is None:
                ended.add(name)
            elif done.began + done.tokens == request.length:
                request.output.append(self.chance.randrange(1000))
                tokens[name] = request.output[-1]
                if len(request.output) >= request.ends_at:
                    ended.add(name)
                    self.finish(name)
        if not self.stale and not self.mirror.done(wanted.step_id, tokens, ended, 0.01, self.now):
            self.stale = True

    def finish(self, name: str) -> None:
        self.finished.add(name)
        del self.requests[name]

    def abort(self, name: str) -> None:
        self.finish(name)
        self.mirror.cancelled(name, self.now)

    def rebuild(self) -> None:
        held = [Held(r.name, r.output, r.computed) for r in self.requests.values() if r.runs]
        everyone = [request.new(self.root) for request in self.requests.values()]
        refused = self.mirror.rebuild(held, everyone, self.now)
        if refused is None:
            # An engine goes on alone until it fits; here the last ones lose their blocks.
            self.drop(next(r for r in reversed(list(self.requests.values())) if r.runs))
            return
        assert not refused
        self.rebuilt += 1
        self.stale = False
        self.agree()

    def agree(self) -> None:
        scheduler = self.mirror.scheduler
        assert set(scheduler.sequences) == set(self.requests)
        for name, request in self.requests.items():
            assert scheduler.sequences[name].output == request.output
        scheduler.allocator.check(list(scheduler.state.running.values()))


@pytest.mark.parametrize("policy", ["auto", "td-pipe", "padg", "hybrid"])
@pytest.mark.parametrize("wild", [0.0, 0.05])
def test_all_requests_end_whatever_the_engine_does(policy: str, wild: float) -> None:
    rebuilt = 0
    for seed in range(3):
        engine = Engine(policy, seed, wild)
        chance = random.Random(seed + 100)
        shared = tuple(range(64))
        to_come = [
            Request(f"r{i}", shared[: 16 * (i % 5)] + tuple(chance.randrange(1000) for _ in range(1 + i * 7)),
                    1 + chance.randrange(60))
            for i in range(30)
        ]  # fmt: skip
        names = {request.name for request in to_come}
        for _ in range(20_000):
            if to_come and chance.random() < 0.2:
                engine.add(to_come.pop())
            if engine.requests and chance.random() < 0.005:
                engine.abort(chance.choice(list(engine.requests)))
            engine.turn()
            if not to_come and not engine.requests and not engine.flights:
                break
        assert engine.finished == names, f"seed {seed}: {names - engine.finished} never ended"
        engine.agree()
        rebuilt += engine.rebuilt
    assert (rebuilt > 0) == (wild > 0.0)


def test_steps_are_timed_by_when_they_return() -> None:
    clock = StepClock(2)
    assert clock.returned(0.0, 2.0) == 1.0  # alone: through both stages
    assert clock.returned(0.5, 3.0) == 1.0  # right behind it
    assert clock.returned(2.75, 4.75) == 1.0  # waited for at the first stage only
    assert clock.returned(10.0, 12.0) == 1.0


def test_a_step_is_as_large_as_a_token_may_take_and_larger_when_that_is_lost() -> None:
    size = StepSize(LearnedCost(), Targets(5.0, 0.1, 1024), batches=2)
    for rows, prompts in [(2, 0), (6, 0), (4, 120), (12, 60)] * 30:
        size.times.observe(rows, prompts, 0.010 + rows * 1e-3 + prompts * 0.25e-3)
    # 95 ms for a round: 47.5 for a step, of which rows take 14 and 30; prompts have 134 and 70 tokens.
    assert size.choose(Load(rows=4)) == 136
    assert size.choose(Load(1_000, 0, True, rows=5)) == 136  # not for every row that comes or goes
    assert size.choose(Load(1_000, 0, True, rows=20)) == 88
    assert size.choose(Load(60_000, 0, True, rows=20)) == 88  # a stream: those who come next may be in time
    assert size.choose(Load(60_000, 50_000, True, rows=20)) == 816 and size.throughput
    assert size.choose(Load(1_000, 0, True, rows=4, decoding=8, began=8, in_time=3)) == 816
    assert size.choose(Load(1_000, 0, True, rows=4, decoding=8, began=8, in_time=5)) == 136
    assert not size.throughput
    # Steps that are too large are no reason for larger ones.
    assert size.choose(Load(1_000, 0, True, rows=4, decoding=8, began=8, in_time=0)) == 136
    assert size.choose(Load(1_000, 0, True, rows=4, decoding=8, began=1, in_time=1)) == 800
    assert size.choose(Load(rows=4, decoding=8, began=1, in_time=1)) == 136  # no prompt waits
    assert size.choose(Load(1_000, 0, True, 4, 8, 8, 8, watched=False)) == 800  # nobody looks at the clock
    # Which says nothing of those who come behind them, with more than half of a target to compute.
    assert size.choose(Load(15_000, 0, True, 4, 8, 8, 8)) == 136 and not size.throughput


def test_rounds_that_take_longer_than_reckoned_make_steps_smaller() -> None:
    sizes = []
    for stretch in (1.0, 1.3):
        size = StepSize(LearnedCost(), Targets(5.0, 0.1, 1024), batches=2)
        for rows, prompts in [(2, 0), (6, 0), (4, 120), (12, 60)] * 60:
            seconds = 0.010 + rows * 1e-3 + prompts * 0.25e-3
            size.returned(rows, prompts, seconds, 2 * stretch * seconds)
        sizes.append(size.choose(Load(rows=4)))
    assert sizes == [136, 88]


def test_those_who_can_be_in_time_go_before_those_who_are_late() -> None:
    scheduler = Mirror(spec("auto"), 2, 64).scheduler
    at = {"very late": 0.0, "late": 40.0, "later": 42.0, "in time": 47.0, "newest": 49.0}
    for name, arrived in at.items():
        new = NewSequence(name, tuple(range(8)), SamplingParams(max_tokens=9))
        scheduler.waiting.add([new_sequence(new, 512, frozenset(), arrived)])
    put_late_last(scheduler.waiting, ttft_s=5.0, now=50.0)
    assert [one.sequence_id for one in scheduler.waiting] == [
        "very late",
        "in time",
        "newest",
        "late",
        "later",
    ]
    load = load_of(scheduler, 5.0, 0.1, 50.0)
    assert (load.tokens, load.together, load.waiting, load.decoding) == (2 * 8, 8, True, 0)


def test_what_prompts_take_is_known_after_a_long_time_without_any() -> None:
    times = StepTimes(LearnedCost())
    for _ in range(100):
        times.observe(4, 120, 0.010 + 4 * 1e-3 + 120 * 0.25e-3)
    for index in range(5_000):
        rows = 1 + index % 8
        times.observe(rows, 0, 0.010 + rows * 1e-3)
    learned = times.now()
    assert learned.token_s == pytest.approx(0.25e-3, rel=0.05)
    assert learned.of(20, 0) == pytest.approx(0.030, rel=0.05)
