"""Each technique on its own: forecast, stealing, order, step sizes, switching, beliefs, victims."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.decode import DecodeBatches
from controller.scheduler.expectation import LengthBelief, SeenLengths
from controller.scheduler.forecast import KvForecast
from controller.scheduler.ordering import FinishTogether
from controller.scheduler.overflow import OverflowMargin
from controller.scheduler.preemption import LeastLost, Newest
from controller.scheduler.sequence import Sequence, State
from controller.scheduler.state import PipelineState, SchedulerConfig
from controller.scheduler.stats import ForecastAccuracy
from controller.scheduler.stealing import StealByCount, StealByTime
from controller.scheduler.step_sizes import StepSizes
from controller.scheduler.switching import Intensity, Situation
from tests.unit.controller.policy_cases import COST
from tidepipe_common.types.sampling import SamplingParams


def sequence(name: str, prompt: int, output: int = 0, limit: int = 1000) -> Sequence:
    one = Sequence(name, (1,) * prompt, SamplingParams(), limit, 0.0, None, output=[1] * output)
    one.state = State.DECODE
    return one


certain = st.tuples(st.integers(1, 500), st.integers(1, 900))


@settings(max_examples=60, deadline=None)
@given(st.lists(certain, min_size=1, max_size=40), st.integers(0, 600), st.data())
def test_forecast_is_the_exact_profile_within_one_grid_point(
    sequences: list[tuple[int, int]], steps: int, data: st.DataObject
) -> None:
    """The peak of certain ends, after some steps and departures, against a plain sum over horizons."""
    forecast = KvForecast(block_size=1, longest=2000)
    for key, (length, remaining) in enumerate(sequences):
        forecast.put(key, length, 0, LengthBelief(float(remaining), math.inf), 10_000)
    gone = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    for key in gone:
        forecast.remove(key)
    forecast.advance(steps)
    left = [one for key, one in enumerate(sequences) if key not in gone and one[1] > steps]

    def exact(times: list[float]) -> float:
        return max((sum(n + t for n, r in left if t <= r) for t in times), default=0.0)

    grid = 2000 / 126
    peak = forecast.peak_tokens()
    assert peak >= exact([i * grid for i in range(200) if i * grid >= steps]) - 1e-6
    # What ended within the present grid point may still be counted.
    recent = sum(
        n + steps for key, (n, r) in enumerate(sequences) if key not in gone and 0 <= steps - r <= grid
    )
    assert peak <= exact([float(t) for t in range(steps, 1500)]) + recent + len(sequences) + 1


def test_doubt_raises_the_peak_and_leaves_without_trace() -> None:
    """Risk needs doubt; what is added and removed leaves an empty forecast."""
    forecast = KvForecast(block_size=16, longest=2000)
    for key in range(50):
        forecast.put(key, 100, 0, LengthBelief.from_quantiles(100.0, 300.0), 1000)
    assert forecast.peak_tokens(risk=1.6) > 1.05 * forecast.peak_tokens()
    for key in range(50):
        forecast.advance(3)
        forecast.put(key, 130, 30, LengthBelief.from_quantiles(100.0, 300.0), 1000)
        forecast.remove(key)
    assert abs(forecast.peak_tokens(risk=1.6)) < 1e-3


def test_memory_runs_out_at_the_chosen_rate() -> None:
    """Whatever the forecast's errors are: here it is too low by 4 % on average."""
    chance = np.random.default_rng(2)
    margin = OverflowMargin(rate=0.1)
    overflows = 0
    for error in chance.normal(0.04, 0.02, 4000):
        overflows += error > margin.share
        margin.filled(overflows, full=True)
    assert 0.09 < overflows / 4000 < 0.11


