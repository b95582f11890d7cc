"""Numbers written as text, by whoever sends headers, query strings, forms or arguments: one strict reading.

Python's own `int` and `float` take more than anybody means: `1_0`, ` 10`, `١٠`, `inf`; and `str.isdigit` is
true for `²`, which `int` then refuses.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tidepipe_common.text.text import quoted

_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_MOST_DIGITS = 4000
"""Python reads no longer integers, and nobody means one."""

MAX_COUNT = 2**31 - 1
"""Services count in integers of 32 bits."""
MAX_DECIMAL = 1e9
"""Of numbers for which nobody says how large they may be: 30 years in seconds, for one."""


def whole_number(text: str) -> int | None:
    """The integer that the text is, in ASCII digits; None if it is none."""
    if len(text) > _MOST_DIGITS or _WHOLE.fullmatch(text) is None:
        return None
    return int(text)


def count(text: str, most: int) -> int | None:
    """The integer in [0, most] that the text is, in digits alone; None if it is none."""
    number = whole_number(text) if text[:1] not in ("+", "-") else None
    return number if number is not None and number <= most else None


def decimal(text: str) -> float | None:
    """The finite number that the text is, such as 250, 0.5 or 1e3; None if it is none."""
    if len(text) > _MOST_DIGITS or _DECIMAL.fullmatch(text) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def host_and_port(address: str) -> tuple[str, int] | None:
    """Of HOST:PORT, port 0 included; None if it is something else, such as a URL."""
    host, _, text = address.rpartition(":")
    port = count(text, 65_535)
    return None if not host or "/" in host or port is None else (host, port)


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The numbers that something may be. above, below: without `least`, without `most` itself."""

    whole: bool
    least: float
    most: float
    above: bool = False
    below: bool = False

    @classmethod
    def within(
        cls, whole: bool, least: float | None, most: float | None, *, above: bool = False, below: bool = False
    ) -> NumberRange:
        """least, most: None where nobody says so; then what services and commands can hold."""
        limit = MAX_COUNT if whole else MAX_DECIMAL
        return cls(
            whole, -limit - whole if least is None else least, limit if most is None else most, above, below
        )

    def parse(self, text: str) -> int | float | None:
        """The number that the text is, within the range or not; None if it is none."""
        return whole_number(text) if self.whole else decimal(text)

    def __contains__(self, number: float) -> bool:
        """True if it may be that."""
        return (
            self.least <= number <= self.most
            and not (self.above and number == self.least)
            and not (self.below and number == self.most)
        )

    def __str__(self) -> str:
        """Such as [0, 8192], or (0, 1e+06) where the limits themselves are none of it."""
        least, most = _shown(self.least), _shown(self.most)
        return f"{'(' if self.above else '['}{least}, {most}{')' if self.below else ']'}"

    @property
    def rule(self) -> str:
        """What it must be, without what was given instead."""
        return f"must be a {'whole ' if self.whole else ''}number in {self}"

    def refusal(self, given: object) -> str:
        """What is said of a value that it may not be."""
        return f"{self.rule}, got {quoted(given)}"


def _shown(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
