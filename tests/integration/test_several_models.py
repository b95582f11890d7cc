"""Several models behind one router: each request goes to an instance of its own model, and to no other."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from router.models import models
from tests.fakes.client import eventually, listen, request
from tests.fakes.controller import FakeController, fake_controller, scripted_text
from tests.fakes.router import RunningRouter, running_router
from tidepipe.client.admin import AdminClient
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.errors import IncompatibleError, NotFoundError

WORDS = list(b"go")


@dataclass
class Two:
    """Two models: "fake", which is the router's own, and "small", also called "mini"."""

    router: RunningRouter
    own: FakeController
    small: FakeController
    http: httpx.AsyncClient

    async def answer(self, model: str | None, **body: object) -> httpx.Response:
        named = {} if model is None else {"model": model}
        wanted = {"prompt": "go", "max_tokens": 3, "temperature": 0, **named, **body}
        return await self.http.post("/v1/completions", json=wanted)


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(models, "SETTLING_S", 0.0)  # all models are there
    small = fake_controller(
        instance_id="s0",
        model="/models/nowhere-else/small",
        names=("small", "mini"),
        fingerprint="two",
        context_length=50,
        ttft_ms=250,
        tool_parser="mistral",
    )
    folder = str(tmp_path / "data")
    async with (
        fake_controller() as own,
        small as other,
        running_router(data_dir=folder, patience_s=0.3) as router,
        httpx.AsyncClient(base_url=f"http://{router.http}", timeout=20, trust_env=False) as http,
    ):
        await own.register(router.address)
        await other.register(router.address)
        await eventually(lambda: all(model.ready for model in router.service.models))
        yield Two(router, own, other, http)


def dialects(router: RunningRouter) -> dict[str, str]:
    loaded = {model.name: model.loaded for model in router.service.models}
    return {name: text.dialect.name for name, text in loaded.items() if text is not None}


async def test_a_name_chooses_and_an_answer_says_it(two: Two) -> None:
    assert dialects(two.router) == {"fake": "json", "small": "mistral"}
    listed = {one["id"]: one for one in (await two.http.get("/v1/models")).json()["data"]}
    assert [*listed] == ["fake", "small", "mini"]
    assert {name: (one["root"], one["max_model_len"]) for name, one in listed.items()} == {
        "fake": ("fake", 1000), "small": ("small", 50), "mini": ("small", 50)
    }  # fmt: skip
    assert listed["small"]["slo"]["ttft_ms"] == 250 != listed["fake"]["slo"]["ttft_ms"]
    told = (await two.router.stub.ListModels(pb.ListModelsRequest(), timeout=10)).models
    assert [(one.name, one.alias_of, one.context_length) for one in told] == [
        ("fake", "", 1000), ("small", "", 50), ("mini", "small", 50)
    ]  # fmt: skip
    for asked, named, at in (
        (None, "fake", two.own),
        ("fake", "fake", two.own),
        ("small", "small", two.small),
        ("mini", "mini", two.small),
    ):
        before = [len(two.own.submitted), len(two.small.submitted)]
        answer = (await two.answer(asked)).json()
        assert (answer["model"], answer["choices"][0]["text"]) == (named, scripted_text(WORDS, 3))
        after = [len(two.own.submitted), len(two.small.submitted)]
        assert [later - earlier for earlier, later in zip(before, after, strict=True)] == (
            [1, 0] if at is two.own else [0, 1]
        )
    assert (await two.http.get("/v1/models/mini")).json()["id"] == "mini"
    metrics = (await two.http.get("/metrics")).text
    assert 'prompt_tokens_total{model_name="small"} 4.0' in metrics
    assert 'tidepipe_router_model_instances{model_name="small"} 1.0' in metrics


async def test_limits_and_refusals_are_the_model_s_own(two: Two) -> None:
    unknown = await two.answer("large")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "served: fake, small, mini" in unknown.json()["error"]["message"]
    long = {"prompt": "a" * 60}
    assert (await two.answer("fake", **long)).status_code == 200
    refused = await two.answer("small", **long)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "50 tokens" in refused.json()["error"]["message"]


async def test_lines_of_a_batch_have_their_own_models(two: Two) -> None:
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/completions",
         "body": {"model": name, "prompt": "go", "max_tokens": 2, "temperature": 0}}
        for name in ("fake", "mini", "large")
    ]  # fmt: skip
    data = "\n".join(map(json.dumps, lines)).encode()
    sent = await two.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)})
    wanted = {
        "input_file_id": sent.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"
    }  # fmt: skip
    batch = (await two.http.post("/v1/batches", json=wanted)).json()

    async def look() -> bool:
        nonlocal batch
        batch = (await two.http.get(f"/v1/batches/{batch['id']}")).json()
        return bool(batch["status"] == "completed")

    while not await look():
        pass
    good, bad = [
        (await two.http.get(f"/v1/files/{batch[name]}/content")).text
        for name in ("output_file_id", "error_file_id")
    ]
    said = {one["custom_id"]: one["response"]["body"]["model"] for one in map(json.loads, good.splitlines())}
    assert said == {"fake": "fake", "mini": "mini"}
    assert "model_not_found" in bad


