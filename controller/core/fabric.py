"""Which neighbouring stages hand activations over by fabric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class FabricPort:
    """What a stage says of its fabric. name: equal for all who can meet; empty: none. device: which it is."""

    name: str = ""
    device: str = ""


def shared_ways(ports: Sequence[FabricPort]) -> list[bool]:
    """For each stage but the last: may it use the fabric to the next one?

    Both must be on it, and on devices of their own: NCCL does not connect a GPU with itself.
    """
    return [
        bool(before.name) and before.name == after.name and before.device != after.device
        for before, after in pairwise(ports)
    ]
