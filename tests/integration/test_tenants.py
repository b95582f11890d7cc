"""Keys keep tenants apart: what one has, another neither sees, nor changes, nor ends; limits count work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.fakes.client import request
from tests.fakes.tenants import Tenant, Tenants, running_tenants, secure
from tidepipe.v1 import inference_pb2 as pb


@pytest.fixture
async def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tenants]:
    async with running_tenants(tmp_path, secure(tmp_path, monkeypatch)) as running:
        yield running


async def upload(who: Tenant, count: int = 2, **body: object) -> str:
    wanted = {"prompt": "go", "max_tokens": 5, "temperature": 0, **body}
    line = {"method": "POST", "url": "/v1/completions", "body": wanted}
    data = b"".join(json.dumps({**line, "custom_id": f"c{n}"}).encode() + b"\n" for n in range(count))
    sent = await who.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", data)})
    assert sent.status_code == 200, sent.text
    return str(sent.json()["id"])


async def begin(who: Tenant, file_id: str) -> httpx.Response:
    wanted = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return await who.http.post("/v1/batches", json=wanted)


async def ended(who: Tenant, batch_id: str) -> dict[str, object]:
    async with asyncio.timeout(20):
        while True:
            batch: dict[str, object] = (await who.http.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] in ("completed", "failed", "cancelled", "expired"):
                return batch
            await asyncio.sleep(0.02)


async def test_files_and_batches_are_their_owners(tenants: Tenants) -> None:
    async with tenants.tenant() as alice, tenants.tenant() as bob, tenants.tenant("admin") as root:
        file_id = await upload(alice)
        batch = (await begin(alice, file_id)).json()
        done = await ended(alice, batch["id"])
        output = str(done["output_file_id"])
        for method, path in (
            ("GET", "/v1/files/{}"),
            ("GET", "/v1/files/{}/content"),
            ("DELETE", "/v1/files/{}"),
            ("GET", "/v1/batches/{}"),
            ("POST", "/v1/batches/{}/cancel"),
        ):
            for there in (file_id, output) if "files" in path else (batch["id"],):
                missing = "x" * len(there)
                foreign = await bob.http.request(method, path.format(there))
                nowhere = await bob.http.request(method, path.format(missing))
                assert (foreign.status_code, nowhere.status_code) == (404, 404), (method, path)
                # Not a word tells what is another's from what is not there.
                assert foreign.text.replace(there, missing) == nowhere.text
                assert foreign.headers.keys() == nowhere.headers.keys()
        assert (await begin(bob, file_id)).status_code == 404
        for path in ("/v1/files", "/v1/batches"):
            assert (await bob.http.get(path)).json()["data"] == []
            beyond = file_id if path == "/v1/files" else batch["id"]
            assert (await bob.http.get(path, params={"after": beyond})).status_code == 404
            assert {one["id"] for one in (await alice.http.get(path)).json()["data"]} == {
                one["id"] for one in (await root.http.get(path)).json()["data"]
            }
        assert (await alice.http.get(f"/v1/files/{output}/content")).status_code == 200
        assert (await root.http.delete(f"/v1/files/{output}")).status_code == 200


async def test_one_id_of_two_keys_is_two_requests(tenants: Tenants) -> None:
    """The second is neither attached to the first, nor refused, and can neither stream nor cancel it."""
    tenants.controller.paused = True
    async with tenants.tenant() as alice, tenants.tenant() as bob, tenants.tenant("admin") as root:
        first = request("same", max_tokens=7, grace_ms=60_000)
        other = request("same", max_tokens=9, grace_ms=60_000)
        assert not (await alice.stub.Submit(pb.SubmitRequest(request=first), timeout=10)).attached
        only = request("hers", max_tokens=3, grace_ms=60_000)
        await alice.stub.Submit(pb.SubmitRequest(request=only), timeout=10)
        cancel = pb.CancelRequest(request_ids=["same", "hers", "nobody's"])
        assert (await bob.stub.Cancel(cancel, timeout=10)).cancelled == 0
        details = []
        for name in ("hers", "none"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in bob.stub.Stream(pb.StreamRequest(request_id=name), timeout=10):
                    pass
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            details.append((refused.value.details() or "").replace(name, "*"))
        assert details[0] == details[1]
        assert not (await bob.stub.Submit(pb.SubmitRequest(request=other), timeout=10)).attached
        tenants.controller.paused = False
        for who, count in ((alice, 7), (bob, 9)):
            call = who.stub.Stream(pb.StreamRequest(request_id="same"), timeout=10)
            assert sum([len(message.delta.token_ids) async for message in call]) == count
        call = root.stub.Stream(pb.StreamRequest(request_id="hers"), timeout=10)
        assert sum([len(message.delta.token_ids) async for message in call]) == 3


async def test_an_idempotency_key_is_its_owners(tenants: Tenants) -> None:
    async with tenants.tenant() as alice, tenants.tenant() as bob:
        headers = {"idempotency-key": "pay once"}
        answers = [
            (await who.http.post("/v1/completions", json={"prompt": word, "max_tokens": 3}, headers=headers))
            for who, word in ((alice, "one"), (bob, "two"))
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
