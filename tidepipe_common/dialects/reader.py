"""The reader of an answer: tells thought, words and calls apart, whatever the family's way to write calls.

What looked like a call and is none comes back as it was written, as the words or the thought that it stood
in, with a warning. That is also so where its name was already said: the call's parts stop, no CallEnds comes,
and all of its text follows as words; the next call has the next index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidepipe_common.dialects.parts import CallArguments, CallBegins, CallEnds, Part, Thought, Words
from tidepipe_common.dialects.source import SPACE, BrokenError, Marks, Source, Steps, UnknownToolError
from tidepipe_common.dialects.tools import Tools

MAX_SPACE = 64
"""White space before a mark that goes with the mark; so much is held back, what is longer is text."""
MAX_WARNINGS = 8


class Grammar(Protocol):
    """How a family writes its calls."""

    @property
    def opens(self) -> Sequence[str]:
        """Marks, each of which begins calls wherever it stands."""
        ...

    @property
    def bare(self) -> str:
        """Characters with which a call may begin without a mark, as the first of the answer."""
        ...

    @property
    def dropped(self) -> Sequence[str]:
        """Marks that mean nothing where they are found outside of a call."""
        ...

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """Calls behind `mark`, which has been read. BrokenError if they are none."""
        ...


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What stands around a thought: any of `begins`, any of `ends`."""

    begins: tuple[str, ...]
    ends: tuple[str, ...]


class Saying:
    """Where grammars say what they have read."""

    def __init__(self, source: Source, tools: Tools) -> None:
        self.source = source
        self.tools = tools
        self.parts: list[Part] = []
        self.calls = 0
        self.ended = 0

    def say(self, part: Part) -> None:
        """Say the next part."""
        self.parts.append(part)

    def begin(self, name: str) -> None:
        """A call of `name` begins. BrokenError if there is no such tool."""
        if name not in self.tools:
            raise UnknownToolError(f"there is no tool {name[:64]!r}")
        self.parts.append(CallBegins(self.calls, name))
        self.calls += 1

    def argue(self, text: str) -> None:
        """New text of the arguments of the call that began last."""
        if text:
            self.parts.append(CallArguments(self.calls - 1, text))

    def end(self) -> None:
        """The call that began last is complete: nothing that follows takes it back."""
        self.parts.append(CallEnds(self.calls - 1))
        self.ended += 1
        self.source.record()


class PausingReader(ABC):
    """A `Reader` that is one generator, from the first character to the last."""

    def __init__(self, tools: Tools) -> None:
        self._source = Source()
        self._said = Saying(self._source, tools)
        self._warnings: list[str] = []
        self._more_warnings = 0
        self._spans: list[tuple[int, int]] = []
        self._thought_at: int | None = None
        self._steps: Steps[None] | None = self._read()

    def feed(self, text: str) -> Sequence[Part]:
        """The parts that are certain now."""
        self._source.feed(text)
        return self._go_on()

    def end(self) -> Sequence[Part]:
        """What was held back."""
        self._source.ended = True
        return self._go_on()

    @property
    def warning(self) -> str:
        """What looked like a call and was none."""
        text = "; ".join(self._warnings)
        return f"{text}; and {self._more_warnings} more" if self._more_warnings else text

    @property
    def thoughts(self) -> list[tuple[int, int]]:
        """Where thoughts stand in the text with their marks: first character, and the one behind them."""
        begun = self._thought_at
        return self._spans if begun is None else [*self._spans, (begun, self._source.position)]

    def _thinks(self, thinking: bool, at: int) -> None:
        """From this character on, it is thought or it is none."""
        if thinking and self._thought_at is None:
            self._thought_at = at
        elif not thinking and self._thought_at is not None:
            self._spans.append((self._thought_at, at))
            self._thought_at = None

    @abstractmethod
    def _read(self) -> Steps[None]: ...

    def _warn(self, broken: BrokenError) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(f"what looked like a call is given as text: {broken}")
        else:
            self._more_warnings += 1

    def _go_on(self) -> Sequence[Part]:
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
        parts, self._said.parts = self._said.parts, []
        return merged(parts)


