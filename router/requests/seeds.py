"""Seeds of a request's answers."""

from __future__ import annotations

import hashlib
import os


def draw_seed() -> int:
    """A fresh 64-bit seed for a request that came without one."""
    return int.from_bytes(os.urandom(8), "little")


def answer_seed(seed: int, index: int) -> int:
    """Seed of one of n answers; the first one's is the request's own, so that n does not change it."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
