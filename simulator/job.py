"""One request on its way through a simulated cluster, and what its user sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.scheduler.expectation import LengthBelief
from router.scheduler.prefix_index import Prefix
from router.scheduler.slo import SloTarget
from tidepipe_common.prefix import STRIDE, block_keys, root_key, told_key
from tidepipe_common.settings.defaults import BLOCK_SIZE
from workloads.content import ANSWER, OWN_PARTS, Content, token_ids

NOT_YET = float("inf")
P90 = 1.5
"""The 90th percentile of a predicted length over its median."""
ROOT = root_key("")
"""Simulated requests are all of one tenant."""


@dataclass(slots=True, eq=False)
class Job:
    """Lengths in tokens, times in seconds.

    expected: the output's length as predicted at arrival. computed: prompt tokens computed so far.
    generated: output tokens so far, kept up when it is preempted or ends. first: its first token.
    resumed: when decoding of its second token began. finished: its last token. refused: for overload.
    content: what its prompt consists of, if others may have parts of it. keys: of the full blocks of its
        prompt and output, if it may share them. expected_cached: tokens that will probably be found, or were.
    cached: tokens of its prompt that were found when it was first admitted.
    blocks, shared_blocks: what it uses of its instance's store, see BlockUser.
    begins_at, entered_blocks: as of a controller's sequence.
    submitted: when it came to its instance. begun_at: when it had its first token there, or came with some;
    given: output tokens that it came with. review_at: output tokens at which the forecast of its memory is
        made anew.
    passes_on: it will probably go on elsewhere, see Route.
    start_round, last_round: decode rounds of its instance in which it takes part (from, to).
    following: the next turn of its conversation, which comes think_s after it has ended; only then its
        arrival is known.
    """

    index: int
    prompt: int
    output: int
    arrival: float
    slo: SloTarget
    expected: int = 0
    computed: int = 0
    generated: int = 0
    first: float = NOT_YET
    resumed: float = NOT_YET
    finished: float = NOT_YET
    refused: float = NOT_YET
    content: Content = ()
    keys: Sequence[bytes] = ()
    expected_cached: int = 0
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0
    begins_at: int = 0
    entered_blocks: int = 0
    submitted: float = 0.0
    begun_at: float = NOT_YET
    given: int = 0
    review_at: int = 0
    passes_on: bool = False
    start_round: int = 0
    last_round: int = 0
    preemptions: int = 0
    decoding: bool = False
    following: Job | None = None
    think_s: float = 0.0

    @property
    def belief(self) -> LengthBelief:
        """What its instance believes of its output's length."""
        return LengthBelief.from_quantiles(self.expected, P90 * self.expected)

    @property
    def to_compute(self) -> int:
        """Prompt, and output that a preemption made part of it."""
        return self.prompt + self.generated

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids of its prompt."""
        return token_ids(self.content or ((OWN_PARTS + self.index, self.prompt),))

    def make_keys(self) -> None:
        """From now on its blocks can be found, and it finds others'."""
        if not self.keys:
            self.keys = block_keys(ROOT, self.prompt_ids + (ANSWER,) * (self.output - 1), BLOCK_SIZE)

    @property
    def findable_keys(self) -> Sequence[bytes]:
        """Of what it could find now: its last token is computed in any case."""
        return self.keys[: (self.to_compute - 1) // BLOCK_SIZE]

    @property
    def prefix(self) -> Prefix:
        """What the router knows its prompt's beginning by."""
        return tuple(map(told_key, self.keys[: self.prompt // BLOCK_SIZE][STRIDE - 1 :: STRIDE]))

    def ttft(self, *, switch_wait: bool) -> float:
        """Seconds to the first token; switch_wait (EcoServe): to when the second can flow."""
        if switch_wait and self.output > 1:
            return max(self.resumed, self.first) - self.arrival
        return self.first - self.arrival

    def tpot(self, *, switch_wait: bool) -> float:
        """Seconds per token after that; 0 for an output of one token."""
        if self.output < 2:
            return 0.0
        begin = max(self.resumed, self.first) if switch_wait else self.first
        return (self.finished - begin) / (self.output - 1)

    def met(self, *, switch_wait: bool) -> bool:
        """Both targets."""
        return (
            self.ttft(switch_wait=switch_wait) <= self.slo.ttft_s
            and self.tpot(switch_wait=switch_wait) <= self.slo.tpot_s
        )
