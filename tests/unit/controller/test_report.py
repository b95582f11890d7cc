"""What an instance tells routers of itself."""

from __future__ import annotations

import pytest

from controller.scheduler.events import NewSequence, SequencesArrived
from controller.scheduler.report import instance_report
from controller.scheduler.slack import decoding_of
from controller.scheduler.step_load import look_at_running
from tests.unit.controller.test_scheduler import World
from tidepipe_common.latency.learned import LearnedCost
from tidepipe_common.latency.work import StepWork
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=50, ignore_eos=True)


def test_slack_and_window_follow_algorithm_1() -> None:
    """Two sequences decode, a third waits: saved TPOT of the two; the third one's prompt is the window."""
    world = World(stages=1, kv_blocks=100, block_size=8, microbatches=2)
    scheduler = world.scheduler

    def arrive(name: str, prompt: int, output: tuple[int, ...] = ()) -> None:
        world.outputs[name] = list(output)
        new = NewSequence(name, (1,) * prompt, PARAMS, output, first_token_due=9.0, tpot_s=0.5)
        world.handle(SequencesArrived((new,)))

    # "b" has 4 tokens from elsewhere, which do not count as saved here.
    arrive("a", 40)
    arrive("b", 20, (1,) * 4)
    running = list(scheduler.sequences.values())
    while scheduler.phase is not Phase.DECODE or min(len(s.output) for s in running) < 7:
        world.handle(world.fake.execute())
    arrive("c", 30)
    now = world.now + 1.0
    report = instance_report(scheduler, LearnedCost(), now)

    saved, latest = [], []
    for sequence, given in zip(running, (0, 4), strict=True):
        assert sequence.first_token_at is not None
        produced = len(sequence.output) - given
        saved.append(produced * 0.5 - (now - sequence.first_token_at))
        latest.append(produced * 0.5 - (now - sequence.first_token_at))
    assert report.slack is not None
    assert report.slack.count == 2
    assert report.slack.mean_s == pytest.approx(sum(saved) / 2)
    assert report.slack.low_s == pytest.approx(min(saved))
    assert report.slack.low_latest_s == pytest.approx(min(latest))
    assert (report.window.tokens, report.left.tokens) == (30, 30)
    assert report.window_left_s == pytest.approx(9.0 - now)
    assert report.kv_free == scheduler.allocator.free * 8 - 31
    assert report.sequences == 3
    # The third one will grow by 50 tokens, as the others do.
    peak = scheduler.state.admission.forecast.peak_tokens()
    assert peak + 31 < report.kv_peak < peak + 30 + 50 + 8


def test_decoding_that_began_too_late_is_nobodys_reason() -> None:
    """Of two that decode, the target of the one counts whose first token was in time; the load is of both."""
    world = World(stages=1, kv_blocks=100, block_size=8, microbatches=2)
    for name, due in (("in time", 99.0), ("late", 0.0)):
        new = NewSequence(name, (1,) * 20, PARAMS, first_token_due=due, tpot_s=0.5)
        world.handle(SequencesArrived((new,)))
    running = list(world.scheduler.sequences.values())
    while min(len(sequence.output) for sequence in running) < 3:
        world.handle(world.fake.execute())
    look = look_at_running(world.scheduler.state)
    assert look.decoding == [decoding_of(running[0])]
    assert (look.context, len(look.turnover)) == (sum(sequence.length for sequence in running), 2)


def test_a_learned_cost_follows_what_it_sees() -> None:
    """Means per size, lines between them, in proportion beyond; it never falls with more tokens."""
    cost = LearnedCost()
    for _ in range(100):
        cost.observe(Phase.PREFILL, StepWork(256, 256), 0.1)
        cost.observe(Phase.DECODE, StepWork(16, 900), 0.02)
    assert cost.linear_s(256) == pytest.approx(0.1)
    assert cost.linear_s(512) == pytest.approx(0.2)
    assert cost.linear_s(4) == pytest.approx(0.02)
    times = [cost.linear_s(size) for size in range(1, 600)]
    assert times == sorted(times)
