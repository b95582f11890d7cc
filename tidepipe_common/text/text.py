"""Text from outside: checked where it is stored or sent on, repaired or escaped where it is only shown.

A Python string may hold lone surrogates (from JSON's `\\ud800`, or from bytes of a command line that are not
UTF-8). They have no UTF-8 form: whatever writes them, or sends them, fails, perhaps much later.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

from tidepipe_common.errors import InvalidRequestError

NOT_TEXT = "is not valid Unicode: it has unpaired surrogates"

_QUOTED = 100
"""Characters of a value that a message quotes."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _QUOTED
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 10

_UNPRINTABLE_IN_PROSE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ODD_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


def is_text(text: str) -> bool:
    """True if it has a UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: Any, name: str, param: str | None = None) -> str:
    """The text as it is. InvalidRequestError names it if it is no string, or one without a UTF-8 form.

    param: the field at fault, if it is called otherwise than `name`.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} must be a text, got {type(text).__name__}", param or name)
    if not is_text(text):
        raise InvalidRequestError(f"{name} {NOT_TEXT}", param or name)
    return text


def repaired(text: str) -> str:
    """The text with replacement characters in place of lone surrogates; halves that fit are joined."""
    return text if is_text(text) else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repaired_json(value: Any) -> Any:
    """A JSON value, all of whose strings are text; for what was stored before strings were checked."""
    match value:
        case str():
            return repaired(value)
        case list():
            return [repaired_json(item) for item in value]
        case dict():
            return {repaired(name): repaired_json(item) for name, item in value.items()}
        case _:
            return value


def quoted(value: object) -> str:
    """A value from outside as Python writes it, but no more of it than a sentence has room for.

    What clients write as null, true and false is called so.
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = _SHORT.repr(value)
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


def on_one_line(text: str) -> str:
    """How a name or a message is shown on a terminal or in a log: what is not printable is escaped.

    So a name can neither begin a line of its own nor steer the terminal.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def on_terminal(text: str) -> str:
    """How prose is shown on a terminal: lines and tabs stay, what would steer the terminal is escaped."""
    return _UNPRINTABLE_IN_PROSE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_json_line(text: str) -> str:
    """JSON in which no reader sees a second line: U+0085, U+2028 and U+2029 are written as escapes.

    JSON allows them as they are within strings; Python's `splitlines` and others take them for line ends.
    """
    return text.translate(_ODD_LINE_ENDS)
