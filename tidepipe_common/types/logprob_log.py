"""Log-probabilities of a growing output, packed: eight bytes a token named, where objects take a hundred.

Values are those of the wire, single precision; they come back exactly.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from tidepipe_common.types.sampling import PositionLogprobs, TokenLogprob


class LogprobLog:
    """Append-only but for `cut`; read by position."""

    def __init__(self) -> None:
        self._ids = array("I")
        self._values = array("f")
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(column.itemsize * len(column) for column in (self._ids, self._values, self._ends))

    def append(self, position: PositionLogprobs) -> None:
        """One more position."""
        for token in (position.chosen, *position.top):
            self._ids.append(token.token_id)
            self._values.append(token.logprob)
        self._ends.append(len(self._ids))

    def extend(self, positions: Iterable[PositionLogprobs]) -> None:
        """More positions."""
        for position in positions:
            self.append(position)

    def read(self, begin: int, end: int) -> tuple[PositionLogprobs, ...]:
        """Positions begin .. end - 1, as far as they are there."""
        return tuple([self._position(index) for index in range(begin, min(end, len(self)))])

    def cut(self, length: int) -> None:
        """Forget all positions behind the first `length`."""
        if length < len(self):
            end = self._begin(length)
            del self._ids[end:]
            del self._values[end:]
            del self._ends[length:]

    def _begin(self, index: int) -> int:
        return self._ends[index - 1] if index else 0

    def _position(self, index: int) -> PositionLogprobs:
        begin, end = self._begin(index), self._ends[index]
        pairs = zip(self._ids[begin:end], self._values[begin:end], strict=True)
        chosen, *top = [TokenLogprob(token_id, value) for token_id, value in pairs]
        return PositionLogprobs(chosen, tuple(top))
