"""KV blocks that go from one instance to another: what is handed out, and how it is fetched (domain types, no
protobuf)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEASE_S = 30.0
"""For which an instance keeps the blocks of a sequence that was asked for, unless it is told otherwise."""
MOST_LEASE_S = 120.0
LATENCY_S = 0.005
"""Of each fetch, whatever its size, before anything was measured."""


@dataclass(frozen=True, slots=True)
class KvStage:
    """Who holds the layers layer_begin .. layer_end - 1 of an instance. address: HOST:PORT of the worker."""

    address: str
    layer_begin: int
    layer_end: int
    epoch: int


@dataclass(frozen=True, slots=True)
class KvHandle:
    """What an instance needs to take KV blocks over from another one.

    fingerprint, dtype: of the model there. layout: of one layer's block. block_size: its tokens.
    ticket: whoever has it may fetch the blocks, hexadecimal; empty: there is nothing to fetch.
    computed: positions that are in the blocks, from 0 on. block_bytes: of a block over all layers.
    lease_s: how long they are kept. reason: why it was handed over, or why nothing can be fetched.
    last_key: of a loan, the key of its last block (`tidepipe_common/prefix.py`), hexadecimal: it names all
        that is in them; empty: they are one sequence's own.
    giver: the instance that has them, as its router calls it.
    """

    fingerprint: str = ""
    dtype: str = ""
    layout: str = ""
    block_size: int = 0
    ticket: str = ""
    computed: int = 0
    block_bytes: int = 0
    lease_s: float = LEASE_S
    stages: tuple[KvStage, ...] = ()
    reason: str = ""
    last_key: str = ""
    giver: str = ""

    @property
    def source(self) -> str:
        """By what it is known where they come from."""
        return self.giver or " ".join(stage.address for stage in self.stages)

    @property
    def node(self) -> str:
        """Where they are, see `node_of`."""
        return node_of(self.stages)


def node_of(stages: Iterable[KvStage]) -> str:
    """The node of an instance, as its stages' addresses have it: the host of all of them; of several hosts
    each with its layers, so that instances on the same ones have one node only if no block leaves a host."""
    runs: list[tuple[str, int, int]] = []
    for stage in stages:
        host = stage.address.rpartition(":")[0]
        if runs and runs[-1][0] == host:
            runs[-1] = host, runs[-1][1], stage.layer_end
        else:
            runs.append((host, stage.layer_begin, stage.layer_end))
    if len(runs) < 2:
        return runs[0][0] if runs else ""
    return " ".join(f"{host}/{begin}-{end}" for host, begin, end in runs)


def is_near(one: str, other: str) -> bool:
    """Do blocks between two nodes stay within one? Where nothing is known of one of them, no."""
    return bool(one) and one == other


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What two instances must have in common so that one can read the other's blocks.

    layout: of one layer's block, as all stages have it; empty: nothing is handed over.
    layer_block_bytes: of it.
    """

    fingerprint: str = ""
    dtype: str = ""
    layout: str = ""
    block_size: int = 0
    layer_block_bytes: int = 0

    def obstacle(self, handle: KvHandle) -> str:
        """Why the blocks of a handle cannot be taken over here; empty: they can."""
        if not handle.ticket:
            return handle.reason or "nothing was handed over"
        if not self.layout:
            return "this instance takes no KV blocks over"
        pairs = (
            ("model", handle.fingerprint, self.fingerprint),
            ("dtype", handle.dtype, self.dtype),
            ("KV block layout", handle.layout, self.layout),
            ("KV block size", handle.block_size, self.block_size),
        )
        for what, theirs, ours in pairs:
            if theirs != ours:
                return f"another {what}: {theirs} there, {ours} here"
        return ""


@dataclass(frozen=True, slots=True)
class KvWay:
    """A way in of KV blocks: its rate, and the fixed time of each fetch, as measured or as the link has it.

    bytes_per_s: 0: there is none. under_way: bytes of fetches that have begun and that are still to come.
    """

    bytes_per_s: float = 0.0
    latency_s: float = LATENCY_S
    under_way: float = 0.0

    def seconds(self, nbytes: float, ahead: float = 0.0) -> float:
        """Until so many bytes are here. ahead: of fetches that are under way."""
        return self.latency_s + (ahead + nbytes) / self.bytes_per_s


NO_WAY = KvWay()


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """What it takes to bring KV blocks to an instance: bytes of one token's, and its ways in. No bytes: it
    takes none over.

    far: from other nodes. near: within its own, over its bus; none: all comes by the other way.
    node: see `node_of`; its way in and out it shares with all that name the same. Empty: not known.
    """

    token_bytes: float = 0.0
    far: KvWay = NO_WAY
    near: KvWay = NO_WAY
    node: str = ""

    def is_near(self, giver: str) -> bool:
        """Do blocks come from that node by the near way?"""
        return self.near.bytes_per_s > 0.0 and is_near(giver, self.node)

    def way(self, giver: str) -> KvWay:
        """By which blocks come from an instance of that node."""
        return self.near if self.is_near(giver) else self.far


NO_TRANSFER = KvTransfer()


@dataclass(frozen=True, slots=True)
class KvGrant:
    """Blocks that whoever has the ticket may fetch, in the order of their sequence.

    after_step: steps up to this one may still be computing them. total: blocks that there will be in the end:
        grants of the same ticket that follow add theirs; 0: these are all.
    """

    ticket: str
    blocks: tuple[int, ...]
    after_step: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class KvFetch:
    """Blocks for a stage to fetch, for its layers.

    first: place of the first one within the grant. blocks: where they go, one for each place from there on.
    after_step: steps up to this one may still use these blocks. parts: who holds the layers.
    ahead: its blocks are still being computed, and others need not wait until they have come.
    """

    fetch_id: int
    ticket: str
    first: int
    blocks: tuple[int, ...]
    after_step: int
    timeout_s: float
    parts: tuple[KvStage, ...]
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class KvWanted:
    """What a stage asks another one for: `count` blocks of each of these layers, from place `first` on."""

    epoch: int
    ticket: str
    layer_begin: int
    layer_end: int
    first: int
    count: int
    layout: str


@dataclass(frozen=True, slots=True)
class KvPiece:
    """Some blocks of one layer. data: empty from a stage that computes nothing."""

    layer: int
    first: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class KvFetched:
    """A fetch has ended at a stage. error: why it failed; empty: all is here. nbytes: what came.

    gone: it failed because there was no grant any more: the way is well.
    """

    fetch_id: int
    error: str = ""
    nbytes: int = 0
    seconds: float = 0.0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class KvOrders:
    """What a stage is told of blocks that travel, between two plans."""

    grants: tuple[KvGrant, ...] = ()
    revoked: tuple[str, ...] = ()
    fetches: tuple[KvFetch, ...] = ()
