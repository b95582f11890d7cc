"""A sequence as instances see it: what it is (RoutedSequence), how its beginning is named (PrefixKeys), its
stay at one of them (Placement), and how often it may be lost (RetryBudget)."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.scheduler.slo import INTERACTIVE, SloTarget
from tidepipe_common.errors import TidePipeError
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.prefix import adapter_root, root_key, told_keys
from tidepipe_common.telemetry.traces import NO_SPAN, Span
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.results import SequenceUpdate
from tidepipe_common.types.sampling import SamplingParams

MAX_FRUITLESS = 16
"""An instance that dies of a sequence takes it along only so often."""


class Progress(enum.Enum):
    """What news did to a sequence."""

    GOES_ON = "goes on"
    GAP = "gap"
    ENDED_THERE = "ended there"
    """The instance ended it."""
    ENDED_HERE = "ended here"
    """The router ended it (stop string); the instance must be told."""


@dataclass(frozen=True, slots=True)
class PromptPrefix:
    """By what a prompt's beginning is found where it was computed before (tidepipe_common/prefix.py).

    root: who has the same shares blocks. keys: told ones; none if no instance reuses blocks.
    """

    root: bytes = b""
    keys: tuple[int, ...] = ()


NO_PREFIX = PromptPrefix()


class PrefixKeys:
    """The rule by which a router names beginnings. share: all tenants share blocks, instead of each its own.

    block_size: of the instances, as far as they have said that they reuse blocks; 0: none has.
    """

    def __init__(self, block_size: Callable[[], int], *, share: bool = False) -> None:
        self._block_size = block_size
        self._share = share

    def root(self, tenant: str, cache_salt: str = "") -> bytes:
        """Of a request. cache_salt: its own, which keeps it apart from its tenant's others."""
        return root_key("" if self._share else tenant, cache_salt)

    def prefix(self, root: bytes, prompt: Sequence[int], adapter: str = "") -> PromptPrefix:
        """Of a prompt; a millisecond for 20,000 tokens. root: empty if it shares nothing.

        adapter: fingerprint of the sequence's; it is told beside the root.
        """
        size = self._block_size() if root else 0
        return PromptPrefix(root, told_keys(adapter_root(root, adapter), prompt, size) if size else ())


class RoutedSequence(Protocol):
    """One sequence of token ids that some instance has to continue. Survives any instance."""

    @property
    def key(self) -> str:
        """For people: the request's id and the answer's index."""
        ...

    @property
    def prompt(self) -> Sequence[int]:
        """Prompt token ids."""
        ...

    @property
    def features(self) -> PromptFeatures:
        """What is known of the prompt's text."""
        ...

    @property
    def output(self) -> Sequence[int]:
        """Output token ids so far."""
        ...

    @property
    def sampling(self) -> SamplingParams:
        """With seed and max_tokens set."""
        ...

    @property
    def arrived(self) -> float:
        """When its request came, the router's clock."""
        ...

    @property
    def ttft_s(self) -> float | None:
        """TTFT target, seconds; None: the service's own."""
        ...

    @property
    def tpot_s(self) -> float | None:
        """TPOT target, seconds; None: the service's own."""
        ...

    @property
    def piece_gap_s(self) -> float:
        """New output may be told this seldom, seconds, but for the first and the end; 0: after every step."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is, for shares of the cluster; empty where everybody is one."""
        ...

    @property
    def prefix(self) -> PromptPrefix:
        """By what its prompt's beginning is found."""
        ...

    @property
    def adapter(self) -> str:
        """Fingerprint of its adapter; empty: it has none."""
        ...

    @property
    def priority(self) -> int:
        """Lower goes sooner; see GenerationRequest."""
        ...

    @property
    def background(self) -> bool:
        """Nobody waits for it."""
        ...

    @property
    def trace_context(self) -> str:
        """The span of its request, see telemetry/traces.py; empty: it has none."""
        ...

    @property
    def has_moved(self) -> bool:
        """True if an instance had it and lost it."""
        ...

    @property
    def finished(self) -> bool:
        """True once its output has ended."""
        ...

    def apply(self, news: SequenceUpdate) -> Progress:
        """Take news in."""
        ...

    def moved(self) -> bool:
        """Note that its instance lost it. False: it has been lost too often to try again, and has failed."""
        ...

    def fail(self, error: TidePipeError) -> None:
        """End it, and the request that it belongs to."""
        ...


