"""ModelShape: protobuf <-> domain."""

from __future__ import annotations

from tidepipe.v1 import stage_pb2 as pb
from tidepipe_common.types.model_shape import ModelShape


def shape_to_wire(shape: ModelShape) -> pb.ModelShape:
    """Domain to protobuf."""
    return pb.ModelShape(
        architecture=shape.architecture,
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        eos_token_ids=shape.eos_token_ids,
        tied_embeddings=shape.tied_embeddings,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        expert_intermediate=shape.expert_intermediate,
    )


def shape_from_wire(message: pb.ModelShape) -> ModelShape:
    """Protobuf to domain."""
    return ModelShape(
        architecture=message.architecture,
        layers=message.layers,
        hidden=message.hidden,
        heads=message.heads,
        kv_heads=message.kv_heads,
        head_dim=message.head_dim,
        intermediate=message.intermediate,
        vocab_size=message.vocab_size,
        context_length=message.context_length,
        eos_token_ids=tuple(message.eos_token_ids),
        tied_embeddings=message.tied_embeddings,
        experts=message.experts,
        experts_per_token=message.experts_per_token,
        expert_intermediate=message.expert_intermediate,
    )
