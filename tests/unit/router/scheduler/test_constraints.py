"""Algorithm 1, its sharpened form, and the view that they read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduler.policies.constraints import LatestResume, MeanSlack
from router.scheduler.prefill import NOTHING
from router.scheduler.slo import SloClasses, SloTarget
from tests.unit.router.scheduler.cases import SLO, prompt_work, request, slack, status, view
from tidepipe_common.errors import ConfigError


def test_algorithm_1_asks_ttft_slack_and_memory() -> None:
    """Each condition alone refuses; all hold otherwise. Prefill takes 1 ms per token, TTFT is 1 s."""
    check = MeanSlack().check
    new = request("r", prompt=300)
    assert check(new, view("i", window=prompt_work(600), slack=slack(5, 0.95)), 0.0).satisfied
    assert "TTFT" in check(new, view("i", window=prompt_work(800)), 0.0).reason
    assert "TPOT" in check(new, view("i", window=prompt_work(600), slack=slack(5, 0.85)), 0.0).reason
    assert "KV" in check(new, view("i", kv_free=200), 0.0).reason


def test_the_sharpened_rule_counts_what_is_left_and_what_has_waited() -> None:
    """Where most of the window is computed already the published rule refuses for nothing; where a request
    has waited, or one sequence has no slack, the published rule admits and breaks a promise."""
    published, sharp = MeanSlack().check, LatestResume(margin=0.0).check
    done = view("i", window=prompt_work(900), left=NOTHING)
    new = request("r", prompt=300)
    assert not published(new, done, 0.0).satisfied
    assert sharp(new, done, 0.0).satisfied
    assert published(new, view("i"), 0.8).satisfied
    assert not sharp(new, view("i"), 0.8).satisfied
    uneven = view("i", slack=slack(10, 3.0, low=0.1))
    assert published(new, uneven, 0.0).satisfied
    assert not sharp(new, uneven, 0.0).satisfied
    # Missed targets do not keep it waiting for ever.
    assert sharp(new, view("i"), 1.5).satisfied


def test_outputs_that_will_come_need_memory_too() -> None:
    """A prompt that fits is refused where its output, or those of others just sent, would not."""
    sharp = LatestResume(margin=0.0, kv_share=1.0).check

    def check(expected: int, sent: int, max_tokens: int) -> bool:
        seen = view("i", kv_free=500, kv_total=1000, kv_peak=500, expected_output=expected)
        for name in range(sent):
            seen.routed(request(str(name), prompt=50))
        return sharp(replace(request("r", prompt=100), max_tokens=max_tokens), seen, 0.0).satisfied

    assert check(0, 0, 900) and check(400, 0, 900)
    assert not check(401, 0, 900) and check(401, 0, 300)
    # 0: nobody limited it.
    assert not check(401, 0, 0)
    # Another was sent just now: 51 tokens of prompt, and at most 100 of output.
    assert check(249, 1, 0) and not check(250, 1, 0)


def test_stale_reports_do_not_over_admit() -> None:
    """What was sent since the report counts until a report counts it."""
    seen = view("i", kv_free=1000)
    check = MeanSlack().check
    for name in "abc":
        assert check(request(name, prompt=300), seen, 0.0).satisfied
        seen.routed(request(name, prompt=300))
    assert not check(request("d", prompt=300), seen, 0.0).satisfied
    assert (seen.window.tokens, seen.sequences, seen.kv_free) == (900, 3, 97)
    seen.handle(status(taken=1.0, accepted=2, kv_free=400, sequences=2))
    assert (seen.window.tokens, seen.sequences, seen.kv_free) == (300, 3, 99)
    seen.handle(status(taken=0.5, accepted=0))
    assert seen.sequences == 3, "an older report is ignored"
    seen.forget("c")
    assert (seen.sequences, seen.left.tokens) == (2, 0)


def test_slo_classes() -> None:
    """Class, override, and what is refused."""
    classes = SloClasses({"chat": SLO, "code": SloTarget(0.5, 0.03)}, "chat")
    assert classes.resolve() is SLO
    assert classes.resolve("code", ttft_s=2.0) == SloTarget(2.0, 0.03)
    with pytest.raises(ConfigError, match="known: chat, code"):
        classes.resolve("art")
    with pytest.raises(ConfigError, match="positive"):
        classes.resolve(tpot_s=-0.1)
