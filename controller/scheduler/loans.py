"""Beginnings of prompts that are computed at one instance and fetched by others, so that load can be spread
without computing them again.

Who lends pins the blocks that it finds under a ticket, as for sequences that leave (`grants.py`); they may
still be on their way through the stages. Who borrows has blocks filled from there that are found by their
content afterwards: the sequence then waits in line like any other, and no policy knows where its beginning
comes from. As in vLLM (KV connectors: requests wait for remote blocks, then are scheduled with them as
computed) and Mooncake (arXiv 2407.00079, section 6: a prefix is fetched where that is quicker).

In the same way blocks come ahead of a sequence that is to go on here (`announcements.py`): nobody waits for
those before it is here itself.

Nothing depends on a fetch: what does not come, or not in time, is computed.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from controller.scheduler.actions import Fetch, Grant, PrefixLent, Reason, TakenOver
from controller.scheduler.events import PrefixAsked, PrefixOffered
from controller.scheduler.fetch_rule import MOST_TIMEOUT_S, WHY_FETCHED, Fetching, FetchRule, timeout_s
from controller.scheduler.grants import Grants, Held
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import PipelineState
from tidepipe_common.prefix import block_keys
from tidepipe_common.types.kv_transfer import KvFetched, KvGrant, KvHandle

LENT, BORROWED = 0.5, 0.25
"""Shares of the blocks that loans pin at most, and that are filled from elsewhere at a time."""
MOST_LOANS = 1024
LEAST_WAIT_S, LATE = 0.5, 3.0


def waited_s(predicted_s: float) -> float:
    """How long a sequence waits for its beginning before it is computed after all."""
    return max(LEAST_WAIT_S, LATE * predicted_s)


@dataclass(slots=True)
class LoanStats:
    """All since start. lent: beginnings that others may fetch. borrowed, borrowed_tokens: that were fetched.

    in_vain: sequences that waited for a beginning which did not come, or too late.
    ahead: that were fetched while they were computed elsewhere.
    """

    lent: int = 0
    borrowed: int = 0
    borrowed_tokens: int = 0
    in_vain: int = 0
    ahead: int = 0


@dataclass(slots=True)
class _Loan:
    """A fetch under way. keys: of the held blocks; none if they are not to be found any more. found: how many
    were here. until: when nobody waits for it any more."""

    held: Held
    keys: list[bytes]
    found: int
    fetching: Fetching
    until: float
    waiting: list[Sequence] = field(default_factory=list)


class Loans:
    """Of one instance. Pure."""

    def __init__(self, rule: FetchRule, grants: Grants) -> None:
        self.stats = LoanStats()
        self._rule = rule
        self._grants = grants
        self._loans: dict[int, _Loan] = {}
        self._coming: dict[bytes, _Loan] = {}
        """By the keys of blocks that are being filled."""

    @property
    def held(self) -> list[Held]:
        """What fetches hold."""
        return [loan.held for loan in self._loans.values()]

    # -- lending ------------------------------------------------------------------------------------

    def lend(self, asked: PrefixAsked, state: PipelineState, now: float) -> None:
        """Pin what is here of a prompt's beginning; the action says what that is."""
        size, store = state.config.block_size, state.allocator
        most = (len(asked.prompt) - 1) // size
        root = bytes.fromhex(asked.prefix_root)
        keys = block_keys(root, asked.prompt[: most * size], size, asked.keys[:most]) if root else []
        blocks = store.blocks_of(keys)
        room = int(LENT * store.total) - self._grants.lent_blocks
        why = ""
        if self._rule.mode == "never" or not asked.ticket:
            why = "KV blocks do not travel here"
        elif not blocks:
            why = "nothing of it is here"
        elif len(blocks) > room or len(self._grants) >= MOST_LOANS:
            why = "as much is lent as may be"
        if why:
            state.actions.append(PrefixLent(asked.loan_id, None, Reason(why)))
            return
        self.stats.lent += 1
        self._grants.give(asked.loan_id, asked.ticket, blocks, now + asked.lease_s, state, lent=True)
        state.actions.append(
            PrefixLent(
                asked.loan_id,
                Grant(
                    KvGrant(asked.ticket, tuple(blocks), state.steps.last_step),
                    len(blocks) * size,
                    asked.lease_s,
                    keys[len(blocks) - 1].hex(),
                ),
                Reason("lent to another instance", {"blocks": len(blocks)}),
            )
        )

    # -- borrowing ----------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence, state: PipelineState, now: float) -> bool:
        """Whether one that comes waits for blocks that are, or will be, under way."""
        handle = sequence.kv
        offered = handle is not None and bool(handle.last_key)
        if offered:
            sequence.kv = None
        if sequence.kv is not None:
            return False  # it goes on here, and has its own line
        if sequence.background or not (offered or self._coming) or not state.stages:
            return False
        keys = state.waiting.prefixes.keys_of(sequence)
        found = state.allocator.find(keys).blocks
        loan = self._coming.get(keys[found]) if found < len(keys) else None
        if loan is None and offered:
            assert handle is not None, "it is offered"
            loan = self._begin(sequence, handle, keys, found, state, now)
        if loan is None or loan.fetching.ahead_of_it or now >= loan.until:
            return False
        sequence.state = State.FETCHED
        loan.waiting.append(sequence)
        return True

    def _begin(
        self,
        sequence: Sequence,
        handle: KvHandle,
        keys: list[bytes],
        found: int,
        state: PipelineState,
        now: float,
    ) -> _Loan | None:
        """Have it fetched; None: it is to be computed."""
        count = handle.computed // state.config.block_size
        if (why := self._obstacle(handle, keys, count, found, state, now)) is not None:
            state.actions.append(TakenOver(sequence.sequence_id, 0, why))
            return None
        return self._fetch(sequence.sequence_id, handle, keys[:count], found, state, now)

    def fetch_ahead(self, offered: PrefixOffered, state: PipelineState, now: float) -> None:
        """Have the blocks of a prompt fetched that another instance is computing."""
        size, handle = state.config.block_size, offered.handle
        root, count = bytes.fromhex(offered.prefix_root), handle.computed // state.config.block_size
        keys = block_keys(root, offered.prompt[: count * size], size, offered.keys[:count]) if root else []
        found = state.allocator.find(keys).blocks
        if self._obstacle(handle, keys, count, found, state, now) is None:
            self._fetch("", handle, keys, found, state, now)

    def coming(self, keys: Many[bytes], state: PipelineState) -> bool:
        """Is a fetch under way of what stands behind the blocks of a chain that are here?"""
        found = state.allocator.find(keys).blocks if self._coming else 0
        return bool(self._coming) and found < len(keys) and keys[found] in self._coming

    def _fetch(
        self,
        name: str,
        handle: KvHandle,
        keys: list[bytes],
        found: int,
        state: PipelineState,
        now: float,
    ) -> _Loan:
        """Have blocks with these keys filled, those behind the ones that were found. name: of the sequence
        that waits for them; empty: they go ahead of it."""
        count = len(keys)
        missing, rule = count - found, self._rule
        held = Held()
        state.allocator.pin(held, state.allocator.blocks_of(keys[:found]))
        blocks = state.allocator.extend(held, count * state.config.block_size)
        state.allocator.disown(held)
        state.admission.shared()
        if state.tier is not None:
            state.tier.overwritten(blocks)
        nbytes = missing * handle.block_bytes
        fetching = rule.begin(handle, nbytes, now, ahead=not name)
        predicted = fetching.predicted_s
        fetch_id = state.steps.new_key()
        loan = _Loan(held, keys, found, fetching, now + waited_s(predicted))
        self._loans[fetch_id] = loan
        self._coming.update(dict.fromkeys(keys[found:], loan))
        what = "a beginning" if name else "ahead of its sequence"
        numbers = {"blocks": missing, "found": found, "bytes": nbytes, "predicted_s": predicted}
        state.actions.append(
            Fetch(
                fetch_id,
                name,
                handle,
                found,
                blocks,
                state.steps.last_step,
                timeout_s(predicted) if name else MOST_TIMEOUT_S,
                Reason(f"{what}: {WHY_FETCHED[rule.mode]}", numbers),
                ahead=not name,
            )
        )
        return loan

    def _obstacle(
        self,
        handle: KvHandle,
        keys: list[bytes],
        count: int,
        found: int,
        state: PipelineState,
        now: float,
    ) -> Reason | None:
        """Why it should rather be computed here."""
        size = state.config.block_size
        missing = count - found
        if self._rule.mode == "never":
            return Reason("nothing is fetched here")
        if missing <= 0 or state.find(keys).blocks >= count:
            return Reason("all of it is here already", {"found": found * size})
        if count > len(keys) or keys[count - 1].hex() != handle.last_key:
            return Reason("another beginning was lent")
        under_way = sum(len(loan.held.blocks) - loan.found for loan in self._loans.values())
        if missing > min(state.allocator.free, int(BORROWED * state.allocator.total) - under_way):
            return Reason("no memory to fetch it into", {"blocks": missing, "free": state.allocator.free})
        if any(key in self._coming for key in keys[found:count]):
            return Reason("a part of it is on its way already")
        others, chunk = len(state.running), state.config.prefill_tokens
        nbytes = missing * handle.block_bytes
        return self._rule.against(
            handle, found * size, missing * size, nbytes, others=others, chunk=chunk, now=now
        )

    def plan(self, state: PipelineState, now: float) -> None:
        """Whoever has waited too long is computed; what comes is kept all the same."""
        for loan in self._loans.values():
            if loan.waiting and now >= loan.until:
                self._let_go(loan, Reason("the blocks are late"), state)

    def fetched(self, news: KvFetched, state: PipelineState, now: float) -> bool:
        """A fetch has ended. False: it was none of ours."""
        loan = self._loans.pop(news.fetch_id, None)
        if loan is None:
            return False
        size = state.config.block_size
        self._forget(loan)
        why = self._rule.ended(loan.fetching, news, now)
        if not news.error:
            if loan.fetching.ahead_of_it:
                self.stats.ahead += 1
            else:
                self.stats.borrowed += 1
                self.stats.borrowed_tokens += (len(loan.held.blocks) - loan.found) * size
            state.allocator.enter(loan.held.blocks, loan.keys, loan.found, len(loan.keys))
        positions = 0 if news.error else len(loan.held.blocks) * size
        state.allocator.release(loan.held)
        state.admission.shared()
        self._let_go(loan, why, state, positions)
        return True

    def _let_go(self, loan: _Loan, why: Reason, state: PipelineState, positions: int = 0) -> None:
        """Those who wait for it wait in line."""
        waiting, loan.waiting = loan.waiting, []
        self.stats.in_vain += 0 if positions else len(waiting)
        for sequence in waiting:
            sequence.state = State.WAITING
            state.actions.append(TakenOver(sequence.sequence_id, positions, why))
            state.waiting.insert(sequence)

    def _forget(self, loan: _Loan) -> None:
        for key in loan.keys[loan.found :]:
            self._coming.pop(key, None)

    # -- ends ---------------------------------------------------------------------------------------

    def forget_prefixes(self) -> None:
        """Nothing that was computed until now is to be found any more."""
        for loan in self._loans.values():
            self._forget(loan)
            loan.keys = []

    def ended(self, sequence: Sequence) -> None:
        """One that waits has ended; what comes is kept all the same."""
        for loan in self._loans.values():
            if sequence in loan.waiting:
                loan.waiting.remove(sequence)

    def stages_lost(self, state: PipelineState) -> None:
        """Nothing comes any more."""
        loans, self._loans = list(self._loans.values()), {}
        self._coming.clear()
        for loan in loans:
            state.allocator.release(loan.held)
            self._let_go(loan, Reason("stages lost"), state)
