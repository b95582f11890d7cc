"""What instances did in the last minute, gathered from their timelines piece by piece."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tidepipe_common.types.plan import Phase
from tidepipe_common.types.timeline import MemorySample, PhaseTurn, StageSpan, Timeline

KEEP_S = 60.0
MAX_SPANS = 4096
"""Of one instance. What a new watcher gets at once is bounded by it; a page gathers more as it watches."""
MAX_TURNS = 512
MAX_SAMPLES = 512
OVERLAP_S = 1.0
"""Each look goes back behind the last one by so much: reports of stages come late."""
SAME_S = 0.0005
"""Times of one step differ by so much from one look to the next, for clocks are read again each time."""

PHASES = (Phase.IDLE, Phase.PREFILL, Phase.DECODE, Phase.MIXED)
_CODES = {phase: code for code, phase in enumerate(PHASES)}

Row = list[float | int | str | None]


@dataclass(slots=True)
class Rows:
    """Entries as the page reads them; all times are milliseconds since `base` of the feed.

    spans: [stage, phase code, start, duration, tokens, decode rows, step].
    turns: [at, phase code before, phase code after, reason].
    samples: [at, KV share used, KV share at the forecast peak, running, waiting].
    """

    spans: list[Row] = field(default_factory=list)
    turns: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)


class RecentSteps:
    """One instance's last minute. Timelines overlap; what is known already is left out."""

    def __init__(self, base: float) -> None:
        """base: seconds since 1970 that times count from."""
        self._base = base
        self._spans: deque[Row] = deque(maxlen=MAX_SPANS)
        self._turns: deque[Row] = deque(maxlen=MAX_TURNS)
        self._samples: deque[Row] = deque(maxlen=MAX_SAMPLES)
        self._span_ends: dict[int, float] = {}
        self._turned = self._sampled = 0.0
        self._looked = float("-inf")

    def wanted_s(self, now: float) -> float:
        """How far back the next look must go, seconds."""
        return min(KEEP_S, now - self._looked + OVERLAP_S)

    def take(self, timeline: Timeline, now: float) -> Rows:
        """Add a timeline; returns what it has that is new. now: as for `wanted_s`, when it was asked for."""
        self._looked = now
        news = Rows(
            [self._span_row(one) for one in timeline.spans if self._is_new(one)],
            [self._turn_row(one) for one in timeline.turns if one.at_s > self._turned + SAME_S],
            [self._sample_row(one) for one in timeline.samples if one.at_s > self._sampled + SAME_S],
        )
        if timeline.turns:
            self._turned = max(self._turned, timeline.turns[-1].at_s)
        if timeline.samples:
            self._sampled = max(self._sampled, timeline.samples[-1].at_s)
        self._spans.extend(news.spans)
        self._turns.extend(news.turns)
        self._samples.extend(news.samples)
        return Rows(news.spans[-MAX_SPANS:], news.turns[-MAX_TURNS:], news.samples[-MAX_SAMPLES:])

    def all(self) -> Rows:
        """Everything kept."""
        return Rows(list(self._spans), list(self._turns), list(self._samples))

    def _is_new(self, span: StageSpan) -> bool:
        """Spans of one stage end one after the other."""
        if span.end_s <= self._span_ends.get(span.stage, 0.0) + SAME_S:
            return False
        self._span_ends[span.stage] = span.end_s
        return True

    def _ms(self, at_s: float) -> float:
        return round(1000 * (at_s - self._base), 1)

    def _span_row(self, span: StageSpan) -> Row:
        duration = round(1000 * (span.end_s - span.start_s), 1)
        sizes = (span.tokens, span.decode_rows, span.step_id)
        return [span.stage, _CODES[span.phase], self._ms(span.start_s), duration, *sizes]

    def _turn_row(self, turn: PhaseTurn) -> Row:
        return [self._ms(turn.at_s), _CODES[turn.before], _CODES[turn.after], turn.reason]

    def _sample_row(self, sample: MemorySample) -> Row:
        shares = (round(sample.used, 4), round(sample.forecast, 4))
        return [self._ms(sample.at_s), *shares, sample.running, sample.waiting]
