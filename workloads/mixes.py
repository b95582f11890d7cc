"""Workloads as lengths: what a simulation needs to know of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.request import Prompt


@dataclass(frozen=True, slots=True)
class SimRequest:
    """Lengths in tokens. arrival_s: seconds after the first.

    max_tokens: the output limit that the scheduler may know; 0 for none but the context.
    text: the prompt itself, if the source has it, for trained predictors of output lengths.
    """

    prompt_tokens: int
    output_tokens: int
    max_tokens: int = 0
    arrival_s: float = 0.0
    text: Prompt | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests under a name. dropped: requests of the source that did not fit the limits."""

    name: str
    requests: tuple[SimRequest, ...]
    dropped: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        """Of all requests."""
        return sum(request.output_tokens for request in self.requests)

    def within(self, max_prompt: int, max_total: int) -> Workload:
        """Without the requests that are longer; lengths in tokens."""
        kept = tuple(
            one
            for one in self.requests
            if 1 <= one.prompt_tokens <= max_prompt
            and one.output_tokens >= 1
            and one.prompt_tokens + one.output_tokens <= max_total
        )
        if not kept:
            raise ConfigError(f"workload {self.name}: no request fits into {max_total} tokens")
        return Workload(self.name, kept, self.dropped + len(self.requests) - len(kept))

    def at_once(self) -> Workload:
        """The same with all requests there from the start."""
        return replace(self, requests=tuple(replace(one, arrival_s=0.0) for one in self.requests))

    def sample(self, count: int, seed: int) -> Workload:
        """`count` requests drawn at random, without repetition while there are enough."""
        chance = np.random.default_rng(seed)
        have = len(self.requests)
        whole = [np.arange(have)] * (count // have)
        drawn = np.concatenate([*whole, chance.choice(have, count % have, replace=False)])
        chance.shuffle(drawn)
        return replace(self, requests=tuple(self.requests[int(i)] for i in drawn))


SYNTHETIC = "sharegpt-like"


def sharegpt_like(count: int, seed: int) -> Workload:
    """Lengths like ShareGPT's within the paper's limits (prompt <= 1,024, together <= 2,048 tokens).

    Log-normal, cut off, on average about 215 prompt and 326 output tokens: most answers are short, a few
    are ten times as long.
    """
    chance = np.random.default_rng(seed)
    requests: list[SimRequest] = []
    while len(requests) < count:
        prompts = chance.lognormal(np.log(146.0), 1.18, 2 * count)
        outputs = chance.lognormal(np.log(232.0), 0.92, 2 * count)
        for prompt, output in zip(prompts.astype(int), outputs.astype(int), strict=True):
            if 4 <= prompt <= 1024 and output >= 4 and prompt + output <= 2048:
                requests.append(SimRequest(int(prompt), int(output)))
    return Workload(SYNTHETIC, tuple(requests[:count]))


def describe(requests: Sequence[SimRequest]) -> str:
    """One line: how many, how long."""
    prompts = np.array([one.prompt_tokens for one in requests])
    outputs = np.array([one.output_tokens for one in requests])
    return (
        f"{len(requests)} requests, prompt mean {prompts.mean():.0f} (max {prompts.max()}), "
        f"output mean {outputs.mean():.0f} (max {outputs.max()})"
    )
