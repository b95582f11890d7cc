"""The requests of a load, and their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidepipe_common.types.request import ChatTurn, Prompt
from workloads.arrivals import Arrivals, requests_at
from workloads.content import ANSWER, Content
from workloads.files import open_workload
from workloads.mixes import SimRequest, Workload, followers

FIRST_RANDOM_TOKEN = 100
"""Below it many vocabularies have special tokens."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """due: seconds after the run's start; of a turn that follows another one, after that one's answer.

    output_tokens: exactly so many. after: index of the request whose turn was before; None if it waits for
        none. followed: another one waits for it.
    answers: where in the prompt, which is token ids then, an earlier turn's answer stands: (place, index).
        Stand-ins of that length are there until it is known.
    """

    due: float
    prompt: Prompt
    output_tokens: int
    after: int | None = None
    followed: bool = False
    answers: tuple[tuple[int, int], ...] = ()

    def with_answers(self, known: Mapping[int, Sequence[int]]) -> LoadRequest:
        """The same with real answers, token ids by request, where they are known."""
        if not self.answers:
            return self
        prompt = [token for token in self.prompt if isinstance(token, int)]
        for place, index in self.answers:
            answer = known.get(index, ())
            prompt[place : place + len(answer)] = answer
        return replace(self, prompt=tuple(prompt))


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
        after = {second: first for first, second in followers(chosen).items()}
        followed = set(after.values())
        turns: dict[int, list[int]] = {}
        requests = []
        for index, one in enumerate(chosen):
            before = after.get(index)
            earlier = [] if before is None else [*turns[before], before]
            turns[index] = earlier
            requests.append(
                LoadRequest(
                    one.arrival_s if before is None else one.think_s,
                    self._prompt(one, chance),
                    one.output_tokens,
                    before,
                    index in followed,
                    _places(one.content, earlier),
                )
            )
        return requests

    def _prompt(self, one: SimRequest, chance: np.random.Generator) -> Prompt:
        """Its text, if the source has it, else random tokens: what is shared is the same, all else is not."""
        if one.text is not None:
            return one.text
        if not one.content:
            return tuple(self._tokens(chance, one.prompt_tokens))
        prompt: list[int] = []
        for part, tokens in one.content:
            prompt += self._tokens(np.random.default_rng([self.seed, 19, part]), tokens)
        return tuple(prompt)

    def _tokens(self, chance: np.random.Generator, count: int) -> list[int]:
        low = min(FIRST_RANDOM_TOKEN, self.vocab_size - 1)
        found: list[int] = chance.integers(low, self.vocab_size, count).tolist()
        return found


def _places(content: Content, earlier: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """earlier: requests whose answers stand in the prompt, in their order."""
    places, at = [], 0
    for part, tokens in content:
        if part == ANSWER:
            places.append(at)
        at += tokens
    return tuple(zip(places, earlier, strict=False))


def read_load_workload(source: str, seed: int, max_prompt: int, max_total: int) -> Workload:
    """A workload file or the name of a synthetic mix, without what is longer than the limits (tokens)."""
    return open_workload(source, None, seed).within(max_prompt, max_total)


def is_chat(prompt: Prompt) -> bool:
    """True for conversations."""
    return not isinstance(prompt, str) and isinstance(prompt[0], ChatTurn)
