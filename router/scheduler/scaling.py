"""When the number of instances should change: by what will be asked for when a start would be over, and by
EcoServe's triggers, with hysteresis."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from router.scheduler.bearing import Bearing
from router.scheduler.demand import Demand
from router.scheduler.slo import SloTarget
from router.scheduler.steady_state import Sizes
from tidepipe_common.settings.defaults import SCALING_SHARE, SCALING_START_S

STARTS = 5
"""That are remembered; the longest of them counts."""
PROVEN_S = 60.0
"""A load that instances have borne within targets for so long is one that they bear. Not sooner: what was
saved is spent first, and an answer's decoding comes after its prompt."""
SATURATED_S = 10.0
"""First tokens are late for so long: then what comes out is all that instances can do."""


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """target: of most requests. window_s: over which means are taken.

    expand_at: share of the TTFT target at which first tokens are late. 1 is the paper's: by then half of the
        requests miss it already, and the new instance first has to work the queue off.
    least, most: instances. calm_s: no further step before so much time has passed since the last one: an
    instance that was added must show its effect first. lasting_s: how long contraction must look right.
    anticipate: ask for as many as will be needed when they serve; without, late first tokens ask for one.
    start_s: from asking for an instance until it serves, until starts were seen.
    share: of what instances bear that is planned with; the rest is for bursts. full, keep: times that. Above
        full more are asked for, after sure_s; one goes when one fewer would be below keep. Between the two
        nothing changes, or noise would.
    """

    target: SloTarget
    window_s: float = 10.0
    expand_at: float = 0.3
    least: int = 1
    most: int = 64
    calm_s: float = 10.0
    lasting_s: float = 30.0
    anticipate: bool = True
    start_s: float = SCALING_START_S
    share: float = SCALING_SHARE
    full: float = 1.08
    keep: float = 0.8
    sure_s: float = 2.5


@dataclass(frozen=True, slots=True)
class ScalingStep:
    """change: instances to add (above 0) or to remove (below 0); 0: leave it. And why."""

    change: int
    reason: str
    numbers: Mapping[str, float]


@dataclass(slots=True)
class StartTimes:
    """How long instances take from being asked for to serving."""

    otherwise_s: float
    _asked: deque[float] = field(default_factory=deque)
    _seen: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS))

    def asked(self, count: int, now: float) -> None:
        """So many were asked for."""
        self._asked.extend([now] * count)

    def joined(self, now: float) -> None:
        """One serves: the first that was asked for, if any was."""
        if self._asked:
            self._seen.append(now - self._asked.popleft())

    def under_way(self, count: int) -> None:
        """No more than so many are: others have failed."""
        while len(self._asked) > count:
            self._asked.pop()

    @property
    def seconds(self) -> float:
        """That the next one may take."""
        return max(self._seen) if self._seen else self.otherwise_s


