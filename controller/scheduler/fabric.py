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


def obstacles(ports: Sequence[FabricPort]) -> list[str]:
    """For each stage but the last: why it cannot use the fabric to the next one; empty if it can.

    Both must be on it, and on devices of their own: NCCL does not connect a GPU with itself.
    """
    return [_obstacle(before, after) for before, after in pairwise(ports)]


def _obstacle(before: FabricPort, after: FabricPort) -> str:
    if not before.name or not after.name:
        return "no fabric"
    if before.name != after.name:
        return "on different hosts, or in different containers"
    return "both on the same device" if before.device == after.device else ""
