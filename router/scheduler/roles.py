"""Roles as numbers: an instance's share of prefill, what requests were like lately, and what one point of all
shares is predicted to serve.

A share of 0 only decodes and a share of 1 only computes prompts (disaggregation, as DistServe does); where
all have the same, all do both (hybrid batching, or PaDG where they take turns). Between these points an
instance takes prompts by its share and decodes by the rest, as TaiChi's instances of either kind do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from router.scheduler.instance_report import NO_TRANSFER, KvTransfer
from router.scheduler.prefill import PrefillTime
from router.scheduler.slo import SloTarget
from tidepipe_common.latency.transfer import TransferCost
from tidepipe_common.latency.work import prompt_work

EVEN = 0.5
"""The share of an instance that is like all others. Only differences between shares mean anything."""
ALIKE = 0.02
"""Shares that differ by less are the same."""


@dataclass(frozen=True, slots=True)
class Role:
    """share: of prefill, 0 to 1. Why it has it, and the numbers behind that."""

    share: float = EVEN
    reason: str = "all alike"
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        return f"{self.reason} ({numbers})" if numbers else self.reason


EVERYBODY = Role()


def differ(shares: Sequence[float]) -> bool:
    """Is there anything to tell instances apart by?"""
    return bool(shares) and max(shares) - min(shares) > ALIKE


# -- what requests are like --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of late. rate: per second. prompt, output: mean tokens, with their spreads, the
    mean square by the squared mean."""

    rate: float
    prompt: float
    output: float
    slo: SloTarget
    prompt_spread: float = 1.0
    output_spread: float = 1.0


class MixMeter:
    """The newest requests and answers. Bounded."""

    KEPT, WINDOW_S = 1024, 120.0
    ENOUGH, SHARE = 32, 0.75
    """Answers, and their share of all that was asked, from which outputs are known: short ones end first."""

    def __init__(self) -> None:
        self._asked = self._answered = 0
        self._arrivals: deque[tuple[float, int]] = deque(maxlen=self.KEPT)
        self._outputs: deque[int] = deque(maxlen=self.KEPT)
        self._slo: SloTarget | None = None

    def arrived(self, prompt_tokens: int, slo: SloTarget, now: float) -> None:
        """A request was sent to an instance for the first time."""
        self._asked += 1
        self._arrivals.append((now, prompt_tokens))
        self._slo = slo
        while self._arrivals[0][0] < now - self.WINDOW_S:
            self._arrivals.popleft()

    def ended(self, output_tokens: int) -> None:
        """An answer is complete."""
        self._answered += 1
        self._outputs.append(output_tokens)

    @property
    def output(self) -> float | None:
        """Mean tokens of an answer; None: nobody has ended."""
        return sum(self._outputs) / len(self._outputs) if self._outputs else None

    def mix(self, now: float) -> Mix | None:
        """None: too little is known yet."""
        if self._slo is None or self._answered < max(self.ENOUGH, self.SHARE * self._asked):
            return None
        prompts = [tokens for at, tokens in self._arrivals if at >= now - self.WINDOW_S]
        if not prompts:
            return None
        prompt, prompt_spread = _mean_and_spread(prompts)
        output, output_spread = _mean_and_spread(self._outputs)
        seconds = max(1.0, now - self._arrivals[0][0])
        return Mix(len(prompts) / seconds, prompt, output, self._slo, prompt_spread, output_spread)


def _mean_and_spread(tokens: Collection[int]) -> tuple[float, float]:
    mean = max(1.0, sum(tokens) / len(tokens))
    return mean, max(1.0, sum(one * one for one in tokens) / len(tokens) / mean**2)


# -- links ----------------------------------------------------------------------------------------------


