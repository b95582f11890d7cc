"""The state of one pipeline, shared by scheduler and policy: sequences, memory, batches, steps in flight."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from controller.scheduler.actions import Action, PhaseSwitched, Preempted, PrefixFound, Reason
from controller.scheduler.admission import AdmissionController, AdmissionRules, WaitingQueue
from controller.scheduler.awaited import AwaitedPrefixes
from controller.scheduler.block_store import BlockStore, Found
from controller.scheduler.decode import DecodeBatches, MicroBatch
from controller.scheduler.expectation import SeenLengths
from controller.scheduler.holdings import HeldPrefixes
from controller.scheduler.offload import NO_OFFLOAD, OffloadCapacity, SecondTier
from controller.scheduler.overflow import OverflowMargin
from controller.scheduler.passing_on import PassingOn
from controller.scheduler.preemption import Newest, VictimChoice
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.stats import SchedulerStats
from controller.scheduler.steps import StepBook
from tidepipe_common.latency.dispatch import DISPATCH_S, MeasuredDispatch
from tidepipe_common.latency.model import StepCost
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.plan import Phase

ANY_TOKENS = 1 << 30
EXPLAIN_EVERY_S = 1.0
"""At most so often a phase that goes on is explained anew."""


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Settings of one instance's scheduler.

    context_length: tokens of one sequence at most. block_size: tokens per KV block.
    prefill_tokens: tokens of one prefill step at most; longer prompts are computed in chunks.
    microbatches: decode micro-batches; 0 leaves it to the policy.
    prefix_caching: KV blocks are shared by sequences that begin alike, and kept for those to come.
    max_sequences: running and waiting together; beyond it the queue is full.
    histories: the stages must be told all tokens of a sequence that begins.
    signals: the last stage tells the length signals of prompts (`tidepipe_common/types/length_signal.py`).
    dispatch_s: what a step costs beside computing, until that was measured.
    """

    context_length: int
    eos_token_ids: tuple[int, ...]
    block_size: int = BLOCK_SIZE
    prefill_tokens: int = 256
    microbatches: int = 0
    max_sequences: int = 8192
    admission: AdmissionRules = field(default_factory=AdmissionRules)
    victims: VictimChoice = field(default_factory=Newest)
    prefix_caching: bool = True
    histories: bool = False
    signals: bool = False
    dispatch_s: float = DISPATCH_S


