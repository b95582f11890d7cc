"""The search for goodput: what the rates before gave goes in, the next rate to try comes out."""

from __future__ import annotations

import math
from collections.abc import Generator

GRID = 2**0.5
"""Ratio of the rates that are tried before bisection; a dip in attainment between two may be missed."""
MOST = GRID**24
"""The scan ends at so many times the rate that it begins at, whatever is borne there."""


def search_goodput(begin: float, least: float, precision: float) -> Generator[float, bool, float]:
    """The rate up to which a system attains throughout, within `precision` (a share of it).

    Yields rates, and is sent whether they were attained. Attainment need not fall with the rate: a router
    that packs windows may miss at half load what it keeps at full. So all rates of a grid that does not
    depend on the answer are tried upwards from `begin` (downwards only if that is missed already), and
    between the last before the first that misses and that one it is bisected. 0 if nothing down to about
    `least` is attained.
    """
    # Powers of one ratio: the same rates for all systems, wherever their goodput may be.
    low, high = 0.0, GRID ** math.floor(math.log(begin, GRID))
    while (yield high):
        low, high = high, high * GRID
        if high > begin * MOST:
            return low
    while low == 0.0 and high > least:
        if (yield high / GRID):
            low = high / GRID
        else:
            high /= GRID
    while low > 0.0 and high / low > 1 + precision:
        middle = (low * high) ** 0.5
        if (yield middle):
            low = middle
        else:
            high = middle
    return low
