"""From steps that take so long to the parts that a cost model adds up."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stage_worker.profiling.rehearsal import Rehearsal, Step, decodes, prompts
from tidepipe_common.latency.linear import MeasuredLinear
from tidepipe_common.latency.profile import Points, Profile, ProfileTerms, rising

PROMPT = 64
"""Tokens of a prompt while matrix products are measured: short, so that attention is a small part."""
SHORT, LONG = 32, 1024
"""Contexts between which the cost of a KV entry is measured, tokens."""
CHUNK = 128
LEAST_S, MOST_REPEATS = 0.25, 12
"""A step is repeated until it has taken so long altogether, or so often."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. sizes: tokens of a step. rows: of decode steps, which sample. context: the model's."""

    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    long: int = LONG

    @property
    def most_tokens(self) -> int:
        """Of one step."""
        return max(*self.sizes, *self.rows, CHUNK)

    @property
    def kv_tokens(self) -> int:
        """That a step stands on at most."""
        return max(self.attention_rows * (self.long + 1), self.long + CHUNK, 2 * self.most_tokens)

    @property
    def attention_rows(self) -> int:
        """Rows of the steps that show what context costs."""
        return 16

    def steps(self) -> list[Step]:
        """All of them, each once."""
        steps = [prompts(size, PROMPT) for size in self.sizes]
        for rows in self.rows:
            steps += [decodes(rows, SHORT, rows), decodes(rows, SHORT, 0)]
        steps += [decodes(self.attention_rows, context, 0) for context in (SHORT, self.long)]
        steps += [Step(((before, CHUNK),), 0) for before in (0, self.long)]
        return list(dict.fromkeys(steps))

    def smallest(self) -> list[Step]:
        """Steps that tell what is fixed."""
        return [prompts(self.sizes[0], PROMPT), decodes(self.rows[0], SHORT, 0)]


class Stopwatch:
    """Times of steps on one stage, measured over several rounds; the median counts."""

    def __init__(self, rehearsal: Rehearsal, steps: Sequence[Step]) -> None:
        self._rehearsal = rehearsal
        self._steps = steps
        self._taken: dict[Step, list[float]] = {step: [] for step in steps}

    def __len__(self) -> int:
        """Steps of one round."""
        return len(self._steps)

    def round(self, done: Callable[[], None] = lambda: None) -> None:
        """Measure each step once more. done: called after each."""
        for step in self._steps:
            self._taken[step] += self._rehearsal.seconds(step, LEAST_S, MOST_REPEATS)
            done()

    def medians(self) -> dict[Step, float]:
        """Milliseconds of each step."""
        return {step: statistics.median(taken) * 1000 for step, taken in self._taken.items()}


@dataclass(frozen=True, slots=True)
class Slice:
    """What steps take on so many layers. times: milliseconds of each step."""

    layers: int
    times: Mapping[Step, float]


def derive(plan: Plan, whole: Slice, thin: Slice, model_layers: int) -> Profile:
    """Take the times apart.

    whole, thin: two slices of the model that end in its LM head, the second with fewer layers: what both take
    alike is fixed. Terms come from differences between steps that differ in one thing only, in this order:
    KV entries, pairs, rows, sampled rows; what remains of a step is its matrix products.
    """
    scale = model_layers / whole.layers
    ms = whole.times.__getitem__
    rows = plan.attention_rows
    deep, shallow = decodes(rows, plan.long, 0), decodes(rows, SHORT, 0)
    kv = max(0.0, ms(deep) - ms(shallow)) / (deep.work.kv_tokens - shallow.work.kv_tokens)
    late, early = Step(((plan.long, CHUNK),), 0), Step(((0, CHUNK),), 0)
    more_kv = late.work.kv_tokens - early.work.kv_tokens
    pair = max(0.0, ms(late) - ms(early) - kv * more_kv) / (late.work.pairs - early.work.pairs)
    fixed = _fixed(plan, whole, thin)

    def rest(step: Step) -> float:
        """Matrix products of the slice, and its rows."""
        work = step.work
        return max(1e-6, ms(step) - fixed - kv * work.kv_tokens - pair * work.pairs)

    row = _row(plan, rest)
    layers = rising(
        [(size, max(1e-6, rest(step) - row * step.work.rows) * scale) for size, step in _prompts(plan)]
    )
    terms = ProfileTerms(
        layers=layers,
        head=_head(plan, whole.times),
        fixed=fixed,
        row=row * scale,
        kv_token_us=kv * 1000 * scale,
        pair_us=pair * 1000 * scale,
    )
    return Profile(_table(terms), terms)


def _prompts(plan: Plan) -> Iterator[tuple[int, Step]]:
    return ((size, prompts(size, PROMPT)) for size in plan.sizes)


def _head(plan: Plan, times: Mapping[Step, float]) -> Points:
    return rising(
        [
            (rows, max(1e-3, times[decodes(rows, SHORT, rows)] - times[decodes(rows, SHORT, 0)]))
            for rows in plan.rows
        ]
    )


def _fixed(plan: Plan, whole: Slice, thin: Slice) -> float:
    """What a step takes with no layer, by two slices' smallest steps."""
    if whole.layers == thin.layers:
        return 0.0
    estimates = []
    for step in plan.smallest():
        large, small = whole.times[step], thin.times[step]
        estimates.append((whole.layers * small - thin.layers * large) / (whole.layers - thin.layers))
    return max(0.0, statistics.fmean(estimates))


def _row(plan: Plan, rest: Callable[[Step], float]) -> float:
    """What a decode row costs beyond a prompt's token: mean over the sizes that were measured as both."""
    sizes = [size for size in plan.rows if size in plan.sizes and size >= PROMPT]
    differences = []
    for size in sizes:
        few, many = prompts(size, PROMPT), decodes(size, SHORT, 0)
        differences.append((rest(many) - rest(few)) / (many.work.rows - few.work.rows))
    return max(0.0, statistics.fmean(differences)) if differences else 0.0


def _table(terms: ProfileTerms) -> Points:
    """The two columns: decode steps of n sequences without any context, the LM head for each."""
    head = MeasuredLinear(terms.head, interpolate=True)
    return rising(
        [(size, terms.fixed + ms + terms.row * size + 1000 * head.seconds(size)) for size, ms in terms.layers]
    )
