"""An upstream instance beside a server that does well, badly, or harm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from controller.scheduler.events import NewSequence
from controller.upstream.client import UpstreamClient
from controller.upstream.dialects import DIALECTS, BrokenAnswerError
from controller.upstream.instance import UpstreamInstance
from controller.upstream.link import UpstreamLink
from controller.upstream.model import ModelText, UpstreamModel, read_model
from tests.fakes.openai_server import FakeOpenAi, serving
from tidepipe_common.errors import ConfigError
from tidepipe_common.model_source import resolve_tokenizer
from tidepipe_common.rpc.results import Record
from tidepipe_common.settings.upstream import base_url, check_key_travels
from tidepipe_common.types.sampling import FinishReason, SamplingParams

ROUTER = "router"
ANSWER = "The tide turns twice a day: schön, 潮."
PROMPT = (1, 2, 3)


def tokenizer() -> Tokenizer:
    """Each byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: at for at, one in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    return made


@contextlib.asynccontextmanager
async def upstream(
    *, key: str = "", silence_s: float = 5.0, places: int = 2, **settings: Any
) -> AsyncIterator[tuple[UpstreamInstance, FakeOpenAi]]:
    made = tokenizer()
    model = UpstreamModel("ours", made.get_vocab_size(), 0, (), ModelText(made))
    async with serving(FakeOpenAi(made, ANSWER, **settings)) as fake, asyncio.TaskGroup() as group:
        client = UpstreamClient(fake.url, key, places)
        link = UpstreamLink(client, model, wanted_name="", dialect="auto", context=0)
        instance = UpstreamInstance(link, places, 4, silence_s, silence_s)
        tasks: list[asyncio.Task[None]] = []
        try:
            await link.bring_up()
            tasks = [group.create_task(instance.run()), group.create_task(link.run())]
            yield instance, fake
        finally:
            for task in tasks:
                task.cancel()
            await client.close()


async def ended(instance: UpstreamInstance, name: str, within_s: float = 10.0) -> Record:
    """A sequence's record once it has ended."""
    async with asyncio.timeout(within_s):
        while (record := instance.hub.records[name]).end is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return record


def sequence(
    name: str = "a", *, most: int = 100, output: tuple[int, ...] = (), **sampling: Any
) -> NewSequence:
    return NewSequence(name, PROMPT, SamplingParams(temperature=0.0, max_tokens=most, **sampling), output)


def text_of(record: Record) -> str:
    return str(tokenizer().decode(list(record.tokens)))


@pytest.mark.parametrize("tells_tokens", [True, False])
async def test_what_the_server_says_is_what_routers_hear(tells_tokens: bool) -> None:
    async with upstream(tells_tokens=tells_tokens, busy=2) as (instance, fake):
        assert instance.link.dialect.name == ("vllm" if tells_tokens else "openai")
        assert not instance.submit(ROUTER, [sequence()], 1)
        record = await ended(instance, "a")
        assert record.end and record.end.reason is FinishReason.STOP
        assert text_of(record) == ANSWER
        assert instance.stats.retried == 2
        assert instance.report(instance.now()).sequences == 0
        assert fake.bodies[0]["prompt"] == list(PROMPT)


async def test_llama_cpp_is_asked_by_tokens_and_loses_none() -> None:
    """Of a character that takes several it tells the last alone; and what it began goes on elsewhere."""
    async with upstream(llama_cpp=True, tells_tokens=False) as (instance, fake):
        assert (instance.link.dialect.name, instance.link.context_length) == ("llama.cpp", 256)
        assert not instance.submit(ROUTER, [sequence()], 1)
        record = await ended(instance, "a")
        assert record.end and record.end.reason is FinishReason.STOP
        assert text_of(record) == ANSWER
        assert list(record.tokens) == tokenizer().encode(ANSWER).ids
        fake.die_after = 9
        assert not instance.submit(ROUTER, [sequence("b")], 2)
        broken = await ended(instance, "b")
        assert broken.end and broken.end.reason is FinishReason.CANCELLED
        fake.die_after = None
        assert not instance.submit(ROUTER, [sequence("c", output=tuple(broken.tokens))], 3)
        assert text_of(await ended(instance, "c")) == ANSWER
        assert list(instance.submit(ROUTER, [sequence("d", logprobs=1)], 4)) == ["d"]


async def test_what_is_too_much_is_refused_and_what_ends_it_ends() -> None:
    async with upstream(pause_s=0.05) as (instance, _):
        many = [sequence(str(number), most=5) for number in range(6)]
        refused = instance.submit(ROUTER, many, 6)
        assert list(refused) == ["4", "5"]
        await asyncio.sleep(0.02)
        assert instance.running == 2
        instance.cancel("0")
        for name in "123":
            record = await ended(instance, name)
            assert record.end and record.end.reason is FinishReason.LENGTH
            assert len(record.tokens) == 5
        stop = tokenizer().encode(ANSWER).ids[3]
        instance.submit(ROUTER, [sequence("stop", stop_token_ids=(stop,))], 7)
        record = await ended(instance, "stop")
        assert record.end and record.end.stop_token == stop
        assert text_of(record) == ANSWER[:3]


