"""Laws of circuit breakers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepipe_common.circuit_breaker import FIRST_S, MOST_NAMES, MOST_S, CircuitBreaker, CircuitBreakers


@given(st.lists(st.tuples(st.floats(0.1, 2000.0), st.booleans(), st.integers(1, 5)), max_size=40))
def test_it_opens_for_twice_as_long_each_time_and_a_success_closes_it(
    course: list[tuple[float, bool, int]],
) -> None:
    """Trials side by side count as one, and while one of a half-open breaker goes on there is no other."""
    breaker, now, failures = CircuitBreaker(), 0.0, 0
    for pause_s, well, together in course:
        now += pause_s
        if not breaker.lets(now):
            assert breaker.is_open(now) and now < breaker.until
            continue
        breaker.tried(now, 5.0)
        assert breaker.lets(now + 4.0) is (failures == 0)
        began, now = now, now + 1.0
        if well:
            breaker.worked()
            failures = 0
            continue
        for _ in range(together):
            open_s = breaker.failed(began, now)
        failures += 1
        assert breaker.failures == failures
        assert open_s == pytest.approx(min(MOST_S, FIRST_S * 2 ** (failures - 1)))
        assert breaker.is_open(now + 0.9 * open_s) and not breaker.is_open(now + 1.1 * open_s)


def test_of_many_names_the_longest_known_are_forgotten() -> None:
    breakers = CircuitBreakers()
    for number in range(MOST_NAMES + 10):
        breakers.failed(f"n{number}", 0.0, 1.0)
    assert len(breakers.open(2.0)) == MOST_NAMES
    assert breakers.of("n9") is None and breakers.of("n10") is not None
    breakers.worked("n10")
    assert breakers.of("n10") is None
