"""What instances say of the model they serve, and whether that fits this router."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import IncompatibleError


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model behind an instance. context_length and vocab_size in tokens."""

    model: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InstanceDescription:
    """An instance's account of itself: its answer to Describe.

    max_sequences: accepted at most, running and waiting together.
    """

    instance_id: str
    incarnation: str
    model: ModelFacts
    max_sequences: int


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
