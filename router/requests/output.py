"""The output of a sequence so far: tokens (TokenLog), and text, ended by stop strings (AnswerText)."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence

from router.requests.text_port import Detokenizer
from tidepipe_common.types.logprob_log import LogprobLog
from tidepipe_common.types.sampling import PositionLogprobs


class TokenLog:
    """The output tokens of one sequence, and their log-probabilities if asked for.

    News come with an offset, so that what arrives twice after a broken connection is recognised.
    """

    def __init__(self) -> None:
        self.tokens: array[int] = array("I")
        self.logprobs = LogprobLog()

    def __len__(self) -> int:
        return len(self.tokens)

    def merge(self, offset: int, tokens: Sequence[int], logprobs: Sequence[PositionLogprobs]) -> int | None:
        """Append what is new of `tokens`, which begin at `offset`.

        Returns how many were new, or None for a gap: tokens before `offset` are missing here.
        Log-probabilities come one per token or not at all.
        """
        known = len(self.tokens) - offset
        if known < 0:
            return None
        fresh = tokens[known:]
        self.tokens.extend(fresh)
        self.logprobs.extend(logprobs[known:])
        return len(fresh)

    def cut(self, length: int) -> None:
        """Forget all tokens behind the first `length`."""
        del self.tokens[length:]
        self.logprobs.cut(length)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.tokens.itemsize * len(self.tokens) + self.logprobs.bytes


class TextLog:
    """A growing text, kept in the pieces in which it came, so that growing it stays cheap."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def bytes(self) -> int:
        """Memory that it takes, once nothing more will come."""
        return sum(map(sys.getsizeof, self._pieces))

    def append(self, text: str) -> None:
        """Add to the end."""
        if text:
            self._ends.append(len(self) + len(text))
            self._pieces.append(text)

    def read(self, start: int, limit: int) -> str:
        """Up to `limit` characters from position `start` on."""
        first = bisect_right(self._ends, start)
        parts: list[str] = []
        taken = 0
        for piece, end in zip(self._pieces[first:], self._ends[first:], strict=True):
            skipped = max(0, start - (end - len(piece)))
            parts.append(piece[skipped : skipped + limit - taken])
            taken += len(parts[-1])
            if taken == limit:
                break
        return "".join(parts)

    def compact(self) -> None:
        """Join the pieces, once nothing more will come."""
        text = "".join(self._pieces)
        self._pieces, self._ends = [text], [len(text)]


class StopMatcher:
    """Passes text on until a stop string is complete, and holds back only what could still become one.

    The stop string that is complete first wins; of those that end at the same character, the longest. So what
    is emitted and matched does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece; return the text that may be shown, and the stop string if one was found.

        The shown text ends before the stop string. Pieces after a match are dropped.
        """
        if self._matched is not None or not self._stops:
            return ("" if self._matched is not None else text), self._matched
        # All that could be the beginning of a match is held, so every match lies within this buffer.
        buffer = self._held + text
        ends = [
            (begin + len(stop), -len(stop), stop) for stop in self._stops if (begin := buffer.find(stop)) >= 0
        ]
        if ends:
            end, _, self._matched = min(ends)
            self._held = ""
            return buffer[: end - len(self._matched)], self._matched
        held = max(_overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - held :]
        return buffer[: len(buffer) - held], None

    def flush(self) -> str:
        """Return what was held back; call at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins; shorter than `stop`."""
    begin = max(0, len(text) - len(stop) + 1)
    while (begin := text.find(stop[0], begin)) >= 0:
        if stop.startswith(text[begin:]):
            return len(text) - begin
        begin += 1
    return 0


class AnswerText:
    """Feeds tokens through the detokenizer and the stop strings into a log."""

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str], *, min_tokens: int = 0, keep: bool = True
    ) -> None:
        """min_tokens: stop strings count only behind them. keep: False if only the stop strings matter."""
        self.log = TextLog()
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self._has_stops = bool(stops)
        self._unstoppable = min_tokens
        self._keep = keep

    def push(self, token_ids: Sequence[int]) -> tuple[int, str | None]:
        """Take tokens. Returns how many count, and the stop string that the last of these completed."""
        if not self._has_stops:
            self._show(self._detokenizer.push(token_ids))
            return len(token_ids), None
        for count, token_id in enumerate(token_ids, start=1):
            text = self._detokenizer.push((token_id,))
            if self._unstoppable > 0:
                self._unstoppable -= 1
                self._show(text)
                continue
            shown, matched = self._matcher.feed(text)
            self._show(shown)
            if matched is not None:
                return count, matched
        return len(token_ids), None

    def flush(self) -> str | None:
        """The output has ended. Returns a stop string that only its last characters completed."""
        shown, matched = self._matcher.feed(self._detokenizer.flush())
        self._show(shown)
        if matched is None:
            self._show(self._matcher.flush())
        return matched

    def _show(self, text: str) -> None:
        if self._keep:
            self.log.append(text)
