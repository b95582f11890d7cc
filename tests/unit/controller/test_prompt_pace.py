"""The share of the time that prompts take."""

from __future__ import annotations

import pytest

from controller.scheduler.prompt_pace import MEMORY_S, PromptPace


def test_a_steady_share_is_found_and_forgotten_while_others_work() -> None:
    """100 tokens a second at 2 ms alone: a fifth of the time; half as much where they ride."""
    alone, riding = PromptPace(), PromptPace()
    for second in range(int(5 * MEMORY_S)):
        alone.computed(100, riding=False, now=float(second))
        riding.computed(100, riding=True, now=float(second))
    assert alone.share(0.002, 0.001) == pytest.approx(0.2, rel=0.1)
    assert riding.share(0.002, 0.001) == pytest.approx(0.1, rel=0.1)
    # An hour without work says nothing about what comes; steps without prompts do.
    alone.computed(0, riding=False, now=3600.0)
    assert alone.share(0.002, 0.001) > 0.15
    for second in range(int(10 * MEMORY_S)):
        alone.computed(0, riding=False, now=3601.0 + second)
    assert alone.share(0.002, 0.001) < 0.001


def test_many_decode_steps_in_one_go() -> None:
    """The same share as told one by one."""
    told, skipped = PromptPace(), PromptPace()
    for pace in (told, skipped):
        for step in range(100):
            pace.computed(50, riding=False, now=0.1 * step)
    for step in range(1, 401):
        told.computed(0, riding=False, now=9.9 + 0.03 * step)
    skipped.decoded(400, 9.9 + 0.03, 9.9 + 12.0)
    assert skipped.share(0.002, 0.0) == pytest.approx(told.share(0.002, 0.0), rel=1e-9)
    assert 0.05 < told.share(0.002, 0.0) < 0.7
