"""What each stage took, from when whole steps came out."""

from __future__ import annotations

import pytest

from controller.engines.vllm.stage_clock import StageClock


def test_times_of_equal_stages_are_found_again() -> None:
    clock = StageClock(3)
    ends = [0.0, 0.0, 0.0]
    for sent, each in ((1.0, 0.2), (1.0, 0.5), (1.1, 0.1), (1.2, 0.4), (9.0, 0.3)):
        arrived, waited = sent, []
        for stage, end in enumerate(ends):
            begins = max(arrived, end)
            waited.append(begins - (end or sent))
            arrived = ends[stage] = begins + each
        times = clock.done(sent, arrived)
        assert [one.compute_s for one in times] == pytest.approx([each] * 3)
        assert [one.idle_s for one in times] == pytest.approx(waited)
