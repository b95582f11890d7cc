"""How long an output will be, as whoever sends the request expects: `vllm_xargs` of vLLM's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "tidepipe_output_tokens"
MOST = 1e9


class Expected(NamedTuple):
    """Tokens: median and 90th percentile."""

    p50: float
    p90: float


def expected_of(extra_args: Mapping[str, Any] | None) -> Expected | None:
    """Of a request's further arguments: a number, or the median and the 90th percentile; None: neither."""
    given = (extra_args or {}).get(KEY)
    numbers: list[Any] = given if isinstance(given, list) else [given]
    if not 1 <= len(numbers) <= 2:
        return None
    for one in numbers:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one <= MOST:
            return None
    p50, p90 = float(numbers[0]), float(numbers[-1])
    return Expected(p50, max(p50, p90))
