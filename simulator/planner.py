"""Planning: which cluster of the given devices holds latency targets at a rate with the fewest of them?

A *choice* is a layout (stages x tensor-parallel devices of an instance), a system and its settings; with a
number of instances it is a cluster. What is searched is the least number of devices of which some choice
makes a cluster that holds the rate. Four things spare runs, and none of them can take the answer away as long
as more instances of a kind never serve less:

* a layout that does not fit the model's weights and some KV blocks, or that cannot be started, is no choice;
* by the fluid bound a choice needs so many instances at least (`ALLOWANCE` above it is still tried);
* who fails with n instances fails with fewer, who holds with n holds with more, and so the number of devices
  is bisected, for all choices at once;
* nobody is asked about more devices than some cluster is known to hold with.

Runs for the search are those of the instance that fast-forwards. The winner is confirmed by the controllers'
own scheduler, on fresh seeds; if it does not hold there, it has failed, and the search goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from controller.scheduler.policies.catalog import Knob, Knobs
from simulator.cluster_spec import ClusterSpec
from simulator.fluid_bound import Flow, apart_bound, bound, flow_of
from simulator.goodput import Figures, Question, measure
from simulator.layouts import Fleet, Layout
from simulator.systems import SYSTEMS, run_exactly, run_system, scan
from simulator.workers import TimeIsUpError, left_s
from tidepipe_common.errors import ConfigError
from tidepipe_common.settings.defaults import LIVE_POLICIES, USUAL_ROUTING

ALLOWANCE = 1.15
"""Of the fluid bound, over the wanted share of requests: who may miss some can serve a little more."""
BOUND_PRECISION = 0.02
FRESH_SEEDS = 2
SEED_STEP = 1000
"""Between the seeds that a search looks at and those that confirm it."""
BASELINES = ("padg-apart", "padg-published", "separate")
"""They are there to be compared with, and asked about only by name."""
MOST_REQUESTS = 20_000
"""Of one run."""
RISE = 1.15
"""Between the rates that a cluster's goodput is bracketed by."""
FASTEST_RISE = 3.0
"""As long as all is held the rate rises faster and faster."""
PRECISION = 0.03
TIES = 8
"""Clusters of equally many devices whose margins are compared."""
Settings = tuple[tuple[str, Knob], ...]
"""Knobs in the order of their names."""
Tell = Callable[[str], None]
"""Is told what is being looked at."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What instances are, and how they are run. settings: of the system, by name."""

    layout: Layout
    system: str
    settings: Settings

    @property
    def knobs(self) -> Knobs:
        """The settings, as a run takes them."""
        return dict(self.settings)


@dataclass(frozen=True, slots=True)
class BoundedChoice:
    """A choice, and what the fluid bound says of it.

    rank: place in its system's scan. bound: requests/s of an instance. least: instances needed by it.
    """

    choice: Choice
    rank: int
    least: int
    bound: float


@dataclass(frozen=True, slots=True)
class Trial:
    """Does it hold at these rates, on each of these seeds? Rates and seeds are gone through until one fails.

    exact: by the controllers' own scheduler. precision: 0 for just that; else the goodput is bracketed from
    the first rate on, and is what the answer says.
    """

    choice: Choice
    instances: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    exact: bool = False
    precision: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """figures: of the worst run at `rate`; None if no rate was held at all."""

    held: bool
    rate: float
    figures: Figures | None
    runs: int


