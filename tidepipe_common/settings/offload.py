"""The setting of the second tier: `8GiB`, or `8GiB:/mnt/nvme`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(KiB|MiB|GiB|TiB)")
MAX_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class OffloadPlace:
    """Where a stage keeps evicted KV blocks: so many bytes at most.

    folder: of the file; None: that for temporary files.
    """

    nbytes: int
    folder: Path | None = None


def parse_offload(text: str) -> OffloadPlace:
    """`SIZE[:DIR]`; ValueError says what is wrong."""
    size, colon, folder = text.partition(":")
    match = _SIZE.fullmatch(size)
    nbytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not 0 < nbytes <= MAX_BYTES or (colon and not folder):
        raise ValueError("must be SIZE or SIZE:DIR with a size such as 8GiB or 512MiB")
    return OffloadPlace(nbytes, Path(folder) if folder else None)
