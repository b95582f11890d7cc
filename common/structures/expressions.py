r"""Regular expressions that mean the same to whoever reads them.

The library reads Rust's dialect, clients and their validators Python's or JavaScript's. What these read
differently is narrowed to what they have in common (`\d`, `\w` and `\s` stand for ASCII, their opposites for
what is no such character in Unicode either), or refused.
"""

from __future__ import annotations

import re

from common.structures.errors import StructureError

_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\x0b"}
_WIDE = {"d": r"\p{N}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": r"\s\x{FEFF}\x1c-\x1f"}
_ANY = r"[^\n\r\x{2028}\x{2029}]"
"""JavaScript's dot; the others' has more."""
_BRACED = re.compile(r"\\[xuUpP]\{[^}]*\}")
_COUNT = re.compile(r"\{\d*(?:,\d*)?\}")
_FLAGS = re.compile(r"\(\?([A-Za-z-]+)[:)]")
_COMMON_FLAGS = frozenset("ims-")
_SET_OPERATIONS = ("&&", "--", "~~")


def portable(expression: str, *, schema: bool = False) -> str:
    """The expression in Rust's dialect. StructureError for what others read otherwise.

    schema: it is a `pattern` of a JSON schema, which is JavaScript's.
    """
    return _Reader(expression, schema).read()


class _Reader:
    def __init__(self, text: str, schema: bool) -> None:
        self._text = text
        self._schema = schema
        self._at = 0
        self._made: list[str] = []
        self._dot = _ANY if schema and "(?" not in text.replace("(?:", "") else "."

    def read(self) -> str:
        repeats = 0  # characters of the repetition that ends here
        while self._at < len(self._text):
            char = self._text[self._at]
            count = _COUNT.match(self._text, self._at) if char == "{" else None
            if char in "*+?" or count:
                if repeats and (char != "?" or repeats > 1):
                    raise _refusal("a repetition of a repetition, which not all read alike; use (?:...)")
                repeats += 1
                self._copy(count.end() - count.start() if count else 1)
                continue
            repeats = 0
            if char == "\\":
                self._escape()
            elif char == "[":
                self._class()
            elif char == ".":
                self._replace(1, self._dot)
            else:
                flags = _FLAGS.match(self._text, self._at)
                if flags and not set(flags[1]) <= _COMMON_FLAGS:
                    raise _refusal("flags that not all have; i, m and s are supported")
                self._copy(1)
        return "".join(self._made)

    def _copy(self, length: int) -> None:
        self._replace(length, self._text[self._at : self._at + length])

    def _replace(self, length: int, by: str) -> None:
        self._made.append(by)
        self._at += length

    def _escape(self) -> None:
        """Outside of a class."""
        name = self._text[self._at + 1 : self._at + 2]
        if name in _NARROW:
            self._replace(2, f"[{_NARROW[name]}]")
        elif name.lower() in _NARROW:
            self._replace(2, f"[^{_WIDE[name.lower()]}]")
        else:
            self._other_escape()

    def _other_escape(self) -> None:
        braced = _BRACED.match(self._text, self._at)
        self._copy(len(braced[0]) if braced else 2)

    def _class(self) -> None:
        negated = self._text.startswith("[^", self._at)
        self._copy(2 if negated else 1)
        if self._text.startswith("]", self._at):
            if self._schema:
                raise _refusal("an empty [], which not all read alike; write \\] for a bracket")
            self._copy(1)
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "]":
                self._copy(1)
                return
            if char == "[" or self._text.startswith(_SET_OPERATIONS, self._at):
                raise _refusal(
                    "[, &&, -- or ~~ within [...], which not all read alike; write \\[, \\&, \\- or \\~"
                )
            if char == "\\":
                self._class_escape(negated)
            else:
                self._copy(1)

    def _class_escape(self, negated: bool) -> None:
        name = self._text[self._at + 1 : self._at + 2]
        if name not in ("", *"dswDSW"):
            self._other_escape()
            return
        opposite = name.isupper()
        letters = (_WIDE if negated != opposite else _NARROW).get(name.lower(), "")
        self._replace(2, f"[^{letters}]" if opposite else letters)
        if self._text.startswith("-", self._at) and not self._text.startswith("--", self._at):
            self._replace(1, r"\-")  # no range begins with a class


def _refusal(what: str) -> StructureError:
    return StructureError(f"an expression in it has {what}")
