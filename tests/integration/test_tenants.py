"""Keys keep tenants apart: what one has, another neither sees, nor changes, nor ends; limits count work."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.fakes.client import eventually, request
from tests.fakes.tenants import Tenant, Tenants, running_tenants, secure
from tidepipe.v1 import admin_pb2, admin_pb2_grpc
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.rpc.channel import open_channel


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


async def test_no_path_shows_anything_of_another_s(tenants: Tenants) -> None:
    """Every path with a name in it, as the description lists them: a new one has to be thought of here."""
    async with tenants.tenant() as alice, tenants.tenant() as bob:
        file_id = await upload(alice)
        batch = (await begin(alice, file_id)).json()
        output = str((await ended(alice, batch["id"]))["output_file_id"])
        asked = {"model": "fake", "input": "go", "max_output_tokens": 2, "temperature": 0}
        response = (await alice.http.post("/v1/responses", json=asked)).json()
        names = {"file_id": [file_id, output], "batch_id": [batch["id"]], "response_id": [response["id"]]}
        paths = (await alice.http.get("/openapi.json")).json()["paths"]
        named = {path: param for path in paths for param in re.findall(r"{(\w+)}", path)}
        assert {*named.values()} == {*names, "name"}, "of models, which are everybody's"
        for path, param in named.items():
            for method in sorted(paths[path].keys() & {"get", "post", "delete", "put", "patch"}):
                for there in names.get(param, ()):
                    missing = "x" * len(there)
                    foreign = await bob.http.request(method, path.replace(f"{{{param}}}", there))
                    nowhere = await bob.http.request(method, path.replace(f"{{{param}}}", missing))
                    assert (foreign.status_code, nowhere.status_code) == (404, 404), (method, path)
                    assert foreign.text.replace(there, missing) == nowhere.text
        before = {**asked, "previous_response_id": response["id"]}
        foreign = await bob.http.post("/v1/responses", json=before)
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (400, "previous_response_not_found")
        for path, param in named.items():
            for there in names.get(param, ()) if "get" in paths[path] else ():
                assert (await alice.http.get(path.replace(f"{{{param}}}", there))).status_code == 200


async def test_what_a_key_stores_is_counted(tenants: Tenants) -> None:
    """Files, batches and responses together; who deletes may store again, and others do not notice."""
    async with tenants.tenant(stored_items=4) as alice, tenants.tenant() as bob:
        file_id = await upload(alice)
        batch = await ended(alice, (await begin(alice, file_id)).json()["id"])
        await upload(alice)
        data, files = {"purpose": "batch"}, {"file": ("in.jsonl", b"{}")}
        sent = await alice.http.post("/v1/files", data=data, files=files)
        assert (sent.status_code, sent.json()["error"]["code"]) == (413, "storage_quota_exceeded")
        text = sent.json()["error"]["message"]
        assert "may store 4 files, batches and responses, and has 4 (3 files, 1 batches" in text
        assert "DELETE /v1/files/ID" in text
        assert (await begin(alice, file_id)).status_code == 413
        asked = {"input": "go", "max_output_tokens": 2}
        kept = (await alice.http.post("/v1/responses", json=asked)).json()
        assert (kept["status"], kept["store"]) == ("incomplete", False), "an answer is not lost"
        await upload(bob)
        # A batch goes when its files have gone, once room is wanted.
        assert (await alice.http.delete(f"/v1/files/{batch['output_file_id']}")).status_code == 200
        await upload(alice)
        await upload(alice)
        assert (await alice.http.get(f"/v1/batches/{batch['id']}")).status_code == 404
        async with tenants.tenant("admin") as root:
            channel = open_channel(tenants.router.address, credentials=root.credentials)
            async with channel:
                stub = admin_pb2_grpc.AdminServiceStub(channel)
                told = await stub.GetStorage(admin_pb2.GetStorageRequest(), timeout=10)
        hers, his = ({one.owner: one for one in told.owners}[who.key_id] for who in (alice, bob))
        assert (hers.files, hers.batches, hers.max_items, his.files) == (4, 0, 4, 1)
    async with tenants.tenant(stored_bytes=2 * 4096) as alice:
        asked = {"input": "go", "max_output_tokens": 1}
        assert (await alice.http.post("/v1/responses", json=asked)).json()["store"]
        await upload(alice)
        files = {"file": ("in.jsonl", b"x" * 5000)}
        late = await alice.http.post("/v1/files", data=data, files=files)
        assert late.status_code == 413 and "may store 8192 bytes" in late.json()["error"]["message"]


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
        both = {alice.key_id, bob.key_id}
        await eventually(lambda: {one.spec.tenant for one in tenants.controller.running()} == both)
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


async def test_a_lease_ends_with_the_work(tenants: Tenants) -> None:
    """Submit returns at once, its answers go on: they count, each of them, until they end."""
    tenants.controller.paused = True
    async with tenants.tenant(max_concurrent=4) as alice, tenants.tenant() as bob:
        for number in range(2):
            wanted = request(f"s{number}", n=2, grace_ms=60_000)
            await alice.stub.Submit(pb.SubmitRequest(request=wanted), timeout=10)
        for n, code in ((1, grpc.StatusCode.RESOURCE_EXHAUSTED), (5, grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await alice.stub.Submit(pb.SubmitRequest(request=request("more", n=n)), timeout=10)
            assert refused.value.code() is code
        busy = await alice.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert busy.status_code == 429 and int(busy.headers["retry-after"]) >= 1
        await bob.stub.Submit(pb.SubmitRequest(request=request("his", grace_ms=60_000)), timeout=10)
        # Who is at the limit may still look at what runs, and end it.
        assert (await alice.http.get("/v1/models")).status_code == 200
        cancelled = await alice.stub.Cancel(pb.CancelRequest(request_ids=["s0"]), timeout=10)
        assert cancelled.cancelled == 1
        tenants.controller.paused = False
        answer = await alice.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "n": 2})
        assert answer.status_code == 200


async def test_batch_lines_count_and_leave_room(tenants: Tenants) -> None:
    """Lines wait for places of their key instead of failing, and a request of the same key finds one."""
    tenants.controller.step_s = 0.01
    async with tenants.tenant(max_concurrent=4) as alice, tenants.tenant() as bob:
        batch = (await begin(alice, await upload(alice, 40, max_tokens=10))).json()["id"]
        other = (await begin(bob, await upload(bob, 3))).json()["id"]
        most = 0
        async with asyncio.timeout(20):
            while (await alice.http.get(f"/v1/batches/{batch}")).json()["status"] != "completed":
                hers = [one for one in tenants.controller.running() if alice.key_id in one.spec.sequence_id]
                most = max(most, len(hers))
                answer = await alice.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
                assert answer.status_code == 200, answer.text
        assert 1 <= most <= 4
        assert (await ended(alice, batch))["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        assert (await ended(bob, other))["status"] == "completed"


async def test_tokens_a_minute(tenants: Tenants) -> None:
    """What is asked for is charged in advance, and what it did not take is given back."""
    tenants.controller.eos_at = 2
    async with tenants.tenant(tokens_per_minute=600) as alice:
        for _ in range(20):  # 20 x 401 would be too many, were they not settled
            body = {"prompt": "x", "max_tokens": 400}
            answer = await alice.http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
        assert 400 < int(answer.headers["x-ratelimit-remaining-tokens"]) <= 600
        tenants.controller.eos_at = None
        body = {"prompt": "x", "max_tokens": 500, "temperature": 0}
        assert (await alice.http.post("/v1/completions", json=body)).status_code == 200
        late = await alice.http.post("/v1/completions", json=body)
        assert late.status_code == 429 and float(late.headers["retry-after-ms"]) > 10_000


async def test_revocation_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams with an error, a batch as failed; nothing goes on after a restart; others do not notice."""
    ca = secure(tmp_path, monkeypatch)
    async with running_tenants(tmp_path, ca) as tenants:
        tenants.controller.step_s = 0.02
        async with tenants.tenant() as alice, tenants.tenant() as bob, tenants.tenant("admin") as root:
            batch = (await begin(alice, await upload(alice, 3, max_tokens=900))).json()["id"]
            body = {"prompt": "x", "max_tokens": 900, "stream": True, "temperature": 0}
            his = bob.stub.Generate(pb.GenerateRequest(request=request("his", max_tokens=120)), timeout=20)
            hers = alice.stub.Generate(
                pb.GenerateRequest(request=request("hers", max_tokens=900)), timeout=20
            )
            hers_read, his_read = aiter(hers), aiter(his)
            assert await anext(hers_read) and await anext(his_read)
            async with alice.http.stream("POST", "/v1/completions", json=body) as stream:
                assert stream.status_code == 200
                revoke = asyncio.get_running_loop().run_in_executor(None, tenants.store.revoke, alice.key_id)
                events = [line async for line in stream.aiter_lines()]
                await revoke
            assert "invalid_api_key" in [line for line in events if line][-1]
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                async for _ in hers_read:
                    pass
            assert cut.value.code() is grpc.StatusCode.UNAUTHENTICATED
            done = await ended(root, batch)
            assert done["status"] == "failed" and "key_ended" in str(done["errors"])
            assert [m async for m in his_read][-1].delta.finish_reason
            assert not [one for one in tenants.controller.running() if alice.key_id in one.spec.sequence_id]


