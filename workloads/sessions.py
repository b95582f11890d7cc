"""Synthetic conversations and agents: requests that begin as earlier ones did, and wait for their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from tidepipe_common.errors import ConfigError
from workloads.content import ANSWER, FIRST_PART, Content, content_tokens, joined
from workloads.mixes import SimRequest, Workload

LONGEST = 4
"""Times the mean number of turns: no session has more."""
_MOST = 10_000_000


@dataclass(frozen=True, slots=True)
class SessionMix:
    """What sessions are like. Tokens and seconds are medians, log-normal around them; turns are a mean,
    geometric: after each answer it goes on with the same chance.

    system: of a system prompt, with what tools there are. systems: how many different ones; each session has
        one of them.
    first: of what a session begins with. question: of what follows an answer: the next question, or what a
        tool found. answer: of an output.
    think: seconds from an answer to the next turn: reading and typing, or the tool's.
    spread: of all that, times what is usual; 0 for sessions that are all alike.
    """

    system: int
    systems: int
    turns: float
    first: int
    question: int
    answer: int
    think: float
    spread: float = 1.0

    def draw(self, name: str, count: int, seed: int) -> Workload:
        """Whole sessions, of at least `count` requests."""
        chance = np.random.default_rng([seed, 23])
        requests: list[SimRequest] = []
        part = FIRST_PART + self.systems
        session = 0
        while len(requests) < count:
            system = FIRST_PART + int(chance.integers(self.systems))
            prompt: Content = joined([(system, self.system)])
            for turn in range(self._turns(chance)):
                asked = self._tokens(chance, self.question if turn else self.first, 0.8)
                prompt = joined([*prompt, (part, asked)])
                part += 1
                output = self._tokens(chance, self.answer, 0.6)
                think = self.think * float(np.exp(chance.normal(0.0, 0.7 * self.spread))) if turn else 0.0
                requests.append(
                    SimRequest(content_tokens(prompt), output, content=prompt, session=session, think_s=think)
                )
                prompt = (*prompt, (ANSWER, output))
            session += 1
        return Workload(name, tuple(requests))

    def _turns(self, chance: np.random.Generator) -> int:
        if self.spread == 0:
            return max(1, round(self.turns))
        return int(min(chance.geometric(min(1.0, 1.0 / self.turns)), LONGEST * self.turns))

    def _tokens(self, chance: np.random.Generator, median: int, sigma: float) -> int:
        return max(1, round(median * float(np.exp(chance.normal(0.0, sigma * self.spread)))))


SESSION_MIXES: Mapping[str, SessionMix] = {
    # Chat behind a few system prompts: most of a turn's prompt is what was said before.
    "conversations": SessionMix(
        system=500, systems=4, turns=6, first=80, question=60, answer=180, think=12.0
    ),
    # A coding agent: long instructions and tools, a call of a few tokens, a result of many.
    "agents": SessionMix(system=3000, systems=2, turns=12, first=400, question=500, answer=60, think=3.0),
}


def session_mix(text: str) -> SessionMix | None:
    """`conversations` or `agents`, or either with settings of its own, as in `agents:turns=20,think=1`.

    None if it is neither; ConfigError if a setting is none.
    """
    name, _, rest = text.partition(":")
    known = SESSION_MIXES.get(name)
    if known is None or not rest:
        return known
    kinds = {one.name: int if one.type == "int" else float for one in fields(SessionMix)}
    chosen: dict[str, float] = {}
    for piece in rest.split(","):
        key, _, value = piece.partition("=")
        kind = kinds.get(key.strip())
        if kind is None:
            raise ConfigError(f"{name} has no setting {key.strip()!r}; known: {', '.join(kinds)}")
        try:
            number = kind(value)
        except ValueError:
            number = -1
        least = 0 if key.strip() in ("system", "think", "spread") else 1
        if not least <= number <= _MOST:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{name}: {key.strip()} must be {what} of at least {least}, got {value!r}")
        chosen[key.strip()] = number
    return replace(known, **chosen)  # type: ignore[arg-type]