def test_whoever_got_this_far_is_certain_to_have_got_this_far() -> None:
    """With sequences of all ages the forecast is the conditional expectation: ended ones are gone, those that
    go on hold all their tokens, and their chances count from now."""
    chance = np.random.default_rng(5)
    belief = LengthBelief.from_quantiles(200.0, 600.0)
    forecast = KvForecast(block_size=1, longest=2000)
    ages: dict[int, int] = {}
    ends: dict[int, float] = {}
    review: dict[int, int] = {}
    for step in range(700):
        if step % 2 == 0:
            ages[step] = 0
            odds = chance.uniform()
            ends[step] = belief.median * (1 / odds - 1) ** (1 / belief.shape)
            review[step] = forecast.put(step, 100, 0, belief, 1500)
        forecast.advance(1)
        for key in list(ages):
            ages[key] += 1
            if ages[key] >= min(ends[key], 1500):
                forecast.remove(key)
                del ages[key]
            elif ages[key] >= review[key]:
                review[key] = forecast.put(key, 100 + ages[key], ages[key], belief, 1500 - ages[key])

    now = np.array(list(ages.values()), dtype=float)
    times, expected = forecast.profile()
    for index in (0, 3, 10, 20):
        later = now + times[index]
        odds_now, odds_later = ((age / belief.median) ** belief.shape for age in (now, later))
        alive = np.where(later < 1500, (1 + odds_now) / (1 + odds_later), 0.0)
        exact = float(alive @ (100 + later))
        assert abs(expected[index] - exact) < 0.06 * exact


@given(st.integers(1, 5), st.booleans(), st.integers(10, 400))
def test_the_peak_with_several_is_what_it_is_once_they_run(count: int, certain: bool, output: int) -> None:
    """Asked for beforehand, and without a trace of having been asked."""
    belief = LengthBelief.from_quantiles(output, output if certain else 3 * output)
    forecast = KvForecast(block_size=16, longest=2000)
    forecast.put(0, 300, 20, LengthBelief(200.0, math.inf), 900)
    before = forecast.peak_tokens()
    asked = forecast.peak_with(100, 0, belief, 1000, count=count)
    assert math.isclose(forecast.peak_tokens(), before, rel_tol=1e-9)
    for key in range(count):
        forecast.put(1 + key, 100, 0, belief, 1000)
    assert math.isclose(asked, forecast.peak_tokens(), rel_tol=1e-6)


@given(st.floats(1, 1000), st.floats(1.01, 5), st.integers(0, 900), st.integers(0, 500))
def test_what_is_said_of_one_under_way_is_of_its_rest(p50: float, factor: float, at: int, since: int) -> None:
    """The same quantiles of the rest, said at any age, give the same expectation and the same forecast."""
    fresh = LengthBelief.from_quantiles(p50, p50 * factor)
    later = LengthBelief.from_quantiles(at + p50, at + p50 * factor, at)
    assert math.isclose(later.remaining(at + since), fresh.remaining(since), rel_tol=1e-6)
    profiles = []
    for belief, generated in ((fresh, since), (later, at + since)):
        forecast = KvForecast(block_size=1, longest=2000)
        forecast.put(1, 1000, generated, belief, 900)
        profiles.append(forecast.profile()[1])
    assert np.allclose(*profiles, rtol=1e-6)


@given(st.floats(1, 1000), st.floats(1.01, 5), st.integers(0, 5000))
def test_beliefs_halve_what_is_left(median: float, factor: float, generated: int) -> None:
    """`remaining` is the median of the conditional distribution."""
    belief = LengthBelief.from_quantiles(median, median * factor)

    def log_survival(x: float) -> float:
        return -float(np.logaddexp(0.0, belief.shape * math.log(max(x, 1e-9) / belief.median)))

    remaining = belief.remaining(generated)
    assert remaining >= 1.0
    if remaining > 1.0 and math.isfinite(belief.shape):
        halved = log_survival(generated) - math.log(2.0)
        assert math.isclose(log_survival(generated + remaining), halved, rel_tol=1e-3, abs_tol=1e-3)


def test_seen_lengths_count_those_that_still_run() -> None:
    """When only short outputs have ended, the estimate is not their mean."""
    for length in (400, 4000):
        seen = SeenLengths()
        for _ in range(32):
            seen.note(50, [length] * 96)
        assert seen.belief is not None
        assert seen.belief.median > length


