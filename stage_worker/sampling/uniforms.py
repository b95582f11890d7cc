"""Random numbers that are a function of (seed, output index) alone.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) is a keyed bijection of a
counter: it has no state to lose in a restart, neighbouring seeds give unrelated streams, and it passes
BigCrush.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_ROUNDS = 10


def philox4x32(
    counters: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return words (0, 2) and (1, 3) of the blocks of `counters` (64 bits of 128 used) under `keys`."""
    even = np.stack([counters & _LOW, np.zeros_like(counters)])
    odd = np.stack([counters >> _HALF, np.zeros_like(counters)])
    key = np.stack([keys & _LOW, keys >> _HALF])
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        # The halves of the products cross over; the other words and the key are mixed in.
        even = (product >> _HALF)[::-1] ^ odd ^ key
        odd = (product & _LOW)[::-1]
        key = (key + _WEYL) & _LOW
    return even, odd


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1), a multiple of 2^-53, per (seed, output index)."""
    even, odd = philox4x32(np.array(indices, dtype=np.uint64), np.array(seeds, dtype=np.uint64))
    bits = ((even[0] << _HALF) | odd[0]) >> np.uint64(11)
    result: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return result
