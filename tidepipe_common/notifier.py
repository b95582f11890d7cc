"""Waking everyone who waits for a change."""

from __future__ import annotations

import asyncio


class Notifier:
    """A change that any number of tasks wait for.

    Take `next()` before looking at the state, and wait for it after: a change in between is not missed.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set at the next beat."""
        return self._event

    def notify_all(self) -> None:
        """Wake all who wait."""
        event, self._event = self._event, asyncio.Event()
        event.set()
