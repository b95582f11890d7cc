"""Stays of sequences at one instance."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from router.instances.sequence import RoutedSequence
from router.scheduler.slo import INTERACTIVE, SloTarget


class Stay(enum.Enum):
    """How far the handing over of a sequence is."""

    QUEUED = "queued"
    SENT = "sent"
    """The call is under way, or broke: the instance may have it."""
    HELD = "held"
    """The instance has confirmed it."""


@dataclass(slots=True, eq=False)
class Placement:
    """One stay of a sequence at one instance.

    placement_id: its name there. New for every stay, so that late news of a former stay, whose tokens may
    differ in rounding, is never mistaken for news of this one.
    slo: its latency targets. ordinal: how many the link was given up to this one.
    tokens: prompt and output so far, as counted into the instance's load.
    gaps: gaps in a row, without news that fitted. failures: calls that failed for good.
    alone: it is handed over by itself, since a call with it failed.
    """

    placement_id: str
    sequence: RoutedSequence
    stay: Stay = Stay.QUEUED
    slo: SloTarget = INTERACTIVE
    ordinal: int = 0
    tokens: int = 0
    gaps: int = 0
    failures: int = 0
    alone: bool = False


class PlacementTable:
    """The sequences that the router has at one instance, and their load."""

    def __init__(self) -> None:
        self._placements: dict[str, Placement] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._placements)

    def __iter__(self) -> Iterator[Placement]:
        return iter(list(self._placements.values()))

    def get(self, placement_id: str) -> Placement | None:
        """The stay of this name."""
        return self._placements.get(placement_id)

    def add(self, placement: Placement) -> None:
        """Begin a stay."""
        self._placements[placement.placement_id] = placement
        self.recount(placement)

    def recount(self, placement: Placement) -> None:
        """Bring the load up to date after news."""
        tokens = len(placement.sequence.prompt) + len(placement.sequence.output)
        self.tokens += tokens - placement.tokens
        placement.tokens = tokens

    def remove(self, placement: Placement) -> bool:
        """End a stay; False if it had ended already."""
        if self._placements.pop(placement.placement_id, None) is None:
            return False
        self.tokens -= placement.tokens
        return True
