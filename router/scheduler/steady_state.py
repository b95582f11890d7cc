"""The steady-state model of an instance, and what it bears: for scaling, roles and the fluid bound.

Requests come evenly, and all rounds are alike: a token for each that decodes, and as many prompt tokens as
come in a round. With d sequences per second of o output tokens each, rounds of t seconds have d o t decode
rows, and what a round takes depends on these. So a round's length is a fixed point: the least one, for
rounds begin short. What is left to chance is in the margins, and in the queue of prompts (M/G/k: a prompt
goes where it is done soonest, so that instances of a kind share one line).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.scheduler.prefill import PrefillTime
from router.scheduler.slo import SloTarget

EVENLY = 0
"""A way to compute prompts: in every round as many tokens as come in a round. Else tokens of a step that they
ride on, or OWN_STEPS."""
OWN_STEPS = -1
OWN_TOKENS = 2048
"""Of a step that computes prompts alone."""
PACED = (512, 1024, 256, 128)
"""Tokens of a step where the instance chooses them by targets (`auto`), the likeliest first."""
KV_SHARE = 0.97
"""Of an instance's memory that forecasts may fill."""
ROUNDS = 100
SETTLED = 2e-3
"""Growth of a round that is the last one."""


@dataclass(frozen=True, slots=True)
class Margins:
    """What a mean may take, for chance's sake. tpot: of the target; memory, busy: of what there is.

    late: share of the first tokens that may be; 1: nobody asks. waits: for activations between stages, of the
    time that they take; 0 where more batches than stages could hide it.
    """

    tpot: float
    memory: float = KV_SHARE
    busy: float = 1.0
    late: float = 1.0
    waits: float = 1.0


IDEAL = Margins(1.0, 0.99, waits=0.0)
"""Nothing is left to chance: for a bound. One block in a hundred is free, as engines admit."""
LASTING = Margins(0.95)
"""A rate that goes on for ever, first tokens aside: scaling leaves room for bursts by itself."""
BESIDE = Margins(0.93, 0.95, 0.95, 0.1)
"""Nine in ten within both targets, where prompts are computed beside decoding: one request in ten is slower
than the mean by a fourteenth, and a queue that is busy for more of the time is none."""
ALONE = Margins(0.97, 0.95, 0.95, 0.1)
"""The same where an instance has one thing to do: rounds without prompts are more alike."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a request, on average, tokens: of its prompt what is computed, pairs of its attention, output.

    prompt_spread, output_spread: mean squares by squared means. found: of its prompt, what is there before.
    held: tokens in memory, summed over the rounds in which it decodes; 0: as if outputs knew nothing of
    prompts.
    """

    prompt: float
    pairs: float
    output: float
    prompt_spread: float = 1.0
    output_spread: float = 1.0
    found: float = 0.0
    held: float = 0.0

    @property
    def context(self) -> float:
        """That one holds which decodes; it is rather one of the long ones."""
        if self.held:
            return self.held / max(1e-9, self.output)
        return self.prompt + self.found + self.output * self.output_spread / 2


class Load(NamedTuple):
    """Of one instance: prompts that it computes and sequences that it decodes, per second. pause_s: before
    a first token can go on, beside what it does. servers: instances like it that prompts are spread over."""

    prompts: float
    decodes: float
    pause_s: float = 0.0
    servers: int = 1


class Settled(NamedTuple):
    """round_s: a round's length; 0: there is none. busy: share of the time in steps with prompts. step_s:
    of such a step. room: tokens of prompts in it. tokens: of a step on average, with its decode rows. limit:
    what stands against it; empty: nothing."""

    round_s: float = 0.0
    busy: float = 0.0
    step_s: float = 0.0
    room: float = 0.0
    tokens: float = 0.0
    limit: str = ""


SLOW, FULL_STEPS, FULL_MEMORY, LATE = (
    "tokens take too long",
    "prompts take all the time",
    "memory is full",
    "first tokens come too late",
)


