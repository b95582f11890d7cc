"""KV blocks on their way between the instances of a cluster in virtual time.

Each node has one way out and one way in for all its instances; within it each instance has its own, over the
bus. On each one transfer follows the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from simulator.cluster_spec import ClusterSpec
from simulator.job import Job
from tidepipe_common.latency.linear import WEIGHT_BYTES
from tidepipe_common.settings.defaults import BLOCK_SIZE
from tidepipe_common.types.kv_transfer import LEASE_S, KvHandle, KvStage


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
    """All links between instances. per_node: instances that share one to others. near_bytes_per_s: within."""

    def __init__(self, bytes_per_s: float, near_bytes_per_s: float, per_node: int) -> None:
        self._rate, self._near_rate = bytes_per_s, near_bytes_per_s
        self._per_node = per_node
        self._out: dict[tuple[bool, int], Link] = {}
        self._in: dict[tuple[bool, int], Link] = {}
        self.sent_bytes = 0.0

    def node(self, instance: int) -> str:
        """Where it is."""
        return f"n{instance // self._per_node}"

    def send(self, source: int, target: int, nbytes: float, now: float, beside_s: float = 0.0) -> float:
        """When so many bytes have arrived.

        beside_s: how long before now the first of them could go, and the others as they were computed.
        """
        near = self.node(source) == self.node(target)
        rate, per_link = (self._near_rate, 1) if near else (self._rate, self._per_node)
        out = self._out.setdefault((near, source // per_link), Link(rate))
        into = self._in.setdefault((near, target // per_link), Link(rate))
        # It comes at the sender's rate; several senders may meet at one receiver.
        self.sent_bytes += nbytes
        return into.send(nbytes, out.send(nbytes, now, beside_s), nbytes / rate)


def handle_of(
    node: str, computed: int, token_bytes: float, lease_s: float = LEASE_S, last_key: str = ""
) -> KvHandle:
    """What an instance in virtual time gets from one of that node."""
    return KvHandle(
        ticket="aa",
        block_size=BLOCK_SIZE,
        computed=computed,
        block_bytes=round(token_bytes * BLOCK_SIZE),
        lease_s=lease_s,
        stages=(KvStage(f"{node}:0", 0, 1, 1),),
        last_key=last_key,
    )


def instances_per_node(spec: ClusterSpec) -> int:
    """Instances of a node."""
    return max(1, spec.node_devices // (spec.tensor * spec.stages))


def token_bytes(spec: ClusterSpec) -> int:
    """Of the KV cache of one token, in all layers."""
    return spec.shape.kv_bytes_per_token(spec.shape.layers, WEIGHT_BYTES)
