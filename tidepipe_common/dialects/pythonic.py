"""Calls that are written like Python's, and Gemma's, whose arguments are literals of a similar kind."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tidepipe_common.dialects.json_text import MAX_DEPTH, Say, hex_digits, number, utf16_escape
from tidepipe_common.dialects.reader import Saying
from tidepipe_common.dialects.source import MAX_HEAD, BrokenError, Marks, Source, Steps

_NAME = re.compile(r"[\w.\-]+")
_WORD = re.compile(r"[\w.+\-]+")
_CONSTANTS = {
    "True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null",
}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "a": "\a", "v": "\v"}
_ESCAPED = frozenset("\\'\"/")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class PythonCalls:
    """`[name(argument=literal, ...), ...]`, or such calls without a list, up to one of `closes`."""

    opens: Sequence[str] = ()
    closes: Sequence[str] = ()
    bare: str = ""
    dropped: Sequence[str] = ()

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """All calls behind the mark."""
        listed = (yield from said.source.skip_space()) == "["
        if listed:
            said.source.at += 1
        yield from self.read_items(said, mark, listed=listed)

    def read_items(self, said: Saying, mark: str, *, listed: bool) -> Steps[None]:
        """All calls behind the mark, and behind the bracket of a list if there is one."""
        source, before = said.source, said.ended
        while True:
            char = yield from source.skip_space()
            if listed and char == "]" and said.ended > before:
                source.at += 1
                break
            if (yield from source.take_any(self.closes)):
                if said.ended == before:
                    raise BrokenError("there is no call in it")
                return
            if not char and said.ended > before:
                return
            yield from self._call(said)
            if (yield from source.skip_space()) in (",", ";"):
                source.at += 1
            elif not listed and not self.closes:
                return
        yield from source.skip_space()
        yield from source.take_any(self.closes)

    def _call(self, said: Saying) -> Steps[None]:
        source = said.source
        name = yield from _word(source, _NAME)
        if not name or (yield from source.skip_space()) != "(":
            raise BrokenError("no call follows")
        source.at += 1
        # Some write `default_api.f()`, for tools of their own `f.call()`.
        names = (name, name.removesuffix(".call"), name.rpartition(".")[2])
        said.begin(next((one for one in names if one in said.tools), name))
        said.argue("{")
        separator = ""
        while (yield from source.skip_space()) != ")":
            key = yield from _word(source, _NAME)
            if not key or (yield from source.skip_space()) != "=":
                raise BrokenError("it has an argument without a name")
            source.at += 1
            yield from source.skip_space()
            said.argue(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from literal(source, said.argue, _PYTHON)
            separator = ", "
            char = yield from source.skip_space()
            if char == ",":
                source.at += 1
            elif char != ")":
                raise _unexpected(char)
        source.at += 1
        said.argue("}")
        said.end()


@dataclass(frozen=True)
class BracedCalls:
    """`call:name{key:literal,...}` between marks, where texts stand between marks of their own.

    JSON may stand in the braces, too: the reader takes quotes of both kinds.
    """

    opens: Sequence[str]
    closes: Sequence[str]
    quote: str
    bare: str = ""
    dropped: Sequence[str] = ()

    def read(self, said: Saying, mark: str) -> Steps[None]:
        """One call."""
        source = said.source
        yield from source.skip_space()
        yield from source.take("call:")
        name = yield from _word(source, _NAME)
        if not name or (yield from source.skip_space()) != "{":
            raise BrokenError("no call follows")
        said.begin(name)
        yield from literal(source, said.argue, Literals((self.quote, '"'), bare_keys=True))
        said.end()
        yield from source.skip_space()
        yield from source.take_any(self.closes)


@dataclass(frozen=True)
class Literals:
    """How literals are written. quotes: around texts; those of one character are Python's, with escapes."""

    quotes: Sequence[str]
    bare_keys: bool = False


_PYTHON = Literals(('"', "'"))


