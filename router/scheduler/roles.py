"""Roles as numbers: an instance's share of prefill, and what one point of all shares is predicted to serve.

A share of 0 only decodes and a share of 1 only computes prompts (disaggregation, as DistServe does); where
all have the same, all do both (hybrid batching, or PaDG where they take turns). Between these points an
instance takes prompts by its share and decodes by the rest, as TaiChi's instances of either kind do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from router.scheduler.demand import Mix
from router.scheduler.prefill import PrefillTime
from router.scheduler.steady_state import (
    ALONE,
    BESIDE,
    EVENLY,
    OWN_TOKENS,
    PACED,
    Load,
    SteadyState,
    highest,
)
from tidepipe_common.latency.work import prompt_work
from tidepipe_common.types.kv_transfer import NO_TRANSFER, KvTransfer, KvWay

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


# -- links ----------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """Between two instances, by their names. near: within a node. way: what it takes to the target."""

    source: str
    target: str
    near: bool
    way: KvWay


class Ways:
    """When each instance's ways in and out, to other nodes and within its own, will be free of the blocks
    that were sent over them: one transfer after the other, as far as can be told from here."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, str, bool], float] = {}

    def seconds(self, link: Link, nbytes: float, now: float) -> float:
        """Until so many bytes would have arrived."""
        return self._begins(link, now) - now + link.way.seconds(nbytes)

    def send(self, link: Link, nbytes: float, now: float) -> None:
        """They are sent. Their fixed time keeps nobody from the way."""
        until = self._begins(link, now) + nbytes / link.way.bytes_per_s
        self._free[("out", link.source, link.near)] = self._free[("in", link.target, link.near)] = until
        if len(self._free) > 4096:
            self._free = {way: at for way, at in self._free.items() if at > now}

    def _begins(self, link: Link, now: float) -> float:
        out, into = ("out", link.source, link.near), ("in", link.target, link.near)
        return max(now, self._free.get(out, now), self._free.get(into, now))


def left_s(way: KvWay, whole_s: float, beside_s: float) -> float:
    """Until the rest of blocks is there that take so long, and have been sent for beside_s already."""
    return max(way.latency_s, whole_s - beside_s)


# -- what a point of all shares serves ----------------------------------------------------------------------

MOST_BUSY = 0.95
"""Share of the time that a way can be busy."""
PRECISION = 0.01


@dataclass(frozen=True, slots=True)
class Power:
    """What one instance can do. kv_tokens: its memory. transfer: of blocks that come to it. paced: it chooses
    the tokens of its steps by targets."""

    prefill: PrefillTime
    kv_tokens: int
    transfer: KvTransfer = NO_TRANSFER
    paced: bool = False


@dataclass(frozen=True, slots=True)
class Predicted:
    """rate: requests per second within the targets. limit: what stands against more."""

    rate: float
    limit: str


class Kind(NamedTuple):
    """Instances that are alike: such parts of all prompts and of all that decodes come to each of them."""

    prompts: float
    decodes: float
    power: Power


