"""The actions of the scheduler: what it wants done."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidepipe_common.types.kv_transfer import KvGrant, KvHandle
from tidepipe_common.types.plan import Phase, StepPlan
from tidepipe_common.types.prompt_reading import PromptPiece
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a decision was taken: words, and the numbers behind them."""

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    def with_numbers(self, **more: float) -> Reason:
        """The same, and these."""
        return Reason(self.text, {**self.numbers, **more})

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:g}" for name, value in self.numbers.items())
        return f"{self.text} ({numbers})" if numbers else self.text


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this plan to all stages."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Emit:
    """The new tokens of a step, one per sequence, as columns. Each follows what the sequence had before.

    logprobs: None for those that want none; empty if nobody does.
    """

    sequence_ids: tuple[str, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """A sequence has ended. stop_token is set if a token ended it; it is not part of the output.

    fault: with an error, the field of the request that is at fault, or empty; None: it is not the request's.
    """

    sequence_id: str
    reason: FinishReason
    output_tokens: int
    stop_token: int | None = None
    error: str = ""
    preemptions: int = 0
    fault: str | None = None


class Refusal(enum.Enum):
    """Why a sequence is not taken."""

    QUEUE_FULL = "queue full"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Refused:
    """A sequence is not taken."""

    sequence_id: str
    refusal: Refusal
    detail: str


@dataclass(frozen=True, slots=True)
class PrefixFound:
    """A sequence was admitted for the first time, and so many tokens of its prompt need not be computed."""

    sequence_id: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PromptRead:
    """A part of a sequence's prompt was read, for those who want more of it than what follows it."""

    sequence_id: str
    piece: PromptPiece


@dataclass(frozen=True, slots=True)
class Preempted:
    """A sequence lost its KV blocks and will be recomputed."""

    sequence_id: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Grant:
    """Blocks of this instance that another one may fetch, as its router is told of them.

    order: what stages are told. computed: positions in the blocks, when steps are done. lease_s: how long
    they are kept. last_key: of the last block, hexadecimal, if they can be found by it; empty: they are one
    sequence's own.
    """

    order: KvGrant
    computed: int
    lease_s: float
    last_key: str = ""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A sequence has ended here, to go on elsewhere; with its blocks, if they are granted."""

    sequence_id: str
    grant: Grant | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class PrefixLent:
    """The beginning of a prompt is another instance's to fetch; without a grant: nothing of it is."""

    loan_id: str
    grant: Grant | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Announced:
    """The prompt of a sequence that goes on elsewhere is being computed, and its blocks can go ahead of it.

    grant: begins with those that a step computes which has been sent; `GrantGrown` tells of the others.
    """

    sequence_id: str
    grant: Grant
    reason: Reason


@dataclass(frozen=True, slots=True)
class GrantGrown:
    """More blocks of a grant that was announced."""

    order: KvGrant


@dataclass(frozen=True, slots=True)
class GrantEnded:
    """Blocks that were handed out are nobody's any more, before any later step."""

    ticket: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Have blocks of a sequence fetched. See KvFetch; parts: as its handle says.

    sequence_id: empty if they go ahead of it.
    """

    fetch_id: int
    sequence_id: str
    handle: KvHandle
    first: int
    blocks: tuple[int, ...]
    after_step: int
    timeout_s: float
    reason: Reason
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What became of blocks that a sequence came with: it goes on behind so many positions (fetched, or found
    here), or nothing is fetched for it and it is computed, but for so many positions that are `here`."""

    sequence_id: str
    positions: int
    reason: Reason
    here: int = 0


@dataclass(frozen=True, slots=True)
class PhaseSwitched:
    """The instance turns from one phase to another."""

    before: Phase
    after: Phase
    reason: Reason


Action = (
    Dispatch
    | Emit
    | Finish
    | Refused
    | PrefixFound
    | PromptRead
    | Preempted
    | HandedOver
    | PrefixLent
    | Announced
    | GrantGrown
    | GrantEnded
    | Fetch
    | TakenOver
    | PhaseSwitched
)