@dataclass(frozen=True, slots=True)
class Examiner:
    """Runs trials: what each process of a search is given once.

    deadline: as of `Workers`; TimeIsUpError before a run behind it, for a trial has many.
    """

    fleet: Fleet
    question: Question
    deadline: float = 0.0

    def check(self, rate: float) -> None:
        """ConfigError if the workload is too short to tell whether anything holds this rate."""
        if self._lacks(rate):
            needed = self._asked(rate).count(rate)
            mend = "give a longer one" + (", or less --seconds" * (needed > self.question.least_requests))
            raise ConfigError(
                f"the workload {self.question.workload.name} has {self.question.at_hand} requests, and "
                f"{needed} are needed at {rate:g}/s; {mend}"
            )

    def __call__(self, trial: Trial) -> Outcome:
        """The trial's answer. Where a run costs more than MOST_REQUESTS, it is shorter."""
        if trial.precision:
            return self._goodput(trial)
        worst: Figures | None = None
        runs = 0
        for rate in trial.rates:
            if self._lacks(rate):
                return Outcome(False, rate, worst, runs)
            for seed in trial.seeds:
                left_s(self.deadline)
                runs += 1
                figures = self._run(trial, rate, seed)
                if worst is None or (rate == trial.rates[0] and figures.attainment < worst.attainment):
                    worst = figures
                if figures.attainment < self.question.attainment:
                    return Outcome(False, rate, figures, runs)
        return Outcome(True, trial.rates[0], worst, runs)

    def _goodput(self, trial: Trial) -> Outcome:
        best: Outcome | None = None
        runs = 0

        def holds(rate: float) -> bool:
            nonlocal best, runs
            found = self(replace(trial, rates=(rate,), precision=0.0))
            runs += found.runs
            if found.held:
                best = found
            return found.held

        low, high = 0.0, trial.rates[0]
        least = high / 1000
        rise = RISE
        while holds(high):
            low, high = high, high * rise
            rise = min(FASTEST_RISE, rise**2)
        while low == 0.0 and high > least:
            step = high / RISE
            if holds(step):
                low = step
            else:
                high = step
        while low and high / low > 1 + trial.precision:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(middle) else (low, middle)
        return Outcome(low > 0.0, low, best.figures if best else None, runs)

    def _asked(self, rate: float) -> Question:
        return replace(self.question, seconds=min(self.question.seconds, MOST_REQUESTS / rate))

    def _lacks(self, rate: float) -> bool:
        """Are there too few requests to tell? What cannot be shown to hold does not."""
        have = self.question.at_hand
        return have is not None and have < self._asked(rate).count(rate)

    def _run(self, trial: Trial, rate: float, seed: int) -> Figures:
        asked = replace(self._asked(rate), seed=seed)
        spec = self.fleet.spec(trial.choice.layout, trial.instances)
        run = run_exactly if trial.exact else run_system
        return measure(trial.choice.system, trial.choice.knobs, spec, asked, rate, run)


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many instances of a choice. outcome: at the rate that was asked for, or at its goodput."""

    choice: Choice
    instances: int
    outcome: Outcome

    @property
    def devices(self) -> int:
        """Of all instances."""
        return self.choice.layout.devices * self.instances


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was not run, and why. system: "" for all of them."""

    layout: Layout
    system: str
    knobs: Knobs
    why: str


@dataclass(slots=True)
class Plan:
    """The answer to one question.

    best: of the fewest devices; without `holds` what bears most of all. goodput: the rate that it bears; None
    if there was no time to find it. confirmed, borne: the same of the rate that was asked for, and as much of
    the goodput as is borne, by the controllers' own scheduler, if it was asked.
    points: clusters at their goodput. unfinished: what there was no time for; "" if it is complete.
    """

    rate: float
    holds: bool = False
    best: Cluster | None = None
    goodput: Outcome | None = None
    confirmed: Outcome | None = None
    borne: Outcome | None = None
    others: list[Cluster] = field(default_factory=list)
    points: list[Cluster] = field(default_factory=list)
    tried: list[Cluster] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    runs: int = 0
    unfinished: str = ""

    @property
    def bears(self) -> Outcome | None:
        """What the best bears, as far as it is known."""
        return self.borne or self.goodput

    @property
    def frontier(self) -> list[Cluster]:
        """Of the points those that nothing with as few devices bears more than; devices and rates rise."""
        found: list[Cluster] = []
        for one in sorted(self.points, key=lambda one: (one.devices, -one.outcome.rate)):
            if not found or one.outcome.rate > found[-1].outcome.rate:
                found.append(one)
        return found


def startable(system: str) -> bool:
    """Is it something that a cluster can be started as?"""
    return system in LIVE_POLICIES


def usual_systems() -> list[str]:
    """Those that are searched unless others are named."""
    return [name for name in SYSTEMS if startable(name) and name not in BASELINES]


def runs_exactly(system: str) -> bool:
    """Can it be confirmed?"""
    return not _shares_out_roles(system)


def _shares_out_roles(system: str) -> bool:
    return system.startswith("fudg-")


