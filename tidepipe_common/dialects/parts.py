"""What the text of an answer consists of: thought, words for the reader, and calls of tools.

Every door (chats, responses, messages, the SDK) says the same parts in its own form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Thought:
    """New text of the model's reasoning, without the marks around it."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """New text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A tool is called. index: calls of this answer before it."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """New text of a call's arguments; the pieces together are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """The arguments are complete."""

    index: int


Part = Thought | Words | CallBegins | CallArguments | CallEnds


class Reader(Protocol):
    """Reads one answer as it comes. However its text is cut into pieces, the parts together are the same."""

    def feed(self, text: str) -> Sequence[Part]:
        """The parts that are certain now that `text` has come; the rest is held back."""
        ...

    def end(self) -> Sequence[Part]:
        """What was held back, now that nothing more comes."""
        ...

    @property
    def warning(self) -> str:
        """What looked like a call and was none, in a sentence; empty: nothing."""
        ...
