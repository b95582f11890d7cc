"""Laws of the scheduling core, under random arrivals, lengths, cancellations and losses of stages."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.scheduler.actions import (
    Action,
    Dispatch,
    Emit,
    Finish,
    PhaseSwitched,
    PrefixFound,
    PromptRead,
    Refused,
)
from controller.scheduler.events import (
    Event,
    LengthPredicted,
    NewSequence,
    PolicyChosen,
    PrefixCacheCleared,
    SequenceCancelled,
    SequencesArrived,
    StagesLost,
    StagesReady,
    StepDone,
    Tick,
)
from controller.scheduler.offload import NO_OFFLOAD, OffloadCapacity
from controller.scheduler.scheduler import Scheduler, SchedulerConfig
from controller.scheduler.sequence import State
from tests.unit.controller.policy_cases import CASES, COST
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.prefix import root_key
from tidepipe_common.types.plan import (
    BlockCopies,
    Phase,
    PlanRow,
    SampledTokens,
    SequenceStart,
    StepPlan,
)
from tidepipe_common.types.prompt_reading import PromptPiece
from tidepipe_common.types.sampling import FinishReason, Pooling, SamplingParams

EOS = 0
OFFLOAD = OffloadCapacity(slots=7, block_s=1e-9, step_blocks=5)
"""Small enough to overflow, quicker than computing."""


@dataclass
class FakeStages:
    """Executes plans in order like real stages, checks each one, and samples by a fixed rule.

    The token at a position depends on all tokens before it, so that a wrong recomputation shows. A place in a
    block holds a token and, as keys and values do, a trace of all that stood before it: so a sequence that
    begins behind blocks of others is what these blocks say, and one whose blocks were overwritten notices.
    """

    kv_blocks: int
    block_size: int
    slots: dict[int, tuple[int, int]] = field(default_factory=dict)
    computed: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)
    queue: list[StepPlan] = field(default_factory=list)
    last_step: int = 0
    tier: dict[int, list[tuple[int, int] | None]] = field(default_factory=dict)
    saved: int = 0
    loaded: int = 0
    prompts: dict[int, SequenceStart] = field(default_factory=dict)

    def accept(self, plan: StepPlan) -> None:
        assert plan.step_id == self.last_step + 1
        self.last_step = plan.step_id
        self.queue.append(plan)

    def execute(self) -> StepDone:
        plan = self.queue.pop(0)
        for key in plan.releases:
            del self.lengths[key], self.blocks[key]
            self.prompts.pop(key, None)
        begun = {start.key: start.begins_at for start in plan.starts}
        for key in begun:
            assert key not in self.lengths
            self.blocks[key] = []
        self.prompts |= {start.key: start for start in plan.starts if start.sampling.reads_prompt}
        assert plan.rows
        assert len({row.key for row in plan.rows}) == len(plan.rows)
        self._copy(plan.copies)
        for row in plan.rows:
            if begins_at := begun.get(row.key, 0):
                assert row.first_position == begins_at, "it begins behind the blocks that came"
            elif row.key in begun:
                assert row.first_position % self.block_size == 0, "only whole blocks are shared"
            else:
                assert row.first_position == self.lengths[row.key], "positions must follow each other"
            assert len(row.token_ids) == row.count > 0
            self.lengths[row.key] = end = row.first_position + row.count
            table = self.blocks[row.key]
            table.extend(row.new_blocks)
            assert len(table) * self.block_size >= end, "tokens without a block"
            assert all(0 <= block < self.kv_blocks for block in table)
            self.computed += row.count
        # As in every layer: all rows' keys and values are stored, then the contexts are read.
        for row in plan.rows:
            for position, token in enumerate(row.token_ids, start=row.first_position):
                before = self.slots[self._slot(row.key, position - 1)][1] if position else 0
                self.slots[self._slot(row.key, position)] = token, hash((before, token))
        sampled = []
        for row in plan.rows:
            known = self._read(row.key)
            if row.sample:
                sampled.append(next_token(known))
        prompts = tuple(piece for row in plan.rows if (piece := self._read_prompt(row, row.key in begun)))
        return StepDone(plan.step_id, SampledTokens(tuple(sampled), prompts=prompts))

    def _read_prompt(self, row: PlanRow, begins: bool) -> PromptPiece | None:
        start = self.prompts.get(row.key)
        if start is None:
            return None
        assert not begins or not start.sampling.needs_whole_prompt or row.first_position == 0
        if start.sampling.prompt_logprobs is not None:
            assert start.history[row.first_position :][: row.count] == row.token_ids
        end = min(row.first_position + row.count, start.prompt_tokens)
        if end == start.prompt_tokens:
            del self.prompts[row.key]
        return PromptPiece(row.key, row.first_position, end - row.first_position)

    def _copy(self, copies: BlockCopies) -> None:
        size = self.block_size
        assert len(copies.saves) <= OFFLOAD.step_blocks >= len(copies.loads)
        for block, slot in copies.saves:
            assert 0 <= slot < OFFLOAD.slots
            self.tier[slot] = [self.slots.get(place) for place in range(block * size, (block + 1) * size)]
        for slot, block in copies.loads:
            for place, content in enumerate(self.tier[slot], start=block * size):
                assert content is not None, "only full blocks are saved"
                self.slots[place] = content
        self.saved += len(copies.saves)
        self.loaded += len(copies.loads)

    def first_token(self, key: int) -> int:
        """Of a sequence that was begun."""
        return self.slots[self._slot(key, 0)][0]

    def _slot(self, key: int, position: int) -> int:
        return self.blocks[key][position // self.block_size] * self.block_size + position % self.block_size

    def _read(self, key: int) -> list[int]:
        tokens, before = [], 0
        for position in range(self.lengths[key]):
            token, trace = self.slots[self._slot(key, position)]
            assert trace == hash((before, token)), "a block holds something else than what is read from it"
            tokens.append(token)
            before = trace
        return tokens


def next_token(tokens: list[int]) -> int:
    """What the fake model says after these tokens; sometimes EOS."""
    return hash(tuple(tokens)) % 50


def expected_output(prompt: tuple[int, ...], limit: int) -> tuple[list[int], FinishReason]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit:
        token = next_token(tokens)
        if token == EOS:
            return tokens[len(prompt) :], FinishReason.STOP
        tokens.append(token)
    return tokens[len(prompt) :], FinishReason.LENGTH


@dataclass
class World:
    """A scheduler and its fake stages, driven by events."""

    stages: int
    kv_blocks: int
    block_size: int
    microbatches: int
    case: str = "td-pipe"
    offload: OffloadCapacity = NO_OFFLOAD
    outputs: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, Finish] = field(default_factory=dict)
    read: dict[str, set[int]] = field(default_factory=dict)
    switches: list[PhaseSwitched] = field(default_factory=list)
    trace: list[Action] = field(default_factory=list)
    now: float = 0.0
    epoch: int = 1

    def __post_init__(self) -> None:
        make_policy, victims, admission = CASES[self.case]
        config = SchedulerConfig(
            context_length=200,
            eos_token_ids=(EOS,),
            block_size=self.block_size,
            prefill_tokens=32,
            microbatches=self.microbatches,
            admission=admission,
            victims=victims,
            # A long one, so that what hides it is tried as well.
            dispatch_s=COST.linear_s(64),
        )
        cost = LearnedCost() if self.offload.slots else None
        self.scheduler = Scheduler(
            config, make_policy(), cost, policies=lambda name: (CASES[name][0](), config)
        )
        self.fake = FakeStages(self.kv_blocks, self.block_size)
        self.handle(StagesReady(1, self.stages, self.kv_blocks, offload=self.offload))

    def handle(self, event: Event) -> None:
        self.now += 0.01
        for action in self.scheduler.on(event, self.now):
            self.trace.append(action)
            match action:
                case Dispatch(plan):
                    self.fake.accept(plan)
                case Emit():
                    for name, token in zip(action.sequence_ids, action.token_ids, strict=True):
                        self.outputs.setdefault(name, []).append(token)
                case Finish():
                    assert action.sequence_id not in self.ends
                    self.ends[action.sequence_id] = action
                case PromptRead(name, piece):
                    assert name not in self.outputs, "what is read off a prompt comes before its output"
                    places = range(piece.first, piece.first + piece.count)
                    self.read.setdefault(name, set()).update(places)
                case PhaseSwitched():
                    self.switches.append(action)
                case Refused():
                    raise AssertionError(action)
        users = [*self.scheduler.sequences.values(), *self.scheduler.hand_over.users]
        self.scheduler.allocator.check(users)
        if self.scheduler.state.tier is not None:
            self.scheduler.state.tier.check()

    def lose_stages(
        self, detail: str = "killed", failed: int | None = None, *, died: bool = False, link: bool = False
    ) -> None:
        steps = tuple(plan.step_id for plan in self.fake.queue)
        self.handle(StagesLost(detail, failed, steps if died or link else ()))
        assert self.scheduler.allocator.used == 0
        self.epoch += 1
        self.fake = FakeStages(self.kv_blocks, self.block_size)
        self.handle(StagesReady(self.epoch, self.stages, self.kv_blocks, died, self.offload))

    def run_dry(self) -> None:
        steps = 0
        while self.fake.queue or len(self.scheduler.background):
            if self.fake.queue:
                self.handle(self.fake.execute())
            else:
                self.now += 1.0
                self.handle(Tick())
            steps += 1
            assert steps < 100_000, "no end"


requests = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60), st.booleans()), min_size=1, max_size=24)
WISHES = (
    *[SamplingParams()] * 3,
    SamplingParams(prompt_logprobs=2),
    SamplingParams(pooling=Pooling.MEAN),
    SamplingParams(pooling=Pooling.LAST),
)
"""What is read off prompts as well."""
ROOTS = (root_key("one").hex(), root_key("other").hex(), "")


def prompt_of(chance: random.Random, length: int) -> tuple[int, ...]:
    """Most have a beginning in common with others, which ends anywhere."""
    family = random.Random(chance.randint(1, 3))
    common = tuple(family.randint(1, 99) for _ in range(90))[: chance.randint(0, length)]
    return common + tuple(chance.randint(1, 99) for _ in range(length - len(common)))


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, deadline=None)
@example([(86, 1, False), (9, 1, False), (68, 36, False)], 1, 1, 8, 12, 43677, False)
@example(
    [(53, 25, False), (53, 29, False), (68, 57, True), (38, 35, True), (40, 34, False), (80, 17, False)],
    3,
    3,
    8,
    26,
    51054,
    False,
)
@given(
    requests=requests,
    stages=st.integers(1, 4),
    microbatches=st.integers(0, 5),
    block_size=st.sampled_from([4, 8, 16]),
    spare=st.integers(0, 30),
    seed=st.integers(0, 2**16),
    offload=st.booleans(),
)
def test_nothing_is_lost_leaked_or_repeated(
    case: str,
    requests: list[tuple[int, int, bool]],
    stages: int,
    microbatches: int,
    block_size: int,
    spare: int,
    seed: int,
    offload: bool,
) -> None:
    """Every sequence ends with exactly the tokens it would have alone, however tight memory is, with a second
    tier and without, whatever is cancelled, predicted or lost on the way, whichever policies take turns, with
    any priorities and whoever waits for it; then all blocks are free."""
    # Just enough blocks for the longest sequence alone, plus a few.
    kv_blocks = -(-150 // block_size) + spare
    world = World(stages, kv_blocks, block_size, microbatches, case, OFFLOAD if offload else NO_OFFLOAD)
    chance = random.Random(seed)
    limits: dict[str, tuple[tuple[int, ...], int]] = {}
    wishes: dict[str, SamplingParams] = {}
    cancelled: set[str] = set()
    todo = list(requests)
    kills = 0
    while todo or world.fake.queue:
        draw = chance.random()
        if todo and (draw < 0.4 or not world.fake.queue):
            group = []
            for _ in range(min(len(todo), chance.randint(1, 6))):
                prompt_tokens, limit, predicted = todo.pop()
                name = f"s{len(limits)}"
                prompt = prompt_of(chance, prompt_tokens)
                limits[name] = prompt, limit
                root = chance.choice(ROOTS)
                wish = chance.choice(WISHES)
                if wish.reads_prompt and limit % 2:
                    limits[name] = prompt, 0
                sampling = replace(wish, max_tokens=limits[name][1])
                wishes[name] = sampling
                group.append(
                    NewSequence(
                        name,
                        prompt,
                        sampling,
                        prefix_root=root,
                        tpot_s=chance.choice((None, 1e-9, 10.0)),
                        priority=chance.choice((0, 0, -5, 5)),
                        background=chance.random() < 0.3,
                    )
                )
                if predicted:
                    world.handle(LengthPredicted(name, 1.0, 2.0))  # unknown yet: must do no harm
            world.handle(SequencesArrived(tuple(group)))
            world.handle(LengthPredicted(group[0].sequence_id, 1.0, 3.0))  # far too short
        elif draw < 0.44 and limits:
            name = chance.choice(sorted(limits))
            if name not in world.ends:
                cancelled.add(name)
            world.handle(SequenceCancelled(name))
        elif draw < 0.46:
            kills += 1
            world.lose_stages(died=kills < 3)
        elif draw < 0.47:
            world.handle(PrefixCacheCleared())
        elif draw < 0.5:
            world.handle(PolicyChosen(chance.choice(sorted(CASES))))
        elif world.fake.queue:
            world.handle(world.fake.execute())
    world.run_dry()

    assert set(world.ends) == set(limits)
    for name, (prompt, limit) in limits.items():
        output, reason = expected_output(prompt, limit)
        got = world.outputs.get(name, [])
        if name in cancelled:
            assert got == output[: len(got)]
        else:
            assert (got, world.ends[name].reason) == (output, reason)
            if wishes[name].needs_whole_prompt:
                assert world.read[name] == set(range(len(prompt)))
            elif wishes[name].reads_prompt:
                assert len(prompt) - 1 in world.read[name]
    assert world.scheduler.allocator.used == 0
    assert world.scheduler.phase is Phase.IDLE
    assert all(switch.reason.text for switch in world.switches)


def test_after_clearing_only_what_comes_later_is_found() -> None:
    world = World(stages=2, kv_blocks=100, block_size=8, microbatches=0)

    def found(name: str) -> list[int]:
        sampling = SamplingParams(max_tokens=4, ignore_eos=True)
        world.handle(SequencesArrived((NewSequence(name, tuple(range(33)), sampling, prefix_root=ROOTS[0]),)))
        world.run_dry()
        return [action.cached_tokens for action in world.trace if isinstance(action, PrefixFound)]

    assert (found("a"), found("b")) == ([], [32])
    world.handle(PrefixCacheCleared())
    assert world.scheduler.allocator.findable == 0
    assert (found("c"), found("d")) == ([32], [32, 32])
    reuse = world.scheduler.stats.reuse
    assert (reuse.asked_tokens, reuse.found_tokens, reuse.found_again_tokens) == (4 * 33, 2 * 32, 0)


def submit(world: World, lengths: list[tuple[int, int]]) -> None:
    sequences = tuple(
        NewSequence(f"r{i}", tuple(range(1, prompt + 1)), SamplingParams(max_tokens=limit, ignore_eos=True))
        for i, (prompt, limit) in enumerate(lengths)
    )
    world.handle(SequencesArrived(sequences))


def test_phases_are_apart_in_time_and_decode_batches_balanced() -> None:
    """With ample memory there is one prefill phase and one decode phase, in equal micro-batches."""
    world = World(stages=2, kv_blocks=2000, block_size=8, microbatches=3)
    submit(world, [(30, 20)] * 60)
    world.run_dry()
    plans = [action.plan for action in world.trace if isinstance(action, Dispatch)]
    phases = [plan.phase for plan in plans]
    last_prefill = len(phases) - 1 - phases[::-1].index(Phase.PREFILL)
    assert Phase.DECODE not in phases[:last_prefill]
    assert world.scheduler.stats.phase_switches == 1
    assert all(plan.tokens <= 32 for plan in plans if plan.phase is Phase.PREFILL)
    middle = [len(plan.rows) for plan in plans if plan.phase is Phase.DECODE][9:40]
    assert set(middle) == {20}


def test_stages_always_have_a_plan_in_reserve() -> None:
    """While there is work for it, one more step than stages is on its way."""
    world = World(stages=3, kv_blocks=2000, block_size=8, microbatches=4)
    submit(world, [(40, 30)] * 40)
    for _ in range(80):
        assert len(world.fake.queue) >= 4
        world.handle(world.fake.execute())


def test_preemption_takes_the_newest_and_keeps_the_oldest_running() -> None:
    """Too little memory for two: the older one is never the victim."""
    world = World(stages=2, kv_blocks=20, block_size=8, microbatches=0)
    submit(world, [(60, 80), (60, 80)])
    world.handle(LengthPredicted("r0", 1, 2))
    world.handle(LengthPredicted("r1", 1, 2))
    world.run_dry()
    assert world.ends["r0"].preemptions == 0
    assert world.ends["r0"].output_tokens == world.ends["r1"].output_tokens == 80


def test_a_new_prediction_counts_at_once() -> None:
    """Of a sequence that runs, such as one whose thought has ended: before its next review."""
    world = World(stages=1, kv_blocks=200, block_size=8, microbatches=1)
    submit(world, [(40, 150)])
    world.handle(LengthPredicted("r0", 140.0, 141.0))
    for _ in range(12):
        world.handle(world.fake.execute())
    sequence, forecast = world.scheduler.sequences["r0"], world.scheduler.state.admission.forecast
    assert sequence.state is State.DECODE and forecast.peak_tokens() > 170
    world.handle(LengthPredicted("r0", 30.0, 31.0))
    assert forecast.peak_tokens() < 90
    assert sequence.next_check_length == sequence.review_at < 40 + 80
    world.run_dry()
    assert world.ends["r0"].output_tokens == 150


def test_deadline_and_full_queue() -> None:
    """A late sequence ends at its deadline; one too many is refused at once."""
    scheduler = Scheduler(SchedulerConfig(context_length=100, eos_token_ids=(), max_sequences=1))
    scheduler.on(StagesReady(1, 1, 100), 0.0)
    params = SamplingParams(max_tokens=50)
    scheduler.on(SequencesArrived((NewSequence("a", (1, 2), params, deadline=5.0),)), 1.0)
    refused = scheduler.on(SequencesArrived((NewSequence("b", (1,), params),)), 1.0)
    assert [type(action) for action in refused] == [Refused]
    assert not scheduler.on(Tick(), 4.9)
    ends = [action for action in scheduler.on(Tick(), 5.0) if isinstance(action, Finish)]
    assert [end.reason for end in ends] == [FinishReason.DEADLINE]
    assert scheduler.allocator.used == 0


def test_nobody_expects_what_was_lost_with_the_stages() -> None:
    """Who waits finds nothing of what they held, and is not reckoned as if it would."""
    world = World(1, 8, 4, 1, "separate")
    root, shared = root_key("one").hex(), tuple(range(1, 17))
    begins = NewSequence("kept", shared, SamplingParams(max_tokens=1), prefix_root=root)
    world.handle(SequencesArrived((begins,)))
    world.run_dry()
    for name, prompt in (("runs", (50,) * 10), ("fits later", (51,) * 27), ("waits", (*shared, 99))):
        one = replace(begins, sequence_id=name, prompt=prompt, sampling=SamplingParams(max_tokens=4))
        world.handle(SequencesArrived((one,)))
    waits = world.scheduler.sequences["waits"]
    assert waits.state is State.WAITING and waits.expected_cached == len(shared)
    world.handle(StagesLost("killed", None, ()))
    assert waits.to_compute == waits.length


def test_a_handed_over_output_is_continued_not_repeated() -> None:
    """A sequence that comes with output goes on behind it."""
    world = World(stages=2, kv_blocks=100, block_size=8, microbatches=0)
    prompt = (5, 6, 7)
    whole, _ = expected_output(prompt, 12)
    given_tokens = tuple(whole[:4])
    world.outputs["x"] = list(given_tokens)
    world.handle(SequencesArrived((NewSequence("x", prompt, SamplingParams(max_tokens=12), given_tokens),)))
    world.run_dry()
    assert world.outputs["x"] == whole


def test_a_conversation_comes_back_from_the_second_tier() -> None:
    """What memory gave up for others is loaded, not computed, when that is quicker; else computed."""
    for block_s, loaded in ((1e-9, True), (1e9, False)):
        world = World(2, 20, 8, 0, offload=OffloadCapacity(12, block_s, 5))
        chance = random.Random(5)
        first, other = (tuple(chance.randint(1, 99) for _ in range(90)) for _ in range(2))
        for name, prompt in (("a", first), ("b", other), ("c", first)):
            params = SamplingParams(max_tokens=4, ignore_eos=True)
            world.handle(SequencesArrived((NewSequence(name, prompt, params, prefix_root=ROOTS[0]),)))
            world.run_dry()
        assert world.outputs["a"] == world.outputs["c"]
        assert (world.fake.loaded > 0) == loaded
        stats = world.scheduler.stats.offload
        assert (stats.saved, stats.loaded) == (world.fake.saved, world.fake.loaded)
        assert (stats.refused > 0) != loaded
