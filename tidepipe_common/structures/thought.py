"""Thoughts of bounded length: where the next token must be, or must not be.

Like a grammar's, the state is a function of the output alone, so that it survives whatever its sequence does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tidepipe_common.types.thought import ThoughtMarks


class ThoughtState:
    """One sequence's place in, or behind, its thought."""

    def __init__(self, marks: ThoughtMarks, most: int, output: Iterable[int]) -> None:
        """most: tokens of thoughts, all of them together."""
        self._marks = marks
        self._left = most
        self._thinking = marks.open
        self._forced: deque[int] = deque()
        self._last: deque[int] = deque(maxlen=max(1, len(marks.begins)))
        self._end_if_used_up()
        for token_id in output:
            self.append(token_id)

    @property
    def forced(self) -> int | None:
        """The only token that may come next, if there is such."""
        return self._forced[0] if self._forced else None

    @property
    def barred(self) -> int | None:
        """The token with which another thought would begin, when there is to be none."""
        begins = self._marks.begins
        if self._left or self._forced or self._thinking or not begins:
            return None
        if len(begins) == 1:
            return begins[0]
        return begins[1] if self._last and self._last[-1] == begins[0] else None

    def append(self, token_id: int) -> None:
        """The token was sampled."""
        self._last.append(token_id)
        if self._forced:
            if token_id == self._forced[0]:
                self._forced.popleft()
            return  # else a form did not allow it yet, such as within a character
        if self._thinking:
            if token_id in self._marks.ends:
                self._thinking = False
                return
            self._left -= 1
            self._end_if_used_up()
        elif self._marks.begins and tuple(self._last) == self._marks.begins:
            self._thinking = True
            self._end_if_used_up()

    def _end_if_used_up(self) -> None:
        if self._thinking and self._left <= 0:
            self._left = 0
            self._thinking = False
            self._forced.extend(self._marks.forced)
