"""One sequence as the scheduler sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tidepipe_common.prefix import block_keys
from tidepipe_common.settings.defaults import PRIORITY_S
from tidepipe_common.types.kv_transfer import KvHandle
from tidepipe_common.types.sampling import SamplingParams


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"  # holds no KV blocks
    PREFILL = "prefill"  # admitted; some of its tokens are not computed yet
    DECODE = "decode"  # generates token after token
    FETCHED = "fetched"  # its KV blocks come, or shall come, from another instance (`hand_over.py`)
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt, output so far, and what it holds.

    max_tokens: output tokens at most, the context's limit included.
    key: its name at the stages; a new one each time it is (re)admitted.
    planned: positions whose computation is done or on its way.
    failures: losses of the stages in a row while it was alone in the step.
    review_at: length at which its forecast is made anew, because it outlived the present one.
    look_at: length from which on its next token needs a decision: its limit, a review, or, while it is not
        decoding, at once.
    predicted_p50, predicted_p90, predicted_at: see LengthPredicted; None before there is a prediction.
    end_tokens: token ids that end it.
    room: tokens that its blocks hold.
    told_blocks: how many of its blocks the stages know of.
    prefix_root: who shares it shares KV blocks (`tidepipe_common/prefix.py`); empty: it shares none.
    keys: of its full blocks, as far as they were asked for.
    begins_at: position at which its computation begins; what stands before was found.
    shared_blocks: how many of its blocks, the first, are not its own (BlockStore).
    entered_blocks: how many of its blocks were looked at for others to find.
    expected_cached: tokens that will probably be found when it is admitted.
    cached_tokens: of the prompt, found when it was first admitted; None before.
    first_token_due, tpot_s: its latency targets, see NewSequence.
    first_token_at: when it got its first token here; None before. given: output tokens that it came with.
    priority, background: see NewSequence.
    adapter, trace_context: for the stages, see NewSequence.
    silent: it needs no token any more: it is here for what is read off its prompt.
    prompt_read: all that is wanted of its prompt was read.
    kv: where its blocks may be fetched from, until they are, or nothing comes of it. fetched: they were, for
        this stay in memory.
    ahead: see NewSequence; empty once nothing is to be announced (any more).
    length: tokens so far, prompt and output.
    """

    sequence_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    arrived: float
    deadline: float | None
    output: list[int] = field(default_factory=list)
    state: State = State.WAITING
    key: int = 0
    blocks: list[int] = field(default_factory=list)
    room: int = 0
    planned: int = 0
    admitted_order: int = 0
    preemptions: int = 0
    prefix_root: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    begins_at: int = 0
    shared_blocks: int = 0
    entered_blocks: int = 0
    expected_cached: int = 0
    cached_tokens: int | None = None
    failures: int = 0
    predicted_p50: float | None = None
    predicted_p90: float | None = None
    predicted_at: int = 0
    review_at: int = 0
    next_check_length: int = 0
    end_tokens: frozenset[int] = frozenset()
    told_blocks: int = 0
    first_token_due: float | None = None
    tpot_s: float | None = None
    first_token_at: float | None = None
    given: int = 0
    priority: int = 0
    background: bool = False
    adapter: str = ""
    trace_context: str = ""
    silent: bool = False
    prompt_read: bool = False
    kv: KvHandle | None = None
    fetched: bool = False
    ahead: str = ""
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.prompt) + len(self.output)

    @property
    def to_compute(self) -> int:
        """Tokens whose computation has not begun, as far as that can be known."""
        return self.length - (self.expected_cached if self.state is State.WAITING else self.planned)

    @property
    def ends_by_itself(self) -> bool:
        """May its output end before its limit? Else its length says nothing of other answers."""
        return bool(self.sampling.stop_token_ids) or not (self.sampling.ignore_eos or self.silent)

    @property
    def turn(self) -> float:
        """When it would have come if all had the same priority: who has the least is next."""
        return self.arrived + PRIORITY_S * self.priority

    @property
    def own_tokens(self) -> int:
        """Tokens in blocks that nobody else uses, as far as they were shared when they were taken."""
        return self.length - self.shared_blocks * (self.room // max(1, len(self.blocks)))

    def keys_until(self, end: int, block_size: int) -> list[bytes]:
        """The keys of its full blocks before position `end`, or of more."""
        known = len(self.keys)
        if end // block_size > known:
            parent = self.keys[-1] if known else self.prefix_root
            self.keys += block_keys(parent, self.tokens(known * block_size, end), block_size)
        return self.keys

    def decodes(self) -> None:
        """Its prompt is done, or its forecast is new: leave it alone until something is due."""
        self.state = State.DECODE
        self.next_check_length = min(self.review_at, len(self.prompt) + self.max_tokens)

    def tokens(self, begin: int, end: int) -> tuple[int, ...]:
        """Token ids at positions begin .. end - 1."""
        prompt = len(self.prompt)
        if begin >= prompt:
            return tuple(self.output[begin - prompt : end - prompt])
        if end <= prompt:
            return self.prompt[begin:end]
        return self.prompt[begin:] + tuple(self.output[: end - prompt])
