"""The pace of a server, as far as it is seen from outside: what routing predicts by. No I/O."""

from __future__ import annotations

import math

from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.work import StepCosts, StepWork
from tidepipe_common.types.plan import Phase

FORGET_TOKENS = 8_000.0
"""Prompt tokens after which half of what was seen before is forgotten."""
DOUBT_S = 5.0
"""While no prompt comes, what was seen counts half as much after each: if a router sends none because they
seem to take too long, the next ones show whether they do."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Pace:
    """Prompt tokens per second of time in which a prompt was waited for, and seconds per round of tokens.

    Nothing counts as free until something was seen, so that nobody is refused by a guess.
    """

    def __init__(self) -> None:
        self._pending = 0
        self._since = 0.0
        self._tokens = 0.0
        self._seconds = 0.0
        self._rounds = LearnedCost()
        self._seen_round = False
        self.first_token_s = 0.0
        """Of the last answers, exponentially weighted."""

    def prompt_token_s(self, now: float) -> float:
        """Seconds per prompt token."""
        if not self._tokens:
            return 0.0
        idle_s = 0.0 if self._pending else max(0.0, now - self._since - DOUBT_S)
        return self._seconds / self._tokens * math.exp2(-idle_s / DOUBT_S)

    def sent(self, now: float) -> None:
        """A prompt went to the server."""
        if not self._pending:
            self._since = now
        self._pending += 1

    def first_token(self, prompt_tokens: int, waited_s: float, now: float) -> None:
        """An answer began."""
        self._settle(now)
        self._tokens += prompt_tokens
        self.first_token_s = waited_s if not self.first_token_s else 0.8 * self.first_token_s + 0.2 * waited_s
        if self._tokens > 2 * FORGET_TOKENS:
            self._tokens, self._seconds = self._tokens / 2, self._seconds / 2

    def gave_up(self, now: float) -> None:
        """A prompt is not waited for any more."""
        self._settle(now)

    def _settle(self, now: float) -> None:
        self._seconds += now - self._since
        self._since = now
        self._pending = max(0, self._pending - 1)

    def round_done(self, running: int, seconds: float) -> None:
        """One of so many answers got its next token after so many seconds."""
        self._seen_round = True
        self._rounds.observe(Phase.DECODE, StepWork(running, 0), seconds)

    def round_s(self, running: int) -> float:
        """Until each of so many answers has its next token."""
        return self._rounds.linear_s(running) if self._seen_round else 0.0

    def costs(self, places: int, now: float) -> StepCosts:
        """In the words of an instance with one stage. places: answers under way at most."""
        seconds, least, token_s = [], 0.0, self.prompt_token_s(now)
        for size in SIZES:
            least = max(least, self.round_s(min(size, places)), size * token_s)
            seconds.append(least)
        return StepCosts(1, SIZES[-1], SIZES, tuple(seconds), 0.0, 0.0)
