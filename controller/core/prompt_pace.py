"""The share of its time that an instance spends on prompts."""

from __future__ import annotations

import math

MEMORY_S = 20.0
"""Seconds after which most of what was computed is forgotten."""


class PromptPace:
    """Prompt tokens that were computed lately, exponentially forgotten."""

    def __init__(self) -> None:
        self._apart = 0.0
        self._riding = 0.0
        self._noted = 0.0

    def computed(self, tokens: int, *, riding: bool, now: float) -> None:
        """A step had so many prompt tokens. riding: on a decode step."""
        kept = self._kept(now)
        self._apart = self._apart * kept + (0 if riding else tokens)
        self._riding = self._riding * kept + (tokens if riding else 0)
        self._noted = now

    def share(self, now: float, apart_s: float, riding_s: float) -> float:
        """From 0 to 1, for such times of one token in a step of its own, and on a decode step."""
        spent = (self._apart * apart_s + self._riding * riding_s) * self._kept(now)
        return min(1.0, spent / MEMORY_S)

    def _kept(self, now: float) -> float:
        return math.exp(-max(0.0, now - self._noted) / MEMORY_S)
