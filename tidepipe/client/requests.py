"""Turns what a caller gives into the request that travels."""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import ConfigError, InvalidRequestError
from common.request import ChatTurn
from common.sampling import SamplingParams
from common.wire.sampling import sampling_to_wire
from tidepipe.client.types import Prompt
from tidepipe.v1 import inference_pb2 as pb

DISCONNECT_GRACE_MS = 60_000
"""How long the router keeps a request whose client lost its connection: enough to come back."""

WHOLE_ANSWER_GAP_MS = 5000
"""How often the router reports to a client that wants the answer as a whole: often enough to resume from."""

_SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))


def check_endpoint(endpoint: str) -> str:
    """HOST:PORT as it is; ConfigError if it is something else."""
    host, separator, port = endpoint.rpartition(":")
    if not (host and separator and port.isdigit() and 0 < int(port) < 65_536) or "//" in host:
        raise ConfigError(f"endpoint must be HOST:PORT, got '{endpoint}'")
    return endpoint


def make_sampling(sampling: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
    """Parameters and keyword arguments together, checked; keywords win.

    A seed is drawn here if randomness is wanted and none is given: a retry must ask for the same draws.
    """
    unknown = [name for name in overrides if name not in _SAMPLING_FIELDS]
    if unknown:
        raise InvalidRequestError(
            f"unknown sampling parameter '{unknown[0]}'; known: {', '.join(_SAMPLING_FIELDS)}", unknown[0]
        )
    values = dict(overrides)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    for name in ("stop", "stop_token_ids"):
        if name in values:
            values[name] = tuple(values[name])
    merged = dataclasses.replace(sampling or SamplingParams(), **values)
    if not merged.greedy and merged.seed is None:
        merged = dataclasses.replace(merged, seed=secrets.randbits(64))
    merged.check()
    return merged


def make_request(
    prompt: Prompt,
    sampling: SamplingParams,
    *,
    request_id: str | None = None,
    model: str = "",
    skip_text: bool = False,
    keep_special_tokens: bool = False,
    tools: Sequence[str] = (),
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    piece_gap_ms: int = 0,
    user: str = "",
    clamp_max_tokens: bool = False,
) -> pb.InferenceRequest:
    """The request; InvalidRequestError if the prompt has a form that no request has."""
    request = pb.InferenceRequest(
        request_id=request_id or f"req-{uuid.uuid4().hex}",
        model=model,
        sampling=sampling_to_wire(sampling),
        disconnect_grace_ms=DISCONNECT_GRACE_MS,
        skip_text=skip_text,
        keep_special_tokens=keep_special_tokens,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        piece_gap_ms=piece_gap_ms,
        user=user,
        clamp_max_tokens=clamp_max_tokens,
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif not prompt:
        raise InvalidRequestError("the prompt is empty", "prompt")
    elif isinstance(prompt[0], int):
        try:
            request.token_ids.ids.extend(prompt)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequestError(f"the prompt's token ids are not valid: {error}", "prompt") from error
    else:
        request.chat.messages.extend(_turn(turn) for turn in prompt)
        request.chat.tools.extend(tools)
    return request


def _turn(turn: object) -> pb.ChatMessage:
    if isinstance(turn, ChatTurn):
        return pb.ChatMessage(**dataclasses.asdict(turn))
    if not isinstance(turn, Mapping):
        raise InvalidRequestError(
            f"a turn must be a ChatTurn or a mapping, got {type(turn).__name__}", "messages"
        )
    fields = dict(turn)
    role, content, name = fields.pop("role", None), fields.pop("content", None), fields.pop("name", "")
    if not isinstance(role, str) or not isinstance(content, str) or not isinstance(name, str):
        raise InvalidRequestError("a turn needs the texts 'role' and 'content'", "messages")
    if fields:
        raise InvalidRequestError(f"a turn has the unknown key '{next(iter(fields))}'", "messages")
    return pb.ChatMessage(role=role, content=content, name=name)