async def test_a_batch_of_a_key_that_ended_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = secure(tmp_path, monkeypatch)
    async with running_tenants(tmp_path, ca) as tenants:
        tenants.controller.paused = True
        async with tenants.tenant(unlearned=True) as alice, tenants.tenant() as bob:
            batch = (await begin(alice, await upload(alice, 3))).json()["id"]
            await begin(bob, await upload(bob, 1))
            await eventually(lambda: len(tenants.controller.running()) == 4)
            # Whose answers nothing is to be learned from is said with each of them, lines of batches too.
            specs = [one.spec for one in tenants.controller.running()]
            marked = [alice.key_id in one.sequence_id for one in specs]
            assert marked == [one.prompt_features.unlearned for one in specs] and sum(marked) == 3
            # And whose they are, as a hash.
            owners = {(mark, one.prompt_features.owner_hash) for mark, one in zip(marked, specs, strict=True)}
            assert len({owner for _, owner in owners} - {0}) == len(owners) == 2
        tenants.router.lifecycle.stopping.set()
    tenants.store.revoke(alice.key_id)
    async with running_tenants(tmp_path, ca) as tenants, tenants.tenant("admin") as root:
        assert (await ended(root, batch))["status"] == "failed"
        assert not tenants.controller.submitted


@pytest.mark.parametrize("share", [False, True])
async def test_beginnings_are_their_owners_unless_all_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    """Lines of a batch as well: they are their owner's."""
    ca = secure(tmp_path, monkeypatch)
    async with running_tenants(tmp_path, ca, share_prefixes=share) as tenants:
        async with tenants.tenant() as alice, tenants.tenant() as bob:
            for who in (alice, bob):
                await who.http.post("/v1/completions", json={"prompt": "go", "max_tokens": 1})
            await ended(alice, (await begin(alice, await upload(alice, 1))).json()["id"])
            await alice.http.post(
                "/v1/completions", json={"prompt": "go", "max_tokens": 1, "cache_salt": "mine"}
            )
        hers, his, line, salted = [spec.prefix_root for spec in tenants.controller.submitted]
        assert len(hers) == 16 and (hers == his) is share
        assert line == hers and salted not in (hers, his)
