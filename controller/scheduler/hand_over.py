"""Sequences that go on at another instance, and those that come from one, with their KV blocks.

Whoever leaves is taken out between two tokens; its blocks stay, pinned, under a ticket, until the router
says that they are not needed any more, or their lease ends. Whoever comes waits, in a line of its own that
no policy sees, until it fits; then its blocks are filled from elsewhere while others compute, but for those
that are found here by their content. It decodes on as soon as they are here, or is computed anew if they do
not come, and where that is quicker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller.scheduler.actions import Fetch, Grant, HandedOver, Reason, TakenOver
from controller.scheduler.announcements import Announcements
from controller.scheduler.fetch_rule import WHY_FETCHED, Fetching, FetchRule, timeout_s
from controller.scheduler.grants import Grants, Held
from controller.scheduler.loans import Loans, waited_s
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import PipelineState
from tidepipe_common.latency.model import StepCost
from tidepipe_common.latency.transfer import TransferCosts
from tidepipe_common.types.kv_transfer import KvFetched, KvGrant


@dataclass(slots=True)
class HandOverStats:
    """All since start. handed_over, taken_over: sequences, the latter also where most of one was here already
    and the rest is computed; recomputed: that came with blocks, in vain.

    fetched_blocks, found_blocks: of those that came: fetched, and not sent because their content was here.
    fetched_bytes, fetch_s: of whole fetches, and how long they took, each by itself.
    expired: grants that nobody gave back before their lease ended.
    """

    handed_over: int = 0
    taken_over: int = 0
    recomputed: int = 0
    fetched_blocks: int = 0
    found_blocks: int = 0
    fetched_bytes: int = 0
    fetch_s: float = 0.0
    expired: int = 0


@dataclass(slots=True)
class _Leaving:
    ticket: str
    lease_s: float
    reason: str


@dataclass(slots=True)
class _Arriving:
    """A fetch under way. sequence: None if it has ended meanwhile; the blocks are held then."""

    sequence: Sequence | None
    held: Held
    fetching: Fetching
    found: int
    count: int


@dataclass(slots=True)
class _InLine:
    """One that came and has no memory yet. until: its lease. ahead_until: how long it waits for blocks that
    went ahead of it, if such are on their way."""

    until: float
    sequence: Sequence
    ahead_until: float | None = None


class HandOver:
    """Of one instance. Pure; who leaves by `leave`, who comes by `arrive`, and `plan` after every event."""

    def __init__(self, cost: StepCost | None, transfers: TransferCosts, mode: str = "auto") -> None:
        """cost: of steps; None: unknown. transfers: what fetches take.

        mode: auto fetches where computing would take more time, from it and from those who decode here;
            always: whatever can be; never: nothing.
        """
        self.rule = FetchRule(cost, transfers, mode)
        self.stats = HandOverStats()
        self.grants = Grants()
        self.loans = Loans(self.rule, self.grants)
        self.announcements = Announcements(self.grants)
        self._leaving: dict[Sequence, _Leaving] = {}
        self._line: list[_InLine] = []
        self._fetches: dict[int, _Arriving] = {}

    @property
    def transfers(self) -> TransferCosts:
        """What fetches take."""
        return self.rule.transfers

    @property
    def users(self) -> list[Held]:
        """Whoever uses blocks without being a sequence that runs (for checks)."""
        arriving = [one.held for one in self._fetches.values() if one.held.blocks]
        return self.grants.held + arriving + self.loans.held

    @property
    def fetching(self) -> list[Sequence]:
        """Sequences that hold blocks which are being filled."""
        return [one.sequence for one in self._fetches.values() if one.sequence is not None]

    # -- leaving ------------------------------------------------------------------------------------

    def leave(
        self, sequences: Iterable[tuple[Sequence, str]], lease_s: float, reason: str, state: PipelineState
    ) -> None:
        """They are to go on elsewhere. Prompts under way are not continued here."""
        for sequence, ticket in sequences:
            self._leaving.setdefault(sequence, _Leaving(ticket, lease_s, reason))
            if sequence.state is State.PREFILL and sequence in state.prefilling:
                state.prefilling.remove(sequence)

    def ready_to_leave(self, state: PipelineState) -> list[Sequence]:
        """Those that are between two tokens now."""
        if not self._leaving:
            return []
        travelling = state.steps.travelling()
        return [sequence for sequence in self._leaving if sequence not in travelling]

    def hand_out(self, sequence: Sequence, state: PipelineState, now: float) -> None:
        """Pin the blocks of one that leaves now, which its end is about to free."""
        leaving = self._leaving.pop(sequence)
        self.grants.end(sequence.sequence_id, "it was here once more", state)
        computed = _computed(sequence)
        reusable = not (sequence.silent or sequence.sampling.reads_prompt)
        numbers = {"output": len(sequence.output), "computed": computed}
        self.stats.handed_over += 1
        state.passing_on.left(len(sequence.output) - sequence.given)
        if not (leaving.ticket and reusable and computed > 0):
            reason = Reason(leaving.reason or "handed over", numbers)
            state.actions.append(HandedOver(sequence.sequence_id, None, reason))
            return
        self.announcements.left(sequence)
        blocks = sequence.blocks[: state.allocator.blocks_for(computed)]
        self.grants.give(
            sequence.sequence_id, leaving.ticket, blocks, now + leaving.lease_s, state, lent=False
        )
        state.actions.append(
            HandedOver(
                sequence.sequence_id,
                Grant(KvGrant(leaving.ticket, tuple(blocks)), computed, leaving.lease_s),
                Reason(leaving.reason or "handed over", {**numbers, "blocks": len(blocks)}),
            )
        )

    def release(self, sequence_id: str, state: PipelineState) -> None:
        """Nobody needs the blocks of that one any more."""
        self.grants.end(sequence_id, "given back", state)
        self.announcements.release(sequence_id, state)

    # -- coming -------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence, state: PipelineState, now: float) -> bool:
        """One that comes, perhaps with a handle. False: it is to wait like any other."""
        if self.loans.arrive(sequence, state, now):
            return True
        handle = sequence.kv
        if handle is None or self.rule.mode == "never" or not handle.ticket:
            sequence.kv = None
            return False
        sequence.state = State.FETCHED
        self._line.append(_InLine(now + handle.lease_s, sequence))
        return True

    def plan(self, state: PipelineState, now: float) -> list[Sequence]:
        """End what is over, and begin what can be; those that are to be computed after all."""
        self.stats.expired += self.grants.expire(state, now)
        self.loans.plan(state, now)
        given_up: list[Sequence] = []
        line, self._line = self._line, []
        for index, one in enumerate(line):
            if self._awaits(one, state, now):
                self._line.append(one)
                continue
            why = self._not_worth(one.sequence, one.until, state, now)
            if why is not None:
                given_up.append(self._give_up(one.sequence, why, state, self._found(one.sequence, state)))
            elif not self._begin(one.sequence, state, now):
                # In turn: who comes later may not take its memory.
                self._line += line[index:]
                break
        return given_up

    def _awaits(self, one: _InLine, state: PipelineState, now: float) -> bool:
        """Are blocks on their way that went ahead of it, and not too late?"""
        handle = one.sequence.kv
        assert handle is not None, "it came with one"
        if not self.loans.coming(state.waiting.prefixes.keys_of(one.sequence), state):
            return False
        if one.ahead_until is None:
            nbytes = state.allocator.blocks_for(handle.computed) * handle.block_bytes
            one.ahead_until = now + waited_s(self.rule.expected_s(handle, nbytes, now))
        return now < min(one.ahead_until, one.until)

    @staticmethod
    def _found(sequence: Sequence, state: PipelineState) -> int:
        """Its leading blocks that are here."""
        return state.allocator.find(state.waiting.prefixes.keys_of(sequence)).blocks

    def _not_worth(self, sequence: Sequence, until: float, state: PipelineState, now: float) -> Reason | None:
        """Why it should rather be computed here."""
        handle = sequence.kv
        assert handle is not None, "it came with one"
        if now >= until:
            return Reason("its lease has ended before there was memory")
        computed = min(handle.computed, sequence.length - 1)
        found = self._found(sequence, state)
        missing = max(0, state.allocator.blocks_for(computed) - found)
        begin = found * state.config.block_size
        if computed <= begin:
            return Reason("all of it is here already", {"found": begin})
        others, chunk = len(state.running), state.config.prefill_tokens
        nbytes = missing * handle.block_bytes
        rest = missing < found
        return self.rule.against(
            handle, begin, computed - begin, nbytes, others=others, chunk=chunk, now=now, rest=rest
        )

    def _give_up(self, sequence: Sequence, why: Reason, state: PipelineState, found: int = 0) -> Sequence:
        """Nothing is fetched for it. found: blocks of it that are here."""
        sequence.kv = None
        sequence.state = State.WAITING
        here = found * state.config.block_size
        if 2 * here > sequence.length:
            # They went ahead of it, and what is left are a few tokens of a step.
            self.stats.taken_over += 1
            self.stats.found_blocks += found
        else:
            self.stats.recomputed += 1
        state.actions.append(TakenOver(sequence.sequence_id, 0, why, here))
        return sequence

    def _begin(self, sequence: Sequence, state: PipelineState, now: float) -> bool:
        """Give it memory, and have it filled. False: there is no room yet."""
        handle = sequence.kv
        assert handle is not None, "it came with one"
        if not state.fits(sequence, beside=len(self._fetches)):
            return False
        computed = min(handle.computed, sequence.length - 1)
        found = state.reserve(sequence)
        blocks = tuple(sequence.blocks[found : state.allocator.blocks_for(computed)])
        if state.tier is not None:
            state.tier.overwritten(blocks)
        nbytes = len(blocks) * handle.block_bytes
        fetching = self.rule.begin(handle, nbytes, now, rest=len(blocks) < found)
        predicted = fetching.predicted_s
        self._fetches[sequence.key] = _Arriving(sequence, Held(), fetching, found, len(blocks))
        numbers = {"blocks": len(blocks), "found": found, "bytes": nbytes, "predicted_s": predicted}
        state.actions.append(
            Fetch(
                sequence.key,
                sequence.sequence_id,
                handle,
                found,
                blocks,
                state.steps.last_step,
                timeout_s(predicted),
                Reason(WHY_FETCHED[self.rule.mode], numbers),
            )
        )
        return True

    def fetched(self, news: KvFetched, state: PipelineState, now: float) -> tuple[Sequence, int] | None:
        """A fetch has ended: whose, and how many positions are in its blocks; 0: it is to be computed. None:
        nobody waits for it any more."""
        if self.loans.fetched(news, state, now):
            return None
        arriving = self._fetches.pop(news.fetch_id, None)
        if arriving is None:
            return None
        reason = self.rule.ended(arriving.fetching, news, now)
        if not news.error:
            self.stats.fetched_blocks += arriving.count
            self.stats.found_blocks += arriving.found
            self.stats.fetched_bytes += news.nbytes
            self.stats.fetch_s += news.seconds
        sequence = arriving.sequence
        if sequence is None:
            state.allocator.release(arriving.held)
            state.admission.shared()
            return None
        handle, sequence.kv = sequence.kv, None
        assert handle is not None, "it came with one"
        reason = replace(reason, numbers={**reason.numbers, "found": arriving.found})
        if news.error:
            self._give_up(sequence, reason, state)
            state.unreserve(sequence)
            return sequence, 0
        computed = min(handle.computed, sequence.length - 1)
        self.stats.taken_over += 1
        state.actions.append(TakenOver(sequence.sequence_id, computed, reason))
        return sequence, computed

    # -- ends ---------------------------------------------------------------------------------------

    def ended(self, sequence: Sequence, state: PipelineState) -> None:
        """One that came, or is to leave, has ended."""
        self._leaving.pop(sequence, None)
        self.announcements.ended(sequence, state)
        if sequence.state is not State.FETCHED:
            return
        self.loans.ended(sequence)
        self._line = [one for one in self._line if one.sequence is not sequence]
        arriving = self._fetches.get(sequence.key) if sequence.key else None
        if arriving is not None:
            # Its blocks are being written to.
            arriving.sequence = None
            state.allocator.pin(arriving.held, sequence.blocks)
            state.unreserve(sequence)

    def stages_lost(self, state: PipelineState) -> list[Sequence]:
        """Nothing is held and nothing comes any more; those that came, to be computed."""
        self.grants.stages_lost(state)
        self.announcements.stages_lost()
        came: list[Sequence] = []
        for arriving in self._fetches.values():
            if arriving.sequence is None:
                state.allocator.release(arriving.held)
                continue
            came.append(self._give_up(arriving.sequence, Reason("stages lost"), state))
            state.unreserve(arriving.sequence)
        self._fetches.clear()
        self.loans.stages_lost(state)
        self.transfers.interrupted()
        return came


def _computed(sequence: Sequence) -> int:
    """Positions whose keys and values are in its blocks, while no step with it is in flight."""
    return sequence.length - 1 if sequence.state is State.DECODE else sequence.planned
