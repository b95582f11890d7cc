"""The length signal: what a model's state behind a prompt says of how long its answer will be."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = 64
"""Of a signal, at most."""
_SIZE = struct.calcsize("<e")
BYTES = NUMBERS * _SIZE
MOST_MODEL_CHARACTERS = 200
LARGEST = 65_504.0
"""That a float of 16 bits can be."""


@dataclass(frozen=True, slots=True)
class LengthSignal:
    """One prompt's. key: of its sequence at the stages. values: as `pack_signal` made them."""

    key: int
    values: bytes


def pack_signal(numbers: Sequence[float]) -> bytes:
    """Little-endian floats of 16 bits; no bytes if one of them is none: the model's state was not finite."""
    if not all(map(math.isfinite, numbers)):
        return b""
    return struct.pack(f"<{len(numbers)}e", *[min(max(one, -LARGEST), LARGEST) for one in numbers])


def signal_numbers(values: bytes) -> tuple[float, ...]:
    """The reverse of `pack_signal`; whoever has the bytes from outside asks `signal_fault` first."""
    return struct.unpack(f"<{len(values) // _SIZE}e", values)


def signal_fault(values: bytes, model: str) -> str | None:
    """Why these cannot be a model's signal, or None; no bytes are no signal, which is no fault.

    model: its digest.
    """
    if len(model) > MOST_MODEL_CHARACTERS or (values and not model):
        return f"a length signal needs its model's digest, of at most {MOST_MODEL_CHARACTERS} characters"
    if len(values) > BYTES or len(values) % _SIZE:
        return f"a length signal has at most {NUMBERS} floats of 16 bits, got {len(values)} bytes"
    if not all(map(math.isfinite, signal_numbers(values))):
        return "the numbers of a length signal must be finite"
    return None
