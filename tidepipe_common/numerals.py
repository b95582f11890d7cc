"""Numbers written as text, by whoever sends headers, query strings, forms or arguments: one strict reading.

Python's own `int` and `float` take more than anybody means: `1_0`, ` 10`, `١٠`, `inf`; and `str.isdigit` is
true for `²`, which `int` then refuses.
"""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[+-]?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_MOST_DIGITS = 4000
"""Python reads no longer integers, and nobody means one."""


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
    """Of HOST:PORT, port 0 included; None if it is something else."""
    host, _, text = address.rpartition(":")
    port = count(text, 65_535)
    return None if not host or port is None else (host, port)
