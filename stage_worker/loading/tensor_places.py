"""Where the tensors of a file may lie, by its header: within the file, and none over another.

One rule for safetensors and GGUF. A header that says otherwise is damaged, or was made to be read in two
ways; its tensors would be read without a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tidepipe_common.errors import ModelError


class Place(NamedTuple):
    """Of a tensor: its first byte in the file, how many there are, and its name."""

    begin: int
    nbytes: int
    name: str


def check_places(file: Path, size: int, places: Iterable[Place]) -> None:
    """ModelError, which names the tensor, if one is not within the file's `size` bytes, or over another."""
    in_order = sorted(places)
    for begin, nbytes, name in in_order:
        if begin + nbytes > size:
            raise ModelError(
                f"{file}: cut short: tensor {name} should end at byte {begin + nbytes}, the file at {size}"
            )
    for one, other in itertools.pairwise(in_order):
        if other.begin < one.begin + one.nbytes:
            raise ModelError(f"{file}: damaged: the bytes of tensors {one.name} and {other.name} overlap")