def literal(source: Source, say: Say, form: Literals, depth: int = 0) -> Steps[None]:
    """The next literal, said as JSON."""
    char = yield from source.peek()
    if depth > MAX_DEPTH:
        raise BrokenError("its arguments are nested too deeply")
    if quote := (yield from source.take_any(form.quotes)):
        yield from _text(source, say, quote)
    elif char and char in "[(":
        yield from _items(source, say, form, depth, "[", "])"["[(".index(char)], "]")
    elif char == "{":
        yield from _items(source, say, form, depth, "{", "}", "}")
    else:
        word = yield from _word(source, _WORD)
        if not word:
            raise _unexpected((yield from source.peek()))
        say(_scalar(word))


def _items(
    source: Source, say: Say, form: Literals, depth: int, begin: str, end: str, said_end: str
) -> Steps[None]:
    source.at += 1
    say(begin)
    separator = ""
    while (yield from source.skip_space()) != end:
        say(separator)
        if begin == "{":
            yield from _key(source, say, form)
        yield from literal(source, say, form, depth + 1)
        separator = ", "
        char = yield from source.skip_space()
        if char == ",":
            source.at += 1
        elif char != end:
            raise _unexpected(char)
    source.at += 1
    say(said_end)


def _key(source: Source, say: Say, form: Literals) -> Steps[None]:
    if quote := (yield from source.take_any(form.quotes)):
        yield from _text(source, say, quote)
    else:
        key = (yield from _word(source, _NAME)) if form.bare_keys else ""
        if not key:
            raise BrokenError("it has a key that is no text")
        say(json.dumps(key, ensure_ascii=False))
    if (yield from source.skip_space()) != ":":
        raise _unexpected((yield from source.peek()))
    source.at += 1
    say(": ")
    yield from source.skip_space()


def _text(source: Source, say: Say, quote: str) -> Steps[None]:
    """A text behind its opening quote."""
    escapes = len(quote) == 1
    if escapes and (yield from source.take(quote)):
        if not (yield from source.take(quote)):
            say('""')
            return
        quote *= 3
    say('"')
    marks = Marks((quote, "\\") if escapes else (quote,))
    while True:
        text, mark = source.before(marks)
        say(json.dumps(text, ensure_ascii=False)[1:-1])
        if mark == "\\":
            say((yield from _escape(source)))
        elif mark:
            say('"')
            return
        elif source.ended:
            raise BrokenError("the answer ended in it")
        else:
            yield


def _escape(source: Source) -> Steps[str]:
    """What an escape stands for, as JSON has it within a text."""
    char = yield from source.peek()
    if not char:
        raise BrokenError("the answer ended in it")
    source.at += 1
    if char not in _HEX_DIGITS:
        meant = char if char in _ESCAPED else _ESCAPES.get(char, "\\" + char)
        return json.dumps(meant, ensure_ascii=False)[1:-1]
    code = int((yield from hex_digits(source, _HEX_DIGITS[char])), 16)
    if code > sys.maxunicode:
        raise BrokenError("its arguments have a wrong escape")
    return (yield from utf16_escape(source, f"{code:04x}")) if code <= 0xFFFF else chr(code)


def _word(source: Source, pattern: re.Pattern[str]) -> Steps[str]:
    word = ""
    while (yield from source.more()):
        found = pattern.match(source.text, source.at, source.at + MAX_HEAD + 1 - len(word))
        if found is None:
            break
        source.at = found.end()
        word += found.group()
        if len(word) > MAX_HEAD:
            raise BrokenError("it has too long a name")
    return word


def _scalar(word: str) -> str:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if said := number(word):
        return said
    try:
        value = float(word)  # what Python writes and JSON does not: 1_000, .5
    except ValueError:
        raise BrokenError(f"{word[:20]!r} is no literal") from None
    if not math.isfinite(value):
        raise BrokenError(f"{word[:20]!r} is no literal")
    return str(int(value)) if value.is_integer() and "." not in word else repr(value)


def _unexpected(char: str) -> BrokenError:
    return BrokenError(f"{char!r} is not where a literal has it" if char else "the answer ended in it")
