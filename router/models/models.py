"""All models of this router: which one an instance serves, and which one a request means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from router.background import Start
from router.instances.served_model import InstanceDescription, ModelFacts, NotYetError
from router.models.model import ServedModel
from router.requests.text_port import TextPort
from tidepipe_common.errors import (
    IncompatibleError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
    NotFoundError,
    UnavailableError,
)
from tidepipe_common.model_names import called, check_names, usual_name
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.text_choices import NO_CHOICES, TextChoices

MAX_MODELS = 32
"""A tokenizer takes tens of megabytes, and each model has its own queue and its own metrics."""
LOAD_WAIT_S = 1.0
"""An instance that comes waits so long for its tokenizer, and then comes again: its calls have a deadline."""
RETRY_LOAD_S = 10.0
"""After a tokenizer that could not be loaded: its files may be put there meanwhile."""
SETTLING_S = 5.0
"""After its start a router that does not know a model yet waits so long for an instance that brings it: they
announce themselves every second, and what ran at the router before must not be told that it never was."""

log = structlog.get_logger()

LoadText = Callable[[str, TextChoices], TextPort]
"""A tokenizer by where its model is, and how its text is read; in a thread. ModelError."""
MakeModel = Callable[[Sequence[str], asyncio.Future[TextPort]], ServedModel]


class ServedModels:
    """One of them is the router's own, which is always there; the others come with their instances.

    Bounded: one that has neither instances nor requests makes room for another.
    """

    def __init__(
        self,
        names: Sequence[str],
        source: str,
        make: MakeModel,
        load: LoadText,
        changed: Notifier,
        clock: Callable[[], float],
        *,
        tokenizers: Mapping[str, str] | None = None,
        choices: TextChoices = NO_CHOICES,
    ) -> None:
        """names, source: of the router's own model; its tokenizer is loaded by `load`.

        changed: beats when a model comes.
        tokenizers: where those of other models are, by name; else they are looked for under what the
        instances call them. choices: how texts are read of which instances say nothing else.
        """
        self._source = source
        self._make = make
        self._load = load
        self._changed = changed
        self._clock = clock
        self._tokenizers = dict(tokenizers or {})
        self._choices = choices
        self._began = clock()
        self._loads: dict[str, asyncio.Task[TextPort]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._one_load = asyncio.Lock()
        self.main = make(names, asyncio.get_running_loop().create_future())
        self.main.choices = choices
        self._models = [self.main]
        self._moved_before = 0
        self._start: Start | None = None
        self.uses: Callable[[ServedModel], bool] = lambda model: False
        """Does a request run for it that has no sequence yet? The table knows."""

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(list(self._models))

    def __len__(self) -> int:
        return len(self._models)

    @property
    def ready(self) -> bool:
        """Can a request be answered?"""
        return any(model.ready for model in self._models)

    @property
    def moved(self) -> int:
        """Sequences that instances gave back."""
        return self._moved_before + sum(model.dispatcher.moved for model in self._models)

    @property
    def names(self) -> list[str]:
        """Of those for which an instance is connected, their adapters' too; of the router's own one without
        any."""
        adapters = [one.name for model in self._served for one in model.adapters]
        return [*(name for model in self._served for name in model.names), *adapters]

    @property
    def _served(self) -> list[ServedModel]:
        return [model for model in self._models if model.connected] or [self.main]

    def entries(self) -> list[tuple[str, ServedModel, ModelFacts]]:
        """Each name of those for which an instance is connected, and of their adapters behind it."""
        there = ((model, model.facts) for model in self._models if model.connected)
        return [
            (name, model, facts)
            for model, facts in there
            if facts is not None
            for name in dict.fromkeys((*model.names, *(one.name for one in model.adapters)))
        ]

    def find(self, name: str) -> ServedModel | None:
        """The one of that name, whether it has an instance or not."""
        exact = next((model for model in self._models if name in model.names), None)
        return exact or next((model for model in self._models if model.answers_to(name)), None)

    def named(self, name: str) -> ServedModel:
        """For operators: the one of that name, the router's own for an empty one. NotFoundError."""
        if (found := self.find(name) if name else self.main) is None:
            raise NotFoundError(f"there is no model {name[:100]}; there are: {', '.join(self._all_names())}")
        return found

    async def wanted(self, name: str | None) -> ServedModel:
        """The one that a request means. ModelNotFoundError names what is there; InvalidRequestError: it has
        to say which."""
        while not (found := self._wanted(name)):
            left = SETTLING_S - (self._clock() - self._began)
            changed = self._changed.next()
            if left <= 0:
                raise unknown_model(name or "", self.names)
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                continue
        return found

    async def some(self, timeout: float) -> None:
        """Return when one of them has its tokenizer and has had an instance. UnavailableError."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    changed = self._changed.next()
                    if any(model.loaded and model.facts for model in self._models):
                        return
                    await changed.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"no instance came within {timeout:g} s; "
                "check that a controller is running and registered with this router"
            ) from error

    def _wanted(self, name: str | None) -> ServedModel | None:
        if name:
            return self.find(name) or next((model for model in self._models if model.adapter(name)), None)
        if self.main.facts is not None:
            return self.main
        others = [model for model in self._models if model.facts is not None]
        if len(others) > 1:
            names = ", ".join(model.name for model in others)
            raise InvalidRequestError(f"say which model: this router serves {names}", "model")
        return others[0] if others else self.main

    # -- instances ----------------------------------------------------------------------------------

    async def admit(self, instance: InstanceDescription) -> ServedModel:
        """The model that an instance serves, which may be new here.

        IncompatibleError if it does not fit, UnavailableError while its tokenizer is being loaded.
        """
        names = _names_of(instance)
        known = self._known(instance, names)
        self._check_names(instance, names, known)
        model = known or await self._new(instance, names)
        in_use = not model.idle or self.uses(model)
        model.admit(instance, instance.names, in_use=in_use)
        model.fleet.offered(instance.provisioner)
        self._changed.notify_all()
        return model

    def _known(self, instance: InstanceDescription, names: Sequence[str]) -> ServedModel | None:
        found = list(dict.fromkeys(model for name in names if (model := self.find(name)) is not None))
        if len(found) > 1:
            raise IncompatibleError(
                f"instance {instance.instance_id} says that it serves {', '.join(names)}, which are several "
                f"models here: {', '.join(model.name for model in found)}"
            )
        unsaid = () if instance.names else (instance.model.model,)
        if not found and {*names, *unsaid} & self._own_sources:
            return self.main
        return found[0] if found else None

    def _check_names(
        self, instance: InstanceDescription, names: Sequence[str], known: ServedModel | None
    ) -> None:
        """A name means a model or an adapter, and nothing else besides. IncompatibleError.

        known: the model that it serves, if it is here.
        """
        own = {one.name for one in instance.adapters}
        both = own.intersection(names)
        for model in self._models:
            both |= own.intersection(model.names)
            both |= {one for one in names if model.adapter(one)}
            if model is not known:
                both |= own.intersection(model.adapter_names)
        if both:
            raise IncompatibleError(
                f"instance {instance.instance_id}: {min(both)} would be the name of an adapter and of "
                "something else here; give the adapter another name (--lora NAME=FOLDER)"
            )

    @property
    def _own_sources(self) -> set[str]:
        """What instances of the router's own model may call it that were told no name."""
        return {self._source, called(self._source), usual_name(self._source)}

    async def _new(self, instance: InstanceDescription, names: Sequence[str]) -> ServedModel:
        text = await self._tokenizer(instance, names)
        if self._known(instance, names) is None:
            await self._make_room(names[0])
        if (known := self._known(instance, names)) is not None:  # another instance was quicker
            return known
        loaded: asyncio.Future[TextPort] = asyncio.get_running_loop().create_future()
        loaded.set_result(text)
        model = self._make(names, loaded)
        model.choices = instance.choices
        if self._start is not None:
            model.run(self._start)
        self._models.append(model)
        log.info("a further model", names=names, instance=instance.instance_id, models=len(self._models))
        return model

    async def _make_room(self, name: str) -> None:
        if len(self._models) < MAX_MODELS:
            return
        idle = (m for m in self._models if m is not self.main and m.idle and not self.uses(m))
        if (leaving := next(idle, None)) is None:
            raise IncompatibleError(
                f"this router serves {MAX_MODELS} models already; {name} would be one more"
            )
        self._models.remove(leaving)
        self._moved_before += leaving.dispatcher.moved
        await leaving.close()
        log.info("a model is forgotten: nobody serves it any more", model=leaving.name)

    def run(self, start: Start) -> None:
        """Begin what runs for each, now and when others come."""
        self._start = start
        for model in self._models:
            model.run(start)

    # -- tokenizers ---------------------------------------------------------------------------------

    async def load(self) -> None:
        """Load the tokenizer of the router's own model. ModelError."""
        text = await asyncio.to_thread(self._load, self._source, self._choices)
        self.main.text.set_result(text)
        self._changed.notify_all()

    async def close(self) -> None:
        """Wait for tokenizers that are being loaded."""
        for task in self._loads.values():
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        for model in self._models:
            await model.close()

    async def _tokenizer(self, instance: InstanceDescription, names: Sequence[str]) -> TextPort:
        name = names[0]
        tried, why = self._failed.get(name, (float("-inf"), ""))
        if self._clock() - tried < RETRY_LOAD_S:
            raise self._without(instance, name, why)
        if len(self._loads) + len(self._failed) > MAX_MODELS:
            self._failed.clear()
        task = self._loads.get(name)
        if task is None:
            if len(self._loads) >= MAX_MODELS:
                # Whoever wanted these has not come again.
                self._loads = {name: load for name, load in self._loads.items() if not load.done()}
            if len(self._loads) >= MAX_MODELS:
                raise NotYetError("the tokenizers of other models are being loaded; come again in a moment")
            told = self._tokenizers.get(name)
            sources = (told,) if told else (instance.model.model, *names)
            loading = self._first_of(sources, instance.choices.over(self._choices))
            task = self._loads[name] = asyncio.create_task(loading, name=f"tokenizer {name}")
        done, _ = await asyncio.wait({task}, timeout=LOAD_WAIT_S)
        if not done:
            # It is kept for when the instance comes again.
            raise NotYetError(f"the tokenizer of {name} is being loaded; come again in a moment")
        self._loads.pop(name, None)
        try:
            return task.result()
        except ModelError as error:
            self._failed[name] = self._clock(), str(error)
            raise self._without(instance, name, str(error)) from None

    async def _first_of(self, sources: Iterable[str], choices: TextChoices) -> TextPort:
        """The first that can be had; one tokenizer at a time."""
        problem = ModelError("no place to look for it")
        async with self._one_load:
            for place, source in enumerate(dict.fromkeys(sources)):
                try:
                    return await asyncio.to_thread(self._load, source, choices)
                except ModelError as error:
                    problem = error if not place else problem
        raise problem

    def _without(self, instance: InstanceDescription, name: str, why: str) -> IncompatibleError:
        own = self.main.name
        return IncompatibleError(
            f"instance {instance.instance_id} serves {name}, and this router has no tokenizer of it ({why}); "
            f"start the router with --tokenizer {name}=FOLDER, the model's folder there; if it is {own} "
            f"under another name, start its controller with --served-model-name {own}"
        )

    def _all_names(self) -> list[str]:
        return [name for model in self._models for name in model.names]


def _names_of(instance: InstanceDescription) -> tuple[str, ...]:
    """Names that an instance has for its model, its own or the usual one."""
    names = instance.names or (called(instance.model.model),)
    try:
        check_names(names)
    except ValueError as error:
        raise IncompatibleError(f"instance {instance.instance_id}: the names of its model {error}") from None
    return names


def unknown_model(name: str, names: Iterable[str]) -> ModelNotFoundError:
    """What to say of a model that is not here. names: of those that are."""
    return ModelNotFoundError(f"the model {name[:100]} is not served here; served: {', '.join(names)}")
