"""When to prefill and when to decode: policies as values.

A policy sees numbers only and answers with a verdict that carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from controller.core.actions import Reason


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may look at. Times in seconds, memory in KV blocks.

    oldest_wait: how long the first waiting sequence has been held up by the present phase.
    decoding_at_start: sequences that decoded when the present decode phase began.
    """

    stages: int
    microbatches: int
    waiting: int
    oldest_wait: float
    decoding: int
    decoding_at_start: int
    blocks_free: int
    blocks_total: int
    next_fits: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and why."""

    yes: bool
    reason: Reason


class PhasePolicy(Protocol):
    """Decides the turns of the phases. Prefill always ends when nothing more can be admitted."""

    @property
    def name(self) -> str:
        """As users choose it."""
        ...

    def turn_to_prefill(self, situation: Situation) -> Verdict:
        """While decoding with sequences waiting: is it time for a prefill phase?"""
        ...


@dataclass(frozen=True, slots=True)
class TemporalPolicy:
    """Long phases, few switches: TD-Pipe's temporal disaggregation with hysteresis.

    refill_below: prefill again when the decoding sequences shrank to this share of the phase's start.
    small_batch: micro-batches below this many sequences waste the device (it reads all weights for few
        tokens), so waiting prompts go first.
    max_wait_s: nobody waits longer than this for the end of a decode phase, if there is room.
    """

    refill_below: float = 0.8
    small_batch: int = 16
    max_wait_s: float = 2.0
    name: str = "td-pipe"

    def turn_to_prefill(self, situation: Situation) -> Verdict:
        """See the class; without room for the next sequence the answer is always no."""
        s = situation
        if not s.next_fits:
            return Verdict(False, Reason("no KV blocks for the next prompt", {"free": s.blocks_free}))
        if s.decoding == 0:
            return Verdict(True, Reason("nothing left to decode", {"waiting": s.waiting}))
        batch = s.decoding / s.microbatches
        if batch < self.small_batch:
            numbers = {"batch": batch, "small": self.small_batch, "waiting": s.waiting}
            return Verdict(True, Reason("decode batches are small", numbers))
        share = s.decoding / max(s.decoding_at_start, 1)
        if share < self.refill_below:
            numbers = {"left": share, "threshold": self.refill_below, "waiting": s.waiting}
            return Verdict(True, Reason("decode batches have shrunk", numbers))
        if s.oldest_wait > self.max_wait_s:
            numbers = {"wait_s": s.oldest_wait, "limit_s": self.max_wait_s, "waiting": s.waiting}
            return Verdict(True, Reason("a prompt has waited long enough", numbers))
        return Verdict(False, Reason("decode batches are still full", {"left": share}))


def make_policy(name: str) -> PhasePolicy | None:
    """The policy of that name, None if there is none. `auto` is the best one known."""
    return TemporalPolicy() if name in ("auto", "td-pipe") else None
