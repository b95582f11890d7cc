"""One model of this router: its names, its tokenizer, its instances, and what is promised to its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import structlog

from router.autoscaling.fleet import Fleet
from router.background import Start
from router.instances.dispatcher import Dispatcher
from router.instances.link import InstanceLink
from router.instances.sequence import PrefixKeys
from router.instances.served_model import InstanceDescription, ModelFacts, check_same_model
from router.models.adapter_names import AdapterNames
from router.requests.meter import RequestMeter
from router.requests.text_port import TextPort
from router.scheduler.slo import SloTarget
from tidepipe_common.errors import UnavailableError
from tidepipe_common.model_names import MAX_NAMES
from tidepipe_common.types.adapter import Adapter
from tidepipe_common.types.text_choices import NO_CHOICES

log = structlog.get_logger()


class ServedModel:
    """A model, from when it is first heard of. Nothing of it is shared with another: a request for it can go
    to its own instances only.

    Its facts outlive its instances: as long as requests run, only the same model can continue them.
    """

    def __init__(
        self,
        names: Sequence[str],
        text: asyncio.Future[TextPort],
        dispatcher: Dispatcher,
        fleet: Fleet,
        prefixes: PrefixKeys,
        meter: RequestMeter,
        target: SloTarget,
    ) -> None:
        """names: by which clients ask for it, at least one. text: its tokenizer, once it is loaded.

        target: of requests that bring none, where its instances say nothing else.
        """
        self.names = tuple(names)
        self.text = text
        self.dispatcher = dispatcher
        self.fleet = fleet
        self.prefixes = prefixes
        self.meter = meter
        self.target = target
        self.choices = NO_CHOICES
        """How its text is read, as far as somebody said it."""
        self._tasks: list[asyncio.Task[None]] = []
        self._usual_target = target
        self._facts: ModelFacts | None = None
        self._adapter_names = AdapterNames()
        self._known = asyncio.Event()

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def facts(self) -> ModelFacts | None:
        """None until the first instance has come."""
        return self._facts

    @property
    def loaded(self) -> TextPort | None:
        """Its tokenizer; None while it is being loaded."""
        there = self.text.done() and not self.text.cancelled() and self.text.exception() is None
        return self.text.result() if there else None

    @property
    def links(self) -> Iterable[InstanceLink]:
        """Its instances."""
        return self.dispatcher.directory

    @property
    def connected(self) -> bool:
        """Can one of them be reached?"""
        return any(link.connected for link in self.links)

    @property
    def ready(self) -> bool:
        """True if its tokenizer is there, and an instance says that all its stages answer."""
        serving = any(link.connected and link.serving for link in self.links)
        return self.loaded is not None and self._facts is not None and serving

    @property
    def idle(self) -> bool:
        """No instance, and no sequence that one has or waits for."""
        return not any(True for _ in self.links) and not self.dispatcher.busy

    @property
    def adapters(self) -> Sequence[Adapter]:
        """Those of the instances that can be reached; each name once."""
        there = (link.facts.adapters for link in self.links if link.connected and link.facts is not None)
        return list({one.name: one for adapters in there for one in adapters}.values())

    @property
    def adapter_names(self) -> Collection[str]:
        """Of all adapters that requests may ask for, those of instances that are away included."""
        return self._adapter_names.names

    def adapter(self, name: str | None) -> str:
        """Fingerprint of the adapter that is called so; empty if none is, and for the model's own names."""
        return "" if name in self.names else self._adapter_names.fingerprint(name)

    def called(self, name: str | None) -> str:
        """What an answer says of whose it is: the name that was asked for, if it is one of its own."""
        return name if name and (name in self.names or self.adapter(name)) else self.name

    def answers_to(self, name: str) -> bool:
        """Is that one of its names, or what its instances call it?"""
        return name in self.names or (self._facts is not None and name == self._facts.model)

    def admit(self, instance: InstanceDescription, names: Sequence[str], *, in_use: bool) -> None:
        """Check an instance; the first one decides. IncompatibleError if it does not fit.

        names: it says of itself. in_use: there are others, or requests that others began.
        """
        text, facts = self.loaded, instance.model
        if text is not None and text.vocab_size > facts.vocab_size:
            # Tokens added without growing the model: prompts that hold one are refused, the others are right.
            log.warning(
                "the tokenizer has more tokens than the model; prompts with one of them are refused",
                instance=instance.instance_id,
                tokenizer=text.vocab_size,
                model=facts.vocab_size,
            )
        if self._facts is not None and in_use:
            check_same_model(instance.instance_id, facts, self._facts)
            # What is admitted must fit wherever it may have to go.
            facts = replace(
                facts,
                context_length=min(facts.context_length, self._facts.context_length),
                fingerprint=facts.fingerprint or self._facts.fingerprint,
            )
        others = [link.instance_id for link in self.links if link.connected]
        self._adapter_names.take(instance.instance_id, instance.adapters, others)
        self._facts = facts
        self.names = tuple(dict.fromkeys((*self.names, *names)))[:MAX_NAMES]
        if not in_use or instance.ttft_ms is not None or instance.tpot_ms is not None:
            self._promise(instance)
        self._known.set()

    def run(self, start: Start) -> None:
        """Begin what runs for it alone."""
        self._tasks = [start(self.dispatcher.run()), start(self.fleet.run())]

    async def close(self) -> None:
        """End that; nobody asks for it any more."""
        for task in self._tasks:
            task.cancel()
        await self.fleet.close()
        if (text := self.loaded) is not None:
            text.close()

    def _promise(self, instance: InstanceDescription) -> None:
        """Its targets are those that the last instance brought; what it leaves open is the router's."""
        usual = self._usual_target
        self.target = SloTarget(
            usual.ttft_s if instance.ttft_ms is None else instance.ttft_ms / 1000,
            usual.tpot_s if instance.tpot_ms is None else instance.tpot_ms / 1000,
        )
        self.dispatcher.promise(self.target)
        self.fleet.target = self.target

    async def wait(self, timeout: float) -> ModelFacts:
        """The facts; UnavailableError if no instance comes within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._known.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"no instance of {self.name} came within {timeout:g} s; "
                "check that a controller is running and registered with this router"
            ) from error
        if self._facts is None:
            raise AssertionError("known without facts")
        return self._facts