@given(st.integers(1, 400), st.integers(2, 900), st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_seen_lengths_say_what_memory_lets_through(prompt: int, output: int, going: int) -> None:
    """If all outputs are alike, exactly that; those that have not come as far change nothing."""
    seen = SeenLengths()
    assert seen.tokens_per_round(prompt, 100_000) == 0.0
    for _ in range(SeenLengths.LEAST):
        seen.note(output, [i % output for i in range(going)])
    exact = 100_000 * (prompt + output) / (output * (prompt + output / 2))
    assert math.isclose(seen.tokens_per_round(prompt, 100_000), exact, rel_tol=1e-9)


def test_foresight_compares_the_end_of_a_phase_with_what_was_told() -> None:
    """Ten certain sequences, as told: no error. Half of them gone early: their share of the memory."""
    for gone, error in ((0, 0.0), (5, 0.25)):
        forecast = KvForecast(block_size=1, longest=2000)
        for key in range(10):
            forecast.put(key, 400, 0, LengthBelief(500.0, math.inf), 10_000)
        forecast_accuracy = ForecastAccuracy()
        forecast_accuracy.begin(forecast)
        forecast.advance(100)
        forecast_accuracy.end(forecast, 500 * (10 - gone), 10_000)
        assert forecast_accuracy.mean_error is not None
        assert abs(forecast_accuracy.mean_error - error) < 1e-9


def test_stealing_by_time_evens_out_contexts_stealing_by_count_numbers() -> None:
    """After some rounds all batches are equal: in members, or in members and context."""
    for stealing, tolerance in ((StealByCount(), None), (StealByTime(COST), 0.12)):
        chance = np.random.default_rng(3)
        batches = DecodeBatches(4)
        for index, batch in enumerate(batches.batches):
            # The first batches have long contexts.
            batch.members = [
                sequence(f"{index}-{i}", int(chance.integers(50, 1500) / (index + 1)))
                for i in range(30 + 10 * index)
            ]
        for _ in range(20):
            for batch in batches.batches:
                stealing.balance(batches, batch, 0)
        assert max(batches.sizes()) - min(batches.sizes()) <= 5 + len(batches.pool)
        loads = [sum(s.length for s in batch.members) for batch in batches.batches]
        if tolerance is not None:
            assert max(loads) - min(loads) <= tolerance * max(loads)


def test_stealing_by_count_gives_what_is_like_the_rest() -> None:
    """Long and short ones alike: neither what stays nor what leaves is shorter."""
    batches = DecodeBatches(2)
    batches.batches[0].members = [sequence(f"{length}", length) for length in range(100, 1100, 50)]
    assert StealByCount().balance(batches, batches.batches[0], 0) == 10
    for part in (batches.pool, batches.batches[0].members):
        assert abs(sum(s.length for s in part) / 10 - 575) <= 25


def test_a_lone_sequence_is_never_taken_from_its_batch() -> None:
    """Fewer sequences than batches: nobody ends up in the pool for good."""
    batches = DecodeBatches(4)
    batches.batches[2].members = [sequence("last", 300)]
    for batch in batches.batches:
        StealByTime(COST).balance(batches, batch, 0)
    assert batches.sizes() == [0, 0, 1, 0]


def test_order_starts_long_ones_in_time_and_mixes_all_lengths() -> None:
    """The longest output starts in the first part, and every tenth of the line has short and long ones."""
    state = PipelineState(SchedulerConfig(context_length=4000, eos_token_ids=()))
    state.start_epoch(4, 6000, 4)
    chance = np.random.default_rng(1)
    line = []
    for i, length in enumerate(chance.integers(10, 1000, 1000)):
        one = sequence(f"s{i}", 50)
        one.predicted_p50 = one.predicted_p90 = float(length)
        line.append(one)
    state.waiting.add(line)
    FinishTogether().apply(state)
    ordered = [one.predicted_p50 or 0.0 for one in state.waiting]
    assert sorted(ordered) == sorted(one.predicted_p50 or 0.0 for one in line)
    tenths = [np.array(ordered[i : i + 100]) for i in range(0, 900, 100)]
    assert all(part.min() < 150 for part in tenths)
    assert tenths[0].max() > 900
    assert max(ordered[-50:]) < 500


def test_order_counts_the_long_outputs_that_medians_do_not_know() -> None:
    """Of equal medians those go first that may become long, as far as their limits allow."""

    def ordered(doubtful: float, limit: int) -> tuple[list[bool], float]:
        state = PipelineState(SchedulerConfig(context_length=4000, eos_token_ids=()))
        state.start_epoch(4, 4000, 4)
        line = []
        for number in range(400):
            one = sequence(f"s{number:03d}", 50, limit=limit)
            one.predicted_p50, one.predicted_p90 = 100.0, doubtful if number % 2 else 100.0
            line.append(one)
        state.waiting.add(line)
        order = FinishTogether()
        order.apply(state)
        return [one.predicted_p90 != 100.0 for one in state.waiting], order.tokens_per_round

    certain, rate = ordered(100.0, 2000)
    doubtful, slower = ordered(800.0, 2000)
    assert not any(certain) and sum(doubtful[-100:]) < 10
    assert slower < 0.5 * rate
    limited, alike = ordered(800.0, 100)
    assert alike > 0.85 * rate and sum(limited[-100:]) > 50


def test_with_memory_for_all_prompts_are_spread_over_the_longest_output() -> None:
    """More tokens a step than that would only make the drain longer, in which a few outputs are left."""
    state = PipelineState(SchedulerConfig(context_length=8000, eos_token_ids=()))
    state.start_epoch(2, 100_000, 3)
    line = []
    for number in range(32):
        one = sequence(f"s{number:02d}", 300)
        one.predicted_p50 = one.predicted_p90 = float(400 if number == 7 else 100)
        line.append(one)
    state.waiting.add(line)
    order = FinishTogether()
    order.apply(state)
    total = 32 * 300 + 31 * 100 + 400
    assert total / 500 < order.tokens_per_round <= total / 400


def test_step_sizes_end_where_tiles_end() -> None:
    """On a device with tiles of 128 tokens no step of 129 is ever chosen."""
    corners = StepSizes(COST, 2048, 1.05, 32).corners(90)
    assert corners
    assert all(size % 128 == 0 and size > 90 for size in corners)


def test_intensities_are_shares_and_a_small_batch_turns() -> None:
    """Both intensities lie in [0, 1]; a full batch goes on, a small one turns to prefill."""
    state = PipelineState(SchedulerConfig(context_length=2000, eos_token_ids=()))
    state.start_epoch(4, 4000, 5)
    state.waiting.add([sequence(f"w{i}", 300) for i in range(3)])
    for decoding, turns in ((500, False), (40, True)):
        situation = Situation(4, 5, 200, 0.0, decoding, 520, 3000, True)
        verdict = Intensity(COST).turn_to_prefill(situation, state)
        assert verdict.yes is turns
        assert 0.0 <= verdict.reason.numbers["spatial"] <= 1.0
        assert 0.0 <= verdict.reason.numbers["temporal"] <= 1.0


def test_victims() -> None:
    """The paper takes the newest; the other takes the shortest idle one and spares the oldest."""
    old, mid, new = sequence("old", 10), sequence("mid", 30), sequence("new", 500)
    old.admitted_order, mid.admitted_order, new.admitted_order = 1, 2, 3
    busy: set[Sequence] = set()
    assert Newest().choose([old, mid, new], busy) is new
    busy.add(new)
    assert Newest().choose([old, mid, new], busy) is new
    assert Newest(idle_only=True).choose([old, mid, new], busy) is mid
    assert LeastLost().choose([old, mid, new], busy) is mid
    busy.add(mid)
    assert LeastLost().choose([old, mid, new], busy) is None
