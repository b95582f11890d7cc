"""What the page counts: steps once, however looks overlap; promises kept, also by those who failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.api.dashboard.recent import RecentSteps, Row
from router.requests.attainment import WINDOW_S, AttainmentRecord
from router.requests.meter import EndedAnswer
from router.scheduler.slo import SloTarget
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.request import Usage
from tidepipe_common.types.sampling import FinishReason
from tidepipe_common.types.timeline import PhaseTurn, StageSpan, Timeline

BASE = 1_000_000.0


@given(
    st.lists(st.floats(0.002, 0.3), min_size=1, max_size=60),
    st.lists(st.floats(0.1, 2.0), min_size=1, max_size=20),
    st.floats(-0.0002, 0.0002),
)
def test_overlapping_looks_find_every_step_once(
    durations: list[float], pauses: list[float], jitter: float
) -> None:
    """Clocks are read again at each look, so that times of one step differ a little."""
    ends = [sum(durations[: index + 1]) for index in range(len(durations))]
    recent, found, now = RecentSteps(BASE), list[Row](), 0.0
    looks = [sum(pauses[: index + 1]) for index in range(len(pauses))]
    for number, now in enumerate([*looks, max(looks[-1], ends[-1]) + 0.1]):
        since, offset = now - recent.wanted_s(now), BASE + jitter * (number % 2)
        timeline = Timeline("one", 1)
        for step, (end, duration) in enumerate(zip(ends, durations, strict=True)):
            if since <= end <= now:
                span = (end - duration + offset, end + offset)
                timeline.spans.append(StageSpan(0, step, Phase.DECODE, 4, 4, *span))
                timeline.turns.append(PhaseTurn(end + offset, Phase.PREFILL, Phase.DECODE, str(step)))
        found += recent.take(timeline, now).spans
    assert [row[-1] for row in found] == list(range(len(durations)))
    assert recent.all().spans == found
    assert [turn[-1] for turn in recent.all().turns] == [str(step) for step in range(len(durations))]


def test_kept_promises_by_each_answers_own_target() -> None:
    now = [0.0]
    record = AttainmentRecord(SloTarget(1.0, 0.1), lambda: now[0])

    def ended(reason: FinishReason, first_s: float, tokens: int, total_s: float, **own: float | None) -> None:
        usage = Usage(prompt_tokens=3, output_tokens=tokens, ttft_ms=1000 * first_s, total_ms=1000 * total_s)
        record.ended(EndedAnswer(reason, usage, total_s, own.get("ttft_s"), own.get("tpot_s")))

    ended(FinishReason.STOP, 0.5, 11, 1.4)  # 90 ms a token
    ended(FinishReason.LENGTH, 0.5, 11, 1.7)  # 120 ms a token: late
    ended(FinishReason.LENGTH, 0.5, 11, 1.7, ttft_s=0.4, tpot_s=0.2)  # late by its own TTFT only
    ended(FinishReason.STOP, 0.5, 1, 0.5)  # no TPOT
    ended(FinishReason.ERROR, 0.0, 0, 0.0)  # late in both
    ended(FinishReason.CANCELLED, 9.0, 5, 20.0)  # nobody waited
    ttft, tpot = record.ttft(), record.tpot()
    assert (ttft.met, ttft.count, tpot.met, tpot.count) == (3, 5, 2, 4)
    assert ttft.p50_s == 0.5
    now[0] = WINDOW_S + 1
    assert record.ttft().count == record.tpot().count == 0
