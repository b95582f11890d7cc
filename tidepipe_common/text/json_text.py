"""JSON from outside: the one place where it becomes Python objects.

What Python's parser takes beyond JSON is refused (NaN, numbers that become infinite, names given twice), and
so is what later code could not handle: lone surrogates, and values nested too deeply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from tidepipe_common.errors import InvalidRequestError
from tidepipe_common.limits import MAX_PROMPT_TOKENS
from tidepipe_common.text.text import NOT_TEXT, is_text, on_one_line

MAX_JSON_DEPTH = 100
"""Lists and objects within each other. Python's own limit depends on who calls."""
MAX_JSON_PARTS = 64 * 1024
"""Lists, objects and members of objects. A chat of MAX_TURNS turns has a third of it."""
MAX_JSON_VALUES = MAX_PROMPT_TOKENS + MAX_JSON_PARTS
"""Values in lists and objects. As Python's objects some take 40 times as much as in JSON."""
_CERTAINLY_FEW = 64 * 1024
"""A text of so many characters needs no count."""
_PIECE = 256 * 1024
_SHOWN_CHARACTERS = 40
_SHOWN_PATH = 100


class NotJsonError(Exception):
    """The bytes are not JSON, or none that can be used; the message goes on after "is "."""


def parse_json(raw: bytes | str, what: str, *, twice: bool = False) -> Any:
    """The value. InvalidRequestError begins with `what`, or names the field that is not text.

    twice: see `decode_json`.
    """
    try:
        value = decode_json(raw, twice=twice)
    except NotJsonError as error:
        raise InvalidRequestError(f"{what} is {error}") from None
    check_json_text(raw, value, what)
    return value


def decode_json(raw: bytes | str, *, counted: bool = True, twice: bool = False) -> Any:
    """The value, in which strings may still have lone surrogates. NotJsonError.

    counted: refuse more values than any request has. twice: of names given twice in an object the last one
    counts, as for most readers; for what a model wrote, which nobody can ask to say it better.
    """
    text = raw if isinstance(raw, str) else _decoded(raw)
    if counted:
        _check_counts(text)
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=None if twice else _unique,
        )
    except json.JSONDecodeError as error:
        raise NotJsonError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise NotJsonError("not usable JSON: nested too deeply") from None
    except ValueError:  # integers with thousands of digits, and advice to whoever runs the process
        raise NotJsonError("not usable JSON: a number has more digits than are supported") from None
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and depth(value, MAX_JSON_DEPTH) > MAX_JSON_DEPTH:
        raise NotJsonError(f"not usable JSON: nested too deeply, more than {MAX_JSON_DEPTH} levels")
    return value


def check_json_text(raw: bytes | str, value: Any, what: str) -> None:
    """InvalidRequestError names the first string in `value`, made from `raw`, that has lone surrogates."""
    # Only escapes can make them, which are rare: the other values need no look.
    escaped = (
        (b"\\ud" in raw or b"\\uD" in raw) if isinstance(raw, bytes) else not raw.isascii() or "\\u" in raw
    )
    if not escaped or is_text(json.dumps(value, ensure_ascii=False)):
        return
    for path in _not_text(value):
        name = on_one_line(".".join(path)[:_SHOWN_PATH])
        raise InvalidRequestError(f"{name or what} {NOT_TEXT}", path[0][:_SHOWN_PATH] if path else None)


def write_json(value: Any, most: int, *, ascii_only: bool = True) -> str:
    """The value as JSON. ValueError once it has more characters than `most`, or a number that JSON has not.

    Python's fast writer gives no other thread a turn before it has written everything.
    """
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=ascii_only, allow_nan=False).iterencode(value):
        size += len(piece)
        if size > most:
            raise ValueError(f"has more than {most} characters as JSON")
        pieces.append(piece)
    return "".join(pieces)


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")  # some editors put a mark at the beginning of a file
    except UnicodeDecodeError as error:
        raise NotJsonError(f"not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None


def _check_counts(text: str) -> None:
    """Raise NotJsonError before memory and time are spent on more values than any request has."""
    if len(text) <= _CERTAINLY_FEW or _counts_fit(*_counts(text)):
        return
    # Strings may have any number of these marks. Without escapes each quote begins or ends one; in pieces, so
    # that other threads get their turn.
    text = text.replace("\\\\", "").replace('\\"', "")
    parts = values = inside = 0
    for begin in range(0, len(text), _PIECE):
        texts = text[begin : begin + _PIECE].split('"')
        more = _counts("".join(texts[inside::2]))
        inside = (inside + len(texts) - 1) % 2
        parts, values = parts + more[0], values + more[1]
        if not _counts_fit(parts, values):
            raise NotJsonError(
                f"too much JSON: more than {MAX_JSON_PARTS} lists, objects and members, "
                f"or more than {MAX_JSON_VALUES} values"
            )


def _counts(text: str) -> tuple[int, int]:
    """Of marks that make parts, and of those between values."""
    return sum(text.count(mark) for mark in "[{:"), text.count(",")


def _counts_fit(parts: int, values: int) -> bool:
    return parts <= MAX_JSON_PARTS and values <= MAX_JSON_VALUES


def _refuse_constant(name: str) -> NoReturn:
    raise NotJsonError(f"not JSON: {name} is not a JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise NotJsonError(f"not usable JSON: the number {number[:_SHOWN_CHARACTERS]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise NotJsonError(f"not usable JSON: an object has the name {twice[:_SHOWN_CHARACTERS]!r} twice")
    return value


def depth(value: Any, most: int) -> int:
    """Lists and objects within each other, counted up to one more than `most`."""
    level = [value] if isinstance(value, list | dict) else []
    for found in range(most + 1):
        if not level:
            return found
        level = [child for node in level for child in _children(node) if isinstance(child, list | dict)]
    return most + 1


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _not_text(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where strings without a UTF-8 form stand; a name that is none belongs to its object."""
    match value:
        case str():
            if not is_text(value):
                yield path
        case list():
            for number, item in enumerate(value):
                yield from _not_text(item, (*path, str(number)))
        case dict():
            for name, item in value.items():
                if not is_text(name):
                    yield path
                yield from _not_text(item, (*path, name))
