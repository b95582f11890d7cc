"""How much KV memory the admitted sequences will need (TD-Pipe, section on AI-based greedy prefill)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_HORIZONS = 64


def peak_blocks(lengths: npt.NDArray[np.float64], remaining: npt.NDArray[np.float64], block_size: int) -> int:
    """Largest number of KV blocks in use at any future decode step.

    lengths, remaining: tokens now and expected further tokens, one entry per sequence. At horizon t a
    sequence uses ceil((length + t) / block_size) blocks if t <= remaining, else 0. Use only grows until
    some sequence ends, so the peak lies just before an end: these are the horizons, not a fixed list
    (the published code samples powers of two). With more than MAX_HORIZONS sequences evenly spaced ends
    are taken, the last one included.
    """
    if not len(lengths):
        return 0
    ends = np.unique(np.floor(remaining))
    if len(ends) > MAX_HORIZONS:
        ends = ends[np.linspace(0, len(ends) - 1, MAX_HORIZONS).round().astype(np.int64)]
    horizon = ends[:, None]
    blocks = np.ceil((lengths[None, :] + horizon) / block_size)
    return int((blocks * (np.floor(remaining)[None, :] >= horizon)).sum(axis=1).max())
