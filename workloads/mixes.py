"""Workloads as lengths: what a simulation needs to know of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tidepipe_common.errors import ConfigError
from tidepipe_common.types.request import Prompt
from workloads.content import ANSWER, Content


@dataclass(frozen=True, slots=True)
class SimRequest:
    """Lengths in tokens. arrival_s: seconds after the first.

    max_tokens: the output limit that the scheduler may know; 0 for none but the context.
    text: the prompt itself, if the source has it, for trained predictors of output lengths.
    content: what the prompt consists of, if others may have parts of it too; empty: all its own.
    session: the conversation that it is a turn of, None for none. A turn comes when the one before it, the
        previous request of that session, has its answer, and think_s seconds later.
    """

    prompt_tokens: int
    output_tokens: int
    max_tokens: int = 0
    arrival_s: float = 0.0
    text: Prompt | None = None
    content: Content = ()
    session: int | None = None
    think_s: float = 0.0


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

    @property
    def in_turns(self) -> bool:
        """Are there requests that wait for another one's answer?"""
        return any(one.session is not None for one in self.requests)

    def within(self, max_prompt: int, max_total: int) -> Workload:
        """Without the requests that are longer, and the turns that would follow them; lengths in tokens."""
        kept: list[SimRequest] = []
        ended: set[int] = set()
        for one in self.requests:
            fits = 1 <= one.prompt_tokens <= max_prompt and one.output_tokens >= 1
            if one.session in ended or not fits or one.prompt_tokens + one.output_tokens > max_total:
                if one.session is not None:
                    ended.add(one.session)
                continue
            kept.append(one)
        if not kept:
            raise ConfigError(f"workload {self.name}: no request fits into {max_total} tokens")
        return Workload(self.name, tuple(kept), self.dropped + len(self.requests) - len(kept))

    def at_once(self) -> Workload:
        """The same with all requests there from the start, but for turns that wait for an answer."""
        return replace(self, requests=tuple(replace(one, arrival_s=0.0) for one in self.requests))

    def sample(self, count: int, seed: int) -> Workload:
        """`count` requests drawn at random, without repetition while there are enough.

        Conversations are drawn as a whole, but for the last one's end; one that comes again shares with its
        first copy what it shares with others. Other requests with content are one stretch of the source: when
        a beginning comes again is part of what it is.
        """
        if self.in_turns:
            return replace(self, requests=tuple(self._drawn_sessions(count, seed)))
        have = len(self.requests)
        if any(one.content for one in self.requests):
            if count > have:
                raise ConfigError(f"the workload {self.name} has {have} requests, {count} are needed")
            begin = int(np.random.default_rng(seed).integers(have - count + 1))
            return replace(self, requests=self.requests[begin : begin + count])
        chance = np.random.default_rng(seed)
        whole = [np.arange(have)] * (count // have)
        drawn = np.concatenate([*whole, chance.choice(have, count % have, replace=False)])
        chance.shuffle(drawn)
        return replace(self, requests=tuple(self.requests[int(i)] for i in drawn))

    def _drawn_sessions(self, count: int, seed: int) -> list[SimRequest]:
        sessions = sessions_of(self.requests)
        own = _parts_of_one(sessions)
        further = 1 + max((part for one in self.requests for part, _ in one.content), default=0)
        drawn: list[SimRequest] = []
        times = Counter[int]()
        for number, index in enumerate(_rounds(len(sessions), seed)):
            if len(drawn) >= count:
                break
            shift = further * times[index]
            times[index] += 1
            drawn += [
                replace(one, session=number, content=_moved(one.content, own, shift))
                for one in sessions[index]
            ]
        return drawn[:count]


def _rounds(have: int, seed: int) -> Iterator[int]:
    """The first `have` numbers in a random order, then in another one, for ever."""
    chance = np.random.default_rng(seed)
    while True:
        yield from chance.permutation(have).tolist()


def sessions_of(requests: Iterable[SimRequest]) -> list[list[SimRequest]]:
    """The turns of each conversation in their order, by first turns; a request of none is one by itself."""
    found: list[list[SimRequest]] = []
    known: dict[int, list[SimRequest]] = {}
    for one in requests:
        if one.session is None or one.session not in known:
            found.append([one])
            if one.session is not None:
                known[one.session] = found[-1]
        else:
            known[one.session].append(one)
    return found


def followers(requests: Sequence[SimRequest]) -> dict[int, int]:
    """The turn that follows each request that has one, by their indexes."""
    last: dict[int, int] = {}
    found: dict[int, int] = {}
    for index, one in enumerate(requests):
        if one.session is not None:
            if one.session in last:
                found[last[one.session]] = index
            last[one.session] = index
    return found


def _parts_of_one(sessions: Sequence[Sequence[SimRequest]]) -> set[int]:
    """Parts that only one of the conversations has."""
    having = Counter(
        part for turns in sessions for part in {part for one in turns for part, _ in one.content}
    )
    return {part for part, count in having.items() if count == 1 and part != ANSWER}


def _moved(content: Content, parts: set[int], by: int) -> Content:
    if not by:
        return content
    return tuple((part + by if part in parts else part, tokens) for part, tokens in content)


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
    sessions = len({one.session for one in requests} - {None})
    where = f" in {sessions} conversations" if sessions else ""
    return (
        f"{len(requests)} requests{where}, prompt mean {prompts.mean():.0f} (max {prompts.max()}), "
        f"output mean {outputs.mean():.0f} (max {outputs.max()})"
    )
