"""KV blocks that go from one instance to another: what is handed out, and how it is fetched (domain types, no
protobuf)."""

from __future__ import annotations

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
class KvTransfer:
    """What it takes to bring KV blocks to an instance: bytes of one token's, the rate of its way in, and the
    fixed time of each fetch, as measured there or as its link has it. No bytes: it takes none over.

    node: the host that its blocks are on, whose way in and out it shares with all that name the same; empty:
        not known, or several.
    """

    token_bytes: float = 0.0
    bytes_per_s: float = 0.0
    latency_s: float = LATENCY_S
    node: str = ""

    def seconds(self, nbytes: float, ahead: float = 0.0) -> float:
        """Until so many bytes are here. ahead: of fetches that are under way."""
        return self.latency_s + (ahead + nbytes) / self.bytes_per_s


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
