"""JSON read as it comes: what has been said of it is right so far, and what is complete is valid.

It is also what our own door takes back in the next turn (`tidepipe_common/text/json_text.py`): text with a
UTF-8 form, numbers that a double has, and no more levels than leave room for a body around them.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable

from tidepipe_common.dialects.source import MAX_HEAD, SPACE, BrokenError, Source, Steps

MAX_DEPTH = 64
"""How deeply arguments may be nested: in the next turn a body stands around them."""
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = tuple("0123456789abcdefABCDEF")
_NO_CHARACTER = "\\ufffd"

Say = Callable[[str], None]


def json_value(source: Source, say: Say) -> Steps[None]:
    """The next JSON value, read and said, without the space before it. BrokenError where it is none."""
    closers: list[str] = []
    if not (yield from source.skip_space()):
        raise BrokenError("the answer ended in it")
    while True:
        # A value comes next.
        char = yield from source.peek()
        if char in ("{", "["):
            if len(closers) == MAX_DEPTH:
                raise BrokenError("its arguments are nested too deeply")
            source.at += 1
            say(char)
            closers.append("}" if char == "{" else "]")
            char = yield from _space(source, say)
            if char != closers[-1]:
                if closers[-1] == "}":
                    yield from _key(source, say)
                continue
        elif char == '"':
            yield from json_string(source, say)
        else:
            say((yield from _scalar(source)))
        # A value has ended; perhaps those around it have, too.
        while closers:
            char = yield from _space(source, say)
            if char == ",":
                source.at += 1
                say(char)
                yield from _space(source, say)
                if closers[-1] == "}":
                    yield from _key(source, say)
                break
            if not char or char != closers[-1]:
                raise _unexpected(char)
            source.at += 1
            say(char)
            closers.pop()
        else:
            return


def json_string(source: Source, say: Say, most: int | None = None) -> Steps[None]:
    """The next string, with its quotes. Line ends in it, which JSON forbids and models write, are escaped.

    BrokenError if it has more than `most` characters.
    """
    left = sys.maxsize if most is None else most
    if (yield from source.peek()) != '"':
        raise _unexpected((yield from source.peek()))
    source.at += 1
    say('"')
    while True:
        char = yield from source.peek()
        if not char:
            raise BrokenError("the answer ended in it")
        if char == '"':
            source.at += 1
            say('"')
            return
        if left <= 0:
            raise BrokenError("it has too long a name")
        left -= 1
        if char == "\\":
            source.at += 1
            say((yield from _escape(source)))
        elif char < " ":
            source.at += 1
            say(json.dumps(char)[1:-1])
        else:
            plain = _PLAIN.match(source.text, source.at, min(len(source.text), source.at + left + 1))
            assert plain is not None
            left -= plain.end() - source.at - 1
            source.at = plain.end()
            say(plain.group())


def short_string(source: Source) -> Steps[str]:
    """The next string, decoded; for keys and names."""
    pieces: list[str] = []
    yield from json_string(source, pieces.append, MAX_HEAD)
    return str(json.loads("".join(pieces)))


def json_object(source: Source, say: Say) -> Steps[None]:
    """Arguments: the next value if it is an object, or one in quotes, or null for none."""
    char = yield from source.skip_space()
    if char == "{":
        yield from json_value(source, say)
    elif char == '"':
        pieces: list[str] = []
        yield from json_string(source, pieces.append)
        quoted = Source()
        quoted.feed(json.loads("".join(pieces)).strip() or "{}")
        quoted.ended = True
        if not quoted.text.startswith("{"):
            raise BrokenError("its arguments are no JSON object")
        held: list[str] = []
        for _ in json_value(quoted, held.append):
            pass
        if quoted.at < len(quoted.text):
            raise BrokenError("its arguments are no JSON object")
        say("".join(held))
    elif char == "n":
        if (yield from _scalar(source)) != "null":
            raise BrokenError("its arguments are no JSON object")
        say("{}")
    else:
        raise BrokenError("its arguments are no JSON object" if char else "the answer ended in it")


def _escape(source: Source) -> Steps[str]:
    char = yield from source.peek()
    if char and char in '"\\/bfnrt':
        source.at += 1
        return "\\" + char
    if char != "u":
        raise BrokenError("its arguments have a wrong escape")
    source.at += 1
    return (yield from utf16_escape(source, (yield from hex_digits(source, 4))))


def hex_digits(source: Source, count: int) -> Steps[str]:
    """The next digits of an escape."""
    digits = ""
    while len(digits) < count:
        char = yield from source.peek()
        if char not in _HEX:
            raise BrokenError("its arguments have a wrong escape")
        source.at += 1
        digits += char
    return digits


def utf16_escape(source: Source, digits: str) -> Steps[str]:
    r"""What `\uXXXX`, whose digits have been read, is in JSON.

    Half a character without the other half behind it has no UTF-8 form: it is said as U+FFFD.
    """
    said = ""
    while 0xD800 <= (unit := int(digits, 16)) <= 0xDFFF:
        if unit >= 0xDC00 or not (yield from source.take("\\u")):
            return said + _NO_CHARACTER
        behind = yield from hex_digits(source, 4)
        if 0xDC00 <= int(behind, 16) <= 0xDFFF:
            return f"{said}\\u{digits}\\u{behind}"
        said, digits = said + _NO_CHARACTER, behind
    return f"{said}\\u{digits}"


def _key(source: Source, say: Say) -> Steps[None]:
    yield from json_string(source, say)
    if (yield from _space(source, say)) != ":":
        raise _unexpected((yield from source.peek()))
    source.at += 1
    say(":")
    yield from _space(source, say)


def _scalar(source: Source) -> Steps[str]:
    """A number, true, false or null."""
    word = ""
    while (yield from source.more()):
        found = _SCALAR.match(source.text, source.at, source.at + MAX_HEAD + 1 - len(word))
        if found is None:
            break
        source.at = found.end()
        word += found.group()
        if len(word) > MAX_HEAD:
            raise BrokenError("its arguments have too long a number")
    if said := word if word in ("true", "false", "null") else number(word):
        return said
    if not word:
        raise _unexpected((yield from source.peek()))
    raise BrokenError(f"{word[:20]!r} is no JSON")


def number(word: str) -> str:
    """A number as JSON has it; empty if it is none. What no double has is the largest that one has."""
    if not _NUMBER.fullmatch(word):
        return ""
    value = float(word)
    return word if math.isfinite(value) else repr(math.copysign(sys.float_info.max, value))


def _space(source: Source, say: Say) -> Steps[str]:
    """White space is said; the next character, unread."""
    while char := (yield from source.peek()):
        if char not in SPACE:
            return char
        source.at += 1
        say(char)
    return ""


def _unexpected(char: str) -> BrokenError:
    return BrokenError(f"{char!r} is not where JSON has it" if char else "the answer ended in it")
