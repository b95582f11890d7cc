"""The model that this router serves: what its first instance says of it, and the others have to match."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from tidepipe_common.errors import IncompatibleError, UnavailableError

log = structlog.get_logger()


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
    if offered.fingerprint and served.fingerprint and offered.fingerprint != served.fingerprint:
        raise IncompatibleError(
            f"instance {instance_id} serves {offered.model} (fingerprint {offered.fingerprint}), but this "
            f"router serves {served.model} (fingerprint {served.fingerprint})"
        )


class ServedModel:
    """The facts of the model, once known.

    They outlive the instances: as long as requests run, only the same model can continue them.
    """

    def __init__(self, in_use: Callable[[], bool]) -> None:
        """in_use: whether instances are registered or requests run, so that the model must stay."""
        self.tokenizer_size = 0
        self._in_use = in_use
        self._facts: ModelFacts | None = None
        self._known = asyncio.Event()

    @property
    def facts(self) -> ModelFacts | None:
        """None until the first instance has come."""
        return self._facts

    def admit(self, instance: InstanceDescription) -> None:
        """Check an instance; the first one decides. IncompatibleError if it does not fit."""
        if self.tokenizer_size > instance.model.vocab_size:
            # Tokens added without growing the model: prompts that hold one are refused, the others are right.
            log.warning(
                "the tokenizer has more tokens than the model; prompts with one of them are refused",
                instance=instance.instance_id,
                tokenizer=self.tokenizer_size,
                model=instance.model.vocab_size,
            )
        facts = instance.model
        if self._facts is not None and self._in_use():
            check_same_model(instance.instance_id, facts, self._facts)
            # What is admitted must fit wherever it may have to go.
            facts = replace(
                facts,
                context_length=min(facts.context_length, self._facts.context_length),
                fingerprint=facts.fingerprint or self._facts.fingerprint,
            )
        self._facts = facts
        self._known.set()

    async def wait(self, timeout: float) -> ModelFacts:
        """The facts; UnavailableError if no instance comes within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._known.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"no instance came within {timeout:g} s; "
                "check that a controller is running and registered with this router"
            ) from error
        if self._facts is None:
            raise AssertionError("known without facts")
        return self._facts
