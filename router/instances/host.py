"""What a link tells the one who gave it sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router.instances.placement import Placement
from tidepipe_common.errors import TidePipeError


class StayHost(Protocol):
    """Hears how stays go on, and gets sequences back. No call blocks."""

    def began(self, placement: Placement) -> None:
        """A sequence has got its first token."""
        ...

    def ended(self, placement: Placement) -> None:
        """The sequence has ended, and with it the stay."""
        ...

    def give_back(self, placements: Sequence[Placement], reason: str) -> None:
        """These stays are over and their sequences need another; what had begun there is lost."""
        ...

    def refused(self, placement: Placement, error: TidePipeError) -> None:
        """The stay is over, and the sequence can run nowhere."""
        ...

    def wake(self) -> None:
        """An instance came, went, or has room again."""
        ...
