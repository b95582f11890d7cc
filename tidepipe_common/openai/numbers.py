"""Numbers in request bodies. Their ranges are described here and held by `SamplingParams.check`.

A schemathesis test compares the two on both sides of every border.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from tidepipe_common.limits import MAX_ANSWERS, MAX_LOGPROBS, MAX_PRIORITY

MAX_INT = 2**31 - 1


def _integer(low: int, high: int | None = None) -> WithJsonSchema:
    limits = {"minimum": low} if high is None else {"minimum": low, "maximum": high}
    return WithJsonSchema({"type": "integer", **limits})


def _number(**limits: float) -> WithJsonSchema:
    return WithJsonSchema({"type": "number", **limits})


Count = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
OutputTokens = Annotated[int, Field(ge=1, le=MAX_INT)]
FewestTokens = Annotated[Count, _integer(0, MAX_INT)]
Answers = Annotated[int, Field(le=MAX_INT), _integer(1, MAX_ANSWERS)]
TopLogprobs = Annotated[Count, _integer(0, MAX_LOGPROBS)]
Seed = Annotated[int, _integer(-(2**63), 2**64 - 1)]
TopK = Annotated[int, _integer(-1)]
Temperature = Annotated[float, _number(minimum=0, maximum=100)]
TopP = Annotated[float, _number(exclusiveMinimum=0, maximum=1)]
MinP = Annotated[float, _number(minimum=0, maximum=1)]
RepetitionPenalty = Annotated[float, _number(exclusiveMinimum=0, maximum=100)]
Penalty = Annotated[float, _number(minimum=-2, maximum=2)]
Priority = Annotated[int, _integer(-MAX_PRIORITY, MAX_PRIORITY)]
