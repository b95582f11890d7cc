"""Which model an instance serves, and how many a router keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.instances.served_model import InstanceDescription, ModelFacts, NotYetError
from router.models import models as module
from router.models.models import MAX_MODELS, RETRY_LOAD_S, ServedModels
from router.requests.text_port import TextPort
from tests.fakes.text import ByteText
from tidepipe_common.errors import IncompatibleError, InvalidRequestError, ModelError, ModelNotFoundError
from tidepipe_common.notifier import Notifier
from tidepipe_common.types.text_choices import TextChoices


class Model:
    """A model without a dispatcher."""

    def __init__(self, names: Sequence[str], text: asyncio.Future[TextPort]) -> None:
        self.names = tuple(names)
        self.adapters: tuple[()] = ()
        self.adapter_names: tuple[()] = ()
        self.name = self.names[0]
        self.text = text
        self.facts: ModelFacts | None = None
        self.idle = False
        self.connected = True
        self.closed = False
        self.dispatcher = SimpleNamespace(moved=1)
        self.fleet = SimpleNamespace(offered=lambda address: None)

    def adapter(self, name: str) -> str:
        return ""

    def answers_to(self, name: str) -> bool:
        return name in self.names

    def admit(self, instance: InstanceDescription, names: Sequence[str], *, in_use: bool) -> None:
        self.facts = instance.model
        self.names = tuple(dict.fromkeys((*self.names, *names)))

    async def close(self) -> None:
        self.closed = True


class Router:
    """now: its clock. broken: sources of which there is no tokenizer. slow: set once they may be loaded."""

    def __init__(
        self, source: str = "/models/own", names: Sequence[str] = ("chat",), **settings: Any
    ) -> None:
        self.now = 0.0
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        make = cast(Any, Model)
        self.models = ServedModels(
            ("chat",), "/models/own", make, self.load, Notifier(), lambda: self.now, **settings
        )

    def load(self, source: str, choices: TextChoices) -> TextPort:
        if source in self.broken:
            raise ModelError(f"{source}: no such file or folder")
        self.loaded.append(source)
        self.choices = choices
        return ByteText()

    async def admit(self, model: str, *names: str) -> Any:
        facts = ModelFacts(model, "f", 100, 256, (0,))
        return await self.models.admit(InstanceDescription("i", "1", facts, 8, names))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("whatever", ("chat",)),
        ("whatever", ("new", "chat")),
        ("/models/own", ()),
        ("/elsewhere/own", ()),
        ("own", ()),
        ("chat", ()),
        ("/x/whatever.gguf", ("own",)),
    ],
)
async def test_one_of_its_names_makes_it_the_router_s_own(model: str, names: tuple[str, ...]) -> None:
    router = Router()
    assert await router.admit(model, *names) is router.models.main
    assert not router.loaded


@pytest.mark.parametrize(
    ("model", "names", "called", "at"),
    [
        ("/models/other", (), ("other",), "/models/other"),
        ("/models/other.gguf", (), ("other",), "/models/other.gguf"),
        ("/models/own", ("b", "c"), ("b", "c"), "/models/own"),
        ("org/name", (), ("org/name",), "org/name"),
        ("/models/far", (), ("far",), "/here/far"),
    ],
)
async def test_another_name_is_another_model(
    model: str, names: tuple[str, ...], called: tuple[str, ...], at: str
) -> None:
    router = Router(tokenizers={"far": "/here/far"})
    other = await router.admit(model, *names)
    assert other is not router.models.main and other.names == called and router.loaded == [at]
    assert await router.admit(model, *names) is other and router.loaded == [at]


async def test_a_tokenizer_that_is_not_there_is_looked_for_again() -> None:
    router = Router()
    router.broken = {"/far/b", "b"}
    for _ in range(2):
        with pytest.raises(IncompatibleError, match=r"/far/b: no such file.*--tokenizer b=FOLDER"):
            await router.admit("/far/b")
    router.broken = {"/far/b"}
    with pytest.raises(IncompatibleError):
        await router.admit("/far/b")
    router.now += RETRY_LOAD_S
    assert (await router.admit("/far/b")).name == "b" and router.loaded == ["b"]


async def test_who_comes_while_it_is_loaded_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is ready when nobody waits: it is not loaded once more."""
    monkeypatch.setattr(module, "LOAD_WAIT_S", 0.001)
    router = Router()
    with pytest.raises(NotYetError, match="being loaded"):
        async with router.models._one_load:
            await router.admit("b")
    async with asyncio.timeout(10):
        while not router.loaded:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        other = await router.admit("b")
    assert router.loaded == ["b"] and await router.admit("b") is other


async def test_models_are_few_and_one_that_nobody_serves_makes_room() -> None:
    router = Router()
    made = [await router.admit(f"m{number}") for number in range(MAX_MODELS - 1)]
    with pytest.raises(IncompatibleError, match=f"{MAX_MODELS} models already"):
        await router.admit("late")
    made[3].idle = True
    late = await router.admit("late")
    assert made[3].closed and made[3] not in router.models and late in router.models
    assert router.models.moved == MAX_MODELS + 1, "a counter does not fall"


async def test_a_request_finds_its_model_or_hears_which_there_are() -> None:
    router = Router()
    own, other = await router.admit("own"), await router.admit("b", "b", "c")
    assert [await router.models.wanted(name) for name in (None, "", "chat", "c")] == [own, own, own, other]
    router.now += module.SETTLING_S
    with pytest.raises(ModelNotFoundError, match="served: chat, b, c"):
        await router.models.wanted("d")
    router = Router()
    await router.admit("b")
    assert (await router.models.wanted(None)).name == "b", "the only one"
    await router.admit("c")
    with pytest.raises(InvalidRequestError, match="say which model: this router serves b, c"):
        await router.models.wanted(None)


async def test_a_router_that_has_just_started_waits_for_a_model() -> None:
    """Instances announce themselves every second: what was served before the start is there in a moment."""
    router = Router()
    waiting = asyncio.create_task(router.models.wanted("b"))
    await asyncio.sleep(0)
    other = await router.admit("b")
    assert await waiting is other
