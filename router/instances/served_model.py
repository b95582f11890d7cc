"""What an instance serves: the facts of a model, and how an instance describes itself."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import IncompatibleError, UnavailableError
from tidepipe_common.types.adapter import Adapter
from tidepipe_common.types.text_choices import NO_CHOICES, TextChoices


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model behind an instance. context_length and vocab_size in tokens.

    fingerprint: empty where nobody can look at the weights; whoever started the instance vouches for them.
    """

    model: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InstanceDescription:
    """An instance's account of itself: its answer to Describe.

    max_sequences: accepted at most, running and waiting together.
    names: by which clients ask for the model; empty: the usual one. ttft_ms, tpot_ms: targets of its requests
    that bring none; None: the router's. provisioner: HOST:PORT of who starts more of them; empty: nobody.
    lacks: what it cannot do for a request (tidepipe_common/types/needs.py). adapters: that it has.
    choices: how its text is read. hands_over: its sequences can go on elsewhere with their KV blocks.
    """

    instance_id: str
    incarnation: str
    model: ModelFacts
    max_sequences: int
    names: tuple[str, ...] = ()
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    provisioner: str = ""
    lacks: frozenset[str] = frozenset()
    adapters: tuple[Adapter, ...] = ()
    choices: TextChoices = NO_CHOICES
    hands_over: bool = False

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of its adapters."""
        return frozenset(one.fingerprint for one in self.adapters)


class NotYetError(UnavailableError):
    """An instance fits, and something here that it needs is still being made ready: it shall come again."""


def check_same_model(instance_id: str, offered: ModelFacts, served: ModelFacts) -> None:
    """Raise IncompatibleError if an instance cannot continue what the others began."""
    if offered.vocab_size != served.vocab_size:
        raise IncompatibleError(
            f"instance {instance_id} serves {offered.model} with a vocabulary of {offered.vocab_size}, "
            f"but this router serves {served.model} with a vocabulary of {served.vocab_size}"
        )
    if offered.fingerprint and served.fingerprint and offered.fingerprint != served.fingerprint:
        raise IncompatibleError(
            f"instance {instance_id} serves {offered.model} (fingerprint {offered.fingerprint}), but this "
            f"router serves {served.model} (fingerprint {served.fingerprint})"
        )
