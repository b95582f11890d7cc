"""How many prompt tokens a step carries: what targets, costs and memory say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.actions import PhaseSwitched
from controller.scheduler.events import NewSequence, SequencesArrived, StagesReady
from controller.scheduler.policies.catalog import make_setup
from controller.scheduler.prompt_pace import PromptPace
from controller.scheduler.scheduler import Scheduler
from controller.scheduler.slack import Decoding
from controller.scheduler.step_budget import (
    LEAST,
    Coming,
    StepBudget,
    StepLoad,
    Turnover,
    WaitingPrompt,
    _exceeds,
    coming_of,
    turnover_of,
)
from simulator.cluster_spec import ClusterSpec
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.types.sampling import SamplingParams

SPEC = ClusterSpec(read_shape("codellama-34b"), hardware("l20"), 1, 4)
COST = SPEC.latency()
RULE = StepBudget(COST)
NOBODY_COMES = Coming(0.0, 1.0, 1.0, math.inf)


def load(decoding: list[Decoding], waiting: list[WaitingPrompt], rows: int = 40) -> StepLoad:
    return StepLoad(rows, 1, 300 * rows, decoding, waiting, NOBODY_COMES, 0.0)


def ending(seconds: float, tokens: float, count: int = 40) -> list[Decoding]:
    """Sequences that have so many tokens to go, and so much time for all of them but the first."""
    return [Decoding(0.0, 1, tokens, seconds / tokens)] * count


PROMPTS = [WaitingPrompt(1500, 5.0), WaitingPrompt(1500, 5.0)]


def test_decoding_that_can_wait_lets_steps_grow_and_decoding_that_cannot_keeps_them_small() -> None:
    """The same prompts, which have time: it is decoding's slack that decides."""
    empty = COST.linear_s(40) + COST.attention_s(12_000, 0.0)
    tight, ample = (
        RULE.choose(load(ending(20 * empty * factor, 20), PROMPTS), 0.0).prompts for factor in (1.15, 4.0)
    )
    assert LEAST <= tight < 128 < ample


def test_prompts_that_are_due_make_steps_larger_where_few_decode() -> None:
    """Two that would have their first token too late count more than one that ends a little late."""
    empty = COST.linear_s(40) + COST.attention_s(12_000, 0.0)
    slow = ending(20 * empty * 1.2, 20, count=1)
    urgent = [WaitingPrompt(400, 0.5), WaitingPrompt(400, 1.0)]
    patient = [WaitingPrompt(400, 50.0), WaitingPrompt(400, 100.0)]
    assert RULE.choose(load(slow, urgent), 0.0).prompts > RULE.choose(load(slow, patient), 0.0).prompts


def test_who_cannot_be_in_time_is_nobodys_reason() -> None:
    """Outputs that are late in any case, and prompts that are: as for throughput, the largest step."""
    lost = ending(0.1, 50)
    late = [WaitingPrompt(1500, -1.0)]
    largest = RULE.choose(load([], []), 0.0).prompts
    assert RULE.choose(load(lost, late), 0.0).prompts == largest >= 512


def test_full_memory_lets_no_more_through() -> None:
    """Few sequences fill it, so a round frees little: larger steps would alternate with empty ones."""
    few = turnover_of([Turnover(2000, 100.0)] * 15, 32_000)
    assert few == pytest.approx(32_000 / 2050 * 20)
    free = load(ending(1000.0, 50, count=15), PROMPTS, rows=15)
    assert RULE.choose(replace(free, turnover=few), 0.0).prompts < 512 <= RULE.choose(free, 0.0).prompts
    room = replace(free, turnover=few, free=200_000, coming=free.coming._replace(ttft_s=5.0))
    assert RULE.choose(room, 0.0).prompts >= 512 > RULE.choose(replace(room, free=0), 0.0).prompts


def test_prompts_that_come_in_clumps_make_steps_larger() -> None:
    """As many tokens a second in all, of short prompts and of long ones: chance makes a line of these."""
    empty = COST.linear_s(40) + COST.attention_s(12_000, 0.0)
    few = load(ending(100 * empty * 1.5, 100, count=12), [WaitingPrompt(200, 4.0)])
    short, long = (
        RULE.choose(replace(few, coming=Coming(800.0, tokens, tokens, 2.0)), 0.0).prompts
        for tokens in (50.0, 800.0)
    )
    assert short < long


