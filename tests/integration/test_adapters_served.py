"""Adapters (LoRA) as clients meet them: a name among the models', answered as the merged model would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from controller.runtime.journal import read_checked
from controller.scheduler.events import SequencesArrived
from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.models import models
from tests.fakes.client import eventually, listen, request
from tests.fakes.controller import FakeController, fake_controller
from tests.fakes.router import RunningRouter, running_router
from tests.tiny_adapters import make_adapter, merged
from tests.tiny_models import hugging_face_greedy, make_tiny_model
from tests.tiny_tokenizer import make_tokenizer
from tidepipe.client.async_client import AsyncClient
from tidepipe.v1 import inference_pb2 as pb

pytestmark = pytest.mark.timeout(120)

POET, COOK = "1" * 32, "2" * 32


@dataclass
class Two:
    """Two instances of a model: both know the cook, and the first alone the poet."""

    router: RunningRouter
    first: FakeController
    second: FakeController
    http: httpx.AsyncClient

    async def answer(self, model: str) -> httpx.Response:
        wanted = {"model": model, "prompt": "go", "max_tokens": 3, "temperature": 0}
        return await self.http.post("/v1/completions", json=wanted)


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(models, "SETTLING_S", 0.0)  # all models are there
    async with (
        fake_controller(adapters={"poet": POET, "cook": COOK}) as first,
        fake_controller(instance_id="i1", adapters={"cook": COOK}) as second,
        running_router(patience_s=5.0) as router,
        httpx.AsyncClient(base_url=f"http://{router.http}", timeout=20, trust_env=False) as http,
    ):
        await first.register(router.address)
        await second.register(router.address)
        await eventually(lambda: sum(link.serving for link in router.service.registry) == 2)
        yield Two(router, first, second, http)


async def test_a_name_leads_to_who_has_the_adapter(two: Two) -> None:
    listed = {one["id"]: one.get("parent") for one in (await two.http.get("/v1/models")).json()["data"]}
    assert listed == {"fake": None, "poet": "fake", "cook": "fake"}
    told = (await two.router.stub.ListModels(pb.ListModelsRequest(), timeout=10)).models
    assert {one.name: (one.adapter_of, one.alias_of) for one in told} == {
        "fake": ("", ""), "poet": ("fake", ""), "cook": ("fake", "")
    }  # fmt: skip
    assert (await two.http.get("/v1/models/poet")).json()["root"] == "fake"
    for name, adapter, places in (("fake", "", 2), ("cook", COOK, 2), ("poet", POET, 1)):
        before = len(two.first.submitted), len(two.second.submitted)
        replies = await asyncio.gather(*[two.answer(name) for _ in range(8)])
        assert {reply.json()["model"] for reply in replies} == {name}
        new = [two.first.submitted[before[0] :], two.second.submitted[before[1] :]]
        assert {spec.adapter for specs in new for spec in specs} == {adapter}
        assert sum(map(bool, new)) == places and new[0]
    unknown = await two.answer("pirate")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "served: fake, poet, cook" in unknown.json()["error"]["message"]


async def test_who_had_it_is_waited_for(two: Two) -> None:
    """While an answer is under way, and before one begins; what others can do goes on."""
    two.first.paused = True
    begun = asyncio.create_task(two.answer("poet"))
    await eventually(lambda: any(held.spec.adapter == POET for held in two.first.running()))
    await two.first.kill()
    later = asyncio.create_task(two.answer("poet"))
    assert (await two.answer("fake")).status_code == (await two.answer("cook")).status_code == 200
    assert not begun.done() and not later.done()
    two.first.paused = False
    await two.first.start()
    assert [(await one).status_code for one in (begun, later)] == [200, 200]
    assert not any(spec.adapter == POET for spec in two.second.submitted)
    # It comes back without: then there is none of that name, and nobody waits.
    two.first.adapters = {"cook": COOK}
    await two.first.restart()
    while (await two.answer("poet")).status_code != 404:
        pass


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ({"cook": POET}, "another adapter cook than instance i[01]"),
        ({"fake": POET}, "fake would be the name of an adapter and of something else"),
        ({f"a{number}": POET for number in range(33)}, "33 adapters; there may be 32"),
        ({"x": "no digits"}, "x has no fingerprint"),
    ],
)
async def test_what_names_nothing_for_certain_is_refused(
    two: Two, adapters: dict[str, str], says: str
) -> None:
    async with fake_controller(instance_id="x", adapters=adapters) as other:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.register(two.router.address)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert re.search(says, refused.value.details() or "")


async def test_through_a_router_below(two: Two) -> None:
    async with contextlib.AsyncExitStack() as stack:
        overall = await stack.enter_async_context(running_router())
        below = await stack.enter_async_context(running_router(overall=overall.address, name="b"))
        await two.first.register(below.address)
        await eventually(lambda: overall.service.models.ready)
        wanted = request("through", max_tokens=5)
        wanted.model = "poet"
        assert len((await listen(overall, wanted)).tokens) == 5
        assert two.first.submitted[-1].adapter == POET


async def batch(folder: Path, endpoint: str, names: list[str]) -> list[tuple[str, list[int] | None]]:
    """What `tidepipe batch` writes for a line of each name: the model that it says, and its tokens."""
    body = {"prompt": PROMPT, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/completions",
         "body": {**body, "model": name, "return_token_ids": True}}
        for name in names
    ]  # fmt: skip
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidepipe.cli.main", "batch", str(folder / "in.jsonl")),
        *("-o", str(folder / "out.jsonl"), "--endpoint", endpoint),
    )
    assert await process.wait() == 1, "one of the names is nobody's"
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    said = {line["custom_id"]: line["response"]["body"] for line in written if line["error"] is None}
    return [
        (said[name]["model"], said[name]["choices"][0]["token_ids"]) if name in said else (name, None)
        for name in names
    ]


PROMPT = "The tide comes in and the tide goes out, as it did a hundred years ago."
NEW_TOKENS = 40


async def test_all_in_flight_together_as_merged_models(tmp_path: Path) -> None:
    """One prompt for all, asked twice, so that beginnings are found again: each adapter's by itself. Then all
    once more, with a stage and the controller killed meanwhile."""
    base = make_tiny_model("llama", tmp_path / "model")
    make_tokenizer(base)
    adapters = {
        name: make_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate(("poet", "cook"))
    }
    folders = [base, *(merged(base, one, tmp_path / f"with-{name}") for name, one in adapters.items())]
    prompt = list(PROMPT.encode())
    expected = [hugging_face_greedy(folder, [prompt], NEW_TOKENS)[0] for folder in folders]
    assert len({tuple(one) for one in expected}) == 3
    config = ClusterConfig(
        model=str(base),
        stages=2,
        dtype="float32",
        threads=1,
        block_size=16,
        kv_blocks=256,
        lora=",".join(f"{name}={folder}" for name, folder in adapters.items()),
        run_dir=str(tmp_path / "run"),
        journal=str(tmp_path / "journals"),
    )
    options: dict[str, Any] = {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True}
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address) as client:
        names = ["", *adapters]

        async def ask() -> tuple[list[list[int]], list[int]]:
            answers = await asyncio.gather(
                *[client.generate(prompt, model=name, **options) for name in names]
            )
            return [list(one.token_ids) for one in answers], [one.usage.cached_tokens for one in answers]

        assert await ask() == (expected, [0, 0, 0])
        assert await ask() == (expected, [len(prompt) // 16 * 16] * 3)
        assert await batch(tmp_path, cluster.grpc_address, ["model", *adapters, "x"]) == [
            ("model", expected[0]), *zip(adapters, expected[1:], strict=True), ("x", None)
        ]  # fmt: skip
        for victim in ("stage-worker-0-1", "controller-0"):
            asked = asyncio.create_task(ask())
            await asyncio.sleep(0.05)
            (pid,) = [child.pid for child in cluster.children if child.name == victim]
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert (await asked)[0] == expected
        assert [one.adapter_of for one in await client.models()] == ["", "model", "model"]
    arrived = [
        one.adapter
        for path in (tmp_path / "journals").glob("*.jsonl")
        for _, event, _ in read_checked(path)
        if isinstance(event, SequencesArrived)
        for one in event.sequences
    ]
    assert len(set(arrived)) == 3 and arrived.count("") == len(arrived) // 3
