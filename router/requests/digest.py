"""Tells whether two calls with one request id mean the same request."""

from __future__ import annotations

from dataclasses import fields

from common.request import GenerationRequest
from common.sampling import SamplingParams


def request_digest(request: GenerationRequest) -> int:
    """A number that is equal for equal requests; how the answer is presented does not matter."""
    sampling = tuple(
        tuple(sorted(value.items())) if field.name == "logit_bias" else value
        for field in fields(SamplingParams)
        for value in (getattr(request.sampling, field.name),)
    )
    return hash(
        (
            request.prompt,
            request.tools,
            sampling,
            request.model,
            request.skip_text,
            request.keep_special_tokens,
        )
    )