class PipelineState:
    """The sequences of one pipeline and everything they hold. Policies act through its methods."""

    def __init__(self, config: SchedulerConfig, cost: StepCost | None = None) -> None:
        """cost: of steps, to tell whether loading a block from the second tier is quicker than computing."""
        self.config = config
        self.tier: SecondTier | None = None
        self._cost = cost
        self.stats = SchedulerStats()
        self.holdings = HeldPrefixes(config.block_size) if config.prefix_caching else None
        self.prompt_pace = PromptPace()
        self.dispatch = MeasuredDispatch(config.dispatch_s)
        self.passing_on = PassingOn()
        self.waiting = WaitingQueue(AwaitedPrefixes(config.block_size, self.find))
        self.running: dict[str, Sequence] = {}
        self.prefilling: list[Sequence] = []
        self.seen = SeenLengths()
        self.steps = StepBook(config.eos_token_ids, histories=config.histories, signals=config.signals)
        self.stages = 0
        self.phase = Phase.IDLE
        self.phase_since = 0.0
        self._told_at = 0.0
        self.decoding_at_start = 0
        self.background_tokens = ANY_TOKENS
        """Prompt tokens of background sequences that a step may have."""
        self._background_left = ANY_TOKENS
        self.actions: list[Action] = []
        self.allocator = BlockStore(0, config.block_size, self.stats.reuse)
        self.margin = OverflowMargin(config.admission.overflow)
        self.admission = AdmissionController(
            config.admission, self.allocator, config.context_length, self.margin
        )
        self.batches = DecodeBatches(1)

    def adopt(self, config: SchedulerConfig) -> None:
        """Another policy's settings from now on; memory and what it holds stay."""
        self.config = config
        self.admission.adopt(config.admission)

    def start_epoch(
        self, stages: int, kv_blocks: int, microbatches: int, offload: OffloadCapacity = NO_OFFLOAD
    ) -> None:
        """The stages are ready, with empty KV pools."""
        self.stages = stages
        self.allocator = BlockStore(kv_blocks, self.config.block_size, self.stats.reuse)
        self.allocator.listener = self.holdings
        if offload.slots:
            self.tier = SecondTier(offload, self.config.block_size, self.stats.offload)
            self.allocator.below = self.steps.tier = self.tier
        self.admission = AdmissionController(
            self.config.admission, self.allocator, self.longest_sequence, self.margin
        )
        self.batches = DecodeBatches(microbatches)

    def end_epoch(self) -> list[Sequence]:
        """The stages are lost: all that ran waits again; returns it."""
        self.allocator.clear()
        self.tier = self.steps.tier = None
        lost = list(self.running.values())
        for sequence in lost:
            self._forget_progress(sequence)
            sequence.preemptions += 1
        self.waiting.expect_again()
        self.waiting.put_back(lost)
        self.running.clear()
        self.prefilling.clear()
        self.steps.reset()
        self.batches = DecodeBatches(1)
        self.stages = 0
        return lost

    def forget_prefixes(self) -> None:
        """Nothing that was computed until now is found any more; what runs keeps its blocks."""
        self.allocator.clear()
        self.waiting.expect_again()

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that context and KV pool allow."""
        if not self.stages:
            return self.config.context_length
        return min(self.config.context_length, self.allocator.capacity_tokens)

    @property
    def arriving(self) -> int:
        """Sequences whose prefill is not done yet, and goes on."""
        stopped = sum(s.background for s in self.prefilling) if self.background_tokens <= 0 else 0
        return len(self.running) - len(self.batches) - stopped

    # -- sequences ----------------------------------------------------------------------------------

    def find(self, keys: Many[bytes]) -> Found:
        """How many leading blocks are here: in memory, and behind that in the second tier."""
        found = self.allocator.find(keys)
        return Found(found.blocks + self._loadable(keys, found.blocks), found.used)

    def _loadable(self, keys: Many[bytes], begin: int) -> int:
        """How many blocks from the one at `begin` on are sooner loaded than computed."""
        if self.tier is None or begin == len(keys):
            return 0
        return self.tier.worth_loading(keys, begin, self._cost, self.config.prefill_tokens).blocks

    def fits(self, candidate: Sequence, beside: int = 0) -> bool:
        """May it be admitted now? beside: sequences that hold blocks and do not run yet."""
        found = self.find(self.waiting.prefixes.keys_of(candidate))
        candidate.expected_cached = found.blocks * self.config.block_size
        return self.admission.fits(candidate, len(self.running) + beside, self.seen.belief, found.used)

    def take_prompts(self, budget: int, *, whole: bool = False) -> list[tuple[Sequence, int]]:
        """Prompt tokens for one step: the prompt under way first, then what may be admitted.

        whole: do not cut a prompt that would fit into a step of its own. Returns (sequence, tokens) pairs;
        `planned` of each is moved on already.
        """
        chunks: list[tuple[Sequence, int]] = []
        self._background_left = self.background_tokens
        left = budget
        while left > 0 and (sequence := self._next_to_prefill(left if whole and chunks else 0)):
            left -= self._cut(sequence, left, chunks)
        return chunks

    def prompts_under_way(self, budget: int) -> list[tuple[Sequence, int]]:
        """Prompt tokens for one step as above, but nobody is admitted."""
        chunks: list[tuple[Sequence, int]] = []
        self._background_left = self.background_tokens
        while budget > 0 and (sequence := self._under_way()) is not None:
            budget -= self._cut(sequence, budget, chunks)
        return chunks

    def _under_way(self) -> Sequence | None:
        """Whose prompt goes on; those that nobody waits for behind the others, as far as they may."""
        if not self.prefilling or not self.prefilling[0].background:
            return self.prefilling[0] if self.prefilling else None
        waited_for = next((s for s in self.prefilling if not s.background), None)
        return waited_for or (self.prefilling[0] if self._background_left > 0 else None)

    def _cut(self, sequence: Sequence, most: int, chunks: list[tuple[Sequence, int]]) -> int:
        """Append its next chunk; how many tokens that has."""
        count = min(most, sequence.length - sequence.planned)
        if sequence.background:
            count = min(count, self._background_left)
            self._background_left -= count
        chunks.append((sequence, count))
        sequence.planned += count
        # Steps travel in the order of dispatch, so whoever comes next may read these blocks.
        self._enter(sequence, sequence.planned)
        if sequence.planned == sequence.length:
            self.prefilling.remove(sequence)
        return count

    def _next_to_prefill(self, longest: int) -> Sequence | None:
        """The sequence whose prompt is under way, or the next one that may be admitted.

        longest: a new one must not be longer than this; 0 for any.
        """
        under_way, candidate = self._under_way(), self.waiting.first
        if under_way is not None and (not under_way.background or candidate is None or candidate.background):
            return under_way
        if candidate is None or (candidate.background and self._background_left <= 0):
            return under_way
        if not self.fits(candidate) or (longest and candidate.to_compute > longest):
            return under_way
        self.waiting.take()
        self.admit(candidate)
        return candidate

    def admit(self, sequence: Sequence) -> None:
        """It has left the waiting line: give it blocks; its prompt is the last of those under way."""
        sequence.state = State.PREFILL
        sequence.key = self.steps.new_key()
        sequence.admitted_order = sequence.key
        self.running[sequence.sequence_id] = sequence
        self.prefilling.append(sequence)
        loads = self._reuse(sequence)
        # All blocks of the prompt at once: a prompt under way never starves.
        self.extend(sequence)
        if loads:
            self._load(sequence, loads)
        self.admission.admitted(sequence, self.seen.belief)

    def reserve(self, sequence: Sequence) -> int:
        """Give one that does not run yet blocks for all its tokens, to be filled from elsewhere but for the
        first ones, which are here already; how many those are."""
        sequence.key = self.steps.new_key()
        sequence.admitted_order = sequence.key
        for payer in self.allocator.acquire(sequence, self.waiting.prefixes.keys_of(sequence)):
            self.relieved(payer)
        self.admission.shared()
        found = len(sequence.blocks)
        sequence.entered_blocks = found
        self.extend(sequence)
        self.admission.admitted(sequence, self.seen.belief)
        return found

    def unreserve(self, sequence: Sequence) -> None:
        """The reverse: nothing comes of it."""
        self.admission.left(sequence)
        self._forget_progress(sequence)

    def filled(self, sequence: Sequence, computed: int) -> bool:
        """So many positions are in the blocks that were reserved for it: it runs. True if it decodes."""
        sequence.fetched = True
        sequence.planned = sequence.begins_at = computed
        sequence.cached_tokens = min(computed, len(sequence.prompt))
        self.running[sequence.sequence_id] = sequence
        # Only now may others share them.
        self._enter(sequence, computed)
        if sequence.output and computed == sequence.length - 1:
            sequence.planned = sequence.length
            self.steps.arrived.add(sequence)
            return True
        sequence.state = State.PREFILL
        self.prefilling.append(sequence)
        return False

    def relieved(self, payer: object) -> None:
        """It shares now what it paid for until now."""
        if isinstance(payer, Sequence):
            self.admission.admitted(payer, self.seen.belief)

    def resume(self, sequence: Sequence, computed: int) -> None:
        """It has left the waiting line, and so many of its tokens are computed: an engine says so that owns
        the blocks itself."""
        self.admit(sequence)
        sequence.planned = computed
        self._enter(sequence, computed)
        if sequence.output and computed >= sequence.length - 1:
            self.prefilling.remove(sequence)
            sequence.planned = sequence.length
            sequence.decodes()
            self.batches.add(sequence)

    def _reuse(self, sequence: Sequence) -> int:
        """Begin with the blocks that are here already; how many behind them are to be loaded."""
        keys = self.waiting.prefixes.keys_of(sequence)
        for payer in self.allocator.acquire(sequence, keys):
            self.relieved(payer)
        self.admission.shared()
        here = len(sequence.blocks)
        loads = 0
        if self.tier is not None:
            verdict = self.tier.worth_loading(keys, here, self._cost, self.config.prefill_tokens)
            self.stats.offload.note(verdict)
            loads = min(verdict.blocks, self.tier.room())
        found = (here + loads) * self.config.block_size
        sequence.planned = sequence.begins_at = found
        sequence.entered_blocks = here
        if sequence.prefix_root:
            self.stats.reuse.asked_tokens += sequence.length
            self.stats.reuse.found_tokens += found
            self.stats.reuse.found_again_tokens += 0 if sequence.cached_tokens is None else found
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(found, len(sequence.prompt))
            if found:
                self.actions.append(PrefixFound(sequence.sequence_id, sequence.cached_tokens))
        return loads

    def _load(self, sequence: Sequence, count: int) -> None:
        """Let the next plan fill its first new blocks from the second tier; others may share them then."""
        assert self.tier is not None
        begin = sequence.entered_blocks
        keys = self.waiting.prefixes.keys_of(sequence)
        self.tier.load(keys[begin : begin + count], sequence.blocks[begin : begin + count])
        self._enter(sequence, sequence.planned)

    def _enter(self, sequence: Sequence, computed: int) -> None:
        """Let its blocks be found, of which so many tokens are computed or on their way."""
        full = computed // self.config.block_size
        if sequence.prefix_root and full > sequence.entered_blocks:
            keys = sequence.keys_until(computed, self.config.block_size)
            self.allocator.enter(sequence.blocks, keys, sequence.entered_blocks, full)
            sequence.entered_blocks = full

    def leave(self, sequence: Sequence, batch: MicroBatch | None = None) -> None:
        """Take a running sequence out of whatever holds it; probably `batch`, if given."""
        del self.running[sequence.sequence_id]
        if sequence.state is State.PREFILL and sequence in self.prefilling:
            self.prefilling.remove(sequence)
        self.batches.discard(sequence, batch)
        self.admission.left(sequence)
        self.steps.release(sequence)
        if sequence.state is State.DECODE:
            # Its output as well: a conversation goes on behind it. The newest token may not be computed yet.
            self._enter(sequence, sequence.length - 1)
        self._forget_progress(sequence)

    def _forget_progress(self, sequence: Sequence) -> None:
        self.allocator.release(sequence)
        self.admission.shared()
        self.steps.unsent_blocks.discard(sequence)
        self.steps.arrived.discard(sequence)
        sequence.fetched = False
        sequence.room = 0
        sequence.state = State.WAITING
        sequence.planned = sequence.begins_at = sequence.entered_blocks = 0
        sequence.told_blocks = 0
        sequence.key = 0
        sequence.next_check_length = 0

    def preempt(self, sequence: Sequence, reason: Reason) -> None:
        """Take its KV blocks; what cannot be found of it then will be recomputed."""
        self.leave(sequence)
        sequence.preemptions += 1
        self.stats.preemptions += 1
        self.waiting.put_back([sequence])
        reason = reason.with_numbers(to_compute=sequence.to_compute, cached=sequence.expected_cached)
        self.actions.append(Preempted(sequence.sequence_id, reason))

    # -- steps --------------------------------------------------------------------------------------

    def make_room(self, batch: MicroBatch) -> None:
        """Give every member a block for its next token, preempting (recompute) if there are not enough."""
        travelling: set[Sequence] | None = None
        while len(short := self._without_block(batch)) > self.allocator.free:
            if travelling is None:
                travelling = self.steps.travelling()
            decoding = [s for s in self.running.values() if s.state is State.DECODE]
            lesser = [s for s in decoding if s.background and s not in travelling]
            victim = max(lesser, key=lambda s: s.admitted_order, default=None)
            if victim is None or len(lesser) == len(decoding):
                victim = self.config.victims.choose(decoding, travelling)
            if victim is None or victim in travelling:
                # Nobody may lose blocks now, or an older one would for a newer one's sake:
                # whoever lacks a block sits this step out.
                loser = max(short, key=lambda s: s.admitted_order)
                batch.members.remove(loser)
                self.batches.add(loser)
            else:
                numbers = {"needed": len(short), "free": self.allocator.free, "length": victim.length}
                self.preempt(victim, Reason("KV blocks ran out", numbers))
        # At once, or prompts that are admitted into the same step would take them.
        for sequence in short:
            self.extend(sequence)

    def _without_block(self, batch: MicroBatch) -> list[Sequence]:
        """Members without room for their next token; each lacks one block, as it grows by one token."""
        return [s for s in batch.members if s.room < s.length]

    def extend(self, sequence: Sequence) -> None:
        """Give it blocks for all its tokens."""
        self.allocator.extend(sequence, sequence.length)
        sequence.room = len(sequence.blocks) * self.allocator.block_size
        self.steps.unsent_blocks.add(sequence)

    def send(
        self, batch: MicroBatch | None, chunks: list[tuple[Sequence, int]], *, members: bool = True
    ) -> None:
        """Dispatch a step of the batch's members (unless they wait) and prompt tokens."""
        decodes = batch is not None and members and bool(batch.members)
        phase = Phase.MIXED if decodes and chunks else Phase.DECODE if decodes else Phase.PREFILL
        if batch is not None:
            batch.in_flight = True
        rows = batch.members if batch is not None and members else []
        self.actions.append(self.steps.build(phase, batch, rows, chunks))
        if rows:
            self.admission.forecast.advance(len(rows) / max(1, len(self.batches)))

    def send_apart(self, members: list[Sequence]) -> None:
        """Dispatch a decode step of these, in whichever batch they are; they have the blocks for it."""
        self.actions.append(self.steps.build(Phase.DECODE, None, members, []))
        self.admission.forecast.advance(len(members) / max(1, len(self.batches)))

    def explain(self, reason: Reason, now: float) -> None:
        """Say anew why the present phase is as it is, if what is said has changed, and not all the time."""
        if reason.text != self.stats.last_switch.text and now - self._told_at >= EXPLAIN_EVERY_S:
            self._told_at = now
            self.stats.last_switch = reason
            self.actions.append(PhaseSwitched(self.phase, self.phase, reason))

    def turn(self, phase: Phase, reason: Reason, now: float) -> None:
        """Go over to another phase, and say why: with prompts also what they take and what is there of it."""
        if phase is self.phase:
            return
        if self.waiting and phase in (Phase.PREFILL, Phase.MIXED):
            to_compute = sum(sequence.to_compute for sequence in self.waiting)
            cached = sum(sequence.expected_cached for sequence in self.waiting)
            reason = reason.with_numbers(to_compute=to_compute, cached=cached)
        self.actions.append(PhaseSwitched(self.phase, phase, reason))
        self._told_at = now
        self.stats.count_switch(self.phase, phase, reason)
        self.phase, self.phase_since = phase, now
        used = self.allocator.used * self.allocator.block_size
        self.stats.forecast_accuracy.end(self.admission.forecast, used, self.allocator.capacity_tokens)
        if phase is Phase.DECODE:
            self.decoding_at_start = len(self.running)
            self.margin.filled(self.stats.preemptions, full=bool(self.waiting))
            self.stats.forecast_accuracy.begin(self.admission.forecast)
