"""Finds the first stop string in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


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
