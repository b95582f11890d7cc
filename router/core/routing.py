"""Where a sequence goes: what a policy sees, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SequenceFacts:
    """What is known of a sequence that needs an instance. Counts of tokens.

    output_tokens: those it has already, from a stay at another instance.
    """

    prompt_tokens: int
    output_tokens: int
    max_tokens: int

    @property
    def longest(self) -> int:
        """Prompt and output together, if the output grows as long as it may."""
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance that takes new sequences now, as the router knows it.

    sequences: those that the router has there. max_sequences: as many as it accepts.
    tokens: prompt and output so far of those sequences.
    context_length: prompt and output of one sequence together at most; instances may differ.
    """

    instance_id: str
    sequences: int
    max_sequences: int
    tokens: int
    context_length: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A routing decision that explains itself: `reason` in words, `numbers` that it rests on."""

    instance_id: str
    reason: str
    numbers: Mapping[str, float]


class RoutingPolicy(Protocol):
    """Decides where sequences go. Holds no I/O; time comes in as `now` (seconds, monotonic)."""

    def choose(self, sequence: SequenceFacts, instances: Sequence[InstanceView], now: float) -> Choice | None:
        """An instance for the sequence, or None: it waits until the instances have changed."""
        ...