def test_a_line_that_chance_makes_is_as_long_as_one_that_is_drawn() -> None:
    """Steps of a random walk that never falls below nothing, after a while and in the long run."""
    chance = np.random.default_rng(1)
    drift, variance_s, start, level, steps = -3.0, 40.0, 8.0, 10.0, 1000
    for after in (0.5, 4.0, 10.0):
        line = np.full(10_000, start)
        spread = math.sqrt(variance_s * after / steps)
        for _ in range(steps):
            line = np.maximum(line + chance.normal(drift * after / steps, spread, len(line)), 0.0)
        found = _exceeds(np.array([level]), start, np.array([drift]), variance_s, np.array([after]))
        # The walk looks at its floor now and then only, so it lies a little lower.
        assert float((line > level).mean()) == pytest.approx(float(found[0]), abs=0.03)


def test_who_came_too_late_already_says_nothing_of_those_to_come() -> None:
    """Nor who has no target."""
    pace = PromptPace()
    pace.computed(3000, riding=True, now=1.0)
    running = [Turnover(100, 50.0, 2.0), Turnover(300, 50.0, -1.0), Turnover(300, 50.0)]
    coming = coming_of(pace, running)
    assert coming.ttft_s == 2.0
    assert coming.tokens == pytest.approx(700 / 3) and coming.clump == pytest.approx(190_000 / 700)


def test_what_a_prompts_token_cost_lately_is_what_the_chosen_steps_took_longer() -> None:
    """Small ones where decoding is tight, large ones where nobody decodes; long ago does not count."""
    rule, rows = StepBudget(COST), 40
    assert rule.paid_s == 0.0
    empty = COST.linear_s(rows) + COST.attention_s(12_000, 0.0)
    tight = load(ending(20 * empty * 1.15, 20), PROMPTS)
    free = load([], PROMPTS)
    for now, asked in ((0.0, tight), (1000.0, free)):
        chosen = rule.choose(asked, now).prompts
        longer = COST.linear_s(rows + chosen) - COST.linear_s(rows)
        assert rule.paid_s == pytest.approx(longer / chosen)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 3000),
    batches=st.sampled_from([1, 2, 5]),
    tpot_s=st.floats(0.001, 1.0),
    produced=st.integers(1, 500),
    waiting=st.lists(st.tuples(st.integers(1, 4000), st.floats(-10.0, 10.0)), max_size=5),
    turnover=st.floats(0.0, 5000.0),
    tokens_s=st.floats(0.0, 1e5),
)
def test_prompts_never_starve_whatever_the_load_is(
    rows: int,
    batches: int,
    tpot_s: float,
    produced: int,
    waiting: list[tuple[int, float]],
    turnover: float,
    tokens_s: float,
) -> None:
    """At least LEAST tokens, with a reason that has its numbers."""
    choice = RULE.choose(
        StepLoad(
            rows,
            batches,
            300 * rows,
            [Decoding(-1.0, produced, float(ahead), tpot_s) for ahead in range(0, rows, 7)],
            [WaitingPrompt(tokens, due) for tokens, due in waiting],
            Coming(tokens_s, 200.0, 300.0, 1.0),
            turnover,
        ),
        0.0,
    )
    assert LEAST <= choice.prompts <= 4096
    assert choice.reason.numbers["step_tokens"] == rows + choice.prompts


def test_auto_says_why_its_steps_are_as_large_as_they_are() -> None:
    """With targets: first come, first served, in one phase, with the rule's reason and numbers."""
    setup = make_setup("auto", {}, COST)
    scheduler = Scheduler(setup.config(4096, (0,)), setup.policy)
    scheduler.on(StagesReady(1, 1, 4000), 0.0)
    arrivals = tuple(
        NewSequence(f"s{i}", (1,) * 300, SamplingParams(max_tokens=9), first_token_due=5.0, tpot_s=0.1)
        for i in range(3)
    )
    actions = scheduler.on(SequencesArrived(arrivals), 0.0)
    turned = next(action for action in actions if isinstance(action, PhaseSwitched))
    assert "steps" in turned.reason.text and turned.reason.numbers["step_tokens"] >= 384
    assert scheduler.stats.last_switch is turned.reason
