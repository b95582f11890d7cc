"""A whole answer's parts, put together: for doors that say it at once, and as what streams add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Reader, Thought, Words


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call. index: as in its parts. arguments: one JSON object."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer: its reasoning, what it says, which tools it calls, and the reader's warning."""

    thought: str
    words: str
    calls: tuple[Call, ...] = ()
    warning: str = ""


class Gathering:
    """Takes parts as they come."""

    def __init__(self) -> None:
        self._thought: list[str] = []
        self._words: list[str] = []
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}
        self._ended: list[int] = []

    def add(self, parts: Iterable[Part]) -> None:
        """The next parts."""
        for part in parts:
            match part:
                case Thought(text):
                    self._thought.append(text)
                case Words(text):
                    self._words.append(text)
                case CallBegins(index, name):
                    self._names[index] = name
                    self._arguments[index] = []
                case CallArguments(index, text):
                    self._arguments[index].append(text)
                case CallEnds(index):
                    self._ended.append(index)

    def spoken(self, warning: str = "") -> Spoken:
        """All of them together. A call that never ended is none: its text is among the words."""
        calls = (Call(index, self._names[index], "".join(self._arguments[index])) for index in self._ended)
        return Spoken("".join(self._thought), "".join(self._words), tuple(calls), warning)


def read_whole(reader: Reader, text: str) -> Spoken:
    """The answer whose text this is."""
    gathering = Gathering()
    gathering.add(reader.feed(text))
    gathering.add(reader.end())
    return gathering.spoken(reader.warning)
