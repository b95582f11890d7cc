"""When the number of instances should change: EcoServe's triggers, with hysteresis."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from router.scheduler.slo import SloTarget


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """target: of most requests. window_s: over which means are taken.

    expand_at: share of the TTFT target at which to expand. 1 is the paper's: by then half of the requests
        miss it already, and the new instance first has to work the queue off.
    least, most: instances. calm_s: no further step before so much time has passed since the last one: an
    instance that was added must show its effect first. lasting_s: how long contraction must look right.
    """

    target: SloTarget
    window_s: float = 10.0
    expand_at: float = 0.3
    least: int = 1
    most: int = 64
    calm_s: float = 10.0
    lasting_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ScalingStep:
    """change: instances to add (above 0) or to remove (below 0); 0: leave it. And why."""

    change: int
    reason: str
    numbers: Mapping[str, float]


class AutoScaling:
    """Hears of first tokens and of slack, answers with steps of one instance.

    Expand when the mean TTFT over the window exceeds its limit: TTFT attainment falls first under overload.
    Requests that still wait count with the time they have waited, or a stalled queue would look fast.
    Contract when the mean saved TPOT exceeds TTFT * (n + 1) / n with n instances: one fewer would still pay
    for the prefill windows.
    """

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules
        self._seen: deque[tuple[float, float]] = deque()
        self._sum = 0.0
        self._stepped = float("-inf")
        self._ample_since: float | None = None

    def first_token(self, ttft_s: float, now: float) -> None:
        """A request got its first token."""
        self._seen.append((now, ttft_s))
        self._sum += ttft_s

    def step(
        self, instances: int, saved_s: float, oldest_wait_s: float, now: float, starting: int = 0
    ) -> ScalingStep:
        """instances: that serve. starting: that were asked for and do not serve yet; they count for `most`.

        saved_s: mean saved TPOT over all decoding requests (infinite if there are none).

        oldest_wait_s: of the requests that wait at the router.
        """
        rules = self.rules
        while self._seen and self._seen[0][0] < now - rules.window_s:
            self._sum -= self._seen.popleft()[1]
        mean = max(self._sum / len(self._seen) if self._seen else 0.0, oldest_wait_s)
        enough = rules.target.ttft_s * (instances + 1) / max(1, instances)
        limit = rules.expand_at * rules.target.ttft_s
        numbers = {"mean_ttft_s": mean, "limit_s": limit, "saved_s": saved_s, "enough_s": enough}
        ample = saved_s > enough and mean <= limit / 2
        self._ample_since = (now if self._ample_since is None else self._ample_since) if ample else None
        if now - self._stepped < rules.calm_s:
            return ScalingStep(0, "the last step is too recent", numbers)
        if mean > limit and instances + starting < rules.most:
            self._stepped = now
            return ScalingStep(1, "mean TTFT exceeds its limit", numbers)
        lasts = self._ample_since is not None and now - self._ample_since >= rules.lasting_s
        if lasts and instances > rules.least and not starting:
            self._stepped = now
            self._ample_since = None
            return ScalingStep(-1, "saved TPOT would pay for one instance fewer", numbers)
        return ScalingStep(0, "within its targets", numbers)
