"""The choice of who is preempted when KV blocks run out, and will be recomputed."""

from __future__ import annotations

from collections.abc import Sequence as Many
from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from controller.scheduler.sequence import Sequence


class VictimChoice(Protocol):
    """Chooses among decoding sequences; the oldest of several must never be chosen, so that all end."""

    def choose(self, decoding: Many[Sequence], travelling: Set[Sequence]) -> Sequence | None:
        """The victim. travelling: those in a step in flight; one of them means: nobody now; so does None."""
        ...


@dataclass(frozen=True, slots=True)
class Newest:
    """The paper's: last in, first out. The least work is lost if all are alike.

    idle_only: of those that are not in flight, as engines do whose micro-batches keep to themselves.
    """

    idle_only: bool = False

    def choose(self, decoding: Many[Sequence], travelling: Set[Sequence]) -> Sequence | None:
        """See the class."""
        if self.idle_only and len(decoding) > 1:
            return max(_losers(decoding, travelling), key=_order, default=None)
        return max(decoding, key=_order, default=None)


class LeastLost:
    """The one that loses least work (its own tokens are computed again; what it shares stays while others use
    it), of those that can lose blocks now.

    Of equally long ones the newest. The work lost per freed block is the same for all, so what counts is
    not to free more than is needed.
    """

    def choose(self, decoding: Many[Sequence], travelling: Set[Sequence]) -> Sequence | None:
        """See the class."""
        if not decoding:
            return None
        if len(decoding) == 1:
            return decoding[0]
        return min(_losers(decoding, travelling), key=_loss, default=None)


def _losers(decoding: Many[Sequence], travelling: Set[Sequence]) -> list[Sequence]:
    """Who may lose its blocks now: not in flight, and not the oldest, which must get on whatever happens."""
    oldest = min(decoding, key=_order)
    return [s for s in decoding if s is not oldest and s not in travelling]


def _loss(sequence: Sequence) -> tuple[int, int]:
    return sequence.own_tokens, -sequence.admitted_order


def _order(sequence: Sequence) -> int:
    return sequence.admitted_order
