"""The text of one answer: decoded as tokens come, ended by stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from router.requests.text_port import Detokenizer
from router.scheduler.output_log import TextLog
from router.text.stop_strings import StopMatcher


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
