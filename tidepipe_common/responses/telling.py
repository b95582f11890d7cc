"""The telling of one answer as a response, piece by piece as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tidepipe_common.dialects.parts import CallArguments, Part, Reader, Thought, Words
from tidepipe_common.openai.answers import PositionEntry
from tidepipe_common.openai.responses import ResponseContext, check_uncut
from tidepipe_common.responses.answers import ResponseBody
from tidepipe_common.responses.cuts import Cutter
from tidepipe_common.responses.tools import ChatTools
from tidepipe_common.responses.writer import Event, ResponseWriter, completed, usage_body
from tidepipe_common.types.request import Answer, Usage
from tidepipe_common.types.sampling import FinishReason

Told: TypeAlias = tuple[Part, list[PositionEntry]]
"""A part, and the log-probabilities of its tokens if it is words."""


class AnswerReader(Reader, Protocol):
    """A Reader that says where thoughts are."""

    @property
    def thoughts(self) -> Sequence[tuple[int, int]]:
        """Where they begin and end in the text, with their marks."""
        ...


class PlainReader:
    """A Reader of a model that neither thinks nor calls: all text is words."""

    warning = ""
    thoughts: Sequence[tuple[int, int]] = ()

    def feed(self, text: str) -> Sequence[Part]:
        """Part of Reader."""
        return [Words(text)] if text else []

    def end(self) -> Sequence[Part]:
        """Part of Reader."""
        return []


@dataclass(frozen=True, slots=True)
class _Token:
    """end: where it ends in the text. entry: its log-probability, if wanted."""

    end: int
    entry: PositionEntry | None


class _Parts:
    """An answer's text token by token, so that each token is known to be of what was read next: words, a
    thought, or a call."""

    def __init__(self, context: ResponseContext, reader: AnswerReader | None, *, cut: bool) -> None:
        self._context = context
        self._reader: AnswerReader = reader or PlainReader()
        self._cutter = Cutter() if cut else None
        self._offsets = context.text_offsets()
        self._tokens: deque[_Token] = deque()
        self._read: list[_Token] = []
        self._fed = 0
        self._last: type[Part] | None = None
        self._thinking = context.thought_tokens()

    def take(self, piece: Answer) -> Iterator[Told]:
        """The parts that are certain now."""
        logprobs = self._context.chat_logprobs(piece)
        entries: Iterable[PositionEntry | None]
        entries = [None] * len(piece.token_ids) if logprobs is None else logprobs["content"]
        for token_id, entry in zip(piece.token_ids, entries, strict=False):
            self._offsets.take(token_id)
            self._tokens.append(_Token(self._offsets.end, entry))
        if self._thinking is not None:
            self._thinking.take(piece.token_ids)
        text, at = self._context.text(piece), 0
        while at < len(text):
            token_end = next((token.end for token in self._tokens if token.end > self._fed), None)
            chunk = text[at:] if token_end is None else text[at : at + token_end - self._fed]
            at, self._fed = at + len(chunk), self._fed + len(chunk)
            if self._fed == token_end:
                self._take_read(token_end)
            yield from self._told(self._reader.feed(chunk))

    def end(self) -> Iterator[Told]:
        """The rest."""
        self._read += self._tokens
        yield from self._told(self._reader.end())
        if self._cutter is not None:
            yield from ((part, []) for part in self._cutter.end())
        if self._last is Words:
            yield Words(""), self._entries_of(Words(""))

    @property
    def thought_tokens(self) -> int:
        """Of all, those of thoughts, with their marks."""
        return 0 if self._thinking is None else self._thinking.count(self._reader.thoughts)

    @property
    def warning(self) -> str:
        """What looked like a call and was none."""
        return self._reader.warning

    def _take_read(self, end: int) -> None:
        """Tokens without text of their own, such as half a character, go with the next one that has some."""
        while self._tokens:
            self._read.append(self._tokens.popleft())
            if self._read[-1].end == end:
                return

    def _told(self, parts: Sequence[Part]) -> Iterator[Told]:
        """The tokens since the last time were of the last part."""
        for number, part in enumerate(parts, 1):
            entries = self._entries_of(part) if number == len(parts) else []
            if self._cutter is None:
                yield part, entries
                continue
            yield from ((one, []) for one in self._cutter.feed([part]))
            if entries:
                yield Words(""), entries

    def _entries_of(self, part: Part) -> list[PositionEntry]:
        tokens, self._read = self._read, []
        self._last = type(part)
        wanted = tokens if isinstance(part, Words) else ()
        return [token.entry for token in wanted if token.entry is not None]


def _joined(told: Iterable[Told]) -> Iterator[Told]:
    """Texts of one kind in a row are one."""
    last: Told | None = None
    for part, logprobs in told:
        match last, part:
            case (Words(before), held), Words(text):
                last = Words(before + text), held + logprobs
            case (Thought(before), _), Thought(text):
                last = Thought(before + text), []
            case (CallArguments(index, before), _), CallArguments(_, text):
                last = CallArguments(index, before + text), []
            case _:
                if last is not None:
                    yield last
                last = part, logprobs
    if last is not None:
        yield last


class Telling:
    """One answer, told as a response. cut: its deltas must be the same if they are told again."""

    def __init__(
        self,
        head: ResponseBody,
        tools: ChatTools,
        context: ResponseContext,
        reader: AnswerReader | None = None,
        *,
        cut: bool = False,
    ) -> None:
        self.head = head
        self._cut = cut
        self._context = context
        self._parts = _Parts(context, reader or context.reader(), cut=cut)
        self._whole = True
        self.writer = ResponseWriter(head, tools, context.call_id(0), quiet=cut)

    def begin(self) -> list[Event]:
        """What is said before there is anything of the answer."""
        return self.writer.begin()

    def piece(self, piece: Answer) -> Iterator[Event]:
        """The next piece. Raises as `check_uncut`."""
        check_uncut([piece])
        if piece.finish_reason is FinishReason.LENGTH:
            self._whole = False
        told = self._parts.take(piece)
        for part, logprobs in told if self._cut else _joined(told):
            yield from self.writer.say(part, logprobs)

    def rest(self) -> Iterator[Event]:
        """What is said once there is nothing more of the answer."""
        for part, logprobs in self._parts.end():
            yield from self.writer.say(part, logprobs)
        yield from self.writer.end(whole=self._whole)

    def body(self, usage: Usage, now: int) -> ResponseBody:
        """The response, after the rest has been said."""
        if self._parts.warning:
            self._context.notice(self._parts.warning)
        used = usage_body(usage, self._parts.thought_tokens)
        return completed(self.head, self.writer.output, used, now, whole=self._whole)
