"""Prompts in numbers: protobuf <-> domain."""

from __future__ import annotations

from tidepipe.v1 import prompt_pb2 as pb
from tidepipe_common.lengths.prompt import VERSION, PromptFeatures


def prompt_to_wire(prompt: PromptFeatures) -> pb.PromptFeatures:
    """Domain to protobuf."""
    return pb.PromptFeatures(
        version=VERSION,
        dense=prompt.dense,
        buckets=prompt.buckets,
        template_hash=prompt.template,
        client_hash=prompt.client,
        unlearned=prompt.unlearned,
        owner_hash=prompt.owner,
    )


def prompt_from_wire(message: pb.PromptFeatures) -> PromptFeatures:
    """Protobuf to domain; nothing is known of a prompt in numbers of another version but who asks."""
    if message.version != VERSION:
        return PromptFeatures(
            template=message.template_hash,
            client=message.client_hash,
            unlearned=message.unlearned,
            owner=message.owner_hash,
        )
    return PromptFeatures(
        dense=tuple(message.dense),
        buckets=tuple(message.buckets),
        template=message.template_hash,
        client=message.client_hash,
        unlearned=message.unlearned,
        owner=message.owner_hash,
    )
