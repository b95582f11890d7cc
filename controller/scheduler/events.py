"""The events of the scheduler: what it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.scheduler.offload import NO_OFFLOAD, OffloadCapacity
from tidepipe_common.lengths.prompt import PromptFeatures
from tidepipe_common.lengths.request import NO_PROMPT
from tidepipe_common.types.kv_transfer import KvFetched, KvHandle
from tidepipe_common.types.plan import SampledTokens
from tidepipe_common.types.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence as a router hands it over, to be continued; `output` was generated elsewhere and is not
    reported again.

    deadline: point in time (the core's clock, seconds) at which it is ended, or None.
    first_token_due: point in time at which its TTFT target ends; tpot_s: target per further token; or None.
    priority: lower goes sooner; one that is higher by one waits a second longer beside others (aging).
    background: nobody waits for it (`background.py`).
    prefix_root: who has the same shares KV blocks of equal beginnings (`tidepipe_common/prefix.py`), in
        hexadecimal; empty: it shares none. Of each adapter it is another one.
    adapter: fingerprint of what is computed beside the model for it; empty: nothing.
    keys: of its first full blocks, as far as they were reckoned already; not for journals.
    trace_context: the span that it runs within (`telemetry/traces.py`), for the stages; not for journals.
    kv: where the KV blocks of its first tokens can be fetched, if they can be used here.
    ahead: ticket under which its blocks are announced as they are computed, for it is to go on elsewhere when
        its prompt is done; empty: they are not.
    features, piece_gap_s: not for the core, nor for journals: what the predictor is told of the prompt, and
        how seldom new tokens may be told to the router.
    """

    sequence_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    output: tuple[int, ...] = ()
    deadline: float | None = None
    first_token_due: float | None = None
    tpot_s: float | None = None
    priority: int = 0
    background: bool = False
    prefix_root: str = ""
    adapter: str = ""
    keys: Sequence[bytes] = ()
    features: PromptFeatures = NO_PROMPT
    piece_gap_s: float = 0.0
    trace_context: str = ""
    kv: KvHandle | None = None
    ahead: str = ""


@dataclass(frozen=True, slots=True)
class SequencesArrived:
    """A router hands over sequences; together, so that they can share their first step."""

    sequences: tuple[NewSequence, ...]


@dataclass(frozen=True, slots=True)
class SequenceCancelled:
    """A router does not want a sequence any more."""

    sequence_id: str


@dataclass(frozen=True, slots=True)
class HandOverAsked:
    """A router wants sequences to go on elsewhere, as soon as each is between two tokens.

    sequences: (id, ticket) pairs; the ticket is what their blocks can be fetched with, empty if nothing can.
    lease_s: how long those are kept. reason: for people.
    """

    sequences: tuple[tuple[str, str], ...]
    lease_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PrefixAsked:
    """Another instance is to fetch the KV blocks of a prompt's beginning, as far as they are here.

    ticket: what they can be fetched with, for lease_s; empty: nothing can. prefix_root, keys: as of a
    NewSequence.
    """

    loan_id: str
    ticket: str
    prompt: tuple[int, ...]
    prefix_root: str
    lease_s: float
    keys: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class PrefixOffered:
    """Another instance computes a prompt whose sequence is to go on here: its blocks can go ahead of it.

    handle: as it was announced. prefix_root, keys: as of a NewSequence.
    """

    handle: KvHandle
    prompt: tuple[int, ...]
    prefix_root: str
    keys: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class BlocksFetched:
    """The stages have done with a fetch, or one of them has failed."""

    fetched: KvFetched


@dataclass(frozen=True, slots=True)
class LengthPredicted:
    """How long an output is expected to become, tokens: median and 90th percentile.

    at: output tokens that it had when that was said; the quantiles are those of outputs that are longer.
    """

    sequence_id: str
    p50: float
    p90: float
    at: int = 0


@dataclass(frozen=True, slots=True)
class StepDone:
    """The last stage has finished a step.

    stage_s: time that each stage computed, if known, seconds. waits_s: that each had waited for what the step
    needs, likewise; 0: the step waited for the stage.
    """

    step_id: int
    sampled: SampledTokens
    stage_s: tuple[float, ...] = ()
    waits_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StagesReady:
    """All stages are configured for a new epoch, with empty KV pools of this many blocks.

    replaced: one of them is a new process: the one before it has died, and not only a link to it.
    offload: their second tier, empty as well. kv_bytes_per_s: of their ways in for blocks of other instances,
        together, as far as that is known beforehand; 0: it is not. node: they are on, see `node_of`.
    """

    epoch: int
    stages: int
    kv_blocks: int
    replaced: bool = False
    offload: OffloadCapacity = NO_OFFLOAD
    kv_bytes_per_s: float = 0.0
    node: str = ""


@dataclass(frozen=True, slots=True)
class StagesLost:
    """A stage or a link broke: whatever was in flight or cached is gone.

    failed_step: the step whose execution failed, if that was the cause.
    open_steps: those that the lost stage had not reported: if it has died, one of them may have been its end.
    """

    detail: str
    failed_step: int | None = None
    open_steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyChosen:
    """Someone wants another policy from now on; an unknown name changes nothing."""

    name: str


@dataclass(frozen=True, slots=True)
class PrefixCacheCleared:
    """Someone wants that no sequence finds blocks that were computed before now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed (deadlines, waiting limits)."""


Event = (
    SequencesArrived
    | SequenceCancelled
    | HandOverAsked
    | PrefixAsked
    | PrefixOffered
    | BlocksFetched
    | LengthPredicted
    | StepDone
    | StagesReady
    | StagesLost
    | PolicyChosen
    | PrefixCacheCleared
    | Tick
)
