"""What a link tells the one who gave it sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from common.errors import TidePipeError
from router.instances.placement import Placement

if TYPE_CHECKING:
    from router.instances.link import InstanceLink
    from tidepipe.v1 import controller_pb2


class LinkHost(Protocol):
    """Gets sequences and reports from links. No call blocks."""

    def reported(self, link: InstanceLink, report: controller_pb2.InstanceReport) -> None:
        """The instance says how it stands."""
        ...

    def silent(self, link: InstanceLink) -> None:
        """The instance says nothing any more."""
        ...

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