class Stay(enum.Enum):
    """How far the handing over of a sequence is."""

    QUEUED = "queued"
    SENT = "sent"
    """The call is under way, or broke: the instance may have it."""
    HELD = "held"
    """The instance has confirmed it."""


@dataclass(slots=True)
class Source:
    """Where a sequence comes from that brings its KV blocks along. release: those are not needed any more."""

    instance_id: str
    handle: KvHandle
    release: Callable[[], None]


@dataclass(slots=True, eq=False)
class Placement:
    """One stay of a sequence at one instance.

    placement_id: its name there. New for every stay, so that late news of a former stay, whose tokens may
    differ in rounding, is never mistaken for news of this one.
    slo: its latency targets. ordinal: how many the link was given up to this one.
    tokens: prompt and output so far, as counted into the instance's load.
    gaps: gaps in a row, without news that fitted. failures: calls that failed for good.
    alone: it is handed over by itself, since a call with it failed. span: of the stay, ended with it.
    source: where its KV blocks are, until it has got further here, or this stay has ended.
    ask: the instance that may lend its beginning; None: nobody is asked (any more).
    passes_on: it will probably go on elsewhere, see Route. announced: where its blocks are while its prompt
        is computed.
    """

    placement_id: str
    sequence: RoutedSequence
    stay: Stay = Stay.QUEUED
    slo: SloTarget = INTERACTIVE
    ordinal: int = 0
    tokens: int = 0
    gaps: int = 0
    failures: int = 0
    alone: bool = False
    span: Span = NO_SPAN
    source: Source | None = None
    ask: Callable[[Placement], Awaitable[Source | None]] | None = None
    passes_on: bool = False
    announced: KvHandle | None = None

    def settle(self) -> None:
        """What it brought along is here, or of no use any more."""
        if self.source is not None:
            self.source.release()
            self.source = None


class PlacementTable:
    """The sequences that the router has at one instance, and their load."""

    def __init__(self) -> None:
        self._placements: dict[str, Placement] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._placements)

    def __iter__(self) -> Iterator[Placement]:
        return iter(list(self._placements.values()))

    def get(self, placement_id: str) -> Placement | None:
        """The stay of this name."""
        return self._placements.get(placement_id)

    def add(self, placement: Placement) -> None:
        """Begin a stay."""
        self._placements[placement.placement_id] = placement
        self.recount(placement)

    def recount(self, placement: Placement) -> None:
        """Bring the load up to date after news."""
        tokens = len(placement.sequence.prompt) + len(placement.sequence.output)
        self.tokens += tokens - placement.tokens
        placement.tokens = tokens

    def remove(self, placement: Placement, lost: str = "") -> bool:
        """End a stay; False if it had ended already. lost: why its sequence needs another."""
        if self._placements.pop(placement.placement_id, None) is None:
            return False
        placement.span.end(lost)
        placement.settle()
        self.tokens -= placement.tokens
        return True


class RetryBudget:
    """The account of one sequence: how often instances lost it, and computed it again."""

    def __init__(self) -> None:
        self.lost = 0
        self._fruitless = 0
        self._preemptions_before = 0
        self._preemptions_here = 0

    @property
    def preemptions(self) -> int:
        """At all instances; to be lost by one counts as well: it is computed again."""
        return self._preemptions_before + self._preemptions_here

    def heard(self, fresh: int, preemptions: int) -> None:
        """News came. fresh: new tokens in it. preemptions: in the present stay so far."""
        self._preemptions_here = max(self._preemptions_here, preemptions)
        if fresh:
            self._fruitless = 0

    def end(self) -> None:
        """The instance lost it."""
        self.lost += 1
        self._fruitless += 1
        self._preemptions_before += self._preemptions_here + 1
        self._preemptions_here = 0

    def hopeless(self) -> TidePipeError | None:
        """Why no further instance should have it, if so."""
        if self._fruitless <= MAX_FRUITLESS:
            return None
        return TidePipeError(
            f"the request was lost {self._fruitless} times without getting any further; "
            "the logs of the instances say why they gave it up"
        )
