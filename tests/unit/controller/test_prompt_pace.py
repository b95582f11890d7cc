"""The share of the time that prompts take."""

from __future__ import annotations

import pytest

from controller.core.prompt_pace import MEMORY_S, PromptPace


def test_a_steady_share_is_found_and_forgotten() -> None:
    """100 tokens a second at 2 ms alone: a fifth of the time; half as much where they ride; nothing later."""
    alone, riding = PromptPace(), PromptPace()
    for second in range(int(5 * MEMORY_S)):
        alone.computed(100, riding=False, now=float(second))
        riding.computed(100, riding=True, now=float(second))
    now = 5 * MEMORY_S
    assert alone.share(now, 0.002, 0.001) == pytest.approx(0.2, rel=0.1)
    assert riding.share(now, 0.002, 0.001) == pytest.approx(0.1, rel=0.1)
    assert alone.share(now + 10 * MEMORY_S, 0.002, 0.001) < 0.001
