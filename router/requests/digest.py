"""Tells whether two calls with one request id, or one idempotency key, mean the same request."""

from __future__ import annotations

import hashlib
import marshal
from dataclasses import astuple, fields
from typing import Any

from tidepipe_common.types.request import ChatTurn, GenerationRequest
from tidepipe_common.types.sampling import SamplingParams

_FORMAT = 2
"""Of marshal: the last one whose bytes depend on the values alone, and not on which objects are shared."""


def request_digest(request: GenerationRequest) -> str:
    """Equal for equal requests, also in another process; how the answer is presented does not matter."""
    sampling = request.sampling
    values: dict[str, Any] = {field.name: getattr(sampling, field.name) for field in fields(SamplingParams)}
    values["logit_bias"] = tuple(sorted(sampling.logit_bias.items()))
    values["structure"] = None if sampling.structure is None else astuple(sampling.structure)
    prompt: Any = request.prompt
    if request.is_chat:
        prompt = tuple(astuple(turn) for turn in request.prompt if isinstance(turn, ChatTurn))
    content: Any = (
        prompt,
        request.tools,
        tuple(values.items()),
        request.model,
        request.skip_text,
        request.keep_special_tokens,
    )
    return hashlib.blake2b(marshal.dumps(content, _FORMAT), digest_size=16).hexdigest()
