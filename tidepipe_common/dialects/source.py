"""Text that comes in pieces, read by generators that pause where it ends.

A grammar is written as if all of the text were there: a generator function that yields where it needs more.
So what it has read is never read again, and how the text was cut into pieces cannot matter to it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A grammar on its way; each yield waits for more text."""

MAX_HEAD = 4096
"""Characters that a name, a key, a number, or a header may have."""
SPACE = " \t\r\n"
"""JSON's white space."""
_NOT_SPACE = re.compile(r"\S")


class BrokenError(Exception):
    """What is being read is not what its beginning promised. The message says briefly what is wrong."""


class UnknownToolError(BrokenError):
    """A call it is, but of no tool that there is."""


class Source:
    """What has come and is not read yet, and a record of what was read since a certain place."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._before = 0
        self._recorded: list[str] | None = None
        self._record_at = 0

    def feed(self, text: str) -> None:
        """More text; what has been read of the old one is let go."""
        if self._recorded is not None:
            self._recorded.append(self.text[self._record_at : self.at])
            self._record_at = 0
        self._before += self.at
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def position(self) -> int:
        """Characters that have been read, since the first one of all."""
        return self._before + self.at

    def record(self, before: str = "") -> None:
        """From here on, what is read can be had back; `before` is had back with it."""
        self._recorded = [before]
        self._record_at = self.at

    def recorded(self) -> str:
        """What was read since `record`; the record is closed."""
        if self._recorded is None:
            return ""
        text = "".join(self._recorded) + self.text[self._record_at : self.at]
        self._recorded = None
        return text

    def more(self) -> Steps[bool]:
        """True once there is a character to read, False at the end of all text."""
        while self.at >= len(self.text):
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Steps[str]:
        """The next character, unread; empty at the end."""
        if not (yield from self.more()):
            return ""
        return self.text[self.at]

    def skip_space(self) -> Steps[str]:
        """White space is read away; the next character behind it, unread, or empty at the end."""
        while (yield from self.more()):
            found = _NOT_SPACE.search(self.text, self.at)
            if found is not None:
                self.at = found.start()
                return self.text[self.at]
            self.at = len(self.text)
        return ""

    def take(self, mark: str) -> Steps[bool]:
        """True if `mark` comes next, which is read then; otherwise nothing is read."""
        while True:
            rest = self.text[self.at : self.at + len(mark)]
            if rest == mark:
                self.at += len(mark)
                return True
            if self.ended or not mark.startswith(rest):
                return False
            yield

    def take_any(self, marks: Iterable[str]) -> Steps[str]:
        """The first of `marks` that comes next, read; empty if none does."""
        for mark in marks:
            if (yield from self.take(mark)):
                return mark
        return ""

    def until(self, marks: Marks, most: int = MAX_HEAD) -> Steps[tuple[str, str]]:
        """The text before the first of `marks`, and that mark, both read; BrokenError if it is too long."""
        pieces: list[str] = []
        left = most
        while True:
            found = marks.pattern.search(self.text, self.at)
            held = 0 if found is not None or self.ended else marks.begun(self.text, self.at)
            end = len(self.text) - held if found is None else found.start()
            if end - self.at > left:
                self.at += left  # so much, however the text was cut
                raise BrokenError("it has too long a name")
            pieces.append(self.text[self.at : end])
            left -= end - self.at
            self.at = end if found is None else found.end()
            if found is not None:
                return "".join(pieces), found.group()
            if self.ended:
                raise BrokenError("the answer ended in it")
            yield

    def before(self, marks: Marks) -> tuple[str, str]:
        """Text that is certainly before the first of `marks`, and the mark if it has come; both read."""
        found = marks.pattern.search(self.text, self.at)
        if found is not None:
            text = self.text[self.at : found.start()]
            self.at = found.end()
            return text, found.group()
        held = 0 if self.ended else marks.begun(self.text, self.at)
        end = len(self.text) - held
        text, self.at = self.text[self.at : end], end
        return text, ""


class Marks:
    """A few texts that are looked for together. None may begin another."""

    def __init__(self, marks: Iterable[str]) -> None:
        self.all = tuple(dict.fromkeys(marks))
        self.pattern = re.compile("|".join(map(re.escape, self.all)) or r"(?!)")
        self._longest = max(map(len, self.all), default=1)
        self._prefixes = frozenset(mark[:end] for mark in self.all for end in range(1, len(mark)))

    def begun(self, text: str, at: int) -> int:
        """Characters at the end of `text[at:]` with which a mark may have begun; the most of them."""
        for length in range(min(self._longest - 1, len(text) - at), 0, -1):
            if text[len(text) - length :] in self._prefixes:
                return length
        return 0