class Bounds:
    """What an instance bears by the fluid bound, each reckoned once."""

    def __init__(self, fleet: Fleet, question: Question) -> None:
        self._fleet, self._question = fleet, question
        self._flows: dict[Layout, Flow] = {}
        self._known: dict[tuple[Layout, int, bool, bool], float] = {}

    def of_system(self, layout: Layout, system: str, knobs: Knobs) -> float:
        """Requests/s, as that system may compute prompts."""
        if system in ("padg", "hybrid"):
            return self.of(layout, int(knobs["budget"]))
        return self.of(layout, apart=True, halves=_shares_out_roles(system))

    def of(self, layout: Layout, budget: int = 0, *, apart: bool = False, halves: bool = False) -> float:
        """Requests/s. budget: tokens of a step at most; 0: any. apart: instances may have roles. halves: they
        may then be of half the size."""
        asked = layout, budget, apart, halves
        known = self._known.get(asked)
        if known is None:
            known = self._known[asked] = self._reckon(layout, budget, apart=apart, halves=halves)
        return known

    def _reckon(self, layout: Layout, budget: int, *, apart: bool, halves: bool) -> float:
        spec = self._fleet.spec(layout, 1)
        if apart:
            sizes = [spec]
            half = replace(spec, tensor=layout.tensor // 2, instances=2)
            if halves and layout.tensor % 2 == 0 and _fits(half):
                sizes.append(half)
            return max(self.of(layout, budget), *(apart_bound(one, self._question) for one in sizes))
        flow = self._flows.get(layout)
        if flow is None:
            flow = self._flows[layout] = flow_of(spec, self._question.workload)
        return bound(spec, self._question, budget=budget, flow=flow, precision=BOUND_PRECISION)


def likeliest_layout(fleet: Fleet, question: Question, system: str, layouts: Sequence[Layout]) -> Layout:
    """Of these the one in which all devices bear most by the fluid bound: what a search looks at first, for a
    system that has nothing to tune."""
    bounds = Bounds(fleet, question)
    return max(layouts, key=lambda one: bounds.of_system(one, system, {}) * fleet.most_instances(one))


Ask = Callable[[Sequence[Trial]], Iterator[Outcome]]
"""Answers in the order of the trials; TimeIsUpError when there is no more time."""


class Search:
    """The search for one plan. Pure but for `ask`, whose answers depend on the trials alone."""

    def __init__(
        self,
        fleet: Fleet,
        question: Question,
        rate: float,
        systems: Sequence[str],
        ask: Ask,
        tell: Tell,
        bounds: Bounds | None = None,
    ) -> None:
        """bounds: of the same fleet and question, if they are known already."""
        self._fleet, self._question, self._rate = fleet, question, rate
        self._systems = systems
        self._bounds = bounds or Bounds(fleet, question)
        self._ask, self._tell = ask, tell
        self._seeds = (question.seed, question.seed + 1)
        self._failed: dict[Choice, int] = {}  # with so many instances, and so with fewer
        self._held: dict[Choice, Cluster] = {}  # the smallest
        self.plan = Plan(rate)

    def cheapest(self) -> None:
        """Find `plan.best`, confirmed, if there is a cluster that holds the rate."""
        low = min((one.least * one.choice.layout.devices for one in self.choices), default=0)
        if not low:
            return
        while low <= self._fleet.devices:
            if (found := self._fewest(low)) is None:
                return
            for one in self._ranked(found.devices):
                if self._confirm(one):
                    self._rule_out_larger(one)
                    return
            low = found.devices + 1

    def settle(self) -> None:
        """With no more time: of those that held so far take the smallest, as it is; or what bears most."""
        if self.plan.best is None and self._held:
            self.plan.best = min(self._held.values(), key=lambda one: (one.devices, self._likeliest(one)))
            self.plan.holds = True
        lesser = [one for one in self.plan.tried if one.outcome.held and one.outcome.rate < self._rate]
        if self.plan.best is None and lesser:
            self.plan.best = max(lesser, key=lambda one: one.outcome.rate)
            self.plan.goodput = self.plan.best.outcome

    def margin(self) -> None:
        """Find the goodput of the best."""
        if (best := self.plan.best) is None:
            return
        self._tell("what the best bears beyond that")
        trial = Trial(best.choice, best.instances, (self._rate,), self._seeds, precision=PRECISION)
        self.plan.goodput = self._ask_one(trial)

    def most(self) -> None:
        """With nothing that holds: find what bears most on all devices."""
        asked: list[Trial] = []
        layouts = sorted({one.choice.layout for one in self.choices}, key=lambda one: -self._reach(one))
        for layout in layouts[:4]:
            count = self._fleet.most_instances(layout)
            guess = min(self._rate, self._reach(layout))
            asked += [
                Trial(one.choice, count, (guess,), self._seeds[:1], precision=RISE - 1)
                for system in self._systems
                for one in [one for one in self.choices if one.choice.layout == layout
                            and one.choice.system == system and guess > 0][:1]
            ]  # fmt: skip
        best = self._best_of(asked)
        if best is None:
            return
        kin = [
            Trial(one.choice, best.instances, (best.outcome.rate,), self._seeds[:1], precision=PRECISION)
            for one in self.choices
            if (one.choice.layout, one.choice.system) == (best.choice.layout, best.choice.system)
        ]
        self.plan.best = self._best_of(kin) or best
        self.plan.goodput = self.plan.best.outcome

    def frontier(self) -> None:
        """Goodput over devices, around the best: of its layout and the likeliest others, as it is run."""
        if (best := self.plan.best) is None or (known := self.plan.goodput) is None or not known.rate:
            return
        self.plan.points.append(replace(best, outcome=known))
        share = known.rate / self._reach(best.choice.layout, best.instances)
        layouts = sorted({one.choice.layout for one in self.choices})
        done = {(best.choice.layout, best.instances)}
        asked = []
        for devices in self._ladder(best.devices):
            near = sorted(layouts, key=lambda one: -self._reach(one, self._instances(one, devices)))
            for layout in [best.choice.layout, *[one for one in near if one != best.choice.layout][:2]]:
                count = self._instances(layout, devices)
                if not count or (layout, count) in done or not self._reach(layout):
                    continue
                done.add((layout, count))
                guess = share * self._reach(layout, count)
                knobs = best.choice if layout == best.choice.layout else self._alike(best.choice, layout)
                if knobs is not None and guess > 0 and self._has_room(knobs, count):
                    asked.append(Trial(knobs, count, (guess,), self._seeds[:1], precision=2 * PRECISION))
        for trial, outcome in self._asked(asked, "the frontier"):
            if outcome.held:
                self.plan.points.append(Cluster(trial.choice, trial.instances, outcome))

    def borne(self) -> None:
        """Find as much of the best's goodput as the controllers' own scheduler bears: on a pipeline its steps
        are uneven, which the instance that fast-forwards knows nothing of."""
        best, found = self.plan.best, self.plan.goodput
        if best is None or found is None or self.plan.confirmed is None:
            return
        rate = found.rate
        while rate > self._rate:
            self._tell(f"what the best bears by its own scheduler: {rate:.3g} requests/s?")
            trial = Trial(best.choice, best.instances, (rate,), self._seeds, exact=True)
            if (outcome := self._ask_one(trial)).held:
                self.plan.borne = outcome
                return
            rate *= 1 - PRECISION
        self.plan.borne = self.plan.confirmed

    @cached_property
    def choices(self) -> list[BoundedChoice]:
        """All with the least instances that they need; those that need more than there are left out."""
        longest = max(one.prompt_tokens + one.output_tokens for one in self._question.workload.requests)
        layouts, refused = self._fleet.layouts(longest)
        self.plan.pruned += [Pruned(layout, "", {}, why) for layout, why in refused]
        found = []
        for layout in layouts:
            self._tell(f"bounds of {layout.stages} x {layout.tensor}")
            # Scans depend on the number of instances only where roles are shared out among them.
            spec = self._fleet.spec(layout, self._fleet.most_instances(layout))
            for system in self._systems:
                known = set[Settings]()
                for knobs in scan(system, spec):
                    if knobs.get("routing", USUAL_ROUTING) != USUAL_ROUTING:
                        continue  # spreading by turns is a baseline's
                    settings = _as_settings(knobs)
                    if settings in known:
                        continue
                    known.add(settings)
                    found.append(self._bounded(Choice(layout, system, settings), len(known)))
        kept = []
        for one in found:
            if one.least <= self._fleet.most_instances(one.choice.layout):
                kept.append(one)
                continue
            of_one = one.bound * ALLOWANCE / self._question.attainment
            why = f"by the fluid bound an instance bears {of_one:.3g} requests/s at most: not enough of them"
            self.plan.pruned.append(Pruned(one.choice.layout, one.choice.system, one.choice.knobs, why))
        return kept or sorted(found, key=lambda one: -one.bound)

    def _bounded(self, choice: Choice, rank: int) -> BoundedChoice:
        of_one = self._bounds.of_system(choice.layout, choice.system, choice.knobs)
        enough = of_one * ALLOWANCE / self._question.attainment
        least = math.ceil(self._rate / enough) if enough > 0 else self._fleet.devices + 1
        return BoundedChoice(choice, rank, max(1, least), of_one)

    def _reach(self, layout: Layout, instances: int = 0) -> float:
        """By the bound, in whatever way; of all that there is room for, unless so many are given."""
        count = instances or self._fleet.most_instances(layout)
        return self._bounds.of(layout) * count

    def _instances(self, layout: Layout, devices: int) -> int:
        return min(devices // layout.devices, self._fleet.most_instances(layout))

    def _fewest(self, low: int) -> Cluster | None:
        """The cluster of the fewest devices, from `low` on, of which one holds."""
        devices, total = low, self._fleet.devices
        found = self._some(devices)
        while found is None:
            if devices >= total:
                return None
            low = devices + 1
            devices = min(total, max(low, math.ceil(devices * 1.4)))
            found = self._some(devices)
        while low < found.devices:
            middle = (low + found.devices) // 2
            smaller = self._some(middle)
            if smaller is None:
                low = middle + 1
            else:
                found = smaller
        return found

    def _some(self, devices: int) -> Cluster | None:
        """A cluster of at most so many devices that holds."""
        for known in self._held.values():
            if known.devices <= devices:
                return known
        trials = [self._trial(one.choice, count) for one, count in self._lanes(devices)]
        for trial, outcome in self._asked(trials, f"{devices} devices"):
            if (found := self._noted(trial, outcome)) is not None:
                return found
        return None

    def _lanes(self, devices: int) -> list[tuple[BoundedChoice, int]]:
        """Choices with as many instances as so many devices are enough for, the likeliest first."""
        lanes = []
        for one in self.choices:
            count = self._instances(one.choice.layout, devices)
            if count < one.least or count <= self._failed.get(one.choice, 0):
                continue
            if not self._has_room(one.choice, count):
                continue
            lanes.append((one, count))
        return sorted(lanes, key=lambda lane: (lane[0].rank, -lane[0].bound * lane[1]))

    def _has_room(self, choice: Choice, instances: int) -> bool:
        """For instances of both roles, where they have roles."""
        if not _shares_out_roles(choice.system):
            return True
        spec = self._fleet.spec(choice.layout, instances)
        return choice.settings in map(_as_settings, scan(choice.system, spec))

    def _trial(self, choice: Choice, instances: int) -> Trial:
        return Trial(choice, instances, (self._rate,), self._seeds)

    def _noted(self, trial: Trial, outcome: Outcome) -> Cluster | None:
        cluster = Cluster(trial.choice, trial.instances, outcome)
        self.plan.tried.append(cluster)
        if not outcome.held:
            self._failed[trial.choice] = max(trial.instances, self._failed.get(trial.choice, 0))
            return None
        before = self._held.get(trial.choice)
        if before is None or before.instances > trial.instances:
            self._held[trial.choice] = cluster
        return cluster

    def _ranked(self, devices: int) -> Iterator[Cluster]:
        """Clusters of just so many devices that hold, by their margin: who holds longest as rates rise."""
        trials = []
        for one, count in self._lanes(devices):
            known = self._held.get(one.choice)
            if count * one.choice.layout.devices == devices and (known is None or known.instances > count):
                trials.append(self._trial(one.choice, count))
        for trial, outcome in self._asked(trials, f"others of {devices} devices"):
            self._noted(trial, outcome)
        holding = [one for one in self._held.values() if one.devices == devices]
        while holding:
            first = self._longest_holding(sorted(holding, key=self._likeliest)[:TIES])
            self.plan.others = [one for one in holding if one.choice != first.choice]
            yield first
            holding = self.plan.others

    def _longest_holding(self, rising: list[Cluster]) -> Cluster:
        """Of clusters that hold the rate the one that holds longest as it rises; nearly, within RISE."""
        low, rise, passed = self._rate, RISE, False
        while len(rising) > 1:
            rate = low * rise
            trials = [Trial(one.choice, one.instances, (rate,), self._seeds[:1]) for one in rising]
            answers = [
                one for _, one in self._asked(trials, f"{len(rising)} equals at {rate:.3g} requests/s")
            ]
            pairs = sorted(zip(rising, answers, strict=True), key=lambda pair: -_attainment(pair[1]))
            if held := [one for one, outcome in pairs if outcome.held]:
                rising, low = held, rate
                rise = rise if passed else min(FASTEST_RISE, rise**2)
            elif rise > RISE:
                passed, rise = True, max(RISE, rise**0.5)
            else:
                return pairs[0][0]
        return rising[0]

    def _likeliest(self, one: Cluster) -> tuple[float, float]:
        return -round(_attainment(one.outcome), 2), -self._reach(one.choice.layout, one.instances)

    def _confirm(self, cluster: Cluster) -> bool:
        """Does it hold on fresh seeds, by the schedulers themselves, and at lower rates too?"""
        choice, instances = cluster.choice, cluster.instances
        fresh = tuple(self._question.seed + SEED_STEP + n for n in range(FRESH_SEEDS))
        trials = [Trial(choice, instances, (self._rate / 2, self._rate / 4), self._seeds[:1])]
        if runs_exactly(choice.system):
            trials += [Trial(choice, instances, (self._rate,), (seed,), exact=True) for seed in fresh]
        answers = list(self._asked(trials, "confirming"))
        missed = next((outcome for _, outcome in answers if not outcome.held), None)
        if missed is None:
            if len(trials) > 1:
                worst = min((outcome for _, outcome in answers[1:]), key=_attainment)
                self.plan.confirmed = replace(worst, runs=FRESH_SEEDS)
            self.plan.best, self.plan.holds = cluster, True
            return True
        self._held.pop(choice)
        self._noted(self._trial(choice, instances), missed)
        return False

    def _rule_out_larger(self, best: Cluster) -> None:
        for one in self.choices:
            if one.choice in self._failed or one.choice in self._held:
                continue
            least = one.least * one.choice.layout.devices
            why = f"by the fluid bound it needs {least} devices, and {best.devices} are enough"
            self.plan.pruned.append(Pruned(one.choice.layout, one.choice.system, one.choice.knobs, why))

    def _ladder(self, devices: int) -> list[int]:
        """Numbers of devices to look at, about those of the best."""
        wanted = {round(devices * share) for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)}
        if self._fleet.devices <= 3 * devices:
            wanted.add(self._fleet.devices)
        return sorted(one for one in wanted if 1 <= one <= self._fleet.devices)

    def _alike(self, choice: Choice, layout: Layout) -> Choice | None:
        """The same system in another layout: with the same settings if it has them."""
        same = [
            one.choice
            for one in self.choices
            if (one.choice.layout, one.choice.system) == (layout, choice.system)
        ]
        return next((one for one in same if one.settings == choice.settings), same[0] if same else None)

    def _best_of(self, trials: Sequence[Trial]) -> Cluster | None:
        best: Cluster | None = None
        for trial, outcome in self._asked(trials, "what bears most"):
            found = Cluster(trial.choice, trial.instances, outcome)
            self.plan.tried.append(found)
            if outcome.held and (best is None or outcome.rate > best.outcome.rate):
                best = found
        return best

    def _asked(self, trials: Sequence[Trial], what: str) -> Iterator[tuple[Trial, Outcome]]:
        answers = self._ask(trials)
        for number, trial in enumerate(trials, start=1):
            layout = trial.choice.layout
            self._tell(
                f"{what}: {number} of {len(trials)}, {trial.instances} instances of "
                f"{layout.stages} x {layout.tensor}, {trial.choice.system}"
            )
            outcome = next(answers)
            self.plan.runs += outcome.runs
            yield trial, outcome

    def _ask_one(self, trial: Trial) -> Outcome:
        outcome = next(self._ask([trial]))
        self.plan.runs += outcome.runs
        return outcome


def make_plan(search: Search) -> Plan:
    """All of it, as far as there is time for."""
    plan = search.plan
    doing = "the search"
    try:
        search.cheapest()
        if plan.best is None:
            doing = "looking for what bears most"
            search.most()
        else:
            doing = "its margin"
            search.margin()
        doing = "the frontier"
        search.frontier()
        doing = "how much of its margin its own scheduler bears"
        search.borne()
    except TimeIsUpError:
        plan.unfinished = doing
        search.settle()
    return plan


def _as_settings(knobs: Knobs) -> Settings:
    return tuple(sorted(knobs.items()))


def _attainment(outcome: Outcome) -> float:
    return outcome.figures.attainment if outcome.figures else 0.0


def _fits(spec: ClusterSpec) -> bool:
    try:
        spec.kv_tokens()
    except ConfigError:
        return False
    return True
