"""What an instance holds of prompts computed before, as it tells routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixHoldings:
    """A piece of an instance's account of its KV blocks: keys (tidepipe_common/prefix.py) that came and went.

    version: counts the pieces that one listener is told: one that does not follow the last one heard shows
        that something was missed. whole: what was told before does not hold any more.
    block_size: tokens of a block. stride: every so many blocks of a beginning one has its key told; told ones
        are closed under what stands before them.
    """

    version: int
    whole: bool
    block_size: int
    stride: int
    added: Sequence[int] = ()
    removed: Sequence[int] = ()
