"""Blocks of prompts that go ahead of their sequences, which are to go on at another instance.

Where that is known when a sequence comes, its blocks are granted as soon as the first step with them is
sent, and the grant grows with each further one: so they can be sent while the prompt is computed, as
Splitwise (arXiv 2311.18677) and Mooncake (arXiv 2407.00079) do layer by layer, and few are left when its
first token is there. Who fetches them finds them by their content; the hand-over itself (`hand_over.py`) does
not depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.scheduler.actions import Announced, Dispatch, Grant, GrantGrown, Reason
from controller.scheduler.grants import Grants
from controller.scheduler.passing_on import FEW
from controller.scheduler.sequence import Sequence
from controller.scheduler.state import PipelineState
from tidepipe_common.types.kv_transfer import LEASE_S, KvGrant

_AHEAD = "/ahead"


@dataclass(slots=True)
class _Announced:
    """key: of its stay in memory. told: blocks that can be fetched, or will be when steps are done."""

    ticket: str
    key: int
    told: int


class Announcements:
    """Of one instance. Pure; `note` after every plan."""

    def __init__(self, grants: Grants) -> None:
        self.announced = 0
        """Sequences, since start."""
        self._grants = grants
        self._told: dict[Sequence, _Announced] = {}

    def note(self, state: PipelineState, now: float) -> None:
        """Tell what the steps compute that are about to be sent; end what stays here after all."""
        for sequence in [one for one, told in self._told.items() if _stays(one, told)]:
            self.ended(sequence, state)
        for action in tuple(state.actions):
            if isinstance(action, Dispatch):
                step = state.steps.open(action.plan.step_id)
                prompts = zip(step.rows[step.decode_rows :], action.plan.listed, strict=True)
                for sequence, row in prompts:
                    if sequence.ahead:
                        end = row.first_position + row.count
                        self._computing(sequence, end, action.plan.step_id, state, now)

    def _computing(
        self, sequence: Sequence, end: int, step_id: int, state: PipelineState, now: float
    ) -> None:
        """end: positions that are computed with this step; others may have been sent behind it."""
        size = state.config.block_size
        # The block of its last token is the hand-over's own: so there is something left to go with it.
        total = (len(sequence.prompt) - 1) // size
        full = min(total, end // size)
        known = self._told.get(sequence)
        if known is None and (sequence.output or not (total and sequence.prefix_root)):
            sequence.ahead = ""
            return
        told = 0 if known is None else known.told
        if full <= told:
            return
        blocks, until = tuple(sequence.blocks[told:full]), now + LEASE_S
        if known is not None:
            known.told = full
            if not self._grants.renew(sequence.sequence_id + _AHEAD, until):
                self.ended(sequence, state)  # its lease has ended between two steps
                return
            state.actions.append(GrantGrown(KvGrant(known.ticket, blocks, step_id)))
            return
        self.announced += 1
        self._told[sequence] = _Announced(sequence.ahead, sequence.key, full)
        name, whole = sequence.sequence_id + _AHEAD, sequence.blocks[:total]
        self._grants.give(name, sequence.ahead, whole, until, state, lent=False)
        state.actions.append(
            Announced(
                sequence.sequence_id,
                Grant(
                    KvGrant(sequence.ahead, blocks, step_id, total),
                    total * size,
                    LEASE_S,
                    sequence.keys_until(total * size, size)[total - 1].hex(),
                ),
                Reason("its prompt is begun, and it is to go on elsewhere", {"blocks": total}),
            )
        )

    def left(self, sequence: Sequence) -> None:
        """It goes on elsewhere: what was granted stands until it is given back, or its lease ends."""
        self._told.pop(sequence, None)

    def ended(self, sequence: Sequence, state: PipelineState) -> None:
        """It does not go anywhere."""
        sequence.ahead = ""
        if self._told.pop(sequence, None) is not None:
            self._grants.end(sequence.sequence_id + _AHEAD, "it does not go on elsewhere", state)

    def release(self, sequence_id: str, state: PipelineState) -> None:
        """Nobody needs the blocks of one that has left any more."""
        self._grants.end(sequence_id + _AHEAD, "given back", state)

    def stages_lost(self) -> None:
        """There is nothing to fetch any more; it is not announced a second time."""
        for sequence in self._told:
            sequence.ahead = ""
        self._told.clear()


def _stays(sequence: Sequence, told: _Announced) -> bool:
    """Has nobody asked for it, or has it lost its blocks?"""
    return len(sequence.output) > FEW or sequence.key != told.key
