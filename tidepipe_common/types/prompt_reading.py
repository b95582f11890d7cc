"""What is read off a prompt itself, and not off what follows it: how likely its tokens were, or a vector.

Columns are bytes, little-endian, as they travel: of a long prompt there are hundreds of thousands of numbers,
and nothing between the stage that reads them and the client's door looks at them.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob

NUMBER_BYTES = 4
"""Of a token id, a rank and a log-probability, and of each number of a vector."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of tokens of a prompt that follow each other.

    first: position of the first of them; nothing says how likely a prompt's first token was, so it is 1 at
        least. top: most likely tokens told of each.
    token_ids, logprobs: of each position the prompt's own token, then the `top` most likely, best first.
    ranks: of the own tokens; 1 is the most likely.
    """

    first: int
    top: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes

    def __len__(self) -> int:
        """How many positions."""
        return len(self.ranks) // NUMBER_BYTES

    @property
    def fits(self) -> bool:
        """True if the columns fit each other."""
        wanted = len(self) * (1 + self.top) * NUMBER_BYTES
        return not len(self.ranks) % NUMBER_BYTES and {len(self.token_ids), len(self.logprobs)} == {wanted}


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """What the last stage read off one sequence's prompt in one step: positions first .. first + count - 1.

    vector: of the whole prompt, with its end. Neither is for journals, nor part of what actions look like.
    """

    key: int
    first: int
    count: int
    prompt_logprobs_read: PromptLogprobs | None = field(default=None, repr=False, compare=False)
    vector: bytes = field(default=b"", repr=False, compare=False)


class PromptLog:
    """Log-probabilities of a prompt as far as they are known; pieces may come more than once."""

    def __init__(self) -> None:
        self.top = 0
        self._token_ids = bytearray()
        self._logprobs = bytearray()
        self._ranks = bytearray()

    def __len__(self) -> int:
        """Positions that are known, from 1 on."""
        return len(self._ranks) // NUMBER_BYTES

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return len(self._token_ids) + len(self._logprobs) + len(self._ranks)

    def merge(self, news: PromptLogprobs) -> bool:
        """Append what is new. False for a gap, or if it cannot go on so: nothing has changed."""
        known = 1 + len(self) - news.first
        if known < 0 or (len(self) and news.top != self.top):
            return False
        self.top = news.top
        wide = known * (1 + self.top) * NUMBER_BYTES
        self._token_ids += news.token_ids[wide:]
        self._logprobs += news.logprobs[wide:]
        self._ranks += news.ranks[known * NUMBER_BYTES :]
        return True

    def read(self, begin: int, end: int) -> PromptLogprobs | None:
        """From the `begin`-th to before the `end`-th of those that are known; None: there is none."""
        end = min(end, len(self))
        if begin >= end:
            return None
        narrow = slice(begin * NUMBER_BYTES, end * NUMBER_BYTES)
        width = (1 + self.top) * NUMBER_BYTES
        wide = slice(begin * width, end * width)
        return PromptLogprobs(
            1 + begin,
            self.top,
            bytes(self._token_ids[wide]),
            bytes(self._logprobs[wide]),
            bytes(self._ranks[narrow]),
        )


@dataclass(frozen=True, slots=True)
class PromptPosition:
    """How likely one token of a prompt was. rank: 1 is the most likely."""

    logprobs: PositionLogprobs
    rank: int


def positions(read: PromptLogprobs) -> list[PromptPosition]:
    """One after the other."""
    ids, values, ranks = array("I", read.token_ids), array("f", read.logprobs), array("I", read.ranks)
    width = 1 + read.top
    found = []
    for number, rank in enumerate(ranks):
        begin = number * width
        pairs = zip(ids[begin : begin + width], values[begin : begin + width], strict=True)
        own, *best = [TokenLogprob(token, value) for token, value in pairs]
        found.append(PromptPosition(PositionLogprobs(own, tuple(best)), rank))
    return found
