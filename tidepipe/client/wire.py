"""Small conversions from protobuf that both clients need."""

from __future__ import annotations

from tidepipe.client.types import ModelInfo
from tidepipe.v1 import inference_pb2 as pb


def models_from_wire(reply: pb.ListModelsResponse) -> list[ModelInfo]:
    """Protobuf to plain values."""
    return [
        ModelInfo(
            name=model.name,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            eos_token_ids=tuple(model.eos_token_ids),
            fingerprint=model.fingerprint,
        )
        for model in reply.models
    ]
