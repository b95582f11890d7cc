"""The forecast of the KV memory that admitted sequences will need (TD-Pipe, AI-based greedy prefill).

The published code samples a fixed list of horizons (5, 8, 16, .. 4096 decode steps) anew at each decision.
Here time is a grid of decode steps, and each sequence is a contribution that is added once and subtracted
once, so that a decision costs microseconds whatever the number of sequences.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from controller.scheduler.expectation import LengthBelief

GRID = 256
"""Points on the time axis; the first half is `now` .. the longest output, the rest room to move on. The
profile is exact at these points; between two of them hundreds of sequences grow and end: it hardly moves."""
_ANY = 1 << 30
RENEW_AT = 0.8
"""A sequence whose chance to get this far was this share is looked at anew: it did, so it is certain now."""

Vector = npt.NDArray[np.float64]


class _Share:
    """One sequence's contribution: tokens `base + T` at time T, with probability `survival`."""

    __slots__ = ("base", "origin", "survival", "until")

    def __init__(self, base: float, until: int, survival: Vector | None, origin: int) -> None:
        self.base = base
        self.until = until
        self.survival = survival
        self.origin = origin


class KvForecast:
    """Expected KV tokens, and their variance, at future decode steps.

    Time T counts decode steps since the epoch's start; each running sequence grows by one token per step. A
    sequence of length L at time T0 holds base + T tokens at T, base = L - T0, until it ends. With a certain
    belief about its end it counts fully until then; otherwise with its probability to go on, S(T), and
    contributes S (1 - S) (base + T)^2 to the variance.

    Who still runs has S = 1 by now, whatever S was told of now: the others have ended and are not in the sum
    any more. Each sequence is looked at anew when its S has fallen to RENEW_AT; between that, all are scaled
    up by the tokens that are there over the tokens that were expected.
    """

    def __init__(self, block_size: int, longest: int) -> None:
        """longest: tokens of one sequence at most."""
        self.now = 0.0
        # Half a block per sequence is lost to rounding, on average.
        self._rounding = (block_size - 1) / 2
        self._width = max(4.0, longest / (GRID / 2 - 2))
        self._origin = 0
        self._shares: dict[int, _Share] = {}
        self._count = np.zeros(GRID)
        self._base = np.zeros(GRID)
        self._spread = np.zeros((3, GRID))
        self._times = np.arange(GRID) * self._width
        self._doubtful = 0
        # Of all that run, whatever was expected of them: their tokens now are this plus their number x now.
        self._running_base = 0.0
        self.unpaid = 0.0
        """Tokens in use that are no sequence's own (BlockStore): taken to stay until they are free."""

    @property
    def doubtful(self) -> bool:
        """True if there is a sequence whose end is not certain."""
        return self._doubtful > 0

    def advance(self, steps: float) -> None:
        """Each running sequence took this many decode steps (a fraction if only some did)."""
        self.now += steps
        passed = int(self.now / self._width) - self._origin
        if passed >= GRID // 2:
            for values in (self._count, self._base, *self._spread):
                values[:-passed] = values[passed:].copy()
                values[-passed:] = 0.0
            self._origin += passed
            self._times += passed * self._width

    def put(self, key: int, length: int, generated: int, belief: LengthBelief, allowed: int) -> int:
        """Add or renew a sequence; returns the output length at which the forecast should be renewed.

        length: tokens now, of which `generated` are output. allowed: further tokens at most.
        """
        self.remove(key)
        share, review = self._share(length, generated, belief, allowed)
        self._shares[key] = share
        self._enter(share, 1)
        return review

    def __contains__(self, key: int) -> bool:
        return key in self._shares

    def remove(self, key: int) -> None:
        """A sequence holds nothing any more; unknown ones are no error."""
        if (share := self._shares.pop(key, None)) is not None:
            self._enter(share, -1)

    def peak_tokens(self, risk: float = 0.0) -> float:
        """Largest expected number of tokens from now on, plus `risk` standard deviations."""
        return self.unpaid + self._peak(self._running_tokens(), risk)

    def peak_with(
        self,
        length: int,
        generated: int,
        belief: LengthBelief,
        allowed: int,
        risk: float = 0.0,
        count: int = 1,
    ) -> float:
        """The peak if one more sequence, or so many of the kind, were admitted now."""
        share, _ = self._share(length, generated, belief, allowed)
        if share.survival is None and not self._doubtful and count == 1:
            return self.unpaid + self._peak_with_certain(share)
        self._add(share, float(count))
        peak = self._peak(self._running_tokens() + count * (share.base + self.now), risk)
        self._add(share, -float(count))
        return self.unpaid + peak

    def peak_with_mean(self, tokens: int, rest: float, count: int) -> float:
        """The peak if so many more were admitted now, with `tokens` together and `rest` to come; each as
        they are in the mean."""
        if not count:
            return self.peak_tokens()
        return self.peak_with(tokens // count, 0, LengthBelief(rest / count, math.inf), _ANY, count=count)

    def _peak_with_certain(self, share: _Share) -> float:
        """The same as adding, looking and removing, in a third of the time, for every candidate."""
        first = self._bucket(self.now)
        times = self._times[first:]
        tokens = self._count[first:] * times
        tokens += self._base[first:]
        present = self._base[first] + self._count[first] * self.now + share.base + self.now
        tokens[: share.until - first] += times[: share.until - first] + share.base
        return float(max(tokens[1:].max(initial=0.0), present))

    def profile(self) -> tuple[Vector, Vector]:
        """Future decode steps from now, and the tokens expected then (for pictures)."""
        first = self._bucket(self.now)
        times = np.maximum(self._times[first:], self.now)
        tokens = self._base[first:] + self._count[first:] * times
        return times - self.now, tokens * self._proved(self._running_tokens()) + self.unpaid

    def _running_tokens(self) -> float:
        """What all that run hold now."""
        return self._running_base + len(self._shares) * self.now

    def _proved(self, running_tokens: float) -> float:
        """Tokens that are there over those that were expected of now, at least 1."""
        first = self._bucket(self.now)
        expected = float(self._base[first] + self._count[first] * self.now)
        return max(1.0, running_tokens / expected) if self._doubtful and expected > 1.0 else 1.0

    def _enter(self, share: _Share, sign: int) -> None:
        """Of a sequence that runs (1), or does not any more (-1)."""
        self._add(share, float(sign))
        self._running_base += sign * share.base
        self._doubtful += sign * (share.survival is not None)

    def _bucket(self, time: float) -> int:
        return min(int(time / self._width) - self._origin, GRID - 1)

    def _share(self, length: int, generated: int, belief: LengthBelief, allowed: int) -> tuple[_Share, int]:
        base = length + self._rounding - self.now
        first = self._bucket(self.now)
        certain = math.isinf(belief.shape)
        remaining = min(belief.remaining(generated), float(allowed))
        if certain or allowed <= self._width:
            until = self._bucket(self.now + remaining) + 1
            return _Share(base, until, None, self._origin), generated + max(1, math.ceil(remaining))
        last = self._bucket(self.now + allowed) + 1
        # Both count from where the belief does.
        said = max(0, generated - belief.origin)
        ages = np.maximum(self._times[first:last] - self.now, 0.0) + said
        # S(age) / S(generated) of a log-logistic, in logarithms: sharp beliefs would overflow.
        powers = belief.shape * np.log(np.maximum(ages, 1e-9) / belief.median)
        survived = belief.shape * math.log(max(said, 1e-9) / belief.median)
        survival = np.exp(np.logaddexp(0.0, survived) - np.logaddexp(0.0, powers))
        survival[survival < 0.01] = 0.0
        whole = np.zeros(GRID)
        whole[:first] = 1.0
        whole[first:last] = survival
        renew = min(belief.remaining(generated, RENEW_AT), float(allowed))
        return _Share(base, last, whole, self._origin), generated + max(16, math.ceil(renew))

    def _add(self, share: _Share, sign: float) -> None:
        moved = self._origin - share.origin
        until = share.until - moved
        if until <= 0:
            return
        if share.survival is None:
            self._count[:until] += sign
            self._base[:until] += sign * share.base
            return
        alive = share.survival[moved : moved + until]
        count, base = self._count[: len(alive)], self._base[: len(alive)]
        count += sign * alive
        base += (sign * share.base) * alive
        doubt = alive * (1.0 - alive)
        spread = self._spread[:, : len(alive)]
        spread[0] += sign * doubt
        spread[1] += (sign * share.base) * doubt
        spread[2] += (sign * share.base * share.base) * doubt

    def _peak(self, running_tokens: float, risk: float) -> float:
        base, count, spread = self._base, self._count, self._spread
        first = self._bucket(self.now)
        times = self._times[first:]
        tokens = base[first:] + count[first:] * times
        # The grid point before now is extrapolated to the past: growth since then is at most a bucket.
        present = base[first] + count[first] * self.now
        if self._doubtful:
            proved = self._proved(running_tokens)
            tokens *= proved
            present *= proved
        if risk and self._doubtful:
            variance = spread[2, first:] + 2 * spread[1, first:] * times + spread[0, first:] * times * times
            tokens = tokens + risk * np.sqrt(np.maximum(variance, 0.0))
        return float(max(tokens[1:].max(initial=0.0), present))
