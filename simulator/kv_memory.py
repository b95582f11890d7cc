"""KV memory of an instance in virtual time: the controller's own block store, and tokens for what decodes.

Prompts have blocks, as live. Outputs grow by a token in each of many rounds that are one stroke, so they are
counted together, and take blocks from the store as one user does; when a sequence leaves, as many of these
become its own, so that all it has computed can be found by the next turn of its conversation.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.scheduler.awaited import AwaitedKeys
from controller.scheduler.block_store import BlockStore, HoldingsListener
from controller.scheduler.forecast import KvForecast
from controller.scheduler.grants import Held
from controller.scheduler.policies.catalog import WATERMARK
from simulator.job import NOT_YET, Job
from tidepipe_common.settings.defaults import BLOCK_SIZE


class _Outputs:
    """What all that decode have computed beyond their prompts; a BlockUser."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.shared_blocks = 0
        self.tokens = 0


class KvMemory:
    """Accounts in tokens, but for what is shared."""

    def __init__(self, tokens: int, context: int) -> None:
        """context: tokens of one sequence at most."""
        self._store = BlockStore(tokens // BLOCK_SIZE, BLOCK_SIZE)
        self._outputs = _Outputs()
        self._awaited = AwaitedKeys(self._store.find)
        self._context = context
        self.forecast = KvForecast(BLOCK_SIZE, min(context, self.total))

    @property
    def total(self) -> int:
        """Tokens."""
        return self._store.capacity_tokens

    @property
    def used(self) -> int:
        """Tokens in use, shared ones once; the outputs' last block as far as it is filled."""
        return self.total - self.free

    @property
    def free(self) -> int:
        """Tokens that can be computed before memory runs out; below 0 if more were."""
        return (self._store.free + len(self._outputs.blocks)) * BLOCK_SIZE - self._outputs.tokens

    @property
    def context(self) -> int:
        """Tokens that are read: shared ones by each that shares them."""
        return self._store.context_tokens

    def listen(self, listener: HoldingsListener) -> None:
        """Who hears what can be found."""
        self._store.listener = listener

    # -- beginnings that travel ---------------------------------------------------------------------

    def find(self, keys: Sequence[bytes]) -> int:
        """Blocks with the leading keys that are here."""
        return self._store.find(keys).blocks

    def hold(self, keys: Sequence[bytes], blocks: int) -> Held:
        """Pin those with these keys, and take others that are to be filled: so many together."""
        held = Held()
        self._store.pin(held, self._store.blocks_of(keys))
        self._store.extend(held, blocks * BLOCK_SIZE)
        self._store.disown(held)
        return held

    def seal(self, held: Held, keys: Sequence[bytes], begin: int) -> None:
        """The blocks from that one on are filled: they are found, and nobody's."""
        self._store.enter(held.blocks, keys, begin, len(keys))
        self._store.release(held)

    def let_go(self, held: Held) -> None:
        """Nobody needs them pinned."""
        self._store.release(held)

    # -- prompts ------------------------------------------------------------------------------------

    def wait(self, job: Job) -> None:
        """A request waits: what is here, or what one that waits will compute, it is expected to find."""
        job.expected_cached = self._awaited.add(job.findable_keys) * BLOCK_SIZE

    def admit(self, job: Job, *, alone: bool, longest: int) -> bool:
        """Take memory for a prompt; what is found of it is computed already. False if it has to wait.

        alone: nobody else would give any back. longest: it must have no more tokens to compute; 0 for any.
        """
        if not self._fits(job, alone=alone):
            return False
        if longest and job.to_compute - max(job.computed, job.expected_cached) > longest:
            return False
        self._awaited.remove(job.findable_keys)
        self._take(job)
        return True

    def reserve(self, job: Job, *, alone: bool) -> bool:
        """Take memory for one whose blocks are fetched; False if it has to wait."""
        if not self._fits(job, alone=alone):
            return False
        self._take(job)
        return True

    def _fits(self, job: Job, *, alone: bool) -> bool:
        store = self._store
        found = store.find(job.findable_keys)
        job.expected_cached = found.blocks * BLOCK_SIZE
        needed = store.blocks_for(job.to_compute + 1) - found.used
        return needed <= store.free and (alone or store.used + needed <= WATERMARK * store.total)

    def _take(self, job: Job) -> None:
        store = self._store
        store.acquire(job, job.findable_keys)
        store.extend(job, job.to_compute)
        job.entered_blocks, job.begins_at = job.expected_cached // BLOCK_SIZE, job.expected_cached
        job.computed = max(job.computed, job.begins_at)
        if job.first == NOT_YET:
            job.cached = min(job.begins_at, job.prompt)
        self.foresee(job, job.generated)

    def computed(self, job: Job) -> None:
        """Others find its blocks that are full by now."""
        self._enter(job, job.computed)

    # -- what is to come ----------------------------------------------------------------------------

    def foresee(self, job: Job, produced: int) -> None:
        """Its part in the forecast, with so many tokens of output: once it is here, and when that is due."""
        own = job.prompt + produced - job.shared_blocks * BLOCK_SIZE
        allowed = self._context - job.prompt - produced
        job.review_at = self.forecast.put(job.index, own, produced, job.belief, allowed)

    def peak_with(self, waiting: Sequence[Job]) -> float:
        """Tokens in use at the forecast peak if all of these were admitted now."""
        self.forecast.unpaid = float(self._store.unpaid * BLOCK_SIZE)
        tokens = sum(job.to_compute - job.expected_cached for job in waiting)
        rest = sum(job.belief.remaining(job.generated) for job in waiting)
        return self.forecast.peak_with_mean(tokens, rest, len(waiting))

    # -- outputs ------------------------------------------------------------------------------------

    def grow(self, tokens: int) -> None:
        """Outputs have so many tokens more. What there is no memory for is owed."""
        self._outputs.tokens += tokens
        most = (self._store.free + len(self._outputs.blocks)) * BLOCK_SIZE
        self._store.extend(self._outputs, min(self._outputs.tokens, most))

    def leave(self, job: Job, grown: int) -> None:
        """It has ended, or gives way. grown: tokens of its output that are counted among the outputs."""
        self._gather(job, grown)
        self._store.release(job)
        self._shrink()

    def hand_out(self, job: Job, grown: int) -> Held:
        """It goes on elsewhere: its blocks are nobody's until they are let go."""
        self._gather(job, grown)
        held = Held([*job.blocks], job.shared_blocks)
        job.blocks.clear()
        job.shared_blocks = 0
        self._store.disown(held)
        self._shrink()
        return held

    def _gather(self, job: Job, grown: int) -> None:
        """All that it has computed is in its own blocks."""
        self.forecast.remove(job.index)
        outputs = self._outputs
        outputs.tokens -= grown
        wanted = self._store.blocks_for(job.to_compute - 1) - len(job.blocks)
        spare = len(outputs.blocks) - self._store.blocks_for(outputs.tokens)
        for _ in range(min(wanted, spare)):
            job.blocks.append(outputs.blocks.pop())
        # The newest token is not computed.
        self._enter(job, min(job.to_compute - 1, len(job.blocks) * BLOCK_SIZE))

    def _shrink(self) -> None:
        """Blocks that the outputs of the others do not need are free."""
        outputs = self._outputs
        kept = self._store.blocks_for(outputs.tokens)
        if len(outputs.blocks) > kept:
            rest = _Outputs()
            rest.blocks, outputs.blocks = outputs.blocks[kept:], outputs.blocks[:kept]
            self._store.release(rest)

    def check(self, jobs: Sequence[Job], held: Sequence[Held] = ()) -> None:
        """AssertionError unless all invariants hold, these being all requests, and all that is held besides
        (for tests)."""
        self._store.check([*jobs, *held, self._outputs])

    def _enter(self, job: Job, computed: int) -> None:
        full = computed // BLOCK_SIZE
        if job.keys and full > job.entered_blocks:
            self._store.enter(job.blocks, job.keys, job.entered_blocks, full)
            job.entered_blocks = full
