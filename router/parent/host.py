"""The sequences that other routers have here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.models.model import ServedModel
from router.models.models import ServedModels
from router.parent.sequence import ForwardedSequence
from tidepipe_common.errors import NotFoundError
from tidepipe_common.rpc.results import ABANDONED_AFTER_S, ResultsHub
from tidepipe_common.types.sampling import FinishReason

SWEEP_S = 0.5


class UpstreamHosts:
    """One for each of our models, each an instance of its own to other routers."""

    def __init__(
        self, name: str, models: ServedModels, clock: Callable[[], float], max_sequences: int
    ) -> None:
        """name: of our own model's. max_sequences: of all other routers together at a time."""
        self.name = name
        self.models = models
        self.max_sequences = max_sequences
        self._clock = clock
        self._hosts: dict[ServedModel, UpstreamHost] = {}

    def __len__(self) -> int:
        return sum(len(host) for host in self._hosts.values())

    def instance_id(self, model: ServedModel) -> str:
        """What it is called as an instance."""
        return self.name if model is self.models.main else f"{self.name}/{model.name}"

    def find(self, instance_id: str) -> UpstreamHost:
        """NotFoundError if none of our models is called so; the own one without a name."""
        names = {self.instance_id(model): model for model in self.models}
        model = names.get(instance_id) if instance_id else self.models.main
        if model is None:
            raise NotFoundError(
                f"there is no instance {instance_id[:100]} here; there are {', '.join(names)}"
            )
        if model not in self._hosts:
            self._hosts[model] = UpstreamHost(model, self._clock, self)
        return self._hosts[model]

    async def run(self) -> None:
        """Forget what routers left behind that do not come back, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            there = set(self.models)
            for host in self._hosts.values():
                host.sweep()
            self._hosts = {model: host for model, host in self._hosts.items() if model in there}


class UpstreamHost:
    """Gives those of one model to its dispatcher, and keeps their results for whoever asked."""

    def __init__(self, model: ServedModel, clock: Callable[[], float], all_hosts: UpstreamHosts) -> None:
        self.hub = ResultsHub()
        self.model = model
        self._all_hosts = all_hosts
        self._dispatcher = model.dispatcher
        self._clock = clock
        self._sequences: dict[str, ForwardedSequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def sweep(self) -> None:
        """Forget what routers left behind that do not come back."""
        for name in self.hub.abandoned(self._clock(), ABANDONED_AFTER_S):
            self.drop(name)
        self.hub.close_mailboxes(self._clock(), ABANDONED_AFTER_S)
        for name in [name for name, one in self._sequences.items() if one.finished]:
            del self._sequences[name]

    def now(self) -> float:
        """The clock of sequences' times, seconds."""
        return self._clock()

    def take(self, router_id: str, sequence: ForwardedSequence) -> bool:
        """Known ones count as taken. False: there are too many here."""
        name = sequence.key
        if name in self.hub.records:
            return True
        if len(self._all_hosts) >= self._all_hosts.max_sequences:
            return False
        self.hub.open(name, router_id, tuple(sequence.output), self._clock())
        self._sequences[name] = sequence
        self._dispatcher.submit(sequence)
        return True

    def note_ordinal(self, router_id: str, ordinal: int) -> None:
        """How many sequences the router has meant for us so far."""
        self.hub.note_ordinal(router_id, ordinal, self._clock())

    def ordinal(self, router_id: str) -> int:
        """See note_ordinal."""
        return self.hub.ordinal(router_id)

    def cancel(self, sequence_id: str) -> None:
        """The other router does not want it any more."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            sequence.end(FinishReason.CANCELLED)
            self._dispatcher.withdraw(sequence)

    def drop(self, sequence_id: str) -> None:
        """Nobody will ask for it again."""
        self.cancel(sequence_id)
        self.hub.forget(sequence_id)
