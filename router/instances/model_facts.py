"""What instances say of the model they serve, and whether that fits this router."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe.v1 import controller_pb2
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.types.plan import PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model behind an instance. context_length and vocab_size in tokens."""

    model: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """An instance's account of itself. max_sequences: accepted at most, running and waiting together."""

    instance_id: str
    incarnation: str
    model: ModelFacts
    max_sequences: int


def instance_facts(message: controller_pb2.DescribeResponse) -> InstanceFacts:
    """Protobuf to domain. IncompatibleError for another contract or an account that makes no sense."""
    name = message.instance_id
    if message.protocol_version != PROTOCOL_VERSION:
        raise IncompatibleError(
            f"instance {name} speaks protocol version {message.protocol_version}, this router speaks "
            f"{PROTOCOL_VERSION}; run the same release everywhere"
        )
    if not (message.context_length >= 2 and message.vocab_size >= 1 and message.max_sequences >= 1):
        raise IncompatibleError(
            f"instance {name} reports context length {message.context_length}, vocabulary size "
            f"{message.vocab_size} and {message.max_sequences} sequences at most, which cannot be"
        )
    return InstanceFacts(
        instance_id=name,
        incarnation=message.incarnation,
        model=ModelFacts(
            model=message.model,
            fingerprint=message.model_fingerprint,
            context_length=message.context_length,
            vocab_size=message.vocab_size,
            eos_token_ids=tuple(message.eos_token_ids),
        ),
        max_sequences=message.max_sequences,
    )


def check_same_model(instance_id: str, offered: ModelFacts, served: ModelFacts) -> None:
    """Raise IncompatibleError if an instance cannot continue what the others began."""
    if offered.vocab_size != served.vocab_size:
        raise IncompatibleError(
            f"instance {instance_id} serves {offered.model} with a vocabulary of {offered.vocab_size}, "
            f"but this router serves {served.model} with a vocabulary of {served.vocab_size}"
        )
    if offered.fingerprint != served.fingerprint:
        raise IncompatibleError(
            f"instance {instance_id} serves {offered.model} (fingerprint {offered.fingerprint}), but this "
            f"router serves {served.model} (fingerprint {served.fingerprint})"
        )