class TextReader(PausingReader):
    """The reader of families whose thoughts and calls stand between marks in otherwise plain text."""

    def __init__(
        self, grammar: Grammar | None, marks: ThoughtMarks | None, tools: Tools, *, thinking: bool
    ) -> None:
        """grammar: None if no calls are looked for; marks: None if no thoughts are."""
        super().__init__(tools)
        self._grammar = grammar
        self._thought = marks
        self._thinking = thinking and marks is not None
        self._space = ""
        self._fresh = True  # no word has been said yet

    def _read(self) -> Steps[None]:
        thinking = self._thinking
        source, grammar = self._source, self._grammar
        opens = () if grammar is None else tuple(grammar.opens)
        dropped = () if grammar is None else tuple(grammar.dropped)
        begins = () if self._thought is None else self._thought.begins
        ends = () if self._thought is None else self._thought.ends
        bare = "" if grammar is None else grammar.bare
        at_first = Marks((*begins, *opens, *dropped))
        in_words = Marks((*opens, *dropped))
        in_thought = Marks((*ends, *opens))
        self._thinks(thinking, 0)
        if thinking:
            # Some models say again what the template has said for them.
            yield from self._skip_lines()
            if (yield from source.take_any(begins)):
                yield from self._skip_lines()
        while True:
            if bare and self._fresh and not thinking and (yield from self._at_bare(bare)):
                yield from self._calls("", thinking)
                continue
            marks = in_thought if thinking else at_first if self._fresh else in_words
            text, mark = source.before(marks)
            self._text(text, thinking, hold=bool(marks.all))
            if not mark:
                if source.ended:
                    break
                yield
            elif mark in opens:
                at = source.position - len(mark)
                if (yield from self._calls(mark, thinking)):
                    thinking = False
                    self._thinks(False, at)
            elif mark in dropped:
                pass
            elif thinking or self._fresh:  # a thought ends, or begins, before which nothing was said
                self._space = ""
                thinking = not thinking
                self._thinks(thinking, source.position - len(mark) if thinking else source.position)
                yield from self._skip_lines()
            else:
                self._text(mark, thinking, hold=True)
        self._text("", thinking, hold=False)

    def _at_bare(self, bare: str) -> Steps[bool]:
        """True if a call may begin here without a mark."""
        source = self._source
        while (yield from source.more()):
            char = source.text[source.at]
            if char not in SPACE:
                return char in bare
            source.at += 1
            self._text(char, False, hold=True)
        return False

    def _calls(self, mark: str, thinking: bool) -> Steps[bool]:
        """What follows `mark`; True if it was a call at least."""
        source, said, grammar = self._source, self._said, self._grammar
        assert grammar is not None
        source.record(self._space + mark)
        self._space = ""
        begun, ended = said.calls, said.ended
        try:
            yield from grammar.read(said, mark)
        except BrokenError as broken:
            called = said.ended > ended
            # JSON that somebody asked for is no call that went wrong.
            if mark or said.calls > begun or isinstance(broken, UnknownToolError):
                self._warn(broken)
            self._text(source.recorded(), thinking and not called, hold=True)
            return called
        source.recorded()
        yield from source.skip_space()
        return True

    def _skip_lines(self) -> Steps[None]:
        source = self._source
        while (yield from source.more()) and source.text[source.at] in "\r\n":
            source.at += 1

    def _text(self, text: str, thinking: bool, *, hold: bool) -> None:
        """Say new text, but hold back white space at its end, which may belong to a mark behind it."""
        text = self._space + text
        end = max(len(text.rstrip(SPACE)), len(text) - MAX_SPACE) if hold else len(text)
        self._space = text[end:]
        if end:
            if not thinking and not text[:end].isspace():
                self._fresh = False
            self._said.say(Thought(text[:end]) if thinking else Words(text[:end]))


def merged(parts: Sequence[Part]) -> list[Part]:
    """The same parts, those joined that follow each other and are of one kind."""
    result: list[Part] = []
    texts: list[str] = []
    for part in parts:
        last = result[-1] if result else None
        same = type(part) is type(last) and (
            not isinstance(part, CallArguments) or part.index == getattr(last, "index", None)
        )
        if same and isinstance(part, Thought | Words | CallArguments):
            texts.append(part.text)
            continue
        _close(result, texts)
        result.append(part)
        texts = [part.text] if isinstance(part, Thought | Words | CallArguments) else []
    _close(result, texts)
    return result


def _close(result: list[Part], texts: list[str]) -> None:
    if len(texts) > 1:
        text, last = "".join(texts), result[-1]
        if isinstance(last, CallArguments):
            result[-1] = CallArguments(last.index, text)
        else:
            result[-1] = Thought(text) if isinstance(last, Thought) else Words(text)
