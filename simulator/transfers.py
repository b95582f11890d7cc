"""KV blocks on their way between the instances of a cluster in virtual time.

Each node has one way out and one way in for all its instances; on each one transfer follows the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from simulator.cluster_spec import ClusterSpec
from simulator.job import Job
from tidepipe_common.latency.linear import WEIGHT_BYTES


@dataclass(slots=True)
class Link:
    """First come, first served; one transfer at a time at full rate."""

    bytes_per_s: float
    free_at: float = 0.0

    def send(self, size: float, ready: float, pipelined_s: float) -> float:
        """When all has arrived. pipelined_s: how long before `ready` the first part was there already."""
        spent = size / self.bytes_per_s
        begin = max(self.free_at, ready - pipelined_s)
        self.free_at = begin + spent
        return max(self.free_at, ready)


class Left(NamedTuple):
    """A request that goes on elsewhere, since when."""

    time_s: float
    job: Job


NOT_FETCHED = -1


class Arriving(NamedTuple):
    """A request whose blocks are to be fetched. number: of the fetch; NOT_FETCHED: they are not needed.

    ahead: its prompt is still being computed.
    """

    job: Job
    nbytes: float
    number: int
    ahead: bool = False


class Ways:
    """All links between instances. per_node: instances that share one."""

    def __init__(self, bytes_per_s: float, per_node: int) -> None:
        self._rate = bytes_per_s
        self._per_node = per_node
        self._out: dict[int, Link] = {}
        self._in: dict[int, Link] = {}
        self._under_way: dict[int, list[tuple[float, float]]] = {}
        self.sent_bytes = 0.0

    def send(
        self, source: int, target: int, nbytes: float, now: float, beside_s: float = 0.0
    ) -> tuple[float, float]:
        """When so many bytes have arrived; and the bytes that were on their way to the target before them.

        beside_s: how long before now the first of them could go, and the others as they were computed.
        """
        out = self._out.setdefault(source // self._per_node, Link(self._rate))
        into = self._in.setdefault(target // self._per_node, Link(self._rate))
        before = self._under_way.get(target, ())
        ahead = [(until, size) for until, size in before if until > now]
        # It comes at the sender's rate; several senders may meet at one receiver.
        arrives = into.send(nbytes, out.send(nbytes, now, beside_s), nbytes / self._rate)
        self._under_way[target] = [*ahead, (arrives, nbytes)]
        self.sent_bytes += nbytes
        return arrives, sum(size for _, size in ahead)


def instances_per_node(spec: ClusterSpec) -> int:
    """Instances of a node."""
    return max(1, spec.node_devices // (spec.tensor * spec.stages))


def token_bytes(spec: ClusterSpec) -> int:
    """Of the KV cache of one token, in all layers."""
    return spec.shape.kv_bytes_per_token(spec.shape.layers, WEIGHT_BYTES)
