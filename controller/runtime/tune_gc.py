"""Python's cyclic garbage collector, set so that it hardly ever stops a controller between two steps."""

from __future__ import annotations

import gc

YOUNG = 20_000
OLD = 50
"""Allocations that survive until the young are looked through, and rounds of that until all are: thousands of
sequences live long, and looking through them takes 20 ms and finds nothing. Reference counts free what a
step leaves behind; cycles come from failed calls, which are few."""


def tune_gc() -> None:
    """What is there by now (modules, settings) stays for good and is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLD, OLD)