class SteadyState:
    """Of one kind of instance, and of requests of such sizes. kv_tokens: its memory; 0: not known."""

    def __init__(self, prefill: PrefillTime, kv_tokens: int, sizes: Sizes) -> None:
        self._prefill, self._kv, self._sizes = prefill, kv_tokens, sizes

    def settled(self, load: Load, way: int, longest_s: float, margins: Margins) -> Settled:
        """The least round that brings no more to the next than it can do. way: see EVENLY."""
        round_s, grown = self._prefill.stages * self._step_s(1.0, margins), 0.0
        if round_s > longest_s:
            return Settled(limit=SLOW)
        found = Settled()
        for _ in range(ROUNDS):
            found = self._round(load, way, round_s, margins)
            if found.limit:
                return found
            before, grown = grown, found.round_s - round_s
            if grown <= SETTLED * round_s:
                if grown > 0.0 < before:
                    # What the rounds behind it would add.
                    round_s += grown / (1.0 - min(0.95, grown / before))
                break
            round_s = found.round_s
            if round_s > longest_s:
                break
        else:
            return Settled(limit=SLOW)
        if round_s > longest_s:
            return Settled(limit=SLOW)
        if (
            self._kv
            and load.decodes * self._sizes.output * round_s * self._sizes.context > margins.memory * self._kv
        ):
            return Settled(limit=FULL_MEMORY)
        return found._replace(round_s=round_s)

    def obstacle(self, load: Load, way: int, target: SloTarget, margins: Margins) -> str:
        """What of the targets does not hold; empty: all does."""
        found = self.settled(
            load, way, margins.tpot * target.tpot_s if load.decodes > 0.0 else math.inf, margins
        )
        if found.limit or load.prompts <= 0.0 or margins.late >= 1.0:
            return found.limit
        sizes = self._sizes
        alone = sizes.prompt / found.room * found.step_s
        left = target.ttft_s - alone - (self._prefill.stages - 1) * found.step_s - load.pause_s
        queue = alone * (1.0 + sizes.prompt_spread) / 2
        if left <= 0.0 or waits_longer(found.busy, load.servers, left / queue) > margins.late:
            return LATE
        return ""

    def prompts_per_s(self) -> float:
        """That it computes while it does nothing else."""
        steps = self._sizes.prompt / OWN_TOKENS * self._prefill.step_s(OWN_TOKENS, 0, 0.0)
        return 1.0 / (steps + self._prefill.attention_s(0, self._sizes.pairs))

    def _round(self, load: Load, way: int, round_s: float, margins: Margins) -> Settled:
        """What comes in so many seconds, and what that takes."""
        sizes, prefill = self._sizes, self._prefill
        stages = prefill.stages
        rows = load.decodes * sizes.output * round_s
        each, come = rows / stages, load.prompts * sizes.prompt * round_s / stages
        pairs = load.prompts * sizes.pairs * round_s
        attention = prefill.attention_s(rows * sizes.context, pairs)
        plain = self._step_s(each, margins) if each > 0.0 else 0.0
        if way == EVENLY:
            step_s = self._step_s(each + come, margins)
            return Settled(stages * step_s + attention, 1.0, step_s, come, each + come)
        if way == OWN_STEPS:
            step_s = self._step_s(OWN_TOKENS, margins)
            spent = stages * (come / OWN_TOKENS * step_s + plain)
            return Settled(spent + attention, 0.0, step_s, OWN_TOKENS, each + come)
        room = way - each
        if room < 1.0 or come > room:
            return Settled(limit=FULL_STEPS)
        share = come / room
        step_s = self._step_s(way, margins)
        spent = stages * (share * step_s + (1.0 - share) * plain)
        # Of the attention that of prompts is in their steps.
        reading = prefill.attention_s(rows * sizes.context / stages, 0.0)
        step_s += reading + (
            prefill.attention_s(0.0, room / sizes.prompt * sizes.pairs) if sizes.prompt else 0.0
        )
        busy = stages * share * step_s / max(round_s, 1e-12)
        if busy > margins.busy:
            return Settled(limit=FULL_STEPS)
        return Settled(spent + attention, busy, step_s, room, each + come)

    def _step_s(self, tokens: float, margins: Margins) -> float:
        """Between two numbers of tokens both are taken in turn."""
        prefill, tokens = self._prefill, max(1.0, tokens)
        low = int(tokens)
        spent = prefill.linear_s(low)
        if rest := tokens - low:
            spent += rest * (prefill.linear_s(low + 1) - spent)
        return spent + margins.waits * prefill.hand_on_s(low)


def waits_longer(busy: float, servers: int, times: float) -> float:
    """How likely one waits for more than so many times the mean work (length-biased, as one finds it) before
    one of so many servers, which are busy for such a share of the time, takes it: Erlang's C, and the tail of
    M/M/k with the time stretched by the spread of the work (Lee and Longton, 1959)."""
    if busy >= 1.0:
        return 1.0
    offered, blocked = servers * busy, 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    queued = blocked / (1.0 - busy * (1.0 - blocked))
    return queued * math.exp(-(1.0 - busy) * servers * times)


def highest(holds: Callable[[float], bool], precision: float) -> float:
    """The highest rate that holds, or as much less as a share of it; 0: not even a very low one; infinite
    where any does."""
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
        if high > 1e6:
            return math.inf
    while high - low > precision * high and high > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
