"""The incremental detokenizer: output tokens become text as they come, whole characters only.

All pieces together are exactly what the tokenizer's own `decode` makes of all tokens at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from router.text.vocabulary import Vocabulary

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_HELD_RUN = 32
"""Byte tokens held back at most. A run that is not UTF-8 as a whole becomes replacement characters as a
whole, so its characters are certain only at its end; but a text in a script that the vocabulary lacks is one
long run, and must flow nevertheless."""
_LONGEST_HELD_WINDOW = 16
"""As above for decoders of unknown kinds: tokens held back because their text ends in half a character."""


class Detokenizer(Protocol):
    """Incremental decoder of one output."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens; return the characters that are certain now."""
        ...

    def flush(self) -> str:
        """Return what is left at the end of the output; half a character becomes U+FFFD."""
        ...


def make_detokenizer(
    vocabulary: Vocabulary, prompt_ids: Sequence[int], hidden: Collection[int]
) -> Detokenizer:
    """Detokenizer of an output that follows `prompt_ids`; without any, the output stands alone.

    hidden: tokens that are left out.
    The prompt matters only for tokenizers that drop the space before the first word of a text: behind a
    prompt with text in it, an output's first word is not the first one.
    """
    if vocabulary.rules is None:
        return _WindowDetokenizer(vocabulary, hidden)
    if vocabulary.rules.byte_level:
        return _ByteLevelDetokenizer(vocabulary, hidden)
    follows = any(i not in hidden for i in prompt_ids)
    return _ByteFallbackDetokenizer(vocabulary, hidden, 0 if follows else vocabulary.rules.strip)


class _ByteLevelDetokenizer:
    """All tokens are bytes; Python and the tokenizer replace the same invalid sequences."""

    def __init__(self, vocabulary: Vocabulary, hidden: Collection[int]) -> None:
        self._vocabulary = vocabulary
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        vocabulary, hidden = self._vocabulary, self._hidden
        return self._decoder.decode(b"".join(vocabulary.token_bytes(i) for i in token_ids if i not in hidden))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _ByteFallbackDetokenizer:
    """Tokens are text, or single bytes."""

    def __init__(self, vocabulary: Vocabulary, hidden: Collection[int], strip: int) -> None:
        self._vocabulary = vocabulary
        self._hidden = hidden
        self._strip = strip
        self._run = _ByteRun()

    def push(self, token_ids: Iterable[int]) -> str:
        parts = []
        for token_id in token_ids:
            if token_id in self._hidden:
                continue
            piece = self._vocabulary.piece(token_id)
            if isinstance(piece, bytes):
                parts.append(self._run.push(piece))
            elif piece:
                parts += (self._run.end(), piece)
        return self._stripped("".join(parts))

    def flush(self) -> str:
        return self._stripped(self._run.end())

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if not text.startswith(" "):
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


class _ByteRun:
    """Byte tokens that follow each other."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._pending = 0  # bytes of which nothing was shown yet
        self._valid = True

    def push(self, piece: bytes) -> str:
        self._pending += len(piece)
        if self._valid:
            try:
                self._text += self._decoder.decode(piece)
            except UnicodeDecodeError:
                self._valid = False
        if not self._valid:
            return self._take(REPLACEMENT * self._pending, 0)
        if self._pending >= _LONGEST_HELD_RUN:
            held = len(self._decoder.getstate()[0])
            return self._take(self._text, held)
        return ""

    def end(self) -> str:
        if not self._pending and self._valid:
            return ""
        complete = self._valid and not self._decoder.getstate()[0]
        shown = self._take(self._text if complete else REPLACEMENT * self._pending, 0)
        self._decoder.reset()
        self._valid = True
        return shown

    def _take(self, shown: str, pending: int) -> str:
        self._text, self._pending = "", pending
        return shown


class _WindowDetokenizer:
    """For decoders of other kinds: decodes the latest tokens with those before them as context."""

    def __init__(self, vocabulary: Vocabulary, hidden: Collection[int]) -> None:
        self._backend = vocabulary.backend
        self._hidden = hidden
        self._ids: list[int] = []
        self._shown = 0  # how many of the ids have been shown; they are the context

    def push(self, token_ids: Iterable[int]) -> str:
        self._ids += (i for i in token_ids if i not in self._hidden)
        return self._advance(len(self._ids) - self._shown >= _LONGEST_HELD_WINDOW)

    def flush(self) -> str:
        return self._advance(True)

    def _advance(self, certain: bool) -> str:
        context = self._decode(self._ids[: self._shown])
        text = self._decode(self._ids)
        if len(text) <= len(context) or (text.endswith(REPLACEMENT) and not certain):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(context) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=False)
