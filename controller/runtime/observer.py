"""Who looks on while a scheduler decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controller.scheduler.actions import Action
from controller.scheduler.events import Event


class SchedulerObserver(Protocol):
    """Sees what the scheduler hears and decides; metrics are made of it."""

    def note(self, event: Event, actions: Sequence[Action], now: float, seconds: float) -> None:
        """An event, what followed from it, and how many seconds the decision took."""
        ...