class Ways:
    """When each instance's way in and way out will be free of the blocks that were sent over it: one transfer
    after the other, as far as can be told from here."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, str], float] = {}

    def seconds(self, source: str, target: str, nbytes: float, transfer: KvTransfer, now: float) -> float:
        """Until so many bytes would have arrived."""
        begin = max(now, self._free.get(("out", source), now), self._free.get(("in", target), now))
        return begin - now + TransferCost(transfer.bytes_per_s).seconds(nbytes)

    def send(self, source: str, target: str, nbytes: float, transfer: KvTransfer, now: float) -> None:
        """They are sent."""
        until = now + self.seconds(source, target, nbytes, transfer, now)
        self._free[("out", source)] = self._free[("in", target)] = until
        if len(self._free) > 4096:
            self._free = {way: at for way, at in self._free.items() if at > now}


# -- what a point of all shares serves ----------------------------------------------------------------------

TPOT_MARGIN, TPOT_APART_MARGIN = 0.93, 0.97
"""Of the target, that a mean may take, for one request in ten is slower: beside prompts, and without them."""
LATE = 0.1
"""Share of the requests that may come late."""
MOST_BUSY = 0.95
"""Share of the time that a way, or an instance with prompts, can be busy."""
MEMORY = 0.95
ROUNDS = 24
"""Of the fixed point between how many decode and how long a token takes them."""


@dataclass(frozen=True, slots=True)
class Power:
    """What one instance can do. kv_tokens: its memory. transfer: of blocks that come to it."""

    prefill: PrefillTime
    kv_tokens: int
    transfer: KvTransfer = NO_TRANSFER


@dataclass(frozen=True, slots=True)
class Predicted:
    """rate: requests per second within the targets. limit: what stands against more."""

    rate: float
    limit: str


def predicted_goodput(shares: Sequence[float], powers: Sequence[Power], mix: Mix) -> Predicted:
    """The rate up to which such instances with these shares hold the targets of such requests.

    Prompts go to instances by their shares, decoding by what is left of them; what an instance computes of
    prompts beyond what it decodes is handed over. Queues are M/G/1, batches in their steady state.
    """
    total, rest = sum(shares), sum(1.0 - share for share in shares)
    if total <= 0.0 or rest <= 0.0:
        return Predicted(0.0, "nobody computes prompts" if total <= 0.0 else "nobody decodes")
    classes = {
        (share / total, (1.0 - share) / rest, id(power.prefill), power.transfer): power
        for share, power in zip(shares, powers, strict=True)
    }
    kinds = [(key[0], key[1], power) for key, power in classes.items()]
    low, limit = 0.0, ""
    high = 1.0
    while high < 1e5 and not (limit := _obstacle(kinds, mix, high)):
        low, high = high, 2.0 * high
    for _ in range(12):
        middle = (low + high) / 2
        if found := _obstacle(kinds, mix, middle):
            high, limit = middle, found
        else:
            low = middle
    return Predicted(low, limit)


def _obstacle(kinds: Sequence[tuple[float, float, Power]], mix: Mix, rate: float) -> str:
    """What does not hold at this rate; empty: all does. kinds: of instances, with their parts of all prompts,
    and of all that decode."""
    for prompts, decodes, power in kinds:
        gone = max(0.0, prompts - decodes)
        moved = rate * max(gone, decodes - prompts) * mix.prompt * power.transfer.token_bytes
        pause = 0.0
        if moved > 0.0:
            if power.transfer.bytes_per_s <= 0.0:
                return "KV blocks cannot travel"
            busy = moved / power.transfer.bytes_per_s
            if busy > MOST_BUSY:
                return "the links are full"
            alone = TransferCost(power.transfer.bytes_per_s).seconds(mix.prompt * power.transfer.token_bytes)
            pause = alone * (1.0 + mix.prompt_spread / 2 * busy / (1.0 - busy))
        # Whoever is handed over waits for its blocks before its second token.
        waits = pause if gone > LATE * prompts else 0.0
        if found := _instance_obstacle(power, mix, rate * prompts, rate * decodes, waits):
            return found
    return ""


def _instance_obstacle(power: Power, mix: Mix, prompts: float, decodes: float, pause_s: float) -> str:
    """Of one instance, to which so many prompts and decoding sequences per second come."""
    prefill = power.prefill
    stages, budget = prefill.stages, prefill.step_tokens
    # Whoever decodes at a time is rather one of the long ones.
    context = mix.prompt + mix.output * mix.output_spread / 2
    pairs = (mix.prompt_spread * mix.prompt + 1.0) / 2
    rows, tpot, busy, step = 0.0, 0.0, 0.0, 0.0
    most = MEMORY * power.kv_tokens / context
    for _ in range(ROUNDS):
        each = rows / stages
        chunk = budget - each
        if chunk < 1.0:
            return "decoding leaves no room for prompts in a step"
        plain = prefill.step_s(max(1, math.ceil(each)), each * context, 0.0)
        step = prefill.step_s(budget, each * context + mix.prompt / 2, chunk * pairs)
        busy = prompts * mix.prompt / chunk * step
        if busy > MOST_BUSY:
            return "prompts take all the time"
        tpot = stages / (busy / step + (1.0 - busy) / plain)
        before, rows = rows, decodes * mix.output * tpot
        if rows > most:
            return "memory is full"
        if rows - before <= 0.01 * rows:
            break
    margin = TPOT_MARGIN if prompts > 0.0 else TPOT_APART_MARGIN
    if decodes > 0.0 and tpot > margin * mix.slo.tpot_s:
        return "tokens take too long"
    if prompts <= 0.0:
        return ""
    alone = mix.prompt / (budget - rows / stages) * step
    left = mix.slo.ttft_s - alone - (stages - 1) * step - pause_s
    queue = alone * (1.0 + mix.prompt_spread) / 2
    if left <= 0.0 or busy * math.exp(-(1.0 - busy) * left / queue) > LATE:
        return "first tokens come too late"
    return ""


def busy_share(prefill: PrefillTime, mix: Mix | None, part: float) -> float | None:
    """Share of its time that an instance is busy with prompts. part: of all prompts, that go there."""
    if mix is None:
        return None
    return min(1.0, mix.rate * part * prefill.seconds(prompt_work(round(mix.prompt))))
