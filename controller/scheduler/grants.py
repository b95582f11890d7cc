"""KV blocks of an instance that others may fetch: pinned until they are given back, or their lease ends."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from controller.scheduler.actions import GrantEnded
from controller.scheduler.state import PipelineState


@dataclass(slots=True, eq=False)
class Held:
    """Blocks that no sequence of this instance needs, and that nobody may write to."""

    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0


@dataclass(slots=True)
class _Pinned:
    ticket: str
    until: float
    held: Held
    lent: bool


class Grants:
    """By the names of those whose blocks they are. lent: of beginnings that others' prompts have as well."""

    def __init__(self) -> None:
        self._grants: dict[str, _Pinned] = {}

    def __len__(self) -> int:
        """Those that stand."""
        return len(self._grants)

    @property
    def held(self) -> list[Held]:
        """What they pin."""
        return [grant.held for grant in self._grants.values()]

    @property
    def lent_blocks(self) -> int:
        """Of loans; one that is lent several times counts as often."""
        return sum(len(grant.held.blocks) for grant in self._grants.values() if grant.lent)

    def give(
        self, name: str, ticket: str, blocks: Many[int], until: float, state: PipelineState, *, lent: bool
    ) -> None:
        """Pin blocks; whoever has the ticket may fetch them until then."""
        self.end(name, "it was here once more", state)
        held = Held()
        for payer in state.allocator.pin(held, blocks):
            state.relieved(payer)
        state.admission.shared()
        self._grants[name] = _Pinned(ticket, until, held, lent)

    def end(self, name: str, why: str, state: PipelineState) -> None:
        """Nobody needs them any more."""
        grant = self._grants.pop(name, None)
        if grant is not None:
            state.actions.append(GrantEnded(grant.ticket, why))
            state.allocator.release(grant.held)
            state.admission.shared()

    def renew(self, name: str, until: float) -> bool:
        """One that stands does so until then. False: it does not stand any more."""
        grant = self._grants.get(name)
        if grant is not None:
            grant.until = until
        return grant is not None

    def expire(self, state: PipelineState, now: float) -> int:
        """End those whose lease is over; how many."""
        over = [name for name, grant in self._grants.items() if grant.until <= now]
        for name in over:
            self.end(name, "its lease has ended", state)
        return len(over)

    def stages_lost(self, state: PipelineState) -> None:
        """There is nothing to fetch any more."""
        for held in self.held:
            state.allocator.release(held)
        self._grants.clear()
