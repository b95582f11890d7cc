"""Requests and observations: protobuf <-> domain."""

from __future__ import annotations

from tidepipe.v1 import predictor_pb2 as pb
from tidepipe_common.codec.prompt import prompt_from_wire
from tidepipe_common.lengths.request import Observation, RequestFeatures


def features_from_wire(message: pb.RequestFeatures) -> RequestFeatures:
    """Protobuf to domain; unchecked."""
    return RequestFeatures(
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        prompt=prompt_from_wire(message.prompt),
        generated_tokens=message.generated_tokens,
        behind_thought=message.behind_thought,
        signal=message.signal,
        model=message.model,
    )


def observation_from_wire(message: pb.Observation) -> Observation:
    """Protobuf to domain; unchecked."""
    return Observation(features_from_wire(message.features), message.output_tokens, message.censored)