async def test_an_answer_that_breaks_off_goes_on_elsewhere_or_says_why() -> None:
    async with upstream(die_after=7) as (instance, fake):
        instance.submit(ROUTER, [sequence()], 1)
        record = await ended(instance, "a")
        assert record.end and record.end.reason is FinishReason.CANCELLED, "routers give it to another"
        output = tuple(record.tokens)
        assert len(output) == 7
        fake.die_after = None
        instance.submit(ROUTER, [sequence("b", output=output)], 2)
        assert text_of(await ended(instance, "b")) == ANSWER
    async with upstream(die_after=7, tells_tokens=False) as (instance, _):
        instance.submit(ROUTER, [sequence()], 1)
        record = await ended(instance, "a")
        assert record.end and record.end.reason is FinishReason.ERROR
        assert "send the request again" in record.end.error


@pytest.mark.parametrize(
    "noise",
    [
        b": ping\n",  # for ever
        b"x" * 65536,
        b'data: {"choices": [{"token_ids": [99999]}]}\n',
        b'data: {"choices": "no"}\n',
        b"data: {" + b"[" * 5000 + b"\n",
    ],
)
async def test_a_hostile_server_costs_a_request_its_place_and_nothing_else(
    noise: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.upstream.instance.TRIES", 1)
    async with upstream(noise=noise, silence_s=0.5) as (instance, fake):
        instance.submit(ROUTER, [sequence()], 1)
        record = await ended(instance, "a", 20.0)
        assert record.end and record.end.reason is FinishReason.CANCELLED
        assert not len(record.tokens)
        fake.noise = b""
        await asyncio.sleep(0)
        assert instance.running == 0


async def test_a_server_that_is_gone_gives_all_back_and_comes_back() -> None:
    async with upstream(first_pause_s=60.0, silence_s=60.0, places=1) as (instance, fake):
        instance.submit(ROUTER, [sequence("at it"), sequence("waits")], 2)
        fake.sick = True
        for name in ("at it", "waits"):
            record = await ended(instance, name)
            assert record.end and record.end.reason is FinishReason.CANCELLED
        assert not instance.serving
        refused = instance.submit(ROUTER, [sequence("c")], 3)["c"]
        assert "does not answer" in refused.detail
        fake.sick = False
        async with asyncio.timeout(10):
            while not instance.serving:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_key_is_asked_for_and_kept() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with _keyed(""):
            pass
    assert isinstance(caught.value.exceptions[0], ConfigError)
    async with _keyed("secret"):
        pass
    assert check_key_travels("http://10.0.0.1:8000", "secret", False)
    assert not check_key_travels("https://10.0.0.1:8000", "secret", False)
    for wrong in ("10.0.0.1:8000", "http://u:p@h", "ftp://h", "http://h/?a=b"):
        with pytest.raises(ValueError):
            base_url(wrong)
    assert base_url("http://h:1/v1/") == "http://h:1"


@contextlib.asynccontextmanager
async def _keyed(key: str) -> AsyncIterator[None]:
    made = tokenizer()
    model = UpstreamModel("ours", made.get_vocab_size(), 0, (), ModelText(made))
    async with serving(FakeOpenAi(made, ANSWER, key="secret")) as fake:
        client = UpstreamClient(fake.url, key, 1)
        try:
            await UpstreamLink(client, model, wanted_name="", dialect="auto", context=0).bring_up()
            yield
        finally:
            await client.close()


@pytest.mark.parametrize("incremental", [True, False])
def test_sglang_tells_all_tokens_or_the_new_ones(incremental: bool) -> None:
    reader = DIALECTS["sglang"].reader(sequence())
    told: list[int] = []
    for count in (1, 3, 4):
        ids = list(range(10, 10 + count))
        new = ids[len(told) :]
        reason = {"type": "stop", "matched": 13} if count == 4 else None
        event = {
            "output_ids": new if incremental else ids,
            "meta_info": {"completion_tokens": count, "finish_reason": reason, "cached_tokens": 2},
        }
        piece = reader.read(event)
        told += piece.token_ids or ()
    assert told == [10, 11, 12, 13]
    assert piece.finish is FinishReason.STOP
    with pytest.raises(BrokenAnswerError):
        reader.read({"output_ids": [1], "meta_info": {"completion_tokens": 99}})


def test_a_folder_without_weights_is_enough(model_path: Path, tmp_path: Path) -> None:
    for file in model_path.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model = read_model(resolve_tokenizer(str(tmp_path)))
    assert model.vocab_size == 49152
    assert 2 in model.ends
    ids = model.text.continuation(" and so on")
    assert ids and tokenizer_says(model.text, ids) == " and so on"


def tokenizer_says(text: ModelText, ids: list[int]) -> str:
    return str(text._backend.decode(ids))


async def test_a_name_that_cannot_be_sent_back_names_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(self: UpstreamClient, path: str, body: object = None) -> tuple[int, Any]:
        return 200, {"data": [None, {"id": 5}, {"id": "\ud800x"}]}

    monkeypatch.setattr(UpstreamClient, "ask", ask)
    with pytest.raises(ExceptionGroup) as caught:
        async with _keyed(""):
            pass
    assert "lists no model" in str(caught.value.exceptions[0])