async def test_a_model_that_is_gone_is_no_other_s_trouble(two: Two) -> None:
    await two.small.kill()
    await eventually(lambda: not two.router.service.models.named("small").connected)
    gone = await two.answer("mini")
    assert gone.status_code == 503 and "no instance of small" in gone.json()["error"]["message"]
    assert (await two.answer("fake")).status_code == 200
    assert [one["id"] for one in (await two.http.get("/v1/models")).json()["data"]] == ["fake"]
    await two.small.start()
    await eventually(lambda: two.router.service.models.named("small").ready)
    assert (await two.answer("mini")).status_code == 200


async def test_operators_see_which_is_which(two: Two) -> None:
    async with AdminClient(two.router.address) as admin:
        shown = {macro["macro_id"]: macro["model"] for macro in (await admin.groups())["macros"]}
        assert sorted(shown.values()) == ["fake", "small"]
        first, second = shown
        with pytest.raises(IncompatibleError, match="instances of one model"):
            await admin.merge(first, second)
        with pytest.raises(IncompatibleError, match="instances of one model"):
            await admin.move("s0", macro_id=next(name for name, model in shown.items() if model == "fake"))
        with pytest.raises(IncompatibleError, match="instances of small"):
            await admin.scale("add", 1, model="mini")
        with pytest.raises(NotFoundError, match="there are: fake, small, mini"):
            await admin.scale("add", 1, model="large")


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({"names": ("small",), "fingerprint": "three"}, r"fingerprint three.*but this router serves .*two"),
        ({"names": ("fake", "small")}, "several models here"),
        ({"model": "nowhere"}, "no tokenizer of it.*--tokenizer nowhere=FOLDER"),
        ({"names": ("a,\n",)}, "names of its model must be printable"),
        ({"names": ("new",), "tool_parser": "nonsense"}, "no tool parser 'nonsense'; there are auto, off"),
    ],
)
async def test_who_fits_nowhere_is_told_why(two: Two, differs: dict[str, object], says: str) -> None:
    async with fake_controller(instance_id="x", **differs) as other:  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.register(two.router.address)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert re.search(says, refused.value.details() or "")


@pytest.mark.model
@pytest.mark.timeout(120)
async def test_a_cluster_brings_its_model_to_a_router_that_is_there(model_path: Path, two: Two) -> None:
    """With names, targets, and who starts and stops its instances; it leaves as it came."""
    config = ClusterConfig(
        model=str(model_path),
        served_model_name="twin,other",
        ttft_ms=777,
        router=two.router.address,
        executor="emulated",
        kv_blocks=2000,
    )
    async with LocalCluster(config) as local, AdminClient(two.router.address) as admin:
        [ours] = local.provisioned()
        model = two.router.service.models.named("other")
        assert (model.names, model.target.ttft_s) == (("twin", "other"), 0.777)
        assert [link.instance_id for link in model.links] == [ours.instance_id]
        wanted = pb.InferenceRequest(request_id="t", model="other", skip_text=True)
        wanted.token_ids.ids.extend([300] * 20)
        wanted.sampling.max_tokens = 2
        assert len((await listen(two.router, wanted)).tokens) == 2
        assert (await admin.scale("set", 1, model="twin"))["wanted"] == 1
        with pytest.raises(IncompatibleError, match="no provisioner"):
            await admin.scale("set", 1)
    await eventually(lambda: not model.connected)
    assert (await two.answer("fake")).status_code == 200


async def test_a_router_below_a_router_brings_its_models(two: Two) -> None:
    async with contextlib.AsyncExitStack() as stack:
        overall = await stack.enter_async_context(running_router())
        below = await stack.enter_async_context(running_router(overall=overall.address, name="b"))
        for controller in (two.own, two.small):
            await controller.register(below.address)
        there = overall.service.models
        await eventually(lambda: len(there) == 2 and all(model.ready for model in there))
        assert {link.instance_id for link in overall.service.registry} == {"b", "b/small"}
        assert dialects(overall) == {"fake": "json", "small": "mistral"}  # small's instance says so
        for name, controller in (("", two.own), ("mini", two.small)):
            wanted = request(f"through {name}", max_tokens=5)
            wanted.model = name
            before = len(controller.submitted)
            assert len((await listen(overall, wanted)).tokens) == 5
            assert len(controller.submitted) == before + 1
