"""Another program of the same machine, beside a cluster without TLS and keys, calls and reads nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient
from tidepipe.v1 import (
    controller_pb2,
    predictor_pb2,
    provisioner_pb2,
    router_pb2,
    stage_pb2,
)
from tidepipe_common.errors import TidePipeError

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

REGISTERED = router_pb2.RegisterInstanceRequest(
    handle=router_pb2.InstanceHandle(instance_id="stranger", controller_address="127.0.0.1:1"), lease_ms=5000
)


async def refused(address: str, file: Any) -> int:
    """How many methods of a service there are, all of which refuse a caller without the token."""
    count = 0
    async with grpc.aio.insecure_channel(address) as channel:
        for service in file.services_by_name.values():
            for method in service.methods:
                request = GetMessageClass(method.input_type)()
                if method.name == "RegisterInstance":
                    request = REGISTERED
                call = channel.stream_stream(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=GetMessageClass(method.output_type).FromString,
                )
                for metadata in ((), (("authorization", "Bearer 0123456789abcdefg"),)):
                    error = await refusal(call, request, metadata)
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED, (method.name, error)
                count += 1
    return count


async def refusal(call: Any, request: Any, metadata: Any) -> grpc.aio.AioRpcError:
    """How a call fails. One that is refused before its message is sent fails in gRPC's client: again."""
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call(iter([request]), timeout=20, metadata=metadata):
                pass
        if caught.value.code() is not grpc.StatusCode.INTERNAL:
            break
    return caught.value


def command(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


async def test_a_stranger_calls_no_service_and_reads_no_file(
    model_path: Path, tmp_path: Path, usual_umask: None
) -> None:
    run_dir, journal = tmp_path / "run", tmp_path / "journal"
    config = ClusterConfig(
        model=str(model_path), executor="emulated", run_dir=str(run_dir), journal=str(journal)
    )
    async with LocalCluster(config) as cluster:
        address = {child.name: child.address for child in cluster.children}
        commands = [command(child.pid) for child in cluster.children]
        router = next(line for line in commands if "router" in line)
        provisioner = router[router.index("--provisioner") + 1]
        assert await refused(cluster.grpc_address, router_pb2.DESCRIPTOR)
        assert await refused(address["stage-worker-0-0"], stage_pb2.DESCRIPTOR)
        assert await refused(address["controller-0"], controller_pb2.DESCRIPTOR)
        assert await refused(cluster.grpc_address, controller_pb2.DESCRIPTOR)
        assert await refused(address["predictor"], predictor_pb2.DESCRIPTOR)
        assert await refused(provisioner, provisioner_pb2.DESCRIPTOR)

        # Nor is the token shown to whoever says that it is a router.
        async with AdminClient(cluster.grpc_address) as admin:
            with pytest.raises(TidePipeError, match="passes no instance on"):
                await admin.move("instance-0", router="127.0.0.1:1")

        # Clients go on without anything.
        async with AsyncClient(cluster.grpc_address) as client:
            assert len((await client.generate([1, 2, 3], max_tokens=3)).token_ids) == 3
            assert [entry.instance_id for entry in (await client.status()).instances] == ["instance-0"]
        async with httpx.AsyncClient(base_url=f"http://{cluster.http_address}", trust_env=False) as http:
            form = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", b"a secret prompt")}}
            assert (await http.post("/v1/files", **form)).status_code == 200  # type: ignore[arg-type]
            tool = {"type": "function", "function": {"name": "a secret prompt"}}
            chat = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool, tool]}
            answer = await http.post("/v1/chat/completions", json=chat)
            assert answer.status_code == 400 and "a secret prompt" in answer.json()["error"]["message"]

        (token,) = run_dir.glob("token-*")
        secret = token.read_text().strip()
        assert not [line for line in commands if secret in " ".join(line)]
        files = [*run_dir.rglob("*"), *journal.rglob("*")]
        assert {"batches.sqlite", "router.log", "instance-0.jsonl"} <= {file.name for file in files}
        readable = [
            f"{stat.S_IMODE(file.lstat().st_mode):o} {file}"
            for file in (run_dir, journal, *files)
            if file.lstat().st_mode & 0o077
        ]
        assert not readable
        logs = [file.read_text() for file in run_dir.glob("*.log")]
        assert not any(secret in log or "a secret prompt" in log for log in logs)
    assert not token.exists()
