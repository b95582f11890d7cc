"""The plan of one step, as a controller asks it of its stages, and its report (domain types, no protobuf).

A plan is sent to every stage of the pipeline. Only changes travel: stages keep each sequence's block table.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tidepipe_common.types.kv_transfer import KvFetched
from tidepipe_common.types.length_signal import LengthSignal
from tidepipe_common.types.prompt_reading import PromptPiece
from tidepipe_common.types.sampling import PositionLogprobs, SamplingParams

PROTOCOL_VERSION = 2
"""Version of the contract between controller and stages; both refuse another than their own."""


class Phase(enum.Enum):
    """What an instance, or a step, is busy with."""

    IDLE = "idle"
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"  # prompts and decode rows in the same steps


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """A sequence that begins with this step.

    history: tokens so far, prompt and output; empty unless a penalty, a structure or the prompt's
        log-probabilities need them.
    prompt_tokens: how many of the tokens so far are prompt (output index = position - prompt_tokens).
    eos_token_ids: tokens that end it, masked before min_tokens; empty with ignore_eos.
    adapter: of all its rows, by its fingerprint; empty: the base alone.
    trace_context: the span that it runs within (`telemetry/traces.py`); empty: none. Nothing depends on it.
    begins_at: its first position that is computed here, if blocks that came from elsewhere hold all before;
        0: it begins at 0, or behind whole blocks, as its first row says.
    wants_signal: its length signal, with its first token.
    """

    key: int
    sampling: SamplingParams
    prompt_tokens: int
    history: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    adapter: str = field(default="", repr=False)  # journals' checksums are of reprs, and older than this
    trace_context: str = field(default="", repr=False, compare=False)
    begins_at: int = field(default=0, repr=False)
    wants_signal: bool = field(default=False, repr=False)


@dataclass(slots=True)
class PlanRow:
    """One sequence's part of a step: tokens at positions first_position .. first_position + count - 1.

    Never changed once made; not frozen, as there is one per sequence and step and freezing triples its cost.

    token_ids: the tokens (first stage), or empty for the stages behind it.
    new_blocks: KV blocks that the sequence gets with this step, appended to its table.
    sample: sample the next token from the last position.
    """

    key: int
    first_position: int
    count: int
    token_ids: tuple[int, ...]
    new_blocks: tuple[int, ...]
    sample: bool


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of one token each that all sample, as columns: a step has hundreds, and an object for each one
    would cost more than all decisions about them.

    token_ids: empty for the stages behind the first.
    new_blocks: (row, blocks) of those rows that get KV blocks with this step, by rising row.
    """

    keys: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    new_blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[PlanRow]:
        blocks = dict(self.new_blocks)
        for index, (key, position) in enumerate(zip(self.keys, self.positions, strict=True)):
            yield PlanRow(key, position, 1, self.token_ids[index : index + 1], blocks.get(index, ()), True)


@dataclass(frozen=True, slots=True)
class BlockCopies:
    """Contents of KV blocks between a stage's pool and its second tier, before a step computes.

    saves: (block, slot), all of them done before any of loads: (slot, block).
    """

    saves: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.saves) + len(self.loads)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of one micro-batch. `step_id` counts from 1 within an epoch.

    listed: rows given one by one. decode: rows given as columns, which come before them; they stay columns
    from the scheduler to the executors' arrays.
    """

    step_id: int
    phase: Phase
    listed: tuple[PlanRow, ...]
    starts: tuple[SequenceStart, ...] = ()
    releases: tuple[int, ...] = ()
    decode: DecodeRows = DecodeRows()
    copies: BlockCopies = BlockCopies()

    @property
    def rows(self) -> tuple[PlanRow, ...]:
        """All rows, one by one; made anew each time."""
        return (*self.decode, *self.listed) if self.decode.keys else self.listed

    @property
    def tokens(self) -> int:
        """Tokens computed in this step."""
        return len(self.decode) + sum(row.count for row in self.listed)

    @property
    def samples(self) -> int:
        """Tokens sampled in this step."""
        return len(self.decode) + sum(row.sample for row in self.listed)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one sequence of a step cannot be computed; the others are not touched by it.

    fault: the field of the request that is at fault, or empty, if it is the request itself; None: it is not.
    """

    key: int
    detail: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What the last stage sampled: one token per row with `sample` set, in the order of the rows.

    logprobs: one per token if any row wants them, else empty.
    errors: sequences of the step that cannot go on; a token of theirs means nothing.
    prompts: what was read off the prompts of those that want that.
    signals: of those whose first token this is and that want one.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    errors: tuple[RowError, ...] = ()
    prompts: tuple[PromptPiece, ...] = ()
    signals: tuple[LengthSignal, ...] = ()


class StageTimes(NamedTuple):
    """What one stage took for a step, seconds.

    idle_s: since the step before. plan_wait_s: of that, the part before this step's plan was here.
    input_wait_s: of it, the part before all that the step needs was here; 0: it was here, and waited for the
    stage.
    """

    compute_s: float
    idle_s: float = 0.0
    plan_wait_s: float = 0.0
    input_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """A stage has done its part of a step.

    own: what it took. sampled: by the last stage; None, or nothing, by the others. before: what the stages
    before this one took, the first one first, if this one is to tell.
    """

    step_id: int
    own: StageTimes
    sampled: SampledTokens | None = None
    before: tuple[StageTimes, ...] = ()

    @property
    def times(self) -> tuple[StageTimes, ...]:
        """Of all stages that it tells of; this one last."""
        return (*self.before, self.own)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of a stage. running_step_id: that it is computing, for so many seconds; 0: none.

    done_step_id: the last one that it has done.
    """

    rss_bytes: int
    running_step_id: int
    running_s: float
    done_step_id: int = 0


class FailureKind(enum.Enum):
    """Why a stage cannot go on."""

    LINK = "link"  # to the next stage
    EXECUTION = "execution"  # of a step
    PROTOCOL = "protocol"  # a plan made no sense


@dataclass(frozen=True, slots=True)
class StageFailure:
    """A stage cannot go on in this epoch. step_id: the step in question, 0 if none."""

    kind: FailureKind
    detail: str
    step_id: int = 0


StageNews = StepReport | Heartbeat | StageFailure | KvFetched
"""What a stage tells its controller while it serves an epoch."""
