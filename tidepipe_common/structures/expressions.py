r"""Regular expressions that mean the same to whoever reads them.

The library reads Rust's dialect, clients and their validators Python's or JavaScript's. What these read
differently is narrowed to what they have in common (`\d`, `\w` and `\s` stand for ASCII, their opposites for
what is no such character in Unicode either), or refused.
"""

from __future__ import annotations

import re

from tidepipe_common.structures.errors import StructureError

_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\x0b"}
_WIDE = {"d": r"\p{N}", "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}", "s": r"\s\x{FEFF}\x1c-\x1f"}
_ANY = r"[^\n\r\x{2028}\x{2029}]"
"""JavaScript's dot; the others' has more."""
_BRACED = re.compile(r"\\[xuUpP]\{[^}]*\}")
_PROPERTY = re.compile(r"\\([pP])(\{[^}]*\}|[A-Za-z])")
_NUL = re.compile(r"\\(?:x00|u0000|U00000000|[xuU]\{0+\})|\0")
_COUNT = re.compile(r"\{\d*(?:,\d*)?\}")
_FLAGS = re.compile(r"\(\?([A-Za-z-]+)[:)]")
_COMMON_FLAGS = frozenset("ims-")
_SET_OPERATIONS = ("&&", "--", "~~")


def portable(expression: str, *, quoted: bool = False, narrow_dot: bool = False) -> str:
    """The expression in Rust's dialect. StructureError for what others read otherwise.

    quoted: it is for text within JSON. Then no class has U+0000: the library lets quotes and backslashes pass
    by one that has all control characters. narrow_dot: read the dot as JavaScript does.
    """
    return _Reader(expression, quoted, narrow_dot).read()


class _Reader:
    def __init__(self, text: str, quoted: bool, narrow_dot: bool) -> None:
        self._text = text
        self._quoted = quoted
        self._at = 0
        self._made: list[str] = []
        self._dot = _ANY if narrow_dot and "(?" not in text.replace("(?:", "") else "."

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
            elif char == "\0" and self._quoted:
                self._nul(char, False)
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
            self._other_escape(in_class=False)

    def _other_escape(self, *, in_class: bool) -> None:
        text, at = self._text, self._at
        found = _PROPERTY.match(text, at) if self._quoted else None
        if found:
            if found[2].startswith(("^", "!")) or "!=" in found[2]:
                raise _refusal(r"a \p{...} with a negation; write \P{...}")
            name = rf"\p{found[2]}"
            self._replace(len(found[0]), f"[{name}&&[^\\x00]]" if found[1] == "p" else f"[^{name}\\x00]")
            return
        braced = _BRACED.match(text, at)
        length = len(braced[0]) if braced else 2
        if self._quoted and _NUL.match(text, at):
            self._nul(_NUL.match(text, at)[0], in_class)  # type: ignore[index]
            return
        self._copy(length)

    def _nul(self, written: str, in_class: bool) -> None:
        begins_range = in_class and re.match(r"-[^\]]", self._text[self._at + len(written) :])
        if not begins_range:
            raise _refusal("U+0000, which is not supported there")
        self._replace(len(written), r"\x01")

    def _class(self) -> None:
        negated = self._text.startswith("[^", self._at)
        self._copy(2 if negated else 1)
        if negated and self._quoted:
            self._made.append(r"\x00")
            if self._text.startswith("-", self._at) and not self._text.startswith("--", self._at):
                self._replace(1, r"\-")
        if self._text.startswith("]", self._at):
            if self._quoted:
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
            elif char == "\0" and self._quoted and not negated:
                self._nul(char, True)
            else:
                self._copy(1)

    def _class_escape(self, negated: bool) -> None:
        name = self._text[self._at + 1 : self._at + 2]
        if name not in ("", *"dswDSW"):
            if negated:
                braced = _BRACED.match(self._text, self._at)
                self._copy(len(braced[0]) if braced else 2)
            else:
                self._other_escape(in_class=True)
            return
        opposite = name.isupper()
        letters = (_WIDE if negated != opposite else _NARROW).get(name.lower(), "")
        self._replace(2, f"[^{letters}]" if opposite else letters)
        if self._text.startswith("-", self._at) and not self._text.startswith("--", self._at):
            self._replace(1, r"\-")  # no range begins with a class


def _refusal(what: str) -> StructureError:
    return StructureError(f"an expression in it has {what}")