class AutoScaling:
    """Hears of arrivals, first tokens, ends and slack, answers with steps.

    Expand, by as many as it takes, when more will be asked for when a start is over than the instances that
    serve then bear (`demand`, `bearing`). Where no cost model says what they bear, by one when the mean TTFT
    over the window exceeds its limit: TTFT attainment falls first under overload. Requests that still wait
    count with the time they have waited, or a stalled queue would look fast.

    Contract by one when the mean saved TPOT exceeds TTFT * (n + 1) / n with n instances: one fewer would
    still pay for the prefill windows; and when one fewer bears what will be asked for with ease.
    """

    def __init__(self, rules: ScalingRules, demand: Demand | None = None) -> None:
        """demand: the meter of what is asked for; None: one of its own, which somebody must tell."""
        self.rules = rules
        self.demand = demand or Demand()
        self.bearing = Bearing()
        self.starts = StartTimes(rules.start_s)
        self._seen: deque[tuple[float, float]] = deque()
        self._sum = 0.0
        self._stepped = float("-inf")
        self._ample_since: float | None = None
        self._bears = False
        self._refused = float("-inf")
        self._full_since: float | None = None
        self._late_since: float | None = None
        self._timely_since: float | None = None
        self._instances = 0
        self._looked = float("-inf")
        self._plan: Plan | None = None

    def first_token(self, ttft_s: float, now: float) -> None:
        """A request got its first token."""
        self._seen.append((now, ttft_s))
        self._sum += ttft_s

    def refused(self, now: float) -> None:
        """A request was refused, or waited in vain."""
        self._refused = now

    @property
    def sizes(self) -> Sizes | None:
        """What a request asks for on average, where that is to be known."""
        return self.demand.sizes if self.rules.anticipate else None

    def wants_model(self, now: float) -> bool:
        """Is it time to say what an instance bears by the cost model?"""
        self.demand.pass_time(now)
        return self.rules.anticipate and self.demand.fresh

    def look(self, bears: float, now: float) -> None:
        """bears: requests of the present sizes per second of one instance, by the cost model."""
        outlook = self.demand.outlook()
        known = self._bears = 0.0 < bears < float("inf")
        self._plan = None
        if known and outlook is not None:
            ahead_s = self.starts.seconds
            self._plan = Plan(outlook.rate, outlook.ahead(ahead_s), ahead_s, bears)
            self._learn(self._plan, now)
        self._looked = now

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
        refused = now - self._refused < rules.window_s
        self._note(instances, mean > limit or refused, saved_s < 0.0, now)
        fewer = True
        if self._plan is not None:
            numbers |= self._plan.numbers(self.bearing.factor, self.rules.share)
            have = instances + starting
            needed = min(rules.most, self._needed(rules.share))
            if self._full_for(have, now) >= rules.sure_s and needed > have:
                self._took(needed - have, now)
                return ScalingStep(needed - have, self._plan.reason(needed), numbers)
            fewer = self._needed(rules.share * rules.keep) < instances
        ample = saved_s > enough and mean <= limit / 2 and fewer
        self._ample_since = (now if self._ample_since is None else self._ample_since) if ample else None
        if now - self._stepped < rules.calm_s:
            return ScalingStep(0, "the last step is too recent", numbers)
        # While arrivals are too few for a forecast, what is only rather late is no reason yet.
        late = rules.target.ttft_s if rules.anticipate and self._bears else limit
        if mean > late and instances + starting < rules.most and self._plan is None:
            self._took(1, now)
            return ScalingStep(1, "mean TTFT exceeds its limit", numbers)
        lasts = self._ample_since is not None and now - self._ample_since >= rules.lasting_s
        if lasts and instances > rules.least and not starting:
            self._took(-1, now)
            self._ample_since = None
            return ScalingStep(-1, "saved TPOT would pay for one instance fewer", numbers)
        return ScalingStep(0, "within its targets", numbers)

    def _took(self, change: int, now: float) -> None:
        self._stepped = now
        if change > 0:
            self.starts.asked(change, now)

    def _full_for(self, instances: int, now: float) -> float:
        """For how many seconds more was expected than so many are to bear."""
        full = self._needed(self.rules.share * self.rules.full) > instances
        self._full_since = (now if self._full_since is None else self._full_since) if full else None
        return 0.0 if self._full_since is None else now - self._full_since

    def _needed(self, share: float) -> int:
        assert self._plan is not None
        return math.ceil(self._plan.ahead / (self._plan.bears * self.bearing.factor * share) - 1e-9)

    # -- what instances bear -------------------------------------------------------------------------

    def _note(self, instances: int, late: bool, slow: bool, now: float) -> None:
        """Since when with these instances first tokens are late, or all is as it should be."""
        if instances != self._instances:
            self._instances, self._late_since, self._timely_since = instances, None, None
        self._late_since = (now if self._late_since is None else self._late_since) if late else None
        timely = not (late or slow)
        self._timely_since = (now if self._timely_since is None else self._timely_since) if timely else None

    def _learn(self, plan: Plan, now: float) -> None:
        if not self._instances:
            return
        of_model = 1.0 / (self._instances * plan.bears)
        if self._timely_since is not None and now - self._timely_since >= PROVEN_S:
            self.bearing.proven((self.demand.mean(PROVEN_S) or 0.0) * of_model)
        if self._late_since is not None and now - self._late_since >= SATURATED_S and self._seen:
            served = len(self._seen) / min(self.rules.window_s, now - self._late_since)
            self.bearing.saturated(served * of_model, now - self._looked)


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests per second: rate now, ahead in ahead_s. bears: of them one instance, by the cost model."""

    rate: float
    ahead: float
    ahead_s: float
    bears: float

    def numbers(self, factor: float, share: float) -> dict[str, float]:
        """All that was compared."""
        return {
            "per_s": self.rate,
            "per_s_ahead": self.ahead,
            "ahead_s": self.ahead_s,
            "one_bears_per_s": self.bears * factor,
            "planned_share": share,
        }

    def reason(self, needed: int) -> str:
        """In words."""
        return f"{self.ahead:.3g} requests/s, expected when a start is over, need {needed} instances"
