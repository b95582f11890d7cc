"""What is sent, and when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tidepipe_common.types.request import ChatTurn, Prompt
from workloads.arrivals import MIXES, Arrivals, requests_at
from workloads.files import open_workload
from workloads.mixes import SimRequest, Workload

FIRST_RANDOM_TOKEN = 100
"""Below it many vocabularies have special tokens."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """due: seconds after the run's start. output_tokens: exactly so many."""

    due: float
    prompt: Prompt
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Where requests come from. vocab_size: random prompts have token ids below it."""

    workload: Workload
    arrivals: Arrivals
    seed: int
    vocab_size: int

    def requests(self, rate: float, count: int) -> list[LoadRequest]:
        """`count` requests at `rate` per second; the same for the same seed, and lengths at any rate."""
        chosen = requests_at(self.workload, self.arrivals, rate, count, self.seed).requests
        chance = np.random.default_rng([self.seed, 17])
        return [LoadRequest(one.arrival_s, self._prompt(one, chance), one.output_tokens) for one in chosen]

    def _prompt(self, one: SimRequest, chance: np.random.Generator) -> Prompt:
        """Its text, if the source has it, else random tokens: no two requests share a beginning."""
        if one.text is not None:
            return one.text
        low = min(FIRST_RANDOM_TOKEN, self.vocab_size - 1)
        return tuple(chance.integers(low, self.vocab_size, one.prompt_tokens).tolist())


def read_load_workload(source: str, seed: int, max_prompt: int, max_total: int) -> Workload:
    """A workload file or the name of a synthetic mix, without what is longer than the limits (tokens)."""
    if source in MIXES and not Path(source).exists():
        found = MIXES[source](5000, seed)
    else:
        found = open_workload(source, None, seed)
    return found.within(max_prompt, max_total)


def is_chat(prompt: Prompt) -> bool:
    """True for conversations."""
    return not isinstance(prompt, str) and isinstance(prompt[0], ChatTurn)