class Prospect:
    """The rates up to which instances with such shares hold the targets of such requests.

    Prompts go to instances by their shares, decoding by what is left of them; what an instance computes of
    prompts beyond what it decodes is handed over. See `SteadyState`. Each kind of instance is asked once.
    """

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._known: dict[tuple[Power, float, float, int], float] = {}

    def goodput(
        self, shares: Sequence[float], powers: Sequence[Power], nodes: Sequence[str] = ()
    ) -> Predicted:
        """Of one point: that of the instance that bears least of what comes to it. nodes: within which blocks
        come by the near way; empty: they do not, or it is not known."""
        total, rest = sum(shares), sum(1.0 - share for share in shares)
        if total <= 0.0 or rest <= 0.0:
            return Predicted(0.0, "nobody computes prompts" if total <= 0.0 else "nobody decodes")
        parts = _parts(shares, powers, nodes)
        rate, kind, near, count = min(
            ((self._bears(kind, near, count), kind, near, count) for kind, near, count in parts),
            key=lambda found: found[0],
        )
        return Predicted(rate, self._obstacle(kind, near, count, rate * (1.0 + 2 * PRECISION)))

    def serves(
        self, shares: Sequence[float], powers: Sequence[Power], nodes: Sequence[str], rate: float
    ) -> bool:
        """Does one point hold the targets at such a rate? Less work than finding its highest one."""
        if not 0.0 < sum(shares) < len(shares) or math.isinf(rate):
            return False
        return not any(self._obstacle(*part, rate) for part in _parts(shares, powers, nodes))

    def _bears(self, kind: Kind, near: float, count: int) -> float:
        """Requests per second of all, of which such parts come to each of so many."""
        # Only the ratio matters: who decodes, or so many who compute prompts, are asked once for all splits.
        prompts, decodes, power = kind
        most = max(prompts, decodes)
        count = count if prompts > 0.0 else 1
        key = power, round(prompts / most - decodes / most, 4), round(near, 4), count
        if key not in self._known:
            one = Kind(prompts / most, decodes / most, power)
            self._known[key] = highest(lambda rate: not self._obstacle(one, near, count, rate), PRECISION)
        return self._known[key] / most

    def _obstacle(self, kind: Kind, near: float, count: int, rate: float) -> str:
        """What does not hold for so many instances to each of which such parts come, where that part of what
        moves stays near; empty: all does."""
        prompts, decodes, power = kind
        sizes, pause = self._mix.sizes, 0.0
        each = (sizes.prompt + sizes.found) * power.transfer.token_bytes
        gone = max(0.0, prompts - decodes)
        moved = rate * abs(prompts - decodes) * each
        if abs(prompts - decodes) <= ALIKE * max(prompts, decodes):
            moved = 0.0
        elif not power.transfer.token_bytes:
            return "KV blocks cannot travel"
        if moved > 0.0:
            beside_s = power.prefill.seconds(prompt_work(round(sizes.prompt)))
            for link, part in ((power.transfer.far, 1.0 - near), (power.transfer.near, near)):
                if part <= 0.0:
                    continue
                if link.bytes_per_s <= 0.0:
                    return "KV blocks cannot travel"
                busy = part * moved / link.bytes_per_s
                if busy > MOST_BUSY:
                    return "the links are full"
                whole_s = link.seconds(each) * (1.0 + sizes.prompt_spread / 2 * busy / (1.0 - busy))
                # Blocks go ahead while their prompt is computed.
                pause += part * left_s(link, whole_s, beside_s)
        margins = BESIDE if prompts > 0.0 < decodes else ALONE
        # Whoever is handed over waits for its blocks before its second token.
        waits = pause if gone > margins.late * prompts else 0.0
        load = Load(rate * prompts, rate * decodes, waits, count)
        state = SteadyState(power.prefill, power.kv_tokens, sizes)
        found = ""
        for way in self._ways(load, power):
            if not (found := state.obstacle(load, way, self._mix.slo, margins)):
                break
        return found

    @staticmethod
    def _ways(load: Load, power: Power) -> Sequence[int]:
        if load.prompts <= 0.0:
            return (EVENLY,)
        if not power.paced:
            return (power.prefill.step_tokens,)
        return PACED if load.decodes > 0.0 else (OWN_TOKENS,)


def _parts(
    shares: Sequence[float], powers: Sequence[Power], nodes: Sequence[str]
) -> list[tuple[Kind, float, int]]:
    """The kinds of a point in which somebody computes prompts and somebody decodes, once each: with the part
    of what moves that stays in a node, and how many there are of the kind."""
    total, rest = sum(shares), sum(1.0 - share for share in shares)
    each = [Kind(share / total, (1.0 - share) / rest, one) for share, one in zip(shares, powers, strict=True)]
    stay = staying([kind.prompts - kind.decodes for kind in each], nodes)
    kinds = Counter(each)
    return [(kind, near, kinds[kind]) for kind, near in dict.fromkeys(zip(each, stay, strict=True))]


def staying(flows: Sequence[float], nodes: Sequence[str]) -> list[float]:
    """The part of what moves from (positive) or to (negative) each instance that stays within its node: there
    is taken what can be, before anything comes from elsewhere. Nodes without a name keep nothing."""
    out: dict[str, float] = {}
    into: dict[str, float] = {}
    places = list(nodes) or [""] * len(flows)
    for flow, node in zip(flows, places, strict=True):
        way = out if flow > 0.0 else into
        way[node] = way.get(node, 0.0) + abs(flow)
    found = []
    for flow, node in zip(flows, places, strict=True):
        mine, theirs = (out, into) if flow > 0.0 else (into, out)
        found.append(min(1.0, theirs.get(node, 0.0) / mine[node]) if node and flow else 0.0)
    return found


def busy_share(prefill: PrefillTime, mix: Mix | None, part: float) -> float | None:
    """Share of its time that an instance is busy with prompts. part: of all prompts, that go there."""
    if mix is None:
        return None
    return min(1.0, mix.rate * part * prefill.seconds(prompt_work(round(mix.sizes.prompt))))
