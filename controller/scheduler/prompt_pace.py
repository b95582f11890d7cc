"""The share of its time that an instance spends on prompts."""

from __future__ import annotations

import math

MEMORY_S = 20.0
"""Seconds of work after which most of what was computed before is forgotten."""
LONGEST_STEP_S = 2.0
"""A longer pause between two results was idleness."""
PRIOR_S = 1.0
"""Of decoding, that an instance is taken to have done before its first step."""


class PromptPace:
    """Prompt tokens that were computed lately, and in how much time; exponentially forgotten.

    Idle time does not count: an instance that was idle spends all its time on prompts when many come at once,
    and what decodes will be as slow as that makes it.
    """

    def __init__(self) -> None:
        self._apart = 0.0
        self._riding = 0.0
        self._busy_s = 0.0
        self._noted = float("-inf")

    def computed(self, tokens: int, *, riding: bool, now: float) -> None:
        """A step is done that had so many prompt tokens, or none. riding: together with decode steps."""
        passed = max(0.0, min(now - self._noted, LONGEST_STEP_S))
        kept = math.exp(-passed / MEMORY_S)
        self._apart = self._apart * kept + (0 if riding else tokens)
        self._riding = self._riding * kept + (tokens if riding else 0)
        self._busy_s = self._busy_s * kept + passed
        self._noted = now

    def decoded(self, steps: int, first_end: float, last_end: float) -> None:
        """So many steps without prompts, one after the other: as if each had been told, but for rounding."""
        self.computed(0, riding=False, now=first_end)
        passed = last_end - first_end
        if steps < 2 or passed <= 0.0:
            return
        each = passed / (steps - 1)
        kept = math.exp(-passed / MEMORY_S)
        self._apart *= kept
        self._riding *= kept
        self._busy_s = self._busy_s * kept + each * (1.0 - kept) / -math.expm1(-each / MEMORY_S)
        self._noted = last_end

    def share(self, apart_s: float, riding_s: float) -> float:
        """From 0 to 1, for such times of one token in a step of its own, and on a decode step."""
        spent = self._apart * apart_s + self._riding * riding_s
        return min(1.0, spent / (self._busy_s + PRIOR_S))

    @property
    def tokens_s(self) -> float:
        """Prompt tokens a second of work."""
        return (self._apart + self._riding) / (self._busy_s + PRIOR_S)
